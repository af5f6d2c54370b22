//! What a Hugging Face `config.json` says about rotary position embedding, in the spellings of transformers 4 and 5.
//!
//! The reader prefers refusing to guessing: an unknown model type or `rope_type`, keys that contradict each other, a missing
//! factor, a key that looks as if it changed the rotation and is not read are errors that name the key. What transformers fills in by model type is filled in from a table
//! (`families.rs`), because published configurations, those of multimodal models above all, leave it out.
//!
//! On purpose not here: which layers do not rotate at all (`no_rope_layers` and the like), vision towers, and any file.

pub(in crate::rope) mod attention;
mod families;
mod json;
mod keys;
mod layers;
mod parameters;
mod per_layer;
mod report;
mod shipped;
#[cfg(test)]
mod tests;
mod unread;

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

pub use attention::Latent;
pub use report::{LayerReport, ModelReport};
pub use shipped::SHIPPED;

use super::scaling::{Mrope, RopeParameters};
use super::spec::MAX_HEADS;
use super::{DType, Flavour, PairStyle, PositionForm, RopeSpec};
use crate::error::{Error, ErrorKind, Result};
use families::{Family, Form};
use keys::{Asked, Keys};
use per_layer::Dims;

/// Largest `head_dim` that is believed.
const MAX_HEAD_DIM: u32 = 65_536;

/// What a `config.json` says about rotary position embedding.
///
/// ```
/// use ropejit::rope::model::ModelConfig;
/// let text = r#"{"model_type": "mistral", "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8,
///                "rope_theta": 1000000.0, "torch_dtype": "bfloat16"}"#;
/// let config = ModelConfig::from_json(text)?;
/// assert_eq!((config.head_dim, config.num_kv_heads), (128, 8));
/// assert_eq!(config.layers["default"].theta, 1e6);
/// # Ok::<(), ropejit::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ModelConfig {
    /// The model type whose rules were followed; for a multimodal model, that of its text model.
    pub model_type: String,
    /// Element type of the weights, if stated; set it to have specs of another one.
    pub dtype: Option<DType>,
    /// Where an element type is stated that no kernel has, such as `float8_e4m3fn`: which key, and what it says. It is no error
    /// until a spec needs it.
    pub unsupported_dtype: Option<UnsupportedDtype>,
    /// Heads of q.
    pub num_heads: u32,
    /// Heads of the k that turns. With multi-head latent attention that is 1: the rotating slice of k is shared by all
    /// heads, whatever `num_key_value_heads` says.
    pub num_kv_heads: u32,
    /// Elements per head of what is rotated. With multi-head latent attention only a slice of `qk_rope_head_dim` elements
    /// is given to the rotation, cut out of the head before; this is its width, and the head itself is wider.
    pub head_dim: u32,
    /// Elements of a head that turn, from the first on.
    pub rotary_dim: u32,
    /// Which elements turn together.
    pub style: PairStyle,
    /// The norm of each head of q and k before the rotation, where the model has one.
    pub qk_norm: Option<Flavour>,
    /// What multi-head latent attention has beside the slices that turn, where that is stated.
    pub latent: Option<Latent>,
    /// Tokens of the longest context.
    pub max_position_embeddings: u64,
    /// The axes of positions, for models whose positions have three.
    pub mrope: Option<Mrope>,
    /// Parameters by layer type; `default` alone where all layers are alike.
    pub layers: BTreeMap<String, RopeParameters>,
    /// Heads of k by layer type, where they differ from `num_kv_heads`.
    pub layer_kv_heads: BTreeMap<String, u32>,
    /// Keys that look like RoPE's and are not read, by their path. Those that would change the rotation are errors.
    pub unread: Vec<String>,
}

/// An element type that no kernel has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct UnsupportedDtype {
    /// The path of the key that states it.
    pub key: String,
    /// What it says.
    pub name: String,
}

