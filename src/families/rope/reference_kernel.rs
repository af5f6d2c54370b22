//! What serves on the host where there is no C++ compiler: the reference, driven by the same arguments as a kernel.

#![allow(unsafe_code)] // reads and writes what a kernel would

use std::ffi::c_void;
use std::sync::atomic::{AtomicU64, Ordering};

use super::params::{AngleParams, Params, TensorParams};
use crate::error::Result;
use crate::rope::scaling::cos_sin;
use crate::rope::{DType, PositionForm, RopeSpec, TableWidth, reference};
use crate::service::device::{Geometry, Kernel, Stream};

/// The reference as a kernel.
pub(crate) struct ReferenceKernel {
    spec: RopeSpec,
}

impl ReferenceKernel {
    pub(crate) fn new(spec: &RopeSpec) -> Self {
        Self {
            spec: RopeSpec { table: crate::rope::TableForm { width: TableWidth::Half, ..spec.table }, ..spec.clone() },
        }
    }

    /// Where a token stands.
    ///
    /// # Safety
    /// As [`Kernel::launch`].
    unsafe fn stand(&self, p: &Params, batch: i64, token: i64) -> Stand {
        let form = self.spec.positions;
        let axes = if self.spec.mrope.is_some() { 3 } else { 1 };
        let (begin, offset) = if form.is_packed() {
            // SAFETY: the caller vouches for `packed_sequences + 1` numbers.
            let begins = |n: u32| unsafe { integer(p.cu_seqlens, form.is_wide(), n.into()) };
            let Some(n) = reference::sequence_of(token, p.packed_sequences, begins) else { return Stand::Nowhere };
            // SAFETY: where there are offsets, the caller vouches for one a sequence.
            let offset = || unsafe { integer(p.position_ids, p.wide_offsets != 0, n.into()) };
            (begins(n), if p.position_ids == 0 { 0 } else { offset() })
        } else {
            (0, 0)
        };
        let position = |axis: i64| {
            // SAFETY: the caller vouches for every number that a position needs.
            let number = |at: i64| unsafe { integer(p.position_ids, form.is_wide(), at) };
            match form {
                PositionForm::Implicit => p.position_offset + token,
                PositionForm::Offsets32 | PositionForm::Offsets64 => number(batch).wrapping_add(token),
                PositionForm::CuSeqlens | PositionForm::CuSeqlens64 => offset.wrapping_add(token).wrapping_sub(begin),
                PositionForm::Ids32 | PositionForm::Ids64 => number(
                    axis * p.position_axis_stride + batch * p.position_batch_stride + token * p.position_token_stride,
                ),
            }
        };
        let rows = [0, 1, 2].map(|axis: i64| position(axis.min(axes - 1)));
        if rows.iter().all(|row| (0..p.table_rows).contains(row)) { Stand::At(rows) } else { Stand::Outside }
    }

    /// Turns one head, or copies it.
    ///
    /// # Safety
    /// As [`Kernel::launch`].
    unsafe fn head(&self, p: &Params, angles: &AngleParams, t: &TensorParams, at: [i64; 3], stand: Stand) {
        let dot = |strides: &[i64; 3]| strides.iter().zip(at).map(|(s, i)| s * i).sum::<i64>();
        let (from, to) = (dot(&t.in_stride), dot(&t.out_stride));
        let dtype = self.spec.dtype;
        // SAFETY: the caller vouches for every element of the head.
        let read = |i: usize| unsafe { read_element(dtype, t.input, from + i as i64) };
        // SAFETY: as above.
        let write = |i: usize, x: f32| unsafe { write_element(dtype, t.output, to + i as i64, x) };
        let resting = if matches!(stand, Stand::Nowhere) { 0 } else { self.spec.rotary_dim };
        if t.input != t.output {
            for i in i64::from(resting)..i64::from(self.spec.head_dim) {
                // SAFETY: as above.
                unsafe { copy_element(dtype, (t.input, from + i), (t.output, to + i)) };
            }
        }
        let rows = match stand {
            Stand::Nowhere => return,
            Stand::Outside => None,
            Stand::At(rows) => Some(rows),
        };
        for i in 0..self.spec.rotary_dim as usize / 2 {
            let (first, second) = reference::pair(&self.spec, i);
            let axis = self.spec.mrope.map_or(0, |m| m.axis(i as u32));
            let turned = rows.map_or((f32::NAN, f32::NAN), |rows| {
                let row = rows[axis];
                if let (Some(mode), 0) = (self.spec.angles, p.cos) {
                    let angle = cos_sin(mode, row, angles.inv_freq[i], angles.factor);
                    return reference::rotate(&self.spec, (read(first), read(second)), angle);
                }
                let entry = at[0] * p.table_batch_stride + row * p.table_row_stride + i as i64;
                // SAFETY: the row lies inside the table.
                let (c, s) = unsafe {
                    (
                        read_element(self.spec.table.dtype, p.cos, entry),
                        read_element(self.spec.table.dtype, p.sin, entry),
                    )
                };
                reference::rotate(&self.spec, (read(first), read(second)), (c, s))
            });
            write(first, turned.0);
            write(second, turned.1);
        }
    }
}

