//! Eight groups of weights side by side: lane k of every row belongs to group k.
//!
//! The trick of the fast encoders: ggml's sums must run in order within a group, so a group cannot be spread
//! over a vector, but eight groups can walk in step. Each lane does exactly what a loop over its group would
//! do. Compilers turn the arrays into vector registers of whatever width the processor has.

/// Groups that walk in step.
pub(super) const LANES: usize = 8;

/// One value of each group.
pub(super) type Lane = [f32; LANES];

/// Groups of N weights as N rows of lanes.
#[inline(always)]
pub(super) fn transpose<const N: usize>(groups: &[[f32; N]; LANES]) -> [Lane; N] {
    let mut rows = [[0.0; LANES]; N];
    for (i, row) in rows.iter_mut().enumerate() {
        *row = each(|k| groups[k][i]);
    }
    rows
}

/// N rows of lanes as groups of N codes.
#[inline(always)]
pub(super) fn codes_of_groups<const N: usize>(rows: &[[i32; LANES]; N]) -> [[u8; N]; LANES] {
    let mut groups = [[0; N]; LANES];
    for (i, row) in rows.iter().enumerate() {
        for k in 0..LANES {
            groups[k][i] = row[k] as u8;
        }
    }
    groups
}

/// The results of a function for each lane. A plain loop: the compiler sees through it, not through
/// `array::from_fn`.
#[inline(always)]
pub(super) fn each<T: Copy + Default>(mut one: impl FnMut(usize) -> T) -> [T; LANES] {
    let mut results = [T::default(); LANES];
    for (k, result) in results.iter_mut().enumerate() {
        *result = one(k);
    }
    results
}

/// The results of a function for each row; a plain loop for the same reason.
#[inline(always)]
pub(super) fn rows<T: Copy + Default, const N: usize>(
    x: &[Lane; N],
    mut one: impl FnMut(&Lane) -> [T; LANES],
) -> [[T; LANES]; N] {
    let mut results = [[T::default(); LANES]; N];
    for (result, row) in results.iter_mut().zip(x) {
        *result = one(row);
    }
    results
}

/// Up to eight consecutive groups; the missing ones of a last batch are zeros.
#[inline(always)]
pub(super) fn padded<const N: usize>(groups: &[[f32; N]]) -> [[f32; N]; LANES] {
    std::array::from_fn(|k| groups.get(k).copied().unwrap_or([0.0; N]))
}
