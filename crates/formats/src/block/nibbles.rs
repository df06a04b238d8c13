//! How the 32-weight formats lay out their codes: weight j in the low half of byte j, weight j + 16 in the
//! high half; a fifth bit goes to bit j of a 32-bit word.

/// The four low bits of 32 codes.
#[inline(always)]
pub(super) fn pack(codes: &[u8; 32]) -> [u8; 16] {
    let mut packed = [0; 16];
    for (j, byte) in packed.iter_mut().enumerate() {
        *byte = (codes[j] & 15) | ((codes[j + 16] & 15) << 4);
    }
    packed
}

/// The codes of [`pack`].
#[inline(always)]
pub(super) fn unpack(bytes: &[u8; 16]) -> [u8; 32] {
    std::array::from_fn(|j| if j < 16 { bytes[j] & 15 } else { bytes[j - 16] >> 4 })
}

/// The fifth bit of 32 codes.
#[inline(always)]
pub(super) fn pack_fifth(codes: &[u8; 32]) -> [u8; 4] {
    codes
        .iter()
        .enumerate()
        .fold(0u32, |bits, (j, &code)| bits | (u32::from(code >> 4 & 1) << j))
        .to_le_bytes()
}

/// The codes of [`pack`] and [`pack_fifth`].
#[inline(always)]
pub(super) fn unpack_with_fifth(bytes: &[u8; 16], fifth: [u8; 4]) -> [u8; 32] {
    let fifth = u32::from_le_bytes(fifth);
    let low = unpack(bytes);
    std::array::from_fn(|j| low[j] | ((fifth >> j & 1) << 4) as u8)
}
