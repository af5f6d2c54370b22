//! `ropejit pack export`

use std::path::PathBuf;

use clap::Args;
use ropejit::Result;
use ropejit::remote::{Pack, oci};
use serde_json::json;

use super::super::output;
use super::told::on;

/// Make a container image of a pack: an OCI image layout, which skopeo and registries take.
///
/// The image has one layer with the entries as a cache folder. Mounted (Kubernetes' image volumes) or unpacked (MCV, GKM) it is read as it
/// is: `ROPEJIT_CACHE_PATH=<mount>/io.ropejit.cache`. An image is signed with its registry's tools, such as cosign: the pack's own
/// signature does not cover it.
#[derive(Args)]
#[command(after_help = "\
Examples:
  ropejit pack export OUT.pack --oci image
  skopeo copy oci:image docker://registry.example/kernels:llama")]
pub struct Export {
    /// The pack.
    #[arg(value_name = "OUT.pack")]
    pack: PathBuf,
    /// The folder to make.
    #[arg(long, value_name = "DIR")]
    oci: PathBuf,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

impl Export {
    pub fn run(self) -> Result<()> {
        let pack = Pack::open(&self.pack)?;
        let bar = output::spinner();
        let image = oci::export(&pack, &self.oci, &on(&bar, "exported"));
        drop(bar);
        let image = image?;
        if self.json {
            let document = json!({ "oci": image.folder, "manifest": format!("sha256:{}", image.manifest), "layer_bytes": image.layer_bytes });
            return output::json(&output::without_engine(document));
        }
        output::line(&format!(
            "{}: image sha256:{}, layer of {} bytes",
            image.folder.display(),
            image.manifest,
            image.layer_bytes
        ))
    }
}
