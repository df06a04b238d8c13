//! The leading singular vectors of a large matrix, by subspace iteration from random vectors.
//!
//! Vectors are kept as rows, K of them. Source: Halko, Martinsson & Tropp 2011, "Finding structure with randomness",
//! SIAM Review 53(2), algorithms 4.4 and 5.1; the small eigenproblem by Jacobi rotations (Golub & Van Loan, 8.5).

use crate::device::Write;
use crate::device::cpu::product::{Mat, MatMut, Threads, multiply};
use crate::random::SplitMix64;

/// M ≈ Σ σ_i u_i v_iᵀ, the largest σ first.
pub(super) struct Svd {
    /// σ (R)
    pub values: Vec<f32>,
    /// u (R, rows)
    pub left: Vec<f32>,
    /// v (R, cols)
    pub right: Vec<f32>,
}

/// Vectors beyond those asked for: the last ones asked for would converge slowest.
const OVERSAMPLED: usize = 16;
/// Passes over the matrix, each of two products. On a matrix of random numbers, whose singular values lie as close as
/// they can, 8 passes leave the R-th value within 1 %; on trained weights 3 would do.
const PASSES: usize = 8;

/// The `rank` leading singular values and vectors of M (rows, cols); fewer where M is smaller.
pub(super) fn leading(matrix: &[f32], rows: usize, cols: usize, rank: usize, seed: u64) -> Svd {
    let k = (rank + OVERSAMPLED).min(rows).min(cols);
    let m = Mat::new(matrix, rows, cols, cols);
    let mut random = SplitMix64(seed);
    let mut right: Vec<f32> = (0..k * cols).map(|_| random.symmetric()).collect();
    let mut left = vec![0.0; k * rows];
    for _ in 0..PASSES {
        orthonormalise(&mut right, cols);
        product(Mat::new(&right, k, cols, cols), m.t(), &mut left, rows);
        orthonormalise(&mut left, rows);
        product(Mat::new(&left, k, rows, rows), m, &mut right, cols);
    }
    // M ≈ Lᵀ·(L·M): the SVD of the small factor R = L·M follows from the eigenvectors of R·Rᵀ.
    let mut gram: Vec<f64> =
        (0..k * k).map(|i| dot(row(&right, i / k, cols), row(&right, i % k, cols))).collect();
    let vectors = eigenvectors(&mut gram, k);
    let mut order: Vec<usize> = (0..k).collect();
    order.sort_by(|&a, &b| gram[b * k + b].total_cmp(&gram[a * k + a]));
    let mut svd = Svd { values: Vec::new(), left: Vec::new(), right: Vec::new() };
    for &i in order.iter().take(rank) {
        let value = gram[i * k + i].max(0.0).sqrt();
        let weights: Vec<f64> = (0..k).map(|j| vectors[j * k + i]).collect();
        svd.values.push(value as f32);
        svd.left.extend(combine(&weights, &left, rows, 1.0));
        svd.right.extend(combine(&weights, &right, cols, if value > 0.0 { 1.0 / value } else { 0.0 }));
    }
    svd
}

fn product(a: Mat<'_>, b: Mat<'_>, c: &mut [f32], cols: usize) {
    let k = c.len() / cols;
    multiply(1.0, a, b, Write::Set, MatMut::new(c, k, cols, cols), Threads::All);
}

