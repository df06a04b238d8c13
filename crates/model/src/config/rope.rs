//! Rotary frequencies: the plain table and what stretches it: linear scaling, Llama 3.1's rule, yarn, longrope.
//!
//! inv_freq_i = theta^(-2 i / P), i < P / 2, P the rotated dimensions of a head. A scaling divides each by a factor of its own; GGUF stores these factors
//! (tensor `rope_freqs.weight`), transformers the scaled table. Both come from [`Rope::factors`].

use std::f32::consts::PI;

/// Rotary position embedding of a model: base frequency and what stretches it.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Base of the geometric series of wavelengths.
    pub theta: f64,
    /// P, how many of a head's dimensions are rotated; an even number, most often all.
    pub dim: usize,
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
        /// One divisor for each of the P / 2 frequencies.
        Vec<f32>,
    ),
    /// Frequencies that turn often enough in pre-training stay, slow ones are divided, a ramp lies between.
    Yarn(
        /// Where the ramp lies, and what the cosines and sines are multiplied by.
        Yarn,
    ),
    /// Two sets of factors, one for short and one for long sequences: Phi's longrope.
    Long(
        /// The sets, and what tells short from long.
        LongRope,
    ),
}

/// Yarn. Source: Peng et al. 2023, arXiv:2309.00071, section 3, and transformers' `_compute_yarn_parameters`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Yarn {
    /// The divisor of the frequencies below the ramp.
    pub factor: f64,
    /// Frequencies that turn at least so often within `original_max_positions` stay.
    pub beta_fast: f64,
    /// Frequencies that turn at most so often are divided.
    pub beta_slow: f64,
    /// Context length of pre-training.
    pub original_max_positions: usize,
    /// Factor on cosines and sines.
    pub attention_factor: f32,
}

impl Yarn {
    /// What is assumed of `beta_fast` where it is not stated.
    pub const BETA_FAST: f64 = 32.0;
    /// What is assumed of `beta_slow` where it is not stated.
    pub const BETA_SLOW: f64 = 1.0;

    /// m(s) = 1 + 0.1 · multiplier · ln s, 1 where nothing is stretched: how much larger the scores of a context
    /// stretched by `factor` are to be.
    pub fn magnitude(factor: f64, multiplier: f64) -> f64 {
        if factor <= 1.0 { 1.0 } else { 1.0 + 0.1 * multiplier * factor.ln() }
    }

    /// The divisor of each of the P / 2 frequencies of a series of base `theta`.
    ///
    /// divisor_i = 1 / (r_i / factor + 1 - r_i), where r_i climbs from 0 at the last frequency that turns `beta_fast`
    /// times to 1 at the first that turns `beta_slow` times.
    fn factors(&self, theta: f64, dim: usize) -> Vec<f32> {
        let turns_at = |turns: f64| {
            let wavelength = self.original_max_positions as f64 / (2.0 * std::f64::consts::PI * turns);
            dim as f64 * wavelength.ln() / (2.0 * theta.ln())
        };
        let low = turns_at(self.beta_fast).floor().max(0.0);
        let high = turns_at(self.beta_slow).ceil().min(dim as f64 - 1.0);
        // A ramp of no length would divide by zero; the same small one stands in transformers and in ggml.
        let length = if high == low { 0.001 } else { high - low };
        let ramp = |i: usize| ((i as f64 - low) / length).clamp(0.0, 1.0);
        (0..dim / 2).map(|i| (1.0 / (ramp(i) / self.factor + 1.0 - ramp(i))) as f32).collect()
    }
}

/// Longrope. Source: Ding et al. 2024, arXiv:2402.13753, and transformers' `_compute_longrope_parameters`.
#[derive(Debug, Clone, PartialEq)]
pub struct LongRope {
    /// A divisor for each of the P / 2 frequencies, for a sequence of up to `original_max_positions`.
    pub short: Vec<f32>,
    /// The divisors for a longer one.
    pub long: Vec<f32>,
    /// Context length of pre-training.
    pub original_max_positions: usize,
    /// Factor on cosines and sines of either set.
    pub attention_factor: f32,
}

impl LongRope {
    /// The attention factor that follows from how far the context was stretched: sqrt(1 + ln s / ln original).
    pub fn attention_factor(max_positions: usize, original_max_positions: usize) -> f32 {
        let stretch = max_positions as f64 / original_max_positions as f64;
        if stretch <= 1.0 {
            return 1.0;
        }
        (1.0 + stretch.ln() / (original_max_positions as f64).ln()).sqrt() as f32
    }
}

