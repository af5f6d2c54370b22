//! What is shipped in `cache/`: kernels for all shapes ([`Portable`]), and norms with RoPE for the heads that most models have.
//!
//! `cache/kernels.txt` lists them, one a line, with the place of each in `cache/kernels.bin`; `make kernels` writes both anew.

use std::fmt;
use std::io::Read as _;

use ruzstd::decoding::{Dictionary, FrameDecoder, StreamingDecoder};
use sha2::{Digest as _, Sha256};

pub use super::archs::{ARCHS, PTX_ARCH, arch_for, cubin_arch, overlaps};
use super::known_head::KnownHead;
use super::portable::{Portable, render_known_head, render_portable};
use super::render::{Dialect, assemble, dtype_name, fused_prelude};
use super::tunables::{Class, Hint, Variant};
use crate::rope::{DType, Direction, Flavour, Norm, PairStyle, RopeSpec, Rounding};
use crate::service::bucket::Bucket;
use crate::service::device::Abilities;
use crate::service::digest::hex;

const INDEX: &str = include_str!("../../../cache/kernels.txt");
const KERNELS: &[u8] = include_bytes!("../../../cache/kernels.bin");
/// What its index calls the part of `kernels.bin` that all kernels are packed with.
pub const DICTIONARY: &str = "dictionary";
/// No kernel is larger.
const MOST_BYTES: u64 = 1 << 20;

/// A norm with RoPE as transformers' models have it in bf16: half-split, all of a head turns, every operation rounded, tables
/// of bf16 by any position on one axis, for any number of heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ShippedNorm {
    /// 64, 128 or 256.
    pub head_dim: u32,
    /// [`Flavour::WeightAfter`] or [`Flavour::OnePlusWeight`].
    pub flavour: Flavour,
    /// The gradient.
    pub direction: Direction,
}

/// A kernel that is shipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Shipped {
    /// A rotation alone.
    Rope(Portable),
    /// A rotation alone, of heads that most models have.
    Head(KnownHead),
    /// A norm with it.
    Norm(ShippedNorm),
}

impl Shipped {
    /// All of them.
    pub fn all() -> impl Iterator<Item = Self> {
        let norms = [64, 128, 256].into_iter().flat_map(|head_dim| {
            [Flavour::WeightAfter, Flavour::OnePlusWeight].into_iter().flat_map(move |flavour| {
                [Direction::Forward, Direction::Backward]
                    .map(|direction| Self::Norm(ShippedNorm { head_dim, flavour, direction }))
            })
        });
        Portable::all().map(Self::Rope).chain(KnownHead::all().map(Self::Head)).chain(norms)
    }

    /// The one that answers first calls of a spec, layout class and bucket, and how it runs; `None` where none does.
    pub fn of(spec: &RopeSpec, class: Class, bucket: Bucket, can: Abilities) -> Option<(Self, Variant)> {
        let arch = can.cubins.and_then(cubin_arch);
        // What is served by PTX does not wait for the kernel ahead of it, so it must not be launched before that has ended.
        let overlap = can.overlap && arch.is_some_and(overlaps);
        if spec.rounding == Rounding::Contracted {
            return None; // in none of what is shipped
        }
        if spec.is_fused() {
            return Self::norm_of(spec, class).map(|norm| (Self::Norm(norm), norm.variant(overlap)));
        }
        let known = arch.and_then(|_| {
            let variant = KnownHead::variants(spec, class, bucket, can).into_iter().next()?;
            Some((Self::Head(KnownHead::of(spec, class, variant.vec)?), variant))
        });
        let portable = || Portable::of(spec, class);
        known.or_else(|| Some((Self::Rope(portable()), portable().variant(overlap))))
    }

    fn norm_of(spec: &RopeSpec, class: Class) -> Option<ShippedNorm> {
        let norm = ShippedNorm { head_dim: spec.head_dim, flavour: spec.norm?.flavour, direction: spec.direction };
        // What it does not tell apart is as it is compiled.
        let mut alike = norm.spec(spec.num_heads, spec.num_kv_heads);
        (alike.positions, alike.table.width) = (spec.positions, spec.table.width);
        let fits = *spec == alike && class.word == 16 && class.table_word == 16;
        Some(norm).filter(|norm| fits && Self::all().any(|s| s == Self::Norm(*norm)))
    }

