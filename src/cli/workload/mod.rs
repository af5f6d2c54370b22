//! Random q and k on the engine's device, with the tables of a model: something to run.

#![allow(unsafe_code)] // tensors at addresses of memory that the workload owns

mod check;
mod parts;
mod shared;

use std::ffi::c_void;
use std::sync::Arc;

use parts::{Part, Parts, end};
use ropejit::args::{
    AppendArgs, Args, CuSeqlens, NormArgs, NormGradient, NumberType, Offsets, Operand, PositionIds, Positions,
    SavedRsqrt, Tables, Tensor,
};
use ropejit::device::{Memory, TimedLaunch, Timer};
use ropejit::{Direction, Engine, Error, ErrorKind, Origin, PositionForm, Result, Rope, RopeSpec, Stream};
use shared::{EPS, F32, Neighbours, Shared, random};

use super::spec::Chosen;

/// Sizes up to this are computed without overflow; whether there is as much memory shows when it is asked for.
const MOST_BYTES: f64 = (1u64 << 60) as f64;

/// Tensors of one application.
pub struct Workload {
    spec: RopeSpec,
    batch: usize,
    tokens: usize,
    parts: Parts,
    input: Box<dyn Memory>,
    output: Box<dyn Memory>,
    /// What the calls of one model share.
    shared: Arc<Shared>,
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
        let elements = f64::from(spec.items()) * f64::from(spec.head_dim) * batch as f64 * tokens as f64;
        if elements * spec.dtype.size() as f64 > MOST_BYTES {
            return Err(Error::argument(
                "--tokens",
                format!("{elements:.1e} elements of q and k are too many to address"),
            ));
        }
        let parts = Parts::of(spec, batch, tokens, head_major);
        Self::with(engine, spec, [batch, tokens], &parts, || Shared::new(engine, chosen, batch, tokens).map(Arc::new))
    }

    /// Other tensors of the same shapes, with the same tables: another layer of the model.
    pub fn another(&self, engine: &Engine) -> Result<Self> {
        Self::with(engine, &self.spec, [self.batch, self.tokens], &self.parts, || Ok(Arc::clone(&self.shared)))
    }

    fn with(
        engine: &Engine,
        spec: &RopeSpec,
        [batch, tokens]: [usize; 2],
        parts: &Parts,
        shared: impl FnOnce() -> Result<Arc<Shared>>,
    ) -> Result<Self> {
        let device = engine.device();
        let size = spec.dtype.size();
        let copied = parts.moved(batch * tokens).div_ceil(2);
        let mut input = device.alloc(end(&parts.inputs).max(copied))?;
        let mut output = device.alloc(end(&parts.outputs).max(copied))?;
        // After the large ones: where they do not fit, that is said before tables of that length are computed.
        let shared = shared()?;
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let mut block = vec![0u8; input.bytes().min(8 << 20)];
        for i in 0..block.len() / size {
            spec.dtype.write(&mut block, i, 4.0 * random(&mut state) - 2.0);
        }
        fill(engine, input.as_mut(), &block)?;
        // NaN of every type, so that what is not written shows; and so its pages are there when time is taken.
        let poison = vec![0xff; output.bytes().min(8 << 20)];
        fill(engine, output.as_mut(), &poison)?;
        Ok(Self { spec: spec.clone(), batch, tokens, parts: *parts, input, output, shared })
    }

    /// Copies inputs over outputs on the device: as many bytes as an application reads and writes.
    pub fn copy(&self, engine: &Engine, stream: Stream<'_>) -> Result<()> {
        let bytes = self.bytes() / 2;
        // SAFETY: both are of this device, as long as this, and used on one stream only.
        unsafe { engine.device().copy((self.output.as_ref(), 0), (self.input.as_ref(), 0), bytes, stream) }
    }

    /// Bytes of tensors and caches that one application reads and writes.
    pub fn bytes(&self) -> usize {
        self.parts.moved(self.batch * self.tokens)
    }

    /// Applies RoPE out of place.
    pub fn apply(&self, rope: &Rope, stream: Stream<'_>) -> Result<Origin> {
        self.apply_to(rope, stream, false)
    }

    fn tensor(memory: &dyn Memory, part: &Part) -> Tensor<'static> {
        // SAFETY: the memory holds the part from its start on, and lives as long as the workload; what runs on it is waited for
        // before it is freed.
        unsafe { Tensor::from_raw(at(memory, part.start), part.dtype, part.layout) }
    }

    /// Applies RoPE, in place or not.
    pub fn apply_to(&self, rope: &Rope, stream: Stream<'_>, in_place: bool) -> Result<Origin> {
        let (spec, width) = (&self.spec, self.spec.table_width() as usize);
        let operand = |which: usize| {
            let input = Self::tensor(self.input.as_ref(), &self.parts.inputs[which]);
            if which == 1 && spec.append.is_some() {
                Operand::read_only(input)
            } else if in_place {
                Operand::in_place(input)
            } else {
                Operand::out_of_place(input, Self::tensor(self.output.as_ref(), &self.parts.outputs[which]))
            }
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
            norm: self.shared.neighbours.as_ref().and_then(|beside| self.norm(beside)),
            append: self.shared.neighbours.as_ref().and_then(|beside| self.append(beside)),
        };
        rope.apply(stream, &args)
    }

    fn norm(&self, beside: &Neighbours) -> Option<NormArgs<'static>> {
        let spec = &self.spec;
        let norm = spec.norm?;
        let (dim, has_k, element) = (spec.head_dim as usize, spec.num_kv_heads > 0, NumberType::Element(spec.dtype));
        let [of_q, of_k] = [norm.has_weight(), norm.has_weight() && has_k];
        let x = |which: usize| Self::tensor(self.input.as_ref(), &self.parts.inputs[2 + which]).into();
        let roots = |which: usize| {
            let heads = self.parts.inputs[which].layout.shape[2];
            beside.vector(beside.roots[which], F32, self.batch * self.tokens * heads)
        };
        let backward = spec.direction == Direction::Backward;
        Some(NormArgs {
            eps: EPS,
            q_weight: of_q.then(|| beside.input(beside.weights[0], element, dim)),
            k_weight: of_k.then(|| beside.input(beside.weights[1], element, dim)),
            rsqrt: backward.then(|| SavedRsqrt { q: roots(0), k: has_k.then(|| roots(1)) }),
            gradient: backward.then(|| NormGradient {
                q: x(0),
                k: has_k.then(|| x(1)),
                q_weight: of_q.then(|| beside.vector(beside.gradients[0], element, dim)),
                k_weight: of_k.then(|| beside.vector(beside.gradients[1], element, dim)),
                workspace: of_q.then(|| beside.workspace(spec)),
            }),
        })
    }

    fn append(&self, beside: &Neighbours) -> Option<AppendArgs<'static>> {
        let append = self.spec.append?;
        let (has_v, heads) = (append.v_head_dim > 0, self.spec.num_kv_heads);
        let cache = |which: usize| Self::tensor(self.output.as_ref(), &self.parts.outputs[which]);
        Some(AppendArgs {
            v: has_v.then(|| Self::tensor(self.input.as_ref(), &self.parts.inputs[4]).into()),
            k_cache: cache(1),
            v_cache: has_v.then(|| cache(2)),
            slots: beside.slots(append.slots),
            q_scale: append.q.map(|fp8| beside.scale(0, fp8, self.spec.num_heads)),
            k_scale: append.cache.map(|fp8| beside.scale(1, fp8, heads)),
            v_scale: append.cache.filter(|_| has_v).map(|fp8| beside.scale(2, fp8, heads)),
        })
    }

    /// A launch of the kernel that serves these tensors, without anything around it: as many blocks of it, which find no
    /// work. `None` for the gradient of a norm, which is two launches.
    pub fn bare_launch(&self, rope: &Rope, head_major: bool) -> Result<Option<impl Fn() -> Result<()> + use<>>> {
        if self.spec.is_norm_gradient() {
            return Ok(None);
        }
        let missing = || Error::new(ErrorKind::Device, "the kernel to launch is not loaded");
        rope.bare_launch((self.batch * self.tokens) as u64, head_major).ok_or_else(missing).map(Some)
    }
}

fn at(memory: &dyn Memory, offset: usize) -> *mut c_void {
    (memory.address() + offset as u64) as *mut c_void
}
