//! The optimiser's update, with moments in 32 or in eight bits, and the norm of the gradients.

#![allow(unsafe_code)] // the instruction-set dispatch of `multiversion!`

use rayon::prelude::*;

use super::HostBuffer;
use super::checks::check;
use super::isa::{LANES, multiversion};
use super::memory::slice_mut;
use super::rows::TASK_FLOATS;
use crate::Result;
use crate::device::AdamWUpdate;
use crate::device::coded::{CODED_BLOCK, CODED_WORDS, Code, CodedMut, Levels, Signed, Squared};
use crate::random::splitmix;

/// One AdamW update of `weights` and both moments.
pub(super) fn update(
    update: &AdamWUpdate,
    gradient: &[f32],
    weights: &mut [f32],
    m: &mut [f32],
    v: &mut [f32],
) -> Result<()> {
    let n = gradient.len();
    check("adamw", [("weights", weights.len(), n), ("first moment", m.len(), n)])?;
    check("adamw", [("second moment", v.len(), n)])?;
    weights
        .par_chunks_mut(TASK_FLOATS)
        .zip(m.par_chunks_mut(TASK_FLOATS))
        .zip(v.par_chunks_mut(TASK_FLOATS))
        .zip(gradient.par_chunks(TASK_FLOATS))
        .for_each(|(((weights, m), v), gradient)| update_part(update, gradient, weights, m, v));
    Ok(())
}

multiversion! {
    fn update_part(update: &AdamWUpdate, gradient: &[f32], weights: &mut [f32], m: &mut [f32], v: &mut [f32]) {
        step(update, gradient, weights, m, v);
    }
}

#[inline(always)]
fn step(update: &AdamWUpdate, gradient: &[f32], weights: &mut [f32], m: &mut [f32], v: &mut [f32]) {
    let u = *update;
    let decay = 1.0 - u.learning_rate * u.weight_decay;
    for (((w, m), v), &g) in weights.iter_mut().zip(m.iter_mut()).zip(v.iter_mut()).zip(gradient) {
        let g = g * u.gradient_scale;
        *m = u.beta1 * *m + (1.0 - u.beta1) * g;
        *v = u.beta2 * *v + (1.0 - u.beta2) * g * g;
        let step = (*m / u.correction1) / ((*v / u.correction2).sqrt() + u.epsilon);
        *w = *w * decay - u.learning_rate * step;
    }
}

/// Moments of some whole blocks in host memory.
type HostCoded<'a> = CodedMut<'a, HostBuffer<u32>, HostBuffer<f32>>;

/// The same with moments in eight bits: each block is unpacked, updated as above, and rounded back.
pub(super) fn update_coded(
    update: &AdamWUpdate,
    seed: u64,
    gradient: &[f32],
    weights: &mut [f32],
    first: HostCoded<'_>,
    second: HostCoded<'_>,
) -> Result<()> {
    let (n, n_blocks) = (gradient.len(), gradient.len().div_ceil(CODED_BLOCK));
    check("adamw_coded", [("weights", weights.len(), n)])?;
    for moment in [&first, &second] {
        check("adamw_coded", [("scales", moment.scales.len(), n_blocks)])?;
        check("adamw_coded", [("codes", moment.codes.len(), n_blocks * CODED_WORDS)])?;
    }
    let first_block = first.scales.range().start as u64;
    let (m, m_scales) = (slice_mut(first.codes), slice_mut(first.scales));
    let (v, v_scales) = (slice_mut(second.codes), slice_mut(second.scales));
    let weights = weights.par_chunks_mut(CODED_BLOCK).zip(gradient.par_chunks(CODED_BLOCK));
    let m = m.par_chunks_mut(CODED_WORDS).zip(m_scales);
    let v = v.par_chunks_mut(CODED_WORDS).zip(v_scales);
    weights.zip(m.zip(v)).enumerate().with_min_len(TASK_FLOATS / CODED_BLOCK).for_each(
        |(block, ((weights, gradient), ((m, m_scale), (v, v_scale))))| {
            let place = (first_block + block as u64) * CODED_BLOCK as u64;
            update_block(update, seed, place, gradient, weights, (m, m_scale), (v, v_scale));
        },
    );
    Ok(())
}

multiversion! {
    fn update_block(
        update: &AdamWUpdate,
        seed: u64,
        place: u64,
        gradient: &[f32],
        weights: &mut [f32],
        m: (&mut [u32], &mut f32),
        v: (&mut [u32], &mut f32),
    ) {
        let (signed, squared) = (Signed(Levels::of_magnitudes()), Squared(Levels::of_squares()));
        let (mut m_values, mut v_values) = ([0.0; CODED_BLOCK], [0.0; CODED_BLOCK]);
        signed.decode(m.0, *m.1, &mut m_values);
        squared.decode(v.0, *v.1, &mut v_values);
        let n = gradient.len();
        step(update, gradient, weights, &mut m_values[..n], &mut v_values[..n]);
        let (mut m_chances, mut v_chances) = ([0.0; CODED_BLOCK], [0.0; CODED_BLOCK]);
        for (i, (m, v)) in m_chances.iter_mut().zip(&mut v_chances).enumerate() {
            let random = splitmix(seed, place + i as u64);
            // 24 bits each, which an f32 holds exactly.
            (*m, *v) = (unit(random >> 40), unit(random & 0xff_ffff));
        }
        *m.1 = signed.encode(&m_values, &m_chances, m.0);
        *v.1 = squared.encode(&v_values, &v_chances, v.0);
    }
}

#[inline(always)]
fn unit(bits: u64) -> f32 {
    bits as f32 * (1.0 / (1 << 24) as f32)
}

multiversion! {
    /// Σ x² in f64, in lanes on one thread: the order never changes.
    pub(super) fn sum_of_squares(x: &[f32]) -> f64 {
        let mut lanes = [0.0f64; LANES];
        let mut chunks = x.chunks_exact(LANES);
        for chunk in &mut chunks {
            for lane in 0..LANES {
                lanes[lane] += f64::from(chunk[lane]) * f64::from(chunk[lane]);
            }
        }
        for (lane, &x) in lanes.iter_mut().zip(chunks.remainder()) {
            *lane += f64::from(x) * f64::from(x);
        }
        lanes.iter().sum()
    }
}
