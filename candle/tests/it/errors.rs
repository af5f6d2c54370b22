//! What is wrong is said by name.

use candle_core::{DType, Device, Result, Tensor, Var};
use ropejit::{DeviceChoice, Engine};
use ropejit_candle::{Flavour, QkNormRope, Rope, rope};

use crate::data::{numbers, on_cpu, tables};

fn refused<T>(result: Result<T>, start: &str) {
    let text = result.err().unwrap_or_else(|| panic!("not refused: {start}")).to_string();
    assert!(text.starts_with(start), "'{text}' does not begin with '{start}'");
}

#[test]
fn arguments_are_named() {
    let device = on_cpu();
    let x = |shape: &[usize]| numbers(1, shape, DType::F32);
    let (q, k) = (x(&[2, 4, 3, 16]), x(&[2, 2, 3, 16]));
    let (cos, sin) = tables(&[8, 8], DType::F32);
    let one = |rope: Rope, q: &Tensor| rope.apply_one(q, &cos, &sin);

    refused(rope(&x(&[4, 3, 16]), &k, &cos, &sin), "q: has the shape [4, 3, 16], [batch, heads, tokens, head_dim]");
    refused(one(Rope::new(), &q.to_dtype(DType::F64).expect("f64")), "q: is F64");
    refused(one(Rope::new(), &q.transpose(2, 3).expect("a view")), "q: must have contiguous heads");
    refused(rope(&q, &k.to_dtype(DType::F16).expect("f16"), &cos, &sin), "k: is F16, q is F32");
    refused(rope(&q, &x(&[2, 2, 4, 16]), &cos, &sin), "k: has 2 × 4 tokens, q has 2 × 3");
    refused(rope(&q, &x(&[2, 2, 3, 18]), &cos, &sin), "k: has 2 heads of 18");
    refused(one(Rope::new(), &x(&[1, 1, 3, 15])), "head_dim: must be even");
    refused(one(Rope::new(), &x(&[1, 1, 3, 20])), "cos: has rows of 8, 10 or 20 are needed");
    refused(one(Rope::new().rotary_dim(6), &q), "cos: has rows of 8, 3 or 6 are needed: rotary_dim is 6");
    refused(one(Rope::new().rotary_dim(32), &q), "rotary_dim: must be even and between 2 and head_dim (16)");
    refused(one(Rope::new().offset(6), &q), "offset: 3 tokens from position 6 on do not fit tables of 8 rows");
    refused(one(Rope::new().offset(usize::MAX), &q), "offset");

    let half = |t: &Tensor| t.to_dtype(DType::F16).expect("f16");
    refused(rope(&q, &k, &half(&cos), &half(&sin)), "cos: is f16, f32 or the type of q (f32)");
    refused(rope(&q, &k, &cos, &sin.narrow(0, 0, 7).expect("a view")), "sin: is [7, 8] of F32, cos is [8, 8] of F32");
    refused(rope(&q, &k, &cos.t().expect("a view"), &sin), "cos: must have contiguous rows");
    let wide = tables(&[8, 9], DType::F32).1.narrow(1, 0, 8).expect("a view");
    refused(rope(&q, &k, &cos, &wide), "sin: lies in memory otherwise");
    let three = tables(&[3, 8, 8], DType::F32);
    refused(rope(&q, &k, &three.0, &three.1), "cos: has the shape [3, 8, 8], [rows, width] or [2, rows, width]");
    let cos_var = Var::from_tensor(&cos).expect("a variable");
    refused(rope(&q, &k, &cos_var, &sin), "cos: wants a gradient");
    assert!(rope(&q, &k, &cos_var.as_detached_tensor(), &sin).is_ok());

    let ids = |rows: &[u32], shape: &[usize]| Tensor::from_slice(rows, shape, &device).expect("ids");
    let at = |ids: &Tensor| one(Rope::new().position_ids(ids), &q);
    refused(at(&ids(&[0, 1], &[2])), "position_ids: have the shape [2], [3] or [2, 3]");
    refused(at(&x(&[3])), "position_ids: are F32");
    // The CPU says it at once, and only once.
    refused(at(&ids(&[0, 8, 1, 0, 0, 0], &[2, 3])), "position_ids: token 1 stands at a position outside");
    refused(at(&ids(&[0, 1, 2, 0, 1, u32::MAX], &[2, 3])), "position_ids: token 5");
    assert!(at(&ids(&[0, 7, 1], &[3])).is_ok());
    ropejit_candle::check(&device).expect("nothing is left to say");
}

#[test]
fn norms_name_their_weights() {
    on_cpu();
    let (q, w) = (numbers(1, &[1, 2, 3, 16], DType::F32), numbers(2, &[16], DType::F32));
    let (cos, sin) = tables(&[3, 8], DType::F32);
    let form = QkNormRope::new(1e-6);
    refused(form.apply_one(&q, None, &cos, &sin), "q_weight: is missing");
    refused(form.apply(&q, &q, &w, None, &cos, &sin), "k_weight: is missing");
    refused(form.apply_one(&q, &w.narrow(0, 0, 8).expect("a view"), &cos, &sin), "q_weight: must be contiguous, [16]");
    refused(form.apply_one(&q, &w.to_dtype(DType::BF16).expect("bf16"), &cos, &sin), "q_weight: is BF16");
    refused(form.clone().flavour(Flavour::NoWeight).apply_one(&q, &w, &cos, &sin), "q_weight: is given");
    refused(QkNormRope::new(-1.0).apply_one(&q, &w, &cos, &sin), "eps: must be 0 or above");
    refused(form.rsqrt(ropejit_candle::Rsqrt::Approx).apply_one(&q, &w, &cos, &sin), "norm.rsqrt");
}

#[test]
fn an_engine_serves_its_own_kind_of_device() {
    let target = Engine::builder().arch("sm_90").in_memory().build().expect("an engine");
    refused(ropejit_candle::set_engine(&Device::Cpu, target), "engine: computes on");
    let device = on_cpu();
    assert!(ropejit_candle::engine(&device).expect("an engine").device().runs());
    let other = Engine::builder().device(DeviceChoice::Host).in_memory().build().expect("an engine");
    assert_eq!(other.device().context(), 0);
}
