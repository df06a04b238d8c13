//! Adding a low-rank update to a weight, row by row.
//!
//! W' = W + s · B·A      W (C_out, C_in), A (R, C_in), B (C_out, R), s = alpha / R, or alpha / sqrt(R) for rsLoRA
//!
//! With DoRA each row of W' is then given its trained length (arXiv:2402.09353, eq. 5). All of it in f32 on the
//! 16-bit base: merged into a 4-bit grid the update would vanish, being under a hundredth of a weight where a step of
//! the grid is far larger. Source: Hu et al. 2021, arXiv:2106.09685, section 4.1.

#![allow(unsafe_code)]

use std::sync::Arc;

use formats::adapter::AdapterTensor;
#[cfg(target_arch = "x86_64")]
use formats::isa::Isa;

/// The update of one linear layer.
#[derive(Clone, Debug)]
pub struct Update {
    pair: Arc<AdapterTensor>,
    scale: f32,
}

impl Update {
    /// The update `scale`·B·A; the lengths of A and B must be what the pair says, which its reader checks.
    pub fn new(pair: impl Into<Arc<AdapterTensor>>, scale: f32) -> Update {
        Update { pair: pair.into(), scale }
    }

    /// The update times a factor.
    #[must_use]
    pub fn times(self, factor: f32) -> Update {
        Update { scale: self.scale * factor, ..self }
    }

    /// The sum of updates of one linear layer, as one of all their ranks; a single one stays as it is.
    ///
    /// # Panics
    /// Where there is none, or where one of several has trained lengths, of which there is no sum.
    #[must_use]
    pub fn sum(updates: Vec<Update>) -> Update {
        let mut updates = updates;
        if updates.len() == 1 {
            return updates.remove(0);
        }
        assert!(updates.iter().all(|update| update.pair.magnitude.is_none()), "lengths have no sum");
        let first = updates.first().expect("a sum of something");
        let (module, in_features) = (first.pair.module.clone(), first.pair.in_features);
        let out_features = first.pair.out_features;
        let a = updates.iter().flat_map(|update| update.pair.a.iter().copied()).collect();
        let row = |row: usize| {
            updates.iter().flat_map(move |Update { pair, scale }| {
                pair.b[row * pair.r..(row + 1) * pair.r].iter().map(move |b| scale * b)
            })
        };
        let b = (0..out_features).flat_map(row).collect();
        let r = updates.iter().map(|update| update.pair.r).sum();
        let pair = AdapterTensor { module, a, b, magnitude: None, r, in_features, out_features };
        Update::new(pair, 1.0)
    }

    /// A and B.
    pub fn pair(&self) -> &AdapterTensor {
        &self.pair
    }

    /// What B·A is multiplied with.
    pub fn scale(&self) -> f32 {
        self.scale
    }

    /// Adds the update to consecutive rows of W, the first of which is row `first_row`, and with DoRA gives each sum its
    /// trained length.
    ///
    /// The sum over R runs in order of R for each weight, so how rows are shared out does not change a bit.
    pub fn add_to(&self, rows: &mut [f32], first_row: usize) {
        add(&self.pair, self.scale, rows, first_row);
    }
}

