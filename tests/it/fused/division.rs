//! The quotient by which fp8 is made (`scaled` in `templates/fused.h`): by the reciprocal and one step of correction. Between
//! 2^-60 and 2^60 it is the divided one, in f32, wherever fp8 can tell. Exponents do not matter there, since no step leaves the
//! normal numbers. All 1024 mantissas of an f16 over all 2^23 of a scale have been compared by a program of its own, which takes
//! two seconds on two cores of 2024: no pair differs. Here are one in 509 of the scales, and the ends.

use ropejit::DType;

/// What the template does where the scale is usual, and x not too large.
fn corrected(x: f32, scale: f32, reciprocal: f32) -> f32 {
    let q = x * reciprocal;
    let corrected = (-q).mul_add(scale, x).mul_add(reciprocal, q);
    f32::from_bits(corrected.to_bits() | (q.to_bits() & 0x8000_0000))
}

/// And elsewhere.
fn anywhere(x: f32, scale: f32) -> f32 {
    let factor = match scale.abs() {
        s if s < 8.7e-19 => 1.267_650_6e30,
        s if s > 1.15e18 => 7.888_609e-31,
        _ => 1.0,
    };
    let reciprocal = 1.0 / (scale * factor);
    let scale = if scale.is_infinite() { 0.0 } else { scale * factor };
    let x = x * factor;
    let most = 2f32.powi(40);
    let q = x * reciprocal;
    let q = if q > most {
        most
    } else if q < -most {
        -most
    } else {
        q
    };
    let corrected = (-q).mul_add(scale, x).mul_add(reciprocal, q);
    f32::from_bits(corrected.to_bits() | (q.to_bits() & 0x8000_0000))
}

fn fp8(x: f32) -> u8 {
    let mut bytes = [0];
    DType::E4M3.write(&mut bytes, 0, x);
    bytes[0]
}

#[test]
fn a_corrected_quotient_is_the_divided_one() {
    let (mut plain, mut all) = (0, 0u32);
    let mantissas = (0..1u32 << 23).step_by(509).chain([1, 2, (1 << 23) - 2, (1 << 23) - 1]);
    for scale in mantissas.map(|mantissa| f32::from_bits(1f32.to_bits() | mantissa)) {
        let reciprocal = 1.0 / scale;
        // Every seventh value, another one of seven for each scale.
        for mantissa in (scale.to_bits() % 7..1024).step_by(7) {
            let x = f32::from_bits(1f32.to_bits() | mantissa << 13);
            assert_eq!(corrected(x, scale, reciprocal).to_bits(), (x / scale).to_bits(), "{x:e} / {scale:e}");
            plain += u32::from(x * reciprocal != x / scale);
            all += 1;
        }
    }
    // Without the correction a quarter would be wrong: the test can fail.
    assert!(plain > all / 5, "{plain} of {all}");
}

/// Every exponent of a scale and of x, signs, zeros, subnormal numbers, infinities and NaN: the same fp8.
#[test]
fn no_scale_and_no_number_is_an_exception() {
    let numbers = |low: u32| {
        let magnitudes = (0..=255u32).flat_map(move |e| [0, low, 0x40_0000, 0x7f_0000].map(|m| e << 23 | m));
        magnitudes.flat_map(|bits| [bits, bits | 0x8000_0000]).map(f32::from_bits)
    };
    for scale in numbers(0x12_3457) {
        for x in numbers(0x2b_0000) {
            let (got, want) = (anywhere(x, scale), x / scale);
            assert_eq!(fp8(got), fp8(want), "{x:e} / {scale:e}: {got:e} {want:e}");
        }
    }
}
