//! Memory to measure on: never the caller's tensors, bounded in size, rotated past the last-level cache.

use std::borrow::Cow;
use std::sync::Arc;

use super::args::borrowed::Location;
use super::args::{Args, CuSeqlens, Made, Offsets, Operand, PositionIds, Positions, Tables, Tensor};
use super::launch::{Call, launch};
use super::params::AngleParams;
use super::variant::Class;
use crate::error::{Error, Result};
use crate::rope::scaling::{RopeParameters, cos_sin_table};
use crate::rope::{DType, Layout, PositionForm, RopeSpec};
use crate::service::device;
use crate::service::family::{Bucket, Device, Memory, Plan, Stream, Throttle, Trial};

/// How often the rotated sets together exceed the last-level cache.
const PAST_CACHE: u64 = 3;
/// Sets at most: more would not fit one sample.
const MAX_SETS: u64 = 128;
/// Small tensors start at multiples of this, large ones at multiples of that: so PyTorch's allocator places them. Where a
/// tensor starts decides which memory channels are read and written at one time (benches/NOTES.md, 4).
const SMALL_STARTS: usize = 512;
const LARGE_STARTS: usize = 2 << 20;

/// Bytes at most that go between host and device in one piece: half a millisecond on a slow bus.
const HOST_PIECE: usize = 4 << 20;
/// Bytes at most that the device copies in one piece: half a millisecond where memory moves 250 GB/s.
const DEVICE_PIECE: usize = 64 << 20;
/// Tokens at most whose bits are compared.
const COMPARED: usize = 194;

/// Tensors, tables and positions for the calls of one measurement.
pub(super) struct Scratch {
    device: Arc<dyn Device>,
    /// `sets` times (q in, k in, q out, k out).
    data: Box<dyn Memory>,
    tables: Box<dyn Memory>,
    ids: Option<Box<dyn Memory>>,
    /// For specs whose angles are the engine's.
    angles: AngleParams,
    spec: RopeSpec,
    class: Class,
    fault: u64,
    tokens: u64,
    sets: usize,
    /// Where k starts in a half.
    k_starts: usize,
    /// Bytes of a half: the inputs of a set, or its outputs.
    half: usize,
}

/// Bytes of q, k, in and out, for one token.
pub(super) fn bytes_per_token(spec: &RopeSpec) -> u64 {
    let elements = u64::from(spec.num_heads + spec.num_kv_heads) * u64::from(spec.head_dim);
    2 * elements * spec.dtype.size() as u64
}

impl Scratch {
    /// Allocates for the bucket's tokens, or fewer where memory is low or their launch would not fit a slice.
    ///
    /// # Errors
    /// [`ErrorKind::OutOfMemory`](crate::ErrorKind::OutOfMemory) when memory is too low to measure in.
    pub fn new(
        device: &Arc<dyn Device>,
        spec: &RopeSpec,
        class: Class,
        bucket: Bucket,
        fault: u64,
        limit: u64,
        throttle: &Throttle<'_>,
    ) -> Result<Self> {
        let per_token = bytes_per_token(spec);
        let launch = throttle.launch_bytes(device.facts(), &device.measuring());
        let tokens = bucket.tokens().min(limit / (2 * per_token)).min((launch / per_token).max(1));
        let head = tokens as usize * spec.head_dim as usize * spec.dtype.size();
        let aligned = |bytes: usize| bytes.next_multiple_of(if bytes < 1 << 20 { SMALL_STARTS } else { LARGE_STARTS });
        let k_starts = aligned(head * spec.num_heads as usize);
        let half = k_starts + aligned(head * spec.num_kv_heads as usize);
        let wanted = (PAST_CACHE * device.facts().l2_bytes).div_ceil(2 * half as u64).max(2);
        let sets = wanted.min(MAX_SETS).min((limit / (2 * half as u64)).max(1)) as usize;
        let mut data = throttle.slice(|| device.alloc(sets * 2 * half))?;
        let width = spec.table_width() as usize;
        let table_bytes = 2 * (tokens as usize * width * spec.table.dtype.size()).next_multiple_of(256);
        let mut tables = throttle.slice(|| device.alloc(table_bytes))?;
        let mut noise = Noise(0x9e37_79b9_7f4a_7c15);
        fill(device.as_ref(), data.as_mut(), spec.dtype, &mut noise, throttle)?;
        fill(device.as_ref(), tables.as_mut(), spec.table.dtype, &mut noise, throttle)?;
        let angles = engine_angles(spec, tables.as_mut())?;
        let ids = position_numbers(spec, tokens as usize);
        let ids = ids
            .map(|bytes| {
                let mut memory = throttle.slice(|| device.alloc(bytes.len()))?;
                upload(memory.as_mut(), 0, &bytes, throttle)?;
                Ok::<_, Error>(memory)
            })
            .transpose()?;
        let device = Arc::clone(device);
        Ok(Self { device, data, tables, ids, angles, spec: spec.clone(), class, fault, tokens, sets, k_starts, half })
    }

