//! NF4 with information calibration: each block of 64 weights is shifted before it is coded, so that its codes say most.
//!
//! A weight is tau + magnitude · code book entry; tau is the shift, near the block's median, under which the 16 codes
//! are used most evenly (greatest entropy), magnitude the largest distance from it. A row: for each group of up to 256
//! blocks offset and step of the magnitudes and of the shifts (f32 each), for each block a signed byte of either, then
//! the codes as in [`super::nf4`]. 4 + 16/64 + 128/(256·64) bits a weight where groups are full.
//!
//! Source: Qin et al. 2024, arXiv:2402.05445, section 3.2 (IR-QLoRA, information calibration quantization); the range of
//! the search as in the authors' code. The shifts are quantised evenly here, as floating bytes there.

use super::nf4::{CODE_BOOK, CODE_BYTES, GROUP, LEN, look_up, nearest};

/// Offset and step of magnitudes, then of shifts.
const GROUP_BYTES: usize = 16;
/// Shifts that are tried on either side of the median.
const TRIED: i32 = 50;
/// How far from the median the furthest lies, in parts of the largest distance from it: a tenth of the standard
/// deviation of a normal distribution whose 0.9677 quantile is that distance.
const RANGE: f32 = 0.1 * 0.541_1;

/// Bytes of a row of `cols` weights, a multiple of [`LEN`]; `None` where that overflows.
pub(super) fn row_bytes(cols: usize) -> Option<usize> {
    let blocks = cols / LEN;
    blocks.checked_mul(2 + CODE_BYTES)?.checked_add(blocks.div_ceil(GROUP) * GROUP_BYTES)
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
    let n_blocks = row.len() / LEN;
    let (groups, rest) = out.split_at_mut(n_blocks.div_ceil(GROUP) * GROUP_BYTES);
    let (magnitude_bytes, rest) = rest.split_at_mut(n_blocks);
    let (shift_bytes, codes) = rest.split_at_mut(n_blocks);
    let blocks = row.as_chunks::<LEN>().0;
    for (index, group) in groups.chunks_exact_mut(GROUP_BYTES).enumerate() {
        let range = index * GROUP..(index * GROUP + GROUP).min(n_blocks);
        let blocks = &blocks[range.clone()];
        let mut shifts = [0.0f32; GROUP];
        blocks.iter().zip(&mut shifts).for_each(|(block, shift)| *shift = best_shift(block));
        quantise(&mut shifts[..blocks.len()], &mut shift_bytes[range.clone()], &mut group[8..]);
        let mut magnitudes = [0.0f32; GROUP];
        for ((block, shift), magnitude) in blocks.iter().zip(&shifts).zip(&mut magnitudes) {
            *magnitude = block.iter().fold(0.0, |largest, x| largest.max((x - shift).abs()));
        }
        quantise(&mut magnitudes[..blocks.len()], &mut magnitude_bytes[range.clone()], &mut group[..8]);
        let codes = codes.as_chunks_mut::<CODE_BYTES>().0[range].iter_mut();
        for (((block, shift), magnitude), codes) in blocks.iter().zip(&shifts).zip(&magnitudes).zip(codes) {
            let factor = if *magnitude > 0.0 { 1.0 / magnitude } else { 0.0 };
            for (pair, code) in block.as_chunks::<2>().0.iter().zip(codes) {
                *code = nearest((pair[0] - shift) * factor) | nearest((pair[1] - shift) * factor) << 4;
            }
        }
    }
}

/// Replaces values by offset + step · signed byte.
#[inline(always)]
fn quantise(values: &mut [f32], bytes: &mut [u8], group: &mut [u8]) {
    let (mut low, mut high) = (f32::INFINITY, f32::NEG_INFINITY);
    for &value in &*values {
        (low, high) = (low.min(value), high.max(value));
    }
    let (offset, step) = (0.5 * (low + high), (high - low) / 254.0);
    group[..4].copy_from_slice(&offset.to_le_bytes());
    group[4..8].copy_from_slice(&step.to_le_bytes());
    for (value, byte) in values.iter_mut().zip(bytes) {
        let q = if step > 0.0 { ((*value - offset) / step).round().clamp(-127.0, 127.0) } else { 0.0 };
        *byte = (q as i8).cast_unsigned();
        *value = offset + step * q;
    }
}

