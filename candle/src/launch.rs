//! From candle's tensors to a launch on candle's stream. All that is unsafe in this crate is here.

#![allow(unsafe_code)]

use std::ffi::c_void;
use std::marker::PhantomData;

#[cfg(feature = "cuda")]
use candle_core::cuda_backend::{CudaDevice, CudaStorage, CudaStorageSlice, cudarc::driver};
use candle_core::op::BackpropOp;
use candle_core::{CpuStorage, Device, Error, Layout, Result, Storage, Tensor};
use half::{bf16, f16};
use ropejit::args::{NormArgs, NormGradient, NumberType, SavedRsqrt, Vector, VectorInput};
use ropejit::{Args, DType, Input, Operand, PositionForm, PositionIds, Positions, Stream, Tables};

pub use crate::check::Launch;
use crate::check::{Checked, Normed};
use crate::{engines, raise};

/// What a launch has written.
pub struct Results {
    pub q: Storage,
    pub k: Option<Storage>,
    /// The reciprocal roots of q and k, where they are saved.
    pub saved: [Option<Tensor>; 2],
    /// The gradient of a weight.
    pub weight: Option<Tensor>,
}

/// Turns, on the device and stream of q. Results are contiguous, in q's order of dimensions.
pub fn launch(launch: &Launch<'_>) -> Result<Results> {
    let checked = Checked::of(launch)?;
    let Checked { spec, q, k, .. } = &checked;
    let rope = engines::rope(launch.q.device(), spec)?;
    let place = Place::of(launch.q.device())?;
    let tokens = q.shape[0] * q.shape[1];
    let norm = launch.norm.as_ref();
    let [save, backward] = [norm.is_some_and(|norm| norm.save), norm.is_some_and(|norm| norm.before.is_some())];
    let weight = backward && norm.is_some_and(|norm| norm.norm.has_weight());

    // Outputs are as large as their tensors, whatever is written to them.
    let mut q_out = place.allocate(spec.dtype, q.len())?;
    let mut k_out = k.map(|k| place.allocate(spec.dtype, k.len())).transpose()?;
    let roots = |heads: usize| save.then(|| place.allocate(DType::F32, tokens * heads)).transpose();
    let mut saved = [roots(q.shape[2])?, k.map(|k| roots(k.shape[2])).transpose()?.flatten()];
    let mut weight_out = weight.then(|| place.allocate(spec.dtype, spec.head_dim as usize)).transpose()?;
    let sums = spec.weight_workspace(tokens as u64) as usize;
    let mut workspace = weight.then(|| place.allocate(DType::F32, sums)).transpose()?;
    {
        let reading = [Some(launch.q), launch.k, Some(launch.cos), Some(launch.sin), launch.rope.position_ids.as_ref()]
            .map(|tensor| tensor.map(Reading::new));
        let beside = norm.map_or([None; 4], |norm| {
            let [x, roots] = norm.before.map_or([None; 2], |before| before.map(Some));
            [norm.q_weight, norm.k_weight, x, roots]
        });
        let beside = beside.map(|tensor| tensor.map(Reading::new));
        let [q_in, k_in, cos, sin, ids] = used(&place, &reading)?;
        let [q_weight, k_weight, before, roots] = used(&place, &beside)?;
        let (Some(q_in), Some(cos), Some(sin)) = (&q_in, &cos, &sin) else { return Err(Error::msg("q is absent")) };
        let q_to = place.written(&mut q_out)?;
        let k_to = k_out.as_mut().map(|out| place.written(out)).transpose()?;
        let [saved_q, saved_k] = &mut saved;
        let saved_q = saved_q.as_mut().map(|out| place.written(out)).transpose()?;
        let saved_k = saved_k.as_mut().map(|out| place.written(out)).transpose()?;
        let weight_to = weight_out.as_mut().map(|out| place.written(out)).transpose()?;
        let workspace = workspace.as_mut().map(|out| place.written(out)).transpose()?;

        let thd = launch.rope.thd;
        let operand = |from: &Used<'_>, to: &Used<'_>, layout: ropejit::Layout| {
            // SAFETY: `from` is the start of a tensor of candle's with this layout, whose storage is locked for reading
            // until the launch is queued; candle frees memory in the order of its stream, the one launched on. `to` was
            // allocated on it just now, and has as many elements.
            unsafe {
                let input = Input::from_raw(from.address, spec.dtype, layout);
                let output = ropejit::Tensor::from_raw(to.address, spec.dtype, contiguous(layout, thd));
                Operand::out_of_place(input, output)
            }
        };
        let numbers = |used: &Used<'_>, number: NumberType, len: usize| {
            // SAFETY: as above; `Checked` has seen to the lengths of weights, the others were allocated of this length.
            unsafe { Vector::from_raw(used.address, number, len) }
        };
        let (element, f32s) = (NumberType::Element(spec.dtype), NumberType::Element(DType::F32));
        let head = |used: &Used<'_>| numbers(used, element, spec.head_dim as usize);
        let roots_of = |used: &Used<'_>, heads: usize| numbers(used, f32s, tokens * heads);
        let mut args = Args::new(
            operand(q_in, &q_to, *q),
            k_in.as_ref().zip(k_to.as_ref()).zip(*k).map(|((from, to), layout)| operand(from, to, layout)),
            // SAFETY: as above; `Checked` has seen that both have these rows, width and strides.
            unsafe {
                let (form, width) = (spec.table.dtype, spec.table_width() as usize);
                Tables::from_raw(cos.address, sin.address, form, checked.rows, width, checked.table_strides)
            },
            match &ids {
                None => Positions::Offset(i64::try_from(launch.rope.offset).unwrap_or(i64::MAX)),
                Some(ids) => {
                    let ([sequence, token], wide) = (checked.id_strides, spec.positions == PositionForm::Ids64);
                    // SAFETY: as above; `Checked` has seen to their shape.
                    Positions::Ids(unsafe { PositionIds::from_raw(ids.address, wide, [0, sequence, token]) })
                }
            },
        );
        if let Some(Normed { eps, .. }) = norm {
            let vector = |used: &Option<Used<'_>>| used.as_ref().map(|used| VectorInput::from(head(used)));
            let rsqrt = saved_q.as_ref().or(roots.as_ref()).map(|used| SavedRsqrt {
                q: roots_of(used, q.shape[2]),
                k: saved_k.as_ref().zip(*k).map(|(used, k)| roots_of(used, k.shape[2])),
            });
            let gradient = before.as_ref().zip(checked.before).map(|(x, layout)| NormGradient {
                // SAFETY: as above.
                q: unsafe { Input::from_raw(x.address, spec.dtype, layout) },
                k: None,
                q_weight: weight_to.as_ref().map(head),
                k_weight: None,
                workspace: workspace.as_ref().map(|used| numbers(used, f32s, sums)),
            });
            let (q_weight, k_weight) = (vector(&q_weight), vector(&k_weight));
            args.norm = Some(NormArgs { eps: *eps, q_weight, k_weight, rsqrt, gradient });
        }
        rope.apply(place.stream(), &args).map_err(raise)?;
    }
    if matches!(place, Place::Cpu) {
        rope.check().map_err(raise)?;
    }
    let numbers = |storage: Option<Storage>, len: usize| {
        storage.map(|storage| Tensor::from_storage(storage, len, BackpropOp::none(), false))
    };
    let [q_roots, k_roots] = saved;
    let saved = [numbers(q_roots, tokens * q.shape[2]), numbers(k_roots, tokens * k.map_or(0, |k| k.shape[2]))];
    Ok(Results { q: q_out, k: k_out, saved, weight: numbers(weight_out, spec.head_dim as usize) })
}