impl ModelConfig {
    /// Reads the text of a `config.json`.
    ///
    /// # Errors
    /// [`ErrorKind::Config`], naming the key, if the text is no JSON object, the model has no rotary position embedding or
    /// is of a type that is not known, a value is missing or wrong, or two keys contradict each other.
    pub fn from_json(text: &str) -> Result<Self> {
        let value: Value = json::parse(text).map_err(|e| {
            Error::new(ErrorKind::Config, "is not valid JSON")
                .subject_is("config")
                .caused_by(e)
                .hint("pass the text of a model's config.json")
        })?;
        let Value::Object(root) = &value else {
            let hint = "pass the text of a model's config.json";
            return Err(Error::new(ErrorKind::Config, "must be a JSON object").subject_is("config").hint(hint));
        };
        let asked = Asked::default();
        let config = descend(Keys::at(root, "", &asked), None, None, 0)?;
        if !config.unread.is_empty() {
            tracing::warn!("keys of the model's configuration are not read: {}", config.unread.join(", "));
        }
        Ok(config)
    }

    /// The spec for all layers: f32 tables, rounded once, implicit positions; bf16 where no dtype is stated.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] if layer types differ in their dimensions (see [`layer_spec`](Self::layer_spec)) or the element
    /// type is one that no kernel has,
    /// [`ErrorKind::InvalidArgument`] if a value is beyond what a [`RopeSpec`] can be.
    pub fn spec(&self) -> Result<RopeSpec> {
        let mut specs = self.layers.keys().map(|layer| self.layer_spec(layer));
        let first = specs.next().unwrap_or_else(|| Err(no_rope(&self.model_type, "no layer type rotates")))?;
        for other in specs {
            if other? != first {
                let names: Vec<_> = self.layers.keys().map(String::as_str).collect();
                let message = format!("differs between layer types ({})", names.join(", "));
                return Err(wrong("head_dim", message).hint("ask for the spec of one layer type"));
            }
        }
        Ok(first)
    }

    /// The spec for one layer type.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] if there is no such layer type, or a value is beyond what a [`RopeSpec`] can be,
    /// [`ErrorKind::Config`] if the element type is one that no kernel has.
    pub fn layer_spec(&self, layer: &str) -> Result<RopeSpec> {
        let Some(rope) = self.layers.get(layer) else {
            let names: Vec<_> = self.layers.keys().map(String::as_str).collect();
            return Err(Error::argument("layer", format!("'{layer}' is not one of {}", names.join(", "))));
        };
        let num_kv_heads = self.layer_kv_heads.get(layer).copied().unwrap_or(self.num_kv_heads);
        let dtype = match (self.dtype, &self.unsupported_dtype) {
            (Some(dtype), _) => dtype,
            (None, None) => DType::BF16,
            (None, Some(UnsupportedDtype { key, name })) => {
                return Err(wrong(key, format!("q and k cannot be of the element type '{name}'"))
                    .hint("the weights may be; say what q and k are: float32, float16 or bfloat16"));
            }
        };
        let mut spec = RopeSpec::new(dtype, rope.head_dim, self.num_heads, num_kv_heads);
        spec.rotary_dim = rope.rotary_dim;
        spec.style = self.style;
        if let Some(mrope) = self.mrope {
            spec.mrope = Some(mrope);
            spec.positions = PositionForm::Ids64;
        }
        spec.validate()?;
        Ok(spec)
    }
}

fn wrong(key: impl Into<String>, message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Config, message).subject_is(key)
}

fn no_rope(key: impl Into<String>, why: impl Into<String>) -> Error {
    wrong(key, why).hint("this model has no rotary position embedding")
}

/// The element type that is stated: one that kernels have, or another.
type Stated = std::result::Result<DType, UnsupportedDtype>;

