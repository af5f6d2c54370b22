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

/// Whose packs are taken.
pub enum Accepted {
    /// Those that one of these keys has signed.
    Signed(Vec<PublicKey>),
    /// All.
    Any,
}

impl TrustArgs {
    /// Reads the keys. Nothing is taken unless the caller says whose it may be; `unsigned_if` is when that may be anybody's.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`](ropejit::ErrorKind::InvalidArgument) when neither option is given, or a key is none.
    pub fn accepted(&self, unsigned_if: &str) -> Result<Accepted> {
        if self.trust_unsigned {
            return Ok(Accepted::Any);
        }
        if self.pubkey.is_empty() {
            let what = "is missing: no key says whose packs are accepted";
            return Err(Error::argument("--pubkey", what).hint(format!(
                "give the signer's public key (--pubkey ropejit.pub), or --trust-unsigned if {unsigned_if}"
            )));
        }
        self.pubkey.iter().map(|key| PublicKey::read(key)).collect::<Result<_>>().map(Accepted::Signed)
    }

    /// Verifies a pack's signature; `None` where none is asked for.
    pub fn judge(&self, pack: &Pack) -> Result<Option<Signed>> {
        match self.accepted("you know who made the file")? {
            Accepted::Any => Ok(None),
            Accepted::Signed(keys) => pack.verify_signature(&keys).map(Some),
        }
    }
}
