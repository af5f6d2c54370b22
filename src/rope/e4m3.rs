//! fp8 numbers with four bits of exponent and three of mantissa, no infinity, NaN 0x7f: "e4m3fn", OCP 8-bit floating point
//! specification, revision 1.0.

/// The value of the bits.
pub fn to_f32(bits: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(bits >> 3 & 15), f32::from(bits & 7));
    let magnitude = match (exponent, bits & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa * 2f32.powi(-9),
        _ => (8.0 + mantissa) * 2f32.powi(exponent - 10),
    };
    if bits & 0x80 == 0 { magnitude } else { -magnitude }
}

/// Rounds to nearest, ties to even; what is larger than 448, the largest, becomes that, and NaN 0x7f whatever its sign.
pub fn from_f32(x: f32) -> u8 {
    if x.is_nan() {
        return 0x7f;
    }
    let sign = if x.is_sign_negative() { 0x80 } else { 0 };
    let magnitude = x.abs();
    if magnitude >= 448.0 {
        return sign | 0x7e;
    }
    if magnitude < 2f32.powi(-6) {
        // Subnormal, in steps of 2^-9: eight of them are the smallest normal number, whose bits are 8.
        return sign | (magnitude * 512.0).round_ties_even() as u8;
    }
    let bits = magnitude.to_bits();
    let rounded = bits + 0x7_ffff + (bits >> 20 & 1);
    sign | ((rounded >> 20) - (120 << 3)) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_reads_back_and_every_tie_goes_to_even() {
        for bits in (0..=0x7e).chain(0x80..=0xfe) {
            assert_eq!(from_f32(to_f32(bits)), bits, "{bits:#x}");
        }
        for bits in 0..0x7e_u8 {
            let (low, high) = (to_f32(bits), to_f32(bits + 1));
            let middle = low + (high - low) / 2.0;
            assert_eq!(from_f32(middle), if bits & 1 == 0 { bits } else { bits + 1 }, "{middle}");
            assert_eq!(from_f32(f32::from_bits(middle.to_bits() + 1)), bits + 1);
            assert_eq!(from_f32(f32::from_bits(middle.to_bits() - 1)), bits);
        }
    }

    #[test]
    fn what_is_too_large_saturates_and_nan_stays() {
        assert_eq!([449.0, 1e30, f32::INFINITY, -f32::INFINITY].map(from_f32), [0x7e, 0x7e, 0x7e, 0xfe]);
        assert_eq!([f32::NAN, -f32::NAN].map(from_f32), [0x7f, 0x7f]);
        assert_eq!([0.0, -0.0, 1e-40, -1e-40].map(from_f32), [0, 0x80, 0, 0x80]);
    }
}
