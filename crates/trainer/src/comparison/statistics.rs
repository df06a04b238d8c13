//! What a sample says of the whole: intervals around means and rates, and whether a difference is more than chance.
//!
//! Rows are the sample. A mean over tokens is a ratio of two sums over rows, whose error follows from what each row
//! departs from it by (Cochran 1977, section 6.3); a rate has Wilson's interval (1927). Two answers to the same rows are
//! compared row by row: ratios by the t test of their differences, rates by McNemar's test in its exact form (1947).

use serde::Serialize;

/// Of 20 intervals one does not hold the truth.
const CONFIDENCE: f64 = 0.95;
/// The normal quantile for it.
const Z: f64 = 1.959_963_984_540_054;
/// A difference that chance makes more often than this is noise.
pub const NOISE: f64 = 0.05;

/// Σ x / Σ w over rows, with its interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Mean {
    /// The ratio.
    pub value: f64,
    /// Bounds of the 95 % interval; absent with one row.
    pub interval: Option<(f64, f64)>,
    /// Chance of a value this far from zero if the truth were zero; absent with one row.
    #[serde(skip)]
    pub p: Option<f64>,
}

impl Mean {
    /// Of rows (x, w); `None` where the weights sum to nothing.
    pub fn of(rows: &[(f64, f64)]) -> Option<Mean> {
        let (sum, weight) = rows.iter().fold((0.0, 0.0), |(x, w), row| (x + row.0, w + row.1));
        if weight <= 0.0 {
            return None;
        }
        let (value, n) = (sum / weight, rows.len() as f64);
        if rows.len() < 2 {
            return Some(Mean { value, interval: None, p: None });
        }
        let squares: f64 = rows.iter().map(|(x, w)| (x - value * w).powi(2)).sum();
        let error = (n / (n - 1.0) * squares).sqrt() / weight;
        let half = student_quantile(n - 1.0) * error;
        let p = if error > 0.0 { student_two_sided(value / error, n - 1.0) } else { f64::from(value == 0.0) };
        Some(Mean { value, interval: Some((value - half, value + half)), p: Some(p) })
    }

    /// The same through a function that rises.
    pub fn map(self, rising: impl Fn(f64) -> f64) -> Mean {
        let interval = self.interval.map(|(low, high)| (rising(low), rising(high)));
        Mean { value: rising(self.value), interval, p: None }
    }
}

/// How many of some rows have a property.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Rate {
    /// Rows that have it.
    pub n: usize,
    /// Rows.
    pub of: usize,
    /// Bounds of the 95 % interval, 0 to 1.
    pub interval: (f64, f64),
}

impl Rate {
    /// `None` of no rows.
    pub fn of(rows: impl IntoIterator<Item = bool>) -> Option<Rate> {
        let (mut n, mut of) = (0, 0);
        for has in rows {
            n += usize::from(has);
            of += 1;
        }
        (of > 0).then(|| Rate { n, of, interval: wilson(n as f64, of as f64) })
    }

    /// 0 to 1.
    pub fn share(&self) -> f64 {
        self.n as f64 / self.of as f64
    }
}

fn wilson(k: f64, n: f64) -> (f64, f64) {
    let (share, square) = (k / n, Z * Z);
    let middle = (share + square / (2.0 * n)) / (1.0 + square / n);
    let half = Z / (1.0 + square / n) * (share * (1.0 - share) / n + square / (4.0 * n * n)).sqrt();
    // At the ends the bound is the end itself, but for rounding.
    let low = if k == 0.0 { 0.0 } else { middle - half };
    let high = if k == n { 1.0 } else { middle + half };
    (low, high)
}

/// Rows that only one of two has right.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Exchange {
    /// Right now, wrong before.
    pub won: usize,
    /// Wrong now, right before.
    pub lost: usize,
    /// Rows.
    pub of: usize,
    /// Chance of an exchange this uneven between equals.
    pub p: f64,
}