/// Where a token stands.
#[derive(Clone, Copy)]
enum Stand {
    /// In no packed sequence: it stays as it is.
    Nowhere,
    /// Outside of the tables.
    Outside,
    /// At these rows of them, one an axis.
    At([i64; 3]),
}

/// Number `at` of those at an address, i64 when `wide`, else i32.
///
/// # Safety
/// It is valid for a read.
unsafe fn integer(address: u64, wide: bool, at: i64) -> i64 {
    let byte = address.wrapping_add_signed(at * if wide { 8 } else { 4 });
    if wide {
        // SAFETY: this function's contract.
        unsafe { (byte as *const i64).read() }
    } else {
        // SAFETY: as above.
        unsafe { (byte as *const i32).read() }.into()
    }
}

/// Copies an element, bit by bit: a NaN keeps its payload.
///
/// # Safety
/// They are valid for a read and for a write.
unsafe fn copy_element(dtype: DType, (from, i): (u64, i64), (to, j): (u64, i64)) {
    let size = dtype.size();
    let at = |address: u64, index: i64| address.wrapping_add_signed(index * size as i64);
    // SAFETY: this function's contract.
    unsafe { std::ptr::copy(at(from, i) as *const u8, at(to, j) as *mut u8, size) };
}

/// Reads an element.
///
/// # Safety
/// It is valid for a read.
unsafe fn read_element(dtype: DType, address: u64, index: i64) -> f32 {
    let size = dtype.size();
    let at = address.wrapping_add_signed(index * size as i64) as *const u8;
    // SAFETY: this function's contract.
    let bytes = unsafe { std::slice::from_raw_parts(at, size) };
    dtype.read(bytes, 0)
}

/// Writes an element.
///
/// # Safety
/// It is valid for a write.
unsafe fn write_element(dtype: DType, address: u64, index: i64, x: f32) {
    let size = dtype.size();
    let at = address.wrapping_add_signed(index * size as i64) as *mut u8;
    // SAFETY: this function's contract.
    let bytes = unsafe { std::slice::from_raw_parts_mut(at, size) };
    dtype.write(bytes, 0, x);
}

impl Kernel for ReferenceKernel {
    unsafe fn launch(&self, _: Stream<'_>, _: &Geometry, args: &[*const c_void]) -> Result<()> {
        // SAFETY: this function's contract: the parameters of these kernels.
        let (p, angles) = unsafe { (&*args[0].cast::<Params>(), &*args[1].cast::<AngleParams>()) };
        for batch in i64::from(p.batch_begin)..i64::from(p.batch_begin) + i64::from(p.sequences) {
            for token in i64::from(p.token_begin)..i64::from(p.token_begin) + i64::from(p.tokens.divisor()) {
                // SAFETY: this function's contract.
                let stand = unsafe { self.stand(p, batch, token) };
                if matches!(stand, Stand::Outside) {
                    // SAFETY: the fault word is valid for a write.
                    unsafe { AtomicU64::from_ptr(p.fault as *mut u64) }
                        .store(batch as u64 * p.tokens_total + token as u64 + 1, Ordering::Relaxed);
                }
                for (tensor, heads) in [(&p.q, self.spec.num_heads), (&p.k, self.spec.num_kv_heads)] {
                    for head in 0..i64::from(heads) {
                        // SAFETY: this function's contract.
                        unsafe { self.head(p, angles, tensor, [batch, token, head], stand) };
                    }
                }
            }
        }
        Ok(())
    }

    /// It is part of the program.
    fn keep(&self) {}
}
