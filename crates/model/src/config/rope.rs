//! Rotary frequencies: the plain table, linear scaling, and the rule published with Llama 3.1.
//!
//! inv_freq_i = theta^(-2 i / D), i < D / 2. A scaling divides each by a factor of its own; GGUF stores these factors
//! (tensor `rope_freqs.weight`), transformers the scaled table. Both come from [`Rope::factors`].

use std::f32::consts::PI;

/// Rotary position embedding of a model: base frequency and what stretches it.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Base of the geometric series of wavelengths.
    pub theta: f64,
    /// How the frequencies are stretched beyond the context of pre-training.
    pub scaling: RopeScaling,
}

/// What stretches the rotary frequencies.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// Nothing.
    None,
    /// Every frequency is divided by one factor.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Low frequencies are divided by `factor`, high ones stay, those between are interpolated.
    ///
    /// Source: the `apply_scaling` of meta-llama/llama-models; transformers calls it `llama3`.
    Llama3 {
        /// The divisor of the low frequencies.
        factor: f64,
        /// Wavelengths over `original_max_positions / low_freq_factor` are low frequencies.
        low_freq_factor: f64,
        /// Wavelengths under `original_max_positions / high_freq_factor` are high frequencies.
        high_freq_factor: f64,
        /// Context length of pre-training.
        original_max_positions: usize,
    },
    /// A factor for each frequency, as a GGUF's `rope_freqs.weight` holds them.
    Factors(
        /// One divisor for each of the D / 2 frequencies.
        Vec<f32>,
    ),
}

impl Rope {
    /// The divisor of each of the D / 2 frequencies, `None` where nothing is scaled.
    ///
    /// f32 at the same places as llama.cpp's converter, so that an exported `rope_freqs.weight` has the same bytes.
    pub fn factors(&self, head_dim: usize) -> Option<Vec<f32>> {
        match &self.scaling {
            RopeScaling::None => None,
            RopeScaling::Linear { factor } => Some(vec![*factor as f32; head_dim / 2]),
            RopeScaling::Factors(factors) => Some(factors.clone()),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => {
                let (factor, context) = (*factor as f32, *original_max_positions as f32);
                let (low, high) = (*low_freq_factor as f32, *high_freq_factor as f32);
                let rule = |inv_freq: f32| llama3_factor(inv_freq, factor, low, high, context);
                Some(plain_inverse_frequencies(self.theta, head_dim).into_iter().map(rule).collect())
            }
        }
    }

    /// What a GGUF stores as `rope_freqs.weight`, `None` where it stores nothing (linear scaling is a key there).
    pub fn gguf_factors(&self, head_dim: usize) -> Option<Vec<f32>> {
        match self.scaling {
            RopeScaling::None | RopeScaling::Linear { .. } => None,
            RopeScaling::Llama3 { .. } | RopeScaling::Factors(_) => self.factors(head_dim),
        }
    }

    /// The D / 2 inverse frequencies (radians a position) with the scaling applied.
    pub fn inverse_frequencies(&self, head_dim: usize) -> Vec<f32> {
        let mut table = plain_inverse_frequencies(self.theta, head_dim);
        if let Some(factors) = self.factors(head_dim) {
            for (inv_freq, factor) in table.iter_mut().zip(factors) {
                *inv_freq /= factor;
            }
        }
        table
    }

    /// Cosines and sines of position · frequency, each (n_positions, D / 2).
    ///
    /// The angle is rounded to f32 before the cosine, as transformers and llama.cpp do.
    pub fn tables(&self, head_dim: usize, n_positions: usize) -> (Vec<f32>, Vec<f32>) {
        let frequencies = self.inverse_frequencies(head_dim);
        let angles = (0..n_positions).flat_map(|p| frequencies.iter().map(move |f| p as f32 * f));
        angles.map(|angle| (angle.cos(), angle.sin())).unzip()
    }
}

fn plain_inverse_frequencies(theta: f64, head_dim: usize) -> Vec<f32> {
    // The exponent is rounded to f32 before the power, as torch does.
    (0..head_dim / 2)
        .map(|i| {
            let exponent = (2 * i) as f32 / head_dim as f32;
            1.0 / theta.powf(f64::from(exponent)) as f32
        })
        .collect()
}

fn llama3_factor(inv_freq: f32, factor: f32, low: f32, high: f32, context: f32) -> f32 {
    let wavelength = 2.0 * PI / inv_freq;
    if wavelength < context / high {
        1.0
    } else if wavelength > context / low {
        factor
    } else {
        let smooth = (context / wavelength - low) / (high - low);
        1.0 / ((1.0 - smooth) / factor + smooth)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LLAMA_3_2: Rope = Rope {
        theta: 500_000.0,
        scaling: RopeScaling::Llama3 {
            factor: 32.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_positions: 8192,
        },
    };

    #[test]
    fn plain_table_is_a_geometric_series() {
        let rope = Rope { theta: 10_000.0, scaling: RopeScaling::None };
        assert_eq!(rope.factors(8), None);
        let table = rope.inverse_frequencies(8);
        for (found, expected) in table.iter().zip([1.0, 0.1, 0.01, 0.001]) {
            assert!((found / expected - 1.0).abs() < 1e-6, "{found} against {expected}");
        }
    }

    #[test]
    fn linear_scaling_divides_every_frequency() {
        let rope = Rope { theta: 10_000.0, scaling: RopeScaling::Linear { factor: 4.0 } };
        assert!((rope.inverse_frequencies(8)[1] - 0.025).abs() < 1e-7);
    }

    /// Values of transformers 5.23.0, `ROPE_INIT_FUNCTIONS["llama3"]` on Llama-3.2-1B's configuration.
    #[test]
    fn llama3_rule_equals_transformers() {
        let table = LLAMA_3_2.inverse_frequencies(64);
        for (i, expected) in TRANSFORMERS_LLAMA_3_2 {
            let relative = (table[i] / expected - 1.0).abs();
            assert!(relative < 1e-6, "frequency {i}: {} against {expected}", table[i]);
        }
    }

    /// Bits of the interpolated factors as llama.cpp's converter computes them (torch 2.15.0, f32).
    #[test]
    fn llama3_factors_have_the_converters_bits() {
        let factors = LLAMA_3_2.gguf_factors(64).unwrap();
        let bits: Vec<u32> = factors[14..19].iter().map(|factor| factor.to_bits()).collect();
        let (one, thirty_two) = (1.0f32.to_bits(), 32.0f32.to_bits());
        assert_eq!(bits, [one, 1_070_816_962, 1_079_161_967, 1_092_266_734, thirty_two]);
    }

    const TRANSFORMERS_LLAMA_3_2: [(usize, f32); 12] = [
        (0, 1.0),
        (1, 0.663_601_3),
        (10, 0.016_560_44),
        (13, 0.004_839_421),
        (14, 0.003_211_446),
        (15, 0.001_290_548),
        (16, 0.000_429_556_7),
        (17, 9.708_286e-5),
        (18, 1.946_164e-5),
        (19, 1.291_477e-5),
        (24, 1.661_967_4e-6),
        (31, 9.418_306e-8),
    ];
}
