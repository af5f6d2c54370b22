//! The cache folder.
//!
//! ```text
//! <root>/                      0700, the user's own
//!   CACHEDIR.TAG               backup programs skip the folder
//!   v1/                        the format's version: another version's entries are not seen
//!     artifact/3f/3f09….rope   compiled kernels: PTX and cubin
//!     choice/a2/a21c….rope     which variant was chosen, with all samples
//! ```
//!
//! Loading a kernel is running code, so a folder that others can write to is refused. An entry is written to a temporary
//! file beside its place and renamed: readers see all of it or nothing.

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use super::{Entry, Kind, Listed, Lookup, Miss, Store};
use crate::error::{Error, ErrorKind, Result};
use crate::jit::Key;
use crate::jit::key::FORMAT_VERSION;

/// What a file must not exceed to be read at all; the largest kernels are some tens of kilobytes.
const MAX_ENTRY: u64 = 64 << 20;
const TAG: &str = "Signature: 8a477f597d28d172789f06886806bc55\n# This folder is a cache of compiled kernels made by ropejit. \
                   It can be deleted at any time.\n";

/// A cache folder.
pub struct Disk {
    root: PathBuf,
}

impl Disk {
    /// Opens the folder and makes it if it is not there.
    ///
    /// # Errors
    /// [`ErrorKind::UntrustedCache`] when it is not the user's own or others can write to it;
    /// [`ErrorKind::Io`] when it cannot be made.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self> {
        let root = std::path::absolute(root.into())
            .map_err(|e| Error::io(Path::new("."), "the cache folder's path cannot be made absolute", e))?;
        let unusable = |e| {
            Error::io(&root, "the cache folder cannot be made", e)
                .hint("set ROPEJIT_CACHE_DIR to a folder that you can write to")
        };
        if !root.exists() {
            make_private(&root).map_err(unusable)?;
        }
        trusted(&root)?;
        let tag = root.join("CACHEDIR.TAG");
        if !tag.exists()
            && let Err(e) = fs_err::write(&tag, TAG)
        {
            tracing::debug!("no CACHEDIR.TAG: {e}");
        }
        let version = root.join(format!("v{FORMAT_VERSION}"));
        if version.exists() {
            trusted(&version)?;
        }
        Ok(Self { root })
    }

    fn folder(&self, kind: Kind) -> PathBuf {
        self.root.join(format!("v{FORMAT_VERSION}")).join(kind.name())
    }
}

impl Store for Disk {
    fn get(&self, kind: Kind, key: Key) -> Lookup {
        let path = self.path(kind, key);
        match read(&path) {
            Ok(None) => Lookup::Miss(Miss::Absent),
            Ok(Some(bytes)) => match Entry::decode(&bytes) {
                Ok(entry) if entry.kind == kind && entry.key == key => Lookup::Hit(entry),
                Ok(_) => Lookup::Miss(Miss::Unusable { path, why: "it holds another entry than its name says".into() }),
                Err(why) => Lookup::Miss(Miss::Unusable { path, why }),
            },
            Err(why) => Lookup::Miss(Miss::Unusable { path, why }),
        }
    }

    fn put(&self, entry: &Entry) -> Result<()> {
        let path = self.path(entry.kind, entry.key);
        let failed = |e| Error::io(&path, "the entry cannot be kept", e);
        let folder = path.parent().unwrap_or(&self.root);
        make_private(folder).map_err(failed)?;
        let mut file = tempfile::Builder::new().prefix(".tmp-").tempfile_in(folder).map_err(failed)?;
        file.write_all(&entry.encode()).map_err(failed)?;
        file.as_file().sync_data().map_err(failed)?;
        // An empty folder in the entry's place is no entry.
        let _ = std::fs::remove_dir(&path);
        file.persist(&path).map_err(|e| failed(e.error))?;
        Ok(())
    }

    fn list(&self, kind: Kind) -> Result<Vec<Listed>> {
        let mut all = Vec::new();
        for folder in children(&self.folder(kind))? {
            for path in children(&folder)? {
                if path.extension().is_none_or(|e| e != "rope") {
                    continue;
                }
                let bytes = fs_err::symlink_metadata(&path).map_or(0, |m| m.len());
                let entry = match read(&path) {
                    Ok(Some(bytes)) => Entry::decode(&bytes),
                    Ok(None) => continue, // removed meanwhile
                    Err(why) => Err(why),
                };
                let entry = entry.and_then(|e| {
                    let named = e.kind == kind && path.file_stem().is_some_and(|s| s == e.key.to_string().as_str());
                    if named { Ok(e) } else { Err("it holds another entry than its name says".into()) }
                });
                all.push(Listed { path, kind, bytes, entry });
            }
        }
        Ok(all)
    }

