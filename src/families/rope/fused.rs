//! The tunables of kernels that hold a head together: with a norm, a cache, or pairs that move (`templates/fused.h`).
//!
//! A slot is two pieces of `vec` elements, or `vec` pairs: a piece of each half, or two neighbours where pairs are interleaved.
//! `lanes` threads share the slots of a head.

use super::variant::{Abilities, Class, Hint, Variant, Why};
use crate::rope::{Direction, RopeSpec};
use crate::service::bucket::Bucket;
use crate::service::device::Dialect;

/// Threads of a warp.
const WARP: u32 = 32;
/// Bytes of shared memory that a kernel has without asking.
const SHARED: u32 = 48 << 10;

/// Pairs in the widest slot: pieces of 16 bytes where all dimensions allow.
pub(super) fn widest_slot(spec: &RopeSpec) -> u32 {
    let rest = (spec.head_dim - spec.rotary_dim) / 2;
    let v = spec.append.map_or(0, |append| append.v_head_dim / 2);
    let widest = 16 / spec.dtype.size() as u32;
    1 << (spec.rotary_dim / 2 | rest | v | widest).trailing_zeros()
}

/// The gradient of a norm, whose heads are worked off in tiles.
fn is_tiled(spec: &RopeSpec) -> bool {
    spec.norm.is_some() && spec.direction == Direction::Backward
}

/// Threads that share a head when each has one slot of it.
pub(super) fn lanes(spec: &RopeSpec, vec: u32) -> u32 {
    (spec.head_dim / 2 / vec).next_power_of_two().min(WARP)
}

/// As [`variant::space`](super::variant::space).
pub(super) fn space(spec: &RopeSpec, class: Class, bucket: Bucket, can: Abilities) -> Vec<Variant> {
    let heads_of_all = bucket.tokens() * u64::from(spec.items());
    let host = can.dialect == Dialect::Host;
    let few = heads_of_all <= 1 << 17 || host;
    let vec = widest_slot(spec);
    let default = Variant {
        threads: 128,
        vec: vec as u8,
        heads: 1,
        lanes: if host { 1 } else { lanes(spec, vec) as u8 },
        load: Hint::Default,
        store: if few { Hint::Default } else { Hint::Streaming },
        keep_tables: false,
        tableless: class.table_word == 0,
        overlap: can.overlap,
        prefetch: few && can.overlap,
    };
    let mut all = vec![default];
    let mut push = |v: Variant| {
        if super::variant::check(spec, class, v, can).is_ok() && !all.contains(&v) {
            all.push(v);
        }
    };
    if host {
        push(Variant { threads: 512, ..default });
        return all;
    }
    let (load, store) = (Hint::EvictFirst, Hint::EvictFirst);
    for threads in [64, 128, 256, 512] {
        push(Variant { threads, ..default });
        push(Variant { threads, load, store, ..default });
        push(Variant { threads, heads: 2, ..default });
    }
    if default.lanes > 1 {
        push(Variant { lanes: default.lanes / 2, ..default });
    }
    all
}

/// As [`variant::check`](super::variant::check), for what is of these kernels alone.
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
    if !is_tiled(spec) {
        return Ok(());
    }
    if v.heads != 1 {
        return Err(("heads", "must be 1 for the gradient of a norm"));
    }
    if !v.threads.is_power_of_two() {
        return Err(("threads", "must be a power of two for the gradient of a norm"));
    }
    if lanes > 1 && u32::from(v.threads) / lanes * spec.head_dim * 4 > SHARED {
        return Err(("threads", "must be fewer: the tiles of a block do not fit its shared memory"));
    }
    Ok(())
}
