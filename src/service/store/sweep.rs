//! Keeps a cache folder tidy and within its bounds: what dead processes left, what is damaged, what older versions wrote,
//! and what was not used for longest.
//!
//! Each writer sweeps a little after it has written: the temporary files of dead writers, and the least recently used
//! entries where the folder has grown too large. Keys are spread evenly, so one of the 256 parts of the folder tells about
//! how large it is; only when that looks too much is all of it measured. `inspect gc` does all there is to do.
//!
//! What a living process uses is locked and stays ([`disk`](super::disk)); where there are no locks, only its time tells.

use std::fs::TryLockError;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, SystemTime};

use rayon::prelude::*;
use serde::Serialize;

use super::claim::{Claim, claim_file, is_at};
use super::disk::{Disk, children};
use super::{Kind, Store};
use crate::error::{Error, Result};
use crate::service::key::FORMAT_VERSION;
use crate::system::fork;

/// A writer looks only at temporary files that are older: so many write at one time that it would often meet one that has
/// been made and is not locked yet.
const YOUNG: Duration = Duration::from_secs(60);
/// Without locks, a temporary file is taken for a leftover after this time: no write takes that long.
const LEFTOVER_AFTER: Duration = Duration::from_secs(60 * 60);
/// Parts of a kind's folder: the first two digits of the keys.
const PARTS: u64 = 256;

/// What was swept, and what is left.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Swept {
    /// Temporary files of dead writers.
    pub temporaries: u64,
    /// Lock files of dead processes.
    pub locks: u64,
    /// Folders of older format versions.
    pub versions: u64,
    /// Entries that could not be used.
    pub damaged: u64,
    /// Entries removed because others were used more recently.
    pub evicted: u64,
    /// Their bytes.
    pub evicted_bytes: u64,
    /// Entries that would have been removed if no living process used them.
    pub in_use: u64,
    /// What could not be removed, of all these.
    pub failed: u64,
    /// Entries left.
    pub entries: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Swept {
    fn cannot_remove(&mut self, path: &Path, e: &std::io::Error) {
        if e.kind() == std::io::ErrorKind::NotFound {
            return; // removed meanwhile
        }
        self.failed += 1;
        tracing::debug!("{}: cannot be removed: {e}", path.display());
    }
}

/// A number of bytes as people write it: `500000`, `512K`, `100M`, `2G`, in powers of 1024.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bytes(pub u64);

impl std::str::FromStr for Bytes {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        let (digits, scale) = match s.as_bytes().last() {
            Some(b'K') => (&s[..s.len() - 1], 1 << 10),
            Some(b'M') => (&s[..s.len() - 1], 1 << 20),
            Some(b'G') => (&s[..s.len() - 1], 1 << 30),
            _ => (s, 1),
        };
        let number = digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse::<u64>().ok()).flatten();
        number.and_then(|n| n.checked_mul(scale)).map(Self).ok_or_else(|| {
            Error::argument("bytes", format!("'{s}' is not a number of bytes"))
                .hint("use numbers such as 500000, 512K, 100M, 2G")
        })
    }
}

struct Found {
    path: PathBuf,
    bytes: u64,
    used: SystemTime,
}

