//! What a configuration leaves to its model type: the pair style, and defaults of keys that are not stated.
//!
//! Source: the configuration classes and attention modules of transformers 5.24. The defaults are those of each class when
//! made with no arguments; the pair style was found by rotating unit vectors with the module's own function. Types that
//! are not listed are refused rather than guessed at.

use super::super::PairStyle::{self, HalfSplit, Interleaved};

/// How a model type keeps the parameters of its layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// The same for all layers.
    Flat,
    /// The same for all layers, and only the `qk_rope_head_dim` slice of a head turns, cut out before (multi-head latent
    /// attention).
    Mla,
    /// For full and sliding attention: nested in `rope_parameters`, or in older keys beside each other.
    Layers,
    /// Per layer type, only ever nested in `rope_parameters`.
    Nested,
    /// The same for all layers but for θ, which `layer_rope_theta` may list layer by layer.
    Thetas,
}
use Form::{Flat, Layers, Mla, Nested, Thetas};

/// One model type.
#[derive(Debug, Clone, Copy)]
pub(super) struct Family {
    /// The `model_type` key.
    pub model_type: &'static str,
    /// Which elements turn together. `DeepSeek`'s pairs are interleaved, though transformers writes the results out as
    /// halves: in q and k alike, so that their products are the same.
    pub style: PairStyle,
    pub hidden_size: u32,
    pub num_heads: u32,
    /// 0: as many as `num_heads`.
    pub num_kv_heads: u32,
    /// 0: `hidden_size / num_heads`. For [`Form::Mla`], `qk_rope_head_dim`.
    pub head_dim: u32,
    pub max_position_embeddings: u64,
    /// 0: must be stated.
    pub theta: f64,
    /// The fraction of a head that turns; none: the whole head, and the module does not read such a key.
    pub partial: Option<f64>,
    pub form: Form,
}

const fn family(
    model_type: &'static str,
    style: PairStyle,
    [hidden_size, num_heads, num_kv_heads, head_dim]: [u32; 4],
    max_position_embeddings: u64,
    theta: f64,
    partial: Option<f64>,
    form: Form,
) -> Family {
    Family {
        model_type,
        style,
        hidden_size,
        num_heads,
        num_kv_heads,
        head_dim,
        max_position_embeddings,
        theta,
        partial,
        form,
    }
}

