//! PiSSA and LoftQ: A, B, and what the base is to hold beside them, one linear layer at a time.

use formats::adapter::AdapterTensor;
use formats::{BlockType, Observer, TensorSource, block};
use rayon::prelude::*;

use super::super::{LoraOptions, Update};
use super::{Method, svd};
use crate::Result;
use crate::base::LoadEvent;
use crate::config::ModelConfig;
use crate::family::{self, TensorSpec};
use crate::policy::{self, Quant};
use crate::random::splitmix;

/// What a method makes of a base.
#[derive(Debug, Clone, PartialEq)]
pub struct Decomposition {
    /// A and B at step 0.
    pub factors: Vec<AdapterTensor>,
    /// The product that is taken out of each weight before it is quantised ([`super::Shifted`]).
    pub shift: Vec<AdapterTensor>,
    /// How well base and adapter together give the weights.
    pub residual: Residual,
}

/// Squared Frobenius norms, summed over the adapted weights.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Residual {
    /// Of the weights W.
    pub weights: f64,
    /// Of W - q(W): what plain quantising loses.
    pub before: f64,
    /// Of W - (q(W - shift) + s·B·A): what is lost now.
    pub after: f64,
}

impl Residual {
    /// |W - …| / |W| before and after.
    pub fn relative(&self) -> (f64, f64) {
        let share = |part: f64| (part / self.weights).sqrt();
        (share(self.before), share(self.after))
    }

    fn add(&mut self, other: &Residual) {
        self.weights += other.weights;
        self.before += other.before;
        self.after += other.after;
    }
}

/// Decomposes every adapted weight of a checkpoint; in memory are four copies of one weight in f32.
///
/// The same seed gives the same bits, whatever the number of threads.
///
/// # Errors
/// What reading and quantising meet.
pub fn decompose(
    method: Method,
    config: &ModelConfig,
    source: &dyn TensorSource,
    quant: Quant,
    options: &LoraOptions,
    seed: u64,
    observer: &mut dyn Observer<LoadEvent>,
) -> Result<Decomposition> {
    options.check()?;
    let shape = |spec: &TensorSpec| options.shape(spec.layer?, spec.role);
    let specs = family::tensors(config).into_iter().filter_map(|spec| Some((shape(&spec)?, spec)));
    let specs: Vec<_> = specs.collect();
    let mut all = Decomposition { factors: Vec::new(), shift: Vec::new(), residual: Residual::default() };
    let mut weights = Vec::new();
    for (index, ((rank, scale), spec)) in specs.iter().enumerate() {
        source.read(&spec.hf, &mut weights)?;
        let block_type = policy::block_type(quant, config, spec);
        let layer =
            Layer { spec, rank: *rank, scale: *scale, block_type, seed: splitmix(seed, index as u64) };
        let (factors, shift, residual) = match method {
            Method::Pissa => layer.pissa(&weights)?,
            Method::LoftQ { iterations } => layer.loftq(&weights, iterations)?,
        };
        all.factors.push(factors);
        all.shift.push(shift);
        all.residual.add(&residual);
        let (n_done, n_tensors) = (index + 1, specs.len());
        observer.observe(LoadEvent::Tensor { name: spec.hf.clone(), n_done, n_tensors, block_type });
    }
    Ok(all)
}

/// One linear layer.
struct Layer<'a> {
    spec: &'a TensorSpec,
    rank: usize,
    scale: f32,
    block_type: BlockType,
    seed: u64,
}

type Decomposed = (AdapterTensor, AdapterTensor, Residual);

impl Layer<'_> {
    fn pissa(&self, weights: &[f32]) -> Result<Decomposed> {
        let pair = self.leading(weights);
        let mut rest = weights.to_vec();
        self.take_out(&pair, &mut rest);
        let residual =
            Residual { weights: square(weights), before: self.lost(weights)?, after: self.lost(&rest)? };
        Ok((pair.clone(), pair, residual))
    }

    fn loftq(&self, weights: &[f32], iterations: usize) -> Result<Decomposed> {
        let mut shift = self.nothing();
        let mut best: Option<(f64, AdapterTensor, AdapterTensor)> = None;
        let mut residual = Residual { weights: square(weights), ..Residual::default() };
        for iteration in 0..iterations.max(1) {
            let mut lost = weights.to_vec();
            self.take_out(&shift, &mut lost);
            let quantised = self.quantised(&lost)?;
            // W - Q: the shift has served its purpose in choosing Q.
            lost.par_iter_mut().zip(weights.par_iter().zip(&quantised)).for_each(|(l, (w, q))| *l = w - q);
            if iteration == 0 {
                residual.before = square(&lost);
            }
            let pair = self.leading(&lost);
            self.take_out(&pair, &mut lost);
            let after = square(&lost);
            if best.as_ref().is_none_or(|best| after < best.0) {
                best = Some((after, pair.clone(), shift));
            }
            shift = pair;
        }
        let (after, pair, shift) = best.expect("there is at least one iteration");
        Ok((pair, shift, Residual { after, ..residual }))
    }

    /// B·A of rank R with s·B·A ≈ matrix, its singular values shared out evenly.
    fn leading(&self, matrix: &[f32]) -> AdapterTensor {
        let (rows, cols) = (self.spec.rows, self.spec.cols);
        let found = svd::leading(matrix, rows, cols, self.rank, self.seed);
        let mut pair = self.nothing();
        for (r, value) in found.values.iter().enumerate() {
            let root = (value / self.scale).sqrt();
            let a = found.right[r * cols..][..cols].iter().map(|v| root * v);
            pair.a[r * cols..][..cols].iter_mut().zip(a).for_each(|(to, a)| *to = a);
            for (row, u) in found.left[r * rows..][..rows].iter().enumerate() {
                pair.b[row * self.rank + r] = root * u;
            }
        }
        pair
    }

    fn nothing(&self) -> AdapterTensor {
        AdapterTensor {
            module: self.spec.module().to_owned(),
            a: vec![0.0; self.rank * self.spec.cols],
            b: vec![0.0; self.spec.rows * self.rank],
            magnitude: None,
            r: self.rank,
            in_features: self.spec.cols,
            out_features: self.spec.rows,
        }
    }

    /// matrix -= s·B·A
    fn take_out(&self, pair: &AdapterTensor, matrix: &mut [f32]) {
        let update = Update::new(pair.clone(), -self.scale);
        let cols = self.spec.cols;
        matrix.par_chunks_mut(cols).enumerate().for_each(|(row, weights)| update.add_to(weights, row));
    }

    fn quantised(&self, matrix: &[f32]) -> Result<Vec<f32>> {
        let (ty, cols) = (self.block_type, self.spec.cols);
        let row_bytes = ty.row_bytes(cols)?;
        let mut blocks = vec![0; matrix.len() / cols * row_bytes];
        block::encode_par(ty, matrix, cols, None, &mut blocks)?;
        let mut decoded = vec![0.0; matrix.len()];
        let rows = decoded.par_chunks_mut(cols).zip(blocks.par_chunks(row_bytes));
        rows.try_for_each(|(row, blocks)| block::decode(ty, blocks, row))?;
        Ok(decoded)
    }

    /// |matrix - q(matrix)|²
    fn lost(&self, matrix: &[f32]) -> Result<f64> {
        let mut quantised = self.quantised(matrix)?;
        quantised.par_iter_mut().zip(matrix).for_each(|(q, m)| *q -= m);
        Ok(square(&quantised))
    }
}

/// Σ x², row after row in a fixed order.
fn square(values: &[f32]) -> f64 {
    let part = |part: &[f32]| part.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>();
    values.chunks(1 << 16).map(part).sum()
}
