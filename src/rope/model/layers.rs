//! Where the rotary parameters of each layer type lie, in all the arrangements of `config.json`.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use serde_json::{Map, Value};

use super::families::{Family, Form, mrope_of};
use super::keys::Keys;
use super::no_rope;
use super::parameters::{self, Around};
use crate::error::{Error, Result};
use crate::rope::scaling::{Mrope, RopeParameters};

const FULL: &str = "full_attention";
const SLIDING: &str = "sliding_attention";

/// Parameters by layer type, and the axes of positions.
pub(super) type Layers = (BTreeMap<String, RopeParameters>, Option<Mrope>);

/// Reads the parameters of all layer types; `head_dims` gives the width of a head for each.
pub(super) fn read(
    text: Keys<'_>,
    family: &'static Family,
    head_dim: impl Fn(&str) -> u32,
    max_position_embeddings: u64,
) -> Result<Layers> {
    let stated = stated(text)?;
    let path = text.path(stated.map_or("rope_parameters", |(key, _)| key));
    let nested = stated.filter(|(_, object)| object.values().any(Value::is_object));
    let around = |layer: &str, theta, default_theta, must_agree| Around {
        text,
        family,
        head_dim: head_dim(layer),
        max_position_embeddings,
        theta,
        default_theta,
        must_agree,
    };
    if let Some((key, object)) = nested {
        if matches!(family.form, Form::Flat | Form::Mla | Form::Thetas) && !text.has("layer_types") {
            let message = format!("is nested, but layers of '{}' are all alike", family.model_type);
            return Err(text.wrong(key, message).hint("state one flat object, or layer_types"));
        }
        let keys = text.within(object, &path);
        let mut layers = BTreeMap::new();
        for (name, value) in object {
            if value.is_null() {
                continue; // layers of this type do not rotate
            }
            let inner = keys.map(name)?.map(|inner| (inner, keys.path(name)));
            let inner = inner.as_ref().map(|(inner, path)| text.within(inner, path));
            let (theta, default) = layer_theta(text, family, name)?;
            layers.insert(name.clone(), parameters::read(inner, &around(name, theta, default, false))?);
        }
        return Ok((layers, None));
    }
    let flat = stated.map(|(_, object)| text.within(object, &path));
    match family.form {
        Form::Nested => {
            let message = format!("must hold an object per layer type for model type '{}'", family.model_type);
            Err(text.wrong("rope_parameters", message).hint("such as {\"full_attention\": {\"rope_theta\": …}, …}"))
        }
        Form::Layers => {
            if stated.is_some_and(|(key, _)| key == "rope_parameters") {
                let message = format!("must be nested by layer type for model type '{}'", family.model_type);
                return Err(text
                    .wrong("rope_parameters", message)
                    .hint("layer types: full_attention, sliding_attention"));
            }
            // Scaling is for full attention; ModernBERT has it for both.
            let both = family.model_type.starts_with("modernbert");
            let mut layers = BTreeMap::new();
            for (name, keys) in [(FULL, flat), (SLIDING, flat.filter(|_| both))] {
                let (theta, default) = layer_theta(text, family, name)?;
                layers.insert(name.to_owned(), parameters::read(keys, &around(name, theta, default, false))?);
            }
            Ok((layers, None))
        }
        Form::Flat | Form::Mla | Form::Thetas => {
            if family.theta == 0.0 && flat.is_none() {
                let message = format!("is missing, and layers of '{}' are scaled by default", family.model_type);
                return Err(text.wrong("rope_parameters", message).hint("state rope_type and its parameters"));
            }
            let (theta, default) = layer_theta(text, family, "default")?;
            let rope = parameters::read(flat, &around("default", theta, default, true))?;
            refuse_unread(text, family, &rope, stated.map(|(key, _)| key))?;
            let mrope = parameters::mrope(flat, mrope_of(family), rope.rotary_dim / 2)?;
            let thetas = if family.form == Form::Thetas { text.numbers("layer_rope_theta")? } else { None };
            match thetas {
                Some(thetas) => Ok((by_theta(text, &rope, &thetas)?, mrope)),
                None => Ok((BTreeMap::from([("default".to_owned(), rope)]), mrope)),
            }
        }
    }
}