/// The shift whose codes have the greatest entropy; the first of equals.
#[inline(always)]
fn best_shift(block: &[f32; LEN]) -> f32 {
    let mut sorted = *block;
    sorted.sort_unstable_by(f32::total_cmp);
    let median = sorted[LEN / 2 - 1];
    let reach = (sorted[LEN - 1] - median).max(median - sorted[0]);
    let n_log_n = &*N_LOG_N;
    let (mut best, mut least) = (median, f32::INFINITY);
    for i in -TRIED..=TRIED {
        let shift = median + RANGE * reach * i as f32 / TRIED as f32;
        let evenness = sum_of_n_log_n(&sorted, shift, n_log_n);
        if evenness < least {
            (best, least) = (shift, evenness);
        }
    }
    best
}

/// Σ n ln n over the counts of the codes: smallest where the entropy ln N - (Σ n ln n) / N is greatest.
#[inline(always)]
fn sum_of_n_log_n(sorted: &[f32; LEN], shift: f32, n_log_n: &[f32; LEN + 1]) -> f32 {
    let magnitude = (sorted[LEN - 1] - shift).max(shift - sorted[0]);
    let (mut sum, mut below) = (0.0, 0);
    for pair in CODE_BOOK.windows(2) {
        let bound = shift + magnitude * 0.5 * (pair[0] + pair[1]);
        let first = below;
        while below < LEN && sorted[below] <= bound {
            below += 1;
        }
        sum += n_log_n[below - first];
    }
    sum + n_log_n[LEN - below]
}

/// n ln n for n up to [`LEN`].
static N_LOG_N: std::sync::LazyLock<[f32; LEN + 1]> = std::sync::LazyLock::new(|| {
    std::array::from_fn(|n| if n == 0 { 0.0 } else { n as f32 * (n as f32).ln() })
});

/// Decodes some columns of a row of `cols` weights, from column `start` on.
#[inline(always)]
pub(super) fn decode(row: &[u8], cols: usize, start: usize, out: &mut [f32]) {
    let blocks = out.as_chunks_mut::<LEN>().0;
    each_block(row, cols, start, blocks.len() * LEN, |index, entries, codes| {
        look_up(entries, codes, &mut blocks[index]);
    });
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
    let (first, n_blocks) = (start / LEN, cols / LEN);
    let (groups, rest) = row.split_at(n_blocks.div_ceil(GROUP) * GROUP_BYTES);
    let (magnitudes, rest) = rest.split_at(n_blocks);
    let (shifts, codes) = rest.split_at(n_blocks);
    let blocks =
        magnitudes[first..].iter().zip(&shifts[first..]).zip(&codes.as_chunks::<CODE_BYTES>().0[first..]);
    for (index, ((&magnitude, &shift), codes)) in blocks.take(n / LEN).enumerate() {
        let group = &groups[(first + index) / GROUP * GROUP_BYTES..][..GROUP_BYTES];
        let number = |at: usize| f32::from_le_bytes([group[at], group[at + 1], group[at + 2], group[at + 3]]);
        let magnitude = number(0) + number(4) * f32::from(magnitude.cast_signed());
        let shift = number(8) + number(12) * f32::from(shift.cast_signed());
        each(index, &CODE_BOOK.map(|entry| shift + entry * magnitude), codes);
    }
}

#[cfg(test)]
mod tests {
    use super::super::{BlockType, nf4};
    use super::*;

