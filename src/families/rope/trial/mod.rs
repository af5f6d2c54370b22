//! Memory to measure on: never the caller's tensors, bounded in size, rotated past the last-level cache.

mod neighbours;
mod noise;
mod set;

use std::borrow::Cow;
use std::sync::Arc;

use neighbours::Neighbours;
use noise::{Noise, download, fill, position_numbers, upload};
pub(super) use set::bytes_per_token;
use set::{BLOCK, Set, output_bytes, set_per_token, slots};

use super::args::borrowed::Location;
use super::args::{AppendArgs, Args, CuSeqlens, Input, Made, Offsets, Operand, PositionIds, Positions, Tables, Tensor};
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
/// Tokens at most whose bits are compared.
const COMPARED: usize = 194;

/// Tensors, tables and positions for the calls of one measurement.
pub(super) struct Scratch {
    device: Arc<dyn Device>,
    /// `sets` times the tensors of a call, each as `set` says.
    data: Box<dyn Memory>,
    set: Set,
    sets: usize,
    tables: Box<dyn Memory>,
    ids: Option<Box<dyn Memory>>,
    /// For specs whose angles are the engine's.
    angles: AngleParams,
    /// For fused specs.
    neighbours: Option<Neighbours>,
    spec: RopeSpec,
    class: Class,
    fault: u64,
    tokens: u64,
}

