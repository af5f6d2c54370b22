//! One pair: where it stands in a head and how it turns; and which packed sequence a token is in.

use crate::rope::{Direction, PairStyle, RopeSpec, RotaryPart, Rounding};

/// Indices, inside a head, of the two elements of a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pair {
    /// Where they are read.
    pub input: (usize, usize),
    /// Where they are written: elsewhere where pairs move ([`PairStyle::Deinterleave`]).
    pub output: (usize, usize),
}

/// Pair `i` of a head of `dim` elements: `head_dim`, or [`RopeSpec::k_dim`] of k.
pub fn pair(spec: &RopeSpec, dim: u32, i: usize) -> Pair {
    pair_in(spec, spec.direction, dim as usize, i)
}

/// As [`pair`], in a direction that need not be the spec's.
pub fn pair_in(spec: &RopeSpec, direction: Direction, dim: usize, i: usize) -> Pair {
    let first = first_turning(spec, dim);
    let halves = (first + i, first + i + spec.rotary_dim as usize / 2);
    let neighbours = (first + 2 * i, first + 2 * i + 1);
    match (spec.style, direction) {
        (PairStyle::HalfSplit, _) => Pair { input: halves, output: halves },
        (PairStyle::Interleaved, _) => Pair { input: neighbours, output: neighbours },
        (PairStyle::Deinterleave, Direction::Forward) => Pair { input: neighbours, output: halves },
        (PairStyle::Deinterleave, Direction::Backward) => Pair { input: halves, output: neighbours },
    }
}

/// The first element that turns, of a head of `dim` elements. `rotary_dim` of them turn.
pub fn first_turning(spec: &RopeSpec, dim: usize) -> usize {
    match spec.part {
        RotaryPart::First => 0,
        RotaryPart::Last => dim - spec.rotary_dim as usize,
    }
}

/// `(a·c − b·s, b·c + a·s)` in f64, or the transpose for the backward direction.
pub fn rotate_f64(direction: Direction, (a, b): (f64, f64), (c, s): (f64, f64)) -> (f64, f64) {
    let s = if direction == Direction::Backward { -s } else { s };
    (a * c - b * s, b * c + a * s)
}

/// The same under the spec's rounding contract. Inputs are values of the dtype and of the table's dtype; so is the result.
pub fn rotate(spec: &RopeSpec, ab: (f32, f32), cs: (f32, f32)) -> (f32, f32) {
    rotate_in(spec, spec.direction, ab, cs)
}

/// As [`rotate`], in a direction that need not be the spec's.
pub(super) fn rotate_in(spec: &RopeSpec, direction: Direction, (a, b): (f32, f32), (c, s): (f32, f32)) -> (f32, f32) {
    let fl = |x: f32| spec.dtype.round(x);
    match spec.rounding {
        Rounding::Once | Rounding::Contracted => {
            let turned = rotate_f32(spec.rounding, direction, (a, b), (c, s));
            (fl(turned.0), fl(turned.1))
        }
        Rounding::PerOp => {
            let (c, s) = (fl(c), signed(direction, fl(s)));
            (fl(fl(a * c) - fl(b * s)), fl(fl(b * c) + fl(a * s)))
        }
    }
}

/// In f32, not rounded to the dtype.
pub(super) fn rotate_f32(
    rounding: Rounding,
    direction: Direction,
    (a, b): (f32, f32),
    (c, s): (f32, f32),
) -> (f32, f32) {
    let s = signed(direction, s);
    if rounding == Rounding::Contracted {
        return (a.mul_add(c, -(b * s)), a.mul_add(s, b * c));
    }
    (a * c - b * s, b * c + a * s)
}

fn signed(direction: Direction, s: f32) -> f32 {
    if direction == Direction::Backward { -s } else { s }
}

