//! The tunables of kernels that hold a head together: with a norm, a cache, or pairs that move (`templates/fused.h`).
//!
//! A slot is two pieces of `vec` elements, or `vec` pairs: a piece of each half, or two neighbours where pairs are interleaved.
//! `lanes` threads share the slots of a head.

use super::tunables::{Class, Hint, Variant, Why};
use crate::rope::{RopeSpec, Rounding};
use crate::service::bucket::Bucket;
use crate::service::device::{Abilities, Dialect};

/// Threads of a warp.
const WARP: u32 = 32;
/// Bytes of shared memory that a kernel has without asking.
const SHARED: u32 = 48 << 10;

/// Pairs in the widest slot: pieces of 16 bytes where all dimensions allow.
pub(super) fn widest_slot(spec: &RopeSpec) -> u32 {
    let rest = (spec.head_dim - spec.rotary_dim) / 2;
    let v = spec.append.map_or(0, |append| append.v_head_dim / 2);
    let widest = 16 / spec.dtype.size() as u32;
    1 << ((spec.rotary_dim / 2) | rest | v | widest).trailing_zeros()
}

/// Threads that share a head when each has one slot of it.
pub(super) fn lanes(spec: &RopeSpec, vec: u32) -> u32 {
    (spec.head_dim / 2 / vec).next_power_of_two().min(WARP)
}

/// Bytes of shared memory that a gradient's kernel has for rows that are on their way, for products that are not in registers,
/// for the sums of tiles, and for those of nodes.
fn shared_bytes(spec: &RopeSpec, vec: u32, lanes: u32, threads: u32) -> u32 {
    let slots = (spec.head_dim / 2 / vec).div_ceil(lanes);
    let head = threads / lanes * spec.head_dim * 4;
    2 * 4 * slots * 16 * threads + 2 * head + 4 * threads
}

/// The candidates, as `variant::space` has them; `legal` says which are.
pub(super) fn space(
    spec: &RopeSpec,
    class: Class,
    bucket: Bucket,
    can: Abilities,
    legal: &dyn Fn(Variant) -> bool,
) -> Vec<Variant> {
    let heads_of_all = bucket.tokens() * u64::from(spec.items());
    let host = can.dialect == Dialect::Host;
    let few = heads_of_all <= 1 << 17 || host;
    let vec = widest_slot(spec);
    let tiled = spec.is_norm_gradient();
    let lanes = if host { 1 } else { lanes(spec, vec) };
    let fits = |threads: &u32| !tiled || lanes == 1 || shared_bytes(spec, vec, lanes, *threads) <= SHARED;
    // With these, a thread fits so many registers that ten blocks stay; others share cos and sin between two heads.
    let lean = spec.rounding == Rounding::PerOp && spec.dtype.size() == 2 && spec.append.is_none();
    let two = !few && !tiled && !lean && spec.items().is_multiple_of(2);
    let default = Variant {
        threads: [128, 64, 32].into_iter().find(fits).unwrap_or(32) as u16,
        vec: vec as u8,
        heads: if two { 2 } else { 1 },
        lanes: lanes as u8,
        load: Hint::Default,
        store: if few || !tiled { Hint::Default } else { Hint::Streaming },
        keep_tables: false,
        tableless: class.table_word == 0,
        overlap: can.overlap,
        prefetch: few && can.overlap && !tiled,
        early: false,
        // Fewer registers than the compiler would take, for more rows that are on their way.
        blocks: if few || tiled || !lean { 0 } else { 10 },
        shipped: false,
    };
    let mut all = vec![default];
    let mut push = |v: Variant| {
        if legal(v) && !all.contains(&v) {
            all.push(v);
        }
    };
    if host {
        push(Variant { threads: 512, ..default });
        return all;
    }
    if tiled {
        for (threads, store) in
            [(128, Hint::Default), (64, Hint::Streaming), (64, Hint::Default), (256, Hint::Streaming)]
        {
            push(Variant { threads, store, ..default });
        }
        return all;
    }
    // What stands here has won on some shape (benches/NOTES.md).
    if few {
        let prefetch = can.overlap;
        for (threads, prefetch, early) in [
            (64, prefetch, false),
            (128, prefetch, true),
            (64, prefetch, true),
            (32, prefetch, true),
            (256, prefetch, false),
            (128, false, false),
        ] {
            push(Variant { threads, prefetch, early, ..default });
        }
        push(Variant { prefetch: false, blocks: 10, ..default });
        return all;
    }
    for (threads, heads, blocks) in
        [(128, 1, 0), (128, 1, 9), (128, 2, 0), (128, 2, 8), (256, 1, 5), (160, 1, 8), (64, 2, 0)]
    {
        push(Variant { threads, heads, blocks, ..default });
        push(Variant { threads, heads, blocks, store: Hint::Streaming, ..default });
    }
    all
}

/// Whether a variant is legal, as far as it is of these kernels alone.
pub(super) fn check(spec: &RopeSpec, v: Variant) -> Result<(), Why> {
    let (vec, lanes) = (u32::from(v.vec), u32::from(v.lanes));
    if !widest_slot(spec).is_multiple_of(vec) {
        return Err(("vec", "must divide half of what turns, of what rests and of a head of v"));
    }
    if !lanes.is_power_of_two() || lanes > WARP {
        return Err(("lanes", "must be a power of two up to 32"));
    }
    if lanes > (spec.head_dim / 2 / vec).next_power_of_two() {
        return Err(("lanes", "must be no more than there are slots in a head"));
    }
    if u32::from(v.blocks) * u32::from(v.threads) > 2048 {
        return Err(("blocks", "must be fewer: a multiprocessor has 2048 threads"));
    }
    if !spec.is_norm_gradient() {
        return Ok(());
    }
    if v.heads != 1 {
        return Err(("heads", "must be 1 for the gradient of a norm"));
    }
    if v.early {
        return Err(("early", "means nothing for the gradient of a norm"));
    }
    if !v.threads.is_power_of_two() {
        return Err(("threads", "must be a power of two for the gradient of a norm"));
    }
    if lanes > 1 && shared_bytes(spec, vec, lanes, v.threads.into()) > SHARED {
        return Err(("threads", "must be fewer: the rows of a block do not fit its shared memory"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rope::{Append, DType, Direction, Flavour, Norm, PairStyle};

    #[test]
    fn the_space_is_legal_for_every_head_dim() {
        let dims = DType::ALL.into_iter().flat_map(|t| (1..=256).map(move |half| (t, 2 * half)));
        for (dtype, head_dim, backward) in dims.flat_map(|(t, d)| [(t, d, false), (t, d, true)]) {
            let mut spec = RopeSpec::new(dtype, head_dim, 4, 2).with_norm(Norm::new(Flavour::WeightAfter));
            if backward {
                spec.direction = Direction::Backward;
            } else {
                spec = spec.with_append(Append::new(head_dim));
                spec.style = PairStyle::Deinterleave;
            }
            for (dialect, tokens) in [(Dialect::Cuda, 1), (Dialect::Cuda, 1 << 16), (Dialect::Host, 64)] {
                let can = Abilities { dialect, overlap: dialect == Dialect::Cuda, cubins: None };
                let class = Class::contiguous(&spec, false, true);
                let legal = |v| super::super::variant::check(&spec, class, v, can).is_ok();
                let all = space(&spec, class, Bucket::of(tokens), can, &legal);
                assert!(!all.is_empty() && all.len() <= 64);
                for v in all {
                    let legal = super::super::variant::check(&spec, class, v, can);
                    assert!(legal.is_ok(), "{v} for {spec}: {legal:?}");
                }
            }
        }
    }
}
