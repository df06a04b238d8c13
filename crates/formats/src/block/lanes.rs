//! Groups of weights side by side: lane k of every row belongs to group k.
//!
//! The trick of the fast encoders: ggml's sums must run in order within a group, so a group cannot be spread
//! over a vector, but eight or sixteen groups can walk in step. Each lane does exactly what a loop over its group would
//! do. Compilers turn the arrays into vector registers of whatever width the processor has.

/// One value of each of L groups.
pub(super) type Lane<const L: usize> = [f32; L];

/// Most groups that walk in step.
pub(super) const MOST_LANES: usize = 16;

/// Groups of N weights as N rows of lanes.
#[inline(always)]
pub(super) fn transpose<const N: usize, const L: usize>(groups: &[[f32; N]; L]) -> [Lane<L>; N] {
    let mut rows = [[0.0; L]; N];
    for (i, row) in rows.iter_mut().enumerate() {
        *row = each(|k| groups[k][i]);
    }
    rows
}

/// N rows of lanes as groups of N codes.
#[inline(always)]
pub(super) fn codes_of_groups<const N: usize, const L: usize>(rows: &[[i32; L]; N]) -> [[u8; N]; L] {
    let mut groups = [[0; N]; L];
    for (i, row) in rows.iter().enumerate() {
        for k in 0..L {
            groups[k][i] = row[k] as u8;
        }
    }
    groups
}

/// The results of a function for each lane. A plain loop: the compiler sees through it, not through
/// `array::from_fn`.
#[inline(always)]
pub(super) fn each<T: Copy + Default, const L: usize>(mut one: impl FnMut(usize) -> T) -> [T; L] {
    let mut results = [T::default(); L];
    for (k, result) in results.iter_mut().enumerate() {
        *result = one(k);
    }
    results
}

/// The results of a function for each row; a plain loop for the same reason.
#[inline(always)]
pub(super) fn rows<T: Copy + Default, const N: usize, const L: usize>(
    x: &[Lane<L>; N],
    mut one: impl FnMut(&Lane<L>) -> [T; L],
) -> [[T; L]; N] {
    let mut results = [[T::default(); L]; N];
    for (result, row) in results.iter_mut().zip(x) {
        *result = one(row);
    }
    results
}

/// The sum of each lane, in the order of the rows.
#[inline(always)]
pub(super) fn totals<const N: usize, const L: usize>(x: &[Lane<L>; N]) -> Lane<L> {
    let mut totals = [0.0; L];
    for x in x {
        totals = each(|k| totals[k] + x[k]);
    }
    totals
}

/// Up to L consecutive groups; the missing ones of a last batch are zeros.
#[inline(always)]
pub(super) fn padded<const N: usize, const L: usize>(groups: &[[f32; N]]) -> [[f32; N]; L] {
    std::array::from_fn(|k| groups.get(k).copied().unwrap_or([0.0; N]))
}
