//! Random numbers and the validation split: pure functions of the seed.

/// SplitMix64 (Steele, Lea, Flood 2014): 64 bits of state, every seed is good.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// A stream of its own for each purpose and counter of a seed.
    pub fn new(seed: u64, purpose: &str, counter: u64) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&seed.to_le_bytes()).update(&counter.to_le_bytes()).update(purpose.as_bytes());
        let mut first = [0; 8];
        first.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
        Self(u64::from_le_bytes(first))
    }

    /// The next 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `limit`, each equally likely (Lemire 2019, with rejection).
    pub fn below(&mut self, limit: u64) -> u64 {
        loop {
            let product = u128::from(self.next_u64()) * u128::from(limit);
            if (product as u64) >= limit.wrapping_neg() % limit {
                return (product >> 64) as u64;
            }
        }
    }
}

/// Shuffles in place (Fisher and Yates).
pub fn shuffle<T>(items: &mut [T], random: &mut Random) {
    for last in (1..items.len()).rev() {
        items.swap(last, random.below(last as u64 + 1) as usize);
    }
}

/// Splits `n_rows` row indices into those for training and those held out, both ascending.
///
/// At least one row is held out when `share` is above zero, and at least one is left for training.
pub fn split(n_rows: usize, share: f32, seed: u64) -> (Vec<usize>, Vec<usize>) {
    let mut rows: Vec<usize> = (0..n_rows).collect();
    if share <= 0.0 || n_rows < 2 {
        return (rows, Vec::new());
    }
    let n_held_out = ((n_rows as f64 * f64::from(share)).round() as usize).clamp(1, n_rows - 1);
    shuffle(&mut rows, &mut Random::new(seed, "validation split", 0));
    let mut training = rows.split_off(n_held_out);
    rows.sort_unstable();
    training.sort_unstable();
    (training, rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn split_is_a_partition_and_repeats() {
        for n_rows in [2, 3, 10, 1999] {
            let (training, held_out) = split(n_rows, 0.05, 7);
            assert_eq!((training.clone(), held_out.clone()), split(n_rows, 0.05, 7));
            assert!(!training.is_empty() && !held_out.is_empty());
            let mut all = [training, held_out].concat();
            all.sort_unstable();
            assert_eq!(all, (0..n_rows).collect::<Vec<_>>());
        }
        assert_eq!(split(100, 0.05, 7).1.len(), 5);
        assert_eq!(split(1, 0.5, 7), (vec![0], vec![]));
        assert_ne!(split(1999, 0.05, 7), split(1999, 0.05, 8));
    }

    #[test]
    fn below_is_even() {
        let mut random = Random::new(3, "test", 0);
        let mut counts = [0_u32; 7];
        for _ in 0..70_000 {
            counts[random.below(7) as usize] += 1;
        }
        // Five standard deviations of a count of 10,000.
        assert!(counts.iter().all(|&count| count.abs_diff(10_000) < 500), "{counts:?}");
    }
}
