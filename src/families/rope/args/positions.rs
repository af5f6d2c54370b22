//! Where tokens stand.

use std::ffi::c_void;

use super::borrowed::{Borrowed, Location};
use crate::error::{Error, Result};
use crate::service::device::Memory;

/// Where each token stands. A token whose position lies outside the tables becomes NaN, and [`Rope::check`] says so.
///
/// [`Rope::check`]: crate::Rope::check
pub enum Positions<'a> {
    /// Token `s` of every sequence stands at `offset + s`.
    Offset(i64),
    /// One number per token.
    Ids(PositionIds<'a>),
    /// One offset per sequence: token `s` of sequence `b` stands at `offset[b] + s`.
    Offsets(Offsets<'a>),
    /// Sequences packed one after the other in one of `[tokens, heads, head_dim]`.
    Packed {
        /// Where each begins, and where the last ends.
        cu_seqlens: CuSeqlens<'a>,
        /// The position of each one's first token, i32 or i64; absent: 0.
        offsets: Option<Offsets<'a>>,
    },
}

/// One offset per sequence, i32 or i64.
pub struct Offsets<'a> {
    memory: Borrowed<'a>,
    pub(crate) wide: bool,
    /// How many there are; `None`: the caller vouches for it.
    pub(crate) len: Option<usize>,
}

impl Offsets<'static> {
    /// i64 when `wide`, else i32, contiguous at an address of the engine's device.
    ///
    /// # Safety
    /// Until the stream has passed the call, the numbers of all its sequences are valid memory of that device.
    pub unsafe fn from_raw(pointer: *const c_void, wide: bool) -> Self {
        Self { memory: Borrowed::raw(pointer), wide, len: None }
    }
}

impl<'a> Offsets<'a> {
    /// i32 numbers in host memory.
    pub fn host_i32(offsets: &'a [i32]) -> Self {
        Self { memory: Borrowed::host(offsets.as_ptr().cast()), wide: false, len: Some(offsets.len()) }
    }

    /// i64 numbers in host memory.
    pub fn host_i64(offsets: &'a [i64]) -> Self {
        Self { memory: Borrowed::host(offsets.as_ptr().cast()), wide: true, len: Some(offsets.len()) }
    }

    /// The first `len` numbers of a device's memory.
    pub(crate) fn in_memory(memory: &'a dyn Memory, wide: bool, len: usize) -> Self {
        let len = len.min(memory.bytes() / if wide { 8 } else { 4 });
        Self { memory: Borrowed::in_memory(memory, 0), wide, len: Some(len) }
    }

    pub(crate) fn address(&self) -> u64 {
        self.memory.address
    }

    pub(crate) fn place(&self) -> Location {
        self.memory.place
    }
}

/// `cu_seqlens`: `sequences + 1` numbers, i32 or i64, that ascend: where each sequence begins, and where the last ends. It may
/// end behind the tokens that there are. A token in front of the first or at or behind the last is in no sequence, and
/// stays as it is.
pub struct CuSeqlens<'a> {
    memory: Borrowed<'a>,
    pub(crate) wide: bool,
    pub(crate) sequences: usize,
}

impl CuSeqlens<'static> {
    /// `sequences + 1` numbers at an address of the engine's device, i64 when `wide`, else i32. Where they do not ascend, a
    /// token is turned as one of some sequence that contains it, or of none.
    ///
    /// # Safety
    /// Until the stream has passed the call, they are valid memory of that device.
    pub unsafe fn from_raw(pointer: *const c_void, wide: bool, sequences: usize) -> Self {
        Self { memory: Borrowed::raw(pointer), wide, sequences }
    }
}

impl<'a> CuSeqlens<'a> {
    /// i32 numbers in host memory.
    ///
    /// # Errors
    /// When there is none, or they do not ascend from 0 or above.
    pub fn host_i32(cu_seqlens: &'a [i32]) -> Result<Self> {
        Self::ascending(cu_seqlens, false)
    }

    /// i64 numbers in host memory.
    ///
    /// # Errors
    /// As [`CuSeqlens::host_i32`].
    pub fn host_i64(cu_seqlens: &'a [i64]) -> Result<Self> {
        Self::ascending(cu_seqlens, true)
    }

