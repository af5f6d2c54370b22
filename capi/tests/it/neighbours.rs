//! A norm and its gradient, packed sequences and a cache, as C hands them over: the bits of the same call in Rust.

#![allow(unsafe_code)] // what C does

use std::ffi::{CString, c_void};
use std::ptr::{null, null_mut};

use half::bf16;
use ropejit::args::{AppendArgs, NormArgs, NormGradient, SavedRsqrt, Slots, Vector};
use ropejit::{CuSeqlens, DeviceChoice, Engine, Layout, Operand, Positions, RopeSpec, Stream, Tables, Tensor, Tuning};
use ropejit_c::{Args, DLDataType, DLDevice, DLTensor, Options, Status};

const TOKENS: usize = 6;
const HEADS: [usize; 2] = [4, 2];
const DIM: usize = 16;

/// Numbers that differ.
fn numbers(seed: usize, len: usize) -> Vec<bf16> {
    (0..len).map(|i| bf16::from_f32(((i * 37 + seed * 101) % 211) as f32 / 105.0 - 1.0)).collect()
}

/// Elements of a type of `DLPack`'s.
trait Code {
    const CODE: (u8, u8);
}

impl Code for f32 {
    const CODE: (u8, u8) = (2, 32);
}

impl Code for bf16 {
    const CODE: (u8, u8) = (4, 16);
}

impl Code for i32 {
    const CODE: (u8, u8) = (0, 32);
}

impl Code for i64 {
    const CODE: (u8, u8) = (0, 64);
}

/// A tensor of `data`, whose shape lives as long as the test.
fn tensor<T: Code>(data: &mut [T], shape: &[usize]) -> DLTensor {
    assert_eq!(data.len(), shape.iter().product::<usize>());
    let shape: Vec<i64> = shape.iter().map(|n| *n as i64).collect();
    DLTensor {
        data: data.as_mut_ptr().cast::<c_void>(),
        device: DLDevice { device_type: 1, device_id: 0 },
        ndim: shape.len() as i32,
        dtype: DLDataType { code: T::CODE.0, bits: T::CODE.1, lanes: 1 },
        shape: shape.leak().as_mut_ptr(),
        strides: null_mut(),
        byte_offset: 0,
    }
}

fn none() -> Args {
    // SAFETY: null pointers and zeros are values that all fields have.
    Args { size: size_of::<Args>(), ..unsafe { std::mem::zeroed() } }
}

/// Calls the library as C does.
fn in_c(spec: &RopeSpec, args: &Args) {
    let [device, tuning, spec] = ["host", "never", &spec.to_string()].map(|text| CString::new(text).expect("a text"));
    let options = Options {
        size: size_of::<Options>(),
        device: device.as_ptr(),
        cache_dir: null(),
        tuning: tuning.as_ptr(),
        lock_file: null(),
        in_memory: 1,
    };
    let (mut engine, mut rope) = (null_mut(), null_mut());
    // SAFETY: texts end with a 0, places are valid; tensors are those of vectors that the test owns, as large as they
    // say.
    unsafe {
        let well = |status: Status| {
            let text = std::ffi::CStr::from_ptr(ropejit_c::ropejit_last_error()).to_string_lossy();
            assert_eq!(status, Status::Ok, "{text}");
        };
        well(ropejit_c::ropejit_open(&raw const options, &raw mut engine));
        well(ropejit_c::ropejit_spec(engine, spec.as_ptr(), &raw mut rope));
        well(ropejit_c::ropejit_apply(rope, args, null_mut()));
        ropejit_c::ropejit_free(rope);
        ropejit_c::ropejit_close(engine);
    }
}

fn engine() -> Engine {
    let builder = Engine::builder().device(DeviceChoice::Host).in_memory().tuning(Tuning::Never);
    builder.build().expect("an engine")
}

fn layouts() -> [Layout; 2] {
    HEADS.map(|heads| Layout::thd(TOKENS, heads, DIM))
}