/// All known model types: name, style, [hidden size, heads, kv heads, head dim], context, θ, fraction, form.
#[rustfmt::skip]
const FAMILIES: &[Family] = &[
    family("afmoe", HalfSplit, [2048, 16, 0, 128], 16_384, 10_000.0, None, Flat),
    family("apertus", HalfSplit, [4096, 32, 0, 0], 65_536, 0.0, Some(1.0), Flat),
    family("arcee", HalfSplit, [2560, 32, 0, 0], 4096, 10_000.0, None, Flat),
    family("aria_text", HalfSplit, [4096, 32, 0, 0], 2048, 10_000.0, None, Flat),
    family("bamba", HalfSplit, [4096, 32, 8, 0], 262_144, 10_000.0, Some(0.5), Flat),
    family("bitnet", HalfSplit, [2560, 20, 5, 0], 2048, 500_000.0, None, Flat),
    family("chameleon", HalfSplit, [4096, 32, 32, 0], 4096, 10_000.0, None, Flat),
    family("codegen", Interleaved, [4096, 16, 0, 0], 2048, 10_000.0, Some(1.0), Flat),
    family("cohere", Interleaved, [8192, 64, 0, 0], 8192, 500_000.0, None, Flat),
    family("cohere2", Interleaved, [8192, 64, 0, 0], 8192, 10_000.0, None, Flat),
    family("cwm", HalfSplit, [6144, 48, 8, 128], 131_072, 0.0, Some(1.0), Flat),
    family("deepseek_v2", Interleaved, [4096, 32, 0, 64], 2048, 10_000.0, None, Mla),
    family("deepseek_v3", Interleaved, [7168, 128, 128, 64], 4096, 10_000.0, None, Mla),
    family("deepseek_v32", Interleaved, [7168, 128, 128, 64], 163_840, 10_000.0, None, Mla),
    family("dots1", HalfSplit, [4608, 32, 32, 0], 2048, 10_000.0, None, Flat),
    family("ernie4_5", Interleaved, [1024, 16, 2, 128], 131_072, 500_000.0, None, Flat),
    family("ernie4_5_moe", Interleaved, [2560, 20, 4, 0], 131_072, 500_000.0, None, Flat),
    family("eurobert", HalfSplit, [768, 12, 0, 0], 8192, 10_000.0, None, Flat),
    family("exaone4", HalfSplit, [4096, 32, 32, 0], 2048, 10_000.0, None, Flat),
    family("exaone_moe", HalfSplit, [4096, 32, 32, 0], 2048, 10_000.0, None, Flat),
    family("falcon", HalfSplit, [4544, 71, 0, 0], 2048, 10_000.0, None, Flat),
    family("falcon_h1", HalfSplit, [4096, 32, 8, 0], 8192, 10_000.0, None, Flat),
    family("flex_olmo", HalfSplit, [4096, 32, 0, 0], 4096, 500_000.0, None, Flat),
    family("gemma", HalfSplit, [3072, 16, 16, 256], 8192, 10_000.0, None, Flat),
    family("gemma2", HalfSplit, [2304, 8, 4, 256], 8192, 10_000.0, None, Flat),
    family("gemma3_text", HalfSplit, [2304, 8, 4, 256], 131_072, 1_000_000.0, None, Layers),
    family("gemma3n_text", HalfSplit, [2048, 8, 2, 256], 32_768, 1_000_000.0, None, Layers),
    family("gemma4_text", HalfSplit, [2304, 8, 4, 256], 131_072, 0.0, None, Nested),
    family("glm", Interleaved, [4096, 32, 2, 128], 131_072, 10_000.0, Some(0.5), Flat),
    family("glm4", Interleaved, [4096, 32, 2, 128], 131_072, 10_000.0, Some(0.5), Flat),
    family("glm4_moe", HalfSplit, [4096, 96, 8, 0], 131_072, 10_000.0, Some(0.5), Flat),
    family("glm4_moe_lite", Interleaved, [2048, 20, 20, 64], 202_752, 10_000.0, None, Mla),
    family("glm4v_moe_text", HalfSplit, [4096, 96, 8, 0], 65_536, 10_000.0, Some(0.5), Flat),
    family("glm4v_text", Interleaved, [4096, 32, 2, 0], 32_768, 10_000.0, Some(1.0), Flat),
    family("glm_image_text", HalfSplit, [4096, 32, 2, 0], 131_072, 10_000.0, Some(1.0), Flat),
    family("glm_moe_dsa", Interleaved, [6144, 64, 64, 64], 202_752, 10_000.0, None, Mla),
    family("glm_ocr_text", Interleaved, [1024, 16, 8, 0], 131_072, 10_000.0, Some(1.0), Flat),
    family("gpt_neox", HalfSplit, [6144, 64, 0, 0], 2048, 10_000.0, Some(0.25), Flat),
    family("gpt_neox_japanese", HalfSplit, [2560, 32, 0, 0], 2048, 10_000.0, Some(1.0), Flat),
    family("gpt_oss", HalfSplit, [2880, 64, 8, 64], 131_072, 0.0, Some(1.0), Flat),
    family("gptj", Interleaved, [4096, 16, 0, 0], 2048, 10_000.0, Some(1.0), Flat),
    family("granite", HalfSplit, [4096, 32, 0, 0], 2048, 10_000.0, None, Flat),
    family("granite_swa", HalfSplit, [2560, 20, 4, 0], 8192, 10_000.0, None, Thetas),
    family("granitemoe", HalfSplit, [4096, 32, 0, 0], 2048, 10_000.0, None, Flat),
    family("granitemoe_swa", HalfSplit, [4096, 32, 0, 0], 2048, 10_000.0, None, Thetas),
    family("granitemoehybrid", HalfSplit, [4096, 32, 0, 0], 2048, 10_000.0, None, Flat),
    family("granitemoeshared", HalfSplit, [4096, 32, 0, 0], 2048, 10_000.0, None, Flat),
    family("gte", HalfSplit, [768, 12, 0, 0], 8192, 160_000.0, None, Flat),
    family("helium", Interleaved, [2560, 20, 20, 128], 4096, 100_000.0, None, Flat),
    family("internlm2", HalfSplit, [4096, 32, 0, 0], 2048, 10_000.0, None, Flat),
    family("lfm2", HalfSplit, [2560, 32, 8, 0], 128_000, 1_000_000.0, None, Flat),
    family("lfm2_moe", HalfSplit, [2048, 32, 8, 0], 128_000, 1_000_000.0, None, Flat),
    family("llama", HalfSplit, [4096, 32, 0, 0], 2048, 10_000.0, None, Flat),
    family("llama4_text", Interleaved, [5120, 40, 8, 128], 131_072, 500_000.0, None, Flat),
    family("longcat_flash", Interleaved, [6144, 64, 0, 64], 131_072, 10_000_000.0, None, Mla),
    family("mellum", HalfSplit, [2304, 32, 4, 128], 131_072, 0.0, Some(1.0), Nested),
    family("minicpm3", HalfSplit, [2560, 40, 40, 32], 32_768, 10_000.0, None, Mla),
    family("minimax", HalfSplit, [4096, 32, 8, 0], 131_072, 1_000_000.0, None, Flat),
    family("minimax_m2", HalfSplit, [3072, 48, 8, 128], 196_608, 5_000_000.0, Some(1.0), Flat),
    family("ministral", HalfSplit, [4096, 32, 8, 0], 131_072, 10_000.0, None, Flat),
    family("ministral3", HalfSplit, [4096, 32, 8, 128], 262_144, 0.0, Some(1.0), Flat),
    family("mistral", HalfSplit, [4096, 32, 8, 0], 131_072, 10_000.0, None, Flat),
    family("mistral4", Interleaved, [4096, 32, 32, 64], 1_048_576, 0.0, None, Mla),
    family("mixtral", HalfSplit, [4096, 32, 8, 0], 131_072, 1_000_000.0, None, Flat),
    family("mllama_text_model", HalfSplit, [4096, 32, 8, 0], 131_072, 500_000.0, None, Flat),
    family("modernbert", HalfSplit, [768, 12, 0, 0], 8192, 160_000.0, None, Layers),
    family("modernbert-decoder", HalfSplit, [768, 12, 0, 0], 8192, 160_000.0, None, Layers),
    family("muse_glimmer_text", HalfSplit, [6656, 32, 2, 128], 131_072, 10_000.0, None, Thetas),
    family("muse_spark_text", HalfSplit, [8192, 128, 16, 64], 1_048_576, 0.0, None, Thetas),
    family("nemotron", HalfSplit, [6144, 48, 0, 0], 4096, 10_000.0, Some(0.5), Flat),
    family("nomic_bert", HalfSplit, [768, 12, 0, 0], 2048, 1_000.0, None, Flat),
    family("olmo", HalfSplit, [4096, 32, 0, 0], 2048, 10_000.0, None, Flat),
    family("olmo2", HalfSplit, [4096, 32, 0, 0], 2048, 10_000.0, None, Flat),
    family("olmo3", HalfSplit, [4096, 32, 0, 0], 2048, 500_000.0, None, Layers),
    family("olmoe", HalfSplit, [2048, 16, 0, 0], 4096, 10_000.0, None, Flat),
    family("paddleocr_vl_text", HalfSplit, [1024, 16, 2, 128], 131_072, 500_000.0, None, Flat),
    family("persimmon", HalfSplit, [4096, 64, 0, 0], 16_384, 10_000.0, Some(0.5), Flat),
    family("phi", HalfSplit, [2048, 32, 0, 0], 2048, 10_000.0, Some(0.5), Flat),
    family("phi3", HalfSplit, [3072, 32, 0, 0], 4096, 10_000.0, Some(1.0), Flat),
    family("phi4_multimodal", HalfSplit, [3072, 32, 8, 0], 131_072, 10_000.0, Some(1.0), Flat),
    family("phimoe", HalfSplit, [4096, 32, 8, 0], 131_072, 1_000_000.0, None, Flat),
    family("qwen2", HalfSplit, [4096, 32, 32, 0], 32_768, 10_000.0, None, Flat),
    family("qwen2_5_omni_text", HalfSplit, [3584, 28, 4, 0], 32_768, 1_000_000.0, None, Flat),
    family("qwen2_5_vl_text", HalfSplit, [8192, 64, 8, 0], 32_768, 1_000_000.0, None, Flat),
    family("qwen2_moe", HalfSplit, [2048, 16, 16, 0], 32_768, 10_000.0, None, Flat),
    family("qwen2_vl_text", HalfSplit, [8192, 64, 8, 0], 32_768, 1_000_000.0, None, Flat),
    family("qwen3", HalfSplit, [4096, 32, 32, 128], 32_768, 10_000.0, None, Flat),
    family("qwen3_5_moe_text", HalfSplit, [2048, 16, 2, 256], 32_768, 10_000.0, Some(0.25), Flat),
    family("qwen3_5_text", HalfSplit, [4096, 16, 4, 256], 32_768, 10_000.0, Some(0.25), Flat),
    family("qwen3_moe", HalfSplit, [2048, 32, 4, 0], 32_768, 10_000.0, None, Flat),
    family("qwen3_next", HalfSplit, [2048, 16, 2, 256], 32_768, 10_000.0, Some(0.25), Flat),
    family("qwen3_omni_moe_text", HalfSplit, [2048, 28, 4, 0], 32_768, 1_000_000.0, None, Flat),
    family("qwen3_vl_moe_text", HalfSplit, [2048, 16, 16, 0], 128_000, 500_000.0, None, Flat),
    family("qwen3_vl_text", HalfSplit, [4096, 32, 32, 128], 128_000, 500_000.0, None, Flat),
    family("seed_oss", HalfSplit, [4096, 80, 8, 128], 524_288, 10_000.0, None, Flat),
    family("smollm3", HalfSplit, [2048, 16, 4, 0], 32_768, 2_000_000.0, None, Flat),
    family("stablelm", HalfSplit, [2560, 32, 32, 0], 4096, 10_000.0, Some(0.25), Flat),
    family("starcoder2", HalfSplit, [3072, 24, 2, 0], 4096, 10_000.0, None, Flat),
    family("t5gemma2_text", HalfSplit, [2304, 8, 4, 256], 131_072, 1_000_000.0, None, Layers),
    family("vaultgemma", HalfSplit, [2304, 8, 4, 256], 8192, 10_000.0, None, Flat),
    family("youtu", Interleaved, [2048, 16, 16, 64], 131_072, 10_000.0, None, Mla),
];

