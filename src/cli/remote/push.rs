//! `ropejit push`

use std::path::{Path, PathBuf};

use ropejit::jit::Key;
use ropejit::remote::Pack;
use ropejit::remote::pack;
use ropejit::remote::select::{Selection, select};
use ropejit::remote::signature::SecretKey;
use ropejit::store::Store;
use ropejit::store::layers::{Layers, Places};
use ropejit::{Error, ErrorKind, Result};
use serde::Serialize;

use super::super::output;
use super::latest::Latest;
use super::place::Place;
use super::reach::{LATEST, Patience, URL_HELP, folder};
use super::trust::Signing;

/// Sign a pack and put it in a store, where other machines pull it.
///
/// A pack is an object that is named by its digest and never changes; `latest`, which says which one to pull, is written last. Who
/// pulls at the same time gets the old one or the new one, whole. Of two that push at once both packs stand, and `latest` is one of them.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  ropejit push s3://bucket/packs --key ropejit.key  all that the cache holds, a
                                                    pack an architecture
  ropejit push s3://bucket/packs --key ropejit.key --pack llama.pack")]
pub struct Push {
    #[arg(value_name = "URL", help = URL_HELP)]
    url: String,
    /// The pack (default: one is made of what the cache holds, for each architecture).
    #[arg(long, value_name = "FILE")]
    pack: Option<PathBuf>,
    /// Only for these architectures.
    #[arg(long, value_delimiter = ',', value_name = "sm_NN,...", conflicts_with = "pack")]
    arch: Vec<String>,
    #[command(flatten)]
    signing: Signing,
    #[command(flatten)]
    patience: Patience,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

/// What was pushed, for one architecture.
#[derive(Serialize)]
pub struct Pushed {
    /// SHA-256 of the pack.
    pub pack: Key,
    /// The architecture.
    pub arch: String,
    /// Its address.
    pub address: String,
    /// Its size.
    pub bytes: u64,
    /// The store had it already.
    pub before: bool,
}

impl Push {
    pub fn run(self) -> Result<()> {
        let key = self.signing.read()?;
        let place = || Place::open(&self.url, self.patience.to_push());
        place()?; // before any work: a URL that is wrong
        let pushed = match &self.pack {
            Some(path) => {
                let pack = Pack::open(path)?;
                pack.verify_entries(&|_, _| {})?;
                let architectures: Vec<String> = pack.index().architectures().into_iter().map(str::to_owned).collect();
                let place = place()?;
                let each = architectures.iter().map(|arch| one(&place, &pack, arch, key.as_ref()));
                each.collect::<Result<Vec<_>>>()?
            }
            None => {
                let store = Layers::existing(&Places::from_environment()?)?;
                publish(&self.url, self.patience, &store, &self.arch, key.as_ref())?
            }
        };
        if self.json {
            return output::json(&serde_json::json!({ "pushed": pushed }));
        }
        pushed.iter().for_each(Pushed::tell);
        Ok(())
    }
}

impl Pushed {
    pub fn tell(&self) {
        let there = if self.before { "was there already" } else { "pushed" };
        output::note(&format!("{}, {} bytes: {there}: {}", self.arch, self.bytes, self.address));
    }
}

/// Makes a pack of a store's entries for each architecture (all, where none is named), and pushes it.
///
/// # Errors
/// Where the store lacks what a choice needs, or a pack cannot be written.
pub fn publish(
    url: &str,
    patience: Patience,
    store: &dyn Store,
    architectures: &[String],
    key: Option<&SecretKey>,
) -> Result<Vec<Pushed>> {
    let folder =
        tempfile::tempdir().map_err(|e| Error::new(ErrorKind::Io, "no temporary folder for the pack").caused_by(e))?;
    let make = |name: &str, architectures: Vec<String>| {
        let entries = select(store, &Selection { architectures, ..Selection::default() })?;
        pack::write(&folder.path().join(name), store, &entries, &|_, _| {})
    };
    let named: Vec<String> = match architectures {
        [] => make("all", Vec::new())?.index().architectures().into_iter().map(str::to_owned).collect(),
        named => named.to_vec(),
    };
    let packs = named.iter().map(|arch| Ok((arch, make(arch, vec![arch.clone()])?)));
    let packs = packs.collect::<Result<Vec<_>>>()?;
    let place = Place::open(url, patience.to_push())?; // the time runs from now on
    packs.iter().map(|(arch, pack)| one(&place, pack, arch, key)).collect()
}

/// Pushes a pack for one of its architectures: what is named by its digest first, `latest` last.
fn one(place: &Place, pack: &Pack, arch: &str, key: Option<&SecretKey>) -> Result<Pushed> {
    let bytes = std::fs::read(pack.path()).map_err(|e| unreadable(pack.path(), e))?;
    let (sha256, templates) = (pack.sha256()?, pack.index().templates);
    let sign = |text: &[u8]| key.map(|key| key.sign(text, &format!("ropejit pack {sha256}"))).transpose();
    let signature = sign(&bytes)?;
    let at = folder(templates, arch);
    let name = format!("{at}/{sha256}.pack");
    let new = place.put_once(&name, &bytes)?;
    if let Some(signature) = &signature {
        place.put(&format!("{name}.minisig"), signature.as_bytes())?;
    }
    let latest = Latest {
        templates: templates.to_string(),
        arch: arch.to_owned(),
        pack: sha256,
        bytes: bytes.len() as u64,
        signature,
    };
    let signed = sign(latest.text().as_bytes())?;
    place.put(&format!("{at}/{LATEST}"), latest.with(signed.as_deref()).as_bytes())?;
    Ok(Pushed {
        pack: sha256,
        arch: arch.to_owned(),
        address: place.address(&name),
        bytes: bytes.len() as u64,
        before: !new,
    })
}

fn unreadable(path: &Path, e: std::io::Error) -> Error {
    Error::io(path, "the pack cannot be read", e).hint("name a pack: ropejit pack OUT.pack makes one")
}
