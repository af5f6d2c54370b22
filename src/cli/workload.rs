//! Random q and k on the engine's device, with the tables of a model: something to run.

#![allow(unsafe_code)] // tensors at addresses of memory that the workload owns

use std::ffi::c_void;
use std::sync::Arc;

use ropejit::args::{Args, CuSeqlens, Offsets, Operand, PositionIds, Positions, Tables, Tensor};
use ropejit::device::{Memory, TimedLaunch, Timer};
use ropejit::rope::scaling::{TableMode, cos_sin_table};
use ropejit::rope::{Layout, reference};
use ropejit::{Angles, DType, Engine, Error, ErrorKind, Origin, PositionForm, Result, Rope, RopeSpec, Stream};

use super::spec::Chosen;

/// Sizes up to this are computed without overflow; whether there is as much memory shows when it is asked for.
const MOST_BYTES: f64 = (1u64 << 60) as f64;

/// Tensors of one application.
pub struct Workload {
    spec: RopeSpec,
    batch: usize,
    tokens: usize,
    layouts: [Layout; 2],
    input: Box<dyn Memory>,
    output: Box<dyn Memory>,
    k_starts: usize,
    /// What the calls of one model share.
    shared: Arc<Shared>,
}

struct Shared {
    /// cos, sin, and position ids.
    memory: [Box<dyn Memory>; 3],
    /// In place of the tables, when they are the engine's.
    angles: Option<Angles>,
}

