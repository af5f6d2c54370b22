//! The cache folder.
//!
//! ```text
//! <root>/                      0700, the user's own
//!   CACHEDIR.TAG               backup programs skip the folder
//!   v1/                        the format's version: another version's entries are not seen
//!     artifact/3f/3f09….rope   compiled kernels: PTX and cubin
//!     choice/a2/a21c….rope     which variant was chosen, with all samples
//!     lock/artifact-3f09…      a process makes this entry (`flight`)
//!     tmp/                     entries that are being written (`sweep`)
//! ```
//!
//! Loading a kernel is running code, so a folder that others can write to is refused. An entry is written to a temporary
//! file and renamed: readers see all of it or nothing.
//!
//! A file's time is when it was last used, to a day. A process holds the shared lock of the entries that it uses, so that
//! no other evicts them.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use rayon::prelude::*;

use super::claim::{Claim, claim_file};
use super::trust::{Trust, to_read};
use super::{Entry, Files, Head, Kind, Listed, Lookup, Miss, Store, System};
use crate::error::{Error, ErrorKind, Result};
use crate::service::key::FORMAT_VERSION;
use crate::service::key::Key;
use crate::system::fork;

/// What a file must not exceed to be read at all; the largest kernels are some tens of kilobytes.
pub(crate) const MAX_ENTRY: u64 = 64 << 20;
/// Bytes that a folder may hold unless the caller says otherwise: some fifty thousand kernels.
const MAX_BYTES: u64 = 1 << 30;
/// An entry's time is set when it is older than this.
const TOUCH_AFTER: Duration = Duration::from_secs(24 * 60 * 60);
/// Entries whose locks a process holds at most; each takes a file handle. What is used beyond that is only recent.
const MAX_HELD: usize = 256;
const TAG: &str = "Signature: 8a477f597d28d172789f06886806bc55\n# This folder is a cache of compiled kernels made by ropejit. \
                   It can be deleted at any time.\n";

/// A cache folder.
pub struct Disk {
    root: PathBuf,
    files: Arc<dyn Files>,
    trust: Trust,
    /// It was not there when it was opened, and was not made then: it is judged once it is there.
    is_unmade: bool,
    pub(super) max_bytes: u64,
    held: Mutex<HashMap<(Kind, Key), File>>,
    /// Bytes written, and how many when the folder's size is looked at again.
    pub(super) written: AtomicU64,
    pub(super) measure_at: AtomicU64,
}

