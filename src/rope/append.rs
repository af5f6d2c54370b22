//! Appending k and v to a paged cache in the launch that turns q and k.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Where a token is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SlotForm {
    /// `slot_mapping`, an i64 a token: the slot in the whole cache. −1: stored nowhere.
    #[default]
    SlotMapping,
    /// Page tables, all i32: token `t` is number `positions[t]` of request `batch_indices[t]`, whose pages are
    /// `kv_indices[kv_indptr[b] ..]`.
    Pages,
}

/// What an f32 scale does to a value before it is stored as fp8.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScaleUse {
    /// `fl(x / scale)`, as in vLLM.
    Divide,
    /// `fl(x · scale)`, as in FlashInfer.
    Multiply,
}

/// Storing as fp8 (e4m3fn: round to nearest even, saturating, NaN stays NaN), of the value rounded to the dtype.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Fp8 {
    /// What the scale does.
    pub scale: ScaleUse,
    /// One scale a head, not one a tensor.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub per_head: bool,
}

/// k and v go to a cache of blocks of slots; k is written nowhere else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Append {
    /// Where a token is stored.
    pub slots: SlotForm,
    /// Elements of a head of v; 0 when there is no v. v has as many heads as k.
    pub v_head_dim: u32,
    /// The cache is of fp8; `None`: of the dtype of q and k.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<Fp8>,
    /// q is written as fp8; `None`: as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub q: Option<Fp8>,
}

impl Append {
    /// An append of the dtype of q and k, by slot mapping.
    pub fn new(v_head_dim: u32) -> Self {
        Self { slots: SlotForm::SlotMapping, v_head_dim, cache: None, q: None }
    }
}

impl Fp8 {
    /// One scale a tensor.
    pub fn new(scale: ScaleUse) -> Self {
        Self { scale, per_head: false }
    }

    fn word(self) -> String {
        let scale = match self.scale {
            ScaleUse::Divide => "divide",
            ScaleUse::Multiply => "multiply",
        };
        format!("e4m3/{scale}{}", if self.per_head { "/head" } else { "" })
    }
}

impl fmt::Display for Append {
    /// Such as `slot_mapping,v=128,cache=e4m3/divide,q=e4m3/divide/head`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.slots {
            SlotForm::SlotMapping => "slot_mapping",
            SlotForm::Pages => "pages",
        })?;
        write!(f, ",v={}", self.v_head_dim)?;
        for (name, fp8) in [("cache", self.cache), ("q", self.q)] {
            if let Some(fp8) = fp8 {
                write!(f, ",{name}={}", fp8.word())?;
            }
        }
        Ok(())
    }
}

impl FromStr for Append {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        read(s).filter(|append| append.to_string() == s).ok_or_else(|| {
            Error::argument("append", format!("'{}' is not an append", crate::error::clip(s)))
                .hint("an append reads like this: slot_mapping,v=128,cache=e4m3/divide,q=e4m3/divide")
        })
    }
}

fn read(s: &str) -> Option<Append> {
    let mut words = s.split(',');
    let slots = match words.next()? {
        "slot_mapping" => SlotForm::SlotMapping,
        "pages" => SlotForm::Pages,
        _ => return None,
    };
    let mut append = Append { slots, ..Append::new(0) };
    for word in words {
        let (name, value) = word.split_once('=')?;
        match name {
            "v" => append.v_head_dim = value.parse().ok()?,
            "cache" => append.cache = Some(fp8(value)?),
            "q" => append.q = Some(fp8(value)?),
            _ => return None,
        }
    }
    Some(append)
}

fn fp8(s: &str) -> Option<Fp8> {
    let (scale, per_head) = match s.strip_suffix("/head") {
        Some(s) => (s, true),
        None => (s, false),
    };
    let scale = match scale {
        "e4m3/divide" => ScaleUse::Divide,
        "e4m3/multiply" => ScaleUse::Multiply,
        _ => return None,
    };
    Some(Fp8 { scale, per_head })
}
