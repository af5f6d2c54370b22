//! One object of rotary parameters, flat, and the keys around it: what they say about the frequencies of a layer type.

use super::families::{Family, Form};
use super::keys::Keys;
use crate::error::{Error, Result};
use crate::rope::scaling::{Mrope, QueryScaling, RopeParameters, Scaling};

/// What a layer type's parameters depend on besides their own object.
pub(super) struct Around<'a> {
    /// The text model's own keys.
    pub text: Keys<'a>,
    pub family: &'static Family,
    pub head_dim: u32,
    pub max_position_embeddings: u64,
    /// θ as stated beside the object, with the key that states it.
    pub theta: Option<(f64, &'static str)>,
    /// θ where none is stated.
    pub default_theta: Option<f64>,
    /// Whether θ and the rotating fraction may be stated beside the object and in it, if they agree.
    pub must_agree: bool,
}

const KNOWN_TYPES: &str = "known types are default, linear, dynamic, yarn, longrope, llama3 and proportional";

/// The `rope_type` of an object in its present name; none where it is not stated.
pub(super) fn rope_type<'a>(keys: &Keys<'a>) -> Result<Option<&'a str>> {
    let present = |name: &'a str| match name {
        "su" => "longrope",   // Phi-3's first name for it
        "mrope" => "default", // Qwen2-VL's: mrope_section says the rest
        other => other,
    };
    let read = |keys: &Keys<'a>, key: &str| Ok(keys.text(key)?.map(present));
    Ok(keys.one_of(&["rope_type", "type"], read)?.map(|(name, _)| name))
}

/// Reads the parameters of one layer type. Without an object, unscaled frequencies are meant.
pub(super) fn read(keys: Option<Keys<'_>>, around: &Around<'_>) -> Result<RopeParameters> {
    let theta = theta(keys, around)?;
    let kind = match &keys {
        Some(keys) => kind(keys, around)?,
        None => "default",
    };
    let (rotary_dim, fraction_key, fraction) = rotary_dim(keys, around, kind)?;
    let mut rope = RopeParameters::new(theta, around.head_dim);
    rope.rotary_dim = rotary_dim;
    if let Some(keys) = &keys {
        rope.scaling = scaling(keys, around, kind, fraction)?;
        if let Some(beta) = keys.number("llama_4_scaling_beta")? {
            let original_max_position_embeddings = original(keys, around)?.0;
            rope.query_scaling = Some(QueryScaling { beta, original_max_position_embeddings });
        }
    }
    // A check of the values, and that they give finite frequencies at any length.
    let place = |error: Error| {
        let key = error.subject().unwrap_or("rope_parameters").to_owned();
        let subject = match &keys {
            _ if key == "rotary_dim" => fraction_key.clone(),
            Some(keys) if keys.has(&key) => keys.path(&key),
            _ => around.text.path(&key),
        };
        error.subject_is(subject)
    };
    rope.frequencies(None).map_err(place)?;
    if rope.depends_on_length() {
        rope.frequencies(Some(u64::from(u32::MAX))).map_err(place)?;
    }
    Ok(rope)
}

fn theta(keys: Option<Keys<'_>>, around: &Around<'_>) -> Result<f64> {
    let inner = keys.map(|keys| keys.number("rope_theta")).transpose()?.flatten();
    match (inner, around.theta) {
        (Some(inner), Some((outer, key))) if around.must_agree && inner.to_bits() != outer.to_bits() => {
            let path = keys.map_or_else(String::new, |keys| keys.path("rope_theta"));
            Err(around.text.wrong(key, format!("is {outer}, but {path} is {inner}")).hint("keep one of the two"))
        }
        (Some(theta), _) | (None, Some((theta, _))) => Ok(theta),
        (None, None) => around.default_theta.ok_or_else(|| {
            let message = format!("is missing, and model type '{}' has no default for it", around.family.model_type);
            keys.unwrap_or(around.text).wrong("rope_theta", message).hint("state the base of the frequencies")
        }),
    }
}

