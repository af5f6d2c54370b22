//! Where compiled kernels and choices are kept. The store knows keys and bytes, not what they mean.
//!
//! An entry is trusted or it is a miss: [`Lookup`] says which, and why. [`disk`] is the folder of a user, kept tidy by
//! [`sweep`], [`memory`] serves where no folder can be had, [`layers`] puts stores over one another at [`places`], among them [`packs`], [`entry`] is the format
//! of one file. [`flight`] lets one process make what many want. [`files`] is the seam where tests put faults in.

pub mod claim;
pub mod disk;
pub mod entry;
pub mod files;
pub mod flight;
pub mod layers;
pub mod memory;
pub mod packs;
pub mod places;
pub mod sweep;
mod trust;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::service::key::Key;

use claim::Claim;
pub use entry::{Entry, Head, Kind};
pub use files::{Files, System};

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
    /// The file is there but cannot be trusted or read: it is not used.
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

impl Miss {
    /// What to do about a file that is there and is not used.
    pub fn cure(&self) -> Option<String> {
        let Self::Unusable { path, .. } = self else { return None };
        // <root>/v1/choice/3f/3f09….rope
        let root = path.ancestors().nth(4)?;
        let denied = std::fs::File::open(path).is_err_and(|e| e.kind() == std::io::ErrorKind::PermissionDenied);
        Some(if denied {
            trust::to_read(root)
        } else if trust::is_open_to_others(root, path) {
            format!("chmod -R go-w '{}'", root.display())
        } else {
            "ropejit inspect verify lists what is damaged, ropejit inspect gc removes it".into()
        })
    }
}

impl fmt::Display for Miss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("not in the cache"),
            Self::Unusable { path, why } => write!(f, "{}: {why}", path.display()),
        }
    }
}

/// An entry, or what its head says, as a listing shows it.
#[derive(Debug)]
pub struct Listed<T = Entry> {
    /// Its file; empty for a store without files.
    pub path: PathBuf,
    /// What it says it is.
    pub kind: Kind,
    /// Size in bytes.
    pub bytes: u64,
    /// The entry, or what is wrong with it.
    pub entry: std::result::Result<T, String>,
}

impl From<Listed> for Listed<Head> {
    fn from(l: Listed) -> Self {
        Self { path: l.path, kind: l.kind, bytes: l.bytes, entry: l.entry.map(Head::from) }
    }
}

/// Where entries are kept.
pub trait Store: Send + Sync {
    /// Looks an entry up. Never fails: what cannot be read is a miss with a reason.
    fn get(&self, kind: Kind, key: Key) -> Lookup;

    /// Keeps an entry, replacing one of the same key. A reader sees the old entry or the new one, whole.
    fn put(&self, entry: &Entry) -> Result<()>;

    /// All entries of a kind, sound or not, in the order of their keys.
    fn list(&self, kind: Kind) -> Result<Vec<Listed>>;

    /// As [`list`](Self::list), but only what stands at the head of entries is read, and no digest is checked: a tenth of
    /// the time where there are many.
    fn heads(&self, kind: Kind) -> Result<Vec<Listed<Head>>> {
        Ok(self.list(kind)?.into_iter().map(Listed::from).collect())
    }

    /// Asks for the right to make an entry, so that several processes do not make the same.
    fn claim(&self, _: Kind, _: Key) -> Claim {
        Claim::Unavailable
    }

    /// Removes an entry; says whether there was one.
    fn remove(&self, kind: Kind, key: Key) -> Result<bool>;

    /// The file of an entry, there or not; empty for a store without files.
    fn path(&self, kind: Kind, key: Key) -> PathBuf;

    /// The folder, when there is one.
    fn root(&self) -> Option<&Path>;

    /// The same store for a child of `fork()`: one that takes no lock which a thread of the parent may have held. `None`
    /// where there is none; the child then keeps what it makes in memory.
    fn in_fork(&self) -> Option<Arc<dyn Store>> {
        None
    }

    /// Where entries are looked for, for people: every folder, and of one that is not used, why.
    fn searched(&self) -> String {
        self.root().map_or_else(|| "memory".into(), |root| root.display().to_string())
    }

    /// The folders that were named and are not used, and why.
    fn unused(&self) -> Vec<Error> {
        Vec::new()
    }
}
