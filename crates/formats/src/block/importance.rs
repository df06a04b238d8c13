//! How much each weight of a group counts in a search.

use super::lanes::{Lane, each, rows};

/// Without a matrix: the root mean square of the group plus the weight's magnitude.
#[inline(always)]
pub(super) fn from_weights<const N: usize, const L: usize>(x: &[Lane<L>; N]) -> [Lane<L>; N] {
    let mut sums = [0.0; L];
    for x in x {
        sums = each(|k| sums[k] + x[k] * x[k]);
    }
    let root_mean_square: [_; L] = each(|k| (sums[k] / N as f32).sqrt());
    rows(x, |x| each(|k| root_mean_square[k] + x[k].abs()))
}

/// With a matrix: the column's importance · sqrt(variance + x²), the variance being each group's.
#[inline(always)]
pub(super) fn from_matrix<const N: usize, const L: usize>(
    x: &[Lane<L>; N],
    columns: &[Lane<L>; N],
    variance: &Lane<L>,
) -> [Lane<L>; N] {
    let mut counts = [[0.0; L]; N];
    for ((count, x), column) in counts.iter_mut().zip(x).zip(columns) {
        *count = each(|k| column[k] * (variance[k] + x[k] * x[k]).sqrt());
    }
    counts
}

/// Σx², summed in order.
#[inline(always)]
pub(super) fn sum_of_squares(x: &[f32]) -> f32 {
    let mut sum = 0.0;
    for x in x {
        sum += x * x;
    }
    sum
}

/// The mean square of a row, which the 32-weight formats use as its variance.
#[inline(always)]
pub(super) fn mean_square(row: &[f32]) -> f32 {
    sum_of_squares(row) / row.len() as f32
}