    /// Whether there is code of it for an architecture, or [`PTX_ARCH`].
    pub fn is_for(self, arch: &str) -> bool {
        !matches!(self, Self::Head(_)) || arch != PTX_ARCH
    }

    /// Its complete source; with `overlap` for architectures whose launches may overlap.
    pub fn render(self, dialect: Dialect, overlap: bool) -> String {
        match self {
            Self::Rope(portable) => render_portable(dialect, &portable, overlap),
            Self::Head(head) => render_known_head(dialect, head, overlap),
            Self::Norm(norm) => norm.render(dialect, overlap),
        }
    }

    /// Its code for an architecture of [`arch_for`]: a cubin, or PTX.
    pub fn code(self, arch: &str) -> Option<Vec<u8>> {
        let packed = piece(&format!("{arch} {self}"))?;
        let mut decoder = FrameDecoder::new();
        decoder.add_dict(Dictionary::decode_dict(piece(DICTIONARY)?).ok()?).ok()?;
        let mut code = Vec::with_capacity(8 * packed.len());
        StreamingDecoder::new_with_decoder(packed, decoder).ok()?.take(MOST_BYTES).read_to_end(&mut code).ok()?;
        Some(code)
    }
}

/// The part of `kernels.bin` that its index has under a name.
fn piece(name: &str) -> Option<&'static [u8]> {
    let place = INDEX.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(" = "))?;
    let (start, length) = place.split_once(' ')?;
    let (start, length): (usize, usize) = (start.parse().ok()?, length.parse().ok()?);
    KERNELS.get(start..start.checked_add(length)?)
}

impl ShippedNorm {
    /// A spec that it serves.
    fn spec(self, num_heads: u32, num_kv_heads: u32) -> RopeSpec {
        let mut spec = RopeSpec::new(DType::BF16, self.head_dim, num_heads, num_kv_heads)
            .with_rounding(Rounding::PerOp)
            .with_norm(Norm::new(self.flavour));
        (spec.style, spec.direction, spec.table.dtype) = (PairStyle::HalfSplit, self.direction, DType::BF16);
        spec
    }

    fn variant(self, overlap: bool) -> Variant {
        Variant {
            threads: 128,
            vec: 8,
            heads: 1,
            lanes: (self.head_dim / 16) as u8,
            load: Hint::Default,
            store: Hint::Default,
            keep_tables: false,
            overlap,
            tableless: false,
            prefetch: false,
            early: false,
            blocks: 0,
            shipped: false,
        }
    }

    fn render(self, dialect: Dialect, overlap: bool) -> String {
        let (v, backward) = (self.variant(overlap), self.direction == Direction::Backward);
        let mut prelude: Vec<(&str, String)> = [
            ("PORTABLE", "1"),
            ("DTYPE", dtype_name(DType::BF16)),
            ("TABLE_F32", "0"),
            ("INTERLEAVED", "0"),
            ("PER_OP", "1"),
            ("BACKWARD", if backward { "1" } else { "0" }),
            ("ONE_AXIS", "1"),
            ("WORD", "16"),
            ("TABLE_WORD", "16"),
            ("HEADS_PER_THREAD", "1"),
            ("LOAD_HINT", "0"),
            ("STORE_HINT", "0"),
            ("KEEP_TABLES", "0"),
            ("TABLELESS", "0"),
            ("OVERLAP", if overlap { "1" } else { "0" }),
        ]
        .map(|(name, value)| (name, value.to_owned()))
        .into();
        for (name, value) in [
            ("HEAD_DIM", self.head_dim),
            ("ROTARY_DIM", self.head_dim),
            ("LANES", v.lanes.into()),
            ("THREADS", v.threads.into()),
            ("VEC", v.vec.into()),
        ] {
            prelude.push((name, value.to_string()));
        }
        prelude.extend(fused_prelude(&self.spec(1, 1), v));
        assemble(dialect, &prelude, true)
    }
}

impl fmt::Display for Shipped {
    /// Such as `bf16/f32 half_split wide`, or `bf16 d128 weight_after backward`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rope(portable) => portable.fmt(f),
            Self::Head(head) => head.fmt(f),
            Self::Norm(norm) => {
                write!(f, "bf16 d{} {}", norm.head_dim, norm.flavour.name())?;
                if norm.direction == Direction::Backward { f.write_str(" backward") } else { Ok(()) }
            }
        }
    }
}

