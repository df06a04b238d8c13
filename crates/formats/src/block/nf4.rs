//! NF4 with double quantisation: a row as blocks of 64 weights, each a code of 4 bits times its block's largest
//! magnitude, which is itself a byte.
//!
//! A row: for each group of up to 256 blocks an offset and a step (f32 each), for each block a signed byte q, then the
//! codes, two a byte, the first in the lower half. The largest magnitude of a block is offset + step · q: offset is the
//! middle of the group's magnitudes: 4 + 8/64 + 64/(256·64) bits a weight where groups are full. Groups end with their row, so that rows can be read one by one; a byte is an even
//! step here where bitsandbytes has a floating one.
//!
//! Only memory holds it: no file format has a number for it.
//! Source: Dettmers et al. 2023, arXiv:2305.14314, "Double Quantization" and appendix E (the code book).

/// Weights that share a largest magnitude.
pub(super) const LEN: usize = 64;
/// Blocks that share offset and step.
pub(super) const GROUP: usize = 256;
/// Offset and step.
const GROUP_BYTES: usize = 8;
pub(super) const CODE_BYTES: usize = LEN / 2;

/// The quantiles of the normal distribution, zero among them, that the codes stand for.
pub(super) const CODE_BOOK: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// Bytes of a row of `cols` weights, a multiple of [`LEN`]; `None` where that overflows.
pub(super) fn row_bytes(cols: usize) -> Option<usize> {
    let blocks = cols / LEN;
    blocks.checked_mul(1 + CODE_BYTES)?.checked_add(blocks.div_ceil(GROUP) * GROUP_BYTES)
}

/// The parts of a row: groups, block bytes, codes.
fn parts(cols: usize) -> (usize, usize) {
    let blocks = cols / LEN;
    (blocks.div_ceil(GROUP) * GROUP_BYTES, blocks)
}

/// Encodes whole rows.
#[inline(always)]
pub(super) fn encode(weights: &[f32], cols: usize, out: &mut [u8]) {
    let Some(bytes) = row_bytes(cols).filter(|&bytes| bytes > 0) else { return };
    for (row, out) in weights.chunks_exact(cols).zip(out.chunks_exact_mut(bytes)) {
        encode_row(row, out);
    }
}

#[inline(always)]
fn encode_row(row: &[f32], out: &mut [u8]) {
    let (group_bytes, n_blocks) = parts(row.len());
    let (groups, rest) = out.split_at_mut(group_bytes);
    let (magnitudes, codes) = rest.split_at_mut(n_blocks);
    let row_groups = row.chunks(GROUP * LEN).zip(groups.chunks_exact_mut(GROUP_BYTES));
    let row_groups = row_groups.zip(magnitudes.chunks_mut(GROUP)).zip(codes.chunks_mut(GROUP * CODE_BYTES));
    for (((weights, group), magnitudes), codes) in row_groups {
        encode_group(weights, group, magnitudes, codes);
    }
}

#[inline(always)]
fn encode_group(weights: &[f32], group: &mut [u8], magnitudes: &mut [u8], codes: &mut [u8]) {
    let largest = |block: &[f32]| block.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
    let (mut low, mut high) = (f32::INFINITY, 0.0f32);
    for block in weights.chunks_exact(LEN) {
        let magnitude = largest(block);
        (low, high) = (low.min(magnitude), high.max(magnitude));
    }
    let (offset, step) = (0.5 * (low + high), (high - low) / 254.0);
    group[..4].copy_from_slice(&offset.to_le_bytes());
    group[4..].copy_from_slice(&step.to_le_bytes());
    let blocks =
        weights.as_chunks::<LEN>().0.iter().zip(magnitudes).zip(codes.as_chunks_mut::<CODE_BYTES>().0);
    for ((block, magnitude), codes) in blocks {
        let q =
            if step > 0.0 { ((largest(block) - offset) / step).round().clamp(-127.0, 127.0) } else { 0.0 };
        *magnitude = (q as i8).cast_unsigned();
        // The codes are chosen for the magnitude that decoding will see.
        let seen = offset + step * q;
        let factor = if seen > 0.0 { 1.0 / seen } else { 0.0 };
        for (pair, code) in block.as_chunks::<2>().0.iter().zip(codes) {
            *code = nearest(pair[0] * factor) | nearest(pair[1] * factor) << 4;
        }
    }
}

/// The code of the nearest entry: how many midpoints lie below.
#[inline(always)]
pub(super) fn nearest(x: f32) -> u8 {
    let mut code = 0;
    for pair in CODE_BOOK.windows(2) {
        code += u8::from(x > 0.5 * (pair[0] + pair[1]));
    }
    code
}

/// Decodes some columns of a row of `cols` weights, from column `start` on.
#[inline(always)]
pub(super) fn decode(row: &[u8], cols: usize, start: usize, out: &mut [f32]) {
    let blocks = out.as_chunks_mut::<LEN>().0;
    each_block(row, cols, start, blocks.len() * LEN, |index, scaled, codes| {
        look_up(scaled, codes, &mut blocks[index]);
    });
}

