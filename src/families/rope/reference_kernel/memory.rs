//! Reads and writes what a launch points to.

#![allow(unsafe_code)]

use crate::rope::{DType, Fp8, reference};

/// Where the elements of a head begin, and how they are stored.
#[derive(Clone, Copy)]
pub struct Target {
    pub address: u64,
    /// The first element's number.
    pub first: i64,
    /// As fp8, with the scale; `None`: as elements of the dtype.
    pub fp8: Option<(Fp8, f32)>,
}

/// Number `at` of those at an address, i64 when `wide`, else i32.
///
/// # Safety
/// It is valid for a read.
pub unsafe fn integer(address: u64, wide: bool, at: i64) -> i64 {
    let byte = address.wrapping_add_signed(at * if wide { 8 } else { 4 });
    if wide {
        // SAFETY: this function's contract.
        unsafe { (byte as *const i64).read() }
    } else {
        // SAFETY: as above.
        unsafe { (byte as *const i32).read() }.into()
    }
}

/// Reads an element.
///
/// # Safety
/// It is valid for a read.
pub unsafe fn read_element(dtype: DType, address: u64, index: i64) -> f32 {
    let size = dtype.size();
    let at = address.wrapping_add_signed(index * size as i64) as *const u8;
    // SAFETY: this function's contract.
    let bytes = unsafe { std::slice::from_raw_parts(at, size) };
    dtype.read(bytes, 0)
}

/// Reads `count` elements from one on; none where there is no address.
///
/// # Safety
/// They are valid for a read.
pub unsafe fn read_elements(dtype: DType, address: u64, first: i64, count: usize) -> Vec<f32> {
    let count = if address == 0 { 0 } else { count as i64 };
    // SAFETY: this function's contract.
    (first..first + count).map(|i| unsafe { read_element(dtype, address, i) }).collect()
}

/// Writes an element.
///
/// # Safety
/// It is valid for a write.
pub unsafe fn write_element(dtype: DType, address: u64, index: i64, x: f32) {
    let size = dtype.size();
    let at = address.wrapping_add_signed(index * size as i64) as *mut u8;
    // SAFETY: this function's contract.
    let bytes = unsafe { std::slice::from_raw_parts_mut(at, size) };
    dtype.write(bytes, 0, x);
}

impl Target {
    /// Stores a value of the dtype as element `i`.
    ///
    /// # Safety
    /// It is valid for a write.
    pub unsafe fn put(self, dtype: DType, i: usize, x: f32) {
        let at = self.first + i as i64;
        match self.fp8 {
            // SAFETY: this function's contract.
            None => unsafe { write_element(dtype, self.address, at, x) },
            Some((how, scale)) => {
                let to = self.address.wrapping_add_signed(at) as *mut u8;
                // SAFETY: as above.
                unsafe { to.write(reference::fp8(how, x, scale)) };
            }
        }
    }

    /// Stores what lies at an element: bit by bit where the type stays, so that a NaN keeps its payload.
    ///
    /// # Safety
    /// They are valid for a read and for a write.
    pub unsafe fn copy(self, dtype: DType, (from, index): (u64, i64), i: usize) {
        if self.fp8.is_some() {
            // SAFETY: this function's contract.
            let x = unsafe { read_element(dtype, from, index) };
            // SAFETY: as above.
            unsafe { self.put(dtype, i, x) };
            return;
        }
        let size = dtype.size();
        let at = |address: u64, index: i64| address.wrapping_add_signed(index * size as i64);
        let (from, to) = (at(from, index) as *const u8, at(self.address, self.first + i as i64) as *mut u8);
        // SAFETY: as above.
        unsafe { std::ptr::copy(from, to, size) };
    }
}