impl Exchange {
    /// Of rows (right before, right now); `None` of no rows.
    pub fn of(rows: impl IntoIterator<Item = (bool, bool)>) -> Option<Exchange> {
        let (mut won, mut lost, mut of) = (0, 0, 0);
        for (before, now) in rows {
            won += usize::from(now && !before);
            lost += usize::from(before && !now);
            of += 1;
        }
        (of > 0).then(|| Exchange { won, lost, of, p: mcnemar(won, lost) })
    }

    /// Points of a hundred that are won, less those that are lost.
    pub fn points(&self) -> f64 {
        100.0 * (self.won as f64 - self.lost as f64) / self.of as f64
    }
}

/// Two-sided: twice the lower tail of a fair coin's count, 1 at most.
fn mcnemar(won: usize, lost: usize) -> f64 {
    let (n, fewer) = ((won + lost) as f64, won.min(lost));
    let term = |k: usize| {
        let k = k as f64;
        (ln_gamma(n + 1.0) - ln_gamma(k + 1.0) - ln_gamma(n - k + 1.0) - n * std::f64::consts::LN_2).exp()
    };
    (2.0 * (0..=fewer).map(term).sum::<f64>()).min(1.0)
}

/// P(|T| ≥ |t|) of Student's distribution.
fn student_two_sided(t: f64, freedom: f64) -> f64 {
    incomplete_beta(freedom / 2.0, 0.5, freedom / (freedom + t * t))
}

/// The t that [`CONFIDENCE`] of the distribution lies within.
fn student_quantile(freedom: f64) -> f64 {
    let (mut low, mut high) = (0.0, 1e3);
    // The tail falls with t: 60 halvings leave nothing between the bounds.
    for _ in 0..60 {
        let middle = 0.5 * (low + high);
        if student_two_sided(middle, freedom) > 1.0 - CONFIDENCE { low = middle } else { high = middle }
    }
    0.5 * (low + high)
}

/// I_x(a, b), by its continued fraction (Lentz; Numerical Recipes, section 6.4).
fn incomplete_beta(a: f64, b: f64, x: f64) -> f64 {
    if !(0.0..=1.0).contains(&x) {
        return f64::NAN;
    }
    if x == 0.0 || x == 1.0 {
        return x;
    }
    let ln_front = ln_gamma(a + b) - ln_gamma(a) - ln_gamma(b) + a * x.ln() + b * (1.0 - x).ln();
    // The fraction converges fast on one side of the mean; the other side is its complement.
    if x < (a + 1.0) / (a + b + 2.0) {
        ln_front.exp() * beta_fraction(a, b, x) / a
    } else {
        1.0 - ln_front.exp() * beta_fraction(b, a, 1.0 - x) / b
    }
}

fn beta_fraction(a: f64, b: f64, x: f64) -> f64 {
    const TINY: f64 = 1e-300;
    let clear = |v: f64| if v.abs() < TINY { TINY } else { v };
    let mut c = 1.0;
    let mut d = 1.0 / clear(1.0 - (a + b) * x / (a + 1.0));
    let mut value = d;
    for m in 1..1000 {
        let m = f64::from(m);
        let even = m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m));
        d = 1.0 / clear(1.0 + even * d);
        c = clear(1.0 + even / c);
        value *= d * c;
        let odd = -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0));
        d = 1.0 / clear(1.0 + odd * d);
        c = clear(1.0 + odd / c);
        let factor = d * c;
        value *= factor;
        if (factor - 1.0).abs() < 1e-15 {
            break;
        }
    }
    value
}

