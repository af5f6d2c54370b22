//! `ropejit pull`

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ropejit::jit::Key;
use ropejit::remote::install::default_folder;
use ropejit::remote::{Accept, Pack, Target};
use ropejit::store::claim::Claim;
use ropejit::store::packs;
use ropejit::system::{environment, private};
use ropejit::{Engine, Error, ErrorKind, Result};
use serde::Serialize;

use super::super::output;
use super::super::pack::trust::TrustArgs;
use super::latest::{self, Latest};
use super::place::{Fault, Place};
use super::reach::{LATEST, Patience, URL_HELP, folder};
use super::trust::Accepted;

/// Get the pack of this machine's kernels from a store, and install it where programs find it.
///
/// The signature is verified, then every entry's digest, then the pack becomes a folder that engines only read. Where the store cannot
/// be reached, has no pack or is too slow, a warning says so and the exit status is 0, so that a program starts cold. What is tampered
/// with, signed by another key, or breaks off on its way is an error, and nothing of it is installed.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  ropejit pull s3://bucket/packs --pubkey RW…
  ropejit pull https://host/packs --pubkey packs.pub \\
      --into /var/lib/ropejit/packs --arch sm_90
  ropejit pull file:///mnt/packs --pubkey RW… --required --timeout 30

With --into, programs find it by ROPEJIT_CACHE_PATH=DIR.")]
pub struct Pull {
    #[arg(value_name = "URL", help = URL_HELP)]
    url: String,
    #[command(flatten)]
    trust: TrustArgs,
    /// Folder to install into (default: the user's data folder, which engines read by themselves).
    #[arg(long, value_name = "DIR")]
    into: Option<PathBuf>,
    /// Architecture that the pack is for (default: this machine's).
    #[arg(long, value_name = "sm_NN")]
    arch: Option<String>,
    /// Fail where there is nothing to install: a program that is to start warm or not at all.
    #[arg(long)]
    required: bool,
    #[command(flatten)]
    patience: Patience,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

/// What to pull.
pub struct Order<'a> {
    /// The store's folder.
    pub url: &'a str,
    /// Whose packs are taken.
    pub accepted: &'a Accepted,
    /// The architecture.
    pub arch: &'a str,
    /// Where to install it.
    pub into: &'a Path,
    /// How long to wait.
    pub patience: Patience,
}

/// What came of it.
#[derive(Serialize)]
pub struct Pulled {
    /// SHA-256 of the pack.
    pub pack: Key,
    /// Its folder.
    pub folder: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// Its entries; `None` where it was there already.
    pub entries: Option<usize>,
}

impl Pull {
    pub fn run(self) -> Result<()> {
        let accepted = Accepted::read(&self.trust, &self.url)?;
        let arch = match self.arch {
            Some(arch) => arch,
            None => Engine::builder().in_memory().build()?.facts().arch.clone(),
        };
        let into = self.into.map_or_else(default_folder, Ok)?;
        let order = Order { url: &self.url, accepted: &accepted, arch: &arch, into: &into, patience: self.patience };
        let pulled = order.run(self.required)?;
        if self.json {
            let state = match &pulled {
                None => "away",
                Some(Pulled { entries: None, .. }) => "present",
                Some(_) => "installed",
            };
            return output::json(&serde_json::json!({ "state": state, "pulled": pulled }));
        }
        if let Some(pulled) = pulled {
            pulled.tell();
        }
        Ok(())
    }
}

impl Pulled {
    pub fn tell(&self) {
        let (folder, name) = (self.folder.display(), &self.pack.to_string()[..12]);
        match self.entries {
            Some(entries) => output::note(&format!("pack {name}: {entries} entries installed in {folder}")),
            None => output::note(&format!("pack {name}: installed already, in {folder}")),
        }
    }
}

