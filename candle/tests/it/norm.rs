//! QK-norm and rotation: bits against the reference, gradients against candle's own of a formula.

use candle_core::{D, DType, Result, Tensor, Var};
use ropejit::rope::{Flavour, Norm, PairStyle, Rsqrt, reference};
use ropejit::{Direction, RopeSpec};
use ropejit_candle::{QkNormRope, Rope, qk_norm_rope};

use crate::data::{assert_bits, each_head, floats, numbers, tables};
use crate::gradients::assert_near;
use crate::rope::spec;

const EPS: f32 = 1e-6;
const FLAVOURS: [Flavour; 4] = [Flavour::WeightAfter, Flavour::OnePlusWeight, Flavour::WeightF32, Flavour::NoWeight];

fn normed(dtype: DType, flavour: Flavour, after_rope: bool) -> RopeSpec {
    let mut norm = Norm::new(flavour).with_rsqrt(Rsqrt::Ieee);
    norm.after_rope = after_rope;
    spec(dtype, 32, PairStyle::HalfSplit).with_norm(norm)
}

fn expected(spec: &RopeSpec, x: &Tensor, weight: &[f32], tables: &(Tensor, Tensor)) -> Vec<f32> {
    let mut out = Vec::new();
    each_head(
        spec,
        x,
        false,
        tables,
        |_, t| t,
        |head, angles| {
            let root = |v| reference::root(v);
            out.extend(reference::forward(spec, head, weight, EPS, root, angles).y);
        },
    );
    out
}

#[test]
fn forward_has_the_bits_of_the_reference() {
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let tables = tables(&[5, 16], dtype);
        let (q, k) = (numbers(1, &[2, 4, 5, 32], dtype), numbers(2, &[2, 2, 5, 32], dtype));
        let (wq, wk) = (numbers(3, &[32], dtype), numbers(4, &[32], dtype));
        for flavour in FLAVOURS {
            for after_rope in [false, true] {
                let spec = normed(dtype, flavour, after_rope);
                let form = QkNormRope::new(EPS).flavour(flavour);
                let form = if after_rope { form.after_rope() } else { form };
                let weights = (flavour != Flavour::NoWeight).then_some((&wq, &wk));
                let (q_out, k_out) =
                    form.apply(&q, &k, weights.map(|w| w.0), weights.map(|w| w.1), &tables.0, &tables.1).expect("norm");
                let of = |w: &Tensor| if weights.is_some() { floats(w) } else { Vec::new() };
                let what = format!("{dtype:?} {flavour:?} {after_rope}");
                assert_bits(&q_out, &expected(&spec, &q, &of(&wq), &tables), &what);
                assert_bits(&k_out, &expected(&spec, &k, &of(&wk), &tables), &what);
                let alone = form.apply_one(&k, weights.map(|w| w.1), &tables.0, &tables.1).expect("norm");
                assert_bits(&alone, &floats(&k_out), &what);
            }
        }
        let (q_out, _) = qk_norm_rope(&q, &k, &wq, &wk, &tables.0, &tables.1, EPS).expect("norm");
        let spec = normed(dtype, Flavour::WeightAfter, false);
        assert_bits(&q_out, &expected(&spec, &q, &floats(&wq), &tables), "by the function");
    }
}

/// Qwen 3's q and k in operations of candle's.
fn formula(x: &Tensor, weight: Option<&Tensor>, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let mean = x.sqr()?.mean_keepdim(D::Minus1)?;
    let mut n = x.broadcast_div(&(mean + f64::from(EPS))?.sqrt()?)?;
    if let Some(weight) = weight {
        n = n.broadcast_mul(weight)?;
    }
    let half = cos.dim(D::Minus1)?;
    let (a, b) = (n.narrow(D::Minus1, 0, half)?, n.narrow(D::Minus1, half, half)?);
    let y = (a.broadcast_mul(cos)? - b.broadcast_mul(sin)?)?;
    Tensor::cat(&[y, (b.broadcast_mul(cos)? + a.broadcast_mul(sin)?)?], D::Minus1)
}