/// Layers by their θ, where each states one; a layer whose θ is 0 does not rotate.
fn by_theta(text: Keys<'_>, rope: &RopeParameters, thetas: &[f64]) -> Result<BTreeMap<String, RopeParameters>> {
    let mut layers = BTreeMap::new();
    for &theta in thetas.iter().filter(|theta| **theta != 0.0) {
        let own = RopeParameters { theta, ..rope.clone() };
        if let Entry::Vacant(new) = layers.entry(format!("rope_theta={theta}")) {
            let place = |e: Error| e.subject_is(text.path("layer_rope_theta"));
            own.frequencies(None).map_err(place)?;
            own.frequencies(Some(u64::from(u32::MAX))).map_err(place)?;
            new.insert(own);
        }
    }
    match layers.pop_first() {
        Some((_, only)) if layers.is_empty() => Ok(BTreeMap::from([("default".to_owned(), only)])),
        Some((name, first)) => {
            layers.insert(name, first);
            Ok(layers)
        }
        None => Err(no_rope(text.path("layer_rope_theta"), "is 0 for every layer")),
    }
}

/// GPT-J and `CodeGen` have their frequencies in code.
fn refuse_unread(text: Keys<'_>, family: &Family, rope: &RopeParameters, object: Option<&str>) -> Result<()> {
    if !matches!(family.model_type, "gptj" | "codegen") {
        return Ok(());
    }
    match object {
        Some(key) => Err(text.wrong(key, format!("is not read by model type '{}'", family.model_type))),
        None if rope.theta.to_bits() != family.theta.to_bits() => {
            Err(text.wrong("rope_theta", format!("is always 10000 for model type '{}'", family.model_type)))
        }
        None => Ok(()),
    }
}

/// θ of a layer type: as stated beside `rope_parameters`, and by default.
#[expect(clippy::type_complexity, reason = "a pair of options, taken apart at once")]
fn layer_theta(text: Keys<'_>, family: &Family, layer: &str) -> Result<(Option<(f64, &'static str)>, Option<f64>)> {
    let known = Some(family.theta).filter(|theta| *theta != 0.0);
    let sliding = layer == SLIDING;
    let (spellings, default): (&[&str], _) = match family.model_type {
        "modernbert" | "modernbert-decoder" if sliding => (&["local_rope_theta"], Some(10_000.0)),
        "modernbert" | "modernbert-decoder" => (&["global_rope_theta"], known),
        "gemma3_text" | "gemma3n_text" | "t5gemma2_text" if sliding => (&["rope_local_base_freq"], Some(10_000.0)),
        _ => (&["rope_theta", "rotary_emb_base"], known),
    };
    Ok((text.one_of(spellings, Keys::number)?, default))
}

/// `rope_parameters` or the older `rope_scaling`, which must agree if both are there. An empty one is as good as none.
fn stated(text: Keys<'_>) -> Result<Option<(&'static str, &Map<String, Value>)>> {
    let find = |key| Ok::<_, Error>(text.map(key)?.filter(|object| !object.is_empty()));
    let (parameters, scaling) = (find("rope_parameters")?, find("rope_scaling")?);
    let (Some(parameters), Some(scaling)) = (parameters, scaling) else {
        return Ok(parameters.map(|p| ("rope_parameters", p)).or(scaling.map(|s| ("rope_scaling", s))));
    };
    let paths = [text.path("rope_parameters"), text.path("rope_scaling")];
    let (new, old) = (text.within(parameters, &paths[0]), text.within(scaling, &paths[1]));
    let hint = "rope_scaling is the older name of rope_parameters: keep one of the two";
    let types = [parameters::rope_type(&new)?, parameters::rope_type(&old)?].map(|t| t.unwrap_or("default"));
    if types[0] != types[1] {
        let message = format!("contradicts rope_parameters: its type is '{}' there", types[0]);
        return Err(text.wrong("rope_scaling", message).hint(hint));
    }
    // What moved into rope_parameters from elsewhere cannot be expected in the older object.
    let moved = ["rope_type", "type", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings"];
    for key in parameters.keys().chain(scaling.keys()) {
        // Not by asking: comparing is not reading.
        let [new, old] = [parameters, scaling].map(|object| object.get(key).filter(|value| !value.is_null()));
        let agree = match (new, old) {
            (Some(a), Some(b)) => a == b || a.as_f64().is_some_and(|a| b.as_f64() == Some(a)),
            (None, None) => true,
            _ => moved.contains(&key.as_str()),
        };
        if !agree && !matches!(key.as_str(), "rope_type" | "type") {
            return Err(text.wrong(&format!("rope_scaling.{key}"), "contradicts rope_parameters").hint(hint));
        }
    }
    Ok(Some(("rope_parameters", parameters)))
}