/// SHA-256 over the sources of all, which `cache/kernels.txt` repeats: by it a test knows when the shipped ones are stale.
pub fn sources_digest() -> String {
    let mut hasher = Sha256::new();
    for shipped in Shipped::all() {
        for overlap in [false, true] {
            hasher.update(shipped.render(Dialect::Cuda, overlap));
        }
    }
    hex(&hasher.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rope::{Append, PositionForm, TableWidth};

    #[test]
    fn what_is_shipped_is_of_these_templates() {
        let digest = format!("sources = {}", sources_digest());
        assert!(INDEX.lines().any(|l| l == digest), "cache/kernels.* are stale: run `make kernels`");
    }

    #[test]
    fn every_architecture_has_every_kernel() {
        assert_eq!(Shipped::all().count(), 26 + KnownHead::all().count() + 12);
        for shipped in Shipped::all() {
            for capability in [(7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0), (12, 1)] {
                let code = arch_for(capability).and_then(|arch| shipped.code(arch));
                assert!(code.is_some_and(|c| c.starts_with(b"\x7fELF")), "{shipped} for {capability:?}");
            }
            if !shipped.is_for(PTX_ARCH) {
                continue;
            }
            let code = arch_for((11, 0)).and_then(|arch| shipped.code(arch)).expect("PTX");
            assert!(String::from_utf8(code).expect("text").contains(".entry rope_kernel"));
        }
        assert_eq!([(8, 7), (10, 1), (11, 0)].map(arch_for), [Some(PTX_ARCH); 3]);
        assert!(arch_for((7, 0)).is_none() && arch_for((6, 1)).is_none());
        assert!(INDEX.len() + KERNELS.len() <= 2 << 20);
    }

    #[test]
    fn norms_of_usual_heads_are_shipped_and_others_are_not() {
        let norm = ShippedNorm { head_dim: 128, flavour: Flavour::WeightAfter, direction: Direction::Forward };
        let usual = norm.spec(32, 8).with_positions(PositionForm::Ids64).with_table(DType::BF16, TableWidth::Full);
        let class = Class::contiguous(&usual, true, true);
        let can = Abilities { dialect: Dialect::Cuda, overlap: true, cubins: Some((9, 0)) };
        let of = |spec: &RopeSpec, class| Shipped::of(spec, class, Bucket::of(8), can).map(|(shipped, _)| shipped);
        assert_eq!(of(&usual, class), Some(Shipped::Norm(norm)));
        assert_eq!(of(&usual, Class { word: 8, ..class }), None);
        // PTX, which Thor and a GPU that is asked to take it are served by, has no wait for the kernel ahead.
        let plain = RopeSpec::new(DType::F32, 72, 4, 2);
        for (cubins, overlaps) in [(Some((9, 0)), true), (Some((11, 0)), false), (None, false)] {
            for (spec, class) in [(&usual, class), (&plain, Class::contiguous(&plain, false, true))] {
                let (_, variant) =
                    Shipped::of(spec, class, Bucket::of(8), Abilities { cubins, ..can }).expect("served");
                assert_eq!(variant.overlap, overlaps, "{spec} for {cubins:?}");
            }
        }
        let other = |change: fn(&mut RopeSpec)| {
            let mut spec = usual.clone();
            change(&mut spec);
            of(&spec, class)
        };
        assert_eq!(other(|s| s.rounding = Rounding::Once), None);
        // Of contracted products nothing is.
        let mut contracted = RopeSpec::new(DType::BF16, 128, 32, 8).with_rounding(Rounding::Contracted);
        contracted.style = PairStyle::Interleaved;
        assert_eq!(of(&contracted, Class::contiguous(&contracted, false, true)), None);
        assert_eq!(other(|s| s.dtype = DType::F16), None);
        assert_eq!(other(|s| s.rotary_dim = 64), None);
        assert_eq!(other(|s| s.append = Some(Append::new(128))), None);
        assert_eq!(other(|s| (s.head_dim, s.rotary_dim) = (80, 80)), None);
        assert!(other(|s| s.direction = Direction::Backward).is_some());
    }
}
