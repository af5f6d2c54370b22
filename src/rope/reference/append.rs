//! What a cache holds, and where.

use crate::rope::{Fp8, ScaleUse, e4m3};

/// Where a token goes in a cache of `blocks` blocks of `block_size` slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Stored nowhere, as its number −1 says.
    Nowhere,
    /// Its number names no slot of the cache: stored nowhere, and reported.
    Outside,
    /// In this block, in this slot of it.
    At {
        /// Below the cache's blocks.
        block: u32,
        /// Below `block_size`.
        slot: u32,
    },
}

/// The place that a `slot_mapping` names.
pub fn slot_of(number: i64, blocks: u32, block_size: u32) -> Place {
    match u64::try_from(number) {
        _ if number == -1 => Place::Nowhere,
        Ok(n) if n < u64::from(blocks) * u64::from(block_size) => {
            let size = u64::from(block_size);
            Place::At { block: (n / size) as u32, slot: (n % size) as u32 }
        }
        _ => Place::Outside,
    }
}

/// The place that page tables name: `position` in its request's pages, which are `indices(indptr(request)) ..
/// indices(indptr(request + 1))`.
pub fn slot_in_pages(
    position: i32,
    request: i32,
    [requests, pages]: [u32; 2],
    indptr: impl Fn(u32) -> i32,
    indices: impl Fn(u32) -> i32,
    [blocks, block_size]: [u32; 2],
) -> Place {
    if position == -1 {
        return Place::Nowhere;
    }
    let (Ok(position), Ok(request)) = (u32::try_from(position), u32::try_from(request)) else { return Place::Outside };
    if request >= requests || block_size == 0 {
        return Place::Outside;
    }
    let at = i64::from(indptr(request)) + i64::from(position / block_size);
    if at >= i64::from(indptr(request + 1)) {
        return Place::Outside;
    }
    let Some(at) = u32::try_from(at).ok().filter(|at| *at < pages) else { return Place::Outside };
    match u32::try_from(indices(at)) {
        Ok(block) if block < blocks => Place::At { block, slot: position % block_size },
        _ => Place::Outside,
    }
}

/// The bits of a value of the dtype, scaled in f32 and stored as fp8.
pub fn fp8(how: Fp8, x: f32, scale: f32) -> u8 {
    e4m3::from_f32(match how.scale {
        ScaleUse::Divide => x / scale,
        ScaleUse::Multiply => x * scale,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_in_their_block_nowhere_or_outside() {
        assert_eq!(slot_of(-1, 2, 4), Place::Nowhere);
        assert_eq!(slot_of(6, 2, 4), Place::At { block: 1, slot: 2 });
        for outside in [8, -2, i64::MAX, i64::MIN, 1 << 32] {
            assert_eq!(slot_of(outside, 2, 4), Place::Outside, "{outside}");
        }
        assert_eq!(slot_of(0, 0, 4), Place::Outside);
        assert_eq!(slot_of(0, 4, 0), Place::Outside);
    }

    #[test]
    fn pages_are_looked_up_and_what_they_do_not_name_is_outside() {
        let (indptr, indices) = ([0, 2, 3, -5, 9], [5, 1, 7, 1, 1]);
        let at = |position, request| {
            slot_in_pages(position, request, [4, 5], |n| indptr[n as usize], |n| indices[n as usize], [7, 4])
        };
        assert_eq!(at(0, 0), Place::At { block: 5, slot: 0 });
        assert_eq!(at(7, 0), Place::At { block: 1, slot: 3 });
        assert_eq!(at(-1, 99), Place::Nowhere);
        // Behind its pages, a block behind the cache, requests that are not there, pages in front of the first and behind the last.
        for (position, request) in [(8, 0), (0, 1), (0, 4), (0, -1), (-2, 0), (0, 2), (0, 3), (48, 3), (i32::MAX, 0)] {
            assert_eq!(at(position, request), Place::Outside, "{position} of {request}");
        }
        assert_eq!(at(20, 3), Place::At { block: 5, slot: 0 });
    }

    #[test]
    fn scales_that_are_no_scales_do_as_the_formula_says() {
        let divide = |x, scale| fp8(Fp8::new(ScaleUse::Divide), x, scale);
        let multiply = |x, scale| fp8(Fp8::new(ScaleUse::Multiply), x, scale);
        assert_eq!([divide(1.0, 0.0), divide(-1.0, 0.0), divide(0.0, 0.0)], [0x7e, 0xfe, 0x7f]);
        assert_eq!([divide(1.0, f32::INFINITY), divide(-1.0, f32::INFINITY), divide(1.0, f32::NAN)], [0, 0x80, 0x7f]);
        assert_eq!([multiply(1.0, 0.0), multiply(f32::INFINITY, 0.0), multiply(-2.0, f32::INFINITY)], [0, 0x7f, 0xfe]);
        assert_eq!([divide(3.0, 2.0), multiply(3.0, 0.5)], [0x3c; 2]);
    }
}
