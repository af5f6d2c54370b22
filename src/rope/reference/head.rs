//! A whole head: norm and rotation forward, and their gradient.

use super::norm::{apply_weight, mean_of_squares, sum};
use super::pair::{pair_in, rotate_f32, rotate_in};
use crate::rope::{Direction, Flavour, Norm, RopeSpec, Rounding};

/// A head that has been normalised and turned.
#[derive(Debug, Clone, PartialEq)]
pub struct Forward {
    /// Values of the dtype.
    pub y: Vec<f32>,
    /// The reciprocal root, which the backward direction needs; `None` where the spec has no norm.
    pub rsqrt: Option<f32>,
}

/// The gradient of a head.
#[derive(Debug, Clone, PartialEq)]
pub struct Backward {
    /// Of the head, values of the dtype.
    pub dx: Vec<f32>,
    /// What it gives to the gradient of the weight, f32; empty where there is none. See
    /// [`weight_gradient`](super::weight_gradient).
    pub weight_terms: Vec<f32>,
}

/// Turns the pairs of a head by `angles`, cos and sin of each pair as they stand in the tables; the rest stays. The direction
/// is the spec's.
pub fn turn(spec: &RopeSpec, x: &[f32], angles: &[(f32, f32)]) -> Vec<f32> {
    turn_in(spec, spec.direction, x, angles)
}

/// As [`turn`], in a direction that need not be the spec's.
fn turn_in(spec: &RopeSpec, direction: Direction, x: &[f32], angles: &[(f32, f32)]) -> Vec<f32> {
    turn_by(spec, direction, x, angles, |ab, cs| rotate_in(spec, direction, ab, cs))
}

fn turn_by(
    spec: &RopeSpec,
    direction: Direction,
    x: &[f32],
    angles: &[(f32, f32)],
    rotate: impl Fn((f32, f32), (f32, f32)) -> (f32, f32),
) -> Vec<f32> {
    let mut y = x.to_vec();
    for (i, &cs) in angles.iter().enumerate() {
        let pair = pair_in(spec, direction, x.len(), i);
        (y[pair.output.0], y[pair.output.1]) = rotate((x[pair.input.0], x[pair.input.1]), cs);
    }
    y
}

/// A head of a forward spec: its norm, if there is one, and its rotation, in the spec's order.
///
/// `x` are values of the dtype, `weight` as well, one an element (none where the flavour has none, or there is no norm); `root`
/// takes `fl(mean + eps)` to the reciprocal root: [`root`](super::root), or what a GPU has saved.
pub fn forward(
    spec: &RopeSpec,
    x: &[f32],
    weight: &[f32],
    eps: f32,
    root: impl Fn(f32) -> f32,
    angles: &[(f32, f32)],
) -> Forward {
    let Some(norm) = spec.norm else { return Forward { y: turn(spec, x, angles), rsqrt: None } };
    let normalise = |x: &[f32]| {
        let r = root(mean_of_squares(norm.order, x, eps));
        let w = |i: usize| weight.get(i).copied().unwrap_or_default();
        let m = x.iter().enumerate().map(|(i, &x)| apply_weight(norm.flavour, spec.dtype, x, r, w(i)));
        (m.collect::<Vec<f32>>(), Some(r))
    };
    if norm.after_rope {
        let (y, rsqrt) = normalise(&turn(spec, x, angles));
        return Forward { y, rsqrt };
    }
    let (m, rsqrt) = normalise(x);
    Forward { y: turn(spec, &m, angles), rsqrt }
}

/// The gradient of a head of a spec whose direction is backward, and that has a norm: `x` and `r` are what the forward direction
/// took and saved, `weight` as there.
///
/// With `n = x·r` and `m = n·w`, autograd of PyTorch gives `dn = dm·w`, `dr = Σ dn·x`, `dv = −½·dr·r³`, and `dx = dn·r + dv/D·2x`.
pub fn backward(
    spec: &RopeSpec,
    norm: Norm,
    dy: &[f32],
    x: &[f32],
    weight: &[f32],
    r: f32,
    angles: &[(f32, f32)],
) -> Backward {
    if norm.after_rope {
        let turned = turn_in(spec, Direction::Forward, x, angles);
        let Backward { dx, weight_terms } = of_norm(spec, norm, dy, &turned, weight, r);
        return Backward { dx: turn_in(spec, Direction::Backward, &dx, angles), weight_terms };
    }
    let dm = match spec.rounding {
        Rounding::PerOp => turn_in(spec, Direction::Backward, dy, angles),
        rounding => {
            turn_by(spec, Direction::Backward, dy, angles, |ab, cs| rotate_f32(rounding, Direction::Backward, ab, cs))
        }
    };
    of_norm(spec, norm, &dm, x, weight, r)
}

