//! Roundings as ggml's C code does them on x86-64, including what it does with numbers out of range: the
//! blocks must agree even where a scale is denormal or infinite.

/// Adding this to a float of less than 2²² leaves its nearest integer (ties to even) in the low 23 bits.
const ROUND_TO_INTEGER: f32 = 12_582_912.0;

/// The nearest integer, ties to even; NaN gives 0, infinities the least number of 23 bits.
#[inline(always)]
#[allow(clippy::cast_possible_wrap, reason = "23 bits")]
pub(super) fn nearest(value: f32) -> i32 {
    ((value + ROUND_TO_INTEGER).to_bits() & 0x007f_ffff) as i32 - 0x0040_0000
}

/// The integer part's low byte, as a C cast does it through `cvttss2si`: out of range gives 0.
#[inline(always)]
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "in range by the test")]
pub(super) fn truncated_byte(value: f32) -> u8 {
    // 2³¹ saturates in Rust and is the indefinite value, with a low byte of 0, in C.
    if value.abs() < 2_147_483_648.0 { value as i32 as u8 } else { 0 }
}

/// The low byte of the nearest integer, ties away from zero: C's `roundf` and a cast.
#[inline(always)]
#[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss, clippy::cast_sign_loss)]
pub(super) fn rounded_byte(value: f32) -> u8 {
    if value.abs() >= 8_388_608.0 || value.is_nan() {
        return truncated_byte(value);
    }
    let whole = value as i32;
    let rest = value - whole as f32;
    (whole + i32::from(rest >= 0.5) - i32::from(rest <= -0.5)) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_go_where_c_sends_them() {
        assert_eq!([0.5, 1.5, -0.5, -2.5].map(nearest), [0, 2, 0, -2]);
        assert_eq!([0.5, 1.5, -0.5, -2.5].map(|x| rounded_byte(x) as i8), [1, 2, -1, -3]);
        assert_eq!(rounded_byte(0.499_999_97), 0);
        assert_eq!([7.9, -0.9].map(truncated_byte), [7, 0]);
    }

    #[test]
    fn out_of_range_is_what_x86_gives() {
        let extremes = [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 2_147_483_648.0];
        assert_eq!(extremes.map(truncated_byte), [0; 4]);
        assert_eq!(extremes.map(rounded_byte), [0; 4]);
        assert_eq!(nearest(f32::NAN), 0);
        assert_eq!(nearest(f32::INFINITY), -0x0040_0000);
    }
}
