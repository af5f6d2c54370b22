//! cos/sin tables from frequencies.

use super::angle::{TableMode, cos_sin};
use super::parameters::Frequencies;

/// The half-width tables `(cos, sin)`: a row a position (below 2^31), a value a pair. The same bits as
/// [`Engine::angles`](crate::Engine::angles) makes on its device.
pub fn cos_sin_table(
    frequencies: &Frequencies,
    positions: impl IntoIterator<Item = u64>,
    mode: TableMode,
) -> (Vec<f32>, Vec<f32>) {
    let factor = frequencies.attention_factor;
    let value = |position: u64, w: f32| cos_sin(mode, position as i64, w, factor);
    positions.into_iter().flat_map(|p| frequencies.inv_freq.iter().map(move |w| value(p, *w))).unzip()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rope::scaling::RopeParameters;

    #[test]
    fn a_row_a_position_a_value_a_pair() {
        let frequencies = Frequencies { inv_freq: vec![1.0, 0.5, 0.0], attention_factor: 2.0 };
        let (cos, sin) = cos_sin_table(&frequencies, [0, 3], TableMode::F32);
        let f = |x: f64| x as f32 * 2.0;
        assert_eq!(cos, [2.0, 2.0, 2.0, f(3f64.cos()), f(1.5f64.cos()), 2.0]);
        assert_eq!(sin, [0.0, 0.0, 0.0, f(3f64.sin()), f(1.5f64.sin()), 0.0]);
    }

    #[test]
    fn accurate_stays_so_far_out_and_f32_does_not() {
        let frequencies = RopeParameters::new(5e5, 128).frequencies(None).unwrap();
        // Largest error of cos and sin over the 256 positions in front of `end`.
        let worst = |end: u64, mode| {
            let positions = end - 256..end;
            let (cos, sin) = cos_sin_table(&frequencies, positions.clone(), mode);
            let angles = positions.flat_map(|p| frequencies.inv_freq.iter().map(move |w| p as f64 * f64::from(*w)));
            let error = |((c, s), angle): ((&f32, &f32), f64)| {
                (f64::from(*c) - angle.cos()).abs().max((f64::from(*s) - angle.sin()).abs())
            };
            cos.iter().zip(&sin).zip(angles).map(error).fold(0.0, f64::max)
        };
        for end in [1 << 12, 1 << 17, 1 << 20] {
            assert!(worst(end, TableMode::Accurate) < 6e-8, "{end}: {}", worst(end, TableMode::Accurate));
            // Half a unit in the last place of angles up to `end`, which is what rounding p·ω to f32 may cost.
            let rounding = end as f64 * 2f64.powi(-25);
            let f32_error = worst(end, TableMode::F32) / rounding;
            assert!((0.5..1.01).contains(&f32_error), "{end}: {f32_error} of what rounding explains");
        }
    }
}