/// One launch: on which set, for how many sequences of how many tokens, and whether its bits are compared.
#[derive(Clone, Copy)]
struct Shot {
    set: usize,
    batch: usize,
    tokens: usize,
    compared: bool,
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
        let launch = throttle.launch_bytes(device.facts(), device.memory_clock_khz(), &device.measuring());
        let most = (launch / bytes_per_token(spec)).max(1);
        let tokens = bucket.tokens().min(limit / (2 * set_per_token(spec))).min(most);
        let set = Set::of(spec, tokens as usize);
        let len = set.len as u64;
        let wanted = (PAST_CACHE * device.facts().l2_bytes).div_ceil(len).max(2);
        let sets = wanted.min(MAX_SETS).min((limit / len).max(1)) as usize;
        let mut data = throttle.slice(|| device.alloc(sets * set.len))?;
        let width = spec.table_width() as usize;
        let table_bytes = 2 * (tokens as usize * width * spec.table.dtype.size()).next_multiple_of(256);
        let mut tables = throttle.slice(|| device.alloc(table_bytes))?;
        let mut noise = Noise::new(0x9e37_79b9_7f4a_7c15);
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
        let [batch, per_sequence] = compared(spec, tokens);
        let counts = [tokens as usize, batch * per_sequence];
        let neighbours = spec.is_fused().then(|| Neighbours::new(device, spec, counts, throttle)).transpose()?;
        let (device, spec) = (Arc::clone(device), spec.clone());
        Ok(Self { device, data, set, sets, tables, ids, angles, neighbours, spec, class, fault, tokens })
    }

    /// A tensor that starts at `at`, in the class's order.
    fn tensor(&self, shot: Shot, at: usize, heads: u32, dim: u32, dtype: DType) -> Result<Tensor<'_>> {
        let (heads, dim) = (heads as usize, dim as usize);
        let layout = if self.class.head_major {
            Layout::bhsd(shot.batch, heads, shot.tokens, dim)
        } else {
            Layout::bshd(shot.batch, shot.tokens, heads, dim)
        };
        Tensor::in_memory(self.data.as_ref(), at, dtype, layout)
    }

    /// Where set number `set` starts.
    fn base(&self, set: usize) -> usize {
        set % self.sets * self.set.len
    }

    fn launch_on(&self, plan: &Plan, stream: Stream<'_>, shot: Shot) -> Result<()> {
        let spec = &self.spec;
        let Shot { batch, tokens, .. } = shot;
        let base = self.base(shot.set);
        let operand = |which: usize, heads: u32, dim: u32, dtype: DType| {
            let input = self.tensor(shot, base + self.set.inputs[which], heads, dim, spec.dtype)?;
            if self.in_place() {
                return Ok::<_, Error>(Operand::in_place(input));
            }
            if which == 1 && spec.append.is_some() {
                return Ok(Operand::read_only(input));
            }
            let output = self.tensor(shot, base + self.set.outputs[which], heads, dim, dtype)?;
            Ok(Operand::out_of_place(input, output))
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
        let has_k = spec.num_kv_heads > 0;
        let mut args = Args::new(
            operand(0, spec.num_heads, spec.head_dim, spec.q_out_dtype())?,
            has_k.then(|| operand(1, spec.num_kv_heads, spec.k_dim(), spec.dtype)).transpose()?,
            self.tables(width)?,
            positions,
        );
        if let Some(neighbours) = &self.neighbours {
            let x = |which: usize, heads| {
                let at = base + self.set.inputs[2 + which];
                self.tensor(shot, at, heads, spec.head_dim, spec.dtype).map(Input::from)
            };
            let x =
                if spec.is_norm_gradient() { Some([x(0, spec.num_heads)?, x(1, spec.num_kv_heads)?]) } else { None };
            args.norm = neighbours.norm(spec, batch * tokens, shot.compared, x)?;
            args.append = self.append(neighbours, shot)?;
        }
        match Call::new(spec, &args, Location::Raw, self.fault)? {
            Some(call) => launch(plan, stream, &call),
            None => Err(Error::argument("tokens", "there is nothing to measure")),
        }
    }

    /// v, the caches of a set, and where its tokens go.
    fn append<'a>(&'a self, neighbours: &'a Neighbours, shot: Shot) -> Result<Option<AppendArgs<'a>>> {
        let Some(append) = self.spec.append else { return Ok(None) };
        let (base, heads, dim) = (self.base(shot.set), self.spec.num_kv_heads, append.v_head_dim);
        let tokens = shot.batch * shot.tokens;
        let cache_type = self.spec.cache_dtype();
        // Fewer tokens than there is room for are stored where they always are.
        let most = if shot.compared { tokens } else { self.tokens as usize };
        let cache = |which: usize, dim: u32| {
            let layout = Layout::bshd(slots(most) / BLOCK, BLOCK, heads as usize, dim as usize);
            Tensor::in_memory(self.data.as_ref(), base + self.set.outputs[which], cache_type, layout)
        };
        let v = || self.tensor(shot, base + self.set.inputs[4], heads, dim, self.spec.dtype).map(Input::from);
        Ok(Some(AppendArgs {
            v: (dim > 0).then(v).transpose()?,
            k_cache: cache(1, self.spec.k_dim())?,
            v_cache: (dim > 0).then(|| cache(2, dim)).transpose()?,
            slots: neighbours.slots(append.slots, tokens, shot.compared)?,
            q_scale: neighbours.scale(0, append.q, self.spec.num_heads)?,
            k_scale: neighbours.scale(1, append.cache, heads)?,
            v_scale: neighbours.scale(2, append.cache.filter(|_| dim > 0), heads)?,
        }))
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

    /// Partial rotary in place: nothing is copied, and outputs lie where inputs lay. Fused kernels see for themselves where
    /// they write.
    fn in_place(&self) -> bool {
        self.spec.rotary_dim < self.spec.head_dim && !self.class.copy_rest && !self.spec.is_fused()
    }
}

/// Sequences, and tokens of each, whose bits are compared.
fn compared(spec: &RopeSpec, tokens: u64) -> [usize; 2] {
    let tokens = tokens.min(COMPARED as u64) as usize;
    if tokens >= 2 && !spec.positions.is_packed() { [2, tokens / 2] } else { [1, tokens] }
}

impl Trial for Scratch {
    fn size(&self) -> u64 {
        self.tokens
    }

    fn launch(&self, plan: &Plan, stream: Stream<'_>, set: usize, size: u64) -> Result<()> {
        self.launch_on(plan, stream, Shot { set, batch: 1, tokens: size as usize, compared: false })
    }

    /// Copies a set's inputs on to where its outputs start: as many bytes as a launch moves, by the device itself.
    fn copy(&self, stream: Stream<'_>, set: usize, size: u64) -> Result<()> {
        let base = self.base(set);
        let bytes = (size * bytes_per_token(&self.spec) / 2) as usize;
        let (to, from) = ((self.data.as_ref(), base + self.set.outputs[0]), (self.data.as_ref(), base));
        device::copy(self.device.as_ref(), to, from, bytes, stream)
    }

    /// Launches on a few tokens.
    fn outputs(&mut self, plan: &Plan, throttle: &Throttle<'_>) -> Result<Vec<u8>> {
        let [batch, tokens] = compared(&self.spec, self.tokens);
        let starts = if self.in_place() { [self.set.inputs[0], self.set.inputs[1], 0] } else { self.set.outputs };
        let lengths = output_bytes(&self.spec, batch * tokens);
        let beside = self.neighbours.as_ref().map_or_else(Vec::new, |n| n.written(&self.spec, batch * tokens));
        // In place the input is overwritten: every check starts from the same values.
        let mut noise = Noise::new(7);
        for (at, len) in starts.into_iter().zip(lengths) {
            let mut poison = vec![0xff; len];
            if self.in_place() {
                noise.fill(self.spec.dtype, &mut poison);
            }
            upload(self.data.as_mut(), at, &poison, throttle)?;
        }
        for (at, len) in &beside {
            if let Some(neighbours) = &mut self.neighbours {
                upload(neighbours.memory.as_mut(), *at, &vec![0xff; *len], throttle)?;
            }
        }
        throttle.slice(|| {
            self.launch_on(plan, self.device.stream(), Shot { set: 0, batch, tokens, compared: true })?;
            self.device.wait()
        })?;
        let mut outputs = vec![0; lengths.iter().sum::<usize>() + beside.iter().map(|(_, len)| len).sum::<usize>()];
        let of_set = starts.into_iter().zip(lengths).map(|part| (self.data.as_ref(), part));
        let of_neighbours = beside.iter().filter_map(|part| Some((self.neighbours.as_ref()?.memory.as_ref(), *part)));
        let mut rest = outputs.as_mut_slice();
        for (memory, (at, len)) in of_set.chain(of_neighbours) {
            let (part, behind) = rest.split_at_mut(len);
            download(memory, at, part, throttle)?;
            rest = behind;
        }
        Ok(outputs)
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
