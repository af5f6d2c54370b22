//! What stands beside the rotation: the arguments of a norm, and of appending to a cache.

use std::ffi::c_void;
use std::marker::PhantomData;
use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DevicePtrMut};

use super::borrowed::{Borrowed, Location, UNREACHABLE};
use super::tensor::{Element, Input, Tensor};
use crate::error::{Error, Result};
use crate::rope::DType;
use crate::service::device::Memory;

/// The type of the numbers of a [`Vector`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NumberType {
    /// Elements of tensors.
    Element(DType),
    /// 32-bit integers.
    I32,
    /// 64-bit integers.
    I64,
}

impl NumberType {
    /// Bytes of one.
    pub const fn size(self) -> usize {
        match self {
            Self::Element(dtype) => dtype.size(),
            Self::I32 => 4,
            Self::I64 => 8,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Element(dtype) => dtype.name(),
            Self::I32 => "i32",
            Self::I64 => "i64",
        }
    }
}

/// A number that a [`Vector`] can have: elements, `i32`, `i64`.
pub trait Number: sealed::Sealed + Copy {
    /// Its type.
    const TYPE: NumberType;
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for i32 {}
    impl Sealed for i64 {}
}

impl<T: Element> sealed::Sealed for T {}

impl<T: Element> Number for T {
    const TYPE: NumberType = NumberType::Element(T::DTYPE);
}

impl Number for i32 {
    const TYPE: NumberType = NumberType::I32;
}

impl Number for i64 {
    const TYPE: NumberType = NumberType::I64;
}

/// Contiguous numbers in one dimension: weights, reciprocal roots, scales, slots, page tables.
pub struct Vector<'a> {
    memory: Borrowed<'a>,
    pub(crate) number: NumberType,
    pub(crate) len: usize,
}

impl Vector<'static> {
    /// `len` numbers at an address of the engine's device.
    ///
    /// # Safety
    /// Until the stream has passed the call, they are valid memory of that device, aligned to a number, and not written by
    /// others (nor read, where the call writes them).
    pub unsafe fn from_raw(pointer: *mut c_void, number: NumberType, len: usize) -> Self {
        Self { memory: Borrowed::raw(pointer), number, len }
    }
}

impl<'a> Vector<'a> {
    /// Numbers in host memory that are read or written.
    pub fn host<T: Number>(data: &'a mut [T]) -> Self {
        let len = data.len();
        Self { memory: Borrowed::host(data.as_mut_ptr().cast_const().cast()), number: T::TYPE, len }
    }

    /// Numbers in host memory that are only read.
    pub fn host_input<T: Number>(data: &'a [T]) -> VectorInput<'a> {
        VectorInput(Self { memory: Borrowed::host(data.as_ptr().cast()), number: T::TYPE, len: data.len() })
    }

    /// Numbers in device memory that are read or written, used on `stream`.
    pub fn cuda<T: Number>(data: &'a mut CudaSlice<T>, stream: &'a Arc<CudaStream>) -> Self {
        let len = data.len();
        let (address, guard) = data.device_ptr_mut(stream);
        Self { memory: borrowed(address, guard, stream), number: T::TYPE, len }
    }

    /// Numbers in device memory that are only read, used on `stream`.
    pub fn cuda_input<T: Number>(data: &'a CudaSlice<T>, stream: &'a Arc<CudaStream>) -> VectorInput<'a> {
        let (address, guard) = data.device_ptr(stream);
        VectorInput(Self { memory: borrowed(address, guard, stream), number: T::TYPE, len: data.len() })
    }

    /// Numbers that start at a byte offset of a device's memory.
    pub(crate) fn in_memory(memory: &'a dyn Memory, offset: usize, number: NumberType, len: usize) -> Result<Self> {
        if memory.bytes().saturating_sub(offset) / number.size() < len {
            return Err(Error::argument("vector", format!("{len} numbers do not fit {} bytes", memory.bytes())));
        }
        Ok(Self { memory: Borrowed::in_memory(memory, offset), number, len })
    }

    /// Its address, when it is `number`s, `len` of them, where a call can use them; `name` is what the caller calls it.
    pub(crate) fn expect(&self, name: &str, number: NumberType, len: usize, place: Location) -> Result<u64> {
        if !self.memory.place.serves(place) {
            return Err(Error::argument(name, UNREACHABLE));
        }
        if self.number != number || self.len != len {
            let what =
                format!("is {} numbers of {}, {len} of {} are needed", self.len, self.number.name(), number.name());
            return Err(Error::argument(name, what));
        }
        if !self.memory.address.is_multiple_of(number.size() as u64) {
            return Err(Error::argument(name, "is not aligned to its numbers"));
        }
        Ok(self.memory.address)
    }
}

