//! How much each weight of a group counts in a search.

use super::lanes::Lanes;

/// Without a matrix: the root mean square of the group plus the weight's magnitude.
#[inline(always)]
pub(super) fn from_weights<V: Lanes, const N: usize>(x: &[V; N], counts: &mut [V; N]) {
    let mut sums = V::splat(0.0);
    for x in x {
        sums = sums + *x * *x;
    }
    let root_mean_square = (sums / V::splat(N as f32)).sqrt();
    for (count, x) in counts.iter_mut().zip(x) {
        *count = root_mean_square + x.abs();
    }
}

/// With a matrix: the column's importance · sqrt(variance + x²), the variance being each group's.
#[inline(always)]
pub(super) fn from_matrix<V: Lanes, const N: usize>(x: &[V; N], columns: &[V; N], variance: V) -> [V; N] {
    let mut counts = *columns;
    with_weights(x, variance, &mut counts);
    counts
}

/// The same in the place of the columns' importance.
#[inline(always)]
pub(super) fn with_weights<V: Lanes, const N: usize>(x: &[V; N], variance: V, counts: &mut [V; N]) {
    for (count, x) in counts.iter_mut().zip(x) {
        *count = *count * (variance + *x * *x).sqrt();
    }
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
