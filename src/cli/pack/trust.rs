//! Whose packs are accepted.

use clap::Args;
use ropejit::remote::{Pack, PublicKey, Signed};
use ropejit::{Error, Result};

/// Whose packs are accepted.
#[derive(Args, Clone)]
#[group(id = "trust", multiple = false)]
pub struct TrustArgs {
    /// A public key whose signature is accepted: a line `RW…`, or a file with it. May be given more than once: while a key is
    /// replaced, the old one and the new one.
    #[arg(long, value_name = "RW…|FILE")]
    pub pubkey: Vec<String>,
    /// Accept a pack without a signature. Whoever can change the file can then run code in the programs that use it.
    #[arg(long)]
    pub trust_unsigned: bool,
}

impl TrustArgs {
    /// The keys.
    pub fn keys(&self) -> Result<Vec<PublicKey>> {
        self.pubkey.iter().map(|key| PublicKey::read(key)).collect()
    }

    /// Verifies a pack's signature; `None` where none is asked for.
    pub fn judge(&self, pack: &Pack) -> Result<Option<Signed>> {
        if self.pubkey.is_empty() && !self.trust_unsigned {
            return Err(Error::argument("--pubkey", "is missing: no key says whose packs are accepted")
                .hint("give the signer's public key (--pubkey ropejit.pub), or --trust-unsigned if you know who made the file"));
        }
        if self.trust_unsigned { Ok(None) } else { pack.verify_signature(&self.keys()?).map(Some) }
    }
}
