//! `ropejit prewarm`

use clap::Args;
use ropejit::{Engine, Error, Origin, Result};
use serde::Serialize;

use crate::output;
use crate::spec::{self, Chosen, FormArgs};

/// Fill the cache at deploy time: compile and tune for models and token counts, so that no call ever does.
///
/// A second run finds everything and does nothing. With --arch no GPU is needed: kernels are compiled for that
/// architecture (image build time) and not tuned.
#[derive(Args)]
#[command(after_help = "\
Examples:
  ropejit prewarm --model config.json --tokens 1,64,512,8192
  ropejit prewarm --model llama-3.1-8b --arch sm_80,sm_90 --no-tune
  ropejit prewarm --head-dim 128 --num-heads 32 --num-kv-heads 8 --tokens 8192 --dtype f16")]
pub struct Prewarm {
    /// Hugging Face config.json files (or folders that hold one), or names of configurations shipped with ropejit.
    #[arg(long, value_name = "CONFIG.json", num_args = 1.., conflicts_with_all = ["head_dim", "num_heads", "num_kv_heads"])]
    model: Vec<String>,
    /// Elements per head.
    #[arg(long, value_name = "D", required_unless_present = "model")]
    head_dim: Option<u32>,
    /// Heads of q.
    #[arg(long, value_name = "H", required_unless_present = "model")]
    num_heads: Option<u32>,
    /// Heads of k; 0 for none [default: as many as q].
    #[arg(long, value_name = "K")]
    num_kv_heads: Option<u32>,
    #[command(flatten)]
    form: FormArgs,
    /// Token counts (over the whole batch), each rounded up to a power of two.
    #[arg(long, value_delimiter = ',', value_parser = spec::tokens, default_value = "1,64,512,8192")]
    tokens: Vec<u64>,
    /// Prepare for q and k stored as [B,H,S,D] instead of [B,S,H,D].
    #[arg(long)]
    bhsd: bool,
    /// Compile for these architectures instead of this machine's GPU.
    #[arg(long, value_delimiter = ',', value_name = "sm_NN")]
    arch: Vec<String>,
    /// Compile the default variant and measure nothing.
    #[arg(long)]
    no_tune: bool,
    /// Also write what was prepared to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    manifest: Option<std::path::PathBuf>,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Done {
    model: String,
    spec: String,
    arch: String,
    device: String,
    tokens: u64,
    layout: String,
    variant: String,
    tuned: bool,
    origin: Origin,
}

#[derive(Serialize)]
struct Report {
    cache: Option<std::path::PathBuf>,
    prepared: Vec<Done>,
    stats: serde_json::Value,
}

impl Prewarm {
    pub fn run(self) -> Result<()> {
        let longest = self.tokens.iter().copied().max().unwrap_or(1);
        let mut chosen: Vec<Chosen> = Vec::new();
        for model in &self.model {
            chosen.extend(spec::of_model(model, &self.form, longest)?);
        }
        if self.model.is_empty() {
            let numbers = spec::SpecArgs {
                model: None,
                head_dim: self.head_dim,
                num_heads: self.num_heads,
                num_kv_heads: self.num_kv_heads,
                form: self.form.clone(),
            };
            chosen.extend(numbers.choose(longest)?);
        }
        let bar = output::spinner();
        let engines = if self.arch.is_empty() {
            vec![Engine::builder().on_progress(output::show_on(&bar)).build()?]
        } else {
            let build = |arch: &String| Engine::builder().arch(arch).build();
            self.arch.iter().map(build).collect::<Result<_>>()?
        };
        let mut report = Report {
            cache: engines.first().and_then(|e| e.store().root().map(Into::into)),
            prepared: Vec::new(),
            stats: serde_json::Value::Null,
        };
        let mut total = std::collections::BTreeMap::<String, u64>::new();
        for engine in &engines {
            for one in &chosen {
                for &tokens in &self.tokens {
                    bar.set_message(format!("{}, {tokens} tokens, {}", one.name, engine.facts().arch));
                    let done = engine.prewarm(&one.spec, tokens, self.bhsd, !self.no_tune)?;
                    report.prepared.push(Done {
                        model: one.name.clone(),
                        spec: one.spec.to_string(),
                        arch: engine.facts().arch.clone(),
                        device: engine.facts().name.clone(),
                        tokens: done.bucket.tokens(),
                        layout: done.class.to_string(),
                        variant: done.variant.to_string(),
                        tuned: done.tuned,
                        origin: done.origin,
                    });
                }
            }
            if let Ok(serde_json::Value::Object(stats)) = serde_json::to_value(engine.stats()) {
                for (name, n) in stats {
                    *total.entry(name).or_default() += n.as_u64().unwrap_or(0);
                }
            }
        }
        bar.finish_and_clear();
        report.stats = serde_json::to_value(&total).unwrap_or_default();
        if let Some(path) = &self.manifest {
            let text = serde_json::to_string_pretty(&report.prepared).unwrap_or_default();
            fs_err::write(path, text + "\n").map_err(|e| Error::io(path, "the manifest cannot be written", e))?;
        }
        if self.json {
            return output::json(&report);
        }
        let rows = report.prepared.iter().map(|d| {
            let tuned = if d.tuned { "tuned" } else { "default" };
            let origin = serde_json::to_value(d.origin).ok().and_then(|v| v.as_str().map(String::from));
            [&d.model, &d.arch, &d.tokens.to_string(), &d.layout, &d.variant, tuned, &origin.unwrap_or_default()]
                .map(|s: &str| s.to_owned())
                .to_vec()
        });
        output::table(&["model", "arch", "tokens", "layout", "variant", "choice", "from"], rows.collect(), 0)?;
        let count = |name: &str| total.get(name).copied().unwrap_or(0);
        let verdict = if count("compiles") + count("tunings") == 0 {
            "nothing to do, everything is in the cache"
        } else {
            "done"
        };
        let cache = report.cache.map_or_else(|| "memory only".to_owned(), |c| c.display().to_string());
        eprintln!("{verdict}: compiles {}, tunings {} ({cache})", count("compiles"), count("tunings"));
        Ok(())
    }
}
