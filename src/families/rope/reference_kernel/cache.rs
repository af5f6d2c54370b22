//! k and v on their way to a cache.

#![allow(unsafe_code)]

use super::memory::{Target, integer, read_element};
use super::token::{Launch, Token, dot};
use crate::rope::reference::{self, Place};
use crate::rope::{DType, Fp8, SlotForm};

/// In a fault word: the token's slot, not its position (`ROPE_NO_SLOT` in `templates/params.h`).
const NO_SLOT: u64 = 1 << 63;

/// The scale of a head.
///
/// # Safety
/// There is one, or one for each head where the spec says so.
pub unsafe fn scale(how: Fp8, scales: u64, head: i64) -> f32 {
    // SAFETY: this function's contract.
    unsafe { read_element(DType::F32, scales, if how.per_head { head } else { 0 }) }
}

/// Where a token is stored: its block and slot. `None`: nowhere; where its number lies outside of the cache, that is reported.
///
/// # Safety
/// As [`Kernel::launch`](crate::service::device::Kernel::launch).
pub unsafe fn place(launch: &Launch<'_>, token: &Token) -> Option<(i64, i64)> {
    let (p, f) = (launch.p, &launch.f);
    let append = launch.spec.append?;
    let number = token.batch as u64 * p.tokens_total + token.number as u64;
    let block_size = f.block_size.divisor();
    let blocks = f.slot_count / block_size;
    let place = match append.slots {
        SlotForm::SlotMapping => {
            // SAFETY: this function's contract: a number a token.
            reference::slot_of(unsafe { integer(f.slots, true, number as i64) }, blocks, block_size)
        }
        SlotForm::Pages => {
            // SAFETY: as above: each array is as long as the call has checked.
            let read = |address: u64, at: u64| unsafe { integer(address, false, at as i64) } as i32;
            let (position, request) = (read(f.slots, number), read(f.batch_indices, number));
            let [indptr, indices] = [f.kv_indptr, f.kv_indices].map(|array| move |at: u32| read(array, at.into()));
            reference::slot_in_pages(position, request, [f.requests, f.pages], indptr, indices, [blocks, block_size])
        }
    };
    match place {
        Place::At { block, slot } => Some((block.into(), slot.into())),
        Place::Nowhere => None,
        Place::Outside => {
            // SAFETY: this function's contract.
            unsafe { launch.report(NO_SLOT | (number + 1)) };
            None
        }
    }
}

/// Where a head of k goes.
///
/// # Safety
/// As [`place`].
pub unsafe fn k_target(launch: &Launch<'_>, place: Option<(i64, i64)>, head: i64) -> Option<Target> {
    let f = &launch.f;
    // SAFETY: this function's contract.
    unsafe { target(launch, place?, head, (f.k_cache, &f.k_cache_stride), f.k_scale) }
}

/// Copies a head of v, if there is one to store.
///
/// # Safety
/// As [`place`].
pub unsafe fn append_v(launch: &Launch<'_>, token: &Token, place: Option<(i64, i64)>, head: i64) {
    let (f, dtype) = (&launch.f, launch.spec.dtype);
    let dim = launch.spec.append.map_or(0, |append| append.v_head_dim as usize);
    let (Some(place), true) = (place, dim > 0) else { return };
    // SAFETY: this function's contract.
    let to = unsafe { target(launch, place, head, (f.v_cache, &f.v_cache_stride), f.v_scale) };
    let from = dot(&f.v_stride, [token.batch, token.number, head]);
    for i in 0..dim {
        let Some(to) = to else { return };
        // SAFETY: as above.
        unsafe { to.copy(dtype, (f.v, from + i as i64), i) };
    }
}

/// # Safety
/// As [`place`].
unsafe fn target(
    launch: &Launch<'_>,
    (block, slot): (i64, i64),
    head: i64,
    (address, strides): (u64, &[i64; 3]),
    scales: u64,
) -> Option<Target> {
    let fp8 = launch.spec.append?.cache.map(|how| {
        // SAFETY: this function's contract.
        (how, unsafe { scale(how, scales, head) })
    });
    Some(Target { address, first: dot(strides, [block, slot, head]), fp8 })
}