    /// Launches `plan` on set `set` with `batch` sequences of `tokens` tokens.
    fn launch_on(&self, plan: &Plan, stream: Stream<'_>, set: usize, [batch, tokens]: [usize; 2]) -> Result<()> {
        let spec = &self.spec;
        let dim = spec.head_dim as usize;
        let layout = |heads: u32| {
            let heads = heads as usize;
            if self.class.head_major {
                Layout::bhsd(batch, heads, tokens, dim)
            } else {
                Layout::bshd(batch, tokens, heads, dim)
            }
        };
        let base = set % self.sets * 2 * self.half;
        let operand = |heads: u32, offset: usize| {
            let tensor = |at| Tensor::in_memory(self.data.as_ref(), at, spec.dtype, layout(heads));
            let input = tensor(base + offset)?;
            if self.in_place() {
                return Ok::<_, Error>(Operand::in_place(input));
            }
            Ok(Operand::out_of_place(input, tensor(base + self.half + offset)?))
        };
        let width = spec.table_width() as usize;
        let positions = match (&self.ids, spec.positions) {
            (None, _) => Positions::Offset(0),
            (Some(ids), form @ (PositionForm::Ids32 | PositionForm::Ids64)) => {
                let axes = if spec.mrope.is_some() { 3 } else { 1 };
                Positions::Ids(PositionIds::in_memory(ids.as_ref(), form.is_wide(), axes, tokens)?)
            }
            (Some(ids), form) if form.is_packed() => {
                Positions::Packed { cu_seqlens: CuSeqlens::in_memory(ids.as_ref(), form.is_wide()), offsets: None }
            }
            (Some(ids), form) => Positions::Offsets(Offsets::in_memory(ids.as_ref(), form.is_wide(), batch)),
        };
        let args = Args {
            q: operand(spec.num_heads, 0)?,
            k: (spec.num_kv_heads > 0).then(|| operand(spec.num_kv_heads, self.k_starts)).transpose()?,
            tables: self.tables(width)?,
            positions,
            norm: None,
            append: None,
        };
        match Call::new(spec, &args, Location::Raw, self.fault)? {
            Some(call) => launch(plan, stream, &call),
            None => Err(Error::argument("tokens", "there is nothing to measure")),
        }
    }

    fn tables(&self, width: usize) -> Result<Tables<'_>> {
        let rows = self.tokens as usize;
        let Some(mode) = self.spec.angles else {
            return Tables::in_memory(self.tables.as_ref(), self.spec.table.dtype, rows, width);
        };
        let made = Made { mode, angles: Cow::Borrowed(&self.angles) };
        if self.class.table_word == 0 {
            return Ok(Tables::computed(width, made));
        }
        Ok(Tables::made(self.tables.address(), Location::Raw, rows, width, made))
    }

    /// Partial rotary in place: nothing is copied, and outputs lie where inputs lay.
    fn in_place(&self) -> bool {
        self.spec.rotary_dim < self.spec.head_dim && !self.class.copy_rest
    }
}

impl Trial for Scratch {
    fn size(&self) -> u64 {
        self.tokens
    }

    fn launch(&self, plan: &Plan, stream: Stream<'_>, set: usize, size: u64) -> Result<()> {
        self.launch_on(plan, stream, set, [1, size as usize])
    }

    /// Copies the inputs of a set to its outputs: the same bytes, moved by the device itself.
    fn copy(&self, stream: Stream<'_>, set: usize, size: u64) -> Result<()> {
        let base = set % self.sets * 2 * self.half;
        let bytes = (size * bytes_per_token(&self.spec) / 2) as usize;
        let (to, from) = ((self.data.as_ref(), base + self.half), (self.data.as_ref(), base));
        device::copy(self.device.as_ref(), to, from, bytes, stream)
    }