impl Disk {
    /// Removes all that nobody needs, and the least recently used entries beyond the folder's bound.
    ///
    /// # Errors
    /// When the folder cannot be read. What cannot be removed stays.
    pub fn gc(&self) -> Result<Swept> {
        let mut swept = Swept { temporaries: self.sweep_temporaries(Duration::ZERO), ..Swept::default() };
        for path in self.own_children(&self.version().join("lock"))? {
            // Dropping a claim removes its file.
            swept.locks += u64::from(matches!(claim_file(self.system(), &path, false), Claim::Mine(_)));
        }
        let root = self.root().unwrap_or(Path::new(""));
        for path in children(root)? {
            if is_older_version(&path) {
                match std::fs::remove_dir_all(&path) {
                    Ok(()) => swept.versions += 1,
                    Err(e) => swept.cannot_remove(&path, &e),
                }
            }
        }
        for kind in Kind::ALL {
            for folder in self.own_children(&self.folder(kind))? {
                // Written by a version that kept its temporary files here.
                let old = |path: &PathBuf| path.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b".tmp-"));
                swept.temporaries +=
                    self.own_children(&folder)?.iter().filter(|p| old(p) && self.remove_leftover(p, YOUNG)).count()
                        as u64;
            }
        }
        let damaged = |found: &&Found| self.damage(&found.path).is_some();
        let entries = self.entries()?;
        let damaged: Vec<PathBuf> =
            fork::spread(|| entries.par_iter().filter(damaged).map(|f| f.path.clone()).collect());
        for path in damaged {
            let removed = self.system().remove(&path).or_else(|_| std::fs::remove_dir(&path));
            match removed {
                Ok(()) => swept.damaged += 1,
                Err(e) => swept.cannot_remove(&path, &e),
            }
        }
        self.evict(&mut swept, self.max_bytes)?;
        Ok(swept)
    }

    /// After an entry was written: sweeps what dead writers left, and looks at the folder's size now and then.
    pub(super) fn tidy(&self, path: &Path, bytes: u64) {
        self.sweep_temporaries(YOUNG);
        let written = self.written.fetch_add(bytes, Relaxed) + bytes;
        let Some(part) = path.parent().and_then(Path::file_name) else { return };
        if written < self.measure_at.load(Relaxed) {
            return;
        }
        let in_part = |kind: Kind| {
            let files = self.own_children(&self.folder(kind).join(part)).unwrap_or_default();
            found(files).map(|f| f.bytes).sum::<u64>()
        };
        if Kind::ALL.map(in_part).iter().sum::<u64>().saturating_mul(PARTS) <= self.max_bytes {
            return;
        }
        let mut swept = Swept::default();
        // To nine tenths: not every write shall have to make room.
        match self.evict(&mut swept, self.max_bytes - self.max_bytes / 10) {
            Ok(()) if swept.evicted > 0 => tracing::debug!("the cache folder was too large: {swept:?}"),
            Ok(()) => {}
            Err(e) => tracing::debug!("the cache folder's size is not known: {e}"),
        }
        let room = self.max_bytes.saturating_sub(swept.bytes).max(self.max_bytes / 16);
        self.measure_at.store(written.saturating_add(room), Relaxed);
    }

    /// Removes the least recently used entries until no more than `target` bytes are left, if there are more than the
    /// folder may hold.
    fn evict(&self, swept: &mut Swept, target: u64) -> Result<()> {
        let mut all = self.entries()?;
        swept.entries = all.len() as u64;
        swept.bytes = all.iter().map(|f| f.bytes).sum();
        if swept.bytes <= self.max_bytes {
            return Ok(());
        }
        // A time in the future counts as now; among equals the path decides.
        let now = SystemTime::now();
        all.sort_by_cached_key(|f| (f.used.min(now), f.path.clone()));
        for found in all {
            if swept.bytes <= target {
                break;
            }
            match self.remove_unused(&found.path) {
                Ok(true) => {
                    swept.evicted += 1;
                    swept.evicted_bytes += found.bytes;
                    swept.entries -= 1;
                    swept.bytes -= found.bytes;
                }
                Ok(false) => swept.in_use += 1,
                Err(e) => swept.cannot_remove(&found.path, &e),
            }
        }
        Ok(())
    }

    /// Removes an entry unless a process uses it; says whether it did.
    fn remove_unused(&self, path: &Path) -> std::io::Result<bool> {
        match self.system().open(path) {
            // Held until the file is gone, so that nobody begins to use it meanwhile.
            Ok(file) => match self.system().lock(&file, false) {
                Ok(()) if is_at(&file, path) => self.system().remove(path)?,
                // In use, or just replaced.
                Ok(()) | Err(TryLockError::WouldBlock) => return Ok(false),
                Err(TryLockError::Error(_)) => self.system().remove(path)?,
            },
            // A link goes; of a file that cannot be opened just now nothing is known.
            Err(_) if std::fs::symlink_metadata(path).is_ok_and(|m| m.is_symlink()) => self.system().remove(path)?,
            Err(e) => return Err(e),
        }
        Ok(true)
    }

    /// All entries' files.
    fn entries(&self) -> Result<Vec<Found>> {
        let mut all = Vec::new();
        for kind in Kind::ALL {
            for folder in self.own_children(&self.folder(kind))? {
                all.extend(found(self.own_children(&folder)?));
            }
        }
        Ok(all)
    }

    /// Removes the temporary files of dead writers that are not younger than this.
    fn sweep_temporaries(&self, young: Duration) -> u64 {
        let all = self.own_children(&self.version().join("tmp")).unwrap_or_default();
        all.iter().filter(|path| self.remove_leftover(path, young)).count() as u64
    }

    /// Removes a temporary file unless its writer lives or it is young; says whether it did.
    fn remove_leftover(&self, path: &Path, young: Duration) -> bool {
        // Either way from now: a clock that jumped ahead has made what lies in the future.
        let away = |modified| SystemTime::now().duration_since(modified).unwrap_or_else(|ahead| ahead.duration());
        let Ok(modified) = std::fs::symlink_metadata(path).and_then(|m| m.modified()) else { return false };
        if away(modified) < young {
            return false;
        }
        let Ok(file) = self.system().open(path) else { return false };
        let dead = match self.system().lock(&file, false) {
            // Renamed to its place meanwhile, or swept by another.
            Ok(()) => is_at(&file, path),
            Err(TryLockError::WouldBlock) => false,
            Err(TryLockError::Error(_)) => away(modified) >= LEFTOVER_AFTER,
        };
        dead && self.system().remove(path).is_ok()
    }
}

/// `v0` beside `v1`: its entries are seen by no program of this version. Those of newer versions are not ours to judge.
fn is_older_version(path: &Path) -> bool {
    let number = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_prefix('v'));
    let older = number.and_then(|n| n.parse::<u32>().ok()).is_some_and(|n| n < FORMAT_VERSION);
    older && std::fs::symlink_metadata(path).is_ok_and(|m| m.is_dir())
}

/// The entries among these files, with their sizes and times. What is no entry's name is left alone.
fn found(files: Vec<PathBuf>) -> impl Iterator<Item = Found> {
    files.into_iter().filter(|path| path.extension().is_some_and(|e| e == "rope")).filter_map(|path| {
        let meta = std::fs::symlink_metadata(&path).ok()?; // none: removed meanwhile
        Some(Found { bytes: meta.len(), used: meta.modified().unwrap_or(SystemTime::UNIX_EPOCH), path })
    })
}
