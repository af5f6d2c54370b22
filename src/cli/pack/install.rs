//! `ropejit pack install`

use std::path::PathBuf;

use clap::Args;
use ropejit::remote::install::default_folder;
use ropejit::remote::{Accept, Pack, Target};
use ropejit::system::environment;
use ropejit::{DeviceChoice, Result};
use serde_json::json;

use super::super::output;
use super::told::on;
use super::trust::TrustArgs;

/// Install a pack, so that programs of this user start warm.
///
/// Verifies the signature and every entry, then makes a folder that is named by the pack, whole or not at all. Programs read the user's
/// data folder by themselves; another one (--into) is named by `ROPEJIT_CACHE_PATH`. Removing the folder uninstalls the pack.
/// What is installed can be read by this user only; for root's folders that others are to read: chmod -R go+rX DIR.
#[derive(Args)]
#[command(after_help = "\
Examples:
  ropejit pack install OUT.pack --pubkey ropejit.pub
  ropejit pack install OUT.pack --pubkey ropejit.pub --into /packs
          an init container's volume; the program: ROPEJIT_CACHE_PATH=/packs")]
pub struct Install {
    /// The pack; its signature lies beside it, OUT.pack.minisig.
    #[arg(value_name = "OUT.pack")]
    pack: PathBuf,
    /// The folder to install into [default: ropejit/packs in the user's data folder].
    #[arg(long, value_name = "DIR")]
    into: Option<PathBuf>,
    #[command(flatten)]
    trust: TrustArgs,
    /// Refuse a pack that has nothing for this architecture [default: this machine's GPU, if there is one].
    #[arg(long, value_name = "sm_NN")]
    arch: Option<String>,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

impl Install {
    pub fn run(self) -> Result<()> {
        let pack = Pack::open(&self.pack)?;
        let into = self.into.clone().map_or_else(default_folder, Ok)?;
        let arch = self.arch.clone().or(architecture()?);
        let target = Target::here(arch.as_deref());
        pack.fits(target)?; // before a long file is read
        let signed = self.trust.judge(&pack)?;
        let accept = signed.as_ref().map_or(Accept::Unsigned, Accept::Signed);
        let bar = output::spinner();
        let installed = pack.install(&into, accept, target, &on(&bar, "installed"));
        drop(bar);
        let installed = installed?;
        if self.json {
            let document =
                json!({ "folder": installed.folder, "sha256": installed.sha256, "before": installed.before });
            return output::json(&output::without_engine(document));
        }
        let what = if installed.before { "was installed before" } else { "installed" };
        output::line(&format!("{}: {what}", installed.folder.display()))
    }
}

/// The architecture that this machine's programs use: its GPU's, or the processor's where `ROPEJIT_DEVICE` says so. `None` without a
/// GPU: an init container sees none, and its node may have one.
pub fn architecture() -> Result<Option<String>> {
    let choice = environment::parsed("ROPEJIT_DEVICE")?.unwrap_or_default();
    let choice = if choice == DeviceChoice::Auto { DeviceChoice::Cuda(0) } else { choice };
    Ok(ropejit::device::open(choice).ok().map(|device| device.facts().arch.clone()))
}
