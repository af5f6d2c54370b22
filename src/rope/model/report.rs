//! What was understood of a configuration, with its numbers: the document that `ropejit model --json` prints.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Latent, ModelConfig, UnsupportedDtype};
use crate::error::Result;
use crate::rope::scaling::{Frequencies, Mrope, RopeParameters};
use crate::rope::{DType, Flavour, PairStyle};

/// A configuration as it was understood, with the frequencies of every layer type.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ModelReport {
    /// The model type whose rules were followed.
    pub model_type: String,
    /// Element type of the weights, if stated.
    pub dtype: Option<DType>,
    /// An element type that is stated and that no kernel has.
    pub unsupported_dtype: Option<UnsupportedDtype>,
    /// Heads of q.
    pub num_heads: u32,
    /// Heads of the k that turns.
    pub num_kv_heads: u32,
    /// Elements per head of what is rotated.
    pub head_dim: u32,
    /// Elements of a head that turn.
    pub rotary_dim: u32,
    /// Which elements turn together.
    pub style: PairStyle,
    /// The norm of each head of q and k, where there is one.
    pub qk_norm: Option<Flavour>,
    /// What multi-head latent attention has beside.
    pub latent: Option<Latent>,
    /// Tokens of the longest context.
    pub max_position_embeddings: u64,
    /// The axes of positions, for models whose positions have three.
    pub mrope: Option<Mrope>,
    /// The length that the frequencies are for; none: as a model starts with.
    pub seq_len: Option<u64>,
    /// Keys that look like RoPE's and are not read.
    pub unread: Vec<String>,
    /// By layer type.
    pub layers: BTreeMap<String, LayerReport>,
}

/// Parameters and frequencies of one layer type.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct LayerReport {
    /// What was read.
    pub parameters: RopeParameters,
    /// What follows from it.
    #[serde(flatten)]
    pub frequencies: Frequencies,
}

impl ModelConfig {
    /// All that was understood, with frequencies for sequences of `seq_len` tokens.
    ///
    /// # Errors
    /// Those of [`RopeParameters::frequencies`].
    pub fn report(&self, seq_len: Option<u64>) -> Result<ModelReport> {
        let layer = |(name, rope): (&String, &RopeParameters)| {
            let report = LayerReport { parameters: rope.clone(), frequencies: rope.frequencies(seq_len)? };
            Ok((name.clone(), report))
        };
        Ok(ModelReport {
            model_type: self.model_type.clone(),
            dtype: self.dtype,
            unsupported_dtype: self.unsupported_dtype.clone(),
            num_heads: self.num_heads,
            num_kv_heads: self.num_kv_heads,
            head_dim: self.head_dim,
            rotary_dim: self.rotary_dim,
            style: self.style,
            qk_norm: self.qk_norm,
            latent: self.latent,
            max_position_embeddings: self.max_position_embeddings,
            mrope: self.mrope,
            seq_len,
            unread: self.unread.clone(),
            layers: self.layers.iter().map(layer).collect::<Result<_>>()?,
        })
    }
}
