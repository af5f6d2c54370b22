//! A tensor of `DLPack`'s, read and checked.

#![allow(unsafe_code)]

use std::ffi::c_void;

use ropejit::args::{NumberType, Vector};
use ropejit::{DType, Layout, Result};

use crate::dlpack::{DLDataType, DLTensor};
use crate::pointers::slice;
use crate::status::wrong;

/// Where an engine computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Host,
    Cuda(i32),
}

/// The order of q's and k's dimensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// `[batch, tokens, heads, head_dim]`, or `[tokens, heads, head_dim]`.
    TokensFirst,
    /// `[batch, heads, tokens, head_dim]`.
    HeadsFirst,
}

/// A tensor's address, type, shape and strides.
pub struct View<'a> {
    pub name: &'a str,
    pub address: *mut c_void,
    pub number: NumberType,
    shape: &'a [i64],
    strides: Vec<i64>,
}

impl<'a> View<'a> {
    /// # Safety
    /// Its shape and strides are what it says for `'a`.
    pub unsafe fn of(name: &'a str, tensor: &DLTensor, place: Place) -> Result<Self> {
        let here = match (tensor.device.device_type, place) {
            (1 | 3, Place::Host) => true,
            (2 | 13, Place::Cuda(gpu)) => tensor.device.device_id == gpu,
            _ => false,
        };
        if !here {
            let (kind, number) = (tensor.device.device_type, tensor.device.device_id);
            return Err(wrong(
                name,
                format!("is on DLPack's device {kind}:{number}, the engine computes on {place:?}"),
            ));
        }
        let number = match (tensor.dtype.code, tensor.dtype.bits, tensor.dtype.lanes) {
            (0, 32, 1) => NumberType::I32,
            (0, 64, 1) => NumberType::I64,
            (2, 32, 1) => NumberType::Element(DType::F32),
            (2, 16, 1) => NumberType::Element(DType::F16),
            (4, 16, 1) => NumberType::Element(DType::BF16),
            (10, 8, 1) => NumberType::Element(DType::E4M3),
            _ => {
                let DLDataType { code, bits, lanes } = tensor.dtype;
                return Err(wrong(name, format!("has DLPack's type ({code}, {bits}, {lanes}), which no argument has")));
            }
        };
        let dims = usize::try_from(tensor.ndim).ok().filter(|dims| *dims <= 8);
        let Some(dims) = dims else { return Err(wrong(name, format!("has {} dimensions", tensor.ndim))) };
        // SAFETY: this function's contract.
        let shape = unsafe { slice(name, tensor.shape.cast_const(), dims) }?;
        if shape.iter().any(|n| *n < 0) {
            return Err(wrong(name, format!("has the shape {shape:?}")));
        }
        let strides = if tensor.strides.is_null() {
            compact(shape)
        } else {
            // SAFETY: this function's contract.
            unsafe { slice(name, tensor.strides.cast_const(), dims) }?.to_vec()
        };
        if tensor.data.is_null() && !shape.contains(&0) {
            return Err(wrong(name, "has a null pointer for data"));
        }
        let address = tensor.data.wrapping_byte_add(tensor.byte_offset as usize);
        Ok(Self { name, address, number, shape, strides })
    }

    pub fn wrong(&self, what: &str) -> ropejit::Error {
        wrong(self.name, format!("has the shape {:?}, {what} is needed", self.shape))
    }

    /// Shape and strides, as [`slice`]'s patterns want them.
    pub fn dims(&self) -> (&[i64], &[i64]) {
        (self.shape, &self.strides)
    }

    pub fn element(&self) -> Result<DType> {
        match self.number {
            NumberType::Element(dtype) => Ok(dtype),
            NumberType::I32 | NumberType::I64 => {
                Err(wrong(self.name, "has integers, numbers with a fraction are needed"))
            }
        }
    }

    /// Whether its integers are i64.
    pub fn wide(&self) -> Result<bool> {
        match self.number {
            NumberType::I32 => Ok(false),
            NumberType::I64 => Ok(true),
            NumberType::Element(dtype) => {
                Err(wrong(self.name, format!("has numbers of {dtype}, i32 or i64 is needed")))
            }
        }
    }

    /// How heads lie in memory.
    pub fn layout(&self, order: Order) -> Result<Layout> {
        let (shape, strides) = match (self.shape, &self.strides[..], order) {
            (&[t, h, d], &[ts, hs, ds], Order::TokensFirst) => ([1, t, h, d], [0, ts, hs, ds]),
            (&[b, t, h, d], &[bs, ts, hs, ds], Order::TokensFirst)
            | (&[b, h, t, d], &[bs, hs, ts, ds], Order::HeadsFirst) => ([b, t, h, d], [bs, ts, hs, ds]),
            (_, _, Order::TokensFirst) => {
                return Err(self.wrong("[batch, tokens, heads, head_dim] or [tokens, heads, head_dim]"));
            }
            (_, _, Order::HeadsFirst) => return Err(self.wrong("[batch, heads, tokens, head_dim]")),
        };
        Ok(Layout { shape: shape.map(|n| n as usize), strides })
    }

    /// Its numbers, which lie one behind the other.
    ///
    /// # Safety
    /// As [`Vector::from_raw`].
    pub unsafe fn vector(&self) -> Result<Vector<'static>> {
        let mut dense = 1;
        for (n, stride) in self.shape.iter().zip(&self.strides).rev() {
            if *n > 1 && *stride != dense {
                return Err(wrong(self.name, "must be contiguous"));
            }
            dense = dense.saturating_mul(*n);
        }
        // SAFETY: this function's contract.
        Ok(unsafe { Vector::from_raw(self.address, self.number, usize::try_from(dense).unwrap_or_default()) })
    }
}

/// Strides of a compact tensor.
fn compact(shape: &[i64]) -> Vec<i64> {
    let mut strides = vec![1i64; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis].saturating_mul(shape[axis].max(1));
    }
    strides
}
