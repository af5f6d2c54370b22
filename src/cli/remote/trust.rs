//! Whose signatures count, and who signs.

use std::path::PathBuf;

use ropejit::remote::signature::{self, SecretKey, Signed};
use ropejit::{Error, ErrorKind, Result};

use super::super::pack::sign::password;
pub use super::super::pack::trust::Accepted;
use super::super::pack::trust::TrustArgs;

impl Accepted {
    /// Whose packs are taken from a store.
    ///
    /// # Errors
    /// As [`TrustArgs::accepted`], and where nothing is signed and the way to the store is open to all.
    pub fn read(trust: &TrustArgs, url: &str) -> Result<Self> {
        if trust.trust_unsigned && url.trim_start().to_ascii_lowercase().starts_with("http:") {
            return Err(Error::argument("--trust-unsigned", "over http anybody on the way can change what comes")
                .hint("use https, or packs that are signed: --pubkey RW…"));
        }
        trust.accepted("all who can write to the store may run code here")
    }

    /// Verifies what must be signed; `None` where nothing need be.
    ///
    /// # Errors
    /// [`ErrorKind::Signature`], naming `name`.
    pub fn verify(&self, name: &str, data: impl std::io::Read, signature: Option<&str>) -> Result<Option<Signed>> {
        let Self::Signed(keys) = self else { return Ok(None) };
        let signature = signature.ok_or_else(|| {
            Error::new(ErrorKind::Signature, "is not signed")
                .subject_is(name)
                .hint("push it with a key: ropejit push URL --key ropejit.key")
        })?;
        signature::verify(name, data, signature, keys).map(Some)
    }
}

/// Who signs what is pushed.
#[derive(clap::Args, Clone)]
pub struct Signing {
    /// Secret key that signs the pack and the list of packs (minisign's format; ropejit pack keygen).
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// A file whose first line is the key's password; else it is asked for at the terminal.
    #[arg(long, value_name = "FILE", requires = "key")]
    password_file: Option<PathBuf>,
    /// Sign nothing: only those who say --trust-unsigned can pull it.
    #[arg(long, conflicts_with = "key")]
    unsigned: bool,
}

impl Signing {
    /// Whether the caller has said anything about it.
    pub fn is_given(&self) -> bool {
        self.unsigned || self.key.is_some()
    }

    /// Reads the key; `None` where nothing is to be signed.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] when neither option is given; as [`SecretKey::read`].
    pub fn read(&self) -> Result<Option<SecretKey>> {
        match &self.key {
            Some(path) => SecretKey::read(path, || password(self.password_file.as_ref())).map(Some),
            None if self.unsigned => Ok(None),
            None => Err(Error::argument("--key", "no key signs what is pushed")
                .hint("make one (ropejit pack keygen --key ropejit.key), or say --unsigned")),
        }
    }
}