/// The same shape, contiguous, in candle's order of dimensions.
fn contiguous(layout: ropejit::Layout, thd: bool) -> ropejit::Layout {
    let [batch, tokens, heads, head_dim] = layout.shape;
    if thd {
        ropejit::Layout::bshd(batch, tokens, heads, head_dim)
    } else {
        ropejit::Layout::bhsd(batch, heads, tokens, head_dim)
    }
}

/// A tensor that is locked for reading.
struct Reading<'a> {
    storage: candle_core::StorageRef<'a>,
    layout: &'a Layout,
}

impl<'a> Reading<'a> {
    fn new(tensor: &'a Tensor) -> Self {
        let (storage, layout) = tensor.storage_and_layout();
        Self { storage, layout }
    }
}

/// An address that a launch uses. When it goes, cudarc takes note of the use for other streams.
struct Used<'a> {
    address: *mut c_void,
    #[cfg(feature = "cuda")]
    _guard: Option<driver::SyncOnDrop<'a>>,
    lives: PhantomData<&'a ()>,
}

fn used<'a, const N: usize>(place: &'a Place, reading: &'a [Option<Reading<'_>>; N]) -> Result<[Option<Used<'a>>; N]> {
    let mut all = [const { None }; N];
    for (used, reading) in all.iter_mut().zip(reading) {
        *used = reading.as_ref().map(|reading| place.read(reading)).transpose()?;
    }
    Ok(all)
}

/// Where a launch happens.
enum Place {
    Cpu,
    #[cfg(feature = "cuda")]
    Cuda {
        device: CudaDevice,
        stream: std::sync::Arc<driver::CudaStream>,
    },
}

impl Place {
    fn of(device: &Device) -> Result<Self> {
        match device {
            Device::Cpu => Ok(Self::Cpu),
            #[cfg(feature = "cuda")]
            Device::Cuda(device) => Ok(Self::Cuda { device: device.clone(), stream: device.cuda_stream() }),
            _ => Err(crate::wrong("q", "is neither on the CPU nor on a GPU that this build serves (feature `cuda`)")),
        }
    }

