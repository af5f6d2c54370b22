//! Reads back the one line that a [`RopeSpec`] is displayed as, such as
//! `bf16 d128 h32/8 half_split once table=f32/half pos=implicit`.

use std::str::FromStr;

use serde::Deserialize;
use serde::de::IntoDeserializer as _;
use serde::de::value::{Error as NoWord, StrDeserializer};

use super::{Direction, RopeSpec, TableForm};
use crate::error::{Error, Result};

impl FromStr for RopeSpec {
    type Err = Error;

    /// Takes what `Display` writes and nothing else: one spec has one text.
    fn from_str(s: &str) -> Result<Self> {
        let spec = read(s).filter(|spec| spec.to_string() == s).ok_or_else(|| {
            Error::argument("spec", format!("'{}' is not a spec", crate::error::clip(s)))
                .hint("a spec reads like this: bf16 d128 h32/8 half_split once table=f32/half pos=implicit")
        })?;
        spec.validate()?;
        Ok(spec)
    }
}

fn read(s: &str) -> Option<RopeSpec> {
    let mut words = s.split(' ');
    let dtype = word(words.next()?)?;
    let dims = words.next()?.strip_prefix('d')?;
    let (head_dim, rotary_dim) = match dims.split_once("[..") {
        None => (dims, dims),
        Some((head_dim, rotary_dim)) => (head_dim, rotary_dim.strip_suffix(']')?),
    };
    let (heads, kv_heads) = words.next()?.strip_prefix('h')?.split_once('/')?;
    let mut spec = RopeSpec::new(dtype, head_dim.parse().ok()?, heads.parse().ok()?, kv_heads.parse().ok()?);
    spec.rotary_dim = rotary_dim.parse().ok()?;
    spec.style = word(words.next()?)?;
    spec.rounding = word(words.next()?)?;
    for text in words {
        if text == "backward" {
            spec.direction = Direction::Backward;
            continue;
        }
        let (name, value) = text.split_once('=')?;
        match name {
            "table" => {
                let (dtype, width) = value.split_once('/')?;
                spec.table = TableForm { dtype: word(dtype)?, width: word(width)? };
            }
            "angles" => spec.angles = Some(word(value)?),
            "pos" => spec.positions = word(value)?,
            "mrope" => spec.mrope = Some(value.parse().ok()?),
            "part" => spec.part = word(value)?,
            "k_dim" => spec.k_head_dim = Some(value.parse().ok()?),
            "norm" => spec.norm = Some(value.parse().ok()?),
            "append" => spec.append = Some(value.parse().ok()?),
            _ => return None,
        }
    }
    Some(spec)
}

