//! Gradients of the rotation: bits against the reference, and numbers against candle's own of a plain formula.

use candle_core::{D, DType, Result, Tensor, Var};
use ropejit::Direction;
use ropejit::rope::PairStyle;
use ropejit_candle::Rope;

use crate::data::{assert_bits, floats, numbers, on_cpu, tables, turned};
use crate::rope::spec;

/// The rotation in operations of candle's, of `[batch, heads, tokens, head_dim]`.
/// cos and sin are `[tokens, rotary_dim / 2]`.
fn formula(x: &Tensor, cos: &Tensor, sin: &Tensor, style: PairStyle) -> Result<Tensor> {
    let pairs = cos.dim(D::Minus1)?;
    let (turning, rest) =
        (x.narrow(D::Minus1, 0, 2 * pairs)?, x.narrow(D::Minus1, 2 * pairs, x.dim(D::Minus1)? - 2 * pairs)?);
    let turned = if style == PairStyle::HalfSplit {
        let (a, b) = (turning.narrow(D::Minus1, 0, pairs)?, turning.narrow(D::Minus1, pairs, pairs)?);
        let y = (a.broadcast_mul(cos)? - b.broadcast_mul(sin)?)?;
        Tensor::cat(&[y, (b.broadcast_mul(cos)? + a.broadcast_mul(sin)?)?], D::Minus1)?
    } else {
        let (b, h, t, _) = x.dims4()?;
        let split = turning.contiguous()?.reshape((b, h, t, pairs, 2))?;
        let (x, y) = (split.narrow(4, 0, 1)?.squeeze(4)?, split.narrow(4, 1, 1)?.squeeze(4)?);
        let a = (x.broadcast_mul(cos)? - y.broadcast_mul(sin)?)?;
        Tensor::stack(&[a, (y.broadcast_mul(cos)? + x.broadcast_mul(sin)?)?], 4)?.flatten_from(3)?
    };
    Tensor::cat(&[turned, rest], D::Minus1)
}

pub fn assert_near(got: &Tensor, want: &Tensor, most: f32, what: &str) {
    assert_eq!(got.dims(), want.dims(), "{what}");
    let (got, want) = (floats(got), floats(want));
    for (i, (got, want)) in got.iter().zip(&want).enumerate() {
        let near = (got - want).abs() <= most * want.abs().max(1.0);
        assert!(near, "{what}: element {i} is {got}, {want} was expected");
    }
}

#[test]
fn agree_with_candles_own_of_a_formula() {
    for style in [PairStyle::HalfSplit, PairStyle::Interleaved] {
        for (thd, rotary_dim) in [(false, 32), (false, 24), (true, 32), (true, 24)] {
            let shape = |heads| [2, heads, 5, 32];
            let variable =
                |seed, heads| Var::from_tensor(&numbers(seed, &shape(heads), DType::F32)).expect("a variable");
            let (q, k) = (variable(21, 4), variable(22, 2));
            let (cos, sin) = tables(&[5, rotary_dim / 2], DType::F32);
            let mut rope = Rope::new().rotary_dim(rotary_dim);
            if style == PairStyle::Interleaved {
                rope = rope.interleaved();
            }
            let run = |q: &Tensor, k: &Tensor| {
                if !thd {
                    return rope.apply(q, k, &cos, &sin);
                }
                // The same through the other layout, on views.
                let rope = rope.clone().thd();
                let (q, k) = rope.apply(&q.transpose(1, 2)?, &k.transpose(1, 2)?, &cos, &sin)?;
                Ok((q.transpose(1, 2)?, k.transpose(1, 2)?))
            };
            // Weights that differ from element to element, and a product that joins q and k.
            let (wq, wk) = (numbers(23, &shape(4), DType::F32), numbers(24, &shape(2), DType::F32));
            let loss = |q: &Tensor, k: &Tensor| {
                let squares = (q.sqr()? * &wq)?.sum_all()?;
                let joined = (q.narrow(1, 0, 2)? * k)?.mul(&wk)?.sum_all()?;
                squares + joined + k.sum_all()?
            };
            let (q_out, k_out) = run(&q, &k).expect("rope");
            let got = loss(&q_out, &k_out).and_then(|loss| loss.backward()).expect("gradients");
            let plain = |x: &Tensor| formula(x, &cos, &sin, style).expect("a formula");
            let want = loss(&plain(&q), &plain(&k)).and_then(|loss| loss.backward()).expect("gradients");
            for (name, variable) in [("q", &q), ("k", &k)] {
                let of = |all: &candle_core::backprop::GradStore| all.get(variable).expect("a gradient").clone();
                assert_near(&of(&got), &of(&want), 1e-5, &format!("{name}, {style:?}, thd {thd}, {rotary_dim}"));
            }
        }
    }
}

#[test]
fn have_the_bits_of_the_reference() {
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        for style in [PairStyle::HalfSplit, PairStyle::Interleaved] {
            let q = Var::from_tensor(&numbers(31, &[2, 3, 4, 24], dtype)).expect("a variable");
            let tables = tables(&[9, 8], dtype);
            let dy = numbers(32, &[2, 3, 4, 24], dtype);
            let ids = Tensor::new(&[[8i64, 1, 0, 3], [2, 2, 5, 7]], &on_cpu()).expect("ids");
            let mut rope = Rope::new().rotary_dim(16).position_ids(&ids);
            let mut back = spec(dtype, 24, style);
            back.rotary_dim = 16;
            back.direction = Direction::Backward;
            if style == PairStyle::Interleaved {
                rope = rope.interleaved();
            }
            let out = rope.apply_one(&q, &tables.0, &tables.1).expect("rope");
            let loss = (out * &dy).and_then(|product| product.sum_all()).expect("a loss");
            let gradients = loss.backward().expect("gradients");
            let rows = [[8, 1, 0, 3], [2, 2, 5, 7]];
            let want = turned(&back, &dy, false, &tables, |b, t| rows[b][t]);
            assert_bits(gradients.get(&q).expect("a gradient"), &want, &format!("{dtype:?} {style:?}"));
        }
    }
}

/// The other tensor of the launch may be a constant.
#[test]
fn only_what_wants_one_has_one() {
    let q = Var::from_tensor(&numbers(41, &[1, 2, 3, 8], DType::F32)).expect("a variable");
    let k = numbers(42, &[1, 2, 3, 8], DType::F32);
    let (cos, sin) = tables(&[3, 4], DType::F32);
    let (q_out, k_out) = ropejit_candle::rope(&q, &k, &cos, &sin).expect("rope");
    assert!(q_out.track_op() && !k_out.track_op());
    // A gradient that is one number, repeated.
    let gradients = q_out.sum_all().and_then(|sum| sum.backward()).expect("gradients");
    let ones = Tensor::ones(q.shape(), DType::F32, &on_cpu()).expect("ones");
    let back = Rope::new().apply_one(&ones, &cos, &sin.neg().expect("−sin")).expect("rope");
    assert_bits(gradients.get(&q).expect("a gradient"), &floats(&back), "the gradient of a sum");
    assert!(gradients.get(&k).is_none());
}
