//! What serves on the host where there is no C++ compiler: the reference, driven by the same arguments as a kernel.

#![allow(unsafe_code)] // reads and writes what a kernel would

use std::ffi::c_void;
use std::sync::atomic::{AtomicU64, Ordering};

use super::params::{AngleParams, Params, TensorParams};
use crate::device::{Geometry, Kernel, Stream};
use crate::error::Result;
use crate::rope::scaling::cos_sin;
use crate::rope::{DType, PositionForm, RopeSpec, TableWidth, reference};

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

    /// The position of a token on one axis; below 0 for a packed token behind the last sequence.
    ///
    /// # Safety
    /// As [`Kernel::launch`].
    unsafe fn position(&self, p: &Params, axis: i64, batch: i64, token: i64) -> i64 {
        let wide = matches!(self.spec.positions, PositionForm::Ids64 | PositionForm::Offsets64);
        // SAFETY: the caller vouches for every number that a position needs.
        let number = |at: i64| unsafe {
            if wide {
                (p.position_ids as *const i64).offset(at as isize).read()
            } else {
                (p.position_ids as *const i32).offset(at as isize).read().into()
            }
        };
        // SAFETY: the caller vouches for `packed_sequences + 1` numbers.
        let begins = |n: u64| i64::from(unsafe { (p.cu_seqlens as *const i32).add(n as usize).read() });
        match self.spec.positions {
            PositionForm::Implicit => p.position_offset + token,
            PositionForm::Offsets32 | PositionForm::Offsets64 => number(batch).wrapping_add(token),
            PositionForm::CuSeqlens => match (0..p.packed_sequences).find(|&n| begins(n + 1) > token) {
                None => -1,
                Some(n) => token - begins(n) + if p.position_ids == 0 { 0 } else { number(n as i64) },
            },
            PositionForm::Ids32 | PositionForm::Ids64 => number(
                axis * p.position_axis_stride + batch * p.position_batch_stride + token * p.position_token_stride,
            ),
        }
    }

    /// Turns one head.
    ///
    /// # Safety
    /// As [`Kernel::launch`].
    unsafe fn head(&self, p: &Params, angles: &AngleParams, t: &TensorParams, at: [i64; 3], rows: Option<[i64; 3]>) {
        let dot = |strides: &[i64; 3]| strides.iter().zip(at).map(|(s, i)| s * i).sum::<i64>();
        let (from, to) = (dot(&t.in_stride), dot(&t.out_stride));
        let dtype = self.spec.dtype;
        // SAFETY: the caller vouches for every element of the head.
        let read = |i: usize| unsafe { read_element(dtype, t.input, from + i as i64) };
        // SAFETY: as above.
        let write = |i: usize, x: f32| unsafe { write_element(dtype, t.output, to + i as i64, x) };
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
        if t.input != t.output {
            for i in self.spec.rotary_dim as usize..self.spec.head_dim as usize {
                write(i, read(i));
            }
        }
    }
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
                let axes = if self.spec.mrope.is_some() { 3 } else { 1 };
                // SAFETY: this function's contract.
                let row = |axis: i64| unsafe { self.position(p, axis.min(axes - 1), batch, token) };
                let rows = Some([row(0), row(1), row(2)]).filter(|r| r.iter().all(|r| (0..p.table_rows).contains(r)));
                if rows.is_none() {
                    // SAFETY: the fault word is valid for a write.
                    unsafe { AtomicU64::from_ptr(p.fault as *mut u64) }
                        .store(batch as u64 * p.tokens_total + token as u64 + 1, Ordering::Relaxed);
                }
                for (tensor, heads) in [(&p.q, self.spec.num_heads), (&p.k, self.spec.num_kv_heads)] {
                    for head in 0..i64::from(heads) {
                        // SAFETY: this function's contract.
                        unsafe { self.head(p, angles, tensor, [batch, token, head], rows) };
                    }
                }
            }
        }
        Ok(())
    }
}