/// The values of a block's codes.
#[inline(always)]
pub(super) fn look_up(values: &[f32; 16], codes: &[u8; CODE_BYTES], out: &mut [f32; LEN]) {
    for (pair, code) in out.as_chunks_mut::<2>().0.iter_mut().zip(codes) {
        *pair = [values[usize::from(code & 15)], values[usize::from(code >> 4)]];
    }
}

/// Calls `each` with index, values and codes of each block of `n` weights from column `start` on.
#[inline(always)]
pub(super) fn each_block(
    row: &[u8],
    cols: usize,
    start: usize,
    n: usize,
    mut each: impl FnMut(usize, &[f32; 16], &[u8; CODE_BYTES]),
) {
    let (group_bytes, n_blocks) = parts(cols);
    let (groups, rest) = row.split_at(group_bytes);
    let (magnitudes, codes) = rest.split_at(n_blocks);
    let (first, codes) = (start / LEN, codes.as_chunks::<CODE_BYTES>().0);
    let blocks = magnitudes[first..].iter().zip(&codes[first..]).take(n / LEN);
    for (index, (&q, codes)) in blocks.enumerate() {
        let group = &groups[(first + index) / GROUP * GROUP_BYTES..][..GROUP_BYTES];
        let number = |at: usize| f32::from_le_bytes([group[at], group[at + 1], group[at + 2], group[at + 3]]);
        let magnitude = number(0) + number(4) * f32::from(q.cast_signed());
        each(index, &CODE_BOOK.map(|entry| entry * magnitude), codes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nearly normal numbers, each block with a spread of its own.
    fn weights(cols: usize) -> Vec<f32> {
        let mut state = 7u64;
        let mut uniform = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f32 / (1 << 24) as f32 - 0.5
        };
        (0..cols).map(|i| (0..6).map(|_| uniform()).sum::<f32>() * (1.0 + (i / LEN % 5) as f32)).collect()
    }

    /// Appendix E of the paper.
    #[test]
    fn the_code_book_is_the_published_one() {
        let published: [f64; 16] = [
            -1.0,
            -0.6961928009986877,
            -0.5250730514526367,
            -0.39491748809814453,
            -0.28444138169288635,
            -0.18477343022823334,
            -0.09105003625154495,
            0.0,
            0.07958029955625534,
            0.16093020141124725,
            0.24611230194568634,
            0.33791524171829224,
            0.44070982933044434,
            0.5626170039176941,
            0.7229568362236023,
            1.0,
        ];
        for (ours, published) in CODE_BOOK.iter().zip(published) {
            assert_eq!(f64::from(*ours), f64::from(published as f32));
        }
    }

    #[test]
    fn every_weight_gets_the_nearest_entry_and_magnitudes_are_kept_to_a_step() {
        for cols in [64, 640, 256 * 64, 256 * 64 + 128] {
            let row = weights(cols);
            let mut out = vec![0; row_bytes(cols).unwrap()];
            encode(&row, cols, &mut out);
            let mut back = vec![f32::NAN; cols];
            decode(&out, cols, 0, &mut back);
            let largest = |block: &[f32]| block.iter().fold(0.0f32, |m, x| m.max(x.abs()));
            let magnitudes: Vec<f32> = row.chunks(LEN).map(largest).collect();
            for (index, (block, decoded)) in row.chunks(LEN).zip(back.chunks(LEN)).enumerate() {
                let group =
                    &magnitudes[index / GROUP * GROUP..magnitudes.len().min((index / GROUP + 1) * GROUP)];
                let (low, high) = (group.iter().copied().fold(f32::MAX, f32::min), largest(group));
                let seen = largest(decoded).max(f32::MIN_POSITIVE);
                assert!((seen - magnitudes[index]).abs() <= (high - low) / 254.0 * 0.501 + 1e-6 * high);
                for (x, y) in block.iter().zip(decoded) {
                    let best =
                        CODE_BOOK.iter().map(|entry| (entry * seen - x).abs()).fold(f32::MAX, f32::min);
                    assert!((y - x).abs() <= best + 1e-6 * seen, "{x} became {y}");
                }
            }
        }
    }

    #[test]
    fn zeros_stay_zeros_and_rows_stand_alone() {
        let rows = [weights(128), vec![0.0; 128], weights(128)].concat();
        let bytes = row_bytes(128).unwrap();
        let mut out = vec![0; 3 * bytes];
        encode(&rows, 128, &mut out);
        let mut zeros = vec![f32::NAN; 128];
        decode(&out[bytes..2 * bytes], 128, 0, &mut zeros);
        assert!(zeros.iter().all(|&x| x == 0.0));
        assert_eq!(out[..bytes], out[2 * bytes..]);
        assert_eq!(bytes, 8 + 2 + 64);
    }
}