fn kind<'a>(keys: &Keys<'a>, around: &Around<'_>) -> Result<&'a str> {
    let stated = rope_type(keys)?;
    let phi = matches!(around.family.model_type, "phi3" | "phi4_multimodal");
    if around.family.model_type == "phimoe" && !matches!(stated, None | Some("longrope" | "default")) {
        let key = if keys.has("type") { "type" } else { "rope_type" };
        return Err(keys.wrong(key, "must be longrope or default for model type 'phimoe'"));
    }
    match stated {
        // Phi-3's second name for it.
        Some("yarn") if phi && keys.has("short_factor") => Ok("longrope"),
        Some(name @ ("linear" | "dynamic" | "yarn" | "longrope" | "llama3" | "proportional")) => Ok(name),
        Some("default") => match keys.number("factor")? {
            Some(factor) if factor.total_cmp(&1.0).is_ne() => Err(keys
                .wrong("factor", format!("is {factor}, but rope_type 'default' scales nothing"))
                .hint("name the scaling in rope_type, or remove the factor")),
            _ => Ok("default"),
        },
        Some(other) => {
            let key = if keys.has("rope_type") { "rope_type" } else { "type" };
            let name: String = other.chars().take(40).collect();
            Err(keys.wrong(key, format!("unknown RoPE type '{name}'")).hint(KNOWN_TYPES))
        }
        None => {
            let scales = ["factor", "short_factor", "long_factor", "low_freq_factor", "attention_factor", "beta_fast"];
            match scales.iter().find(|key| keys.has(key)) {
                Some(key) => {
                    Err(keys.wrong("rope_type", format!("is missing, but there is a '{key}'")).hint(KNOWN_TYPES))
                }
                None => Ok("default"),
            }
        }
    }
}

/// The rotating width, the path of the key that decided it, and the fraction.
fn rotary_dim(keys: Option<Keys<'_>>, around: &Around<'_>, kind: &str) -> Result<(u32, String, f64)> {
    let Around { text, family, head_dim, .. } = around;
    let inner = match &keys {
        Some(keys) => keys.number("partial_rotary_factor")?.map(|x| (x, keys.path("partial_rotary_factor"))),
        None => None,
    };
    let spellings = ["partial_rotary_factor", "rotary_pct", "rope_pct"];
    let outer = text.one_of(&spellings, Keys::number)?.map(|(x, key)| (x, text.path(key)));
    if let (true, Some((a, inside)), Some((b, outside))) = (around.must_agree, &inner, &outer)
        && a.to_bits() != b.to_bits()
    {
        return Err(text.wrong("", format!("is {b}, but {inside} is {a}")).subject_is(outside.as_str()));
    }
    let stated = inner.or(outer);
    if family.form == Form::Mla {
        latent_fraction(text, *head_dim, stated)?;
        return Ok((*head_dim, text.path("qk_rope_head_dim"), 1.0));
    }
    let wrong = |path: &str, message: String| Err(text.wrong("", message).subject_is(path));
    let (fraction, path) =
        stated.clone().unwrap_or_else(|| (family.partial.unwrap_or(1.0), text.path("partial_rotary_factor")));
    if kind == "proportional" {
        return Ok((*head_dim, path, fraction));
    }
    if !(fraction > 0.0 && fraction <= 1.0) {
        return wrong(&path, format!("must be more than 0 and at most 1, got {fraction}"));
    }
    let by_fraction = (f64::from(*head_dim) * fraction) as u32;
    let (width, path) = match rotary_width(text, family)? {
        None => (by_fraction, path),
        Some(width) if stated.is_some() && width != by_fraction => {
            return wrong(&text.path("rotary_dim"), format!("is {width}, but {path} makes it {by_fraction}"));
        }
        Some(width) => (width, text.path("rotary_dim")),
    };
    if family.partial.is_none() && width != *head_dim {
        return wrong(&path, format!("turns {width} of {head_dim} elements, but '{}' turns all", family.model_type));
    }
    if width < 2 || !width.is_multiple_of(2) || width > *head_dim {
        let rule = format!("makes {width} of {head_dim} elements turn: must be even, and between 2 and head_dim");
        return wrong(&path, rule);
    }
    Ok((width, path, fraction))
}

