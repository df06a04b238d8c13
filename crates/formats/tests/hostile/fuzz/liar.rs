//! Where the choices of a file come from: mostly the truth, and now and then a lie that has hurt a reader before.

use proptest::prelude::{Rng, RngExt};
use proptest::test_runner::{RngAlgorithm, TestRng};

pub(crate) struct Liar {
    random: TestRng,
    /// One number in so many is a lie; `None` for an honest file.
    one_in: Option<usize>,
}

#[allow(dead_code, reason = "each kind of file has its own lies")]
impl Liar {
    /// The same for the same seed.
    pub(crate) fn new(seed: u64) -> Self {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        let mut random = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
        let one_in = *pick(&mut random, &[None, Some(6), Some(20), Some(60), Some(200)]);
        Self { random, one_in }
    }

    /// A number below `n`.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        self.random.random_range(0..n)
    }

    /// True once in `n`.
    pub(crate) fn once_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub(crate) fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        pick(&mut self.random, from)
    }

    pub(crate) fn bytes(&mut self, n: usize) -> Vec<u8> {
        let mut bytes = vec![0; n];
        self.random.fill_bytes(&mut bytes);
        bytes
    }

    /// Whether to lie here.
    pub(crate) fn lies(&mut self) -> bool {
        self.one_in.is_some_and(|n| self.random.random_range(0..n) == 0)
    }

    /// `truth`, or a number that overflows, wraps, is off by one, or asks for more than there is.
    pub(crate) fn number(&mut self, truth: u64) -> u64 {
        if !self.lies() {
            return truth;
        }
        let any = self.random.next_u64();
        *self.pick(&[
            0,
            1,
            truth.wrapping_sub(1),
            truth.wrapping_add(1),
            truth.wrapping_mul(2),
            truth << 32,
            1 << 16,
            1 << 24,
            1 << 31,
            u32::MAX.into(),
            1 << 32,
            1 << 33,
            1 << 61,
            1 << 62,
            i64::MAX as u64,
            1 << 63,
            u64::MAX - 7,
            u64::MAX,
            any,
            any >> 32,
            any >> 48,
        ])
    }

    /// The name of the entry `index`, which no other has unless it lies.
    pub(crate) fn own_name(&mut self, usual: &[&str], index: usize) -> String {
        if self.lies() { (*self.pick(usual)).to_owned() } else { format!("{}{index}", self.name(usual)) }
    }

    /// A name: mostly one of a few.
    pub(crate) fn name(&mut self, usual: &[&str]) -> String {
        match self.below(24) {
            0 => String::new(),
            1 => "é\u{202e}\u{0}\n\"\\".to_owned(),
            2 if self.lies() => "x".repeat(70_000),
            n if n < 16 => format!("{}.{}", self.pick(usual), self.below(500)),
            _ => (*self.pick(usual)).to_owned(),
        }
    }

    /// Damages a whole file: flipped bits, a cut, a piece lost, a piece twice, a piece elsewhere.
    pub(crate) fn damage(&mut self, file: &mut Vec<u8>) {
        while self.lies() && !file.is_empty() {
            let at = self.below(file.len());
            let end = at + self.below((file.len() - at).min(64) + 1);
            match self.below(6) {
                0 => file[at] ^= 1 << self.below(8),
                1 => file.truncate(at),
                2 => drop(file.drain(at..end)),
                3 => {
                    let piece = file[at..end].to_vec();
                    let to = self.below(file.len() + 1);
                    drop(file.splice(to..to, piece));
                }
                4 => {
                    let to = self.below(file.len() - (end - at) + 1);
                    file.copy_within(at..end, to);
                }
                _ => {
                    let noise = self.bytes(end - at);
                    file[at..end].copy_from_slice(&noise);
                }
            }
        }
    }
}

fn pick<'a, T>(random: &mut TestRng, from: &'a [T]) -> &'a T {
    &from[random.random_range(0..from.len())]
}
