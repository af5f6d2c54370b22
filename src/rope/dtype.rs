//! Element types.

use std::fmt;
use std::str::FromStr;

use half::{bf16, f16};
use serde::{Deserialize, Serialize};

use super::e4m3;
use crate::error::Error;

/// The element type of a tensor or of a cos/sin table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DType {
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// bfloat16.
    BF16,
    /// fp8 with four bits of exponent, as `torch.float8_e4m3fn`: for caches, and q beside one.
    E4M3,
}

impl DType {
    /// All that q, k and tables can have, in canonical order.
    pub const ALL: [Self; 3] = [Self::F32, Self::F16, Self::BF16];

    /// Bytes per element.
    pub const fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::E4M3 => 1,
        }
    }

    /// The short name: `f32`, `f16`, `bf16`, `e4m3`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
            Self::E4M3 => "e4m3",
        }
    }

    /// Rounds to this type, to nearest, ties to even, and back.
    pub fn round(self, x: f32) -> f32 {
        match self {
            Self::F32 => x,
            Self::F16 => f16::from_f32(x).to_f32(),
            Self::BF16 => bf16::from_f32(x).to_f32(),
            Self::E4M3 => e4m3::to_f32(e4m3::from_f32(x)),
        }
    }

    /// The value of the element at `index` of a buffer of this type.
    ///
    /// # Panics
    /// If the buffer is shorter than that.
    pub fn read(self, bytes: &[u8], index: usize) -> f32 {
        let at = index * self.size();
        match self {
            Self::F32 => f32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]),
            Self::F16 => f16::from_ne_bytes([bytes[at], bytes[at + 1]]).to_f32(),
            Self::BF16 => bf16::from_ne_bytes([bytes[at], bytes[at + 1]]).to_f32(),
            Self::E4M3 => e4m3::to_f32(bytes[at]),
        }
    }

    /// Stores a value, rounded to this type, as the element at `index`.
    ///
    /// # Panics
    /// If the buffer is shorter than that.
    pub fn write(self, bytes: &mut [u8], index: usize, x: f32) {
        let at = index * self.size();
        match self {
            Self::F32 => bytes[at..at + 4].copy_from_slice(&x.to_ne_bytes()),
            Self::F16 => bytes[at..at + 2].copy_from_slice(&f16::from_f32(x).to_ne_bytes()),
            Self::BF16 => bytes[at..at + 2].copy_from_slice(&bf16::from_f32(x).to_ne_bytes()),
            Self::E4M3 => bytes[at] = e4m3::from_f32(x),
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for DType {
    type Err = Error;

    /// Takes the short names and those of PyTorch and of `config.json` (`float16`, `torch.bfloat16`, …).
    fn from_str(s: &str) -> Result<Self, Error> {
        match s.strip_prefix("torch.").unwrap_or(s) {
            "f32" | "float32" | "float" | "fp32" => Ok(Self::F32),
            "f16" | "float16" | "half" | "fp16" => Ok(Self::F16),
            "bf16" | "bfloat16" => Ok(Self::BF16),
            other => Err(Error::argument("dtype", format!("unknown element type '{other}'"))
                .hint("known types are f32, f16 and bf16")),
        }
    }
}
