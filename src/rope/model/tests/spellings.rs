//! One meaning, several spellings.

#![expect(clippy::needless_pass_by_value, reason = "`json!` makes values to give away")]

use serde_json::{Value, json};

use crate::rope::model::ModelConfig;
use crate::rope::scaling::{Mrope, Scaling};
use crate::rope::{DType, PairStyle};

fn read(config: Value) -> ModelConfig {
    ModelConfig::from_json(&config.to_string()).unwrap_or_else(|e| panic!("{config}: {e}"))
}

/// The same but for the name that the model goes by.
fn same(a: Value, b: Value) {
    let (a, mut b) = (read(a), read(b));
    b.model_type.clone_from(&a.model_type);
    assert_eq!(a, b);
}

#[test]
fn transformers_4_and_5() {
    let yarn = json!({"factor": 4.0, "original_max_position_embeddings": 32768});
    let with = |more: Value| {
        let mut object = yarn.clone();
        object.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        object
    };
    let base = json!({"model_type": "qwen2", "hidden_size": 3584, "num_attention_heads": 28, "num_key_value_heads": 4});
    let config = |more: Value| {
        let mut object = base.clone();
        object.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        object
    };
    let v5 =
        config(json!({"dtype": "bfloat16", "rope_parameters": with(json!({"rope_type": "yarn", "rope_theta": 1e6}))}));
    let v4 = config(json!({"torch_dtype": "torch.bfloat16", "rope_theta": 1_000_000,
                           "rope_scaling": with(json!({"type": "yarn"}))}));
    let both = config(json!({"dtype": "bfloat16", "rope_theta": 1e6,
        "rope_scaling": with(json!({"rope_type": "yarn", "type": "yarn"})),
        "rope_parameters": with(json!({"rope_type": "yarn", "rope_theta": 1e6}))}));
    same(v5.clone(), v4);
    same(v5, both);
}

#[test]
fn gpt_neox_and_its_own_names() {
    let neox = |more: Value| {
        let mut config = json!({"model_type": "gpt_neox", "hidden_size": 6144, "num_attention_heads": 64});
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        config
    };
    let plain = neox(json!({"rotary_pct": 0.25, "rotary_emb_base": 10000}));
    assert_eq!(read(plain.clone()).rotary_dim, 24);
    same(plain.clone(), neox(json!({"rope_parameters": {"partial_rotary_factor": 0.25, "rope_theta": 1e4}})));
    same(plain, neox(json!({})));
}

#[test]
fn gpt_j_is_interleaved_and_partial() {
    let config =
        read(json!({"model_type": "gptj", "n_embd": 4096, "n_head": 16, "rotary_dim": 64, "n_positions": 2048}));
    assert_eq!((config.head_dim, config.rotary_dim, config.num_kv_heads), (256, 64, 16));
    assert_eq!((config.style, config.max_position_embeddings), (PairStyle::Interleaved, 2048));
    let spec = config.spec().unwrap();
    assert_eq!((spec.dtype, spec.rotary_dim, spec.style), (DType::BF16, 64, PairStyle::Interleaved));
}

#[test]
fn heads_of_k() {
    let heads = |config: Value| read(config).num_kv_heads;
    let llama = |more: Value| {
        let mut config = json!({"model_type": "llama", "hidden_size": 4096, "num_attention_heads": 32});
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        heads(config)
    };
    assert_eq!(llama(json!({})), 32);
    assert_eq!(llama(json!({"num_key_value_heads": null})), 32);
    assert_eq!(llama(json!({"num_key_value_heads": 8})), 8);
    assert_eq!(heads(json!({"model_type": "mistral"})), 8);
    assert_eq!(heads(json!({"model_type": "mistral", "num_key_value_heads": null})), 32);
    assert_eq!(heads(json!({"model_type": "falcon", "multi_query": true})), 1);
    assert_eq!(heads(json!({"model_type": "falcon", "multi_query": false})), 71);
    let grouped = json!({"model_type": "falcon", "hidden_size": 8192, "num_attention_heads": 128, "num_kv_heads": 8,
                         "new_decoder_architecture": true});
    assert_eq!(heads(grouped), 8);
}

#[test]
fn latent_attention_rotates_a_slice_that_k_shares() {
    let config = json!({"model_type": "deepseek_v3", "hidden_size": 7168, "num_attention_heads": 128,
                        "num_key_value_heads": 128, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64});
    let deepseek = read(config.clone());
    assert_eq!((deepseek.head_dim, deepseek.rotary_dim, deepseek.num_heads), (64, 64, 128));
    assert_eq!((deepseek.num_kv_heads, deepseek.style), (1, PairStyle::Interleaved));
    let mut halves = config.clone();
    halves["rope_interleave"] = json!(false);
    assert_eq!(read(halves).style, PairStyle::HalfSplit);
    let mut kimi = config.clone();
    kimi["model_type"] = json!("kimi_k2");
    same(config, kimi);
}