/// The gradient of the norm alone: `dm` is that of what leaves it.
fn of_norm(spec: &RopeSpec, norm: Norm, dm: &[f32], x: &[f32], weight: &[f32], r: f32) -> Backward {
    let t = |value: f32| spec.dtype.round(value);
    let per_op = spec.rounding == Rounding::PerOp;
    let (mut dn, mut weight_terms) = (Vec::with_capacity(x.len()), Vec::new());
    for (i, (&dm, &x)) in dm.iter().zip(x).enumerate() {
        let w = weight.get(i).copied().unwrap_or_default();
        match norm.flavour {
            Flavour::WeightAfter if per_op => {
                dn.push(t(dm * w));
                weight_terms.push(t(dm * t(x * r)));
            }
            Flavour::WeightAfter => {
                dn.push(dm * w);
                weight_terms.push(dm * t(x * r));
            }
            Flavour::OnePlusWeight => {
                dn.push(dm * (1.0 + w));
                weight_terms.push(dm * (x * r));
            }
            Flavour::WeightF32 => {
                dn.push(dm * w);
                weight_terms.push(dm * (x * r));
            }
            Flavour::NoWeight => dn.push(dm),
        }
    }
    let products: Vec<f32> = dn.iter().zip(x).map(|(dn, x)| dn * x).collect();
    let dr = sum(norm.order, &products);
    let of_mean = ((-0.5 * dr) * ((r * r) * r)) * (1.0 / x.len() as f32);
    let dx = dn.iter().zip(x).map(|(dn, x)| t(dn * r + of_mean * (2.0 * x))).collect();
    Backward { dx, weight_terms }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::rope::reference::{root, rotate_f64};
    use crate::rope::{DType, PairStyle, RotaryPart, Rsqrt, SumOrder};

    fn spec(dim: u32, rotary: u32, style: PairStyle, norm: Norm) -> RopeSpec {
        let mut spec = RopeSpec::new(DType::F32, dim, 1, 0).with_norm(norm);
        (spec.rotary_dim, spec.style) = (rotary, style);
        if rotary < dim {
            spec.part = RotaryPart::Last;
        }
        spec
    }

    /// The loss `Σ y·g` in f64 straight from the formulas: what finite differences are taken of.
    fn loss(spec: &RopeSpec, x: &[f64], w: &[f64], angles: &[(f32, f32)], g: &[f64]) -> f64 {
        let norm = spec.norm.expect("has one");
        let turn = |x: &[f64]| {
            let mut y = x.to_vec();
            for (i, &(c, s)) in angles.iter().enumerate() {
                let pair = pair_in(spec, Direction::Forward, x.len(), i);
                let (a, b) = (x[pair.input.0], x[pair.input.1]);
                let turned = rotate_f64(Direction::Forward, (a, b), (c.into(), s.into()));
                (y[pair.output.0], y[pair.output.1]) = turned;
            }
            y
        };
        let normalise = |x: &[f64]| {
            let r = 1.0 / (x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64 + 1e-3).sqrt();
            let weight = |i: usize| match norm.flavour {
                Flavour::WeightAfter | Flavour::WeightF32 => w[i],
                Flavour::OnePlusWeight => 1.0 + w[i],
                Flavour::NoWeight => 1.0,
            };
            x.iter().enumerate().map(|(i, x)| x * r * weight(i)).collect::<Vec<f64>>()
        };
        let y = if norm.after_rope { normalise(&turn(x)) } else { turn(&normalise(x)) };
        y.iter().zip(g).map(|(y, g)| y * g).sum()
    }

    proptest! {
        /// The gradient against differences of the loss, in every form.
        #[test]
        fn the_gradient_is_the_slope(
            pairs in 1u32..12, turning in 1u32..12, style in 0usize..3, flavour in 0usize..4, rounding in 0usize..3,
            flags in any::<[bool; 2]>(), seed in any::<u32>(),
        ) {
            let flavour = [Flavour::WeightAfter, Flavour::OnePlusWeight, Flavour::WeightF32, Flavour::NoWeight][flavour];
            let order = if flags[0] { SumOrder::Torch } else { SumOrder::Tree };
            let norm = Norm { flavour, order, rsqrt: Rsqrt::Ieee, after_rope: flags[1] };
            let style = [PairStyle::HalfSplit, PairStyle::Interleaved, PairStyle::Deinterleave][style];
            let mut spec = spec(2 * pairs, 2 * turning.min(pairs), style, norm);
            spec.rounding = [Rounding::Once, Rounding::PerOp, Rounding::Contracted][rounding];
            let mut state = u64::from(seed) | 1;
            let mut number = || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 40) as f32 / (1 << 23) as f32 - 1.0
            };
            let dim = spec.head_dim as usize;
            let [x, w, g] = [0; 3].map(|_| (0..dim).map(|_| number()).collect::<Vec<f32>>());
            let angles: Vec<(f32, f32)> = (0..spec.rotary_dim / 2).map(|_| (3.0 * number()).sin_cos()).collect();
            let used: &[f32] = if norm.has_weight() { &w } else { &[] };
            let made = forward(&spec, &x, used, 1e-3, root, &angles);
            let r = made.rsqrt.expect("a norm has one");
            let [x64, w64, g64] = [&x, &w, &g].map(|v| v.iter().map(|&x| f64::from(x)).collect::<Vec<f64>>());
            let value: f64 = made.y.iter().zip(&g64).map(|(&y, g)| f64::from(y) * g).sum();
            let size = 1.0 + g64.iter().map(|g| g.abs()).sum::<f64>() * 40.0;
            prop_assert!((value - loss(&spec, &x64, &w64, &angles, &g64)).abs() < 1e-5 * size);
            spec.direction = Direction::Backward;
            let got = backward(&spec, norm, &g, &x, used, r, &angles);
            let slope = |mut at: Vec<f64>, i: usize, loss: &dyn Fn(&[f64]) -> f64| {
                let (middle, h) = (at[i], 1e-5);
                at[i] = middle + h;
                let above = loss(&at);
                at[i] = middle - h;
                (above - loss(&at)) / (2.0 * h)
            };
            for i in 0..dim {
                let want = slope(x64.clone(), i, &|x| loss(&spec, x, &w64, &angles, &g64));
                prop_assert!((f64::from(got.dx[i]) - want).abs() < 1e-3 * size, "dx[{i}] {} {want}", got.dx[i]);
                if norm.has_weight() {
                    let want = slope(w64.clone(), i, &|w| loss(&spec, &x64, w, &angles, &g64));
                    prop_assert!((f64::from(got.weight_terms[i]) - want).abs() < 1e-3 * size, "dw[{i}]");
                }
            }
            prop_assert_eq!(got.weight_terms.len(), used.len());
        }
    }
}