    fn remove(&self, kind: Kind, key: Key) -> Result<bool> {
        let path = self.path(kind, key);
        match std::fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(Error::io(&path, "the entry cannot be removed", e)),
        }
    }

    fn path(&self, kind: Kind, key: Key) -> PathBuf {
        let name = key.to_string();
        self.folder(kind).join(&name[..2]).join(format!("{name}.rope"))
    }

    fn root(&self) -> Option<&Path> {
        Some(&self.root)
    }
}

/// The files and folders in a folder, sorted; none if it is not there.
fn children(folder: &Path) -> Result<Vec<PathBuf>> {
    let failed = |e| Error::io(folder, "the cache folder cannot be read", e);
    let mut all = match std::fs::read_dir(folder) {
        Ok(entries) => entries.map(|e| e.map(|e| e.path())).collect::<std::io::Result<Vec<_>>>().map_err(failed)?,
        Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => Vec::new(),
        Err(e) => return Err(failed(e)),
    };
    all.sort();
    Ok(all)
}

/// The bytes of a file that is the user's own; `None` if there is none.
fn read(path: &Path) -> Result<Option<Vec<u8>>, String> {
    let mut options = std::fs::OpenOptions::new();
    options.read(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt as _;
        // A link out of the folder is not followed, and a pipe does not block.
        options.custom_flags((rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK).bits() as i32);
    }
    let file = match options.open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(format!("cannot be opened: {e}")),
    };
    let meta = file.metadata().map_err(|e| format!("cannot be read: {e}"))?;
    if !meta.is_file() {
        return Err("not a file".into());
    }
    if let Some(problem) = foreign(&meta) {
        return Err(problem);
    }
    if meta.len() > MAX_ENTRY {
        return Err(format!("too large for an entry: {} bytes", meta.len()));
    }
    let mut bytes = Vec::with_capacity(meta.len() as usize);
    file.take(MAX_ENTRY).read_to_end(&mut bytes).map_err(|e| format!("cannot be read: {e}"))?;
    Ok(Some(bytes))
}

/// What is wrong with the owner or the mode of a file or folder.
#[cfg(unix)]
fn foreign(meta: &std::fs::Metadata) -> Option<String> {
    use std::os::unix::fs::MetadataExt as _;
    let me = rustix::process::geteuid().as_raw();
    if meta.uid() != me {
        return Some(format!("belongs to another user ({}, not {me})", meta.uid()));
    }
    (meta.mode() & 0o022 != 0).then(|| format!("others can write to it (mode {:o})", meta.mode() & 0o7777))
}

#[cfg(not(unix))]
fn foreign(_: &std::fs::Metadata) -> Option<String> {
    None
}

/// Refuses a folder in which others could put code.
fn trusted(folder: &Path) -> Result<()> {
    let meta = fs_err::metadata(folder).map_err(|e| Error::io(folder, "the cache folder cannot be read", e))?;
    let refuse = |why: &str, hint: String| {
        Err(Error::new(ErrorKind::UntrustedCache, format!("the cache folder is refused: {why}"))
            .subject_is(folder.display().to_string())
            .hint(hint))
    };
    if !meta.is_dir() {
        let hint = format!("remove '{}', or set ROPEJIT_CACHE_DIR to a folder", folder.display());
        return refuse("it is not a folder", hint);
    }
    match foreign(&meta) {
        Some(why) if why.starts_with("belongs") => refuse(
            &why,
            format!(
                "chown -R \"$(id -u)\" '{}'   (or set ROPEJIT_CACHE_DIR to a folder of your own)",
                folder.display()
            ),
        ),
        Some(why) => refuse(&why, format!("chmod -R go-w '{}'", folder.display())),
        None => Ok(()),
    }
}

