//! No text whatsoever makes the reader panic, and what it accepts can be used.

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use crate::rope::model::ModelConfig;

const KEYS: &[&str] = &[
    "0",
    "1",
    "alibi",
    "alpha",
    "attention_factor",
    "attention_k_eq_v",
    "attn_factor",
    "beta_fast",
    "beta_slow",
    "dtype",
    "extrapolation_factor",
    "factor",
    "full_attention",
    "global_head_dim",
    "head_dim",
    "hidden_size",
    "high_freq_factor",
    "layer_rope_theta",
    "layer_types",
    "llama_4_scaling_beta",
    "long_factor",
    "long_mscale",
    "low_freq_factor",
    "max_position_embeddings",
    "model_type",
    "mrope_interleaved",
    "mrope_section",
    "mscale",
    "mscale_all_dim",
    "multi_query",
    "n_embd",
    "n_head",
    "num_attention_heads",
    "num_global_key_value_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "num_kv_heads",
    "original_max_position_embeddings",
    "partial_rotary_factor",
    "partial_rotary_factors",
    "per_layer_config",
    "qk_rope_head_dim",
    "rope_interleave",
    "rope_local_base_freq",
    "rope_parameters",
    "rope_ratio",
    "rope_scaling",
    "rope_theta",
    "rope_type",
    "rotary_dim",
    "rotary_emb_base",
    "rotary_pct",
    "short_factor",
    "short_mscale",
    "sliding_attention",
    "swa_rope_theta",
    "text_config",
    "torch_dtype",
    "truncate",
    "type",
];

const WORDS: &[&str] = &[
    "-Infinity",
    "Infinity",
    "NaN",
    "bfloat16",
    "codegen",
    "deepseek_v3",
    "default",
    "dynamic",
    "falcon",
    "float8_e4m3fn",
    "full_attention",
    "gemma3",
    "gemma3_text",
    "gemma4_text",
    "glm",
    "gpt_neox",
    "gpt_oss",
    "gptj",
    "granite_swa",
    "linear",
    "llama",
    "llama3",
    "longrope",
    "mistral4",
    "modernbert",
    "mrope",
    "olmo3",
    "phi3",
    "phimoe",
    "proportional",
    "qwen2_vl",
    "qwen3_vl",
    "sliding_attention",
    "su",
    "yarn",
    "𝛚",
];

fn scalar() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        (-2i64..300).prop_map(Value::from),
        (0u32..40).prop_map(|bits| json!(1u64 << bits)),
        (-1.0..40.0).prop_map(Value::from),
        prop::sample::select(WORDS).prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
    ]
}

fn object(value: impl Strategy<Value = Value>) -> impl Strategy<Value = Value> {
    let keys = prop::sample::select(KEYS).prop_map(str::to_owned);
    prop::collection::vec((keys, value), 0..12)
        .prop_map(|pairs| Value::Object(pairs.into_iter().collect::<Map<_, _>>()))
}

fn value() -> impl Strategy<Value = Value> {
    scalar().prop_recursive(4, 48, 12, |inner| {
        prop_oneof![prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from), object(inner)]
    })
}

/// Everything that may be asked of a configuration that was accepted.
fn use_it(text: &str) {
    let Ok(config) = ModelConfig::from_json(text) else { return };
    assert!(!config.layers.is_empty());
    for (layer, rope) in &config.layers {
        for length in [None, Some(0), Some(1), Some(1 << 20), Some(u64::from(u32::MAX))] {
            let frequencies = rope.frequencies(length).unwrap();
            assert_eq!(frequencies.inv_freq.len() * 2, rope.rotary_dim as usize);
            assert!(frequencies.inv_freq.iter().all(|w| w.is_finite()));
        }
        let _ = rope.frequencies(Some(u64::MAX));
        if let Ok(spec) = config.layer_spec(layer) {
            spec.validate().unwrap();
        }
    }
    let _ = config.spec();
    serde_json::to_string(&config.report(None).unwrap()).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn any_text(text in ".{0,200}") {
        use_it(&text);
    }

    #[test]
    fn any_object(value in object(value())) {
        use_it(&value.to_string());
    }

    /// Mostly right, so that the depths are reached.
    #[test]
    fn nearly_right(
        model_type in prop::sample::select(WORDS),
        kind in prop::sample::select(WORDS),
        place in prop::sample::select(&["rope_scaling", "rope_parameters"][..]),
        numbers in prop::collection::vec(prop_oneof![4 => 0.5..64.0, 1 => any::<f64>()], 8),
        key in prop::sample::select(KEYS),
        wrong in value(),
        inside in any::<bool>(),
    ) {
        let rope = json!({"rope_type": kind, "factor": numbers[0], "low_freq_factor": numbers[1],
            "high_freq_factor": numbers[2], "beta_fast": numbers[3], "beta_slow": numbers[4],
            "original_max_position_embeddings": 4096, "short_factor": vec![numbers[5]; 32],
            "long_factor": vec![numbers[6]; 32], "mscale": numbers[7]});
        let mut config = json!({"model_type": model_type, "head_dim": 64, "num_attention_heads": 8,
            "num_key_value_heads": 8, place: rope});
        let target = if inside { &mut config[place] } else { &mut config };
        target[key] = wrong;
        let text = config.to_string();
        // What Python writes where a number is not finite.
        use_it(&text.replace("\"NaN\"", "NaN").replace("\"-Infinity\"", "-Infinity"));
        use_it(&text);
    }
}