impl Order<'_> {
    /// Pulls. `None` where the store is away or has no pack: that is a warning, unless the pack is `required`.
    ///
    /// # Errors
    /// Where a pack is there and cannot be trusted, read or installed.
    pub fn run(&self, required: bool) -> Result<Option<Pulled>> {
        match self.pull() {
            Ok(pulled) => Ok(Some(pulled)),
            Err(Fault::Away(e)) if !required => {
                tracing::warn!("no pack was pulled, programs start without it: {e}");
                Ok(None)
            }
            Err(fault) => Err(fault.into_error()),
        }
    }

    fn pull(&self) -> Result<Pulled, Fault> {
        let templates = Target::here(None).templates;
        let place = Place::open(self.url, self.patience.to_pull()).map_err(Fault::Broken)?;
        let at = folder(templates, self.arch);
        let latest = self.latest(&place, &at, templates)?;
        let into =
            packs::prepare(self.into, environment::trust_group().map_err(Fault::Broken)?).map_err(Fault::Broken)?;
        let there = into.join(packs::installed_name(latest.pack));
        let present = || Pulled { pack: latest.pack, folder: there.clone(), bytes: latest.bytes, entries: None };
        // One of this node's processes gets it.
        let mut pause = Duration::from_millis(1);
        let _claim = loop {
            if there.is_dir() {
                return Ok(present());
            }
            match packs::claim(&into, &latest.pack.to_string()) {
                Claim::Taken if place.left().is_zero() => {
                    let late = Error::new(ErrorKind::Io, "too slow: another process is still getting it");
                    return Err(Fault::Away(late.subject_is(self.url).hint("give it more time: --timeout SECONDS")));
                }
                Claim::Taken => {
                    std::thread::sleep(pause.min(place.left()));
                    pause = (pause * 2).min(Duration::from_millis(32));
                }
                // It may have been installed since it was looked for.
                Claim::Mine(_) | Claim::Unavailable if there.is_dir() => return Ok(present()),
                Claim::Mine(lease) => break Some(lease),
                Claim::Unavailable => break None,
            }
        };
        self.install(&place, &at, &latest, &into, templates)
    }

    /// Which pack to get.
    fn latest(&self, place: &Place, at: &str, templates: Key) -> Result<Latest, Fault> {
        let name = format!("{at}/{LATEST}");
        let bytes = place.get(&name, latest::MOST)?;
        let named = |e: Error| Fault::Broken(e.subject_is(place.address(&name)));
        let (latest, signature) = Latest::read(&bytes).map_err(named)?;
        let text = latest.text();
        self.accepted.verify(&place.address(&name), text.as_bytes(), signature.as_deref()).map_err(Fault::Broken)?;
        if (latest.templates.as_str(), latest.arch.as_str()) != (&templates.to_string(), self.arch) {
            let what =
                format!("lists a pack for {} and templates {}: it was moved there", latest.arch, latest.templates);
            return Err(named(Error::new(ErrorKind::Pack, what)));
        }
        Ok(latest)
    }

    /// Gets it into a folder of its own that goes whatever happens, verifies and installs it.
    fn install(&self, place: &Place, at: &str, latest: &Latest, into: &Path, templates: Key) -> Result<Pulled, Fault> {
        let name = format!("{at}/{}.pack", latest.pack);
        let failed = |e| {
            Fault::Broken(
                Error::io(into, "the pack cannot be kept", e)
                    .hint("make room there, or name another folder: --into DIR"),
            )
        };
        let scratch = private::folder_in(into, packs::INSTALLING).map_err(failed)?;
        // Who finds the folder after this process was killed removes it, when nobody holds this lock.
        let held = File::open(scratch.path()).map_err(failed)?;
        let _ = held.try_lock();
        let path = scratch.path().join("pack");
        let mut file = File::create_new(&path).map_err(failed)?;
        place.get_to(&name, latest.bytes, &mut file)?;
        drop(file);
        let address = place.address(&name);
        let install = || -> Result<Pulled> {
            let file = File::open(&path).map_err(|e| Error::io(&path, "cannot be read", e))?;
            let signed = self.accepted.verify(&address, file, latest.signature.as_deref())?;
            let pack = Pack::open(&path).map_err(|e| e.subject_is(address.as_str()))?;
            let sha256 = match &signed {
                Some(signed) => signed.sha256(),
                None => pack.sha256()?,
            };
            if sha256 != latest.pack {
                let what = format!("its SHA-256 is {sha256}: it is not what its name says");
                return Err(Error::new(ErrorKind::Pack, what).subject_is(address.as_str()));
            }
            let accept = signed.as_ref().map_or(Accept::Unsigned, Accept::Signed);
            let target = Target { templates, arch: Some(self.arch) };
            let installed = pack.install(self.into, accept, target, &|_, _| {}).map_err(|e| match e.kind() {
                ErrorKind::Pack => e.subject_is(address.as_str()),
                _ => e,
            })?;
            Ok(Pulled {
                pack: sha256,
                folder: installed.folder,
                bytes: pack.bytes(),
                entries: (!installed.before).then(|| pack.index().entries.len()),
            })
        };
        install().map_err(Fault::Broken)
    }
}
