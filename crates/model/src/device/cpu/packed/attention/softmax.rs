//! Rows of scores to probabilities, and to the gradients of scores: many rows of a block in one call.
//!
//! As [`super::super::super::attention`] has them for one row and any processor, but with fused multiply-add: results
//! differ in the last bits.

use std::ops::Range;

use super::super::vectors::{Avx2, Avx512, Vectors};

/// Rows of scores, `stride` numbers apart, which is a multiple of every vector's lanes.
pub(in super::super) struct Scores<'a> {
    pub data: &'a mut [f32],
    pub stride: usize,
    /// Numbers of a row that count.
    pub n_keys: usize,
}

/// Largest score of a query so far, and the sum of its exponentials less that.
pub(in super::super) type State = (f32, f32);

/// Compiled for one instruction set.
///
/// # Safety
/// The processor has the instructions.
pub(in super::super) trait Rowwise: Vectors {
    /// Turns each row of products into exp(scale · product - running maximum), 0 outside of what is seen; leaves in
    /// `corrections` what earlier sums shrink by. The scale is above 0.
    unsafe fn softmax(
        scores: Scores<'_>,
        seen: impl Fn(usize) -> Range<usize>,
        scale: f32,
        states: &mut [State],
        corrections: &mut [f32],
    );

    /// p = exp(scale · product - lse), d_s = scale · p · (dP - δ), both 0 outside of what is seen.
    ///
    /// `rows` gives lse and δ.
    unsafe fn score_gradients(
        p: Scores<'_>,
        d_s: &mut [f32],
        seen: impl Fn(usize) -> Range<usize>,
        scale: f32,
        rows: impl ExactSizeIterator<Item = (f32, f32)>,
    );
}

macro_rules! rowwise {
    ($vectors:ty, $features:literal) => {
        impl Rowwise for $vectors {
            #[target_feature(enable = $features)]
            unsafe fn softmax(
                scores: Scores<'_>,
                seen: impl Fn(usize) -> Range<usize>,
                scale: f32,
                states: &mut [State],
                corrections: &mut [f32],
            ) {
                // SAFETY: the caller's promise is the callee's, here and below.
                unsafe { softmax::<Self>(scores, seen, scale, states, corrections) };
            }

            #[target_feature(enable = $features)]
            unsafe fn score_gradients(
                p: Scores<'_>,
                d_s: &mut [f32],
                seen: impl Fn(usize) -> Range<usize>,
                scale: f32,
                rows: impl ExactSizeIterator<Item = (f32, f32)>,
            ) {
                // SAFETY: as above.
                unsafe { score_gradients::<Self>(p, d_s, seen, scale, rows) };
            }
        }
    };
}

rowwise!(Avx512, "avx512f,avx512bw,avx512vl,avx512dq");
rowwise!(Avx2, "avx2,fma");

/// exp(x) to within 2 units in the last place; 0 below -86, capped at 88.
///
/// Source: the method of Cephes' `expf`: reduction by ln 2 in two parts, a polynomial of degree 6.
#[inline(always)]
unsafe fn exp<V: Vectors>(x: V::Floats) -> V::Floats {
    const LOWEST: f32 = -86.0;
    const HIGHEST: f32 = 88.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Adding 1.5·2²³ leaves the rounded integer in the low bits.
    const ROUND: f32 = 12_582_912.0;
    // SAFETY: the caller's promise.
    unsafe {
        let set = |x: f32| V::set_float(x);
        // What is no number stays none: of two operands the second is kept then.
        let clamped = V::smaller_float(set(HIGHEST), V::larger_float(set(LOWEST), x));
        let rounded = V::multiply_add(clamped, set(std::f32::consts::LOG2_E), set(ROUND));
        let n = V::add_floats(rounded, set(-ROUND));
        let r = V::multiply_add(n, set(-LN2_LOW), V::multiply_add(n, set(-LN2_HIGH), clamped));
        let mut p = set(1.987_569_1e-4);
        for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5] {
            p = V::multiply_add(p, r, set(c));
        }
        let of_rest = V::add_floats(V::multiply_add(p, V::multiply(r, r), r), set(1.0));
        let power = V::shifted_left(V::add(V::words_of(rounded), V::set_word(127)), 23);
        V::unless_below(V::multiply(of_rest, V::floats_of(power)), x, set(LOWEST))
    }
}

