//! Frequencies of published models as transformers computes them.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use crate::rope::PairStyle;
use crate::rope::model::{ModelConfig, SHIPPED};

#[derive(Deserialize)]
struct Case {
    name: String,
    config: Value,
    /// By layer type, as `<layer>_inv_freq`, or `inv_freq` where all are alike.
    expected: BTreeMap<String, Expected>,
    expected_long: Option<Expected>,
    rotary_dim: u32,
    head_dim: u32,
    style: Option<PairStyle>,
    num_kv_heads: Option<u32>,
}

#[derive(Deserialize)]
struct Expected {
    inv_freq: Vec<f32>,
    attention_factor: f64,
    seq_len: Option<u64>,
    layer: Option<String>,
}

/// Steps between two f32 numbers that are not negative.
fn ulps(a: f32, b: f32) -> u32 {
    a.to_bits().abs_diff(b.to_bits())
}

/// Compares, and returns the largest distance in steps.
fn compare(name: &str, config: &ModelConfig, layer: &str, expected: &Expected) -> u32 {
    let rope = config.layers.get(layer).unwrap_or_else(|| panic!("{name}: no layer type {layer}"));
    let got = rope.frequencies(expected.seq_len).unwrap();
    assert_eq!(got.inv_freq.len(), expected.inv_freq.len(), "{name} {layer}");
    assert_eq!(rope.rotary_dim as usize, 2 * expected.inv_freq.len(), "{name} {layer}");
    assert_eq!(got.attention_factor.to_bits(), (expected.attention_factor as f32).to_bits(), "{name} {layer}");
    let mut worst = 0;
    for (i, (a, b)) in got.inv_freq.iter().zip(&expected.inv_freq).enumerate() {
        let distance = ulps(*a, *b);
        assert!(distance <= 2, "{name} {layer}: pair {i} is {a}, expected {b}, {distance} ulp");
        worst = worst.max(distance);
    }
    worst
}

fn check(text: &str) {
    let cases: Vec<Case> = serde_json::from_str(text).unwrap();
    for case in cases {
        let name = &case.name;
        let config = ModelConfig::from_json(&case.config.to_string()).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!((config.head_dim, config.rotary_dim), (case.head_dim, case.rotary_dim), "{name}");
        assert!(case.style.is_none_or(|style| style == config.style), "{name}: {:?}", config.style);
        assert!(case.num_kv_heads.is_none_or(|n| n == config.num_kv_heads), "{name}: {}", config.num_kv_heads);
        assert_eq!(config.layers.len(), case.expected.len(), "{name}");
        let mut worst = 0;
        for (key, expected) in &case.expected {
            let layer = key.strip_suffix("_inv_freq").unwrap_or("default");
            worst = worst.max(compare(name, &config, layer, expected));
        }
        if let Some(expected) = &case.expected_long {
            worst = worst.max(compare(name, &config, expected.layer.as_deref().unwrap_or("default"), expected));
        }
        println!("{name}: {worst} ulp");
    }
}

#[test]
fn eight_published_models_within_two_ulp() {
    check(include_str!("../../../../tests/data/rope_configs.json"));
}

/// Made by `tests/data/make_rope_more.py`.
#[test]
fn further_published_models_within_two_ulp() {
    check(include_str!("../../../../tests/data/rope_more.json"));
}

#[test]
fn every_shipped_configuration_has_a_valid_spec() {
    for name in SHIPPED {
        let config = ModelConfig::shipped(name).unwrap().unwrap_or_else(|e| panic!("{name}: {e}"));
        let spec = config.spec().unwrap();
        assert_eq!(Some(spec.dtype), config.dtype, "{name}");
        let report = serde_json::to_value(config.report(None).unwrap()).unwrap();
        assert_eq!(report["layers"]["default"]["inv_freq"][0], 1.0, "{name}");
        assert_eq!(report["layers"]["default"]["attention_factor"], 1.0, "{name}");
    }
    assert!(ModelConfig::shipped("no-such-model").is_none());
}