    fn ascending<T: PartialOrd + Default>(numbers: &'a [T], wide: bool) -> Result<Self> {
        if numbers.first().is_none_or(|first| *first < T::default()) || numbers.windows(2).any(|w| w[0] > w[1]) {
            return Err(Error::argument("cu_seqlens", "must be one number or more, ascending from 0 or above"));
        }
        Ok(Self { memory: Borrowed::host(numbers.as_ptr().cast()), wide, sequences: numbers.len() - 1 })
    }

    /// All numbers of a device's memory.
    pub(crate) fn in_memory(memory: &'a dyn Memory, wide: bool) -> Self {
        let len = memory.bytes() / if wide { 8 } else { 4 };
        Self { memory: Borrowed::in_memory(memory, 0), wide, sequences: len.saturating_sub(1) }
    }

    pub(crate) fn address(&self) -> u64 {
        self.memory.address
    }

    pub(crate) fn place(&self) -> Location {
        self.memory.place
    }
}

/// `position_ids`, i32 or i64; with three axes `[3, batch, tokens]`.
pub struct PositionIds<'a> {
    memory: Borrowed<'a>,
    pub(crate) wide: bool,
    /// Axis, batch, token; in elements.
    pub(crate) strides: [i64; 3],
    /// Axes, sequences and tokens that have numbers; `None`: the caller vouches for it.
    pub(crate) shape: Option<[usize; 3]>,
}

impl PositionIds<'static> {
    /// i64 when `wide`, else i32, at an address of the engine's device; strides of axis, batch and token in elements (a
    /// batch stride of 0 shares them; without axes theirs means nothing).
    ///
    /// # Safety
    /// Until the stream has passed the call, the numbers of all its tokens are valid memory of that device.
    pub unsafe fn from_raw(pointer: *const c_void, wide: bool, strides: [i64; 3]) -> Self {
        Self { memory: Borrowed::raw(pointer), wide, strides, shape: None }
    }
}

impl<'a> PositionIds<'a> {
    /// i32 numbers in host memory: `[axes, batch, tokens]`, `axes` being 3 or 1; a `batch` of 1 serves all sequences.
    ///
    /// # Errors
    /// When there are not as many of them.
    pub fn host_i32(ids: &'a [i32], axes: usize, batch: usize, tokens: usize) -> Result<Self> {
        Self::contiguous(Borrowed::host(ids.as_ptr().cast()), false, ids.len(), [axes, batch, tokens])
    }

    /// i64 numbers in host memory, as [`PositionIds::host_i32`].
    ///
    /// # Errors
    /// When there are not as many of them.
    pub fn host_i64(ids: &'a [i64], axes: usize, batch: usize, tokens: usize) -> Result<Self> {
        Self::contiguous(Borrowed::host(ids.as_ptr().cast()), true, ids.len(), [axes, batch, tokens])
    }

    /// Numbers of `tokens` tokens in a device's memory, for all sequences.
    pub(crate) fn in_memory(memory: &'a dyn Memory, wide: bool, axes: usize, tokens: usize) -> Result<Self> {
        let len = memory.bytes() / if wide { 8 } else { 4 };
        Self::contiguous(Borrowed::in_memory(memory, 0), wide, len.min(axes * tokens), [axes, 1, tokens])
    }

    fn contiguous(memory: Borrowed<'a>, wide: bool, len: usize, shape: [usize; 3]) -> Result<Self> {
        let [axes, batch, tokens] = shape;
        if axes.checked_mul(batch).and_then(|n| n.checked_mul(tokens)) != Some(len) {
            return Err(Error::argument("position_ids", format!("{len} numbers for {axes} × {batch} × {tokens}")));
        }
        let strides = [(batch * tokens) as i64, if batch > 1 { tokens as i64 } else { 0 }, 1];
        Ok(Self { memory, wide, strides, shape: Some(shape) })
    }

    pub(crate) fn address(&self) -> u64 {
        self.memory.address
    }

    pub(crate) fn place(&self) -> Location {
        self.memory.place
    }
}