/// ln Γ(x), x > 0, to 15 digits (Lanczos, g = 7, nine terms).
fn ln_gamma(x: f64) -> f64 {
    const TERMS: [f64; 9] = [
        0.999_999_999_999_809_9,
        676.520_368_121_885_1,
        -1_259.139_216_722_402_8,
        771.323_428_777_653_1,
        -176.615_029_162_140_6,
        12.507_343_278_686_905,
        -0.138_571_095_265_720_12,
        9.984_369_578_019_572e-6,
        1.505_632_735_149_311_6e-7,
    ];
    if x < 0.5 {
        let pi = std::f64::consts::PI;
        return (pi / (pi * x).sin()).ln() - ln_gamma(1.0 - x);
    }
    let x = x - 1.0;
    let sum = TERMS.iter().zip(0..).skip(1).fold(TERMS[0], |sum, (term, i)| sum + term / (x + f64::from(i)));
    let t = x + 7.5;
    0.5 * (2.0 * std::f64::consts::PI).ln() + (x + 0.5) * t.ln() - t + sum.ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All goldens: SciPy 1.17.1, scripts/golden/statistics.py.
    const TOLERANCE: f64 = 1e-8;

    fn near(found: f64, expected: f64) {
        assert!((found / expected - 1.0).abs() < TOLERANCE, "{found} against {expected}");
    }

    #[test]
    fn students_distribution_is_scipys() {
        let quantiles = [
            (1.0, 12.706_204_736_4),
            (2.0, 4.302_652_729_7),
            (9.0, 2.262_157_162_8),
            (199.0, 1.971_956_544_2),
            (10_000.0, 1.960_201_239_8),
        ];
        for (freedom, expected) in quantiles {
            near(student_quantile(freedom), expected);
        }
        let tails = [
            (0.5, 3.0, 6.514_479_65e-1),
            (2.0, 9.0, 7.655_282_38e-2),
            (12.0, 199.0, 2.579_960_67e-25),
            (40.0, 50.0, 1.241_242_38e-39),
        ];
        for (t, freedom, expected) in tails {
            near(student_two_sided(t, freedom), expected);
        }
    }

    #[test]
    fn mcnemars_test_is_the_exact_binomial() {
        assert_eq!([mcnemar(0, 0), mcnemar(0, 1), mcnemar(1, 1)], [1.0, 1.0, 1.0]);
        near(mcnemar(3, 12), 0.035_156_25);
        near(mcnemar(150, 97), 0.000_900_287_386_953_992_4);
        near(mcnemar(1, 600), 1.450_771_758_793_196_6e-178);
    }

    #[test]
    fn rates_have_wilsons_interval() {
        let golden = [
            (0, 200, (0.0, 0.018_845_326_377_266_575)),
            (199, 200, (0.972_226_295_602_107, 0.999_116_831_284_399)),
            (200, 200, (0.981_154_673_622_733_5, 1.0)),
            (7, 31, (0.113_951_355_612_624_95, 0.398_124_183_833_420_5)),
        ];
        for (n, of, (low, high)) in golden {
            let rate = Rate::of((0..of).map(|row| row < n)).unwrap();
            assert_eq!((rate.n, rate.of), (n, of));
            assert!((rate.interval.0 - low).abs() < TOLERANCE && (rate.interval.1 - high).abs() < TOLERANCE);
        }
        assert_eq!(Rate::of([]), None);
    }

    #[test]
    fn a_mean_over_tokens_has_the_interval_of_a_ratio() {
        let mean = Mean::of(&[(2.0, 4.0), (3.5, 5.0), (1.25, 2.0), (9.0, 11.0)]).unwrap();
        near(mean.value, 0.715_909_090_909_090_9);
        let (low, high) = mean.interval.unwrap();
        near(low, 0.476_699_991_457_307_9);
        near(high, 0.955_118_190_360_874);
        near(mean.p.unwrap(), 0.002_454_569_314_874_962_7);
        // With equal weights it is the t test.
        let plain = Mean::of(&[0.1, 0.3, -0.05, 0.2, 0.12].map(|x| (x, 1.0))).unwrap();
        near(plain.p.unwrap(), 0.081_753_746_345_222_66);
        assert_eq!(Mean::of(&[(1.0, 2.0)]).unwrap().interval, None);
        assert_eq!(Mean::of(&[]), None);
    }

    #[test]
    fn what_one_has_right_alone_is_exchanged() {
        let rows = [(true, true), (true, false), (false, true), (false, true), (false, false)];
        let exchange = Exchange::of(rows).unwrap();
        assert_eq!((exchange.won, exchange.lost, exchange.of), (2, 1, 5));
        near(exchange.points(), 20.0);
    }
}
