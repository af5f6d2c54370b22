//! On a GPU: the bits of the CPU, on candle's streams. Where there is none, it says so.

use std::sync::OnceLock;

use candle_core::{DType, Device, Result, Tensor, Var};
use ropejit::{DeviceChoice, Engine};
use ropejit_candle::{Flavour, QkNormRope, Rope};

use crate::data::{floats, numbers, on_cpu, tables};

/// A GPU with the default stream, and with a stream of its own; none where there is none.
fn devices() -> &'static [Device] {
    static DEVICES: OnceLock<Vec<Device>> = OnceLock::new();
    DEVICES.get_or_init(|| match Device::new_cuda(0).and_then(|gpu| Ok(vec![gpu, Device::new_cuda_with_stream(0)?])) {
        Ok(devices) => {
            let engine = Engine::builder().device(DeviceChoice::Cuda(0)).in_memory().build().expect("an engine");
            ropejit_candle::set_engine(&devices[0], engine).expect("set");
            devices
        }
        Err(e) => {
            assert!(std::env::var_os("ROPEJIT_REQUIRE_GPU").is_none(), "no GPU: {e}");
            eprintln!("SKIPPED, no GPU: {e}");
            Vec::new()
        }
    })
}

/// What is computed of tensors.
type Computation<'a> = &'a dyn Fn(&[Tensor]) -> Result<(Tensor, Tensor)>;

/// A result and the gradients of variables, for one device.
fn run(device: &Device, tensors: &[Tensor], f: Computation<'_>) -> Result<Vec<Vec<f32>>> {
    let variables: Vec<Var> = tensors.iter().map(|t| Var::from_tensor(&t.to_device(device)?)).collect::<Result<_>>()?;
    let given: Vec<Tensor> = variables.iter().map(|v| v.as_tensor().clone()).collect();
    let (q, k) = f(&given)?;
    // Gradients of the results that differ from element to element.
    let dy = |y: &Tensor, seed| numbers(seed, y.dims(), y.dtype()).to_device(device);
    let loss = ((&q * dy(&q, 91)?)?.sum_all()? + (&k * dy(&k, 92)?)?.sum_all()?)?;
    let gradients = loss.backward()?;
    let mut all = vec![floats(&q), floats(&k)];
    all.extend(variables.iter().filter_map(|v| gradients.get(v)).map(floats));
    Ok(all)
}

fn same(gpu: &Device, tensors: &[Tensor], f: Computation<'_>, what: &str) {
    let (here, there) = (run(&on_cpu(), tensors, f).expect(what), run(gpu, tensors, f).expect(what));
    assert_eq!(here.len(), there.len(), "{what}");
    for (n, (here, there)) in here.iter().zip(&there).enumerate() {
        assert_eq!(here.len(), there.len(), "{what}");
        for (i, (a, b)) in here.iter().zip(there).enumerate() {
            assert_eq!(a.to_bits(), b.to_bits(), "{what}, result {n}, element {i}: {a} on the CPU, {b} on the GPU");
        }
    }
}

#[test]
fn the_rotation_has_the_bits_of_the_cpu() {
    for gpu in devices() {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let qkv = numbers(1, &[2, 33, 8, 64], dtype);
            let (cos, sin) = tables(&[40, 24], dtype);
            let ids = (0..66).map(|i| i * 7 % 37).collect::<Vec<u32>>();
            let ids = Tensor::from_vec(ids, (2, 33), &on_cpu()).expect("ids");
            let forms = [Rope::new(), Rope::new().interleaved(), Rope::new().offset(5)];
            for (n, form) in forms.into_iter().enumerate() {
                let f = |t: &[Tensor]| {
                    let device = t[0].device();
                    let (cos, sin) = (cos.to_device(device)?, sin.to_device(device)?);
                    let mut form = form.clone().rotary_dim(48);
                    if n == 1 {
                        form = form.position_ids(&ids.to_device(device)?);
                    }
                    // Views of what lies [batch, tokens, heads, head_dim], in both orders.
                    let (q, k) = (t[0].narrow(2, 0, 4)?, t[0].narrow(2, 4, 2)?);
                    if n == 2 {
                        return form.thd().apply(&q, &k, &cos, &sin);
                    }
                    form.apply(&q.transpose(1, 2)?, &k.transpose(1, 2)?, &cos, &sin)
                };
                same(gpu, std::slice::from_ref(&qkv), &f, &format!("{dtype:?}, form {n}"));
            }
        }
    }
}

#[test]
fn norm_and_rotation_have_the_bits_of_the_cpu() {
    for gpu in devices() {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let shapes: [&[usize]; 4] = [&[2, 4, 33, 64], &[2, 2, 33, 64], &[64], &[64]];
            let tensors: Vec<Tensor> = (1..).zip(shapes).map(|(seed, shape)| numbers(seed, shape, dtype)).collect();
            let (cos, sin) = tables(&[33, 32], dtype);
            for flavour in [Flavour::WeightAfter, Flavour::OnePlusWeight] {
                let f = |t: &[Tensor]| {
                    let (cos, sin) = (cos.to_device(t[0].device())?, sin.to_device(t[0].device())?);
                    QkNormRope::new(1e-6).flavour(flavour).apply(&t[0], &t[1], &t[2], &t[3], &cos, &sin)
                };
                same(gpu, &tensors, &f, &format!("{dtype:?} {flavour:?}"));
            }
        }
    }
}

#[test]
fn a_position_outside_is_reported_afterwards() {
    let Some(gpu) = devices().first() else { return };
    let x = numbers(1, &[1, 2, 3, 16], DType::F32).to_device(gpu).expect("moved");
    let (cos, sin) = tables(&[4, 8], DType::F32);
    let (cos, sin) = (cos.to_device(gpu).expect("moved"), sin.to_device(gpu).expect("moved"));
    let ids = Tensor::new(&[0u32, 4, 1], gpu).expect("ids");
    let y = Rope::new().position_ids(&ids).apply_one(&x, &cos, &sin).expect("queued");
    let told = ropejit_candle::check(gpu).expect_err("a token is outside").to_string();
    assert!(told.starts_with("position_ids: token 1 "), "{told}");
    assert!(floats(&y)[16..32].iter().all(|y| y.is_nan()));
    // What the other device says of a tensor that is elsewhere.
    let e = Rope::new().apply_one(&x, &cos.to_device(&on_cpu()).expect("moved"), &sin).expect_err("elsewhere");
    assert!(e.to_string().starts_with("cos: is on Cpu, q on Cuda"), "{e}");
}