#[test]
fn gradients_agree_with_candles_own_of_a_formula() {
    let variable = |seed, shape: &[usize]| Var::from_tensor(&numbers(seed, shape, DType::F32)).expect("a variable");
    let (q, k) = (variable(11, &[2, 4, 5, 32]), variable(12, &[2, 2, 5, 32]));
    let (wq, wk) = (variable(13, &[32]), variable(14, &[32]));
    let (cos, sin) = tables(&[5, 16], DType::F32);
    let weights = (numbers(15, &[2, 4, 5, 32], DType::F32), numbers(16, &[2, 2, 5, 32], DType::F32));
    let loss = |q: &Tensor, k: &Tensor| (q * &weights.0)?.sum_all()? + (k.sqr()? * &weights.1)?.sum_all()?;
    for flavour in FLAVOURS {
        let form = QkNormRope::new(EPS).flavour(flavour);
        let given = (flavour != Flavour::NoWeight).then_some((wq.as_tensor(), wk.as_tensor()));
        let (q_out, k_out) = form.apply(&q, &k, given.map(|w| w.0), given.map(|w| w.1), &cos, &sin).expect("norm");
        let got = loss(&q_out, &k_out).and_then(|loss| loss.backward()).expect("gradients");
        let plain = |x: &Tensor, w: &Tensor| {
            let w = match flavour {
                Flavour::OnePlusWeight => Some((w + 1.0).expect("1 + w")),
                Flavour::NoWeight => None,
                _ => Some(w.clone()),
            };
            formula(x, w.as_ref(), &cos, &sin).expect("a formula")
        };
        let want = loss(&plain(&q, &wq), &plain(&k, &wk)).and_then(|loss| loss.backward()).expect("gradients");
        for (name, variable) in [("q", &q), ("k", &k), ("wq", &wq), ("wk", &wk)] {
            let what = format!("{name}, {flavour:?}");
            match (got.get(variable), want.get(variable)) {
                (Some(got), Some(want)) => assert_near(got, want, 2e-5, &what),
                (got, want) => {
                    assert!(got.is_none() && want.is_none() && flavour == Flavour::NoWeight, "{what}");
                }
            }
        }
    }
}

/// The gradient of q to the bit, of a view in the other layout.
#[test]
fn gradients_have_the_bits_of_the_reference() {
    for dtype in [DType::F32, DType::BF16] {
        let x = numbers(21, &[1, 6, 3, 32], dtype);
        let q = Var::from_tensor(&x.transpose(1, 2).and_then(|x| x.contiguous()).expect("thd")).expect("a variable");
        let (weight, dy, tables) =
            (numbers(22, &[32], dtype), numbers(23, &[1, 6, 3, 32], dtype), tables(&[3, 16], dtype));
        let form = QkNormRope::new(EPS).rope(Rope::new());
        let out = form.apply_one(&q.transpose(1, 2).expect("a view"), &weight, &tables.0, &tables.1).expect("norm");
        let loss = (out * &dy).and_then(|product| product.sum_all()).expect("a loss");
        let got = loss.backward().expect("gradients");
        let got = got.get(&q).expect("a gradient").transpose(1, 2).expect("a view");
        let mut spec = normed(dtype, Flavour::WeightAfter, false);
        let mut heads = Vec::new();
        each_head(&spec, &dy, false, &tables, |_, t| t, |head, angles| heads.push((head.to_vec(), angles.to_vec())));
        let forward = spec.clone();
        spec.direction = Direction::Backward;
        let (mut want, weight) = (Vec::new(), floats(&weight));
        for ((dy, angles), x) in heads.iter().zip(floats(&x).chunks(32)) {
            let root = |v| reference::root(v);
            let r = reference::forward(&forward, x, &weight, EPS, root, angles).rsqrt.expect("a root");
            let norm = spec.norm.expect("a norm");
            want.extend(reference::backward(&spec, norm, dy, x, &weight, r, angles).dx);
        }
        assert_bits(&got, &want, &format!("{dtype:?}"));
    }
}
