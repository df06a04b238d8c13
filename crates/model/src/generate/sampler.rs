//! Choosing the next token from logits: greedy, or drawn after top-k, top-p, min-p and temperature.
//!
//! Filters apply in llama.cpp's order, each on what the one before left: top-k, top-p, min-p, temperature, draw.

use crate::random::SplitMix64;

/// How the next token is chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SamplerOptions {
    /// Divides the logits; 0 chooses the largest one (greedy) and ignores everything below.
    pub temperature: f32,
    /// Keeps this many of the likeliest tokens; 0 keeps all.
    pub top_k: usize,
    /// Keeps the likeliest tokens that together have this probability; 1 keeps all.
    pub top_p: f32,
    /// Keeps tokens at least this fraction as likely as the likeliest one; 0 keeps all.
    pub min_p: f32,
    /// The same seed, options and logits give the same tokens.
    pub seed: u64,
}

impl SamplerOptions {
    /// Always the likeliest token.
    pub const GREEDY: SamplerOptions =
        SamplerOptions { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: 0 };

    /// Whether nothing is drawn.
    pub fn is_greedy(&self) -> bool {
        self.temperature <= 0.0
    }
}

impl Default for SamplerOptions {
    fn default() -> Self {
        SamplerOptions::GREEDY
    }
}

/// One sequence's choices: the options and the state of its random numbers.
#[derive(Debug, Clone)]
pub struct Sampler {
    options: SamplerOptions,
    random: SplitMix64,
    /// Token and logit, likeliest first once filtered; kept to spare an allocation a token.
    candidates: Vec<(u32, f32)>,
}

impl Sampler {
    /// Starts the choices of sequence number `sequence`; sequences of one seed draw independently.
    pub fn new(options: &SamplerOptions, sequence: u64) -> Sampler {
        let mut seeder = SplitMix64(options.seed ^ sequence.wrapping_mul(0xD1B5_4A32_D192_ED03));
        Sampler { options: *options, random: SplitMix64(seeder.next()), candidates: Vec::new() }
    }

    /// Chooses a token; of equal logits the lowest id. Logits that are not numbers are never chosen.
    ///
    /// # Panics
    /// When `logits` is empty.
    pub fn choose(&mut self, logits: &[f32]) -> u32 {
        assert!(!logits.is_empty(), "a vocabulary has at least one token");
        if self.options.is_greedy() {
            return argmax(logits);
        }
        self.filter(logits);
        self.draw().unwrap_or_else(|| argmax(logits))
    }

    fn filter(&mut self, logits: &[f32]) {
        let candidates = &mut self.candidates;
        candidates.clear();
        candidates.extend((0..).zip(logits.iter().copied()).filter(|(_, logit)| logit.is_finite()));
        let likeliest_first = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        let k = self.options.top_k;
        if k > 0 && k < candidates.len() {
            candidates.select_nth_unstable_by(k - 1, likeliest_first);
            candidates.truncate(k);
        }
        candidates.sort_unstable_by(likeliest_first);
        keep_top_p(candidates, self.options.top_p);
        keep_min_p(candidates, self.options.min_p);
    }

    fn draw(&mut self) -> Option<u32> {
        let &(_, largest) = self.candidates.first()?;
        let weight = |logit: f32| f64::from((logit - largest) / self.options.temperature).exp();
        let total: f64 = self.candidates.iter().map(|&(_, logit)| weight(logit)).sum();
        let mut left = self.random.unit() * total;
        for &(token, logit) in &self.candidates {
            left -= weight(logit);
            if left < 0.0 {
                return Some(token);
            }
        }
        self.candidates.last().map(|&(token, _)| token)
    }
}

/// The index of the largest logit, the lowest of equal ones.
pub(super) fn argmax(logits: &[f32]) -> u32 {
    let mut best = (0, f32::NEG_INFINITY);
    for (token, &logit) in (0..).zip(logits) {
        if logit > best.1 {
            best = (token, logit);
        }
    }
    best.0
}

