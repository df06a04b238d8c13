//! How Q2_K and Q3_K lay out the two low bits of 256 codes: each half of the block has 32 bytes, whose four pairs of bits are
//! of weights 32 apart.

use super::K_BLOCK;

/// Bytes of a block's pairs of bits.
pub(super) const BYTES: usize = K_BLOCK / 4;

/// The two low bits of each code.
#[inline(always)]
pub(super) fn pack(codes: &[u8; K_BLOCK]) -> [u8; BYTES] {
    let mut bytes = [0; BYTES];
    for (half, bytes) in codes.as_chunks::<128>().0.iter().zip(bytes.as_chunks_mut::<32>().0) {
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = (0..4).fold(0, |bits, row| bits | (half[32 * row + i] & 3) << (2 * row));
        }
    }
    bytes
}

/// The pairs of bits of weights 32·row to 32·row + 31.
#[inline(always)]
pub(super) fn row(bytes: &[u8; BYTES], row: usize) -> [u8; 32] {
    let mut codes = [0; 32];
    for (code, byte) in codes.iter_mut().zip(&bytes[row / 4 * 32..][..32]) {
        *code = byte >> (row % 4 * 2) & 3;
    }
    codes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packing_loses_nothing() {
        let codes: [u8; K_BLOCK] = std::array::from_fn(|i| (i * i / 7 % 4) as u8);
        let bytes = pack(&codes);
        for (i, of_row) in codes.as_chunks::<32>().0.iter().enumerate() {
            assert_eq!(&row(&bytes, i), of_row, "row {i}");
        }
    }
}
