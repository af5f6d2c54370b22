//! The legal space of the kernel's tunables.

use super::known_head::KnownHead;
use super::tunables::Why;
pub use super::tunables::{Class, Hint, Variant};
use super::{archs, fused};
use crate::error::{Error, Result};
use crate::rope::{DType, PairStyle, RopeSpec};
pub use crate::service::bucket::Bucket;
pub use crate::service::device::{Abilities, Dialect};

/// The legal variants for a spec, class and bucket on a device; the first is the default.
pub fn space(spec: &RopeSpec, class: Class, bucket: Bucket, can: Abilities) -> Vec<Variant> {
    use Hint::{Default, EvictFirst, Streaming};
    if spec.is_fused() {
        return fused::space(spec, class, bucket, can, &|v| check(spec, class, v, can).is_ok());
    }
    let heads_of_all = bucket.tokens() * u64::from(spec.num_heads + spec.num_kv_heads);
    let few = heads_of_all <= 1 << 15 || can.dialect == Dialect::Host;
    let default = Variant {
        threads: 128,
        vec: widest_piece(spec, class),
        heads: if class.table_word == 0 && !few { shared_heads(spec) } else { 1 },
        lanes: 0,
        load: Default,
        store: if few { Default } else { Streaming },
        keep_tables: !few && class.table_word > 0,
        tableless: class.table_word == 0,
        overlap: can.overlap,
        prefetch: few && can.overlap,
        early: false,
        blocks: 0,
        shipped: false,
    };
    let mut all = if can.cubins.and_then(archs::cubin_arch).is_some() {
        KnownHead::variants(spec, class, bucket, can)
    } else {
        Vec::new()
    };
    all.push(default);
    let mut push = |v: Variant| {
        if check(spec, class, v, can).is_ok() && !all.contains(&v) {
            all.push(v);
        }
    };
    // What stands here has won on some shape; benches/NOTES.md has the figures, and what never did.
    if can.dialect == Dialect::Host {
        // Caches and launches mean nothing to a processor, and its compiler is slow.
        for (threads, heads) in [(128, 2), (128, 4), (512, 1)] {
            push(Variant { threads, heads, ..default });
        }
        push(Variant { heads: 4, tableless: true, ..default });
        return all;
    }
    if class.table_word == 0 {
        // A thread computes its angles once for all its heads.
        for heads in [1, 2, 4] {
            push(Variant { heads, ..default });
        }
        return all;
    }
    if may_compute(spec) {
        push(Variant { heads: if few { 4 } else { 2 }, tableless: true, keep_tables: false, ..default });
    }
    let (whole, half) = (default.vec, (default.vec / 2).max(1));
    if heads_of_all <= 1 << 17 && can.overlap {
        // Few tokens: latency decides. The work is spread thin, and its memory is asked for ahead of time.
        for (threads, vec) in [(64, whole), (128, whole), (256, whole), (64, half), (128, half), (256, half)] {
            push(Variant { threads, vec, store: Default, keep_tables: false, prefetch: true, ..default });
        }
    }
    if few && !can.overlap {
        for (threads, heads) in [(64, 1), (64, 2), (128, 2), (256, 2)] {
            push(Variant { threads, heads, ..default });
        }
        push(Variant { threads: 256, heads: 2, load: Streaming, store: Streaming, ..default });
        push(Variant { vec: half, ..default });
    }
    if !few {
        // Many: what the memory does decides.
        for (threads, load, store, keep_tables) in [
            (128, Default, Default, true),
            (256, Default, Streaming, true),
            (512, Default, Default, true),
            (128, EvictFirst, EvictFirst, false),
            (192, EvictFirst, EvictFirst, false),
        ] {
            push(Variant { threads, load, store, keep_tables, ..default });
        }
    }
    all
}

/// Whether candidates that compute their angles stand beside those that read a table. Where q and k take twice the time,
/// computing hides behind them; with 16-bit types it never won.
pub(super) fn may_compute(spec: &RopeSpec) -> bool {
    spec.angles.is_some() && spec.dtype == DType::F32
}

/// Heads that share computed angles: four where they divide all heads.
fn shared_heads(spec: &RopeSpec) -> u8 {
    let heads = spec.num_heads + spec.num_kv_heads;
    [4, 2].into_iter().find(|&n| heads.is_multiple_of(n.into())).unwrap_or(1)
}

/// Elements in the widest piece: 16 bytes where dimensions and alignment allow.
pub(super) fn widest_piece(spec: &RopeSpec, class: Class) -> u8 {
    let span = match spec.style {
        PairStyle::HalfSplit | PairStyle::Deinterleave => spec.rotary_dim / 2,
        PairStyle::Interleaved => spec.rotary_dim,
    };
    let rest = if class.copy_rest { spec.head_dim - spec.rotary_dim } else { 0 };
    let widest = 16 / spec.dtype.size() as u32;
    // Where a word is narrower than that, the piece is moved in several accesses: better than one element at a time.
    1 << (span | rest | widest).trailing_zeros()
}

