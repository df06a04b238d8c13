//! Adding a low-rank update to a weight, row by row.
//!
//! W' = W + s · B·A      W (C_out, C_in), A (R, C_in), B (C_out, R), s = alpha / R, or alpha / sqrt(R) for rsLoRA
//!
//! With DoRA each row of W' is then given its trained length (arXiv:2402.09353, eq. 5). All of it in f32 on the
//! 16-bit base: merged into a 4-bit grid the update would vanish, being under a hundredth of a weight where a step of
//! the grid is far larger. Source: Hu et al. 2021, arXiv:2106.09685, section 4.1.

use std::sync::Arc;

use formats::adapter::AdapterTensor;

use super::add::add_product;

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

/// Rows of W + s·B·A.
fn add(pair: &AdapterTensor, scale: f32, rows: &mut [f32], first_row: usize) {
    let AdapterTensor { a, b, r, in_features: cols, .. } = pair;
    let n_rows = rows.len() / cols.max(&1);
    let scaled: Vec<f32> = b[first_row * r..(first_row + n_rows) * r].iter().map(|b| scale * b).collect();
    add_product(rows, &scaled, a, *cols, *r);
    if let Some(magnitude) = &pair.magnitude {
        for (row, magnitude) in rows.chunks_exact_mut(*cols).zip(&magnitude[first_row..]) {
            set_length(row, *magnitude);
        }
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