struct Data {
    q: Vec<bf16>,
    k: Vec<bf16>,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Data {
    fn new() -> Self {
        let angles = || (0..TOKENS * DIM / 2).map(|i| i as f32 * 0.3);
        Self {
            q: numbers(1, TOKENS * HEADS[0] * DIM),
            k: numbers(2, TOKENS * HEADS[1] * DIM),
            cos: angles().map(f32::cos).collect(),
            sin: angles().map(f32::sin).collect(),
        }
    }

    fn tensors(&mut self) -> [DLTensor; 4] {
        [
            tensor(&mut self.q, &[TOKENS, HEADS[0], DIM]),
            tensor(&mut self.k, &[TOKENS, HEADS[1], DIM]),
            tensor(&mut self.cos, &[TOKENS, DIM / 2]),
            tensor(&mut self.sin, &[TOKENS, DIM / 2]),
        ]
    }
}

#[test]
fn a_norm_and_its_gradient() {
    let forward = "bf16 d16 h4/2 half_split per_op table=f32/half pos=cu_seqlens norm=weight_after/torch/ieee";
    let forward: RopeSpec = forward.parse().expect("a spec");
    let backward = forward.to_string().replace("per_op table", "per_op backward table");
    let backward: RopeSpec = backward.parse().expect("a spec");
    let mut weights = [numbers(5, DIM), numbers(6, DIM)];
    let mut cu_seqlens = [0, 2, TOKENS as i32];
    let sums = backward.weight_workspace(TOKENS as u64) as usize;
    let outputs = || (vec![bf16::ZERO; TOKENS * HEADS[0] * DIM], vec![bf16::ZERO; TOKENS * HEADS[1] * DIM]);
    let roots = || HEADS.map(|heads| vec![0f32; TOKENS * heads]);
    let gradients = || [vec![bf16::ZERO; DIM], vec![bf16::ZERO; DIM]];
    let [q_layout, k_layout] = layouts();
    let data = Data::new();
    let (dq, dk) = (numbers(7, data.q.len()), numbers(8, data.k.len()));

    // In Rust.
    let (mut y, mut r, mut dx, mut dw, mut space) = (outputs(), roots(), outputs(), gradients(), vec![0f32; sums]);
    for direction in [&forward, &backward] {
        let back = direction == &backward;
        let (from, to) = if back { ((&dq, &dk), &mut dx) } else { ((&data.q, &data.k), &mut y) };
        let input = |data, layout| Tensor::host_input(data, layout).expect("fits");
        let operand =
            |from, to, layout| Operand::out_of_place(input(from, layout), Tensor::host(to, layout).expect("fits"));
        let [q_root, k_root] = &mut r;
        let [q_weight, k_weight] = &mut dw;
        let args = ropejit::Args {
            norm: Some(NormArgs {
                eps: 1e-6,
                q_weight: Some(Vector::host_input(&weights[0])),
                k_weight: Some(Vector::host_input(&weights[1])),
                rsqrt: Some(SavedRsqrt { q: Vector::host(q_root), k: Some(Vector::host(k_root)) }),
                gradient: back.then(|| NormGradient {
                    q: input(&data.q, q_layout),
                    k: Some(input(&data.k, k_layout)),
                    q_weight: Some(Vector::host(q_weight)),
                    k_weight: Some(Vector::host(k_weight)),
                    workspace: Some(Vector::host(&mut space)),
                }),
            }),
            ..ropejit::Args::new(
                operand(from.0, &mut to.0, q_layout),
                Some(operand(from.1, &mut to.1, k_layout)),
                Tables::host(&data.cos, &data.sin, 1, DIM / 2).expect("tables"),
                Positions::Packed { cu_seqlens: CuSeqlens::host_i32(&cu_seqlens).expect("ascends"), offsets: None },
            )
        };
        engine().rope(direction).expect("a handle").apply(Stream::DEFAULT, &args).expect("applied");
    }

    // In C.
    let (mut data, mut dq, mut dk) = (data, dq, dk);
    let (mut got_y, mut got_r, mut got_dx, mut got_dw) = (outputs(), roots(), outputs(), gradients());
    let shapes = HEADS.map(|heads| [TOKENS, heads, DIM]);
    let [q, k, cos, sin] = data.tensors();
    let [q_out, k_out] = [tensor(&mut got_y.0, &shapes[0]), tensor(&mut got_y.1, &shapes[1])];
    let [q_root, k_root] = &mut got_r;
    let [q_rsqrt, k_rsqrt] = [tensor(q_root, &[TOKENS, HEADS[0]]), tensor(k_root, &[TOKENS, HEADS[1]])];
    let [wq, wk] = &mut weights;
    let [q_weight, k_weight] = [tensor(wq, &[DIM]), tensor(wk, &[DIM])];
    let cu = tensor(&mut cu_seqlens, &[3]);
    let args = Args {
        q: &raw const q,
        k: &raw const k,
        q_out: &raw const q_out,
        k_out: &raw const k_out,
        cos: &raw const cos,
        sin: &raw const sin,
        cu_seqlens: &raw const cu,
        eps: 1e-6,
        q_weight: &raw const q_weight,
        k_weight: &raw const k_weight,
        q_rsqrt: &raw const q_rsqrt,
        k_rsqrt: &raw const k_rsqrt,
        ..none()
    };
    in_c(&forward, &args);
    let [dq, dk] = [tensor(&mut dq, &shapes[0]), tensor(&mut dk, &shapes[1])];
    let [dx_q, dx_k] = [tensor(&mut got_dx.0, &shapes[0]), tensor(&mut got_dx.1, &shapes[1])];
    let [dw_q, dw_k] = &mut got_dw;
    let [dw_q, dw_k] = [tensor(dw_q, &[DIM]), tensor(dw_k, &[DIM])];
    let workspace = tensor(&mut space, &[sums]);
    let args = Args {
        q: &raw const dq,
        k: &raw const dk,
        q_out: &raw const dx_q,
        k_out: &raw const dx_k,
        q_input: &raw const q,
        k_input: &raw const k,
        q_weight_gradient: &raw const dw_q,
        k_weight_gradient: &raw const dw_k,
        workspace: &raw const workspace,
        ..args
    };
    in_c(&backward, &args);
    assert!(got_y == y && y.0 != outputs().0, "forward");
    assert!(got_r == r && r != roots(), "reciprocal roots");
    assert!(got_dx == dx && dx.0 != outputs().0, "gradients");
    assert!(got_dw == dw && dw != gradients(), "gradients of the weights");
}

#[test]
fn a_cache() {
    let spec = "bf16 d16 h4/2 half_split once table=f32/half pos=implicit append=slot_mapping,v=16";
    let spec: RopeSpec = spec.parse().expect("a spec");
    let slots: Vec<i64> = vec![3, 0, -1, 5, 2, 7];
    let (cache_len, cache_shape) = (2 * 4 * HEADS[1] * DIM, [2, 4, HEADS[1], DIM]);
    let v = numbers(9, TOKENS * HEADS[1] * DIM);
    let empty =
        || (vec![bf16::ZERO; TOKENS * HEADS[0] * DIM], vec![bf16::ZERO; cache_len], vec![bf16::ZERO; cache_len]);
    let [q_layout, k_layout] = layouts();
    let mut data = Data::new();

    let mut want = empty();
    let cache = Layout::bshd(2, 4, HEADS[1], DIM);
    let input = |data, layout| Tensor::host_input(data, layout).expect("fits");
    let args = ropejit::Args {
        append: Some(AppendArgs {
            v: Some(input(&v, k_layout)),
            k_cache: Tensor::host(&mut want.1, cache).expect("fits"),
            v_cache: Some(Tensor::host(&mut want.2, cache).expect("fits")),
            slots: Slots::Mapping(Vector::host_input(&slots)),
            q_scale: None,
            k_scale: None,
            v_scale: None,
        }),
        ..ropejit::Args::new(
            Operand::out_of_place(input(&data.q, q_layout), Tensor::host(&mut want.0, q_layout).expect("fits")),
            Some(Operand::read_only(input(&data.k, k_layout))),
            Tables::host(&data.cos, &data.sin, 1, DIM / 2).expect("tables"),
            Positions::Offset(0),
        )
    };
    engine().rope(&spec).expect("a handle").apply(Stream::DEFAULT, &args).expect("applied");
    drop(args);

    let (mut got, mut v, mut slots) = (empty(), v, slots);
    let [q, k, cos, sin] = data.tensors();
    let q_out = tensor(&mut got.0, &[TOKENS, HEADS[0], DIM]);
    let (k_cache, v_cache) = (tensor(&mut got.1, &cache_shape), tensor(&mut got.2, &cache_shape));
    let (v, slots) = (tensor(&mut v, &[TOKENS, HEADS[1], DIM]), tensor(&mut slots, &[TOKENS]));
    let args = Args {
        q: &raw const q,
        k: &raw const k,
        q_out: &raw const q_out,
        cos: &raw const cos,
        sin: &raw const sin,
        v: &raw const v,
        k_cache: &raw const k_cache,
        v_cache: &raw const v_cache,
        slot_mapping: &raw const slots,
        ..none()
    };
    in_c(&spec, &args);
    assert!(got == want && want.1 != empty().1, "what is stored, and q");
}