/// Names under which the same text model is found: a multimodal wrapper whose keys lie flat, or a checkpoint that brings
/// its own code.
const ALIASES: &[(&str, &str)] = &[
    ("gemma3", "gemma3_text"),
    ("gemma3n", "gemma3n_text"),
    ("gemma4", "gemma4_text"),
    ("glm4v", "glm4v_text"),
    ("glm4v_moe", "glm4v_moe_text"),
    ("glm_image", "glm_image_text"),
    ("glm_ocr", "glm_ocr_text"),
    ("kimi_k2", "deepseek_v3"),
    ("llama4", "llama4_text"),
    ("mllama", "mllama_text_model"),
    ("paddleocr_vl", "paddleocr_vl_text"),
    ("qwen2_5_vl", "qwen2_5_vl_text"),
    ("qwen2_vl", "qwen2_vl_text"),
    ("qwen3_5", "qwen3_5_text"),
    ("qwen3_5_moe", "qwen3_5_moe_text"),
    ("qwen3_vl", "qwen3_vl_text"),
    ("qwen3_vl_moe", "qwen3_vl_moe_text"),
];

/// Model types that tell positions apart in another way.
const WITHOUT_ROPE: &[(&str, &str)] = &[
    ("albert", "learned absolute positions"),
    ("bart", "learned absolute positions"),
    ("bert", "learned absolute positions"),
    ("bigbird", "learned absolute positions"),
    ("biogpt", "learned absolute positions"),
    ("bloom", "ALiBi"),
    ("clip", "learned absolute positions"),
    ("ctrl", "sinusoidal positions"),
    ("deberta", "relative position embeddings"),
    ("deberta-v2", "relative position embeddings"),
    ("distilbert", "learned absolute positions"),
    ("electra", "learned absolute positions"),
    ("gpt2", "learned absolute positions"),
    ("gpt_bigcode", "learned absolute positions"),
    ("gpt_neo", "learned absolute positions"),
    ("jamba", "no positions"),
    ("longformer", "learned absolute positions"),
    ("mamba", "a state space model"),
    ("mamba2", "a state space model"),
    ("mbart", "learned absolute positions"),
    ("mpt", "ALiBi"),
    ("mt5", "relative position biases"),
    ("openai-gpt", "learned absolute positions"),
    ("opt", "learned absolute positions"),
    ("roberta", "learned absolute positions"),
    ("rwkv", "a recurrent model"),
    ("t5", "relative position biases"),
    ("vit", "learned absolute positions"),
    ("whisper", "learned and sinusoidal positions"),
    ("xglm", "sinusoidal positions"),
    ("xlm-roberta", "learned absolute positions"),
    ("xlnet", "relative positions"),
];

