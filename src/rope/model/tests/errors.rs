//! What is wrong is refused, and the key named.

#![expect(clippy::needless_pass_by_value, reason = "`json!` makes values to give away")]

use serde_json::{Value, json};

use crate::error::ErrorKind;
use crate::rope::model::ModelConfig;

/// A Llama of eight heads with these keys changed; null removes one.
fn llama(changes: Value) -> String {
    let mut config = json!({"model_type": "llama", "hidden_size": 512, "num_attention_heads": 8, "rope_theta": 10000.0,
                            "max_position_embeddings": 4096});
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    config.to_string()
}

/// The key that the error names, after checking that it is a configuration error.
fn named(text: &str) -> String {
    let error = ModelConfig::from_json(text).expect_err(text);
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
    error.subject().unwrap_or_else(|| panic!("no subject: {error}")).to_owned()
}

fn names(changes: Value) -> String {
    named(&llama(changes))
}

#[test]
fn what_is_no_configuration() {
    assert_eq!(named(""), "config");
    assert_eq!(named("[1, 2]"), "config");
    assert_eq!(named(r#"{"rope_theta": nan}"#), "config");
    assert_eq!(named(&"[".repeat(100_000)), "config");
    assert_eq!(named("{}"), "model_type");
}

#[test]
fn models_without_rotary_positions_say_so() {
    for name in ["gpt2", "bert", "bloom", "t5", "opt", "mamba"] {
        let error = ModelConfig::from_json(&json!({"model_type": name, "n_embd": 768}).to_string()).unwrap_err();
        assert_eq!(error.subject(), Some("model_type"));
        assert_eq!(error.advice(), Some("this model has no rotary position embedding"), "{error}");
    }
    assert_eq!(named(r#"{"model_type": "falcon", "alibi": true}"#), "alibi");
    assert_eq!(named(r#"{"model_type": "granitemoehybrid"}"#), "position_embedding_type");
    assert_eq!(names(json!({"position_embedding_type": "absolute"})), "position_embedding_type");
    let nested =
        json!({"model_type": "gemma3_text", "rope_parameters": {"full_attention": null, "sliding_attention": {}}});
    assert!(ModelConfig::from_json(&nested.to_string()).is_ok_and(|config| config.layers.len() == 1));
}

#[test]
fn unknown_types_are_not_guessed() {
    assert_eq!(names(json!({"model_type": "llama99"})), "model_type");
    assert_eq!(names(json!({"model_type": 7})), "model_type");
    assert_eq!(names(json!({"rope_scaling": {"rope_type": "ntk", "factor": 2.0}})), "rope_scaling.rope_type");
    assert_eq!(names(json!({"rope_scaling": {"type": "ntk", "factor": 2.0}})), "rope_scaling.type");
    assert_eq!(names(json!({"rope_scaling": {"factor": 2.0}})), "rope_scaling.rope_type");
}

#[test]
fn an_element_type_that_no_kernel_has_is_an_error_where_it_is_needed() {
    let config = ModelConfig::from_json(&llama(json!({"torch_dtype": "float8_e4m3fn"}))).expect("read");
    for error in [config.spec(), config.layer_spec("default")].map(|spec| spec.expect_err("no kernel")) {
        assert_eq!((error.kind(), error.subject()), (ErrorKind::Config, Some("torch_dtype")));
        assert!(error.to_string().contains("float8_e4m3fn"), "{error}");
    }
}

#[test]
fn missing_keys_are_named() {
    for kind in ["linear", "dynamic", "llama3", "yarn"] {
        assert_eq!(names(json!({"rope_scaling": {"rope_type": kind}})), "rope_scaling.factor", "{kind}");
    }
    let no_low = json!({"rope_type": "llama3", "factor": 8.0, "high_freq_factor": 4.0});
    assert_eq!(names(json!({"rope_parameters": no_low})), "rope_parameters.low_freq_factor");
    let no_list = json!({"rope_type": "longrope", "factor": 8.0, "short_factor": [1.0]});
    assert_eq!(names(json!({"rope_scaling": no_list})), "rope_scaling.long_factor");
    assert_eq!(named(r#"{"model_type": "gpt_oss", "rope_theta": 150000}"#), "rope_parameters");
    assert_eq!(named(r#"{"model_type": "gemma4_text"}"#), "rope_parameters");
    let nested = json!({"full_attention": {"rope_type": "linear"}});
    assert_eq!(
        named(&json!({"model_type": "gemma3_text", "rope_parameters": nested}).to_string()),
        "rope_parameters.full_attention.factor"
    );
    let inner = json!({"model_type": "llama", "rope_scaling": {"type": "linear"}});
    assert_eq!(
        named(&json!({"model_type": "llava", "text_config": inner}).to_string()),
        "text_config.rope_scaling.factor"
    );
}

#[test]
fn contradictions_are_named() {
    let two_types = json!({"rope_type": "linear", "type": "yarn", "factor": 2.0});
    assert_eq!(names(json!({"rope_scaling": two_types})), "rope_scaling.type");
    let (two, four) = (json!({"rope_type": "linear", "factor": 2.0}), json!({"type": "linear", "factor": 4}));
    assert_eq!(names(json!({"rope_parameters": two, "rope_scaling": four})), "rope_scaling.factor");
    assert_eq!(
        names(json!({"rope_parameters": two, "rope_scaling": {"type": "dynamic", "factor": 2}})),
        "rope_scaling"
    );
    assert_eq!(names(json!({"rope_parameters": {"rope_theta": 5e5}})), "rope_theta");
    assert_eq!(names(json!({"rotary_emb_base": 5e5})), "rotary_emb_base");
    assert_eq!(names(json!({"dtype": "float16", "torch_dtype": "bfloat16"})), "torch_dtype");
    assert_eq!(names(json!({"n_head": 16})), "n_head");
    assert_eq!(names(json!({"rope_scaling": {"rope_type": "default", "factor": 4.0}})), "rope_scaling.factor");
    assert_eq!(names(json!({"partial_rotary_factor": 0.5})), "partial_rotary_factor");
    assert_eq!(names(json!({"rotary_dim": 32})), "rotary_dim");
    assert_eq!(names(json!({"rope_interleave": true})), "rope_interleave");
    let yarn = json!({"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 2048});
    let changes = json!({"rope_scaling": yarn, "original_max_position_embeddings": 1024});
    assert_eq!(names(changes), "rope_scaling.original_max_position_embeddings");
    let nested = json!({"full_attention": {"rope_type": "default"}});
    assert_eq!(names(json!({"rope_parameters": nested})), "rope_parameters");
}

#[test]
fn wrong_values_are_named() {
    for wrong in [json!("2"), json!(0.0), json!(-4.0), json!([]), json!(1e300), json!(1e-300), json!(true)] {
        let changes = json!({"rope_scaling": {"rope_type": "linear", "factor": wrong}});
        assert_eq!(names(changes), "rope_scaling.factor", "{wrong}");
    }
    for wrong in [json!(0), json!(-1), json!(1e40), json!("10000"), json!({})] {
        assert_eq!(names(json!({"rope_theta": wrong})), "rope_theta", "{wrong}");
    }
    for wrong in [json!(0), json!(-8), json!(1.5), json!("8"), json!(1u64 << 40)] {
        assert_eq!(names(json!({"num_attention_heads": wrong})), "num_attention_heads", "{wrong}");
    }
    assert_eq!(names(json!({"head_dim": 0})), "head_dim");
    assert_eq!(names(json!({"head_dim": 63})), "head_dim");
    assert_eq!(names(json!({"head_dim": 4_000_000_000u32})), "head_dim");
    assert_eq!(names(json!({"hidden_size": 100})), "hidden_size");
    assert_eq!(names(json!({"num_key_value_heads": 3})), "num_key_value_heads");
    assert_eq!(names(json!({"max_position_embeddings": 0})), "max_position_embeddings");
    let lists = json!({"rope_type": "longrope", "factor": 8.0, "short_factor": [1.0, 2.0], "long_factor": [1.0]});
    assert_eq!(names(json!({"rope_scaling": lists})), "rope_scaling.short_factor");
    let order = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 1.0});
    assert_eq!(names(json!({"rope_scaling": order})), "rope_scaling.high_freq_factor");
    let ramp = json!({"rope_type": "yarn", "factor": 8.0, "beta_fast": 1, "beta_slow": 32});
    assert_eq!(names(json!({"rope_scaling": ramp})), "rope_scaling.beta_fast");
    let neox = |fraction| named(&json!({"model_type": "gpt_neox", "rotary_pct": fraction}).to_string());
    for fraction in [0.0, 1.5, -1.0, 0.27, 0.001] {
        assert_eq!(neox(fraction), "rotary_pct", "{fraction}");
    }
}

#[test]
fn axes_must_share_out_all_pairs() {
    let vl = |scaling: Value| {
        let config = json!({"model_type": "qwen2_vl", "hidden_size": 3584, "num_attention_heads": 28,
                            "num_key_value_heads": 4, "rope_scaling": scaling});
        named(&config.to_string())
    };
    assert_eq!(vl(json!({"type": "mrope", "mrope_section": [16, 24, 25]})), "rope_scaling.mrope_section");
    assert_eq!(vl(json!({"type": "mrope", "mrope_section": [32, 32]})), "rope_scaling.mrope_section");
    assert_eq!(vl(json!({"type": "mrope", "mrope_section": "all"})), "rope_scaling.mrope_section");
    assert_eq!(vl(json!({"type": "mrope", "mrope_interleaved": true})), "rope_scaling.mrope_interleaved");
}

#[test]
fn gpt_j_reads_no_other_keys() {
    let gptj = |changes: Value| {
        let mut config = json!({"model_type": "gptj", "n_embd": 4096, "n_head": 16});
        config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        named(&config.to_string())
    };
    assert_eq!(gptj(json!({"rotary_dim": null})), "rotary_dim");
    assert_eq!(gptj(json!({"rope_theta": 500_000})), "rope_theta");
    assert_eq!(gptj(json!({"rope_scaling": {"type": "linear", "factor": 2.0}})), "rope_scaling");
}