/// Rows of W + s·B·A, compiled for each width of vectors; none multiplies and adds in one step, so all give the same.
fn add(pair: &AdapterTensor, scale: f32, rows: &mut [f32], first_row: usize) {
    #[cfg(target_arch = "x86_64")]
    match Isa::get() {
        // SAFETY: the processor has said that it has these extensions.
        Isa::Avx512 => return unsafe { add_avx512(pair, scale, rows, first_row) },
        // SAFETY: as above.
        Isa::Avx2 => return unsafe { add_avx2(pair, scale, rows, first_row) },
        Isa::Baseline => {}
    }
    add_portable(pair, scale, rows, first_row);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vl")]
fn add_avx512(pair: &AdapterTensor, scale: f32, rows: &mut [f32], first_row: usize) {
    add_portable(pair, scale, rows, first_row);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn add_avx2(pair: &AdapterTensor, scale: f32, rows: &mut [f32], first_row: usize) {
    add_portable(pair, scale, rows, first_row);
}

/// Numbers of A that stay in a core's first cache while all rows go by.
const TILE: usize = 4096;

/// Inlined into each of the above. Columns by tiles, so that A is not read again for each row from afar.
#[inline(always)]
fn add_portable(pair: &AdapterTensor, scale: f32, rows: &mut [f32], first_row: usize) {
    let AdapterTensor { a, b, r, in_features: cols, .. } = pair;
    let width = (TILE / r.max(&1)).clamp(64, *cols.max(&64));
    for start in (0..*cols).step_by(width) {
        let columns = start..(start + width).min(*cols);
        let of_row = |offset: usize| &b[(first_row + offset) * r..(first_row + offset + 1) * r];
        let mut pairs = rows.chunks_exact_mut(2 * cols);
        let mut offset = 0;
        for two in pairs.by_ref() {
            let (first, second) = two.split_at_mut(*cols);
            let (first, second) = (&mut first[columns.clone()], &mut second[columns.clone()]);
            let (of_first, of_second) = (of_row(offset), of_row(offset + 1));
            let quads = of_first.chunks_exact(4).zip(of_second.chunks_exact(4)).zip(a.chunks_exact(4 * cols));
            for ((of_first, of_second), a) in quads {
                add_four_to_two(
                    [&mut *first, &mut *second],
                    scale,
                    [of_first, of_second],
                    &a[start..],
                    *cols,
                );
            }
            add_last(first, scale, of_first, &a[start..], *cols);
            add_last(second, scale, of_second, &a[start..], *cols);
            offset += 2;
        }
        for row in pairs.into_remainder().chunks_exact_mut(*cols) {
            let (row, of_row) = (&mut row[columns.clone()], of_row(offset));
            for (quad, a) in of_row.chunks_exact(4).zip(a.chunks_exact(4 * cols)) {
                add_four(row, scale, quad, &a[start..], *cols);
            }
            add_last(row, scale, of_row, &a[start..], *cols);
        }
    }
    if let Some(magnitude) = &pair.magnitude {
        for (offset, row) in rows.chunks_exact_mut(*cols).enumerate() {
            set_length(row, magnitude[first_row + offset]);
        }
    }
}

/// What is left of the ranks after those by four, one by one; rows of `a` are `cols` apart.
#[inline(always)]
fn add_last(row: &mut [f32], scale: f32, b: &[f32], a: &[f32], cols: usize) {
    for rank in b.len() - b.len() % 4..b.len() {
        let s = scale * b[rank];
        for (w, a) in row.iter_mut().zip(&a[rank * cols..]) {
            *w += s * a;
        }
    }
}

/// Four ranks in one pass over a part of a row, which is read and written once instead of four times.
#[inline(always)]
fn add_four(row: &mut [f32], scale: f32, b: &[f32], a: &[f32], cols: usize) {
    let n = row.len();
    let (s0, s1, s2, s3) = (scale * b[0], scale * b[1], scale * b[2], scale * b[3]);
    let (a0, a1, a2, a3) =
        (&a[..n], &a[cols..cols + n], &a[2 * cols..2 * cols + n], &a[3 * cols..3 * cols + n]);
    for ((((w, a0), a1), a2), a3) in row.iter_mut().zip(a0).zip(a1).zip(a2).zip(a3) {
        *w = (((*w + s0 * a0) + s1 * a1) + s2 * a2) + s3 * a3;
    }
}

/// The same for two rows, which share what is read of A.
#[inline(always)]
fn add_four_to_two(
    [first, second]: [&mut [f32]; 2],
    scale: f32,
    [b, d]: [&[f32]; 2],
    a: &[f32],
    cols: usize,
) {
    let n = first.len();
    let (s0, s1, s2, s3) = (scale * b[0], scale * b[1], scale * b[2], scale * b[3]);
    let (t0, t1, t2, t3) = (scale * d[0], scale * d[1], scale * d[2], scale * d[3]);
    let (a0, a1, a2, a3) =
        (&a[..n], &a[cols..cols + n], &a[2 * cols..2 * cols + n], &a[3 * cols..3 * cols + n]);
    let rows = first.iter_mut().zip(second);
    for (((((v, w), a0), a1), a2), a3) in rows.zip(a0).zip(a1).zip(a2).zip(a3) {
        *v = (((*v + s0 * a0) + s1 * a1) + s2 * a2) + s3 * a3;
        *w = (((*w + t0 * a0) + t1 * a1) + t2 * a2) + t3 * a3;
    }
}

/// row · length / |row|; a row of zeros has no direction and stays.
fn set_length(row: &mut [f32], length: f32) {
    let square: f64 = row.iter().map(|&w| f64::from(w) * f64::from(w)).sum();
    if square > 0.0 {
        let factor = (f64::from(length) / square.sqrt()) as f32;
        row.iter_mut().for_each(|w| *w *= factor);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// f32 keeps 24 bits and a weight meets R + 1 roundings; 1e-6 of the largest term is far above that.
    const TOLERANCE: f64 = 1e-6;

    /// A small deterministic sequence in -1..1.
    fn sequence(seed: u64, n: usize) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            ((state >> 40) as f32 / (1 << 23) as f32) - 1.0
        };
        (0..n).map(|_| next()).collect()
    }

    fn check(r: usize, rows: usize, cols: usize, scale: f32) {
        let (a, b) = (sequence(1, r * cols), sequence(2, rows * r));
        let base = sequence(3, rows * cols);
        let pair = AdapterTensor {
            module: "m".into(),
            a: a.clone(),
            b: b.clone(),
            magnitude: None,
            r,
            in_features: cols,
            out_features: rows,
        };
        let mut merged = base.clone();
        Update::new(pair, scale).add_to(&mut merged, 0);
        for row in 0..rows {
            for col in 0..cols {
                let update: f64 =
                    (0..r).map(|k| f64::from(b[row * r + k]) * f64::from(a[k * cols + col])).sum();
                let expected = f64::from(base[row * cols + col]) + f64::from(scale) * update;
                let found = f64::from(merged[row * cols + col]);
                let allowed = TOLERANCE * (1.0 + r as f64 * f64::from(scale));
                assert!((found - expected).abs() <= allowed, "({row}, {col}): {found} against {expected}");
            }
        }
    }

    #[test]
    fn merging_equals_the_sum_in_f64() {
        check(16, 24, 96, 2.0);
        check(5, 7, 33, 0.5);
        check(1, 3, 64, 1.0);
    }

    #[test]
    fn a_sum_adds_what_each_adds() {
        let (rows, cols) = (6, 40);
        let update = |seed, r, scale| {
            let (a, b) = (sequence(seed, r * cols), sequence(seed + 1, rows * r));
            let module = "m".into();
            let (in_features, out_features) = (cols, rows);
            Update::new(AdapterTensor { module, a, b, magnitude: None, r, in_features, out_features }, scale)
        };
        let parts = [update(1, 4, 2.0), update(3, 5, 0.5).times(-0.25)];
        let base = sequence(5, rows * cols);
        let (mut one_by_one, mut at_once) = (base.clone(), base);
        parts.iter().for_each(|part| part.add_to(&mut one_by_one, 0));
        Update::sum(parts.to_vec()).add_to(&mut at_once, 0);
        for (found, expected) in at_once.iter().zip(&one_by_one) {
            assert!((found - expected).abs() < 1e-6, "{found} against {expected}");
        }
    }

    #[test]
    fn a_tile_equals_the_same_rows_of_the_whole() {
        let (r, rows, cols) = (6, 10, 32);
        let (a, b) = (sequence(1, r * cols), sequence(2, rows * r));
        let pair = AdapterTensor {
            module: "m".into(),
            a,
            b,
            magnitude: None,
            r,
            in_features: cols,
            out_features: rows,
        };
        let update = Update::new(pair, 0.7);
        let base = sequence(4, rows * cols);
        let mut whole = base.clone();
        update.add_to(&mut whole, 0);
        let mut tile = base[3 * cols..8 * cols].to_vec();
        update.add_to(&mut tile, 3);
        assert_eq!(tile, whole[3 * cols..8 * cols]);
    }
}
