//! `DLPack`'s tensor, as its header has it.

use std::ffi::c_void;

/// Where a tensor is.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct DLDevice {
    /// 1: the processor, 2: CUDA, 3: the processor, pinned, 13: CUDA, managed.
    pub device_type: i32,
    /// Which of them.
    pub device_id: i32,
}

/// The type of an element.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct DLDataType {
    /// 0: integers, 2: IEEE floats, 4: bfloat16, 10: fp8 (e4m3fn).
    pub code: u8,
    /// Of an element.
    pub bits: u8,
    /// 1.
    pub lanes: u16,
}

/// A tensor that its library owns.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct DLTensor {
    /// Where it begins, but for `byte_offset`.
    pub data: *mut c_void,
    /// Where it is.
    pub device: DLDevice,
    /// Numbers in `shape` and `strides`.
    pub ndim: i32,
    /// The type of its elements.
    pub dtype: DLDataType,
    /// Elements along each dimension.
    pub shape: *mut i64,
    /// Distances along each dimension, in elements; null: it is compact, the last dimension first.
    pub strides: *mut i64,
    /// From `data` to the first element.
    pub byte_offset: u64,
}