/// The vectors that hold what is seen of a row, as a range of its numbers; numbers beside it in them are set to -inf, all
/// others to 0.
fn cleared<V: Vectors>(row: &mut [f32], seen: &Range<usize>) -> Range<usize> {
    let vectors = seen.start / V::LANES * V::LANES..seen.end.next_multiple_of(V::LANES);
    let (start, end) = (vectors.start.min(row.len()), vectors.end.min(row.len()));
    row[..start].fill(0.0);
    row[start..seen.start].fill(f32::NEG_INFINITY);
    row[seen.end..end].fill(f32::NEG_INFINITY);
    row[end..].fill(0.0);
    start..end
}

/// [`Rowwise::softmax`]
#[inline(always)]
unsafe fn softmax<V: Vectors>(
    scores: Scores<'_>,
    seen: impl Fn(usize) -> Range<usize>,
    scale: f32,
    states: &mut [State],
    corrections: &mut [f32],
) {
    let Scores { data, stride, n_keys } = scores;
    let width = n_keys.next_multiple_of(V::LANES);
    let rows = data.chunks_mut(stride).zip(states).zip(corrections).enumerate();
    for (i, ((row, (max, sum)), correction)) in rows {
        let row = &mut row[..width];
        let vectors = cleared::<V>(row, &seen(i)).step_by(V::LANES);
        let row = row.as_mut_ptr();
        // SAFETY: the caller's promise; a row has whole vectors.
        unsafe {
            let mut largest = V::set_float(f32::NEG_INFINITY);
            for start in vectors.clone() {
                largest = V::larger_float(V::load_floats(row.add(start)), largest);
            }
            let new_max = (scale * V::largest_float(largest)).max(*max);
            if new_max == f32::NEG_INFINITY {
                vectors.for_each(|start| V::store_floats(V::set_float(0.0), row.add(start)));
                *correction = 1.0;
                continue;
            }
            let (factor, less) = (V::set_float(scale), V::set_float(-new_max));
            let mut sums = V::set_float(0.0);
            for start in vectors {
                let p = exp::<V>(V::multiply_add(V::load_floats(row.add(start)), factor, less));
                sums = V::add_floats(sums, p);
                V::store_floats(p, row.add(start));
            }
            *correction = if *max == new_max { 1.0 } else { (*max - new_max).exp() };
            *sum = *sum * *correction + V::sum_floats(sums);
            *max = new_max;
        }
    }
}

/// [`Rowwise::score_gradients`]
#[inline(always)]
unsafe fn score_gradients<V: Vectors>(
    p: Scores<'_>,
    d_s: &mut [f32],
    seen: impl Fn(usize) -> Range<usize>,
    scale: f32,
    rows: impl ExactSizeIterator<Item = (f32, f32)>,
) {
    let Scores { data, stride, n_keys } = p;
    let width = n_keys.next_multiple_of(V::LANES);
    let of_rows = data.chunks_mut(stride).zip(d_s.chunks_mut(stride)).zip(rows).enumerate();
    for (i, ((p, d_s), (lse, delta))) in of_rows {
        let (p, d_s) = (&mut p[..width], &mut d_s[..width]);
        let seen = seen(i);
        let vectors = cleared::<V>(p, &seen);
        d_s[..seen.start].fill(0.0);
        d_s[seen.end..].fill(0.0);
        let (p, d_s) = (p.as_mut_ptr(), d_s.as_mut_ptr());
        // SAFETY: as above.
        unsafe {
            let (factor, less, delta) = (V::set_float(scale), V::set_float(-lse), V::set_float(-delta));
            for start in vectors.step_by(V::LANES) {
                let (p, d_s) = (p.add(start), d_s.add(start));
                let of_p = exp::<V>(V::multiply_add(V::load_floats(p), factor, less));
                let difference = V::add_floats(V::load_floats(d_s), delta);
                V::store_floats(of_p, p);
                V::store_floats(V::multiply(V::multiply(factor, of_p), difference), d_s);
            }
        }
    }
}
