//! Puts a pack where engines look: as a folder of its own, whole or not at all.
//!
//! Entries are written to a new folder beside the one that it becomes, each after it was checked, and all are on the disk before it is
//! renamed. A process that dies in between leaves a folder that nobody reads, and the next installation removes. Of many that install the
//! same pack at once, the first to rename wins; the others find it there.

use std::fs::File;
use std::path::{Path, PathBuf};

use super::index::own_templates;
use super::pack::{OnEntry, Pack, refused};
use super::signature::Signed;
use crate::error::{Error, ErrorKind, Result};
use crate::service::key::{FORMAT_VERSION, Key};
use crate::service::store::packs;
use crate::service::store::{Files, System};
use crate::system::{environment, private};

/// Why a pack's contents are trusted.
#[derive(Debug, Clone, Copy)]
pub enum Accept<'a> {
    /// Its signature was verified: what is installed must be what was signed.
    Signed(&'a Signed),
    /// The caller says so: whoever made the file may run code in the programs that use it.
    Unsigned,
}

/// What a pack has to be for.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// SHA-256 of the templates.
    pub templates: Key,
    /// What is run there; `None` where that is not known, as in an init container without a GPU.
    pub arch: Option<&'a str>,
}

impl<'a> Target<'a> {
    /// This program, on this architecture.
    pub fn here(arch: Option<&'a str>) -> Self {
        Self { templates: own_templates(), arch }
    }
}

/// Where a pack was installed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installed {
    /// The folder: a layer for `ROPEJIT_CACHE_PATH`, as is the folder that it is in.
    pub folder: PathBuf,
    /// SHA-256 of the pack.
    pub sha256: Key,
    /// It was there already.
    pub before: bool,
}

impl Pack {
    /// Says whether a pack serves a target.
    ///
    /// # Errors
    /// [`ErrorKind::Pack`], naming the file, when it is for other templates or another architecture, or empty.
    pub fn fits(&self, target: Target<'_>) -> Result<()> {
        let index = self.index();
        let other = |what: String, hint: &str| Err(refused(self.path(), what).hint(hint));
        if index.templates != target.templates {
            let short = |key: Key| key.to_string()[..12].to_owned();
            return other(
                format!(
                    "made for templates {}, this program has {}: its kernels are another version's",
                    short(index.templates),
                    short(target.templates)
                ),
                "use the pack that this version of ropejit has made, or the version that made this pack",
            );
        }
        let (there, wanted) = (index.architectures(), target.arch);
        if index.entries.is_empty() {
            return other("it is empty".into(), "fill the cache first: ropejit prewarm --model config.json");
        }
        if let Some(arch) = wanted.filter(|arch| !there.contains(arch)) {
            return other(
                format!("made for {}, this is {arch}", there.join(", ")),
                "use a pack for it: ropejit prewarm --arch, then ropejit pack",
            );
        }
        Ok(())
    }

    /// Installs it into a folder, as a folder that is named by it. One that is there already is left as it is.
    ///
    /// # Errors
    /// [`ErrorKind::Pack`] when it does not [fit](Self::fits), an entry is damaged, or it is not what was signed;
    /// [`ErrorKind::UntrustedCache`] when others can write to the folder; [`ErrorKind::Io`] when it cannot be written.
    /// Then nothing is installed.
    pub fn install(
        &self,
        into: &Path,
        accept: Accept<'_>,
        target: Target<'_>,
        progress: OnEntry<'_>,
    ) -> Result<Installed> {
        self.install_with(&System, into, accept, target, progress)
    }

    /// As [`install`](Self::install), with operations on files other than the system's.
    ///
    /// # Errors
    /// As [`install`](Self::install).
    pub fn install_with(
        &self,
        files: &dyn Files,
        into: &Path,
        accept: Accept<'_>,
        target: Target<'_>,
        progress: OnEntry<'_>,
    ) -> Result<Installed> {
        self.fits(target)?;
        let group = environment::trust_group()?;
        let into = packs::prepare(into, group)?;
        let at = |sha256: Key| into.join(packs::installed_name(sha256));
        if let Accept::Signed(signed) = accept
            && at(signed.sha256()).is_dir()
        {
            return Ok(Installed { folder: at(signed.sha256()), sha256: signed.sha256(), before: true });
        }
        let failed = |e| {
            Error::io(&into, "the pack cannot be installed", e)
                .hint("make room there, or name another folder: --into DIR")
        };
        let made = private::folder_in(&into, packs::INSTALLING).map_err(failed)?;
        let held = File::open(made.path()).map_err(failed)?;
        let _ = files.lock(&held, false);
        let version = made.path().join(format!("v{FORMAT_VERSION}"));
        folder(&version).map_err(failed)?;
        let sha256 = self.each(|nth, item, bytes| {
            let name = item.key.to_string();
            let (kind, part) = (version.join(item.kind.name()), &name[..2]);
            let part = kind.join(part);
            folder(&kind).and_then(|()| folder(&part)).map_err(failed)?;
            write(files, &part.join(format!("{name}.rope")), bytes).map_err(failed)?;
            progress(nth + 1, self.index().entries.len());
            Ok(())
        })?;
        if let Accept::Signed(signed) = accept
            && signed.sha256() != sha256
        {
            return Err(refused(self.path(), "it was changed after its signature was verified"));
        }
        sync_folders(files, made.path()).map_err(failed)?;
        let to = at(sha256);
        let before = match files.rename(made.path(), &to) {
            Ok(()) => {
                let _ = made.keep(); // renamed: nothing is left to remove
                false
            }
            // Another process was faster, with the same bytes.
            Err(_) if to.is_dir() => true,
            Err(e) => return Err(failed(e)),
        };
        File::open(&into).and_then(|folder| files.sync(&folder)).map_err(failed)?;
        Ok(Installed { folder: to, sha256, before })
    }
}

/// Makes a folder of mode 0700, unless it is there.
fn folder(path: &Path) -> std::io::Result<()> {
    match private::new_folder(path) {
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        done => done,
    }
}

fn write(files: &dyn Files, path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let file = files.create(path)?;
    #[cfg(unix)]
    // Whatever the umask is.
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    files.write(&file, bytes)?;
    files.sync(&file)
}

/// Waits until the names in a folder and those below are on the disk.
fn sync_folders(files: &dyn Files, folder: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_folders(files, &entry.path())?;
        }
    }
    files.sync(&File::open(folder)?)
}

/// The folder that packs are installed in unless the caller names another.
///
/// # Errors
/// [`ErrorKind::Io`] where the user's data folder is not known.
pub fn default_folder() -> Result<PathBuf> {
    packs::default_folder().ok_or_else(|| {
        Error::new(ErrorKind::Io, "no data folder: neither XDG_DATA_HOME nor HOME is set")
            .hint("name a folder, and have programs read it: --into DIR, ROPEJIT_CACHE_PATH=DIR")
    })
}