    /// Skewed numbers, each block about a middle and with a spread of its own.
    fn weights(cols: usize) -> Vec<f32> {
        let mut state = 3u64;
        let mut uniform = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f32 / (1 << 24) as f32 - 0.5
        };
        let number = |i: usize| {
            let bell = (0..6).map(|_| uniform()).sum::<f32>();
            (bell + 0.3 * bell * bell + 0.1) * (1.0 + (i / LEN % 5) as f32)
        };
        (0..cols).map(number).collect()
    }

    fn entropy(codes: impl Iterator<Item = u8>) -> f64 {
        let mut counts = [0.0f64; 16];
        codes.for_each(|code| counts[usize::from(code)] += 1.0);
        let share = counts.iter().filter(|&&n| n > 0.0).map(|n| n / LEN as f64);
        -share.map(|p| p * p.log2()).sum::<f64>()
    }

    fn codes(bytes: &[u8]) -> impl Iterator<Item = u8> {
        bytes.iter().flat_map(|byte| [byte & 15, byte >> 4])
    }

    #[test]
    fn the_codes_say_more_than_those_of_nf4() {
        let cols = 300 * LEN;
        let row = weights(cols);
        let (mut plain, mut calibrated) =
            (vec![0; nf4::row_bytes(cols).unwrap()], vec![0; row_bytes(cols).unwrap()]);
        nf4::encode(&row, cols, &mut plain);
        encode(&row, cols, &mut calibrated);
        let mean = |bytes: &[u8]| {
            let codes_of = bytes[bytes.len() - 300 * CODE_BYTES..].chunks(CODE_BYTES);
            codes_of.map(|block| entropy(codes(block))).sum::<f64>() / 300.0
        };
        let (before, after) = (mean(&plain), mean(&calibrated));
        assert!(after > before + 0.1, "{before} bits became {after}");
    }

    /// Against the definition: every shift of the search tried by coding the block with it.
    #[test]
    fn the_shift_is_the_one_of_greatest_entropy() {
        for block in weights(20 * LEN).as_chunks::<LEN>().0 {
            let entropy_at = |shift: f32| {
                let magnitude = block.iter().fold(0.0f32, |m, x| m.max((x - shift).abs()));
                entropy(block.iter().map(|x| nearest((x - shift) / magnitude)))
            };
            let found = best_shift(block);
            let mut sorted = *block;
            sorted.sort_unstable_by(f32::total_cmp);
            let median = sorted[LEN / 2 - 1];
            let reach = (sorted[LEN - 1] - median).max(median - sorted[0]);
            for i in -TRIED..=TRIED {
                let other = median + RANGE * reach * i as f32 / TRIED as f32;
                assert!(entropy_at(found) >= entropy_at(other) - 0.04, "{found} against {other}");
            }
        }
    }

    #[test]
    fn what_is_decoded_is_the_nearest_entry() {
        for cols in [64, 640, 256 * 64 + 128] {
            let row = weights(cols);
            let mut out = vec![0; row_bytes(cols).unwrap()];
            encode(&row, cols, &mut out);
            let mut back = vec![f32::NAN; cols];
            decode(&out, back.len(), 0, &mut back);
            for (block, decoded) in row.chunks(LEN).zip(back.chunks(LEN)) {
                let spread = block.iter().fold(0.0f32, |m, x| m.max(x.abs()));
                // The widest gap of the code book is 0.304, and a byte keeps a group's values to 1/254 of their range.
                let worst = block.iter().zip(decoded).fold(0.0f32, |m, (x, y)| m.max((x - y).abs()));
                assert!(worst <= 0.2 * spread, "{worst} of {spread}");
            }
        }
        assert_eq!(BlockType::Nf4Ic.row_bytes(128).unwrap(), 16 + 2 * 2 + 64);
    }

    #[test]
    fn a_row_of_equal_weights_is_exact() {
        let mut out = vec![0; row_bytes(128).unwrap()];
        encode(&[0.25; 128], 128, &mut out);
        let mut back = [0.0; 128];
        decode(&out, back.len(), 0, &mut back);
        assert_eq!(back, [0.25; 128]);
    }
}
