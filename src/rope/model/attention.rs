//! What a model's attention does to q and k beside the rotation: norms of heads, latent heads, pairs that leave as halves.
//!
//! Source: the texts of the attention modules and of their norms in transformers 5.24. Listed are norms of each head by itself
//! that come directly before the rotation; not those over the row of all heads (OLMo 2 and 3, MiniMax-M2), nor other norms than
//! RMS norms (Cohere, Persimmon, Phi, StableLM).

use serde::Serialize;

use super::families::{self, Family, Form};
use super::keys::Keys;
use crate::error::Result;
use crate::rope::Flavour::{self, OnePlusWeight, WeightAfter, WeightF32};

/// Model types that normalise each head of q and k, and how they apply the weight.
const NORMS: &[(&str, Flavour)] = &[
    ("afmoe", WeightF32),
    ("apertus", WeightAfter),
    ("dots1", WeightAfter),
    ("exaone4", WeightAfter),
    ("exaone_moe", WeightAfter),
    ("gemma3_text", OnePlusWeight),
    ("gemma3n_text", WeightF32),
    ("gemma4_text", WeightF32),
    ("glm4_moe", WeightAfter),
    ("lfm2", WeightAfter),
    ("lfm2_moe", WeightAfter),
    ("mellum", WeightAfter),
    ("qwen3", WeightAfter),
    ("qwen3_5_moe_text", OnePlusWeight),
    ("qwen3_5_text", OnePlusWeight),
    ("qwen3_moe", WeightAfter),
    ("qwen3_next", OnePlusWeight),
    ("qwen3_omni_moe_text", WeightAfter),
    ("qwen3_vl_moe_text", WeightAfter),
    ("qwen3_vl_text", WeightAfter),
    ("t5gemma2_text", OnePlusWeight),
];

/// Model types whose interleaved pairs leave as halves.
const DEINTERLEAVE: &[&str] =
    &["deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa", "longcat_flash", "mistral4", "youtu"];

/// What multi-head latent attention has beside the slices that turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Latent {
    /// Elements of a head of q that rest, in front of those that turn: `qk_nope_head_dim`.
    pub resting: u32,
    /// Elements of the latent row that a cache keeps of each token, beside the slice of k that turns: `kv_lora_rank`.
    pub rank: u32,
}

/// The norm of each head of q and k, where a configuration has one.
pub(super) fn norm(text: &Keys<'_>, family: &Family) -> Result<Option<Flavour>> {
    let found = NORMS.iter().find(|(name, _)| *name == family.model_type).map(|(_, flavour)| *flavour);
    // Its one model type where that is an option.
    if family.model_type == "glm4_moe" && text.flag("use_qk_norm")? != Some(true) {
        return Ok(None);
    }
    Ok(found)
}

/// The dimensions of latent attention, where they are stated.
pub(super) fn latent(text: &Keys<'_>, family: &Family) -> Result<Option<Latent>> {
    if family.form != Form::Mla {
        return Ok(None);
    }
    let (resting, rank) = (text.count32("qk_nope_head_dim")?, text.count32("kv_lora_rank")?);
    Ok(resting.zip(rank).map(|(resting, rank)| Latent { resting, rank }))
}

/// Whether the interleaved pairs of a model type leave as halves in transformers.
pub(in crate::rope) fn deinterleaves(model_type: &str) -> bool {
    families::find(model_type).is_some_and(|family| DEINTERLEAVE.contains(&family.model_type))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rope::PairStyle;

    #[test]
    fn the_lists_are_sorted_and_of_known_types() {
        assert!(NORMS.is_sorted_by(|a, b| a.0 < b.0) && DEINTERLEAVE.is_sorted_by(|a, b| a < b));
        for (name, _) in NORMS {
            assert!(families::find(name).is_some_and(|family| family.model_type == *name), "{name}");
        }
        for name in DEINTERLEAVE {
            let family = families::find(name).expect("known");
            assert!(family.form == Form::Mla && family.style == PairStyle::Interleaved, "{name}");
        }
        assert!(deinterleaves("kimi_k2") && !deinterleaves("deepseek_v2") && !deinterleaves("llama"));
    }
}