/// With multi-head latent attention the slice that turns has a key of its own. A fraction may say the same once more: of the
/// whole head (Mistral 4), or of the slice.
fn latent_fraction(text: &Keys<'_>, slice: u32, stated: Option<(f64, String)>) -> Result<()> {
    let Some((fraction, path)) = stated else { return Ok(()) };
    let whole = text.count32("qk_nope_head_dim")?.map(|rest| rest.saturating_add(slice));
    let heads = [Some(slice), whole, text.count32("qk_head_dim")?, text.count32("head_dim")?];
    if heads.into_iter().flatten().any(|head| (f64::from(head) * fraction).round() as u32 == slice) {
        return Ok(());
    }
    let message = format!("is {fraction}, but {} says that {slice} elements turn", text.path("qk_rope_head_dim"));
    Err(text.wrong("", message).subject_is(path))
}

/// The key `rotary_dim`, which GPT-J and `CodeGen` always have.
fn rotary_width(text: &Keys<'_>, family: &Family) -> Result<Option<u32>> {
    if !matches!(family.model_type, "gptj" | "codegen") {
        return text.count32("rotary_dim");
    }
    match text.object().get("rotary_dim") {
        None => Ok(Some(64)),
        Some(value) if value.is_null() => Err(text.wrong("rotary_dim", "is null: which part of a head turns?")),
        Some(_) => text.count32("rotary_dim"),
    }
}

/// The context of pretraining, and whether it is stated.
fn original(keys: &Keys<'_>, around: &Around<'_>) -> Result<(u64, bool)> {
    let key = "original_max_position_embeddings";
    let inner = keys.count(key)?;
    // Phi-3's class has a default, and prefers it to what stands inside.
    let phi = matches!(around.family.model_type, "phi3" | "phi4_multimodal").then_some(4096);
    let outer = around.text.count(key)?.or(phi);
    match (inner, outer) {
        (Some(a), Some(b)) if a != b => {
            let message = format!("is {a}, but {} is {b}", around.text.path(key));
            Err(keys.wrong(key, message).hint("keep one of the two"))
        }
        (Some(n), _) | (None, Some(n)) => Ok((n, true)),
        (None, None) => Ok((around.max_position_embeddings, false)),
    }
}

fn scaling(keys: &Keys<'_>, around: &Around<'_>, kind: &str, fraction: f64) -> Result<Scaling> {
    let required = |key: &str| match keys.number(key)? {
        Some(x) => Ok(x),
        None => Err(keys.wrong(key, format!("is missing, but rope_type '{kind}' needs it"))),
    };
    let divisors = |key: &str| match keys.numbers(key)? {
        Some(list) => Ok(list),
        None => Err(keys.wrong(key, format!("is missing, but rope_type '{kind}' needs it"))),
    };
    let (original_max_position_embeddings, stated) = original(keys, around)?;
    // The ratio of the contexts stands for a factor that is not stated.
    let factor_or_ratio = || match keys.number("factor")? {
        None if stated => Ok(around.max_position_embeddings as f64 / original_max_position_embeddings as f64),
        _ => required("factor"),
    };
    let or = |key: &str, default: f64| Ok::<_, Error>(keys.number(key)?.filter(|x| *x != 0.0).unwrap_or(default));
    Ok(match kind {
        "linear" => Scaling::Linear { factor: required("factor")? },
        "dynamic" => {
            if keys.has("alpha") {
                return Err(keys.wrong("alpha", "is a scaling of its own (Hunyuan's) that is not supported"));
            }
            let max_position_embeddings = around.max_position_embeddings;
            Scaling::Dynamic { factor: required("factor")?, max_position_embeddings }
        }
        "yarn" => Scaling::Yarn {
            factor: factor_or_ratio()?,
            original_max_position_embeddings,
            beta_fast: or("beta_fast", 32.0)?,
            beta_slow: or("beta_slow", 1.0)?,
            // Of nested parameters transformers 5.23 does not read this key; here it means what it says.
            truncate: keys.flag("truncate")?.unwrap_or(true),
            attention_factor: keys.number("attention_factor")?,
            mscale: keys.number("mscale")?,
            mscale_all_dim: keys.number("mscale_all_dim")?,
        },
        "longrope" => Scaling::LongRope {
            short_factor: divisors("short_factor")?,
            long_factor: divisors("long_factor")?,
            original_max_position_embeddings,
            factor: factor_or_ratio()?,
            attention_factor: match phimoe_factor(keys, around)? {
                None => keys.number("attention_factor")?,
                factor => factor,
            },
        },
        "llama3" => Scaling::Llama3 {
            factor: required("factor")?,
            low_freq_factor: required("low_freq_factor")?,
            high_freq_factor: required("high_freq_factor")?,
            original_max_position_embeddings,
        },
        "proportional" => {
            Scaling::Proportional { factor: keys.number("factor")?.unwrap_or(1.0), partial_rotary_factor: fraction }
        }
        _ => Scaling::Default,
    })
}

