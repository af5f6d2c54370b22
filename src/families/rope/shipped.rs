//! What is shipped in `cache/`: kernels for all shapes ([`Portable`]), and norms with RoPE for the heads that most models have.
//!
//! `cache/kernels.txt` lists them, one a line, with the place of each in `cache/kernels.bin`; `make kernels` writes both anew.

use std::fmt;
use std::io::Read as _;

use flate2::read::DeflateDecoder;
use sha2::{Digest as _, Sha256};

use super::portable::{Portable, render_portable};
use super::render::{Dialect, assemble, dtype_name, fused_prelude};
use super::variant::{Class, Hint, Variant};
use crate::rope::{DType, Direction, Flavour, Norm, PairStyle, RopeSpec, Rounding};
use crate::service::digest::hex;

/// Architectures that there are cubins for. Each serves the later ones of its generation as well.
pub const ARCHS: [&str; 7] = ["sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"];
/// Whose PTX serves what has no cubin: the driver translates it.
pub const PTX_ARCH: &str = "compute_80";

const INDEX: &str = include_str!("../../../cache/kernels.txt");
const KERNELS: &[u8] = include_bytes!("../../../cache/kernels.bin");
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
        Portable::all().map(Self::Rope).chain(norms)
    }

    /// The one that serves a spec and layout class; `None` where none does.
    pub fn of(spec: &RopeSpec, class: Class) -> Option<Self> {
        if !spec.is_fused() {
            return Some(Self::Rope(Portable::of(spec, class)));
        }
        let norm = ShippedNorm { head_dim: spec.head_dim, flavour: spec.norm?.flavour, direction: spec.direction };
        // What it does not tell apart is as it is compiled.
        let mut alike = norm.spec(spec.num_heads, spec.num_kv_heads);
        (alike.positions, alike.table.width) = (spec.positions, spec.table.width);
        let fits = *spec == alike && class.word == 16 && class.table_word == 16;
        Some(Self::Norm(norm)).filter(|shipped| fits && Self::all().any(|s| s == *shipped))
    }

    /// How it runs.
    pub fn variant(self) -> Variant {
        match self {
            Self::Rope(portable) => portable.variant(),
            Self::Norm(norm) => norm.variant(),
        }
    }

    /// Its complete source.
    pub fn render(self, dialect: Dialect) -> String {
        match self {
            Self::Rope(portable) => render_portable(dialect, &portable),
            Self::Norm(norm) => norm.render(dialect),
        }
    }

    /// Its code for an architecture of [`arch_for`]: a cubin, or PTX.
    pub fn code(self, arch: &str) -> Option<Vec<u8>> {
        let name = format!("{arch} {self} = ");
        let place = INDEX.lines().find_map(|line| line.strip_prefix(&name))?;
        let (start, length) = place.split_once(' ')?;
        let (start, length): (usize, usize) = (start.parse().ok()?, length.parse().ok()?);
        let packed = KERNELS.get(start..start.checked_add(length)?)?;
        let mut code = Vec::with_capacity(4 * length);
        DeflateDecoder::new(packed).take(MOST_BYTES).read_to_end(&mut code).ok()?;
        Some(code)
    }
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

    fn variant(self) -> Variant {
        Variant {
            threads: 128,
            vec: 8,
            heads: 1,
            lanes: (self.head_dim / 16) as u8,
            load: Hint::Default,
            store: Hint::Default,
            keep_tables: false,
            overlap: false,
            tableless: false,
            prefetch: false,
            early: false,
            blocks: 0,
        }
    }

    fn render(self, dialect: Dialect) -> String {
        let (v, backward) = (self.variant(), self.direction == Direction::Backward);
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
            ("OVERLAP", "0"),
            ("PREFETCH", "0"),
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
            Self::Norm(norm) => {
                write!(f, "bf16 d{} {}", norm.head_dim, norm.flavour.name())?;
                if norm.direction == Direction::Backward { f.write_str(" backward") } else { Ok(()) }
            }
        }
    }
}

/// Whose code serves a GPU of a compute capability: the PTX's where there is no cubin for it; `None` for a GPU that is older
/// than all that are served.
pub fn arch_for((major, minor): (u32, u32)) -> Option<&'static str> {
    let device = 10 * major + minor;
    // Systems on a chip (Xavier, Orin, Thor) run no other GPU's cubins.
    let alone = matches!(device, 72 | 87 | 101);
    let runs = |arch: &&str| {
        let number = arch.trim_start_matches("sm_").parse::<u32>().unwrap_or(u32::MAX);
        number / 10 == major && number <= device && !alone
    };
    ARCHS.into_iter().rfind(runs).or((device > 80).then_some(PTX_ARCH))
}

/// SHA-256 over the sources of all, which `cache/kernels.txt` repeats: by it a test knows when the shipped ones are stale.
pub fn sources_digest() -> String {
    let mut hasher = Sha256::new();
    for shipped in Shipped::all() {
        hasher.update(shipped.render(Dialect::Cuda));
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
        assert_eq!(Shipped::all().count(), 26 + 12);
        for shipped in Shipped::all() {
            for capability in [(7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0), (12, 1)] {
                let code = arch_for(capability).and_then(|arch| shipped.code(arch));
                assert!(code.is_some_and(|c| c.starts_with(b"\x7fELF")), "{shipped} for {capability:?}");
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
        assert_eq!(Shipped::of(&usual, class), Some(Shipped::Norm(norm)));
        assert_eq!(Shipped::of(&usual, Class { word: 8, ..class }), None);
        let other = |change: fn(&mut RopeSpec)| {
            let mut spec = usual.clone();
            change(&mut spec);
            Shipped::of(&spec, class)
        };
        assert_eq!(other(|s| s.rounding = Rounding::Once), None);
        assert_eq!(other(|s| s.dtype = DType::F16), None);
        assert_eq!(other(|s| s.rotary_dim = 64), None);
        assert_eq!(other(|s| s.append = Some(Append::new(128))), None);
        assert_eq!(other(|s| (s.head_dim, s.rotary_dim) = (80, 80)), None);
        assert!(other(|s| s.direction = Direction::Backward).is_some());
    }
}
