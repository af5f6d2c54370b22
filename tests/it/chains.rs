//! Calls back to back on one stream, each needing what the one ahead of it writes: overlapped launches must not show.

#![allow(unsafe_code)]

use std::ffi::c_void;

use ropejit::args::{Args, Operand, PositionIds, Positions, Tables, Tensor};
use ropejit::device::Memory;
use ropejit::rope::reference;
use ropejit::{DType, Engine, Layout, PositionForm, RopeSpec, Stream};

fn upload(engine: &Engine, values: &[f32]) -> Box<dyn Memory> {
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_ne_bytes()).collect();
    let mut memory = engine.device().alloc(bytes.len()).expect("allocated");
    memory.upload(0, &bytes).expect("copied");
    memory
}

fn download(memory: &dyn Memory, count: usize) -> Vec<f32> {
    let mut bytes = vec![0; 4 * count];
    memory.download(0, &mut bytes).expect("copied");
    bytes.chunks_exact(4).map(|b| f32::from_ne_bytes([b[0], b[1], b[2], b[3]])).collect()
}

fn at(memory: &dyn Memory, element: usize) -> *mut c_void {
    (memory.address() + 4 * element as u64) as *mut c_void
}

/// Turns `from` to `to` by the rows of a table, f32, tokens of one head of `dim`.
struct Turn<'a> {
    spec: &'a RopeSpec,
    tokens: usize,
    cos: &'a dyn Memory,
    sin: &'a dyn Memory,
    rows: usize,
}

impl Turn<'_> {
    fn apply(&self, engine: &Engine, from: *mut c_void, to: Option<*mut c_void>, ids: Option<*mut c_void>) {
        let dim = self.spec.head_dim as usize;
        let layout = Layout::thd(self.tokens, 1, dim);
        // SAFETY: the tests allocate as many elements, rows and numbers, and wait before they free them.
        let args = unsafe {
            let input = Tensor::from_raw(from, DType::F32, layout);
            Args {
                q: match to {
                    None => Operand::in_place(input),
                    Some(to) => Operand::out_of_place(input, Tensor::from_raw(to, DType::F32, layout)),
                },
                k: None,
                tables: Tables::from_raw(
                    at(self.cos, 0),
                    at(self.sin, 0),
                    DType::F32,
                    self.rows,
                    dim / 2,
                    [0, dim as i64 / 2],
                ),
                positions: match ids {
                    None => Positions::Offset(0),
                    Some(ids) => Positions::Ids(PositionIds::from_raw(ids, false, [0, 0, 1])),
                },
                norm: None,
                append: None,
            }
        };
        engine.rope(self.spec).expect("valid").apply(Stream::DEFAULT, &args).expect("applied");
    }
}

/// Thirty turns in place, one after the other: each reads what the one before has written.
pub fn turns_in_place(engine: &Engine) {
    for tokens in [1usize, 40, 3000] {
        let spec = RopeSpec::new(DType::F32, 64, 1, 0);
        let values: Vec<f32> = (0..tokens * 64).map(|i| (i % 97) as f32 / 16.0 - 3.0).collect();
        let angle = |i: usize| (i % 1013) as f32 * 0.37;
        let cos: Vec<f32> = (0..tokens * 32).map(|i| angle(i).cos()).collect();
        let sin: Vec<f32> = (0..tokens * 32).map(|i| angle(i).sin()).collect();
        let (q, cos_m, sin_m) = (upload(engine, &values), upload(engine, &cos), upload(engine, &sin));
        let turn = Turn { spec: &spec, tokens, cos: cos_m.as_ref(), sin: sin_m.as_ref(), rows: tokens };
        (0..30).for_each(|_| turn.apply(engine, at(q.as_ref(), 0), None, None));
        engine.device().synchronize().expect("ran");
        let mut want = values;
        for _ in 0..30 {
            for token in 0..tokens {
                for i in 0..32 {
                    let (a, b) = (token * 64 + i, token * 64 + i + 32);
                    let cs = (cos[token * 32 + i], sin[token * 32 + i]);
                    (want[a], want[b]) = reference::rotate(&spec, (want[a], want[b]), cs);
                }
            }
        }
        assert!(download(q.as_ref(), want.len()) == want, "{tokens} tokens differ after thirty turns");
    }
}

/// A long kernel writes the `position_ids` that the short one behind it reads.
pub fn ids_from_the_kernel_ahead(engine: &Engine) {
    const NUMBERS: usize = 1 << 22;
    let still = RopeSpec::new(DType::F32, 64, 1, 0);
    let moved = RopeSpec::new(DType::F32, 64, 1, 0).with_positions(PositionForm::Ids32);
    // An angle of 0 copies: numbers below 2^23 are subnormal f32, which times 1 stay what they are.
    let rows = NUMBERS / 64;
    let (ones, zeros) = (upload(engine, &vec![1.0; rows * 32]), upload(engine, &vec![0.0; rows * 32]));
    let copy = Turn { spec: &still, tokens: rows, cos: ones.as_ref(), sin: zeros.as_ref(), rows };
    let fresh: Vec<f32> = (0..NUMBERS as u32).map(|i| f32::from_bits(1 + i % 7)).collect();
    let fresh = upload(engine, &fresh);
    let stale = vec![f32::from_bits(0); NUMBERS];
    let mut ids = upload(engine, &stale);
    let cos: Vec<f32> = (0..8 * 32).map(|i| (i as f32).cos()).collect();
    let sin: Vec<f32> = (0..8 * 32).map(|i| (i as f32).sin()).collect();
    let (cos_m, sin_m) = (upload(engine, &cos), upload(engine, &sin));
    let tokens = 4;
    let short = Turn { spec: &moved, tokens, cos: cos_m.as_ref(), sin: sin_m.as_ref(), rows: 8 };
    let values: Vec<f32> = (0..tokens * 64).map(|i| i as f32 / 32.0 - 3.0).collect();
    let (input, output) = (upload(engine, &values), upload(engine, &vec![0.0; tokens * 64]));
    let mut want = values.clone();
    for token in 0..tokens {
        let row = 1 + (NUMBERS - tokens + token) % 7;
        for i in 0..32 {
            let (a, b) = (token * 64 + i, token * 64 + i + 32);
            let cs = (cos[row * 32 + i], sin[row * 32 + i]);
            (want[a], want[b]) = reference::rotate(&moved, (values[a], values[b]), cs);
        }
    }
    for round in 0..40 {
        let bytes: Vec<u8> = stale.iter().flat_map(|v| v.to_ne_bytes()).collect();
        ids.upload(0, &bytes).expect("copied");
        copy.apply(engine, at(fresh.as_ref(), 0), Some(at(ids.as_ref(), 0)), None);
        let last = at(ids.as_ref(), NUMBERS - tokens);
        short.apply(engine, at(input.as_ref(), 0), Some(at(output.as_ref(), 0)), Some(last));
        engine.device().synchronize().expect("ran");
        assert!(download(output.as_ref(), want.len()) == want, "round {round}: stale position_ids were read");
    }
    engine.rope(&moved).expect("valid").check().expect("all inside");
}

#[test]
fn on_the_host() {
    let engine = crate::host::engine(ropejit::Tuning::Never);
    turns_in_place(&engine);
    ids_from_the_kernel_ahead(&engine);
}