fn no_lanes(v: Variant) -> Result<(), Why> {
    if v.lanes != 0 {
        return Err(("lanes", "are of kernels with a norm or a cache only"));
    }
    if v.blocks != 0 {
        return Err(("blocks", "are of kernels with a norm or a cache only"));
    }
    if v.early { Err(("early", "is of kernels with a norm or a cache only")) } else { Ok(()) }
}

/// Whether a variant is legal for a spec and class on a device.
///
/// # Errors
/// [`ErrorKind::InvalidArgument`](crate::ErrorKind::InvalidArgument), naming the tunable.
pub fn check(spec: &RopeSpec, class: Class, v: Variant, can: Abilities) -> Result<()> {
    let bad = |name: &str, why: &str| Err(Error::argument(format!("variant.{name}"), format!("{why}, in '{v}'")));
    if !(32..=1024).contains(&v.threads) || !v.threads.is_multiple_of(32) {
        return bad("threads", "must be a multiple of 32 up to 1024");
    }
    let vec = u32::from(v.vec);
    if !vec.is_power_of_two() || vec as usize * spec.dtype.size() > 16 {
        return bad("vec", "must be a power of two of at most 16 bytes");
    }
    if let Err(why) = if spec.is_fused() { fused::check(spec, v) } else { no_lanes(v) } {
        return bad(why.0, why.1);
    }
    let fits = spec.is_fused()
        || match spec.style {
            PairStyle::HalfSplit | PairStyle::Deinterleave => (spec.rotary_dim / 2).is_multiple_of(vec),
            PairStyle::Interleaved => vec >= 2 && spec.rotary_dim.is_multiple_of(vec),
        };
    if !fits || (class.copy_rest && !(spec.head_dim - spec.rotary_dim).is_multiple_of(vec)) {
        return bad("vec", "must divide what turns and what is copied");
    }
    if v.heads == 0 || !spec.items().is_multiple_of(u32::from(v.heads)) {
        return bad("heads", "must divide the heads of q and k (and of v, where it is appended)");
    }
    if v.heads > 8 {
        return bad("heads", "must be 1 to 8");
    }
    if v.overlap && !can.overlap {
        return bad("overlap", "needs compute capability 9.0 and a driver of CUDA 12.3");
    }
    if v.tableless && spec.angles.is_none() {
        return bad("tableless", "needs a spec whose angles come from the engine");
    }
    if !v.tableless && class.table_word == 0 {
        return bad("tableless", "must be on where there is no table");
    }
    if v.shipped {
        let known = KnownHead::of(spec, class, v.vec).filter(|known| known.runs_as(v));
        return match known.and(can.cubins).and_then(archs::cubin_arch) {
            Some(_) if v.overlap == can.overlap => Ok(()),
            _ => bad("shipped", "no such kernel comes with this release for this GPU and spec"),
        };
    }
    if v.prefetch && !v.overlap {
        return bad("prefetch", "means nothing without overlap");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_class_has_its_own_number() {
        let mut seen = std::collections::HashSet::new();
        for word in [2, 4, 8, 16] {
            for table_word in [2, 4, 8, 16] {
                for bits in 0..4 {
                    let class = Class { word, table_word, head_major: bits & 1 == 1, copy_rest: bits & 2 == 2 };
                    assert!(class.index() < Class::COUNT && seen.insert(class.index()), "{class}");
                }
            }
        }
    }

    proptest! {
        #[test]
        fn the_space_is_legal_and_starts_with_the_default(
            half in 1u32..=256, turning in 1u32..=256, q in 1u32..65, k in 0u32..33, tokens in 0u64..100_000,
            dtype in prop::sample::select(DType::ALL.to_vec()), interleaved: bool, head_major: bool, copy: bool, overlap: bool,
        ) {
            let mut spec = RopeSpec::new(dtype, 2 * half, q, k);
            spec.rotary_dim = 2 * turning.min(half);
            if interleaved { spec.style = PairStyle::Interleaved; }
            let class = Class::contiguous(&spec, head_major, copy);
            let can = Abilities { dialect: Dialect::Cuda, overlap, cubins: None };
            let all = space(&spec, class, Bucket::of(tokens), can);
            prop_assert!(!all.is_empty() && all.len() <= 64);
            for &v in &all {
                let legal = check(&spec, class, v, can);
                prop_assert!(legal.is_ok(), "{v} for {spec} {class}: {legal:?}");
            }
        }
    }
}