/// Goes down to the text model of a multimodal one. The nearest `model_type` and `dtype` above count where it has none.
fn descend(keys: Keys<'_>, outer_type: Option<&str>, outer_dtype: Option<Stated>, depth: u8) -> Result<ModelConfig> {
    let dtype = dtype(&keys)?.or(outer_dtype);
    let own_type = keys.text("model_type")?;
    for key in ["text_config", "language_config", "llm_config", "thinker_config"] {
        if let Some(inner) = keys.map(key)?.filter(|_| depth < 8) {
            let path = keys.path(key);
            let mut config = descend(keys.within(inner, &path), own_type.or(outer_type), dtype, depth + 1)?;
            config.unread.extend(unread::outside(&keys, inner));
            return Ok(config);
        }
    }
    let Some(name) = own_type.or(outer_type) else {
        return Err(keys.wrong("model_type", "is missing").hint("it decides which elements turn together"));
    };
    match (families::find(name), families::without_rope(name)) {
        (Some(family), _) => read(keys, name, family, dtype),
        (None, Some(positions)) => Err(no_rope(keys.path("model_type"), format!("'{name}' has {positions}"))),
        (None, None) => Err(keys
            .wrong("model_type", format!("'{}' is not known", unread::clipped(name)))
            .hint("which elements turn together depends on it: if the model rotates as Llama does, say \"llama\"")),
    }
}

fn dtype(keys: &Keys<'_>) -> Result<Option<Stated>> {
    let read = |keys: &Keys<'_>, key: &str| {
        let other = |name| UnsupportedDtype { key: keys.path(key), name: unread::clipped(name) };
        Ok(keys.text(key)?.map(|name| name.parse::<DType>().map_err(|_| other(name))))
    };
    // Two that no kernel has may differ: neither is used.
    let stated = [read(keys, "dtype")?, read(keys, "torch_dtype")?];
    match stated {
        [Some(a), Some(b)] if a.as_ref().ok() != b.as_ref().ok() => {
            Err(keys.wrong("torch_dtype", "contradicts dtype").hint("the two keys mean the same: keep one"))
        }
        [a, b] => Ok(a.or(b)),
    }
}

fn read(text: Keys<'_>, model_type: &str, family: &'static Family, dtype: Option<Stated>) -> Result<ModelConfig> {
    refuse_other_positions(&text, family)?;
    let max_position_embeddings = text
        .one_of(&["max_position_embeddings", "n_positions"], Keys::count)?
        .map_or(family.max_position_embeddings, |(n, _)| n);
    let heads_keys = ["num_attention_heads", "n_head", "n_heads", "num_heads"];
    let num_heads = text.one_of(&heads_keys, Keys::count32)?.map_or(family.num_heads, |(n, _)| n);
    if num_heads > MAX_HEADS {
        return Err(text.wrong("num_attention_heads", format!("must be at most {MAX_HEADS}, got {num_heads}")));
    }
    let num_kv_heads = num_kv_heads(&text, family, num_heads)?;
    let all = Dims { head_dim: head_dim(&text, family, num_heads)?, num_kv_heads };
    let by_type = per_layer::read(text, family, all, num_heads)?;
    let dims = |layer: &str| by_type.get(layer).copied().unwrap_or(all);
    let (layers, mrope) = layers::read(text, family, |layer| dims(layer).head_dim, max_position_embeddings)?;
    per_layer::refuse_others(text, &by_type, &layers, all)?;
    let main = layers.values().find(|rope| rope.head_dim == all.head_dim).or(layers.values().next());
    let Some(main) = main else {
        return Err(no_rope(text.path("rope_parameters"), "is null for every layer type"));
    };
    let style = style(&text, family)?;
    let layer_kv_heads = layers.keys().map(|layer| (layer.clone(), dims(layer).num_kv_heads));
    let (dtype, unsupported_dtype) = match dtype.transpose() {
        Ok(dtype) => (dtype, None),
        Err(other) => (None, Some(other)),
    };
    Ok(ModelConfig {
        model_type: model_type.to_owned(),
        dtype,
        unsupported_dtype,
        num_heads,
        num_kv_heads,
        head_dim: main.head_dim,
        rotary_dim: main.rotary_dim,
        style,
        qk_norm: attention::norm(&text, family)?,
        latent: attention::latent(&text, family)?,
        max_position_embeddings,
        mrope,
        layer_kv_heads: layer_kv_heads.filter(|(_, n)| *n != num_kv_heads).collect(),
        unread: unread::check(text, &layers)?,
        layers,
    })
}

