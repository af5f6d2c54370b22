//! Kernels for every shape, compiled ahead of time and shipped in `cache/`: they answer first calls, where nothing is
//! cached and even where nothing can be compiled.
//!
//! A portable kernel is compiled for its element types, pair style and width of accesses, and told all else at run time.
//! It computes what every other kernel does, to the bit. `cache/kernels.txt` lists them, one a line, with the place of
//! each in `cache/kernels.bin`; `make kernels` writes both anew.

use std::fmt;
use std::io::Read as _;

use flate2::read::DeflateDecoder;
use sha2::{Digest as _, Sha256};

use super::render::{Dialect, assemble, dtype_name};
use super::variant::{Class, Hint, Variant};
use crate::rope::{DType, PairStyle, RopeSpec};
use crate::service::digest::hex;

/// Architectures that there are cubins for. Each serves the later ones of its generation as well.
pub const ARCHS: [&str; 7] = ["sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"];
/// Whose PTX serves what has no cubin: the driver translates it.
pub const PTX_ARCH: &str = "compute_80";

const INDEX: &str = include_str!("../../../cache/kernels.txt");
const KERNELS: &[u8] = include_bytes!("../../../cache/kernels.bin");
/// No kernel is larger.
const MOST_BYTES: u64 = 1 << 20;

/// What a portable kernel is compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Portable {
    /// Elements of q and k.
    pub dtype: DType,
    /// Elements of the tables; `None` where angles are computed.
    pub table: Option<DType>,
    /// Which elements turn together.
    pub style: PairStyle,
    /// Accesses of 16 bytes, else of one element (two, where pairs are interleaved). Not where angles are computed or
    /// positions are on three axes: for many elements at once that makes large code.
    pub wide: bool,
}

impl Portable {
    /// All that are shipped.
    pub fn all() -> impl Iterator<Item = Self> {
        let mut all = Vec::new();
        for dtype in DType::ALL {
            for table in [None, Some(DType::F32), Some(dtype)] {
                for style in [PairStyle::HalfSplit, PairStyle::Interleaved] {
                    for wide in [true, false] {
                        let portable = Self { dtype, table, style, wide };
                        if !(all.contains(&portable) || wide && table.is_none()) {
                            all.push(portable);
                        }
                    }
                }
            }
        }
        all.into_iter()
    }

    /// The one that serves a spec and layout class.
    pub fn of(spec: &RopeSpec, class: Class) -> Self {
        let table = (class.table_word > 0).then_some(spec.table.dtype);
        let wide = Self { dtype: spec.dtype, table, style: spec.style, wide: true };
        let vec = u32::from(wide.variant().vec);
        let pairs = if spec.style == PairStyle::Interleaved { vec / 2 } else { vec };
        let row_word = (pairs as usize * spec.table.dtype.size()).min(16);
        let rest = if class.copy_rest { spec.head_dim - spec.rotary_dim } else { 0 };
        let fits = table.is_some()
            && spec.mrope.is_none()
            && class.word == 16
            && usize::from(class.table_word) >= row_word
            && (spec.rotary_dim / 2).is_multiple_of(pairs)
            && rest.is_multiple_of(vec);
        Self { wide: fits, ..wide }
    }

    /// How it runs.
    pub fn variant(self) -> Variant {
        let narrow = if self.style == PairStyle::Interleaved { 2 } else { 1 };
        Variant {
            threads: 128,
            vec: if self.wide { 16 / self.dtype.size() as u8 } else { narrow },
            heads: 1,
            lanes: 0,
            load: Hint::Default,
            store: Hint::Default,
            keep_tables: false,
            overlap: false,
            tableless: self.table.is_none(),
            prefetch: false,
            early: false,
            blocks: 0,
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

impl fmt::Display for Portable {
    /// Such as `bf16/f32 half_split wide`: elements of q and k, of the tables, pair style, accesses.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/", self.dtype)?;
        match self.table {
            Some(table) => write!(f, "{table}")?,
            None => f.write_str("computed")?,
        }
        let style = match self.style {
            PairStyle::HalfSplit => "half_split",
            PairStyle::Interleaved => "interleaved",
            PairStyle::Deinterleave => "deinterleave",
        };
        write!(f, " {style} {}", if self.wide { "wide" } else { "narrow" })
    }
}

/// The complete source of a portable kernel.
pub fn render_portable(dialect: Dialect, portable: &Portable) -> String {
    let v = portable.variant();
    let element = portable.dtype.size() as u8;
    let table = portable.table.unwrap_or(DType::F32);
    let word = |size| if portable.wide { 16 } else { size };
    assemble(
        dialect,
        &[
            ("PORTABLE", &1),
            ("DTYPE", &dtype_name(portable.dtype)),
            ("TABLE_F32", &u8::from(table == DType::F32)),
            ("LANES", &0),
            ("INTERLEAVED", &u8::from(portable.style == PairStyle::Interleaved)),
            ("ONE_AXIS", &u8::from(portable.wide)),
            ("WORD", &word(element)),
            ("TABLE_WORD", &word(table.size() as u8)),
            ("THREADS", &v.threads),
            ("VEC", &v.vec),
            ("HEADS_PER_THREAD", &v.heads),
            ("LOAD_HINT", &v.load.code()),
            ("STORE_HINT", &v.store.code()),
            ("KEEP_TABLES", &0),
            ("TABLELESS", &u8::from(v.tableless)),
            ("OVERLAP", &0),
            ("PREFETCH", &0),
        ],
        false,
    )
}

/// SHA-256 over the sources of all portable kernels, which `cache/kernels.txt` repeats: by it a test knows when the shipped
/// ones are stale.
pub fn sources_digest() -> String {
    let mut hasher = Sha256::new();
    for portable in Portable::all() {
        hasher.update(render_portable(Dialect::Cuda, &portable));
    }
    hex(&hasher.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shipped_is_of_these_templates() {
        let digest = format!("sources = {}", sources_digest());
        assert!(INDEX.lines().any(|l| l == digest), "cache/kernels.* are stale: run `make kernels`");
    }

    #[test]
    fn every_architecture_has_every_kernel() {
        assert_eq!(Portable::all().count(), 26);
        for portable in Portable::all() {
            for capability in [(7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0), (12, 1)] {
                let code = arch_for(capability).and_then(|arch| portable.code(arch));
                assert!(code.is_some_and(|c| c.starts_with(b"\x7fELF")), "{portable} for {capability:?}");
            }
            let code = arch_for((11, 0)).and_then(|arch| portable.code(arch)).expect("PTX");
            assert!(String::from_utf8(code).expect("text").contains(".entry rope_kernel"));
        }
        assert_eq!([(8, 7), (10, 1), (11, 0)].map(arch_for), [Some(PTX_ARCH); 3]);
        assert!(arch_for((7, 0)).is_none() && arch_for((6, 1)).is_none());
        assert!(INDEX.len() + KERNELS.len() <= 2 << 20);
    }

    #[test]
    fn an_unaligned_or_odd_shape_takes_the_narrow_one() {
        let spec = RopeSpec::new(DType::BF16, 128, 32, 8);
        let class = Class::contiguous(&spec, false, true);
        assert!(Portable::of(&spec, class).wide);
        assert!(!Portable::of(&spec, Class { word: 8, ..class }).wide);
        assert!(!Portable::of(&spec, Class { table_word: 8, ..class }).wide);
        assert!(!Portable::of(&spec, Class { table_word: 0, ..class }).wide);
        let odd = RopeSpec { rotary_dim: 72, ..spec };
        assert!(!Portable::of(&odd, class).wide);
    }
}
