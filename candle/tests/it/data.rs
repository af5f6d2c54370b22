//! Numbers to turn, and what they turn to.

use std::sync::{Arc, Once};

use candle_core::{D, DType, Device, Result, Tensor};
use ropejit::device::host::Host;
use ropejit::rope::reference;
use ropejit::{Engine, RopeSpec, Tuning};

/// An engine that keeps nothing on disk, for all tests of this process.
pub fn on_cpu() -> Device {
    static SET: Once = Once::new();
    SET.call_once(|| {
        // Kernels that serve all shapes: few to compile.
        let device = Arc::new(Host::open().with_portable());
        let engine = Engine::builder().with_device(device).in_memory().tuning(Tuning::Never).build();
        ropejit_candle::set_engine(&Device::Cpu, engine.expect("an engine")).expect("set");
    });
    Device::Cpu
}

/// Numbers around 0 that differ from seed to seed: every one of them below 2.
pub fn numbers(seed: u32, shape: &[usize], dtype: DType) -> Tensor {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as f32 / u32::MAX as f32 * 4.0 - 2.0
    };
    let all: Vec<f32> = (0..shape.iter().product()).map(|_| next()).collect();
    Tensor::from_vec(all, shape, &on_cpu()).expect("a tensor").to_dtype(dtype).expect("of the type")
}

/// cos and sin of `[.., rows, pairs]` angles, no two rows alike.
pub fn tables(shape: &[usize], dtype: DType) -> (Tensor, Tensor) {
    let angles = numbers(77, shape, DType::F32);
    let of = |t: Result<Tensor>| t.expect("a table").to_dtype(dtype).expect("of the type");
    (of(angles.cos()), of(angles.sin()))
}

pub fn floats(t: &Tensor) -> Vec<f32> {
    t.to_dtype(DType::F32).expect("f32").flatten_all().expect("flat").to_vec1().expect("numbers")
}

pub fn assert_bits(got: &Tensor, want: &[f32], what: &str) {
    let got = floats(got);
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert_eq!(got.to_bits(), want.to_bits(), "{what}: element {i} is {got}, {want} is right");
    }
}

/// What the reference makes of `x`, in the order of `x`: `[batch, heads, tokens, head_dim]`, or with `thd`
/// `[batch, tokens, heads, head_dim]`. `row(b, t)` is the row of cos and sin of a token.
pub fn turned(
    spec: &RopeSpec,
    x: &Tensor,
    thd: bool,
    tables: &(Tensor, Tensor),
    row: impl Fn(usize, usize) -> usize,
) -> Vec<f32> {
    let mut out = Vec::new();
    each_head(spec, x, thd, tables, row, |head, angles| out.extend(reference::turn(spec, head, angles)));
    out
}

/// Calls `f` with each head of `x` and its angles.
pub fn each_head(
    spec: &RopeSpec,
    x: &Tensor,
    thd: bool,
    (cos, sin): &(Tensor, Tensor),
    row: impl Fn(usize, usize) -> usize,
    mut f: impl FnMut(&[f32], &[(f32, f32)]),
) {
    let (all, (b, first, second, d)) = (floats(x), x.dims4().expect("four dimensions"));
    let (rows, width) = (cos.dim(D::Minus2).expect("rows"), cos.dim(D::Minus1).expect("width"));
    let (cos_all, sin_all, own) = (floats(cos), floats(sin), cos.rank() == 3);
    for (n, head) in all.chunks(d).enumerate() {
        let (sequence, token) = (n / (first * second), if thd { n / second % first } else { n % second });
        assert!(sequence < b);
        let at = if own { sequence * rows } else { 0 } + row(sequence, token);
        let pairs = 0..spec.rotary_dim as usize / 2;
        let angles: Vec<(f32, f32)> = pairs.map(|i| (cos_all[at * width + i], sin_all[at * width + i])).collect();
        f(head, &angles);
    }
}
