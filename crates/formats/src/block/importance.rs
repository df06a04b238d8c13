//! How much each weight of a group counts in a search.

/// Without a matrix: the root mean square of the group plus the weight's magnitude.
pub(super) fn from_weights<const N: usize>(x: &[f32; N]) -> [f32; N] {
    let root_mean_square = (sum_of_squares(x) / N as f32).sqrt();
    x.map(|x| root_mean_square + x.abs())
}

/// With a matrix: the column's importance · sqrt(variance + x²).
pub(super) fn from_matrix<const N: usize>(x: &[f32; N], columns: &[f32; N], variance: f32) -> [f32; N] {
    std::array::from_fn(|i| columns[i] * (variance + x[i] * x[i]).sqrt())
}

/// Σx², summed in order.
pub(super) fn sum_of_squares(x: &[f32]) -> f32 {
    let mut sum = 0.0;
    for x in x {
        sum += x * x;
    }
    sum
}

/// The mean square of a row, which the 32-weight formats use as its variance.
pub(super) fn mean_square(row: &[f32]) -> f32 {
    sum_of_squares(row) / row.len() as f32
}
