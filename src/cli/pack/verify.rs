//! `ropejit pack verify`

use std::path::PathBuf;

use clap::Args;
use ropejit::Result;
use ropejit::remote::{Pack, Target};
use serde_json::json;

use super::super::output;
use super::told::{on, summary, told};
use super::trust::TrustArgs;

/// Verify a pack: who signed it, and every entry to the last byte.
///
/// Exit status 1 if the signature is missing, wrong or of another key, or an entry is damaged. That a pack is for another version of
/// ropejit is said, and no failure: install refuses it.
#[derive(Args)]
#[command(after_help = "\
Examples:
  ropejit pack verify OUT.pack --pubkey ropejit.pub
  ropejit pack verify OUT.pack --pubkey RWQ… --pubkey RWR…
                                                 while a key is replaced
  ropejit pack verify OUT.pack --trust-unsigned  only whether it is whole")]
pub struct Verify {
    /// The pack; its signature lies beside it, OUT.pack.minisig.
    #[arg(value_name = "OUT.pack")]
    pack: PathBuf,
    #[command(flatten)]
    trust: TrustArgs,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

impl Verify {
    pub fn run(self) -> Result<()> {
        let pack = Pack::open(&self.pack)?;
        let signed = self.trust.judge(&pack)?;
        let bar = output::spinner();
        let sha256 = pack.verify_entries(&on(&bar, "checked"));
        drop(bar);
        let (sha256, fits) = (sha256?, pack.fits(Target::here(None)));
        let by = signed.as_ref().map(|signed| signed.key().to_string());
        if self.json {
            let mut document = told(&pack);
            document["sha256"] = sha256.to_string().into();
            document["signed_by"] = json!(by);
            document["fits"] = fits.is_ok().into();
            return output::json(&output::without_engine(document));
        }
        output::line(&summary(&pack))?;
        output::line(&format!(
            "sha256 {sha256}, {}",
            by.map_or("signature not asked for".into(), |key| format!("signed by {key}"))
        ))?;
        if let Err(e) = fits {
            output::note(&format!("not for this program: {e}"));
        }
        Ok(())
    }
}
