//! cos and sin of a position's angle: the operations of `templates/angles.h`, so that a table made here, one made on a
//! device and a kernel that computes its angles give the same bits.

use serde::{Deserialize, Serialize};

/// In which precision angles are computed. Largest error against f64 over 256 positions at θ = 5e5: near position
/// 131072, 6.1e-3 in f32 and 1.9e-7 accurate; near 1 Mi, 4.9e-2 and 1.9e-7.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TableMode {
    /// As transformers makes them: p·ω in f32, then the cos and sin of that f32 angle, times A in f32.
    #[default]
    F32,
    /// p·ω and everything after it in f64, rounded once.
    Accurate,
}

/// `(cos, sin)` of pair frequency `inv_freq` at a position, times the attention factor.
pub fn cos_sin(mode: TableMode, position: i64, inv_freq: f32, factor: f32) -> (f32, f32) {
    match mode {
        TableMode::F32 => {
            let (sin, cos) = sin_cos(f64::from(position as f32 * inv_freq));
            (cos as f32 * factor, sin as f32 * factor)
        }
        TableMode::Accurate => {
            let (sin, cos) = sin_cos(position as f64 * f64::from(inv_freq));
            ((cos * f64::from(factor)) as f32, (sin * f64::from(factor)) as f32)
        }
    }
}

/// Taylor's series (Abramowitz and Stegun, 4.3.65 and 4.3.66) after Cody and Waite's reduction. Every step is one IEEE
/// operation on doubles. Largest error for angles below 2^31: 2 units in the last place of a double near 1.
fn sin_cos(x: f64) -> (f64, f64) {
    /// π/2 in four parts; a multiple below 2^32 of the first three is exact.
    const PARTS: [f64; 4] =
        [1.570_796_012_878_418, 3.139_164_164_167_596e-7, 6.223_369_259_164_557e-14, 2.912_732_056_093_356e-20];
    /// 1.5 · 2^52: adding it rounds to a whole number.
    const SHIFT: f64 = 6_755_399_441_055_744.0;
    const SIN: [f64; 7] = [
        -1.0 / 1_307_674_368_000.0,
        1.0 / 6_227_020_800.0,
        -1.0 / 39_916_800.0,
        1.0 / 362_880.0,
        -1.0 / 5040.0,
        1.0 / 120.0,
        -1.0 / 6.0,
    ];
    const COS: [f64; 8] = [
        1.0 / 20_922_789_888_000.0,
        -1.0 / 87_178_291_200.0,
        1.0 / 479_001_600.0,
        -1.0 / 3_628_800.0,
        1.0 / 40_320.0,
        -1.0 / 720.0,
        1.0 / 24.0,
        -0.5,
    ];
    let shifted = x * std::f64::consts::FRAC_2_PI + SHIFT;
    let n = shifted - SHIFT;
    let r = PARTS.iter().fold(x, |r, part| r - n * part);
    let z = r * r;
    // A product and a sum, each rounded: `mul_add` would round once.
    let series = |coefficients: &[f64]| coefficients[1..].iter().fold(coefficients[0], |sum, c| sum * z + c);
    let sine = r + (r * z) * series(&SIN);
    let cosine = 1.0 + series(&COS) * z;
    let quarter = shifted.to_bits();
    let (s, c) = if quarter & 1 == 1 { (cosine, sine) } else { (sine, cosine) };
    (if quarter & 2 == 2 { -s } else { s }, if (quarter + 1) & 2 == 2 { -c } else { c })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_the_library_in_every_quarter_and_far_out() {
        let mut worst = 0.0f64;
        for i in 0..200_000u32 {
            // Small ones, and up to 2^31.
            let x = f64::from(i) * if i % 2 == 0 { 1e-3 } else { 10_737.418_1 };
            let (s, c) = sin_cos(x);
            worst = worst.max((s - x.sin()).abs()).max((c - x.cos()).abs());
        }
        assert!(worst < 4.5e-16, "{worst:e}");
        assert_eq!(sin_cos(0.0), (0.0, 1.0));
    }
}
