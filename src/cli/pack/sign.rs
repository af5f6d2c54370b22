//! `ropejit pack sign` and `ropejit pack keygen`

use std::path::PathBuf;

use clap::Args;
use ropejit::remote::signature::{keygen, path_of, write};
use ropejit::remote::{Pack, SecretKey};
use ropejit::system::read_text;
use ropejit::{Error, Result};
use serde_json::json;

use super::super::output;

/// Sign a pack: `OUT.pack.minisig` beside it, in minisign's format.
///
/// Every entry is checked first: what is damaged is not signed. The program `minisign` verifies the signature too (minisign -V -p
/// ropejit.pub -m OUT.pack), and its keys serve here.
#[derive(Args)]
#[command(after_help = "\
Examples:
  ropejit pack sign OUT.pack --key ropejit.key
  ropejit pack sign OUT.pack --key minisign.key \\
      --password-file /run/secrets/password")]
pub struct Sign {
    /// The pack.
    #[arg(value_name = "OUT.pack")]
    pack: PathBuf,
    /// The secret key, as `ropejit pack keygen` or `minisign -G` makes it.
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// A file whose first line is the key's password; else it is asked for at the terminal.
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

impl Sign {
    pub fn run(self) -> Result<()> {
        let pack = Pack::open(&self.pack)?;
        let key = SecretKey::read(&self.key, || password(self.password_file.as_ref()))?;
        let bar = output::spinner();
        let signed = key.sign_pack(&pack, &super::told::on(&bar, "checked"));
        drop(bar);
        let path = path_of(&self.pack);
        write(&path, &signed?)?;
        let public = key.public()?;
        if self.json {
            return output::json(&output::without_engine(json!({ "signature": path, "pubkey": public.to_string() })));
        }
        output::line(&format!("{}: verified by {public}", path.display()))
    }
}

/// Make a key that signs, and the public key that verifies.
///
/// The secret key is written to a new file that you alone can read, the public key beside it (.pub) and to stdout. Keep the secret key where
/// packs are built; give the public key to every node.
#[derive(Args)]
#[command(after_help = "\
Examples:
  ropejit pack keygen --key ropejit.key             for CI, which keeps the file
                                                    as a secret
  ropejit pack keygen --key ropejit.key --password  asks for one at the terminal")]
pub struct Keygen {
    /// The file to write; one that is there is never replaced.
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// Protect the key with a password, which is asked for at the terminal.
    #[arg(long)]
    password: bool,
    /// Protect it with the password in the first line of this file.
    #[arg(long, value_name = "FILE", conflicts_with = "password")]
    password_file: Option<PathBuf>,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

impl Keygen {
    pub fn run(self) -> Result<()> {
        let password = password(self.password_file.as_ref())?;
        let (public, path) = keygen(&self.key, self.password || password.is_some(), password)?;
        if self.json {
            let document = json!({ "key": self.key, "pubkey": public.to_string(), "pubkey_file": path });
            return output::json(&output::without_engine(document));
        }
        output::line(&public.to_string())?;
        output::note(&format!("secret: {}; public: {}", self.key.display(), path.display()));
        Ok(())
    }
}

/// The password in the first line of a file.
pub fn password(file: Option<&PathBuf>) -> Result<Option<String>> {
    let Some(path) = file else { return Ok(None) };
    let text = read_text(path, 4 << 10)
        .map_err(|e| Error::argument("--password-file", format!("'{}' cannot be read", path.display())).caused_by(e))?;
    Ok(Some(text.lines().next().unwrap_or_default().to_owned()))
}
