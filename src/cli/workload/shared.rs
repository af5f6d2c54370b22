//! What the calls of one model share: tables, positions, weights, scales, and where tokens are stored.

// Vectors at addresses of memory that is kept here.
#![allow(unsafe_code)]

use std::ffi::c_void;

use ropejit::args::{NumberType, Slots, Vector, VectorInput};
use ropejit::device::Memory;
use ropejit::rope::scaling::{TableMode, cos_sin_table};
use ropejit::rope::{Fp8, ScaleUse, SlotForm};
use ropejit::{Angles, DType, Engine, Error, PositionForm, Result, RopeSpec};

use super::super::spec::Chosen;
use super::parts::BLOCK;

/// Where a vector starts.
const STARTS: usize = 256;
/// Of f32 numbers.
pub const F32: NumberType = NumberType::Element(DType::F32);

/// The norm's ε of most models.
pub const EPS: f32 = 1e-6;

/// The next of repeatable numbers from 0 up to 1 (xorshift64, Marsaglia 2003).
pub fn random(state: &mut u64) -> f32 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    (*state >> 40) as f32 / (1u64 << 24) as f32
}

pub struct Shared {
    /// cos, sin, and position ids.
    pub memory: [Box<dyn Memory>; 3],
    /// In place of the tables, when they are the engine's.
    pub angles: Option<Angles>,
    /// For fused specs.
    pub neighbours: Option<Neighbours>,
}

impl Shared {
    /// Tables and positions of one model, on the device.
    pub fn new(engine: &Engine, chosen: &Chosen, batch: usize, tokens: usize) -> Result<Self> {
        let spec = &chosen.spec;
        let mode = spec.angles.unwrap_or(TableMode::Accurate);
        let (cos, sin) = cos_sin_table(&chosen.frequencies, 0..tokens as u64, mode);
        let (half, width) = (spec.rotary_dim as usize / 2, spec.table_width() as usize);
        let table = |values: &[f32]| {
            let mut bytes = vec![0u8; tokens * width * spec.table.dtype.size()];
            for (row, values) in values.chunks_exact(half).enumerate() {
                for i in 0..width {
                    spec.table.dtype.write(&mut bytes, row * width + i, values[i % half]);
                }
            }
            bytes
        };
        let axes = if spec.mrope.is_some() { 3 } else { 1 };
        let numbers: Vec<i64> = match spec.positions {
            PositionForm::Implicit => vec![0],
            PositionForm::Ids32 | PositionForm::Ids64 => (0..axes).flat_map(|_| 0..tokens as i64).collect(),
            PositionForm::Offsets32 | PositionForm::Offsets64 => vec![0; batch],
            PositionForm::CuSeqlens | PositionForm::CuSeqlens64 => vec![0, tokens as i64],
        };
        let ids = integers(&numbers, spec.positions.is_wide())?;
        let upload = |bytes: &[u8]| {
            let mut memory = engine.device().alloc(bytes.len())?;
            memory.upload(0, bytes)?;
            Ok::<_, Error>(memory)
        };
        let memory = [upload(&table(&cos))?, upload(&table(&sin))?, upload(&ids)?];
        let angles = spec.angles.map(|mode| engine.angles(&chosen.parameters, mode)).transpose()?;
        let neighbours = spec.is_fused().then(|| Neighbours::new(engine, spec, batch * tokens)).transpose()?;
        Ok(Self { memory, angles, neighbours })
    }
}

/// As i64 when `wide`, else as i32.
fn integers(numbers: &[i64], wide: bool) -> Result<Vec<u8>> {
    if wide {
        return Ok(numbers.iter().flat_map(|n| n.to_ne_bytes()).collect());
    }
    let mut bytes = Vec::with_capacity(4 * numbers.len());
    for &n in numbers {
        let n =
            i32::try_from(n).map_err(|_| Error::argument("--positions", format!("{n} is no i32: use an i64 form")))?;
        bytes.extend(n.to_ne_bytes());
    }
    Ok(bytes)
}

/// The block that is filled as number `n` of so many: the last first.
pub fn block_of(n: usize, blocks: usize) -> usize {
    blocks - 1 - n
}

/// What stands beside q and k: weights, scales, reciprocal roots, slots of a cache, and the gradients of weights.
pub struct Neighbours {
    pub memory: Box<dyn Memory>,
    tokens: usize,
    /// Of q, then of k; elements.
    pub weights: [usize; 2],
    /// Of q, k and v, a number a head; f32.
    pub scales: [usize; 3],
    /// Of q, then of k, for each head of each token; f32.
    pub roots: [usize; 2],
    /// The slot mapping, or page tables: indices, where a request's begin, requests, positions.
    slots: [usize; 4],
    /// Of the weights of q and k.
    pub gradients: [usize; 2],
    /// Behind all else: a part of it may be left unwritten, and nobody reads it.
    pub workspace: usize,
}

/// Bytes that are laid out one array after the other.
#[derive(Default)]
struct Bytes(Vec<u8>);

impl Bytes {
    fn place(&mut self, bytes: impl IntoIterator<Item = u8>) -> usize {
        let start = self.0.len();
        self.0.extend(bytes);
        self.0.resize(self.0.len().next_multiple_of(STARTS), 0);
        start
    }
}

