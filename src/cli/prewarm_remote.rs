//! What a prewarm gets from a store before, and puts there after.

use ropejit::remote::install::default_folder;
use ropejit::remote::signature::SecretKey;
use ropejit::{Engine, Error, Result};

use super::pack::trust::TrustArgs;
use super::remote::{Accepted, Order, Patience, Signing, publish};

/// Stores to pull from and push to.
#[derive(clap::Args)]
pub struct RemoteArgs {
    /// Get the pack of this store first, into the user's data folder: what it holds is not made again.
    #[arg(long, value_name = "URL")]
    pull: Option<String>,
    /// Then push all that the cache and that pack hold for these architectures to this store, as a new pack.
    #[arg(long, value_name = "URL")]
    push: Option<String>,
    #[command(flatten)]
    trust: TrustArgs,
    #[command(flatten)]
    signing: Signing,
    #[command(flatten)]
    patience: Patience,
}

/// Stores whose keys are read.
pub struct Remote<'a> {
    pull: Option<(&'a str, Accepted)>,
    push: Option<(&'a str, Option<SecretKey>)>,
    patience: Patience,
}

impl RemoteArgs {
    /// Whether a pack is pulled.
    pub fn pulls(&self) -> bool {
        self.pull.is_some()
    }

    /// Reads the keys, before any work.
    ///
    /// # Errors
    /// When one is missing or wrong.
    pub fn open(&self) -> Result<Remote<'_>> {
        for (given, name, with) in [
            ((self.trust.trust_unsigned || !self.trust.pubkey.is_empty()) && self.pull.is_none(), "--pubkey", "--pull"),
            (self.signing.is_given() && self.push.is_none(), "--key", "--push"),
        ] {
            if given {
                return Err(Error::argument(name, format!("says nothing without {with}"))
                    .hint(format!("give {with} URL as well")));
            }
        }
        let pull = self.pull.as_deref().map(|url| Ok((url, Accepted::read(&self.trust, url)?))).transpose()?;
        let push = self.push.as_deref().map(|url| Ok((url, self.signing.read()?))).transpose()?;
        Ok(Remote { pull, push, patience: self.patience })
    }
}

impl Remote<'_> {
    /// Pulls the packs of these architectures. Where there is none, all is made here.
    ///
    /// # Errors
    /// Where one is there and cannot be trusted or installed.
    pub fn pull(&self, architectures: &[String]) -> Result<()> {
        let Some((url, accepted)) = &self.pull else { return Ok(()) };
        let into = default_folder()?;
        for arch in architectures {
            let order = Order { url, accepted, arch, into: &into, patience: self.patience };
            if let Some(pulled) = order.run(false)? {
                pulled.tell();
            }
        }
        Ok(())
    }

    /// Pushes what the engines' stores hold for each engine's architecture.
    ///
    /// # Errors
    /// Where the store does not take it.
    pub fn push(&self, engines: &[Engine]) -> Result<()> {
        let Some((url, key)) = &self.push else { return Ok(()) };
        for engine in engines {
            let arch = [engine.facts().arch.clone()];
            for pushed in publish(url, self.patience, engine.store(), &arch, key.as_ref())? {
                pushed.tell();
            }
        }
        Ok(())
    }
}