#[test]
fn text_models_inside_multimodal_ones() {
    let inner = json!({"model_type": "gemma3_text", "hidden_size": 2560, "rope_scaling": {"factor": 8.0, "rope_type": "linear"}});
    let outer = json!({"model_type": "gemma3", "torch_dtype": "bfloat16", "text_config": inner});
    let config = read(outer.clone());
    assert_eq!((config.dtype, config.num_heads, config.num_kv_heads), (Some(DType::BF16), 8, 4));
    assert_eq!(config.layers["full_attention"].scaling, Scaling::Linear { factor: 8.0 });
    assert_eq!(config.layers["sliding_attention"].scaling, Scaling::Default);
    assert_eq!((config.layers["full_attention"].theta, config.layers["sliding_attention"].theta), (1e6, 1e4));
    let mut unnamed = outer.clone();
    unnamed["text_config"].as_object_mut().unwrap().remove("model_type");
    same(outer, unnamed);
    let thinker = json!({"model_type": "qwen2_5_omni_thinker", "text_config": {"model_type": "qwen2_5_omni_text"}});
    let omni = read(json!({"model_type": "qwen2_5_omni", "thinker_config": thinker}));
    assert_eq!((omni.num_heads, omni.head_dim), (28, 128));
}

#[test]
fn axes_of_vision_language_models() {
    let config = |model_type: &str, scaling: Value| {
        json!({"model_type": model_type, "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8,
               "rope_scaling": scaling})
    };
    let chunked = read(config("qwen2_vl", json!({"type": "mrope", "mrope_section": [16, 24, 24]})));
    assert_eq!(chunked.mrope, Some(Mrope { sections: [16, 24, 24], interleaved: false }));
    let resaved = json!({"type": "mrope", "rope_type": "default", "mrope_section": [16, 24, 24]});
    same(config("qwen2_vl", resaved), config("qwen2_vl", Value::Null));
    let new = json!({"rope_type": "default", "mrope_section": [24, 20, 20], "mrope_interleaved": true});
    assert_eq!(read(config("qwen3_vl", new)).mrope, Some(Mrope { sections: [24, 20, 20], interleaved: true }));
    assert_eq!(read(config("llama", Value::Null)).mrope, None);
}

#[test]
fn phi_3_has_three_names_for_longrope() {
    let phi = |name: &str| {
        let lists = json!({"type": name, "short_factor": vec![1.0; 48], "long_factor": vec![2.0; 48]});
        json!({"model_type": "phi3", "max_position_embeddings": 131_072, "original_max_position_embeddings": 4096,
               "rope_scaling": lists})
    };
    same(phi("longrope"), phi("su"));
    same(phi("longrope"), phi("yarn"));
    let rope = &read(phi("su")).layers["default"];
    let ask = |length| rope.frequencies(Some(length)).unwrap();
    assert_eq!(ask(4096).inv_freq[0].to_bits(), 1f32.to_bits());
    assert_eq!(ask(4097).inv_freq[0].to_bits(), 0.5f32.to_bits());
    assert_eq!(ask(1).attention_factor.to_bits(), ((1.0 + 32f64.ln() / 4096f64.ln()).sqrt() as f32).to_bits());
}

#[test]
fn layer_types_that_differ_have_specs_of_their_own() {
    let rope = json!({"full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6},
                      "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}});
    let config = read(json!({"model_type": "gemma4_text", "num_attention_heads": 32, "num_key_value_heads": 16,
        "attention_k_eq_v": true, "num_global_key_value_heads": 4, "rope_parameters": rope}));
    assert_eq!(config.spec().unwrap_err().subject(), Some("head_dim"));
    let (full, sliding) =
        (config.layer_spec("full_attention").unwrap(), config.layer_spec("sliding_attention").unwrap());
    assert_eq!((full.head_dim, full.rotary_dim, full.num_kv_heads), (512, 512, 4));
    assert_eq!((sliding.head_dim, sliding.rotary_dim, sliding.num_kv_heads), (256, 256, 16));
    assert_eq!(config.layer_spec("linear_attention").unwrap_err().subject(), Some("layer"));
    let turning = config.layers["full_attention"].frequencies(None).unwrap().inv_freq;
    assert_eq!((turning.len(), turning.iter().filter(|w| **w > 0.0).count()), (256, 64));
}

#[test]
fn scaling_of_queries_is_kept() {
    let rope = json!({"rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 16384,
                      "llama_4_scaling_beta": 0.1, "rope_theta": 1e6, "mscale": 1.0, "mscale_all_dim": 1.0});
    let config = read(json!({"model_type": "ministral3", "rope_parameters": rope}));
    let scaling = config.layers["default"].query_scaling.unwrap();
    assert_eq!(scaling.factor(16383).to_bits(), 1f64.to_bits());
    assert!((scaling.factor(16384) - (1.0 + 0.1 * 2f64.ln())).abs() < 1e-15);
}
