//! Keys that look like RoPE's and that nobody asked for: they are refused or named, never dropped silently.
//!
//! A key that may change the rotation is refused, unless it says what is so anyway: a program that reads it gets another result.
//! Other unread keys of the object of rotary parameters are named in a warning.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::keys::Keys;
use crate::error::{Error, Result};
use crate::rope::scaling::RopeParameters;

/// A key with one of these in its name says what decides angles, or what cos and sin are multiplied with.
const TELLING: [&str; 8] = [
    "rope_theta",
    "mscale",
    "partial_rotary_factor",
    "rope_local_base_freq",
    "rotary_emb_base",
    "rotary_embedding_base",
    "rotary_pct",
    "rope_pct",
];

/// The same, but only inside the object of rotary parameters.
const TELLING_INSIDE: [&str; 5] = ["attention_factor", "attn_factor", "extrapolation_factor", "alpha", "mrope_section"];

/// Says nothing about frequencies, or what other types of scaling need and this one does not.
const SILENT_INSIDE: [&str; 3] = ["finetuned", "original_max_position_embeddings", "max_position_embeddings"];

/// Whether a key of this name would change the rotation.
pub(super) fn changes_rotation(key: &str) -> bool {
    TELLING.iter().any(|telling| key.contains(telling))
}

/// Refuses keys of a text model that would change the rotation, and returns the paths of others that look like RoPE's.
pub(super) fn check(text: Keys<'_>, layers: &BTreeMap<String, RopeParameters>) -> Result<Vec<String>> {
    let mut named = Vec::new();
    let thetas: Vec<f64> = layers.values().map(|rope| rope.theta).collect();
    for (key, value) in unread(&text) {
        if changes_rotation(key) {
            refuse(&text, key, value, &thetas)?;
        } else if key.starts_with("rope_") || key.starts_with("rotary_") {
            named.push(text.path(key));
        }
    }
    // Of two objects the older one is compared with the newer, and says nothing more.
    let object = ["rope_parameters", "rope_scaling"].into_iter().find_map(|key| {
        let object = text.object().get(key)?.as_object().filter(|object| !object.is_empty())?;
        Some((text.path(key), object))
    });
    if let Some((path, object)) = object {
        inside(&text.within(object, &path), &thetas, &mut named)?;
        for (layer, inner) in object {
            if let Some(inner) = inner.as_object() {
                let theta: Vec<f64> = layers.get(layer).map(|rope| rope.theta).into_iter().collect();
                inside(&text.within(inner, &format!("{path}.{layer}")), &theta, &mut named)?;
            }
        }
    }
    Ok(named)
}

/// Paths of an outer object's keys that look like RoPE's, where the text model inside does not say the same.
pub(super) fn outside(outer: &Keys<'_>, text: &Map<String, Value>) -> Vec<String> {
    let telling = |key: &str| changes_rotation(key) || matches!(key, "rope_parameters" | "rope_scaling");
    let other = |(key, value): &(&String, &Value)| telling(key) && text.get(*key) != Some(*value);
    unread(outer).filter(other).map(|(key, _)| outer.path(key)).collect()
}

fn inside(keys: &Keys<'_>, thetas: &[f64], named: &mut Vec<String>) -> Result<()> {
    for (key, value) in unread(keys) {
        if changes_rotation(key) || TELLING_INSIDE.contains(&key.as_str()) {
            refuse(keys, key, value, thetas)?;
        } else if !value.is_object() && !SILENT_INSIDE.contains(&key.as_str()) {
            named.push(keys.path(key));
        }
    }
    Ok(())
}

/// Keys that nobody asked for and that say something.
fn unread<'a>(keys: &Keys<'a>) -> impl Iterator<Item = (&'a String, &'a Value)> {
    let says = |value: &Value| !value.is_null() && *value != Value::Bool(false);
    keys.object().iter().filter(move |(key, value)| says(value) && !keys.was_asked(key))
}

/// Refuses a key, unless it says what is so anyway.
fn refuse(keys: &Keys<'_>, key: &str, value: &Value, thetas: &[f64]) -> Result<()> {
    let so_anyway = |value: &Value| match value.as_f64() {
        Some(x) if key.contains("theta") || key.contains("base") => {
            thetas.iter().all(|theta| theta.total_cmp(&x).is_eq())
        }
        Some(x) => x.total_cmp(&1.0).is_eq() || x == 0.0 && key.starts_with("mscale"),
        None => false,
    };
    let neutral = match value {
        Value::Array(list) => list.iter().all(so_anyway),
        value => so_anyway(value),
    };
    if neutral {
        return Ok(());
    }
    Err(unknown(keys, key))
}

fn unknown(keys: &Keys<'_>, key: &str) -> Error {
    let hint = if key.contains("mscale") || key == "attn_factor" {
        "if the model multiplies cos and sin with it, state that factor as attention_factor; else remove the key"
    } else if key.contains("theta") || key.contains("base") {
        "if layers differ in it, state rope_parameters by layer type; if it is the base of all, call it rope_theta; else remove it"
    } else {
        "if the model does not read it either, remove it"
    };
    keys.wrong(key, "is not read, and may change the rotation").hint(hint)
}

/// As much of a name as a message should repeat.
pub(super) fn clipped(name: &str) -> String {
    name.chars().take(60).collect()
}