/// Tables and positions of one model, on the device.
fn shared(engine: &Engine, chosen: &Chosen, batch: usize, tokens: usize) -> Result<Shared> {
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
    Ok(Shared { memory, angles: spec.angles.map(|mode| engine.angles(&chosen.parameters, mode)).transpose()? })
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

/// Fills memory with repetitions of a block, copied on by the device.
fn fill(engine: &Engine, memory: &mut dyn Memory, block: &[u8]) -> Result<()> {
    memory.upload(0, block)?;
    let memory = &*memory;
    let mut filled = block.len();
    while filled < memory.bytes() {
        let part = filled.min(memory.bytes() - filled);
        // SAFETY: memory of this device, which nobody else uses yet.
        unsafe { engine.device().copy((memory, filled), (memory, 0), part, engine.device().stream()) }?;
        filled += part;
    }
    Ok(())
}

/// Prepares launches of workloads, which `launch` holds, to be timed.
pub fn timer(engine: &Engine, launches: usize, launch: TimedLaunch) -> Result<Box<dyn Timer>> {
    // SAFETY: the tensors live as long as `launch`, which the timer keeps.
    unsafe { engine.device().timer(launches, launch) }
}

impl Workload {
    /// Allocates and fills; q and k as `[B,S,H,D]`, or `[B,H,S,D]` when `head_major`.
    pub fn new(engine: &Engine, chosen: &Chosen, batch: usize, tokens: usize, head_major: bool) -> Result<Self> {
        let spec = &chosen.spec;
        let dim = spec.head_dim as usize;
        let layouts = [spec.num_heads, spec.num_kv_heads].map(|heads| {
            let heads = heads as usize;
            if head_major { Layout::bhsd(batch, heads, tokens, dim) } else { Layout::bshd(batch, tokens, heads, dim) }
        });
        let elements = layouts.iter().map(|l| l.shape.iter().map(|&n| n as f64).product::<f64>()).sum::<f64>();
        if elements * spec.dtype.size() as f64 > MOST_BYTES {
            return Err(Error::argument(
                "--tokens",
                format!("{elements:.1e} elements of q and k are too many to address"),
            ));
        }
        Self::with(engine, spec, layouts, || shared(engine, chosen, batch, tokens).map(Arc::new))
    }

    /// Other tensors of the same shapes, with the same tables: another layer of the model.
    pub fn another(&self, engine: &Engine) -> Result<Self> {
        Self::with(engine, &self.spec, self.layouts, || Ok(Arc::clone(&self.shared)))
    }

    fn with(
        engine: &Engine,
        spec: &RopeSpec,
        layouts: [Layout; 2],
        shared: impl FnOnce() -> Result<Arc<Shared>>,
    ) -> Result<Self> {
        let device = engine.device();
        let size = spec.dtype.size();
        // As an allocator would place them.
        let q_bytes = layouts[0].len() * size;
        let k_starts = q_bytes.next_multiple_of(if q_bytes < 1 << 20 { 512 } else { 2 << 20 });
        let bytes = k_starts + layouts[1].len() * size;
        let (mut input, mut output) = (device.alloc(bytes)?, device.alloc(bytes)?);
        // After the large ones: where they do not fit, that is said before tables of that length are computed.
        let shared = shared()?;
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let mut block = vec![0u8; bytes.min(8 << 20)];
        for i in 0..block.len() / size {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            spec.dtype.write(&mut block, i, (state >> 40) as f32 / (1u64 << 22) as f32 - 2.0);
        }
        fill(engine, input.as_mut(), &block)?;
        // NaN of every type, so that what is not written shows; and so its pages are there when time is taken.
        fill(engine, output.as_mut(), &vec![0xff; block.len()])?;
        let [batch, tokens, ..] = layouts[0].shape;
        Ok(Self { spec: spec.clone(), batch, tokens, layouts, input, output, k_starts, shared })
    }

    /// Copies the inputs over the outputs on the device: the same bytes.
    pub fn copy(&self, engine: &Engine, stream: Stream<'_>) -> Result<()> {
        let bytes = self.bytes() / 2;
        // SAFETY: both are of this device, and used on one stream only.
        unsafe { engine.device().copy((self.output.as_ref(), 0), (self.input.as_ref(), 0), bytes, stream) }
    }

    /// Bytes of q and k that one application reads and writes.
    pub fn bytes(&self) -> usize {
        2 * (self.layouts[0].len() + self.layouts[1].len()) * self.spec.dtype.size()
    }

    /// Applies RoPE out of place.
    pub fn apply(&self, rope: &Rope, stream: Stream<'_>) -> Result<Origin> {
        self.apply_to(rope, stream, false)
    }

    /// Applies RoPE, in place or not.
    pub fn apply_to(&self, rope: &Rope, stream: Stream<'_>, in_place: bool) -> Result<Origin> {
        let at = |memory: &dyn Memory, offset: usize| (memory.address() + offset as u64) as *mut c_void;
        let (spec, width) = (&self.spec, self.spec.table_width() as usize);
        let operand = |which: usize| {
            let (offset, layout) = (which * self.k_starts, self.layouts[which]);
            // SAFETY: both memories hold q at their start and k at `k_starts`, and live as long as `self`; what runs on
            // them is waited for before they are freed.
            let input = unsafe { Tensor::from_raw(at(self.input.as_ref(), offset), spec.dtype, layout) };
            if in_place {
                return Operand::in_place(input);
            }
            // SAFETY: as above.
            let output = unsafe { Tensor::from_raw(at(self.output.as_ref(), offset), spec.dtype, layout) };
            Operand::out_of_place(input, output)
        };
        let [cos, sin, ids] = &self.shared.memory;
        let args = Args {
            q: operand(0),
            k: (spec.num_kv_heads > 0).then(|| operand(1)),
            tables: if let Some(angles) = &self.shared.angles {
                angles.tables(self.tokens as u64)?
            } else {
                let strides = [0, width as i64];
                // SAFETY: a row for each token.
                unsafe {
                    Tables::from_raw(
                        at(cos.as_ref(), 0),
                        at(sin.as_ref(), 0),
                        spec.table.dtype,
                        self.tokens,
                        width,
                        strides,
                    )
                }
            },
            positions: match spec.positions {
                PositionForm::Implicit => Positions::Offset(0),
                form @ (PositionForm::Ids32 | PositionForm::Ids64) => {
                    let (wide, strides) = (form.is_wide(), [self.tokens as i64, 0, 1]);
                    // SAFETY: a number for each token of each axis, shared by the batch.
                    Positions::Ids(unsafe { PositionIds::from_raw(at(ids.as_ref(), 0), wide, strides) })
                }
                form @ (PositionForm::Offsets32 | PositionForm::Offsets64) => {
                    // SAFETY: a number for each sequence.
                    Positions::Offsets(unsafe { Offsets::from_raw(at(ids.as_ref(), 0), form.is_wide()) })
                }
                form @ (PositionForm::CuSeqlens | PositionForm::CuSeqlens64) => {
                    // SAFETY: two numbers, for one sequence.
                    let cu_seqlens = unsafe { CuSeqlens::from_raw(at(ids.as_ref(), 0), form.is_wide(), 1) };
                    Positions::Packed { cu_seqlens, offsets: None }
                }
            },
            norm: None,
            append: None,
        };
        rope.apply(stream, &args)
    }

    /// A launch of the kernel that serves these tensors, without anything around it: as many blocks of it, which find no
    /// work.
    pub fn bare_launch(&self, rope: &Rope, head_major: bool) -> Result<impl Fn() -> Result<()> + use<>> {
        let missing = || Error::new(ErrorKind::Device, "the kernel to launch is not loaded");
        rope.bare_launch((self.batch * self.tokens) as u64, head_major).ok_or_else(missing)
    }

    /// The largest error against the f64 reference, and the largest that rounding to the dtype explains, over at most
    /// 512 tokens spread over the whole.
    pub fn errors(&self) -> Result<(f64, f64)> {
        let (spec, size) = (&self.spec, self.spec.dtype.size());
        let mut bytes = [vec![0u8; self.input.bytes()], vec![0u8; self.output.bytes()]];
        self.input.download(0, &mut bytes[0])?;
        self.output.download(0, &mut bytes[1])?;
        let [cos, sin] = [0, 1].map(|i: usize| {
            let mut bytes = vec![0u8; self.shared.memory[i].bytes()];
            self.shared.memory[i].download(0, &mut bytes).map(|()| bytes)
        });
        let (cos, sin) = (cos?, sin?);
        let (mut worst, mut allowed) = (0.0f64, 0.0f64);
        let step = self.tokens.div_ceil(512).max(1);
        for which in 0..2 {
            let layout = &self.layouts[which];
            for (b, s, h) in (0..self.batch).flat_map(|b| {
                (0..self.tokens).step_by(step).flat_map(move |s| (0..layout.shape[2]).map(move |h| (b, s, h)))
            }) {
                let [sb, ss, sh, _] = layout.strides.map(|x| x as usize);
                let start = which * self.k_starts / size + b * sb + s * ss + h * sh;
                for pair in 0..spec.rotary_dim as usize / 2 {
                    let entry = s * spec.table_width() as usize + pair;
                    let cs = [&cos, &sin].map(|t| f64::from(spec.table.dtype.read(t, entry)));
                    let place = reference::pair(spec, layout.shape[3] as u32, pair);
                    let read = |i: usize| f64::from(spec.dtype.read(&bytes[0], start + i));
                    let input = (read(place.input.0), read(place.input.1));
                    let want = reference::rotate_f64(spec.direction, input, (cs[0], cs[1]));
                    for (i, want) in [(place.output.0, want.0), (place.output.1, want.1)] {
                        let got = f64::from(spec.dtype.read(&bytes[1], start + i));
                        worst = worst.max((got - want).abs());
                        if !got.is_finite() {
                            worst = f64::INFINITY;
                        }
                        allowed = allowed.max(want.abs());
                    }
                }
            }
        }
        // One rounding is half a unit in the last place; rounding every operation is four times that.
        let epsilon = match spec.dtype {
            DType::F32 => 2f64.powi(-23),
            DType::F16 => 2f64.powi(-11),
            DType::BF16 => 2f64.powi(-8),
            DType::E4M3 => 2f64.powi(-4),
        };
        let roundings = if spec.rounding == ropejit::Rounding::PerOp { 4.0 } else { 1.0 };
        Ok((worst, allowed * epsilon * roundings))
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