/// Refuses variants of a model type that know positions in another way.
fn refuse_other_positions(text: &Keys<'_>, family: &Family) -> Result<()> {
    if text.flag("alibi")? == Some(true) {
        return Err(no_rope(text.path("alibi"), "is true: positions are known by ALiBi"));
    }
    let key = "position_embedding_type";
    match text.text(key)? {
        None if family.model_type == "granitemoehybrid" => {
            Err(no_rope(text.path(key), "is not stated, which for this model type means no positions"))
        }
        None | Some("rope" | "rotary") => Ok(()),
        Some(other) => Err(no_rope(text.path(key), format!("is '{}'", unread::clipped(other)))),
    }
}

fn num_kv_heads(text: &Keys<'_>, family: &Family, num_heads: u32) -> Result<u32> {
    let multi_query = text.flag("multi_query")?;
    let (key, n) = if family.form == Form::Mla {
        ("num_key_value_heads", 1)
    } else if family.model_type == "falcon" {
        let grouped = text.flag("new_decoder_architecture")?.unwrap_or(false);
        let n = match (grouped, multi_query.unwrap_or(true)) {
            (true, _) => text.count32("num_kv_heads")?.unwrap_or(num_heads),
            (false, true) => 1,
            (false, false) => num_heads,
        };
        ("num_kv_heads", n)
    } else {
        let key = "num_key_value_heads";
        let stated = text.count32(key)?;
        let default = match family.num_kv_heads {
            _ if multi_query == Some(true) => 1,
            _ if text.object().contains_key(key) => num_heads, // null
            0 => num_heads,
            n => n,
        };
        (key, stated.unwrap_or(default))
    };
    divides(text, key, n, num_heads)?;
    Ok(n)
}

fn divides(text: &Keys<'_>, key: &str, n: u32, num_heads: u32) -> Result<()> {
    if num_heads.is_multiple_of(n) {
        return Ok(());
    }
    let message = if text.has(key) { "must divide" } else { "is missing, and its default does not divide" };
    Err(text.wrong(key, format!("{message} the number of heads ({num_heads}), got {n}")))
}

fn head_dim(text: &Keys<'_>, family: &Family, num_heads: u32) -> Result<u32> {
    if family.form == Form::Mla {
        let width = text.count32("qk_rope_head_dim")?.unwrap_or(family.head_dim);
        return believable(text, "qk_rope_head_dim", width);
    }
    if let Some(width) = text.count32("head_dim")? {
        return believable(text, "head_dim", width);
    }
    if family.head_dim != 0 && !text.object().contains_key("head_dim") {
        return Ok(family.head_dim);
    }
    let (hidden, key) = text
        .one_of(&["hidden_size", "n_embd", "n_embed", "d_model"], Keys::count32)?
        .unwrap_or((family.hidden_size, "hidden_size"));
    if hidden % num_heads != 0 {
        let message = format!("must be a multiple of the number of heads ({num_heads}), got {hidden}");
        return Err(text.wrong(key, message).hint("or state head_dim"));
    }
    believable(text, key, hidden / num_heads)
}

fn believable(text: &Keys<'_>, key: &str, width: u32) -> Result<u32> {
    if width.is_multiple_of(2) && width <= MAX_HEAD_DIM {
        return Ok(width);
    }
    Err(text.wrong(key, format!("makes heads of {width} elements: must be even and at most {MAX_HEAD_DIM}")))
}

fn style(text: &Keys<'_>, family: &Family) -> Result<PairStyle> {
    let decides = matches!(family.model_type, "deepseek_v3" | "glm4_moe_lite" | "mistral4" | "youtu");
    Ok(match text.flag("rope_interleave")? {
        Some(false) if decides => PairStyle::HalfSplit,
        Some(flag) if flag != (family.style == PairStyle::Interleaved) => {
            return Err(text.wrong("rope_interleave", format!("is not read by model type '{}'", family.model_type)));
        }
        _ => family.style,
    })
}