/// What `PhiMoE` multiplies cos and sin with: a factor for either set of divisors, and all published ones are equal.
///
/// (transformers 5.24 takes the factor by the sequence's length but the short divisors always; up to 4.57, and in the model's own
/// code and vLLM, both follow the length, as here.)
fn phimoe_factor(keys: &Keys<'_>, around: &Around<'_>) -> Result<Option<f64>> {
    if around.family.model_type != "phimoe" {
        return Ok(None);
    }
    let [short, long] = ["short_mscale", "long_mscale"].map(|key| {
        let missing = || keys.wrong(key, "is missing, but model type 'phimoe' multiplies cos and sin with it");
        keys.number(key)?.ok_or_else(missing)
    });
    let (short, long) = (short?, long?);
    if short.to_bits() != long.to_bits() {
        return Err(
            keys.wrong("long_mscale", format!("is {long}, and short_mscale {short}: must be equal to be supported"))
        );
    }
    Ok(Some(short))
}

/// The division of pairs among three axes, for models whose positions have three.
pub(super) fn mrope(keys: Option<Keys<'_>>, of_type: Option<([u32; 3], bool)>, pairs: u32) -> Result<Option<Mrope>> {
    let Some(keys) = keys else {
        return Ok(of_type.map(|(sections, interleaved)| Mrope { sections, interleaved }));
    };
    let stated = match keys.numbers("mrope_section")? {
        None => None,
        Some(list) => {
            let whole = |x: &f64| (x.fract() == 0.0 && (0.0..=65_536.0).contains(x)).then_some(*x as u32);
            let sections =
                list.iter().map(whole).collect::<Option<Vec<_>>>().and_then(|v| <[u32; 3]>::try_from(v).ok());
            Some(sections.ok_or_else(|| keys.wrong("mrope_section", "must be three whole numbers"))?)
        }
    };
    let flag = keys.flag("mrope_interleaved")?;
    let (sections, interleaved) = match (stated, of_type) {
        (None, None) => return Ok(None),
        (stated, Some((default, interleaved))) => {
            if flag.is_some_and(|flag| flag != interleaved) {
                let message = format!("must be {interleaved}: the model type decides it");
                return Err(keys.wrong("mrope_interleaved", message));
            }
            (stated.unwrap_or(default), interleaved)
        }
        (Some(stated), None) => (stated, flag.unwrap_or(false)),
    };
    let mrope = Mrope { sections, interleaved };
    if mrope.pairs() != u64::from(pairs) {
        let message = format!("must sum to {pairs}, half the rotary width, got {}", mrope.pairs());
        return Err(keys.wrong("mrope_section", message));
    }
    Ok(Some(mrope))
}