fn row(matrix: &[f32], index: usize, cols: usize) -> &[f32] {
    &matrix[index * cols..][..cols]
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

/// factor · Σ weights_j · rows_j
fn combine(weights: &[f64], rows: &[f32], cols: usize, factor: f64) -> Vec<f32> {
    let mut sum = vec![0.0f64; cols];
    for (&weight, row) in weights.iter().zip(rows.chunks_exact(cols)) {
        sum.iter_mut().zip(row).for_each(|(sum, &x)| *sum += weight * f64::from(x));
    }
    sum.into_iter().map(|x| (factor * x) as f32).collect()
}

/// Gram-Schmidt on the rows, twice, since once leaves what rounding put back; a row that depends on those before it
/// becomes zero.
fn orthonormalise(vectors: &mut [f32], cols: usize) {
    for index in 0..vectors.len() / cols {
        let (before, rest) = vectors.split_at_mut(index * cols);
        let vector = &mut rest[..cols];
        let size = dot(vector, vector).sqrt();
        for _ in 0..2 {
            for earlier in before.chunks_exact(cols) {
                let along = dot(earlier, vector) as f32;
                vector.iter_mut().zip(earlier).for_each(|(x, e)| *x -= along * e);
            }
        }
        let left = dot(vector, vector).sqrt();
        let factor = if left > 1e-6 * size { (1.0 / left) as f32 } else { 0.0 };
        vector.iter_mut().for_each(|x| *x *= factor);
    }
}

/// Turns a symmetric matrix (k, k) into its eigenvalues, on the diagonal, and returns the eigenvectors as columns.
fn eigenvectors(a: &mut [f64], k: usize) -> Vec<f64> {
    const SWEEPS: usize = 50;
    let mut vectors: Vec<f64> = (0..k * k).map(|i| if i / k == i % k { 1.0 } else { 0.0 }).collect();
    for _ in 0..SWEEPS {
        let off: f64 = (0..k * k).filter(|i| i / k != i % k).map(|i| a[i] * a[i]).sum();
        let all: f64 = a.iter().map(|x| x * x).sum();
        if off <= 1e-26 * all {
            break;
        }
        for p in 0..k {
            for q in p + 1..k {
                rotate(a, &mut vectors, k, p, q);
            }
        }
    }
    vectors
}

/// The rotation that makes a_pq zero.
fn rotate(a: &mut [f64], vectors: &mut [f64], k: usize, p: usize, q: usize) {
    if a[p * k + q] == 0.0 {
        return;
    }
    let theta = (a[q * k + q] - a[p * k + p]) / (2.0 * a[p * k + q]);
    let t = theta.signum() / (theta.abs() + (theta * theta + 1.0).sqrt());
    let t = if theta == 0.0 { 1.0 } else { t };
    let c = 1.0 / (t * t + 1.0).sqrt();
    let s = t * c;
    for i in 0..k {
        let (x, y) = (a[i * k + p], a[i * k + q]);
        (a[i * k + p], a[i * k + q]) = (c * x - s * y, s * x + c * y);
    }
    for i in 0..k {
        let (x, y) = (a[p * k + i], a[q * k + i]);
        (a[p * k + i], a[q * k + i]) = (c * x - s * y, s * x + c * y);
        let (x, y) = (vectors[i * k + p], vectors[i * k + q]);
        (vectors[i * k + p], vectors[i * k + q]) = (c * x - s * y, s * x + c * y);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(seed: u64, n: usize) -> Vec<f32> {
        let mut random = SplitMix64(seed);
        (0..n).map(|_| random.symmetric()).collect()
    }

    /// A matrix with chosen singular values, from random orthonormal vectors.
    fn with_values(values: &[f32], rows: usize, cols: usize) -> Vec<f32> {
        let (mut left, mut right) = (random(1, values.len() * rows), random(2, values.len() * cols));
        orthonormalise(&mut left, rows);
        orthonormalise(&mut right, cols);
        let mut matrix = vec![0.0; rows * cols];
        for (i, value) in values.iter().enumerate() {
            for (r, u) in row(&left, i, rows).iter().enumerate() {
                let scaled = row(&right, i, cols).iter().map(|v| value * u * v);
                matrix[r * cols..][..cols].iter_mut().zip(scaled).for_each(|(m, x)| *m += x);
            }
        }
        matrix
    }

    #[test]
    fn chosen_singular_values_are_found_and_vectors_are_orthonormal() {
        let values: Vec<f32> = (0..40).map(|i| 3.0 * 0.85f32.powi(i)).collect();
        for (rows, cols) in [(90, 130), (130, 90)] {
            let matrix = with_values(&values, rows, cols);
            let svd = leading(&matrix, rows, cols, 8, 7);
            for (found, expected) in svd.values.iter().zip(&values) {
                assert!((found / expected - 1.0).abs() < 1e-5, "{found} against {expected}");
            }
            for (vectors, width) in [(&svd.left, rows), (&svd.right, cols)] {
                for i in 0..8 {
                    for j in 0..8 {
                        let expected = if i == j { 1.0 } else { 0.0 };
                        let found = dot(row(vectors, i, width), row(vectors, j, width));
                        assert!((found - expected).abs() < 1e-5, "{i} {j}: {found}");
                    }
                }
            }
        }
    }

    /// What is left of the matrix is what the theorem of Eckart and Young allows.
    #[test]
    fn the_leading_part_is_the_best_approximation() {
        let values: Vec<f32> = (0..30).map(|i| 1.0 / (1.0 + i as f32)).collect();
        let (rows, cols, rank) = (60, 50, 6);
        let matrix = with_values(&values, rows, cols);
        let svd = leading(&matrix, rows, cols, rank, 3);
        let mut left_over = matrix.clone();
        for i in 0..rank {
            for (r, u) in row(&svd.left, i, rows).iter().enumerate() {
                let part = row(&svd.right, i, cols).iter().map(|v| svd.values[i] * u * v);
                left_over[r * cols..][..cols].iter_mut().zip(part).for_each(|(m, x)| *m -= x);
            }
        }
        let best: f64 = values[rank..].iter().map(|&v| f64::from(v) * f64::from(v)).sum();
        assert!((dot(&left_over, &left_over) / best - 1.0).abs() < 1e-4);
    }

    #[test]
    fn matrices_of_less_than_the_rank() {
        let svd = leading(&random(4, 3 * 20), 3, 20, 8, 1);
        assert_eq!(svd.values.len(), 3);
        let nothing = leading(&[0.0; 40], 4, 10, 2, 1);
        assert!(
            nothing
                .values
                .iter()
                .chain(&nothing.left)
                .chain(&nothing.right)
                .all(|x| *x == 0.0 || x.is_finite())
        );
    }
}
