//! `ropejit model`

use clap::Args;
use ropejit::rope::model::SHIPPED;
use ropejit::rope::{Flavour, Norm};
use ropejit::{DType, Result};

use super::{output, spec};

/// Print what was understood of a model's configuration: heads, dimensions, style, `inv_freq`, attention factor.
///
/// With --json all frequencies are printed, to compare with those of another program.
#[derive(Args)]
#[command(after_help = format!("\
Examples:
  ropejit model config.json
  ropejit model llama-3.1-8b --json

Shipped configurations: {}", SHIPPED.join(", ")))]
pub struct Model {
    /// A Hugging Face config.json (or the folder that holds one), or the name of a configuration shipped with ropejit.
    #[arg(value_name = "CONFIG.json")]
    config: String,
    /// Frequencies for sequences of this length (dynamic and longrope depend on it).
    #[arg(long, value_name = "N", value_parser = spec::tokens)]
    seq_len: Option<u64>,
    /// Element type of q and k: f32, f16 or bf16 [default: the model's, else bf16].
    #[arg(long, value_parser = spec::parse::<DType>)]
    dtype: Option<DType>,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

impl Model {
    pub fn run(self) -> Result<()> {
        let mut config = spec::load("CONFIG.json", &self.config)?;
        config.dtype = self.dtype.or(config.dtype);
        let report = config.report(self.seq_len)?;
        if self.json {
            let document = serde_json::to_value(&report).unwrap_or_default();
            return output::json(&output::without_engine(document));
        }
        let dtype = match (report.dtype, &report.unsupported_dtype) {
            (Some(dtype), _) => dtype.to_string(),
            (None, Some(other)) => format!("{}, which no kernel has", other.name),
            (None, None) => "not stated".into(),
        };
        for (name, value) in [
            ("model type", report.model_type.clone()),
            ("dtype", dtype),
            ("heads", format!("{} q, {} kv", report.num_heads, report.num_kv_heads)),
            ("head_dim", format!("{}, of which {} turn", report.head_dim, report.rotary_dim)),
            (
                "norm",
                report.qk_norm.map_or_else(|| "none of q and k".into(), |of| format!("{} of q and k", flavour(of))),
            ),
            ("longest", format!("{} tokens", report.max_position_embeddings)),
            ("spec", config.spec().map_or_else(|e| e.message().to_owned(), |spec| spec.to_string())),
        ] {
            output::line(&format!("{name:<12}{value}"))?;
        }
        if let Some(mrope) = &report.mrope {
            output::line(&format!("{:<12}{:?}", "mrope", mrope.sections))?;
        }
        if !report.unread.is_empty() {
            output::line(&format!("{:<12}{}", "not read", report.unread.join(", ")))?;
        }
        for (layer_type, layer) in &report.layers {
            let name = if layer_type == "default" { "all layers" } else { layer_type };
            let f = &layer.frequencies.inv_freq;
            let ends = match &f[..] {
                [first, .., last] => format!("{first:e} … {last:e}"),
                other => format!("{other:?}"),
            };
            output::line(&format!(
                "{name}: {} frequencies {ends}, attention factor {}",
                f.len(),
                layer.frequencies.attention_factor
            ))?;
            if config.spec().is_err()
                && let Ok(spec) = config.layer_spec(layer_type)
            {
                output::line(&format!("{:<12}{spec}", ""))?;
            }
        }
        Ok(())
    }
}

/// Its name in a spec.
fn flavour(flavour: Flavour) -> String {
    let norm = Norm::new(flavour).to_string();
    norm.split('/').next().unwrap_or_default().to_owned()
}