/// Keeps the shortest likeliest prefix whose probability reaches `top_p`.
fn keep_top_p(candidates: &mut Vec<(u32, f32)>, top_p: f32) {
    let Some(&(_, largest)) = candidates.first().filter(|_| top_p < 1.0) else { return };
    let weight = |logit: f32| f64::from(logit - largest).exp();
    let total: f64 = candidates.iter().map(|&(_, logit)| weight(logit)).sum();
    let mut sum = 0.0;
    let reached = candidates.iter().position(|&(_, logit)| {
        sum += weight(logit);
        sum >= f64::from(top_p) * total
    });
    candidates.truncate(reached.map_or(candidates.len(), |last| last + 1));
}

/// Keeps tokens whose probability is at least `min_p` of the likeliest one's.
fn keep_min_p(candidates: &mut Vec<(u32, f32)>, min_p: f32) {
    let Some(&(_, largest)) = candidates.first().filter(|_| min_p > 0.0) else { return };
    let least = largest + min_p.ln();
    let kept = candidates.iter().take_while(|&&(_, logit)| logit >= least).count();
    candidates.truncate(kept.max(1));
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRAWS: usize = 20_000;
    /// Five standard deviations of a frequency of 1/2 over [`DRAWS`] draws.
    const FREQUENCY_TOLERANCE: f64 = 0.018;

    fn options(temperature: f32) -> SamplerOptions {
        SamplerOptions { temperature, seed: 7, ..SamplerOptions::GREEDY }
    }

    fn frequencies(options: &SamplerOptions, logits: &[f32]) -> Vec<f64> {
        let mut sampler = Sampler::new(options, 0);
        let mut counts = vec![0usize; logits.len()];
        for _ in 0..DRAWS {
            counts[sampler.choose(logits) as usize] += 1;
        }
        counts.into_iter().map(|n| n as f64 / DRAWS as f64).collect()
    }

    fn check_frequencies(options: &SamplerOptions, probabilities: &[f64], expected: &[f64]) {
        let logits: Vec<f32> = probabilities.iter().map(|p| p.ln() as f32).collect();
        let found = frequencies(options, &logits);
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < FREQUENCY_TOLERANCE, "{found} against {expected}");
        }
    }

    #[test]
    fn greedy_takes_the_first_of_the_largest_and_never_a_nan() {
        let mut sampler = Sampler::new(&SamplerOptions::GREEDY, 0);
        assert_eq!(sampler.choose(&[0.0, 3.0, f32::NAN, 3.0]), 1);
    }

    #[test]
    fn draws_follow_the_softmax() {
        check_frequencies(&options(1.0), &[0.5, 0.3, 0.2], &[0.5, 0.3, 0.2]);
    }

    #[test]
    fn temperature_sharpens_and_flattens() {
        let squares = [0.25 / 0.38, 0.09 / 0.38, 0.04 / 0.38];
        check_frequencies(&options(0.5), &[0.5, 0.3, 0.2], &squares);
        check_frequencies(&options(1e6), &[0.5, 0.3, 0.2], &[1.0 / 3.0; 3]);
    }

    #[test]
    fn top_k_keeps_the_likeliest() {
        let options = SamplerOptions { top_k: 2, ..options(1.0) };
        check_frequencies(&options, &[0.2, 0.3, 0.5], &[0.0, 0.375, 0.625]);
    }

    #[test]
    fn top_p_keeps_the_shortest_prefix_that_reaches_it() {
        let options = SamplerOptions { top_p: 0.7, ..options(1.0) };
        check_frequencies(&options, &[0.2, 0.3, 0.5], &[0.0, 0.375, 0.625]);
        let one = SamplerOptions { top_p: 0.4, ..options };
        check_frequencies(&one, &[0.2, 0.3, 0.5], &[0.0, 0.0, 1.0]);
    }

    #[test]
    fn min_p_is_relative_to_the_likeliest() {
        let options = SamplerOptions { min_p: 0.5, ..options(1.0) };
        check_frequencies(&options, &[0.2, 0.3, 0.5], &[0.0, 0.375, 0.625]);
    }

    #[test]
    fn one_seed_gives_one_text_and_sequences_differ() {
        let logits = [0.0; 50];
        let draw = |seed, sequence| {
            let mut sampler = Sampler::new(&SamplerOptions { seed, ..options(1.0) }, sequence);
            (0..20).map(|_| sampler.choose(&logits)).collect::<Vec<_>>()
        };
        assert_eq!(draw(1, 0), draw(1, 0));
        assert_ne!(draw(1, 0), draw(2, 0));
        assert_ne!(draw(1, 0), draw(1, 1));
    }
}
