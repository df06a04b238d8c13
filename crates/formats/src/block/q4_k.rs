//! Q4_K: 256 weights in 8 groups as d·s·c - dm·m, c of 4 bits, s and m of 6.
//!
//! A block: d (f16), dm (f16), s and m (12 bytes), codes (128 bytes).

use super::k_scales::{self, EightGroups, Scales, pack_low_bits};
use super::lanes::Lanes;
use super::search::Trials;
use super::{K_BLOCK, float16};

pub(super) const BYTES: usize = 144;

/// The format.
struct Q4K;

impl EightGroups<BYTES> for Q4K {
    /// ggml does not limit a negative scale here, which has wrapped: its bits spill.
    const MOST_SCALE: u8 = u8::MAX;
    const LEVELS: u8 = 15;
    const TRIALS: Trials = Trials { first: -1.0, delta: 0.1, last: 20 };

    #[inline(always)]
    fn store(found: &Scales, block: &mut [u8; BYTES]) {
        block[..2].copy_from_slice(&float16::to_bytes(found.scale));
        block[2..4].copy_from_slice(&float16::to_bytes(found.min_scale));
        block[4..16].copy_from_slice(&found.packed);
        pack_low_bits(&found.codes, &mut block[16..]);
    }
}

#[inline(always)]
pub(super) fn encode<V: Lanes>(weights: &[f32], imatrix: Option<&[f32]>, out: &mut [u8]) {
    k_scales::encode::<Q4K, V, BYTES>(weights, imatrix, out);
}

#[inline(always)]
pub(super) fn decode(blocks: &[u8], out: &mut [f32]) {
    for (block, x) in blocks.as_chunks::<BYTES>().0.iter().zip(out.as_chunks_mut::<K_BLOCK>().0) {
        let scales = k_scales::of_block(block);
        let codes = block[16..].as_chunks::<32>().0;
        for (j, x) in x.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let (scale, min) = scales[j];
            let shift = 4 * (j % 2);
            // A loop: the closure of `map` is not compiled for wider vectors.
            for (x, byte) in x.iter_mut().zip(codes[j / 2]) {
                *x = scale * f32::from(byte >> shift & 15) - min;
            }
        }
    }
}