    /// Launches on a few tokens.
    fn outputs(&mut self, plan: &Plan, throttle: &Throttle<'_>) -> Result<Vec<u8>> {
        let tokens = self.tokens.min(COMPARED as u64) as usize;
        let two = tokens >= 2 && !self.spec.positions.is_packed();
        let (batch, per_sequence) = if two { (2, tokens / 2) } else { (1, tokens) };
        let bytes =
            |heads: u32| batch * per_sequence * heads as usize * self.spec.head_dim as usize * self.spec.dtype.size();
        let start = if self.in_place() { 0 } else { self.half };
        let parts = [(start, bytes(self.spec.num_heads)), (start + self.k_starts, bytes(self.spec.num_kv_heads))];
        let mut outputs = parts.map(|(_, len)| vec![0xff; len]);
        // In place the input is overwritten: every check starts from the same values.
        let mut noise = Noise(7);
        for ((at, _), output) in parts.iter().zip(&mut outputs) {
            if self.in_place() {
                noise.fill(self.spec.dtype, output);
            }
            upload(self.data.as_mut(), *at, output, throttle)?;
        }
        throttle.slice(|| {
            self.launch_on(plan, self.device.stream(), 0, [batch, per_sequence])?;
            self.device.wait()
        })?;
        for ((at, _), output) in parts.iter().zip(&mut outputs) {
            for (i, piece) in output.chunks_mut(HOST_PIECE).enumerate() {
                throttle.slice(|| self.data.download(*at + i * HOST_PIECE, piece))?;
            }
        }
        Ok(outputs.concat())
    }
}

/// Frequencies of a usual model; the rows of the table that a comparison of bits reads are theirs.
fn engine_angles(spec: &RopeSpec, table: &mut dyn Memory) -> Result<AngleParams> {
    let Some(mode) = spec.angles else { return Ok(AngleParams::NONE) };
    let frequencies = RopeParameters::new(1e4, spec.rotary_dim).frequencies(None)?;
    let pairs = spec.rotary_dim as usize / 2;
    let rows = COMPARED.min(table.bytes() / (8 * pairs)) as u64;
    let (cos, sin) = cos_sin_table(&frequencies, 0..rows, mode);
    let row = |i: usize| [&cos, &sin].into_iter().flat_map(move |t| &t[i * pairs..(i + 1) * pairs]);
    let bytes: Vec<u8> = (0..rows as usize).flat_map(row).flat_map(|x| x.to_ne_bytes()).collect();
    table.upload(0, &bytes)?;
    Ok(AngleParams::from(&frequencies))
}

/// The bytes of what says where tokens stand; `None` where that is implicit.
fn position_numbers(spec: &RopeSpec, tokens: usize) -> Option<Vec<u8>> {
    let axes = if spec.mrope.is_some() { 3 } else { 1 };
    let numbers: Vec<i64> = match spec.positions {
        PositionForm::Implicit => return None,
        PositionForm::Ids32 | PositionForm::Ids64 => (0..axes).flat_map(|_| 0..tokens as i64).collect(),
        PositionForm::Offsets32 | PositionForm::Offsets64 => vec![0; 2],
        // Sequences of very different lengths.
        PositionForm::CuSeqlens | PositionForm::CuSeqlens64 => {
            [0, 1, 8, 64].into_iter().map(|part| (tokens * part / 64) as i64).collect()
        }
    };
    Some(if spec.positions.is_wide() {
        numbers.into_iter().flat_map(i64::to_ne_bytes).collect()
    } else {
        numbers.into_iter().flat_map(|n| (n as i32).to_ne_bytes()).collect()
    })
}

/// Fills memory with random values: a block from the host, copied on over the rest by the device.
fn fill(
    device: &dyn Device,
    memory: &mut dyn Memory,
    dtype: DType,
    noise: &mut Noise,
    throttle: &Throttle<'_>,
) -> Result<()> {
    let mut block = vec![0; memory.bytes().min(HOST_PIECE)];
    noise.fill(dtype, &mut block);
    upload(memory, 0, &block, throttle)?;
    let memory = &*memory;
    let mut done = block.len();
    while done < memory.bytes() {
        let part = done.min(memory.bytes() - done).min(DEVICE_PIECE);
        throttle.slice(|| {
            device::copy(device, (memory, done), (memory, 0), part, device.stream())?;
            device.wait()
        })?;
        done += part;
    }
    Ok(())
}

fn upload(memory: &mut dyn Memory, at: usize, bytes: &[u8], throttle: &Throttle<'_>) -> Result<()> {
    bytes
        .chunks(HOST_PIECE)
        .enumerate()
        .try_for_each(|(i, piece)| throttle.slice(|| memory.upload(at + i * HOST_PIECE, piece)))
}

/// Repeatable values between −2 and 2 (xorshift64, Marsaglia 2003).
struct Noise(u64);

impl Noise {
    fn fill(&mut self, dtype: DType, bytes: &mut [u8]) {
        for i in 0..bytes.len() / dtype.size() {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            let unit = (self.0 >> 40) as f32 / (1u64 << 24) as f32;
            dtype.write(bytes, i, 4.0 * unit - 2.0);
        }
    }
}
