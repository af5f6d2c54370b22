//! The right to make an entry.
//!
//! It is the operating system's lock on a small file, so it dies with its owner. It only spares double work: where
//! there are no locks, or an owner is stopped and the patience of others ends, the work is done twice and nothing breaks.
//!
//! A lock file is removed by who holds its lock, never by others. Who has locked a file that was removed meanwhile holds
//! nothing: so after locking, the file must still be the one of that name.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::files::Files;

/// What came of asking for the right to make an entry.
#[must_use]
pub enum Claim {
    /// No other process makes it; the right is this one's until this is dropped.
    Mine(Lease),
    /// Another process makes it.
    Taken,
    /// Nobody can tell: there are no locks here.
    Unavailable,
}

/// The right to make an entry.
pub struct Lease {
    file: File,
    path: PathBuf,
    files: Arc<dyn Files>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Err(e) = self.files.remove(&self.path) {
            tracing::debug!("a lock file is left to be swept: {}: {e}", self.path.display());
        }
        // Closing is not enough: a child of this process may hold a copy until it has become another program.
        let _ = self.file.unlock();
    }
}

/// Claims a lock file; makes it if `make`.
pub(super) fn claim_file(files: &Arc<dyn Files>, path: &Path, make: bool) -> Claim {
    // Each time round, another process has just let go of the lock.
    for _ in 0..16 {
        let file = match if make { files.lock_file(path) } else { files.open(path) } {
            Ok(file) => file,
            Err(e) => {
                tracing::debug!("no lock, work may be done twice: {}: {e}", path.display());
                return Claim::Unavailable;
            }
        };
        match files.lock(&file, false) {
            Ok(()) if is_at(&file, path) => {
                return Claim::Mine(Lease { file, path: path.to_owned(), files: Arc::clone(files) });
            }
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Claim::Taken,
            Err(TryLockError::Error(e)) => {
                if make {
                    let _ = files.remove(path); // nobody could ever sweep it
                }
                tracing::debug!("no lock, work may be done twice: {}: {e}", path.display());
                return Claim::Unavailable;
            }
        }
    }
    Claim::Taken
}

/// Whether an open file is the one of this name, or was removed or replaced.
#[cfg(unix)]
pub(super) fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    match (file.metadata(), std::fs::symlink_metadata(path)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

#[cfg(not(unix))]
pub(super) fn is_at(_: &File, path: &Path) -> bool {
    path.exists()
}
