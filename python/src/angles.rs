//! Rows of cos and sin for tokens: of tables whose pairs follow three axes of positions, or computed by the engine.
//!
//! There is no kernel for rows: a rotation turns a vector that is 1 in its first half and 0 in its second, and what comes out is
//! a row `[cos | sin]`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use pyo3::prelude::*;
use pyo3::types::PyTuple;
use ropejit::rope::model::ModelConfig;
use ropejit::rope::scaling::{Mrope, RopeParameters, Scaling, TableMode};
use ropejit::{PairStyle, Rounding};
use serde_json::Value;

use crate::engines;
use crate::errors::{guarded, raise, wrong};
use crate::form::{Form, Order};
use crate::functions::rotate;
use crate::objects::{Objects, kind, views};
use crate::torch::{Kind, Torch};

/// What a source states.
struct Source {
    parameters: RopeParameters,
    sections: Option<Mrope>,
}

/// The source of this text, which is read once. `{"inv_freq": […], "attention_factor": A}`, or
/// `{"config": name or text, "layer": its layer type or null}`.
fn source(text: &str) -> PyResult<Arc<Source>> {
    static READ: Mutex<Option<HashMap<String, Arc<Source>>>> = Mutex::new(None);
    let read = || READ.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(found) = read().as_ref().and_then(|all| all.get(text)) {
        return Ok(Arc::clone(found));
    }
    let made = Arc::new(parse(text)?);
    read().get_or_insert_default().insert(text.to_owned(), Arc::clone(&made));
    Ok(made)
}

fn parse(text: &str) -> PyResult<Source> {
    let value: Value = serde_json::from_str(text).map_err(|e| wrong("source", format!("is not valid JSON: {e}")))?;
    if let Some(list) = value["inv_freq"].as_array() {
        let inv_freq: Vec<f32> = list.iter().map(|x| x.as_f64().unwrap_or(f64::NAN) as f32).collect();
        let attention_factor = value["attention_factor"].as_f64().unwrap_or(1.0) as f32;
        let width = u32::try_from(2 * inv_freq.len()).unwrap_or(u32::MAX);
        // The base is of no use here: the frequencies are there.
        let parameters = RopeParameters::new(1.0, width).with_scaling(Scaling::Given { inv_freq, attention_factor });
        parameters.validate().map_err(raise)?;
        return Ok(Source { parameters, sections: None });
    }
    let config = value["config"].as_str().unwrap_or_default();
    let model = ModelConfig::shipped(config).unwrap_or_else(|| ModelConfig::from_json(config)).map_err(raise)?;
    let names = || model.layers.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
    let parameters = match (value["layer"].as_str(), model.layers.values().next()) {
        (Some(layer), _) => model.layers.get(layer).ok_or_else(|| {
            wrong("layer", format!("'{layer}' is not one of the configuration's layer types ({})", names()))
        })?,
        (None, Some(only)) if model.layers.len() == 1 => only,
        (None, _) => return Err(wrong("layer", format!("is needed: layer types differ; hint: one of {}", names()))),
    };
    Ok(Source { parameters: parameters.clone(), sections: model.mrope })
}

fn mode(accurate: bool) -> TableMode {
    if accurate { TableMode::Accurate } else { TableMode::F32 }
}

fn axes(sections: [u32; 3], interleaved: bool) -> Mrope {
    Mrope { sections, interleaved }
}

/// Frequencies and the factor on cos and sin; sections and whether they alternate, where the model has any; whether all that
/// depends on the length of the sequence.
#[pyfunction]
#[pyo3(signature = (text, seq_len))]
#[allow(clippy::type_complexity)]
pub fn frequencies(text: &str, seq_len: Option<u64>) -> PyResult<(Vec<f32>, f32, Option<([u32; 3], bool)>, bool)> {
    guarded(|| {
        let source = source(text)?;
        let frequencies = source.parameters.frequencies(seq_len).map_err(raise)?;
        let sections = source.sections.map(|mrope| (mrope.sections, mrope.interleaved));
        Ok((frequencies.inv_freq, frequencies.attention_factor, sections, source.parameters.depends_on_length()))
    })
}

/// Rows of the tables where each pair follows one of three axes of `position_ids`. `unit` is `[batch, tokens, 1, width]`.
/// `None` where only PyTorch's dispatcher may call.
#[pyfunction]
pub fn rows_of_axes<'py>(
    unit: &Bound<'py, PyAny>,
    cos: &Bound<'py, PyAny>,
    sin: &Bound<'py, PyAny>,
    position_ids: &Bound<'py, PyAny>,
    sections: [u32; 3],
    interleaved: bool,
) -> PyResult<Option<Bound<'py, PyTuple>>> {
    guarded(|| made(unit, [cos, sin], position_ids, Some(axes(sections, interleaved)), None))
}

/// The same of angles that the engine computes, for positions on one axis or three. `row`, `[1, width]`, stands where a call
/// has tables, and is not read.
#[pyfunction]
#[allow(clippy::too_many_arguments)]
#[pyo3(signature = (unit, row, position_ids, text, accurate, seq_len, sections, interleaved))]
pub fn computed_rows<'py>(
    unit: &Bound<'py, PyAny>,
    row: &Bound<'py, PyAny>,
    position_ids: &Bound<'py, PyAny>,
    text: &str,
    accurate: bool,
    seq_len: Option<u64>,
    sections: Option<[u32; 3]>,
    interleaved: bool,
) -> PyResult<Option<Bound<'py, PyTuple>>> {
    guarded(|| {
        let source = source(text)?;
        // Where the length changes nothing, any position may come: then the kernel computes, and reads no table.
        let seq_len = match (source.parameters.depends_on_length(), seq_len) {
            (true, None) => {
                let what = "is needed: the frequencies depend on it; hint: the largest position plus one";
                return Err(wrong("seq_len", what));
            }
            (true, Some(length)) => length,
            (false, _) => u64::MAX,
        };
        let sections = sections.map(|sections| axes(sections, interleaved));
        made(unit, [row; 2], position_ids, sections, Some((&source.parameters, mode(accurate), seq_len)))
    })
}

fn made<'py>(
    unit: &Bound<'py, PyAny>,
    [cos, sin]: [&Bound<'py, PyAny>; 2],
    position_ids: &Bound<'py, PyAny>,
    sections: Option<Mrope>,
    computed: Option<(&RopeParameters, TableMode, u64)>,
) -> PyResult<Option<Bound<'py, PyTuple>>> {
    let py = unit.py();
    let Some(torch) = Torch::get(py) else { return Err(wrong("position_ids", "is no torch.Tensor")) };
    let o = Objects { q: unit, k: None, cos, sin, position_ids: Some(position_ids), cu_seqlens: None, offset: None };
    if !matches!(kind(torch, &o), Kind::Plain) || torch.is_watched(py)? {
        return Ok(None);
    }
    let Some(mut tensors) = views(torch, &o, false)? else { return Ok(None) };
    let form = Form {
        order: Order::Bshd,
        style: PairStyle::HalfSplit,
        rotary_dim: None,
        rounding: Rounding::Once,
        backward: false,
        whole: false,
        sections,
    };
    let rows = rotate(torch, &o, &mut tensors, &form, false, |call| {
        let Some((parameters, mode, seq_len)) = computed else { return Ok(()) };
        call.spec = call.spec.clone().with_angles(mode);
        let engine = engines::engine(py, call.device)?;
        call.angles = Some((py.detach(|| engine.angles(parameters, mode)).map_err(raise)?, seq_len));
        Ok(())
    })?;
    Ok(Some(rows))
}
