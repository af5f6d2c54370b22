//! Kernels for every shape, compiled ahead of time and [shipped](super::shipped): they answer first calls, where nothing is
//! cached and even where nothing can be compiled.
//!
//! A portable kernel is compiled for its element types, pair style and width of accesses, and told all else at run time.
//! It computes what every other kernel does, to the bit.

use std::fmt;

use super::known_head::{KnownHead, MOST_THREADS};
use super::render::{Dialect, assemble, dtype_name};
use super::tunables::{Class, Hint, Variant};
use crate::rope::{DType, PairStyle, RopeSpec, Rounding};

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
        let vec = u32::from(wide.vec());
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

    /// Elements in a piece.
    fn vec(self) -> u8 {
        let narrow = if self.style == PairStyle::Interleaved { 2 } else { 1 };
        if self.wide { 16 / self.dtype.size() as u8 } else { narrow }
    }

    /// How it runs; with `overlap` where launches may.
    pub fn variant(self, overlap: bool) -> Variant {
        Variant {
            threads: 128,
            vec: self.vec(),
            heads: 1,
            lanes: 0,
            load: Hint::Default,
            store: Hint::Default,
            keep_tables: false,
            overlap,
            tableless: self.table.is_none(),
            prefetch: false,
            early: false,
            blocks: 0,
            shipped: false,
        }
    }
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
pub fn render_portable(dialect: Dialect, portable: &Portable, overlap: bool) -> String {
    let v = portable.variant(overlap);
    let element = portable.dtype.size() as u8;
    let table = portable.table.unwrap_or(DType::F32);
    let word = |size| if portable.wide { 16 } else { size };
    let prelude: [(&str, &dyn fmt::Display); 16] = [
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
        ("OVERLAP", &u8::from(overlap)),
    ];
    assemble(dialect, &prelude.map(|(name, value)| (name, value.to_string())), false)
}

/// The complete source of a kernel for a known head.
pub fn render_known_head(dialect: Dialect, head: KnownHead, overlap: bool) -> String {
    let word = (head.vec * head.dtype.size() as u8).min(16);
    let prelude: [(&str, &dyn fmt::Display); 19] = [
        ("PORTABLE", &1),
        ("KNOWN_HEAD", &1),
        ("DTYPE", &dtype_name(head.dtype)),
        ("TABLE_F32", &u8::from(head.table == DType::F32)),
        ("ROTARY_DIM", &head.head_dim),
        ("LANES", &0),
        ("INTERLEAVED", &u8::from(head.style == PairStyle::Interleaved)),
        ("PER_OP", &u8::from(head.rounding == Rounding::PerOp)),
        ("ONE_AXIS", &1),
        ("WORD", &word),
        ("TABLE_WORD", &head.table_word()),
        ("THREADS", &MOST_THREADS),
        ("VEC", &head.vec),
        ("HEADS_PER_THREAD", &1),
        ("LOAD_HINT", &0),
        ("STORE_HINT", &0),
        ("KEEP_TABLES", &1),
        ("TABLELESS", &0),
        ("OVERLAP", &u8::from(overlap)),
    ];
    assemble(dialect, &prelude.map(|(name, value)| (name, value.to_string())), false)
}

#[cfg(test)]
mod tests {
    use super::*;

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
