//! What layers have of their own: `per_layer_config`, as transformers 5 writes it, and Gemma 4's older keys.

use std::collections::BTreeMap;

use super::families::Family;
use super::keys::Keys;
use super::{believable, divides, unread};
use crate::error::Result;
use crate::rope::scaling::RopeParameters;

const KEY: &str = "per_layer_config";
const FULL: &str = "full_attention";
const SLIDING: &str = "sliding_attention";

/// More layers than this are not believed: a bound on work.
const MAX_LAYERS: u64 = 65_536;

/// The dimensions that may differ from layer to layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Dims {
    pub head_dim: u32,
    pub num_kv_heads: u32,
}

/// Dimensions by layer type, where they are not those of the model.
pub(super) type ByType = BTreeMap<String, Dims>;

/// Reads what layers have of their own. Layers of one type must be alike.
pub(super) fn read(text: Keys<'_>, family: &Family, model: Dims, num_heads: u32) -> Result<ByType> {
    let gemma4 = family.model_type == "gemma4_text";
    if !text.has(KEY) {
        // One that is null has no overrides, and what it replaced does not come back.
        let older = gemma4 && !text.object().contains_key(KEY);
        return if older { of_gemma4(&text, model, num_heads) } else { Ok(ByType::new()) };
    }
    let types = layer_types(&text, gemma4)?;
    let mut by_layer: BTreeMap<usize, Dims> = BTreeMap::new();
    each(&text, |index, own| {
        let number = index.parse::<usize>().ok().filter(|n| types.as_ref().is_none_or(|types| *n < types.len()));
        let Some(number) = number else {
            let layers = types.as_ref().map_or(String::new(), |types| format!(", of which there are {}", types.len()));
            let name = format!("{KEY}.{}", unread::clipped(index));
            return Err(text.wrong(&name, format!("must be named by the number of a layer{layers}")));
        };
        if own.count32("num_attention_heads")?.is_some_and(|n| n != num_heads) {
            return Err(own.wrong("num_attention_heads", format!("is not supported: other layers have {num_heads}")));
        }
        let dims = Dims {
            head_dim: own.count32("head_dim")?.unwrap_or(model.head_dim),
            num_kv_heads: own.count32("num_key_value_heads")?.unwrap_or(model.num_kv_heads),
        };
        believable(&own, "head_dim", dims.head_dim)?;
        divides(&own, "num_key_value_heads", dims.num_kv_heads, num_heads)?;
        if types.is_none() && dims != model {
            return Err(own.wrong(differing(dims, model), "is not that of the model").hint("state layer_types"));
        }
        by_layer.insert(number, dims);
        Ok(())
    })?;
    let mut by_type = ByType::new();
    for (number, layer) in types.iter().flatten().enumerate() {
        let dims = by_layer.get(&number).copied().unwrap_or(model);
        let first = *by_type.entry((*layer).to_owned()).or_insert(dims);
        if first != dims {
            let message = format!("differs between layers of the type '{}'", unread::clipped(layer));
            return Err(text.wrong(&format!("{KEY}.{number}.{}", differing(dims, first)), message));
        }
    }
    Ok(by_type)
}

/// Refuses overrides that the layers as they were read do not follow: of other keys that are read, and by types of layers that
/// are not told apart.
pub(super) fn refuse_others(
    text: Keys<'_>,
    by_type: &ByType,
    layers: &BTreeMap<String, RopeParameters>,
    model: Dims,
) -> Result<()> {
    if let (true, Some(other)) = (layers.contains_key("default"), by_type.values().find(|dims| **dims != model)) {
        let message = format!("makes layers differ in {}, which is not supported", differing(*other, model));
        return Err(text.wrong(KEY, message).hint("state rope_parameters by layer type"));
    }
    each(&text, |_, own| {
        for (key, value) in own.object() {
            let handled = matches!(key.as_str(), "head_dim" | "num_key_value_heads" | "num_attention_heads");
            let matters = text.was_asked(key) || unread::changes_rotation(key);
            if matters && !handled && !value.is_null() && text.object().get(key) != Some(value) {
                return Err(own.wrong(key, "is not supported: layers would differ in it"));
            }
        }
        Ok(())
    })
}

/// The overrides of each layer that has some, in turn.
fn each(text: &Keys<'_>, mut read: impl FnMut(&str, Keys<'_>) -> Result<()>) -> Result<()> {
    let Some(overrides) = text.map(KEY)? else { return Ok(()) };
    let path = text.path(KEY);
    let layers = text.within(overrides, &path);
    for index in overrides.keys() {
        if let Some(own) = layers.map(index)? {
            read(index, text.within(own, &layers.path(index)))?;
        }
    }
    Ok(())
}

/// Which key makes the two differ.
fn differing(a: Dims, b: Dims) -> &'static str {
    if a.head_dim == b.head_dim { "num_key_value_heads" } else { "head_dim" }
}

/// The type of each layer, if stated or known.
fn layer_types<'a>(text: &Keys<'a>, gemma4: bool) -> Result<Option<Vec<&'a str>>> {
    if let Some(mut types) = text.texts("layer_types")? {
        // Gemma 4's last layer attends to all, whatever is stated.
        if let (true, Some(last)) = (gemma4, types.last_mut()) {
            *last = FULL;
        }
        return Ok(Some(types));
    }
    if !gemma4 {
        return Ok(None);
    }
    let layers = text.count("num_hidden_layers")?.unwrap_or(30);
    if layers > MAX_LAYERS {
        return Err(text.wrong("num_hidden_layers", format!("must be at most {MAX_LAYERS}, got {layers}")));
    }
    let kind = |i: u64| if i.is_multiple_of(6) || i == layers { FULL } else { SLIDING };
    Ok(Some((1..=layers).map(kind).collect()))
}

/// Before there was a `per_layer_config`: the heads of full attention are wider, and fewer of k.
fn of_gemma4(text: &Keys<'_>, model: Dims, num_heads: u32) -> Result<ByType> {
    let head_dim = text.count32("global_head_dim")?.unwrap_or(512);
    believable(text, "global_head_dim", head_dim)?;
    let mut full = Dims { head_dim, ..model };
    let kv_heads = text.count32("num_global_key_value_heads")?;
    if let (Some(n), true) = (kv_heads, text.flag("attention_k_eq_v")?.unwrap_or(false)) {
        divides(text, "num_global_key_value_heads", n, num_heads)?;
        full.num_kv_heads = n;
    }
    Ok(ByType::from([(FULL.to_owned(), full)]))
}
