//! Where compiled kernels and choices are kept. The store knows keys and bytes, not what they mean.
//!
//! An entry is trusted or it is a miss: [`Lookup`] says which, and why. [`disk`] is the folder of a user, [`memory`] serves
//! where no folder can be had, [`entry`] is the format of one file.

pub mod disk;
pub mod entry;
pub mod memory;

use std::fmt;
use std::path::{Path, PathBuf};

use crate::error::Result;
use crate::jit::Key;

pub use entry::{Entry, Kind};

/// The outcome of a look-up.
#[derive(Debug)]
#[must_use]
pub enum Lookup {
    /// The entry, with its digest checked.
    Hit(Entry),
    /// There is no usable entry.
    Miss(Miss),
}

/// Why there is no usable entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Miss {
    /// Nothing is kept under this key.
    Absent,
    /// The file is there but cannot be trusted or read: it is not used, and replaced when the entry is made again.
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

impl fmt::Display for Miss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("not in the cache"),
            Self::Unusable { path, why } => write!(f, "{}: {why}", path.display()),
        }
    }
}

/// An entry as a listing shows it.
#[derive(Debug)]
pub struct Listed {
    /// Its file; empty for a store without files.
    pub path: PathBuf,
    /// What it says it is.
    pub kind: Kind,
    /// Size in bytes.
    pub bytes: u64,
    /// The entry, or what is wrong with it.
    pub entry: std::result::Result<Entry, String>,
}

/// Where entries are kept.
pub trait Store: Send + Sync {
    /// Looks an entry up. Never fails: what cannot be read is a miss with a reason.
    fn get(&self, kind: Kind, key: Key) -> Lookup;

    /// Keeps an entry, replacing one of the same key. A reader sees the old entry or the new one, whole.
    fn put(&self, entry: &Entry) -> Result<()>;

    /// All entries of a kind, sound or not, in the order of their keys.
    fn list(&self, kind: Kind) -> Result<Vec<Listed>>;

    /// Removes an entry; says whether there was one.
    fn remove(&self, kind: Kind, key: Key) -> Result<bool>;

    /// The file of an entry, there or not; empty for a store without files.
    fn path(&self, kind: Kind, key: Key) -> PathBuf;

    /// The folder, when there is one.
    fn root(&self) -> Option<&Path>;
}

/// The cache folder that is used unless the caller names one: `ROPEJIT_CACHE_DIR`, else the user's cache folder. `None`
/// when neither is known.
pub fn default_root() -> Option<PathBuf> {
    match std::env::var_os("ROPEJIT_CACHE_DIR").filter(|v| !v.is_empty()) {
        Some(folder) => Some(folder.into()),
        None => directories::ProjectDirs::from("", "", "ropejit").map(|d| d.cache_dir().to_owned()),
    }
}