/// The packed sequence that a token is in, `begins(n)` being where sequence `n` begins and `begins(sequences)` where the last
/// ends. `None`: the token is in front of the first or behind the last, and stays as it is.
///
/// By bisection, step by step as the kernels do it, so that numbers which do not ascend give one result everywhere: a
/// sequence that does contain the token, or none.
pub fn sequence_of(token: i64, sequences: u32, begins: impl Fn(u32) -> i64) -> Option<u32> {
    let (mut low, mut high) = (0, sequences);
    while low < high {
        let middle = low + (high - low) / 2;
        if begins(middle + 1) <= token { low = middle + 1 } else { high = middle }
    }
    (low < sequences && begins(low) <= token).then_some(low)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::rope::DType;

    /// One product of each sum is not rounded, and it is that of the first element: its last bit is what is left over.
    #[test]
    fn contracted_by_hand() {
        let (x, rounded, bit) = (1.0 + 2f32.powi(-12), 1.0 + 2f32.powi(-11), 2f32.powi(-24));
        let turn = |rounding, ab, cs| {
            let spec = RopeSpec::new(DType::F32, 2, 1, 1).with_rounding(rounding);
            rotate(&spec, ab, cs)
        };
        // x·x is `rounded` + `bit`, and rounds to `rounded`.
        assert_eq!(x * x, rounded);
        assert_eq!(turn(Rounding::Once, (x, rounded), (x, 1.0)).0, 0.0);
        assert_eq!(turn(Rounding::Contracted, (x, rounded), (x, 1.0)).0, bit);
        assert_eq!(turn(Rounding::Contracted, (rounded, x), (1.0, x)).0, 0.0);
        assert_eq!(turn(Rounding::Once, (x, -rounded), (1.0, x)).1, 0.0);
        assert_eq!(turn(Rounding::Contracted, (x, -rounded), (1.0, x)).1, bit);
        assert_eq!(turn(Rounding::Contracted, (-rounded, x), (x, 1.0)).1, 0.0);
        // Backward the same with −s.
        let mut spec = RopeSpec::new(DType::F32, 2, 1, 1).with_rounding(Rounding::Contracted);
        spec.direction = Direction::Backward;
        assert_eq!(rotate(&spec, (x, rounded), (x, -1.0)).0, bit);
        assert_eq!(rotate(&spec, (x, rounded), (1.0, x)).1, -bit);
    }

    proptest! {
        #[test]
        fn backward_undoes_forward(a in -4.0f64..4.0, b in -4.0f64..4.0, angle in -10.0f64..10.0) {
            let cs = (angle.cos(), angle.sin());
            let turned = rotate_f64(Direction::Forward, (a, b), cs);
            let back = rotate_f64(Direction::Backward, turned, cs);
            prop_assert!((back.0 - a).abs() < 1e-12 && (back.1 - b).abs() < 1e-12);
        }

        #[test]
        fn a_packed_token_is_found_where_it_is(begins in prop::collection::vec(-3i64..40, 1..9), token in 0i64..40) {
            let sequences = begins.len() as u32 - 1;
            let at = |n: u32| begins[n as usize];
            let found = sequence_of(token, sequences, at);
            if let Some(n) = found {
                prop_assert!((at(n)..at(n + 1)).contains(&token));
            }
            let mut ascending = begins.clone();
            ascending.sort_unstable();
            let found = sequence_of(token, sequences, |n| ascending[n as usize]);
            let scan = ascending.windows(2).position(|w| (w[0]..w[1]).contains(&token));
            prop_assert_eq!(found, scan.map(|n| n as u32));
        }

        #[test]
        fn contracts_stay_near_the_mathematics(a in -4.0f32..4.0, b in -4.0f32..4.0, angle in -10.0f32..10.0) {
            for dtype in DType::ALL {
                for rounding in [Rounding::Once, Rounding::PerOp, Rounding::Contracted] {
                    let spec = RopeSpec::new(dtype, 2, 1, 1).with_rounding(rounding);
                    let (a, b) = (dtype.round(a), dtype.round(b));
                    let (c, s) = (angle.cos(), angle.sin());
                    let got = rotate(&spec, (a, b), (c, s));
                    let want = rotate_f64(Direction::Forward, (a.into(), b.into()), (c.into(), s.into()));
                    // At most three roundings (tables, products, sum) of values that |a| + |b| bounds, each costing half
                    // a unit in the last place: 2^-24, 2^-11 or 2^-8 of the value.
                    // Below the least normal number the step is fixed.
                    let (relative, least) = match dtype {
                        DType::F32 => (2f64.powi(-24), 2f64.powi(-150)),
                        DType::F16 => (2f64.powi(-11), 2f64.powi(-25)),
                        DType::BF16 => (2f64.powi(-8), 2f64.powi(-134)),
                        DType::E4M3 => unreachable!("not of tensors"),
                    };
                    let bound = 3.1 * (relative * f64::from(a.abs() + b.abs()) + least);
                    let error = (f64::from(got.0) - want.0).abs().max((f64::from(got.1) - want.1).abs());
                    prop_assert!(error <= bound, "{error} of {bound}");
                    prop_assert_eq!(dtype.round(got.0), got.0);
                }
            }
        }
    }
}