/// The family of a model type.
pub(super) fn find(model_type: &str) -> Option<&'static Family> {
    let name = ALIASES.iter().find(|(alias, _)| *alias == model_type).map_or(model_type, |(_, name)| name);
    FAMILIES.iter().find(|family| family.model_type == name)
}

/// How a model type without rotary position embedding knows positions.
pub(super) fn without_rope(model_type: &str) -> Option<&'static str> {
    WITHOUT_ROPE.iter().find(|(name, _)| *name == model_type).map(|(_, positions)| *positions)
}

/// The `mrope_section` that a multimodal type has when none is stated, and whether its axes are interleaved.
pub(super) fn mrope_of(family: &Family) -> Option<([u32; 3], bool)> {
    match family.model_type {
        "qwen2_vl_text" | "qwen2_5_vl_text" | "qwen2_5_omni_text" | "paddleocr_vl_text" => Some(([16, 24, 24], false)),
        "glm4v_text" | "glm4v_moe_text" | "glm_image_text" | "glm_ocr_text" => Some(([8, 12, 12], false)),
        "qwen3_vl_text" | "qwen3_vl_moe_text" | "qwen3_omni_moe_text" => Some(([24, 20, 20], true)),
        "qwen3_5_text" | "qwen3_5_moe_text" => Some(([11, 11, 10], true)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_and_complete() {
        assert!(FAMILIES.is_sorted_by(|a, b| a.model_type < b.model_type));
        for (alias, name) in ALIASES {
            assert!(find(name).is_some(), "{alias} means {name}");
            assert!(FAMILIES.iter().all(|f| f.model_type != *alias), "{alias} is a type of its own");
        }
        assert!(WITHOUT_ROPE.iter().all(|(name, _)| find(name).is_none()));
    }
}
