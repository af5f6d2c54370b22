//! The words that a spec is stated in.

use serde::{Deserialize, Serialize};

use super::dtype::DType;

/// Which elements of a head turn together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PairStyle {
    /// Half-split, called NeoX or Llama style: elements `i` and `i + rotary_dim/2`.
    #[default]
    HalfSplit,
    /// Interleaved, called GPT-J style: elements `2i` and `2i + 1`.
    Interleaved,
    /// Pairs come interleaved and leave half-split (DeepSeek V3, Kimi K2, GLM-5): elements `2i` and `2i + 1` go to `i` and
    /// `i + rotary_dim/2`. Backward the other way.
    Deinterleave,
}

/// Which part of a head turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RotaryPart {
    /// The first `rotary_dim` elements.
    #[default]
    First,
    /// The last `rotary_dim` elements, as in MLA's `[nope | rope]`.
    Last,
}

impl RotaryPart {
    pub(super) fn is_first(&self) -> bool {
        *self == Self::First
    }
}

/// Where results are rounded. Part of the spec, because it decides bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rounding {
    /// `fl(fl(a·c) − fl(b·s))` in f32, then one rounding to the dtype. Equals transformers eager for f32.
    #[default]
    Once,
    /// Tables, every product and the sum rounded to the dtype. Equals transformers eager for bf16 and f16.
    PerOp,
    /// As [`Once`](Self::Once), but one product of each sum is not rounded, as where a compiler contracts the two to one operation:
    /// `fl(a·c − fl(b·s))` and `fl(a·s + fl(b·c))` in f32, then one rounding to the dtype. Equals PyTorch's complex product on
    /// CUDA (Llama 4, DeepSeek-V2).
    Contracted,
}

impl Rounding {
    /// The contract that one kernel serves for all that have its bits in a dtype: nothing is narrower than f32, where each
    /// operation is rounded once.
    #[must_use]
    pub fn of(self, dtype: DType) -> Self {
        if dtype == DType::F32 && self == Self::PerOp { Self::Once } else { self }
    }
}

/// The rotation or its transpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// `a' = a·c − b·s`, `b' = b·c + a·s`.
    #[default]
    Forward,
    /// The gradient: the same with `−s`.
    Backward,
}

/// How wide a row of the cos/sin tables is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TableWidth {
    /// `rotary_dim / 2`: one value a pair.
    #[default]
    Half,
    /// `rotary_dim`: the same values twice, one copy after the other, as transformers makes them. The first is read.
    Full,
}

/// The form of the cos/sin tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TableForm {
    /// f32, or the dtype of the tensors.
    pub dtype: DType,
    /// Width of a row.
    pub width: TableWidth,
}

/// Where a token's position comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PositionForm {
    /// `offset + s` for token `s` of its sequence, one offset for all.
    #[default]
    Implicit,
    /// `position_ids` of type i32, one per token.
    Ids32,
    /// `position_ids` of type i64, one per token.
    Ids64,
    /// `offset[b] + s` for token `s` of sequence `b`, offsets of type i32.
    Offsets32,
    /// `offset[b] + s` for token `s` of sequence `b`, offsets of type i64.
    Offsets64,
    /// Sequences packed one after the other, `cu_seqlens` of type i32 saying where each begins: token `t` of sequence `n`
    /// stands at `t − cu_seqlens[n]`, plus the sequence's own offset (i32 or i64) where offsets are given. A token of no
    /// sequence, such as the padding behind `cu_seqlens[-1]`, stays as it is in both directions: copied out of place, not
    /// written in place, and never a fault.
    CuSeqlens,
    /// As [`CuSeqlens`](Self::CuSeqlens), with `cu_seqlens` of type i64.
    CuSeqlens64,
}

impl PositionForm {
    /// Whether sequences are packed one after the other.
    pub fn is_packed(self) -> bool {
        matches!(self, Self::CuSeqlens | Self::CuSeqlens64)
    }

    /// Whether the numbers that the form names are i64: `position_ids`, offsets, or `cu_seqlens`.
    pub fn is_wide(self) -> bool {
        matches!(self, Self::Ids64 | Self::Offsets64 | Self::CuSeqlens64)
    }
}
