//! Reference arithmetic in f64 and finite differences.

#![allow(dead_code, reason = "each test binary uses some of these")]

use formats::block::{self, BlockType};
use model::arena::Arena;
use model::device::{Buffer, Device, cpu::Cpu};

/// f32 results against f64 ones: a few hundred roundings of 6e-8 each, relative to the largest value.
pub const TOLERANCE: f64 = 2e-5;

/// Step of the central differences; in f64 their error is about 1e-10.
const STEP: f64 = 1e-5;

pub fn cpu() -> Cpu {
    Cpu::new(Arena::unlimited()).unwrap()
}

/// Reproducible values in ±1.
pub struct Random(pub u64);

impl Random {
    pub fn value(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    pub fn values(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.value()).collect()
    }

    pub fn below(&mut self, limit: usize) -> usize {
        ((f64::from(self.value()) + 1.0) / 2.0 * limit as f64) as usize % limit
    }
}

pub fn on_device(cpu: &Cpu, values: &[f32]) -> <Cpu as Device>::Buffer {
    let mut buffer = cpu.alloc("test", values.len()).unwrap();
    cpu.upload(values, buffer.all_mut()).unwrap();
    buffer
}

pub fn indices(cpu: &Cpu, values: &[u32]) -> <Cpu as Device>::Indices {
    let mut buffer = cpu.alloc_indices("test", values.len()).unwrap();
    cpu.upload_indices(values, buffer.all_mut()).unwrap();
    buffer
}

pub fn on_host(cpu: &Cpu, buffer: &<Cpu as Device>::Buffer) -> Vec<f32> {
    let mut values = vec![0.0; buffer.len()];
    cpu.download(buffer.all(), &mut values).unwrap();
    values
}

pub fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&x| f64::from(x)).collect()
}

/// Compares elementwise, relative to the largest expected magnitude.
pub fn assert_close(what: &str, found: &[f32], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(1e-30f64, |a, &b| a.max(b.abs()));
    for (i, (&f, &e)) in found.iter().zip(expected).enumerate() {
        let error = (f64::from(f) - e).abs() / largest;
        assert!(error <= tolerance, "{what}[{i}]: {f} against {e}, relative error {error:e}");
    }
}

/// Compares a gradient with central differences of `loss` at up to `n_samples` places.
pub fn assert_gradient(
    what: &str,
    loss: impl Fn(&[f64]) -> f64,
    at: &[f32],
    gradient: &[f32],
    n_samples: usize,
) {
    assert_eq!(at.len(), gradient.len(), "{what}");
    let mut x = wide(at);
    let mut random = Random(7);
    let all = at.len() <= n_samples;
    let places: Vec<usize> =
        if all { (0..at.len()).collect() } else { (0..n_samples).map(|_| random.below(at.len())).collect() };
    let mut difference = |i: usize| {
        let original = x[i];
        x[i] = original + STEP;
        let above = loss(&x);
        x[i] = original - STEP;
        let below = loss(&x);
        x[i] = original;
        (above - below) / (2.0 * STEP)
    };
    let expected: Vec<f64> = places.iter().map(|&i| difference(i)).collect();
    let found: Vec<f32> = places.iter().map(|&i| gradient[i]).collect();
    assert!(expected.iter().any(|&g| g != 0.0), "{what}: a loss that depends on nothing proves nothing");
    assert_close(what, &found, &expected, TOLERANCE);
}

pub fn dot(a: &[f64], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, &b)| a * f64::from(b)).sum()
}

/// (m, k) · (n, k)ᵀ
pub fn product_transposed(a: &[f64], b: &[f64], k: usize) -> Vec<f64> {
    let row =
        |a: &[f64]| b.chunks(k).map(|b| a.iter().zip(b).map(|(a, b)| a * b).sum()).collect::<Vec<f64>>();
    a.chunks(k).flat_map(row).collect()
}

pub fn transposed<T: Copy>(a: &[T], cols: usize) -> Vec<T> {
    (0..cols).flat_map(|j| a.chunks(cols).map(move |row| row[j])).collect()
}

/// A frozen matrix on the device and what its blocks decode to.
pub fn frozen(
    cpu: &Cpu,
    ty: BlockType,
    rows: usize,
    cols: usize,
    random: &mut Random,
) -> (<Cpu as Device>::Weights, Vec<f32>) {
    let mut blocks = vec![0; rows * ty.row_bytes(cols).unwrap()];
    block::encode(ty, &random.values(rows * cols), cols, None, &mut blocks).unwrap();
    let mut dense = vec![0.0; rows * cols];
    let row_bytes = ty.row_bytes(cols).unwrap();
    for (row, out) in blocks.chunks(row_bytes).zip(dense.chunks_mut(cols)) {
        block::decode(ty, row, out).unwrap();
    }
    let mut weights = cpu.alloc_weights("test", ty, rows, cols).unwrap();
    cpu.upload_rows(&blocks, 0, &mut weights).unwrap();
    (weights, dense)
}
