//! Besides rotating: prewarm, freeze, counters, what is in the cache, faults, the command line.

use std::ffi::OsString;

use pyo3::prelude::*;
use ropejit::families::read_choice;
use ropejit::rope::library::gradients_of;
use ropejit::rope::model::{ModelConfig, SHIPPED};
use ropejit::store::layers::{Layers, Places};
use ropejit::store::{Kind, Store};
use ropejit::{DType, RopeSpec, TableForm, TableWidth};
use serde_json::{Value, json};

use crate::dlpack::Device;
use crate::engines;
use crate::errors::{guarded, raise, wrong};
use crate::form::{self, Order};

fn device(text: &str) -> PyResult<Device> {
    let unknown = || wrong("device", format!("'{text}' is not one of 'cuda', 'cuda:N' and 'cpu'"));
    match text.split_once(':') {
        None if text == "cpu" => Ok(Device::Host),
        None if text == "cuda" => Ok(Device::Cuda(0)),
        Some(("cuda", n)) => n.parse().map(Device::Cuda).map_err(|_| unknown()),
        _ => Err(unknown()),
    }
}

/// Names of the configurations that come with the package.
#[pyfunction]
pub fn shipped_configurations() -> Vec<&'static str> {
    SHIPPED.to_vec()
}

/// Fills the cache for a model's RoPE, whose configuration is JSON or the name of one that is shipped; JSON of what was
/// prepared.
#[pyfunction]
#[allow(clippy::too_many_arguments, clippy::fn_params_excessive_bools)]
pub fn prewarm(
    py: Python<'_>,
    config: &str,
    tokens: Vec<u64>,
    on: &str,
    dtype: Option<&str>,
    layout: &str,
    rounding: &str,
    table_dtype: Option<&str>,
    half_tables: bool,
    backward: bool,
    tune: bool,
) -> PyResult<String> {
    guarded(|| {
        let model = ModelConfig::shipped(config).unwrap_or_else(|| ModelConfig::from_json(config)).map_err(raise)?;
        let parsed = |text: &str| text.parse::<DType>().map_err(raise);
        let dtype = dtype.map(parsed).transpose()?.or(model.dtype).unwrap_or(DType::BF16);
        let table = table_dtype.map(parsed).transpose()?.unwrap_or(dtype);
        let head_major = Order::parse(layout)? == Order::Bhsd;
        let rounding = form::rounding(rounding)?.of(dtype);
        let mut specs: Vec<RopeSpec> = Vec::new();
        for layer in model.layers.keys() {
            let mut spec = model.layer_spec(layer).map_err(raise)?;
            (spec.dtype, spec.rounding) = (dtype, rounding);
            let width = if half_tables { TableWidth::Half } else { TableWidth::Full };
            spec.table = TableForm { dtype: table, width };
            // Models give one row per token, whose axes are resolved.
            (spec.positions, spec.mrope) = (ropejit::PositionForm::Implicit, None);
            // Of q and k together, and of one alone where the other needs none.
            let gradients = if backward { gradients_of(&spec) } else { Vec::new() };
            for spec in std::iter::once(spec).chain(gradients) {
                if !specs.contains(&spec) {
                    specs.push(spec);
                }
            }
        }
        let engine = engines::engine(py, device(on)?)?;
        let done = py.detach(|| engine.prewarm(&specs, &tokens, head_major, tune)).map_err(raise)?;
        let shown = done.iter().map(|done| {
            json!({
                "spec": done.spec.to_string(), "tokens": done.bucket.tokens(), "layout": done.class.to_string(),
                "variant": done.variant.to_string(), "tuned": done.tuned, "prior": done.prior, "origin": done.origin,
            })
        });
        Ok(shown.collect::<Value>().to_string())
    })
}

/// The text of a model's configuration: of a file that somebody names, which may be anything.
#[pyfunction]
pub fn read_config(path: std::path::PathBuf) -> PyResult<String> {
    guarded(|| ropejit::system::read_config(&path).map_err(raise))
}

/// From now on nothing is compiled or tuned.
#[pyfunction]
pub fn freeze(py: Python<'_>) {
    engines::freeze(py);
}

/// Waits for background tuning.
#[pyfunction]
pub fn wait_tuned(py: Python<'_>) -> PyResult<()> {
    guarded(|| {
        let opened = engines::opened(py);
        py.detach(|| opened.iter().for_each(ropejit::Engine::wait_tuned));
        Ok(())
    })
}

/// Counters of all engines, as JSON.
#[pyfunction]
pub fn stats(py: Python<'_>) -> PyResult<String> {
    guarded(|| {
        let mut sum = serde_json::Map::new();
        let all = engines::opened(py).iter().map(ropejit::Engine::stats).collect::<Vec<_>>();
        for stats in if all.is_empty() { vec![ropejit::Stats::default()] } else { all } {
            if let Ok(Value::Object(stats)) = serde_json::to_value(stats) {
                for (name, n) in stats {
                    let before = sum.get(&name).and_then(Value::as_u64).unwrap_or(0);
                    sum.insert(name, (before + n.as_u64().unwrap_or(0)).into());
                }
            }
        }
        Ok(Value::from(sum).to_string())
    })
}

/// The choices in the cache folder and in those that are only read, as JSON.
#[pyfunction]
pub fn inspect() -> PyResult<String> {
    guarded(|| {
        let store = Places::from_environment().and_then(|places| Layers::existing(&places)).map_err(raise)?;
        let mut choices = Vec::new();
        for listed in store.list(Kind::Choice).map_err(raise)? {
            let Ok(entry) = listed.entry else { continue };
            let Ok(meta) = read_choice(&entry.meta) else { continue };
            let Some(chosen) = meta.record.chosen() else { continue };
            let candidates: Vec<Value> = meta
                .record
                .candidates
                .iter()
                .map(|c| json!({"variant": c.config.to_string(), "median_ns": c.median_ns(), "bit_equal": c.bit_equal}))
                .collect();
            choices.push(json!({
                "key": entry.key.to_string(), "spec": meta.spec.to_string(), "tokens": meta.bucket.tokens(),
                "layout": meta.class.to_string(), "arch": meta.arch, "device": meta.record.device,
                "variant": chosen.config.to_string(), "tuned": meta.record.tuned, "prior": meta.record.is_prior(),
                "median_ns": chosen.median_ns(), "copy_ns": meta.record.copy_ns, "candidates": candidates,
            }));
        }
        Ok(Value::from(choices).to_string())
    })
}

/// Raises where a token's position lay outside the tables in an earlier call.
#[pyfunction]
pub fn check(py: Python<'_>) -> PyResult<()> {
    guarded(|| engines::in_use(py).iter().try_for_each(|used| used.rope.check()).map_err(raise))
}

/// The command line: `program` starts it in another process. Returns the exit status.
#[pyfunction]
pub fn command_line(py: Python<'_>, program: Vec<OsString>, arguments: Vec<OsString>) -> PyResult<u8> {
    engines::find_nvrtc(py);
    guarded(|| Ok(py.detach(|| ropejit::cli::run(program, arguments))))
}

/// Ends background work.
#[pyfunction]
pub fn close(py: Python<'_>) -> PyResult<()> {
    guarded(|| {
        engines::close(py);
        Ok(())
    })
}
