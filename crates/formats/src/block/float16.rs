//! The 16-bit scale of a block, converted as ggml does: to nearest even, every NaN to the same quiet one.

use half::f16;

/// The nearest half-precision number as stored bytes.
pub(super) fn to_bytes(value: f32) -> [u8; 2] {
    bits(value).to_le_bytes()
}

/// The nearest half-precision number, widened again: the value that a decoder will see.
pub(super) fn rounded(value: f32) -> f32 {
    f16::from_bits(bits(value)).to_f32()
}

/// Widens a stored half-precision number.
pub(super) fn from_bytes(bytes: [u8; 2]) -> f32 {
    f16::from_le_bytes(bytes).to_f32()
}

/// The bits of the nearest half-precision number.
pub(super) fn bits(value: f32) -> u16 {
    if value.is_nan() {
        return 0x7e00 | (u16::from(value.is_sign_negative()) << 15);
    }
    f16::from_f32(value).to_bits()
}
