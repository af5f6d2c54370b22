//! The arguments of one call: tensors, tables and positions, checked where they are made so that a launch need not.

// Constructors of `from_raw` state what their callers vouch for; there is no unsafe block here.
#![allow(unsafe_code)]

mod beside;
pub(crate) mod borrowed;
mod positions;
mod tensor;

use std::borrow::Cow;
use std::ffi::c_void;
use std::marker::PhantomData;
use std::sync::Arc;

use borrowed::{Borrowed, Location};
use cudarc::driver::{CudaSlice, CudaStream, DevicePtr};

use crate::error::{Error, Result};
use crate::families::rope::params::AngleParams;
use crate::rope::scaling::TableMode;
use crate::rope::{DType, Layout};
use crate::service::device::Memory;

pub use beside::{AppendArgs, NormArgs, NormGradient, Number, NumberType, SavedRsqrt, Slots, Vector, VectorInput};
pub(crate) use borrowed::UNREACHABLE;
pub use positions::{CuSeqlens, Offsets, PositionIds, Positions};
use tensor::fits;
pub use tensor::{E4M3, Element, Input, Tensor};

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
