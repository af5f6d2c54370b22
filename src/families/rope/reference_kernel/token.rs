//! What a launch is told, and what the heads of a token share: where it stands, cos and sin of its pairs.

#![allow(unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering};

use super::memory::{integer, read_element};
use crate::families::rope::params::{AngleParams, FusedParams, Params};
use crate::rope::scaling::cos_sin;
use crate::rope::{PositionForm, RopeSpec, reference};

/// What one launch is told.
pub struct Launch<'a> {
    pub spec: &'a RopeSpec,
    pub p: &'a Params,
    pub f: FusedParams,
    pub angles: &'a AngleParams,
}

/// A token, and what its heads share.
pub struct Token {
    pub batch: i64,
    /// Its number in its sequence of the batch.
    pub number: i64,
    pub stand: Stand,
    pub angles: Vec<(f32, f32)>,
}

/// Where a token stands.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Stand {
    /// In no packed sequence: it stays as it is.
    Nowhere,
    /// Outside of the tables.
    Outside,
    /// At these rows of them, one an axis.
    At([i64; 3]),
}

/// Where a head begins, counted in elements.
pub fn dot(strides: &[i64; 3], at: [i64; 3]) -> i64 {
    strides.iter().zip(at).map(|(s, i)| s * i).sum()
}

impl Launch<'_> {
    /// A token of the launch; one that stands outside of the tables is reported.
    ///
    /// # Safety
    /// As [`Kernel::launch`](crate::service::device::Kernel::launch).
    pub unsafe fn token(&self, batch: i64, token: i64) -> Token {
        // SAFETY: this function's contract.
        let stand = unsafe { stand(self.spec, self.p, batch, token) };
        if stand == Stand::Outside {
            // SAFETY: as above.
            unsafe { self.report(batch as u64 * self.p.tokens_total + token as u64 + 1) };
        }
        // SAFETY: as above.
        let angles = unsafe { angles_of(self.spec, self.p, self.angles, batch, stand) };
        Token { batch, number: token, stand, angles }
    }

    /// Stores what is reported.
    ///
    /// # Safety
    /// The fault word is valid for a write.
    pub unsafe fn report(&self, fault: u64) {
        // SAFETY: this function's contract.
        unsafe { AtomicU64::from_ptr(self.p.fault as *mut u64) }.store(fault, Ordering::Relaxed);
    }
}

/// Where a token stands.
///
/// # Safety
/// As [`Kernel::launch`](crate::service::device::Kernel::launch), with the parameters of this spec.
unsafe fn stand(spec: &RopeSpec, p: &Params, batch: i64, token: i64) -> Stand {
    let form = spec.positions;
    let axes = if spec.mrope.is_some() { 3 } else { 1 };
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

/// cos and sin of each pair of a token, as they stand in the tables or are computed; NaN where it stands outside, none where it
/// stays as it is.
///
/// # Safety
/// As [`stand`].
unsafe fn angles_of(spec: &RopeSpec, p: &Params, angles: &AngleParams, batch: i64, stand: Stand) -> Vec<(f32, f32)> {
    let pairs = spec.rotary_dim as usize / 2;
    let rows = match stand {
        Stand::Nowhere => return Vec::new(),
        Stand::Outside => return vec![(f32::NAN, f32::NAN); pairs],
        Stand::At(rows) => rows,
    };
    let of_pair = |i: usize| {
        let row = rows[spec.mrope.map_or(0, |m| m.axis(i as u32))];
        if let (Some(mode), 0) = (spec.angles, p.cos) {
            return cos_sin(mode, row, angles.inv_freq[i], angles.factor);
        }
        let entry = batch * p.table_batch_stride + row * p.table_row_stride + i as i64;
        // SAFETY: the row lies inside the table.
        let c = unsafe { read_element(spec.table.dtype, p.cos, entry) };
        // SAFETY: as above.
        let s = unsafe { read_element(spec.table.dtype, p.sin, entry) };
        (c, s)
    };
    (0..pairs).map(of_pair).collect()
}
