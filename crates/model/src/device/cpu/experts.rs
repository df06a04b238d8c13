//! Sending tokens to experts and back: the router's choice, the grouping by expert, the weighted sum.
//!
//! Sums over a token's experts run in the order of its picks, whatever the number of threads.

use rayon::prelude::*;

use super::rows::task_rows;
use crate::device::{Routing, Write};

/// probabilities (N, X) = softmax(logits); picks, weights (N, k): the k largest of each row, the latter times the scale
pub(super) fn route(
    routing: Routing,
    logits: &[f32],
    probabilities: &mut [f32],
    picks: &mut [u32],
    weights: &mut [f32],
) {
    let Routing { n_experts, n_used, scale } = routing;
    let choices = picks.par_chunks_exact_mut(n_used).zip(weights.par_chunks_exact_mut(n_used));
    let rows = logits.par_chunks_exact(n_experts).zip(probabilities.par_chunks_exact_mut(n_experts));
    rows.zip(choices).for_each(|((logits, probabilities), (picks, weights))| {
        softmax(logits, probabilities);
        for slot in 0..n_used {
            let expert = largest(probabilities, &picks[..slot]);
            picks[slot] = expert as u32;
            weights[slot] = scale * probabilities[expert];
        }
    });
}

fn softmax(logits: &[f32], probabilities: &mut [f32]) {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for (p, logit) in probabilities.iter_mut().zip(logits) {
        *p = (logit - max).exp();
        sum += *p;
    }
    probabilities.iter_mut().for_each(|p| *p /= sum);
}

/// The largest probability that is not picked yet, of equal ones the first.
fn largest(probabilities: &[f32], picked: &[u32]) -> usize {
    let free = (0..probabilities.len()).filter(|&expert| !picked.contains(&(expert as u32)));
    free.reduce(|best, expert| if probabilities[expert] > probabilities[best] { expert } else { best })
        .unwrap_or_default()
}

/// d_logits (=|+=) p · (g - Σ g·p), g = scale · d_weight at a pick and 0 elsewhere
pub(super) fn route_backward(
    routing: Routing,
    probabilities: &[f32],
    picks: &[u32],
    d_weights: &[f32],
    write: Write,
    d_logits: &mut [f32],
) {
    let Routing { n_experts, n_used, scale } = routing;
    let choices = picks.par_chunks_exact(n_used).zip(d_weights.par_chunks_exact(n_used));
    let rows = probabilities.par_chunks_exact(n_experts).zip(d_logits.par_chunks_exact_mut(n_experts));
    rows.zip(choices).for_each(|((probabilities, d_logits), (picks, d_weights))| {
        if write == Write::Set {
            d_logits.fill(0.0);
        }
        let gradients = || picks.iter().zip(d_weights).map(|(&pick, d)| (pick as usize, scale * d));
        let mean: f32 = gradients().map(|(expert, g)| g * probabilities[expert]).sum();
        for (d_logit, p) in d_logits.iter_mut().zip(probabilities) {
            *d_logit -= p * mean;
        }
        for (expert, g) in gradients() {
            d_logits[expert] += g * probabilities[expert];
        }
    });
}

/// A counting sort of all picks by expert, stable; `counts` are the rows of each expert.
pub(super) fn group(
    picks: &[u32],
    n_used: usize,
    rows: &mut [u32],
    places: &mut [u32],
    counts: &mut [usize],
) {
    counts.fill(0);
    for &expert in picks {
        counts[expert as usize] += 1;
    }
    // Until the end `counts` holds where the next row of each expert goes.
    let mut next = 0;
    for count in counts.iter_mut() {
        (*count, next) = (next, next + *count);
    }
    for (slot, &expert) in picks.iter().enumerate() {
        let place = &mut counts[expert as usize];
        rows[*place] = (slot / n_used) as u32;
        places[slot] = *place as u32;
        *place += 1;
    }
    let mut start = 0;
    for end in counts.iter_mut() {
        (*end, start) = (*end - start, *end);
    }
}

/// y_t (=|+=) Σ_j w_tj · x[places_tj]; all weights 1 where there are none
pub(super) fn combine(
    (x, cols): (&[f32], usize),
    (places, n_used): (&[u32], usize),
    weights: Option<&[f32]>,
    write: Write,
    y: &mut [f32],
) {
    let tokens = y.par_chunks_exact_mut(cols).zip(places.par_chunks_exact(n_used)).enumerate();
    tokens.with_min_len(task_rows(cols * n_used)).for_each(|(token, (y, places))| {
        if write == Write::Set {
            y.fill(0.0);
        }
        for (slot, &place) in places.iter().enumerate() {
            let weight = weights.map_or(1.0, |weights| weights[token * n_used + slot]);
            for (y, x) in y.iter_mut().zip(&x[place as usize * cols..][..cols]) {
                *y += weight * x;
            }
        }
    });
}

/// d_w_tj = Σ d_y_t · x[places_tj], and, in place, x[places_tj] = w_tj · d_y_t: the gradient of x
pub(super) fn combine_backward(
    (x, cols): (&mut [f32], usize),
    (places, n_used): (&[u32], usize),
    weights: &[f32],
    d_y: &[f32],
    d_weights: &mut [f32],
) {
    for (slot, &place) in places.iter().enumerate() {
        let d_y = &d_y[slot / n_used * cols..][..cols];
        let x = &mut x[place as usize * cols..][..cols];
        d_weights[slot] = x.iter().zip(d_y).map(|(x, d)| x * d).sum();
        for (x, d) in x.iter_mut().zip(d_y) {
            *x = weights[slot] * d;
        }
    }
}
