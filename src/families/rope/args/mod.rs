//! The arguments of one call: tensors, tables and positions, checked where they are made so that a launch need not.

// Constructors of `from_raw` state what their callers vouch for; there is no unsafe block here.
#![allow(unsafe_code)]

mod beside;
pub(crate) mod borrowed;
mod positions;

use std::borrow::Cow;
use std::ffi::c_void;
use std::marker::PhantomData;
use std::sync::Arc;

use borrowed::{Borrowed, Location};
use cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DevicePtrMut};

use crate::error::{Error, Result};
use crate::families::rope::params::AngleParams;
use crate::rope::scaling::TableMode;
use crate::rope::{DType, Layout};
use crate::service::device::Memory;

pub use beside::{AppendArgs, NormArgs, NormGradient, Number, NumberType, SavedRsqrt, Slots, Vector, VectorInput};
pub use positions::{CuSeqlens, Offsets, PositionIds, Positions};

/// An element type that tensors and tables can have: `f32`, [`half::f16`], [`half::bf16`]; caches also [`E4M3`].
pub trait Element: sealed::Sealed + Copy {
    /// Its name.
    const DTYPE: DType;
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for half::f16 {}
    impl Sealed for half::bf16 {}
    impl Sealed for super::E4M3 {}
}

/// An fp8 number, by its bits: e4m3fn, as `torch.float8_e4m3fn`. For caches, and q of specs that write it so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(transparent)]
pub struct E4M3(pub u8);

impl Element for E4M3 {
    const DTYPE: DType = DType::E4M3;
}

impl Element for f32 {
    const DTYPE: DType = DType::F32;
}

impl Element for half::f16 {
    const DTYPE: DType = DType::F16;
}

impl Element for half::bf16 {
    const DTYPE: DType = DType::BF16;
}

/// A tensor of q or k, read or written by a call.
pub struct Tensor<'a> {
    memory: Borrowed<'a>,
    pub(crate) dtype: DType,
    pub(crate) layout: Layout,
}

impl Tensor<'static> {
    /// A tensor at an address of the engine's device.
    ///
    /// # Safety
    /// Until the stream has passed the call, every element that `layout` reaches from `pointer` is valid memory of that
    /// device, aligned to its element, and not written by others (nor read, where the call writes it).
    pub unsafe fn from_raw(pointer: *mut c_void, dtype: DType, layout: Layout) -> Self {
        Self { memory: Borrowed::raw(pointer), dtype, layout }
    }
}

impl<'a> Tensor<'a> {
    /// A tensor in host memory that is read or written, for the host device.
    ///
    /// # Errors
    /// When the layout reaches outside of the slice.
    pub fn host<T: Element>(data: &'a mut [T], layout: Layout) -> Result<Self> {
        fits(&layout, data.len())?;
        // A pointer that may be written through.
        Ok(Self { memory: Borrowed::host(data.as_mut_ptr().cast_const().cast()), dtype: T::DTYPE, layout })
    }

    /// A tensor in host memory that is only read: the input of an out-of-place call.
    ///
    /// # Errors
    /// When the layout reaches outside of the slice.
    pub fn host_input<T: Element>(data: &'a [T], layout: Layout) -> Result<Input<'a>> {
        fits(&layout, data.len())?;
        Ok(Input(Self { memory: Borrowed::host(data.as_ptr().cast()), dtype: T::DTYPE, layout }))
    }

    /// A tensor in device memory, used on `stream`.
    ///
    /// # Errors
    /// When the layout reaches outside of the slice.
    pub fn cuda<T: Element>(data: &'a mut CudaSlice<T>, layout: Layout, stream: &'a Arc<CudaStream>) -> Result<Self> {
        fits(&layout, data.len())?;
        let (address, guard) = data.device_ptr_mut(stream);
        Ok(Self {
            memory: Borrowed { address, place: Location::cuda(stream), _guard: Some(guard), lives: PhantomData },
            dtype: T::DTYPE,
            layout,
        })
    }

    /// A tensor that starts at a byte offset of a device's memory.
    pub(crate) fn in_memory(memory: &'a dyn Memory, offset: usize, dtype: DType, layout: Layout) -> Result<Self> {
        fits(&layout, memory.bytes().saturating_sub(offset) / dtype.size())?;
        Ok(Self { memory: Borrowed::in_memory(memory, offset), dtype, layout })
    }

    pub(crate) fn address(&self) -> u64 {
        self.memory.address
    }

    pub(crate) fn place(&self) -> Location {
        self.memory.place
    }
}

/// A tensor that a call only reads.
pub struct Input<'a>(pub(crate) Tensor<'a>);

