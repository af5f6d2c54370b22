//! Single flight across processes: one makes an entry, the others wait for it a while.
//!
//! The claim is the operating system's lock on a small file, so it dies with its owner. It only spares double work: where
//! there are no locks, or an owner is stopped and the patience of others ends, the work is done twice and nothing breaks.
//!
//! A lock file is removed by who holds its lock, never by others. Who has locked a file that was removed meanwhile holds
//! nothing: so after locking, the file must still be the one of that name.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::disk::Disk;
use super::{Files, Kind, Store};
use crate::service::key::Key;

/// What came of asking for the right to make an entry.
#[must_use]
pub enum Claim {
    /// No other process makes it; it is this one's turn until this is dropped.
    Mine(Turn),
    /// Another process makes it.
    Taken,
    /// Nobody can tell: there are no locks here.
    Unavailable,
}

/// The right to make an entry.
pub struct Turn {
    file: File,
    path: PathBuf,
    files: Arc<dyn Files>,
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Err(e) = self.files.remove(&self.path) {
            tracing::debug!("a lock file is left to be swept: {}: {e}", self.path.display());
        }
        // Closing is not enough: a child of this process may hold a copy until it has become another program.
        let _ = self.file.unlock();
    }
}

impl Disk {
    /// Claims a lock file; makes it if `make`.
    pub(super) fn claim_file(&self, path: &Path, make: bool) -> Claim {
        let files = self.system();
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
                    return Claim::Mine(Turn { file, path: path.to_owned(), files: Arc::clone(files) });
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

/// What a process has to do for an entry.
pub enum Flight {
    /// Nothing, another process has made it.
    Made,
    /// Make it; the turn, if there is one, ends when it is dropped.
    Make(Option<Turn>),
}

/// Asks once whether it is this process's turn to make an entry, or `made` says that it is there. `None`: another process
/// is making it, and has been for less than `patience` since `since`.
pub fn attempt(
    store: &dyn Store,
    (kind, key): (Kind, Key),
    since: Instant,
    patience: Duration,
    made: impl Fn() -> bool,
) -> Option<Flight> {
    let claim = store.claim(kind, key);
    // Others may have made it since the caller looked, or waited.
    if !matches!(claim, Claim::Unavailable) && made() {
        return Some(Flight::Made);
    }
    match claim {
        Claim::Mine(turn) => Some(Flight::Make(Some(turn))),
        Claim::Unavailable => Some(Flight::Make(None)),
        Claim::Taken if since.elapsed() >= patience => {
            tracing::warn!(
                "another process has been making {} {key} for {patience:?}; it is made here as well",
                kind.name()
            );
            Some(Flight::Make(None))
        }
        Claim::Taken => None,
    }
}

/// Waits until it is this process's turn to make an entry, `made` says that it is there, or `patience` ends; `None` as soon
/// as `stop` says so. Also says whether it had to wait.
pub fn fly(
    store: &dyn Store,
    wanted: (Kind, Key),
    patience: Duration,
    stop: impl Fn() -> bool,
    made: impl Fn() -> bool,
) -> (Option<Flight>, bool) {
    let (started, mut pause) = (Instant::now(), Duration::from_millis(1));
    let mut waited = false;
    loop {
        let flight = attempt(store, wanted, started, patience, &made);
        if flight.is_some() || stop() {
            return (flight, waited);
        }
        waited = true;
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(32));
    }
}