/// Cosines and sines of position · frequency, each (rows, P / 2).
#[derive(Debug, Clone, PartialEq)]
pub struct RotaryTable {
    /// Cosines.
    pub cos: Vec<f32>,
    /// Sines.
    pub sin: Vec<f32>,
}

impl Rope {
    /// The divisor of each of the P / 2 frequencies, `None` where nothing is scaled; of longrope the short set.
    ///
    /// f32 at the same places as llama.cpp's converter, so that an exported `rope_freqs.weight` has the same bytes.
    pub fn factors(&self) -> Option<Vec<f32>> {
        match &self.scaling {
            RopeScaling::None => None,
            RopeScaling::Linear { factor } => Some(vec![*factor as f32; self.dim / 2]),
            RopeScaling::Factors(factors) => Some(factors.clone()),
            RopeScaling::Yarn(yarn) => Some(yarn.factors(self.theta, self.dim)),
            RopeScaling::Long(long) => Some(long.short.clone()),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => {
                let (factor, context) = (*factor as f32, *original_max_positions as f32);
                let (low, high) = (*low_freq_factor as f32, *high_freq_factor as f32);
                let rule = |inv_freq: f32| llama3_factor(inv_freq, factor, low, high, context);
                Some(self.plain_inverse_frequencies().into_iter().map(rule).collect())
            }
        }
    }

    /// The tensors in which a GGUF stores factors: name and values. None where it stores none (linear scaling and yarn are keys).
    pub fn gguf_tensors(&self) -> Vec<(&'static str, Vec<f32>)> {
        match &self.scaling {
            RopeScaling::None | RopeScaling::Linear { .. } | RopeScaling::Yarn(_) => Vec::new(),
            RopeScaling::Llama3 { .. } | RopeScaling::Factors(_) => {
                self.factors().into_iter().map(|factors| (GGUF_FACTORS, factors)).collect()
            }
            RopeScaling::Long(long) => {
                vec![(GGUF_LONG_FACTORS, long.long.clone()), (GGUF_SHORT_FACTORS, long.short.clone())]
            }
        }
    }

    /// The P / 2 inverse frequencies (radians a position) with the scaling applied; of longrope the short set.
    pub fn inverse_frequencies(&self) -> Vec<f32> {
        self.divided(self.factors().as_deref())
    }

    /// Rows of the table for up to `n_positions`.
    pub(super) fn n_rows(&self, n_positions: usize) -> usize {
        n_positions + self.start(n_positions, n_positions)
    }

    /// The row at which a sequence of `n_tokens` begins: past the short rows where longrope takes it for long.
    pub(super) fn start(&self, n_tokens: usize, n_positions: usize) -> usize {
        match &self.scaling {
            RopeScaling::Long(long) if n_tokens > long.original_max_positions => n_positions,
            _ => 0,
        }
    }

    /// The table for up to `n_positions`; with longrope, where one may be long, the long rows follow the short ones.
    pub(super) fn table(&self, n_positions: usize) -> RotaryTable {
        let long = match &self.scaling {
            RopeScaling::Long(long) => long,
            RopeScaling::Yarn(yarn) => {
                return table(&self.inverse_frequencies(), n_positions, yarn.attention_factor);
            }
            _ => return table(&self.inverse_frequencies(), n_positions, 1.0),
        };
        let mut rows = table(&self.divided(Some(&long.short)), n_positions, long.attention_factor);
        if self.start(n_positions, n_positions) > 0 {
            let further = table(&self.divided(Some(&long.long)), n_positions, long.attention_factor);
            rows.cos.extend(further.cos);
            rows.sin.extend(further.sin);
        }
        rows
    }

    fn divided(&self, factors: Option<&[f32]>) -> Vec<f32> {
        let mut frequencies = self.plain_inverse_frequencies();
        for (inv_freq, factor) in frequencies.iter_mut().zip(factors.unwrap_or_default()) {
            *inv_freq /= factor;
        }
        frequencies
    }

    fn plain_inverse_frequencies(&self) -> Vec<f32> {
        // The exponent is rounded to f32 before the power, as torch does.
        (0..self.dim / 2)
            .map(|i| {
                let exponent = (2 * i) as f32 / self.dim as f32;
                1.0 / self.theta.powf(f64::from(exponent)) as f32
            })
            .collect()
    }
}

/// Tensors of a GGUF.
pub(super) const GGUF_FACTORS: &str = "rope_freqs.weight";
pub(super) const GGUF_LONG_FACTORS: &str = "rope_factors_long.weight";
pub(super) const GGUF_SHORT_FACTORS: &str = "rope_factors_short.weight";

