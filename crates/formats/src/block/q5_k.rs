//! Q5_K: 256 weights in 8 groups as d·s·c - dm·m, c of 5 bits, s and m of 6.
//!
//! A block: d (f16), dm (f16), s and m (12 bytes), fifth bits (32 bytes), low bits (128 bytes).

use super::k_scales::{self, EightGroups, GROUPS, Scales, pack_low_bits};
use super::lanes::Lanes;
use super::search::Trials;
use super::{K_BLOCK, float16};

pub(super) const BYTES: usize = 176;

/// The format.
struct Q5K;

impl EightGroups<BYTES> for Q5K {
    /// A negative scale has wrapped; ggml limits it here, unlike in Q4_K.
    const MOST_SCALE: u8 = 63;
    const LEVELS: u8 = 31;
    const TRIALS: Trials = Trials { first: -0.5, delta: 0.1, last: 15 };

    #[inline(always)]
    fn store(found: &Scales, block: &mut [u8; BYTES]) {
        block[..2].copy_from_slice(&float16::to_bytes(found.scale));
        block[2..4].copy_from_slice(&float16::to_bytes(found.min_scale));
        block[4..16].copy_from_slice(&found.packed);
        let (fifth, low) = block[16..].split_at_mut(32);
        for (i, byte) in fifth.iter_mut().enumerate() {
            *byte = (0..GROUPS).fold(0, |bits, j| bits | (found.codes[j][i] >> 4) << j);
        }
        pack_low_bits(&found.codes, low);
    }
}

#[inline(always)]
pub(super) fn encode<V: Lanes>(weights: &[f32], imatrix: Option<&[f32]>, out: &mut [u8]) {
    k_scales::encode::<Q5K, V, BYTES>(weights, imatrix, out);
}

#[inline(always)]
pub(super) fn decode(blocks: &[u8], out: &mut [f32]) {
    for (block, x) in blocks.as_chunks::<BYTES>().0.iter().zip(out.as_chunks_mut::<K_BLOCK>().0) {
        let scales = k_scales::of_block(block);
        let (fifth, low) = block[16..].split_at(32);
        let low = low.as_chunks::<32>().0;
        for (j, x) in x.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let (scale, min) = scales[j];
            for ((x, low), fifth) in x.iter_mut().zip(low[j / 2]).zip(fifth) {
                let code = (low >> (4 * (j % 2)) & 15) | (fifth >> j & 1) << 4;
                *x = scale * f32::from(code) - min;
            }
        }
    }
}
