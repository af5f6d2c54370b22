//! q, k and v, caches and outputs: elements in memory, with a layout.

use std::ffi::c_void;
use std::marker::PhantomData;
use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, DevicePtrMut};

use super::borrowed::{Borrowed, Location};
use crate::error::{Error, Result};
use crate::rope::{DType, Layout};
use crate::service::device::Memory;

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
}

/// An fp8 number, by its bits: e4m3fn, as `torch.float8_e4m3fn`. For caches, and q of specs that write it so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(transparent)]
pub struct E4M3(pub u8);

impl sealed::Sealed for E4M3 {}

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

/// That a layout stays inside of so many elements.
pub(super) fn fits(layout: &Layout, len: usize) -> Result<()> {
    match layout.extent() {
        Some((low, high)) if low >= 0 && high as u64 <= len as u64 => Ok(()),
        Some((low, high)) => {
            Err(Error::argument("layout", format!("reaches elements {low}..{high} of a slice of {len}")))
        }
        None => Err(Error::argument("layout", "its shape and strides reach past a 64-bit offset")),
    }
}