impl Neighbours {
    fn new(engine: &Engine, spec: &RopeSpec, tokens: usize) -> Result<Self> {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut near_one = || 0.5 + random(&mut state);
        let mut bytes = Bytes::default();
        let weight = spec.head_dim as usize * spec.dtype.size();
        let weights = [(); 2].map(|()| {
            let mut weight = vec![0; weight];
            (0..spec.head_dim as usize).for_each(|i| spec.dtype.write(&mut weight, i, near_one()));
            bytes.place(weight)
        });
        let heads = [spec.num_heads, spec.num_kv_heads, spec.num_kv_heads].map(|heads| heads as usize);
        // So that most of what fp8 has is used.
        let step = |fp8: Option<Fp8>| match fp8.map(|fp8| fp8.scale) {
            Some(ScaleUse::Divide) => 1.0 / 64.0,
            _ => 64.0,
        };
        let [of_q, of_cache] = [spec.append.and_then(|a| a.q), spec.append.and_then(|a| a.cache)].map(step);
        let scales = [(heads[0], of_q), (heads[1], of_cache), (heads[2], of_cache)]
            .map(|(heads, step)| bytes.place((0..heads).flat_map(|_| (step * near_one()).to_ne_bytes())));
        // Backward reads the roots; here forward keeps none.
        let backward = spec.is_norm_gradient();
        let rooted = if backward { tokens } else { 0 };
        let roots =
            [heads[0], heads[1]].map(|heads| bytes.place((0..heads * rooted).flat_map(|_| near_one().to_ne_bytes())));
        let slots = spec.append.map_or([0; 4], |append| slots(append.slots, tokens, &mut bytes));
        // What is only written: NaN of every type, so that what is not written shows.
        let start = bytes.0.len();
        let room = weight.next_multiple_of(STARTS);
        let workspace = start + 2 * room;
        bytes.0.resize(workspace, 0xff);
        let sums = if backward { 4 * spec.weight_workspace(tokens as u64) as usize } else { 0 };
        let mut memory = engine.device().alloc(workspace + sums)?;
        memory.upload(0, &bytes.0)?;
        let gradients = [start, start + room];
        Ok(Self { memory, tokens, weights, scales, roots, slots, gradients, workspace })
    }

    fn address(&self, at: usize) -> *mut c_void {
        (self.memory.address() + at as u64) as *mut c_void
    }

    /// Numbers that a call reads or writes.
    pub fn vector(&self, at: usize, number: NumberType, len: usize) -> Vector<'static> {
        // SAFETY: `at` is where so many of these numbers were placed; the workload keeps the memory until what runs on it has
        // ended.
        unsafe { Vector::from_raw(self.address(at), number, len) }
    }

    /// Numbers that a call only reads.
    pub fn input(&self, at: usize, number: NumberType, len: usize) -> VectorInput<'static> {
        self.vector(at, number, len).into()
    }

    /// f32 for the partial sums of the weights' gradients.
    pub fn workspace(&self, spec: &RopeSpec) -> Vector<'static> {
        self.vector(self.workspace, F32, spec.weight_workspace(self.tokens as u64) as usize)
    }

    /// The scale of q (0), k (1) or v (2).
    pub fn scale(&self, which: usize, fp8: Fp8, heads: u32) -> VectorInput<'static> {
        self.input(self.scales[which], F32, if fp8.per_head { heads as usize } else { 1 })
    }

    /// Where tokens are stored.
    pub fn slots(&self, form: SlotForm) -> Slots<'static> {
        let (tokens, blocks) = (self.tokens, self.tokens.div_ceil(BLOCK));
        let [first, kv_indptr, batch_indices, positions] = self.slots;
        let i32s = |at, len| self.input(at, NumberType::I32, len);
        match form {
            SlotForm::SlotMapping => Slots::Mapping(self.input(first, NumberType::I64, tokens)),
            SlotForm::Pages => Slots::Pages {
                kv_indices: i32s(first, blocks),
                kv_indptr: i32s(kv_indptr, 2),
                batch_indices: i32s(batch_indices, tokens),
                positions: i32s(positions, tokens),
            },
        }
    }
}

/// The last block is filled first. Page tables are those of one request.
fn slots(form: SlotForm, tokens: usize, bytes: &mut Bytes) -> [usize; 4] {
    let blocks = tokens.div_ceil(BLOCK);
    match form {
        SlotForm::SlotMapping => {
            let slot = |token: usize| (block_of(token / BLOCK, blocks) * BLOCK + token % BLOCK) as i64;
            [bytes.place((0..tokens).flat_map(|token| slot(token).to_ne_bytes())), 0, 0, 0]
        }
        SlotForm::Pages => {
            let mut i32s = |numbers: &mut dyn Iterator<Item = usize>| {
                bytes.place(numbers.flat_map(|n| (n as i32).to_ne_bytes()).collect::<Vec<u8>>())
            };
            [
                i32s(&mut (0..blocks).map(|n| block_of(n, blocks))),
                i32s(&mut [0, blocks].into_iter()),
                i32s(&mut std::iter::repeat_n(0, tokens)),
                i32s(&mut (0..tokens)),
            ]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_not_narrowed() {
        assert_eq!(integers(&[1, -1], false).expect("fit"), [1i32, -1].map(i32::to_ne_bytes).concat());
        assert_eq!(integers(&[1 << 32], true).expect("fits"), (1i64 << 32).to_ne_bytes());
        assert_eq!(integers(&[0, 1 << 32], false).expect_err("too large").subject(), Some("--positions"));
    }
}