impl Input<'static> {
    /// As [`Tensor::from_raw`], for memory that is only read.
    ///
    /// # Safety
    /// As [`Tensor::from_raw`].
    pub unsafe fn from_raw(pointer: *const c_void, dtype: DType, layout: Layout) -> Self {
        Self(Tensor { memory: Borrowed::raw(pointer), dtype, layout })
    }
}

impl<'a> From<Tensor<'a>> for Input<'a> {
    fn from(tensor: Tensor<'a>) -> Self {
        Self(tensor)
    }
}

/// q or k of a call.
pub struct Operand<'a> {
    pub(crate) tensor: Tensor<'a>,
    pub(crate) output: Option<Tensor<'a>>,
}

impl<'a> Operand<'a> {
    /// Rotated where it is.
    pub fn in_place(tensor: Tensor<'a>) -> Self {
        Self { tensor, output: None }
    }

    /// Only read: k, where the spec appends it to a cache.
    pub fn read_only(input: impl Into<Input<'a>>) -> Self {
        Self { tensor: input.into().0, output: None }
    }

    /// Read from one tensor, written to another. They must not overlap.
    pub fn out_of_place(input: impl Into<Input<'a>>, output: Tensor<'a>) -> Self {
        Self { tensor: input.into().0, output: Some(output) }
    }
}

/// The cos and sin tables: `rows` rows of [`table_width`](crate::RopeSpec::table_width) values each, one row a position.
///
/// Tables with one row per token (as transformers passes them) are tables by position whose batch stride is that of the
/// batch, used with the offset 0.
pub struct Tables<'a> {
    cos: Borrowed<'a>,
    sin: Borrowed<'a>,
    pub(crate) dtype: DType,
    pub(crate) rows: usize,
    pub(crate) width: usize,
    pub(crate) row_stride: i64,
    pub(crate) batch_stride: i64,
    /// Sequences that have rows of their own; `None`: the caller vouches for it.
    pub(crate) batch: Option<usize>,
    /// What they are made of, when the engine has made them.
    pub(crate) made: Option<Made<'a>>,
}

/// What cos and sin are made of.
pub(crate) struct Made<'a> {
    pub mode: TableMode,
    pub angles: Cow<'a, AngleParams>,
}

impl Tables<'static> {
    /// Tables at addresses of the engine's device; strides of sequence and row in elements (a batch stride of 0 shares
    /// the rows).
    ///
    /// # Safety
    /// Until the stream has passed the call, all rows that the strides reach are valid memory of that device.
    pub unsafe fn from_raw(
        cos: *const c_void,
        sin: *const c_void,
        dtype: DType,
        rows: usize,
        width: usize,
        [batch_stride, row_stride]: [i64; 2],
    ) -> Self {
        let (cos, sin) = (Borrowed::raw(cos), Borrowed::raw(sin));
        Self { cos, sin, dtype, rows, width, row_stride, batch_stride, batch: None, made: None }
    }
}

impl<'a> Tables<'a> {
    /// Contiguous tables in host memory: `[batch, rows, width]`, or `[rows, width]` for all sequences (`batch` 1).
    ///
    /// # Errors
    /// When the two differ in length, or are no whole number of rows.
    pub fn host<T: Element>(cos: &'a [T], sin: &'a [T], batch: usize, width: usize) -> Result<Self> {
        let at = |data: &[T]| Borrowed::host(data.as_ptr().cast());
        Self::contiguous(at(cos), at(sin), T::DTYPE, [cos.len(), sin.len()], batch, width)
    }