impl Disk {
    /// Opens the folder and makes it if it is not there. In one that is for several users (`/tmp`, an emptyDir of Kubernetes)
    /// it is the user's own folder `uid-<uid>` that is opened.
    ///
    /// # Errors
    /// [`ErrorKind::UntrustedCache`] when it is not the user's own or others can write to it;
    /// [`ErrorKind::Io`] when it cannot be made.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self> {
        Self::open_trusting(root, None)
    }

    /// As [`open`](Self::open), where a group may write to the folder, and to what belongs to it there.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_trusting(root: impl Into<PathBuf>, group: Option<u32>) -> Result<Self> {
        let disk = Self::of_user(root.into(), group)?;
        disk.make()?;
        Ok(disk)
    }

    /// As [`open_trusting`](Self::open_trusting), but leaves no trace: a folder that is not there is made when the first entry
    /// is kept.
    ///
    /// # Errors
    /// [`ErrorKind::UntrustedCache`] as there; [`ErrorKind::Io`] when it is not told whether it is there.
    pub fn open_unmade(root: impl Into<PathBuf>, group: Option<u32>) -> Result<Self> {
        let mut disk = Self::of_user(root.into(), group)?;
        let hidden = |e| {
            Error::io(&disk.root, "the cache folder cannot be looked for", e)
                .hint("set ROPEJIT_CACHE_DIR to a folder that you can write to")
        };
        disk.is_unmade = !disk.root.try_exists().map_err(hidden)?;
        if !disk.is_unmade {
            disk.check()?;
        }
        Ok(disk)
    }

    /// The user's folder of this name, or the user's own in it; not opened yet.
    fn of_user(root: PathBuf, group: Option<u32>) -> Result<Self> {
        let mut disk = Self::at(root, Trust::own(group))?;
        disk.root = disk.trust.folder_in(&disk.root);
        Ok(disk)
    }

    /// Makes the folder if it is not there, refuses one that cannot be trusted, and marks it as a cache.
    fn make(&self) -> Result<()> {
        let root = &self.root;
        let unusable = |e| {
            Error::io(root, "the cache folder cannot be made", e)
                .hint("set ROPEJIT_CACHE_DIR to a folder that you can write to")
        };
        if !root.exists() {
            self.files.make_folder(root).map_err(unusable)?;
        }
        self.check()?;
        let tag = root.join("CACHEDIR.TAG");
        if !tag.exists()
            && let Err(e) = self.files.create(&tag).and_then(|file| self.files.write(&file, TAG.as_bytes()))
        {
            tracing::debug!("no CACHEDIR.TAG: {e}");
        }
        Ok(())
    }

    /// Opens a folder that is only read: it may belong to root as well.
    ///
    /// # Errors
    /// [`ErrorKind::UntrustedCache`] when it is another user's or others can write to it; [`ErrorKind::Io`] when it is not
    /// there.
    pub fn read_only(root: impl Into<PathBuf>) -> Result<Self> {
        Self::read_only_trusting(root, None)
    }

    /// As [`read_only`](Self::read_only), where a group may write to the folder, and to what belongs to it there.
    ///
    /// # Errors
    /// As [`read_only`](Self::read_only).
    pub fn read_only_trusting(root: impl Into<PathBuf>, group: Option<u32>) -> Result<Self> {
        let disk = Self::at(root.into(), Trust::read_only(group))?;
        disk.check()?;
        Ok(disk)
    }

    /// Bytes that it may hold; the least recently used entries go first.
    #[must_use]
    pub fn max_bytes(mut self, bytes: u64) -> Self {
        self.max_bytes = bytes;
        self
    }

    /// Operations on files other than the system's.
    #[must_use]
    pub fn files(mut self, files: Arc<dyn Files>) -> Self {
        self.files = files;
        self
    }

    fn at(root: PathBuf, trust: Trust) -> Result<Self> {
        let root = std::path::absolute(root)
            .map_err(|e| Error::io(Path::new("."), "the cache folder's path cannot be made absolute", e))?;
        Ok(Self {
            root,
            files: Arc::new(System),
            trust,
            is_unmade: false,
            max_bytes: MAX_BYTES,
            held: Mutex::default(),
            written: AtomicU64::new(0),
            measure_at: AtomicU64::new(0),
        })
    }

    fn check(&self) -> Result<()> {
        self.trust.check(&self.root)?;
        let version = self.version();
        if version.exists() { self.trust.check(&version) } else { Ok(()) }
    }

    /// What keeps a file of this folder from being used, in the folders that it lies in.
    fn refused(&self, file: &Path) -> Option<String> {
        if self.is_unmade
            && self.root.exists()
            && let Err(e) = self.check()
        {
            return Some(e.without_hint());
        }
        self.trust.objects_between(&self.root, file)
    }

    pub(super) fn system(&self) -> &Arc<dyn Files> {
        &self.files
    }

    pub(super) fn version(&self) -> PathBuf {
        self.root.join(format!("v{FORMAT_VERSION}"))
    }

    pub(super) fn folder(&self, kind: Kind) -> PathBuf {
        self.version().join(kind.name())
    }

    /// Whether entries can be written: makes a file where they are written, which is gone again.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] when a folder is no folder, or not one to write to.
    pub fn can_write(&self) -> Result<()> {
        let refused = |why: String| {
            Error::new(ErrorKind::Io, format!("the cache folder cannot be written to: {why}"))
                .subject_is(self.root.display().to_string())
                .hint("set ROPEJIT_CACHE_DIR to a folder that you can write to")
        };
        for folder in [self.version().join("tmp"), self.folder(Kind::Choice), self.folder(Kind::Artifact)] {
            if let Some(problem) = self.trust.objects_between(&self.root, &folder.join("any")) {
                return Err(refused(problem));
            }
            if folder.exists() {
                tempfile::tempfile_in(&folder).map_err(|e| refused(format!("{}: {e}", folder.display())))?;
            }
        }
        Ok(())
    }

    /// The files and folders in a folder of this one's, sorted; none if a link leads out of it.
    pub(super) fn own_children(&self, folder: &Path) -> Result<Vec<PathBuf>> {
        match self.refused(&folder.join("any")) {
            Some(problem) => {
                tracing::warn!("{problem}; it is passed over");
                Ok(Vec::new())
            }
            None => children(folder).map_err(|e| e.hint(self.trust.readable(&self.root))),
        }
    }

    /// The lock file of an entry that is being made.
    fn lock_path(&self, kind: Kind, key: Key) -> PathBuf {
        self.version().join("lock").join(format!("{}-{key}", kind.name()))
    }

    /// Opens an entry's file, in a folder that is known to be this one's; `None` if there is none.
    fn open_entry(&self, path: &Path) -> Result<Option<(File, std::fs::Metadata)>, String> {
        let file = match self.files.open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(format!("cannot be opened: {e}")),
        };
        let meta = file.metadata().map_err(|e| format!("cannot be read: {e}"))?;
        if !meta.is_file() {
            return Err("not a file".into());
        }
        if let Some(problem) = self.trust.objects(&meta) {
            return Err(problem);
        }
        if meta.len() > MAX_ENTRY {
            return Err(format!("too large for an entry: {} bytes", meta.len()));
        }
        Ok(Some((file, meta)))
    }

    /// Reads an entry whose file says which it is; `None` if there is none.
    fn read(&self, path: &Path) -> Result<Option<(Entry, File, std::fs::Metadata)>, String> {
        let Some((file, meta)) = self.open_entry(path)? else { return Ok(None) };
        let mut bytes = Vec::with_capacity(meta.len() as usize);
        (&file).take(MAX_ENTRY).read_to_end(&mut bytes).map_err(|e| format!("cannot be read: {e}"))?;
        let entry = Entry::read(&bytes)?;
        named(path, entry.kind, entry.key)?;
        Ok(Some((entry, file, meta)))
    }

    /// What is wrong with an entry's file, if anything.
    pub(super) fn damage(&self, path: &Path) -> Option<String> {
        self.read(path).err()
    }

    fn read_head(&self, path: &Path) -> Result<Option<(Head, u64)>, String> {
        let Some((file, meta)) = self.open_entry(path)? else { return Ok(None) };
        let head = Head::read(&file, meta.len())?;
        named(path, head.kind, head.key)?;
        Ok(Some((head, meta.len())))
    }

    /// Notes that an entry is used: its time, and a lock that keeps it from eviction.
    fn used(&self, kind: Kind, key: Key, file: File, meta: Option<&std::fs::Metadata>) {
        if self.trust.read_only {
            return;
        }
        // A time in the future counts as now: a clock that jumped ahead has set it.
        let old = |m: &std::fs::Metadata| {
            m.modified().is_ok_and(|t| SystemTime::now().duration_since(t).is_ok_and(|age| age >= TOUCH_AFTER))
        };
        if meta.is_some_and(old)
            && let Err(e) = file.set_modified(SystemTime::now())
        {
            tracing::debug!("an entry's time cannot be set: {e}");
        }
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if (held.len() < MAX_HELD || held.contains_key(&(kind, key))) && self.files.lock(&file, true).is_ok() {
            // Closing is not enough, as for a lease (`claim`).
            let _ = held.insert((kind, key), file).map(|before| before.unlock());
        }
    }

    /// Makes a folder of this one's, unless a link on the way leads out of it.
    fn make_own(&self, folder: &Path) -> std::io::Result<()> {
        if self.is_unmade {
            self.make().map_err(|e| std::io::Error::other(e.without_hint()))?;
        }
        let refused = || self.trust.objects_between(&self.root, &folder.join("any"));
        if let Some(problem) = refused() {
            return Err(std::io::Error::other(problem));
        }
        self.files.make_folder(folder)?;
        refused().map_or(Ok(()), |problem| Err(std::io::Error::other(problem)))
    }

    /// Writes an entry to a temporary file and renames it. The writer's lock says that the file is no leftover.
    fn publish(&self, entry: &Entry, path: &Path) -> std::io::Result<()> {
        let temporary = self.version().join("tmp");
        let bytes = entry.encode();
        for folder in path.parent().into_iter().chain([temporary.as_path()]) {
            self.make_own(folder)?;
        }
        let made = tempfile::Builder::new().prefix("").make_in(&temporary, |path| self.files.create(path))?;
        let file = made.as_file();
        let _ = self.files.lock(file, false);
        self.files.write(file, &bytes)?;
        self.files.sync(file)?;
        // An empty folder in the entry's place is no entry.
        let _ = std::fs::remove_dir(path);
        self.files.rename(made.path(), path)?;
        let (file, gone) = made.into_parts();
        // Renamed: there is nothing to remove under its old name.
        let _ = gone.keep();
        self.used(entry.kind, entry.key, file, None);
        self.tidy(path, bytes.len() as u64);
        Ok(())
    }

    fn listed<T: Send>(
        &self,
        kind: Kind,
        read: impl Fn(&Path) -> Result<Option<(T, u64)>, String> + Sync,
    ) -> Result<Vec<Listed<T>>> {
        let shards = self.own_children(&self.folder(kind))?;
        let of_shard = |folder: &PathBuf| -> Result<Vec<Listed<T>>> {
            let files =
                self.own_children(folder)?.into_iter().filter(|path| path.extension().is_some_and(|e| e == "rope"));
            let listed = files.filter_map(|path| {
                // None: removed meanwhile.
                let (entry, bytes) = match read(&path).transpose()? {
                    Ok((entry, bytes)) => (Ok(entry), bytes),
                    Err(why) => (Err(why), std::fs::symlink_metadata(&path).map_or(0, |m| m.len())),
                };
                Some(Listed { path, kind, bytes, entry })
            });
            Ok(listed.collect())
        };
        let of_shards = || shards.par_iter().map(of_shard).collect::<Result<Vec<_>>>();
        Ok(fork::spread(of_shards)?.into_iter().flatten().collect())
    }
}

