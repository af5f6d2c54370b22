//! What a call is given: numbers, and tensors by address.

// The constructor from an address states what its caller vouches for; there is no unsafe block here.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::marker::PhantomData;
use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DevicePtrMut, DeviceRepr, SyncOnDrop};

use super::element::Element;
use super::read::MOST_DIMENSIONS;
use crate::args::borrowed::Location;
use crate::error::{Error, Result};

/// An argument of a kernel of a user's. Numbers are made by `from`; a tensor is contiguous, its last dimension innermost.
pub struct Arg<'a>(pub(super) What<'a>);

pub(super) enum What<'a> {
    Integer(i64),
    Float(f64),
    Tensor(Tensor<'a>),
}

/// A tensor of a call.
pub(super) struct Tensor<'a> {
    pub address: u64,
    pub element: Element,
    pub rank: u8,
    pub shape: [u64; MOST_DIMENSIONS],
    /// Whether the kernel may write to it.
    pub writable: bool,
    pub place: Location,
    /// Tells cudarc when the stream has passed the use.
    _guard: Option<SyncOnDrop<'a>>,
    lives: PhantomData<&'a mut [u8]>,
}

/// A Rust type of elements.
pub trait ElementType: sealed::Sealed + Copy {
    /// Its name.
    const ELEMENT: Element;
}

mod sealed {
    pub trait Sealed {}
}

macro_rules! element_types {
    ($($rust:ty = $element:ident),*) => {$(
        impl sealed::Sealed for $rust {}
        impl ElementType for $rust {
            const ELEMENT: Element = Element::$element;
        }
    )*};
}

element_types!(
    f32 = F32,
    half::f16 = F16,
    half::bf16 = Bf16,
    f64 = F64,
    i8 = I8,
    u8 = U8,
    i16 = I16,
    u16 = U16,
    i32 = I32,
    u32 = U32,
    i64 = I64,
    u64 = U64
);

macro_rules! integers {
    ($($rust:ty),*) => {$(
        impl From<$rust> for Arg<'static> {
            fn from(n: $rust) -> Self {
                Self(What::Integer(n.into()))
            }
        }
    )*};
}

integers!(i8, u8, i16, u16, i32, u32, i64);

impl From<f32> for Arg<'static> {
    fn from(n: f32) -> Self {
        Self(What::Float(n.into()))
    }
}

impl From<f64> for Arg<'static> {
    fn from(n: f64) -> Self {
        Self(What::Float(n))
    }
}

impl From<usize> for Arg<'static> {
    /// A count; one that no tensor can have becomes the largest there is, which no argument fits.
    fn from(n: usize) -> Self {
        Self(What::Integer(i64::try_from(n).unwrap_or(i64::MAX)))
    }
}

impl Arg<'static> {
    /// A tensor at an address of the engine's device, for any role.
    ///
    /// # Errors
    /// When it has more dimensions than a description can say.
    ///
    /// # Safety
    /// Until the stream has passed the call, the elements of `shape` from `pointer` on are valid memory of that device, not
    /// written by others, nor read where the kernel writes them.
    pub unsafe fn from_raw(pointer: *mut c_void, element: Element, shape: &[u64]) -> Result<Self> {
        Self::tensor(pointer as u64, element, shape, true, Location::Raw, None)
    }
}

impl<'a> Arg<'a> {
    /// A tensor in host memory that is only read, for the host device.
    ///
    /// # Errors
    /// When the shape does not have as many elements as the slice.
    pub fn host<T: ElementType>(data: &'a [T], shape: &[u64]) -> Result<Self> {
        fits(shape, data.len())?;
        Self::tensor(data.as_ptr() as u64, T::ELEMENT, shape, false, Location::Host, None)
    }

    /// A tensor in host memory that is written, for the host device.
    ///
    /// # Errors
    /// When the shape does not have as many elements as the slice.
    pub fn host_mut<T: ElementType>(data: &'a mut [T], shape: &[u64]) -> Result<Self> {
        fits(shape, data.len())?;
        Self::tensor(data.as_mut_ptr() as u64, T::ELEMENT, shape, true, Location::Host, None)
    }

    /// A tensor in device memory that is only read, used on `stream`.
    ///
    /// # Errors
    /// When the shape does not have as many elements as the slice.
    pub fn cuda<T: ElementType + DeviceRepr>(
        data: &'a CudaSlice<T>,
        shape: &[u64],
        stream: &'a Arc<CudaStream>,
    ) -> Result<Self> {
        fits(shape, data.len())?;
        let (address, guard) = data.device_ptr(stream);
        Self::tensor(address, T::ELEMENT, shape, false, Location::cuda(stream), Some(guard))
    }

    /// A tensor in device memory that is written, used on `stream`.
    ///
    /// # Errors
    /// When the shape does not have as many elements as the slice.
    pub fn cuda_mut<T: ElementType + DeviceRepr>(
        data: &'a mut CudaSlice<T>,
        shape: &[u64],
        stream: &'a Arc<CudaStream>,
    ) -> Result<Self> {
        fits(shape, data.len())?;
        let (address, guard) = data.device_ptr_mut(stream);
        Self::tensor(address, T::ELEMENT, shape, true, Location::cuda(stream), Some(guard))
    }

    fn tensor(
        address: u64,
        element: Element,
        dimensions: &[u64],
        writable: bool,
        place: Location,
        guard: Option<SyncOnDrop<'a>>,
    ) -> Result<Self> {
        let mut shape = [0; MOST_DIMENSIONS];
        let Some(into) = shape.get_mut(..dimensions.len()) else {
            let what = format!("has {} dimensions, {MOST_DIMENSIONS} at most are served", dimensions.len());
            return Err(Error::argument("shape", what));
        };
        into.copy_from_slice(dimensions);
        let rank = dimensions.len() as u8;
        let tensor = Tensor { address, element, rank, shape, writable, place, _guard: guard, lives: PhantomData };
        Ok(Self(What::Tensor(tensor)))
    }
}

fn fits(shape: &[u64], len: usize) -> Result<()> {
    let elements = shape.iter().try_fold(1u64, |n, d| n.checked_mul(*d));
    if elements == Some(len as u64) {
        return Ok(());
    }
    Err(Error::argument("shape", format!("{shape:?} does not have as many elements as the slice, {len}")))
}
