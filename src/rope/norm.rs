//! RMS norm of q and k in the launch that turns them, stated to the bit.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// How the weight is applied to a normalised element `u = fl(x·r)`, `T` being the rounding to the dtype.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Flavour {
    /// `T(w · T(u))`: Qwen 3, GLM-4-MoE, EXAONE 4, LFM2.
    WeightAfter,
    /// `T(fl(u · fl(1 + w)))`: Gemma 3, Qwen3-Next, Qwen 3.5, MiniMax-M3.
    OnePlusWeight,
    /// `T(fl(u · w))`: Gemma 3n and 4.
    WeightF32,
    /// `T(u)`: Llama 4.
    NoWeight,
}

impl Flavour {
    /// Its name: `weight_after`, …
    pub const fn name(self) -> &'static str {
        match self {
            Self::WeightAfter => "weight_after",
            Self::OnePlusWeight => "one_plus_weight",
            Self::WeightF32 => "weight_f32",
            Self::NoWeight => "no_weight",
        }
    }
}

/// The order in which the squares of a head are added, in f32. Part of the spec, because it decides bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SumOrder {
    /// That of PyTorch's mean over a contiguous row on CUDA. See [`reference::sum`](super::reference::sum).
    Torch,
    /// A balanced tree, neighbours first.
    Tree,
}

/// The reciprocal root. Part of the spec, because it decides bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rsqrt {
    /// CUDA's `rsqrt.approx.f32`, which PyTorch uses on CUDA. A GPU's own: the host device does not have it.
    Approx,
    /// `fl(1 / fl(√v))`, both rounded to nearest. PyTorch on the CPU means the same; its square root misses the nearest value now
    /// and then.
    Ieee,
}

/// A norm of each head of q and k: `r = rsqrt(fl(fl(Σx² · fl(1/head_dim)) + eps))`, over all of `head_dim`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Norm {
    /// How the weight is applied.
    pub flavour: Flavour,
    /// The order of the sum.
    pub order: SumOrder,
    /// The reciprocal root.
    pub rsqrt: Rsqrt,
    /// The rotation comes first, and the norm is of what has turned (Llama 4).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub after_rope: bool,
}

impl Norm {
    /// A norm before the rotation, with the bits of PyTorch on CUDA.
    pub fn new(flavour: Flavour) -> Self {
        Self { flavour, order: SumOrder::Torch, rsqrt: Rsqrt::Approx, after_rope: false }
    }

    /// The same with another reciprocal root.
    #[must_use]
    pub fn with_rsqrt(mut self, rsqrt: Rsqrt) -> Self {
        self.rsqrt = rsqrt;
        self
    }

    /// The same with another order of the sum.
    #[must_use]
    pub fn with_order(mut self, order: SumOrder) -> Self {
        self.order = order;
        self
    }

    /// Whether there is a weight.
    pub fn has_weight(self) -> bool {
        self.flavour != Flavour::NoWeight
    }
}

impl fmt::Display for Norm {
    /// Such as `weight_after/torch/approx`, with `/after_rope` where the rotation comes first.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flavour = self.flavour.name();
        let order = match self.order {
            SumOrder::Torch => "torch",
            SumOrder::Tree => "tree",
        };
        let rsqrt = match self.rsqrt {
            Rsqrt::Approx => "approx",
            Rsqrt::Ieee => "ieee",
        };
        write!(f, "{flavour}/{order}/{rsqrt}{}", if self.after_rope { "/after_rope" } else { "" })
    }
}

impl FromStr for Norm {
    type Err = Error;

    /// Takes what `Display` writes; order and root may be left out: `weight_after` is `weight_after/torch/approx`.
    fn from_str(s: &str) -> Result<Self> {
        read(s).ok_or_else(|| {
            Error::argument("norm", format!("'{}' is not a norm", crate::error::clip(s)))
                .hint("a norm reads like this: weight_after/torch/approx; flavours are weight_after, one_plus_weight, weight_f32, no_weight")
        })
    }
}

fn read(s: &str) -> Option<Norm> {
    let mut words = s.split('/');
    let mut norm = Norm::new(match words.next()? {
        "weight_after" => Flavour::WeightAfter,
        "one_plus_weight" => Flavour::OnePlusWeight,
        "weight_f32" => Flavour::WeightF32,
        "no_weight" => Flavour::NoWeight,
        _ => return None,
    });
    for word in words {
        match word {
            "torch" => norm.order = SumOrder::Torch,
            "tree" => norm.order = SumOrder::Tree,
            "approx" => norm.rsqrt = Rsqrt::Approx,
            "ieee" => norm.rsqrt = Rsqrt::Ieee,
            "after_rope" => norm.after_rope = true,
            _ => return None,
        }
    }
    Some(norm)
}
