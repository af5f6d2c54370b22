//! `ropejit pack OUT.pack`

use std::path::PathBuf;

use clap::Args;
use ropejit::families::read_lock;
use ropejit::remote::pack::write;
use ropejit::remote::select::{Selection, select};
use ropejit::store::layers::{Layers, Places};
use ropejit::{Result, RopeSpec};

use super::super::{output, spec};
use super::told::{on, summary, told};

#[derive(Args)]
pub struct Make {
    /// The file to write; one that is there is replaced.
    #[arg(value_name = "OUT.pack", required = true)]
    out: Option<PathBuf>,
    /// Only what calls of these models need: config.json files (or folders with one), or names of shipped configurations.
    #[arg(long, value_name = "CONFIG.json", num_args = 1..)]
    model: Vec<String>,
    /// All that the cache holds for this version's kernels; the default where no model is named.
    #[arg(long, conflicts_with = "model")]
    all: bool,
    /// Only for these architectures.
    #[arg(long, value_delimiter = ',', value_name = "sm_NN,...")]
    arch: Vec<String>,
    /// Only the variants that this lock file names. One that is not in the cache is an error.
    #[arg(long, value_name = "FILE")]
    lock: Option<PathBuf>,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

/// What of a spec a model decides, however it is called.
struct Shape {
    head_dims: Vec<u32>,
    rotary_dim: u32,
    num_heads: u32,
}

impl Make {
    pub fn run(self) -> Result<()> {
        let Some(out) = &self.out else { return Ok(()) }; // clap requires it
        let shapes = self.shapes()?;
        let is_of_model = |spec: &str| {
            spec.parse::<RopeSpec>().is_ok_and(|spec| {
                shapes.iter().any(|s| {
                    s.head_dims.contains(&spec.head_dim)
                        && (s.rotary_dim, s.num_heads) == (spec.rotary_dim, spec.num_heads)
                })
            })
        };
        let lock = self.lock.as_deref().map(read_lock).transpose()?;
        let store = Layers::existing(&Places::from_environment()?)?;
        let wanted = Selection {
            architectures: self.arch.clone(),
            spec: if shapes.is_empty() { None } else { Some(&is_of_model) },
            lock: lock.as_ref(),
        };
        let entries = select(&store, &wanted)?;
        let bar = output::spinner();
        let pack = write(out, &store, &entries, &on(&bar, "packing"));
        drop(bar);
        let pack = pack?;
        if self.json {
            let mut document = told(&pack);
            document["sha256"] = pack.sha256()?.to_string().into();
            return output::json(&output::without_engine(document));
        }
        output::line(&summary(&pack))?;
        output::note(&format!("to sign it: ropejit pack sign {} --key ropejit.key", out.display()));
        Ok(())
    }

    fn shapes(&self) -> Result<Vec<Shape>> {
        let mut shapes = Vec::new();
        for model in &self.model {
            let config = spec::load("--model", model)?;
            for layer in config.layers.keys() {
                let spec = config.layer_spec(layer)?;
                // Latent attention's append has heads of q whole, where plain calls see the part that turns.
                let latent = config.latent.map(|latent| spec.rotary_dim + latent.resting);
                shapes.push(Shape {
                    head_dims: std::iter::once(spec.head_dim).chain(latent).collect(),
                    rotary_dim: spec.rotary_dim,
                    num_heads: spec.num_heads,
                });
            }
        }
        Ok(shapes)
    }
}
