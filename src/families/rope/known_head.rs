//! Kernels for the heads that most models have, compiled ahead of time and [shipped](super::shipped): all of a head turns, as
//! halves or in pairs, in bf16 or f16, by a table and implicit positions. How many heads there are and how tensors lie is told at run
//! time. They are candidates of every tuning that they fit, the first of them the default: where one wins, nothing is
//! compiled.

use std::fmt;

use super::tunables::{Class, Hint, Variant};
use crate::rope::{DType, PairStyle, PositionForm, RopeSpec, RotaryPart, Rounding};
use crate::service::bucket::Bucket;
use crate::service::device::Abilities;

/// Dimensions of the heads.
const HEAD_DIMS: [u32; 5] = [64, 80, 96, 128, 256];
/// Threads of a block at most.
pub(super) const MOST_THREADS: u16 = 256;

/// What a kernel for a known head is compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct KnownHead {
    /// Elements of q and k: bf16 or f16.
    pub dtype: DType,
    /// Elements of the tables: f32, or as q and k.
    pub table: DType,
    /// Which elements turn together: halves or pairs.
    pub style: PairStyle,
    /// Where results are rounded; with f32 tables once.
    pub rounding: Rounding,
    /// 64, 80, 96, 128 or 256, all of which turns.
    pub head_dim: u32,
    /// Elements in a piece.
    pub vec: u8,
}

impl KnownHead {
    /// All that are shipped.
    pub fn all() -> impl Iterator<Item = Self> {
        let forms = [DType::BF16, DType::F16].into_iter().flat_map(|dtype| {
            [(dtype, Rounding::PerOp), (dtype, Rounding::Once), (DType::F32, Rounding::Once)]
                .map(|(table, rounding)| (dtype, table, rounding))
        });
        forms.flat_map(|(dtype, table, rounding)| {
            [PairStyle::HalfSplit, PairStyle::Interleaved].into_iter().flat_map(move |style| {
                HEAD_DIMS
                    .into_iter()
                    .flat_map(move |head_dim| [8, 4].map(|vec| Self { dtype, table, style, rounding, head_dim, vec }))
            })
        })
    }

    /// The one that serves a spec and layout class with pieces of `vec` elements.
    pub fn of(spec: &RopeSpec, class: Class, vec: u8) -> Option<Self> {
        let (dtype, table) = (spec.dtype, spec.table.dtype);
        let head = Self { dtype, table, style: spec.style, rounding: spec.rounding, head_dim: spec.head_dim, vec };
        let whole = spec.rotary_dim == spec.head_dim
            && spec.part == RotaryPart::First
            && spec.mrope.is_none()
            && spec.positions == PositionForm::Implicit;
        let fits = whole && !spec.is_fused() && class.word == 16 && class.table_word >= head.table_word();
        (fits && Self::all().any(|known| known == head)).then_some(head)
    }

    /// The variants that it runs as, the one to begin with first.
    pub fn variants(spec: &RopeSpec, class: Class, bucket: Bucket, can: Abilities) -> Vec<Variant> {
        let heads_of_all = bucket.tokens() * u64::from(spec.num_heads + spec.num_kv_heads);
        // Few tokens: latency decides, and inputs are asked for ahead of time.
        let few = heads_of_all <= 0x2_0000;
        let prefetch = few && can.overlap;
        // Pieces and threads that have won on some shape, the usual winner first (benches/NOTES.md).
        let kinds: &[(u8, u16)] = match heads_of_all {
            ..0x400 => &[(4, 128), (4, 256), (8, 128), (8, 64)],
            0x400..0x4000 => &[(4, 256), (4, 128), (8, 128), (8, 64)],
            0x4000..=0x2_0000 => &[(8, 128), (4, 256), (4, 128), (8, 256)],
            _ => &[(8, 128)],
        };
        let variant = |&(vec, threads): &(u8, u16)| Self::variant(vec, threads, can.overlap, prefetch);
        kinds.iter().map(variant).filter(|v| Self::of(spec, class, v.vec).is_some()).collect()
    }

    fn variant(vec: u8, threads: u16, overlap: bool, prefetch: bool) -> Variant {
        Variant {
            threads,
            vec,
            heads: 1,
            lanes: 0,
            load: Hint::Default,
            store: Hint::Default,
            keep_tables: true,
            overlap,
            tableless: false,
            prefetch,
            early: false,
            blocks: 0,
            shipped: true,
        }
    }

    /// Whether a variant is one that it runs as.
    pub fn runs_as(self, v: Variant) -> bool {
        v.threads <= MOST_THREADS && v == Self::variant(self.vec, v.threads, v.overlap, v.prefetch)
    }

    fn pairs(self) -> u8 {
        if self.style == PairStyle::Interleaved { self.vec / 2 } else { self.vec }
    }

    /// Bytes by which rows of the tables have to be aligned.
    pub(super) fn table_word(self) -> u8 {
        (self.pairs() * self.table.size() as u8).min(16)
    }
}

impl fmt::Display for KnownHead {
    /// Such as `bf16/f32 d128 half_split once v8`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let style = if self.style == PairStyle::Interleaved { "interleaved" } else { "half_split" };
        let rounding = if self.rounding == Rounding::PerOp { "per_op" } else { "once" };
        write!(f, "{}/{} d{} {style} {rounding} v{}", self.dtype, self.table, self.head_dim, self.vec)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usual_heads_have_one_and_others_do_not() {
        assert_eq!(KnownHead::all().count(), 2 * 3 * 2 * 5 * 2);
        let spec = RopeSpec::new(DType::BF16, 128, 32, 8).with_table(DType::BF16, crate::rope::TableWidth::Half);
        let class = Class::contiguous(&spec, false, true);
        assert!(KnownHead::of(&spec, class, 8).is_some() && KnownHead::of(&spec, class, 2).is_none());
        assert!(KnownHead::of(&spec, Class { word: 8, ..class }, 8).is_none());
        assert!(KnownHead::of(&spec, Class { table_word: 8, ..class }, 8).is_none());
        let other = |change: fn(&mut RopeSpec)| {
            let mut spec = spec.clone();
            change(&mut spec);
            KnownHead::of(&spec, class, 8)
        };
        assert!(other(|s| s.rotary_dim = 64).is_none() && other(|s| s.style = PairStyle::Deinterleave).is_none());
        assert!(other(|s| (s.head_dim, s.rotary_dim) = (72, 72)).is_none());
        assert!(other(|s| s.rounding = Rounding::PerOp).is_some() && other(|s| s.num_heads = 3).is_some());
        // Pieces of four pairs read eight bytes of a table.
        assert!(other(|s| s.style = PairStyle::Interleaved).is_some());
        let narrow = Class { table_word: 8, ..class };
        let pairs = RopeSpec { style: PairStyle::Interleaved, ..spec };
        assert!(KnownHead::of(&pairs, narrow, 8).is_some());
    }
}