    /// Contiguous tables in device memory, used on `stream`: `[batch, rows, width]`, or `[rows, width]` for all sequences
    /// (`batch` 1).
    ///
    /// # Errors
    /// When the two differ in length, or are no whole number of rows.
    pub fn cuda<T: Element>(
        cos: &'a CudaSlice<T>,
        sin: &'a CudaSlice<T>,
        batch: usize,
        width: usize,
        stream: &'a Arc<CudaStream>,
    ) -> Result<Self> {
        let at = |data: &'a CudaSlice<T>| {
            let (address, guard) = data.device_ptr(stream);
            Borrowed { address, place: Location::cuda(stream), _guard: Some(guard), lives: PhantomData }
        };
        Self::contiguous(at(cos), at(sin), T::DTYPE, [cos.len(), sin.len()], batch, width)
    }

    /// Both tables in a device's memory: cos in the first half, sin in the second, `rows` rows each.
    pub(crate) fn in_memory(memory: &'a dyn Memory, dtype: DType, rows: usize, width: usize) -> Result<Self> {
        let half = memory.bytes() / 2;
        fits(&Layout::thd(rows, 1, width), half / dtype.size())?;
        let [cos, sin] = [0, half].map(|offset| Borrowed::in_memory(memory, offset));
        Self::contiguous(cos, sin, dtype, [rows * width; 2], 1, width)
    }

    /// Rows `[cos | sin]` that an engine has made, from `address` on, in memory that it keeps for as long as what `made`
    /// borrows.
    pub(crate) fn made(address: u64, place: Location, rows: usize, width: usize, made: Made<'a>) -> Self {
        let [cos, sin] = [0, 4 * width as u64].map(|offset| Borrowed {
            address: address + offset,
            place,
            _guard: None,
            lives: PhantomData,
        });
        let row_stride = 2 * width as i64;
        let (dtype, batch, made) = (DType::F32, Some(1), Some(made));
        Self { cos, sin, dtype, rows, width, row_stride, batch_stride: 0, batch, made }
    }

    /// No rows at all: angles are computed, and no position is outside.
    pub(crate) fn computed(width: usize, made: Made<'a>) -> Self {
        let none = || Borrowed { address: 0, place: Location::Raw, _guard: None, lives: PhantomData };
        let (dtype, rows, row_stride, batch_stride, batch) = (DType::F32, i64::MAX as usize, 0, 0, Some(1));
        Self { cos: none(), sin: none(), dtype, rows, width, row_stride, batch_stride, batch, made: Some(made) }
    }

    fn contiguous(
        cos: Borrowed<'a>,
        sin: Borrowed<'a>,
        dtype: DType,
        [cos_len, sin_len]: [usize; 2],
        batch: usize,
        width: usize,
    ) -> Result<Self> {
        if cos_len != sin_len {
            return Err(Error::argument("sin", format!("{sin_len} values, but cos has {cos_len}")));
        }
        let step = batch.checked_mul(width).filter(|&s| s > 0 && cos_len % s == 0);
        let Some(step) = step else {
            let what = format!("{cos_len} values are no whole number of rows of {width} for {batch} sequences");
            return Err(Error::argument("cos", what));
        };
        let rows = cos_len / step;
        let batch_stride = if batch > 1 { (rows * width) as i64 } else { 0 };
        Ok(Self {
            cos,
            sin,
            dtype,
            rows,
            width,
            row_stride: width as i64,
            batch_stride,
            batch: Some(batch),
            made: None,
        })
    }

    pub(crate) fn addresses(&self) -> (u64, u64) {
        (self.cos.address, self.sin.address)
    }

    pub(crate) fn places(&self) -> [Location; 2] {
        [self.cos.place, self.sin.place]
    }
}

/// The arguments of one call. They can be sent to another thread, but two threads cannot share them: both could write the same
/// tensor.
///
/// ```compile_fail,E0277
/// fn shared_by_threads<T: Sync>() {}
/// shared_by_threads::<ropejit::Args<'static>>();
/// ```
pub struct Args<'a> {
    /// The queries.
    pub q: Operand<'a>,
    /// The keys; absent when the spec has no k.
    pub k: Option<Operand<'a>>,
    /// cos and sin.
    pub tables: Tables<'a>,
    /// Where each token stands.
    pub positions: Positions<'a>,
    /// For specs with a norm.
    pub norm: Option<NormArgs<'a>>,
    /// For specs that append to a cache. Their k is only read: it goes to the cache.
    pub append: Option<AppendArgs<'a>>,
}

impl<'a> Args<'a> {
    /// The arguments of a rotation that has nothing beside it.
    pub fn new(q: Operand<'a>, k: Option<Operand<'a>>, tables: Tables<'a>, positions: Positions<'a>) -> Self {
        Self { q, k, tables, positions, norm: None, append: None }
    }
}

pub(crate) const UNREACHABLE: &str =
    "is in memory that the call cannot use: not of the engine's device, or borrowed for another stream";

fn fits(layout: &Layout, len: usize) -> Result<()> {
    match layout.extent() {
        Some((low, high)) if low >= 0 && high as u64 <= len as u64 => Ok(()),
        Some((low, high)) => {
            Err(Error::argument("layout", format!("reaches elements {low}..{high} of a slice of {len}")))
        }
        None => Err(Error::argument("layout", "its shape and strides reach past a 64-bit offset")),
    }
}