fn borrowed<'a>(address: u64, guard: cudarc::driver::SyncOnDrop<'a>, stream: &CudaStream) -> Borrowed<'a> {
    Borrowed { address, place: Location::cuda(stream), _guard: Some(guard), lives: PhantomData }
}

/// A vector that a call only reads.
pub struct VectorInput<'a>(pub(crate) Vector<'a>);

impl VectorInput<'static> {
    /// As [`Vector::from_raw`], for memory that is only read.
    ///
    /// # Safety
    /// As [`Vector::from_raw`].
    pub unsafe fn from_raw(pointer: *const c_void, number: NumberType, len: usize) -> Self {
        Self(Vector { memory: Borrowed::raw(pointer), number, len })
    }
}

impl<'a> From<Vector<'a>> for VectorInput<'a> {
    fn from(vector: Vector<'a>) -> Self {
        Self(vector)
    }
}

/// What the norm of a call needs beside its spec's [`Norm`](crate::rope::Norm).
pub struct NormArgs<'a> {
    /// Added to the mean of the squares.
    pub eps: f32,
    /// `[head_dim]` of the dtype; absent where the flavour has no weight.
    pub q_weight: Option<VectorInput<'a>>,
    /// `[head_dim]` of the dtype; absent where the flavour has no weight, or there is no k.
    pub k_weight: Option<VectorInput<'a>>,
    /// The reciprocal root of every head, f32 `[batch, tokens, heads]`: written by a forward call where it is given, and read by
    /// the backward call, which needs it.
    pub rsqrt: Option<SavedRsqrt<'a>>,
    /// What a backward call needs beside; forward calls have none.
    pub gradient: Option<NormGradient<'a>>,
}

/// The reciprocal roots of the heads of q and of k, f32.
pub struct SavedRsqrt<'a> {
    /// `[batch, tokens, num_heads]`.
    pub q: Vector<'a>,
    /// `[batch, tokens, num_kv_heads]`; absent when there is no k.
    pub k: Option<Vector<'a>>,
}

/// What the gradient of a norm reads and writes beside the gradients of q and k.
pub struct NormGradient<'a> {
    /// q as the forward call took it.
    pub q: Input<'a>,
    /// k as the forward call took it; absent when there is no k.
    pub k: Option<Input<'a>>,
    /// Receives the gradient of q's weight, `[head_dim]` of the dtype; absent where the flavour has no weight.
    pub q_weight: Option<Vector<'a>>,
    /// Receives the gradient of k's weight.
    pub k_weight: Option<Vector<'a>>,
    /// f32, [`weight_workspace`](crate::RopeSpec::weight_workspace) numbers: the partial sums of the weights' gradients. Absent
    /// where there is no weight.
    pub workspace: Option<Vector<'a>>,
}

/// What appending to a cache needs beside the spec's [`Append`](crate::rope::Append).
pub struct AppendArgs<'a> {
    /// v, of the tokens of k and as many heads, `v_head_dim` elements each; absent when that is 0.
    pub v: Option<Input<'a>>,
    /// `[blocks, block_size, num_kv_heads, k's head_dim]`, any strides of the first three. Its element type is
    /// [`DType::E4M3`] where the spec stores fp8.
    pub k_cache: Tensor<'a>,
    /// `[blocks, block_size, num_kv_heads, v_head_dim]`, as many blocks of as many slots; absent when there is no v.
    pub v_cache: Option<Tensor<'a>>,
    /// Where each token is stored. What lies outside of the cache is stored nowhere, and [`Rope::check`](crate::Rope::check)
    /// says so.
    pub slots: Slots<'a>,
    /// f32: one, or one for each head where the spec says so. Needed where q is written as fp8.
    pub q_scale: Option<VectorInput<'a>>,
    /// As `q_scale`, where the cache is of fp8.
    pub k_scale: Option<VectorInput<'a>>,
    /// As `q_scale`, where the cache is of fp8 and there is v.
    pub v_scale: Option<VectorInput<'a>>,
}

/// Where each token is stored.
#[allow(clippy::large_enum_variant)] // made once a call, on the stack
pub enum Slots<'a> {
    /// i64, a number for each token of the batch: the slot, counted through all blocks. −1: nowhere.
    Mapping(VectorInput<'a>),
    /// Page tables, i32.
    Pages {
        /// Blocks, request after request.
        kv_indices: VectorInput<'a>,
        /// Where each request's blocks begin, and where the last's end: a number more than there are requests.
        kv_indptr: VectorInput<'a>,
        /// Each token's request.
        batch_indices: VectorInput<'a>,
        /// Each token's place in its request. −1: stored nowhere.
        positions: VectorInput<'a>,
    },
}