/// Makes a folder and those above it that are missing, for the user alone.
fn make_private(folder: &Path) -> std::io::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;
    use crate::jit::KeyFields;

    fn entry(name: &str) -> Entry {
        let key = KeyFields(vec![("name".into(), name.into())]).key();
        Entry { kind: Kind::Artifact, key, meta: b"{}".to_vec(), ptx: vec![1], image: vec![2; 100] }
    }

    fn open() -> (tempfile::TempDir, Disk) {
        let folder = tempfile::tempdir().expect("a folder");
        let disk = Disk::open(folder.path().join("cache")).expect("opens");
        (folder, disk)
    }

    fn why(disk: &Disk, e: &Entry) -> String {
        match disk.get(e.kind, e.key) {
            Lookup::Hit(_) => panic!("a hit"),
            Lookup::Miss(miss) => miss.to_string(),
        }
    }

    #[test]
    fn keeps_lists_replaces_and_removes() {
        let (_folder, disk) = open();
        let (a, b) = (entry("a"), entry("b"));
        assert_eq!(why(&disk, &a), "not in the cache");
        disk.put(&a).expect("kept");
        disk.put(&a).expect("kept again");
        disk.put(&b).expect("kept");
        assert!(matches!(disk.get(a.kind, a.key), Lookup::Hit(e) if e == a));
        assert_eq!(disk.list(Kind::Artifact).expect("listed").len(), 2);
        assert_eq!(disk.list(Kind::Choice).expect("listed").len(), 0);
        assert!(disk.remove(a.kind, a.key).expect("removed"));
        assert!(!disk.remove(a.kind, a.key).expect("nothing to remove"));
        let mode = |p: &Path| fs_err::metadata(p).expect("there").permissions().mode() & 0o777;
        let file = disk.path(b.kind, b.key);
        assert_eq!((mode(disk.root().expect("has one")), mode(&file)), (0o700, 0o600));
        assert_eq!(mode(file.parent().expect("has one")), 0o700);
    }

    #[test]
    fn a_renamed_foreign_linked_or_odd_file_is_a_miss_that_names_it() {
        let (folder, disk) = open();
        let (a, b) = (entry("a"), entry("b"));
        disk.put(&a).expect("kept");
        disk.put(&b).expect("kept");
        let (at_a, at_b) = (disk.path(a.kind, a.key), disk.path(b.kind, b.key));
        fs_err::copy(&at_b, &at_a).expect("copied");
        assert!(why(&disk, &a).contains("another entry"), "{}", why(&disk, &a));
        assert!(why(&disk, &a).contains(&at_a.display().to_string()));
        fs_err::set_permissions(&at_b, std::fs::Permissions::from_mode(0o666)).expect("set");
        assert!(why(&disk, &b).contains("others can write"));
        let outside = folder.path().join("outside");
        fs_err::write(&outside, a.encode()).expect("written");
        fs_err::remove_file(&at_a).expect("removed");
        symlink(&outside, &at_a).expect("linked");
        assert!(why(&disk, &a).contains("cannot be opened"), "{}", why(&disk, &a));
        fs_err::remove_file(&at_a).expect("removed");
        fs_err::create_dir(&at_a).expect("made");
        assert!(why(&disk, &a).contains("not a file"));
    }

    #[test]
    fn a_folder_open_to_others_is_refused_with_the_command_that_repairs_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let root = folder.path().join("cache");
        fs_err::create_dir(&root).expect("made");
        fs_err::set_permissions(&root, std::fs::Permissions::from_mode(0o777)).expect("set");
        let e = Disk::open(&root).err().expect("refused");
        assert_eq!(e.kind(), ErrorKind::UntrustedCache);
        assert!(e.advice().expect("has a hint").contains("chmod"), "{e}");
        fs_err::set_permissions(&root, std::fs::Permissions::from_mode(0o700)).expect("set");
        assert!(Disk::open(&root).is_ok());
    }

    #[test]
    fn readers_beside_writers_see_whole_entries() {
        let (_folder, disk) = open();
        let a = entry("a");
        disk.put(&a).expect("kept");
        std::thread::scope(|s| {
            for _ in 0..4 {
                s.spawn(|| (0..50).for_each(|_| disk.put(&a).expect("kept")));
                s.spawn(|| (0..200).for_each(|_| assert!(matches!(disk.get(a.kind, a.key), Lookup::Hit(_)))));
            }
        });
        let folder = disk.path(a.kind, a.key);
        let left = children(folder.parent().expect("has one")).expect("read");
        assert_eq!(left.len(), 1, "temporary files are left: {left:?}");
    }
}