/// The angle is rounded to f32 before the cosine, as transformers and llama.cpp do.
fn table(frequencies: &[f32], n_positions: usize, factor: f32) -> RotaryTable {
    let angles = (0..n_positions).flat_map(|p| frequencies.iter().map(move |f| p as f32 * f));
    let (cos, sin) = angles.map(|angle| (factor * angle.cos(), factor * angle.sin())).unzip();
    RotaryTable { cos, sin }
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
        dim: 64,
        scaling: RopeScaling::Llama3 {
            factor: 32.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_positions: 8192,
        },
    };

    #[test]
    fn plain_table_is_a_geometric_series() {
        let rope = Rope { theta: 10_000.0, dim: 8, scaling: RopeScaling::None };
        assert_eq!(rope.factors(), None);
        let table = rope.inverse_frequencies();
        for (found, expected) in table.iter().zip([1.0, 0.1, 0.01, 0.001]) {
            assert!((found / expected - 1.0).abs() < 1e-6, "{found} against {expected}");
        }
    }

    #[test]
    fn linear_scaling_divides_every_frequency() {
        let rope = Rope { theta: 10_000.0, dim: 8, scaling: RopeScaling::Linear { factor: 4.0 } };
        assert!((rope.inverse_frequencies()[1] - 0.025).abs() < 1e-7);
    }

    /// Values of transformers 5.23.0, `ROPE_INIT_FUNCTIONS["llama3"]` on Llama-3.2-1B's configuration.
    #[test]
    fn llama3_rule_equals_transformers() {
        let table = LLAMA_3_2.inverse_frequencies();
        for (i, expected) in TRANSFORMERS_LLAMA_3_2 {
            let relative = (table[i] / expected - 1.0).abs();
            assert!(relative < 1e-6, "frequency {i}: {} against {expected}", table[i]);
        }
    }

    /// Bits of the interpolated factors as llama.cpp's converter computes them (torch 2.15.0, f32).
    #[test]
    fn llama3_factors_have_the_converters_bits() {
        let (_, factors) = LLAMA_3_2.gguf_tensors().remove(0);
        let bits: Vec<u32> = factors[14..19].iter().map(|factor| factor.to_bits()).collect();
        let (one, thirty_two) = (1.0f32.to_bits(), 32.0f32.to_bits());
        assert_eq!(bits, [one, 1_070_816_962, 1_079_161_967, 1_092_266_734, thirty_two]);
    }

    /// Values of transformers 5.23.0, `ROPE_INIT_FUNCTIONS["yarn"]`: DeepSeek-V2-Lite's table and Qwen2.5's.
    #[test]
    fn yarn_equals_transformers() {
        let check = |theta, dim, factor, original_max_positions, expected: &[(usize, f32)]| {
            let (beta_fast, beta_slow) = (Yarn::BETA_FAST, Yarn::BETA_SLOW);
            let yarn = Yarn { factor, beta_fast, beta_slow, original_max_positions, attention_factor: 1.0 };
            let table = Rope { theta, dim, scaling: RopeScaling::Yarn(yarn) }.inverse_frequencies();
            for &(i, expected) in expected {
                let relative = (table[i] / expected - 1.0).abs();
                assert!(relative < 2e-6, "frequency {i}: {} against {expected}", table[i]);
            }
        };
        check(10_000.0, 64, 40.0, 4096, &TRANSFORMERS_DEEPSEEK_V2_LITE);
        check(1e6, 128, 4.0, 32_768, &TRANSFORMERS_QWEN_2_5);
        assert!((Yarn::magnitude(4.0, 1.0) - 1.138_629_436_111_989).abs() < 1e-15);
        assert_eq!(Yarn::magnitude(1.0, 0.707), 1.0);
    }

    const TRANSFORMERS_DEEPSEEK_V2_LITE: [(usize, f32); 11] = [
        (0, 1.0),
        (5, 0.237_137_36),
        (10, 0.056_234_13),
        (11, 0.039_006_926),
        (12, 0.026_879_36),
        (15, 0.008_334_509),
        (18, 0.002_249_365_2),
        (22, 0.000_177_827_94),
        (23, 3.333_803_4e-5),
        (24, 2.5e-5),
        (31, 3.333_803_5e-6),
    ];

    const TRANSFORMERS_QWEN_2_5: [(usize, f32); 10] = [
        (0, 1.0),
        (10, 0.115_478_2),
        (20, 0.013_335_215),
        (23, 0.006_978_306),
        (24, 0.005_375_321_5),
        (30, 0.001_064_361),
        (38, 9.262_301e-5),
        (39, 6.490_394e-5),
        (40, 4.445_698_5e-5),
        (63, 3.102_344_4e-7),
    ];

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