/// An entry's file is named after its key and lies in its kind's folder.
fn named(path: &Path, kind: Kind, key: Key) -> Result<(), String> {
    let name = path.file_stem().is_some_and(|s| s == key.to_string().as_str());
    let folder = path.ancestors().nth(2).and_then(Path::file_name).is_some_and(|n| n == kind.name());
    if name && folder { Ok(()) } else { Err("it holds another entry than its name says".into()) }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Closing is not enough, as for a lease (`claim`).
        for file in self.held.get_mut().unwrap_or_else(PoisonError::into_inner).values() {
            let _ = file.unlock();
        }
    }
}

impl Store for Disk {
    fn get(&self, kind: Kind, key: Key) -> Lookup {
        let path = self.path(kind, key);
        let read = self.refused(&path).map_or_else(|| self.read(&path), Err);
        match read {
            Ok(None) => Lookup::Miss(Miss::Absent),
            Ok(Some((entry, file, meta))) => {
                self.used(kind, key, file, Some(&meta));
                Lookup::Hit(entry)
            }
            Err(why) => Lookup::Miss(Miss::Unusable { path, why }),
        }
    }

    fn put(&self, entry: &Entry) -> Result<()> {
        let path = self.path(entry.kind, entry.key);
        if self.trust.read_only {
            return Err(
                Error::new(ErrorKind::Io, "this cache folder is only read").subject_is(self.root.display().to_string())
            );
        }
        let done = match self.publish(entry, &path) {
            // Swept by `inspect gc` between its making and its locking.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => self.publish(entry, &path),
            done => done,
        };
        done.map_err(|e| {
            let hint = match e.kind() {
                std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                    "make room, or set ROPEJIT_CACHE_MAX_BYTES to what the folder may hold"
                }
                _ => "set ROPEJIT_CACHE_DIR to a folder that you can write to",
            };
            Error::io(&path, "the entry cannot be kept", e).hint(hint)
        })
    }

    fn list(&self, kind: Kind) -> Result<Vec<Listed>> {
        self.listed(kind, |path| Ok(self.read(path)?.map(|(entry, _, meta)| (entry, meta.len()))))
    }

    fn heads(&self, kind: Kind) -> Result<Vec<Listed<Head>>> {
        self.listed(kind, |path| self.read_head(path))
    }

    fn remove(&self, kind: Kind, key: Key) -> Result<bool> {
        let path = self.path(kind, key);
        match self.files.remove(&path) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(Error::io(&path, "the entry cannot be removed", e)),
        }
    }

    fn claim(&self, kind: Kind, key: Key) -> Claim {
        let path = self.lock_path(kind, key);
        if self.trust.read_only || path.parent().is_some_and(|folder| self.make_own(folder).is_err()) {
            return Claim::Unavailable;
        }
        claim_file(self.system(), &path, true)
    }

    fn path(&self, kind: Kind, key: Key) -> PathBuf {
        let name = key.to_string();
        self.folder(kind).join(&name[..2]).join(format!("{name}.rope"))
    }

    fn root(&self) -> Option<&Path> {
        Some(&self.root)
    }

    fn searched(&self) -> String {
        let there = if self.root.exists() { "" } else { ", which is not there" };
        format!("{}{there}", self.root.display())
    }

    fn in_fork(&self) -> Option<Arc<dyn Store>> {
        Some(Arc::new(Self {
            root: self.root.clone(),
            files: Arc::clone(&self.files),
            trust: self.trust,
            is_unmade: self.is_unmade,
            max_bytes: self.max_bytes,
            held: Mutex::default(),
            written: AtomicU64::new(0),
            measure_at: AtomicU64::new(0),
        }))
    }
}

/// The files and folders in a folder, sorted; none if it is not there.
pub(super) fn children(folder: &Path) -> Result<Vec<PathBuf>> {
    let failed = |e| Error::io(folder, "the cache folder cannot be read", e).hint(to_read(folder));
    let mut all = match std::fs::read_dir(folder) {
        Ok(entries) => entries.map(|e| e.map(|e| e.path())).collect::<std::io::Result<Vec<_>>>().map_err(failed)?,
        Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => Vec::new(),
        Err(e) => return Err(failed(e)),
    };
    all.sort_by(|a, b| a.as_os_str().cmp(b.as_os_str())); // by bytes: components are slow to compare
    Ok(all)
}

#[cfg(test)]
#[path = "disk_tests.rs"]
mod tests;
