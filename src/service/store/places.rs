//! Where folders are, as the environment says. All variables about the cache are read here.

use std::path::{Path, PathBuf};

use super::Store as _;
use super::disk::Disk;
use super::packs;
use super::sweep::Bytes;
use super::trust::Trust;
use crate::error::{Error, Result};
use crate::system::environment;

/// Where layers are, and who may write to them.
#[derive(Debug, Clone, Default)]
pub struct Places {
    /// The user's folder.
    pub user: Option<PathBuf>,
    /// Folders that are only read, the first first.
    pub read_only: Vec<PathBuf>,
    /// The folder that packs were installed in: read last.
    pub packs: Option<PathBuf>,
    /// Bytes that the user's folder may hold.
    pub max_bytes: Option<u64>,
    /// A group that may write to the folders, by its number.
    pub trust_group: Option<u32>,
    /// A folder that others can write to is an error; else it is not used, with a warning.
    pub strict: bool,
    /// Nothing is to be kept: a user's folder that is not there is not made.
    pub frozen: bool,
}

impl Places {
    /// As `ROPEJIT_CACHE_DIR`, `ROPEJIT_CACHE_PATH`, `ROPEJIT_CACHE_MAX_BYTES`, `ROPEJIT_TRUST_GROUP` and `ROPEJIT_STRICT` say.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`](crate::ErrorKind::InvalidArgument), naming the variable that is wrong.
    pub fn from_environment() -> Result<Self> {
        let strict = "ROPEJIT_STRICT";
        Ok(Self {
            user: default_root(),
            read_only: default_read_only(),
            packs: packs::default_folder(),
            max_bytes: environment::parsed("ROPEJIT_CACHE_MAX_BYTES")?.map(|Bytes(n)| n),
            trust_group: environment::trust_group()?,
            strict: match environment::text(strict)?.as_deref() {
                None | Some("0") => false,
                Some("1") => true,
                Some(text) => {
                    return Err(Error::argument(strict, format!("'{text}' is neither 0 nor 1"))
                        .hint("set it to 1, or unset it"));
                }
            },
            frozen: false,
        })
    }

    /// The folder that the user's entries are kept in, there or not: the user's, or where that is for several users, the
    /// user's own in it.
    pub fn user_folder(&self) -> Option<PathBuf> {
        let named = std::path::absolute(self.user.as_ref()?).ok()?;
        Some(Trust::own(self.trust_group).folder_in(&named))
    }

    /// Opens the user's folder, and makes it if it is not there, unless nothing is to be kept.
    ///
    /// # Errors
    /// As [`Disk::open`].
    pub fn open_user(&self, root: &Path) -> Result<Disk> {
        let disk = if self.frozen {
            Disk::open_unmade(root, self.trust_group)?
        } else {
            Disk::open_trusting(root, self.trust_group)?
        };
        Ok(match self.max_bytes {
            Some(bytes) => disk.max_bytes(bytes),
            None => disk,
        })
    }

    /// Opens a folder that is only read; of one that is for several users, the user's own in it, if it is there.
    ///
    /// # Errors
    /// As [`Disk::read_only`].
    pub fn open_read_only(&self, root: &Path) -> Result<Disk> {
        let own = Trust::read_only(self.trust_group).folder_in(root);
        Disk::read_only_trusting(if own.exists() { &own } else { root }, self.trust_group)
    }

    /// The folders that are only read and are there or were named: those of the list, then that of packs.
    pub fn to_read(&self) -> impl Iterator<Item = &Path> {
        let packs = self.packs.as_ref().filter(|folder| folder.exists());
        self.read_only.iter().chain(packs).map(PathBuf::as_path)
    }

    /// Opens the layers that a folder to read holds: its own entries, unless there are none and packs were installed in it, then these
    /// packs, the newest first.
    ///
    /// # Errors
    /// As [`open_read_only`](Self::open_read_only), for the folder; each pack may fail for itself.
    pub fn open_layers(&self, root: &Path) -> Result<Vec<Result<Disk>>> {
        let own = self.open_read_only(root)?;
        let installed = packs::installed_in(own.root().unwrap_or(root));
        let only_packs = !installed.is_empty() && !own.version().exists();
        let packs = installed.iter().map(|pack| Disk::read_only_trusting(pack, self.trust_group));
        let packs: Vec<_> = packs.collect();
        Ok(Some(Ok(own)).filter(|_| !only_packs).into_iter().chain(packs).collect())
    }
}

/// The cache folder that is used unless the caller names one: `ROPEJIT_CACHE_DIR`, else the user's cache folder. `None`
/// when neither is known.
pub fn default_root() -> Option<PathBuf> {
    match environment::raw("ROPEJIT_CACHE_DIR") {
        Some(folder) => Some(folder.into()),
        None => directories::ProjectDirs::from("", "", "ropejit").map(|d| d.cache_dir().to_owned()),
    }
}

/// The cache folders that are only read unless the caller names others: `ROPEJIT_CACHE_PATH`, a list as `PATH` is.
pub fn default_read_only() -> Vec<PathBuf> {
    let list = environment::raw("ROPEJIT_CACHE_PATH").unwrap_or_default();
    std::env::split_paths(&list).filter(|folder| !folder.as_os_str().is_empty()).collect()
}