/// A value by the word that it has in JSON.
fn word<'a, T: Deserialize<'a>>(text: &'a str) -> Option<T> {
    let text: StrDeserializer<'a, NoWord> = text.into_deserializer();
    T::deserialize(text).ok()
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::rope::scaling::{Mrope, TableMode};
    use crate::rope::{
        Append, DType, Flavour, Fp8, Norm, PairStyle, PositionForm, RotaryPart, Rounding, Rsqrt, ScaleUse, SlotForm,
        SumOrder, TableWidth,
    };

    /// Every spec that is valid: each form of each field.
    pub fn specs() -> impl Strategy<Value = RopeSpec> {
        use PositionForm::{CuSeqlens, CuSeqlens64, Ids32, Ids64, Implicit, Offsets32, Offsets64};
        let pick = |n: usize| 0..n;
        let dims = (1u32..=256, 1u32..=256, 1u32..100, 0u32..100);
        let plain = (dims, pick(3), pick(7), (pick(3), pick(3)), any::<[bool; 5]>()).prop_map(
            |(dims, dtype, positions, (angles, rounding), is)| {
                let mut spec = RopeSpec::new(DType::ALL[dtype], 2 * dims.0, dims.2, dims.3);
                spec.rotary_dim = 2 * dims.1.min(dims.0);
                spec.positions = [Implicit, Ids32, Ids64, Offsets32, Offsets64, CuSeqlens, CuSeqlens64][positions];
                spec.angles = [None, Some(TableMode::F32), Some(TableMode::Accurate)][angles];
                if is[0] {
                    spec.style = PairStyle::Interleaved;
                }
                spec.rounding = [Rounding::Once, Rounding::PerOp, Rounding::Contracted][rounding];
                if is[1] {
                    spec.direction = Direction::Backward;
                }
                if spec.angles.is_none() {
                    spec.table.dtype = if is[2] { spec.dtype } else { DType::F32 };
                    spec.table.width = if is[3] { TableWidth::Full } else { TableWidth::Half };
                }
                if matches!(spec.positions, Ids32 | Ids64) && is[4] {
                    let t = spec.rotary_dim / 2;
                    spec.mrope = Some(Mrope { sections: [t / 2, t - t / 2, 0], interleaved: is[0] });
                }
                spec
            },
        );
        (plain, neighbours()).prop_map(|(spec, beside)| beside.beside(spec))
    }

    /// What stands beside a rotation.
    #[derive(Debug, Clone)]
    struct Neighbours {
        moves: bool,
        last: bool,
        own_k_dim: bool,
        norm: Option<Norm>,
        append: Option<Append>,
    }

    fn neighbours() -> impl Strategy<Value = Neighbours> {
        let norm = (0..4usize, any::<[bool; 3]>()).prop_map(|(flavour, is)| Norm {
            flavour: [Flavour::WeightAfter, Flavour::OnePlusWeight, Flavour::WeightF32, Flavour::NoWeight][flavour],
            order: if is[0] { SumOrder::Tree } else { SumOrder::Torch },
            rsqrt: if is[1] { Rsqrt::Ieee } else { Rsqrt::Approx },
            after_rope: is[2],
        });
        let fp8 = || {
            prop::option::of(any::<[bool; 2]>()).prop_map(|is| {
                is.map(|is| Fp8 { scale: if is[0] { ScaleUse::Divide } else { ScaleUse::Multiply }, per_head: is[1] })
            })
        };
        let append = (any::<bool>(), 0u32..=256, fp8(), fp8()).prop_map(|(pages, v, cache, q)| Append {
            slots: if pages { SlotForm::Pages } else { SlotForm::SlotMapping },
            v_head_dim: 2 * v,
            cache,
            q,
        });
        (any::<[bool; 3]>(), prop::option::of(norm), prop::option::of(append))
            .prop_map(|(is, norm, append)| Neighbours { moves: is[0], last: is[1], own_k_dim: is[2], norm, append })
    }

    impl Neighbours {
        /// As much of it as a spec can have.
        fn beside(self, mut spec: RopeSpec) -> RopeSpec {
            if self.moves && spec.style == PairStyle::Interleaved {
                spec.style = PairStyle::Deinterleave;
            }
            let partial = spec.rotary_dim < spec.head_dim;
            if self.last && partial {
                spec.part = RotaryPart::Last;
            }
            if self.own_k_dim && partial && spec.num_kv_heads > 0 {
                spec.k_head_dim = Some(spec.rotary_dim);
            }
            spec.norm = self.norm.filter(|_| spec.k_head_dim.is_none());
            spec.append = self.append.filter(|_| spec.num_kv_heads > 0 && spec.direction == Direction::Forward);
            if let Some(append) = spec.append.as_mut().filter(|_| spec.dtype == DType::F32) {
                (append.cache, append.q) = (None, None);
            }
            spec
        }
    }

    proptest! {
        #[test]
        fn a_spec_reads_back(spec in specs()) {
            prop_assert!(spec.validate().is_ok(), "{spec}");
            prop_assert_eq!(spec.to_string().parse::<RopeSpec>().expect("reads back"), spec);
        }

        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,60}", at in 0usize..70, spec in specs()) {
            let _ = text.parse::<RopeSpec>();
            let mut near = spec.to_string();
            near.insert_str(at.min(near.len()), &text); // specs are ASCII
            if let Ok(read) = near.parse::<RopeSpec>() {
                prop_assert_eq!(read.to_string(), near);
            }
        }
    }

    #[test]
    fn other_spellings_are_refused_with_an_example() {
        for wrong in [
            "",
            "bf16",
            "bf16  d128 h32/8 half_split once table=f32/half pos=implicit",
            "bf16 d128 h32/8 half_split once table=f32/half pos=implicit ",
            "bf16 d128[..128] h32/8 half_split once table=f32/half pos=implicit",
            "bf16 d0128 h32/8 half_split once table=f32/half pos=implicit",
            "bf16 d128 h32/8 half_split once pos=implicit table=f32/half",
            "bf16 d128 h32/8 half_split once table=f32/half pos=implicit pos=ids32",
        ] {
            let e = wrong.parse::<RopeSpec>().expect_err(wrong);
            assert!(e.advice().is_some_and(|hint| hint.contains("bf16 d128 h32/8")), "{e}");
        }
        let e = "bf16 d63 h32/8 half_split once table=f32/half pos=implicit".parse::<RopeSpec>().expect_err("odd");
        assert_eq!(e.subject(), Some("head_dim"));
    }
}