    fn stream(&self) -> Stream<'_> {
        match self {
            Self::Cpu => Stream::DEFAULT,
            #[cfg(feature = "cuda")]
            Self::Cuda { stream, .. } => Stream::from(stream.as_ref()),
        }
    }

    /// Memory of as many elements, to be written.
    fn allocate(&self, dtype: DType, len: usize) -> Result<Storage> {
        match self {
            Self::Cpu => Ok(Storage::Cpu(match dtype {
                DType::F32 => CpuStorage::F32(vec![0.0; len]),
                DType::F16 => CpuStorage::F16(vec![f16::ZERO; len]),
                DType::BF16 => CpuStorage::BF16(vec![bf16::ZERO; len]),
                DType::E4M3 => return Err(Error::msg("no result is fp8")),
            })),
            #[cfg(feature = "cuda")]
            Self::Cuda { device, .. } => {
                let len = len.max(1); // the driver allocates no empty memory
                // SAFETY: every element is written by the launch before anything reads it: results are turned or copied
                // whole, and roots, sums and the gradient of a weight are written before they are read.
                let slice = unsafe {
                    match dtype {
                        DType::F32 => CudaStorageSlice::F32(device.alloc(len)?),
                        DType::F16 => CudaStorageSlice::F16(device.alloc(len)?),
                        DType::BF16 => CudaStorageSlice::BF16(device.alloc(len)?),
                        DType::E4M3 => return Err(Error::msg("no result is fp8")),
                    }
                };
                Ok(Storage::Cuda(CudaStorage { slice, device: device.clone() }))
            }
        }
    }

    /// Where a tensor begins.
    fn read<'a>(&'a self, reading: &'a Reading<'_>) -> Result<Used<'a>> {
        let offset = |size: usize| reading.layout.start_offset() * size;
        match (self, &*reading.storage) {
            (Self::Cpu, Storage::Cpu(storage)) => {
                let (start, size) = match storage {
                    CpuStorage::F32(data) => (data.as_ptr().cast::<c_void>(), 4),
                    CpuStorage::F16(data) => (data.as_ptr().cast(), 2),
                    CpuStorage::BF16(data) => (data.as_ptr().cast(), 2),
                    CpuStorage::U32(data) => (data.as_ptr().cast(), 4),
                    CpuStorage::I32(data) => (data.as_ptr().cast(), 4),
                    CpuStorage::I64(data) => (data.as_ptr().cast(), 8),
                    _ => return Err(Error::msg("a tensor is of a type that no argument has")),
                };
                Ok(Used::on_cpu(start.wrapping_byte_add(offset(size)).cast_mut()))
            }
            #[cfg(feature = "cuda")]
            (Self::Cuda { stream, .. }, Storage::Cuda(storage)) => {
                use driver::DevicePtr;
                let ((start, guard), size) = match &storage.slice {
                    CudaStorageSlice::F32(data) => (data.device_ptr(stream), 4),
                    CudaStorageSlice::F16(data) => (data.device_ptr(stream), 2),
                    CudaStorageSlice::BF16(data) => (data.device_ptr(stream), 2),
                    CudaStorageSlice::U32(data) => (data.device_ptr(stream), 4),
                    CudaStorageSlice::I32(data) => (data.device_ptr(stream), 4),
                    CudaStorageSlice::I64(data) => (data.device_ptr(stream), 8),
                    _ => return Err(Error::msg("a tensor is of a type that no argument has")),
                };
                let address = (start as usize + offset(size)) as *mut c_void;
                Ok(Used { address, _guard: Some(guard), lives: PhantomData })
            }
            _ => Err(Error::msg("a tensor is on another device than q")),
        }
    }

    /// Where a result begins.
    fn written<'a>(&'a self, storage: &'a mut Storage) -> Result<Used<'a>> {
        match (self, storage) {
            (Self::Cpu, Storage::Cpu(storage)) => Ok(Used::on_cpu(match storage {
                CpuStorage::F32(data) => data.as_mut_ptr().cast(),
                CpuStorage::F16(data) => data.as_mut_ptr().cast(),
                CpuStorage::BF16(data) => data.as_mut_ptr().cast(),
                _ => return Err(Error::msg("no result is of this type")),
            })),
            #[cfg(feature = "cuda")]
            (Self::Cuda { stream, .. }, Storage::Cuda(storage)) => {
                use driver::DevicePtrMut;
                let (start, guard) = match &mut storage.slice {
                    CudaStorageSlice::F32(data) => data.device_ptr_mut(stream),
                    CudaStorageSlice::F16(data) => data.device_ptr_mut(stream),
                    CudaStorageSlice::BF16(data) => data.device_ptr_mut(stream),
                    _ => return Err(Error::msg("no result is of this type")),
                };
                Ok(Used { address: start as usize as *mut c_void, _guard: Some(guard), lives: PhantomData })
            }
            _ => Err(Error::msg("a result is on another device than q")),
        }
    }
}

impl Used<'_> {
    fn on_cpu(address: *mut c_void) -> Self {
        Self {
            address,
            #[cfg(feature = "cuda")]
            _guard: None,
            lives: PhantomData,
        }
    }
}
