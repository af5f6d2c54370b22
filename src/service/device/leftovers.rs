//! What a process that was killed while it compiled for the host leaves in the system's folder for temporary files.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

/// What names of temporary folders and libraries begin with.
pub(super) const PREFIX: &str = "ropejit-host-";
/// What is in such a folder: the source and what it is compiled to.
pub(super) const SOURCE: &str = "kernel.cpp";
pub(super) const LIBRARY: &str = "kernel.so";
/// No compile takes that long.
const LEFT_AFTER: Duration = Duration::from_secs(60 * 60);

/// Removes those in the folder that is compiled in, the first time that a process compiles.
pub(super) fn sweep_once(folder: &Path) {
    static SWEPT: AtomicBool = AtomicBool::new(false);
    if SWEPT.swap(true, Relaxed) {
        return;
    }
    for path in leftovers(folder, SystemTime::now()) {
        match remove(&path) {
            Ok(()) => tracing::debug!("removed {}, left by a process that was killed", path.display()),
            Err(e) => tracing::debug!("{} cannot be removed: {e}", path.display()),
        }
    }
}

/// Removes a library, or a folder in which there is no more than a compile leaves.
fn remove(path: &Path) -> std::io::Result<()> {
    if !path.is_dir() {
        return std::fs::remove_file(path);
    }
    for name in [SOURCE, LIBRARY] {
        match std::fs::remove_file(path.join(name)) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    std::fs::remove_dir(path)
}

/// Folders that were compiled in and libraries to load that are old and the user's own.
fn leftovers(folder: &Path, now: SystemTime) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let left = |entry: std::fs::DirEntry| {
        let name = entry.file_name();
        name.to_str().filter(|name| name.starts_with(PREFIX))?;
        let meta = entry.metadata().ok()?; // of a link itself
        let ours = meta.is_dir() || (meta.is_file() && entry.path().extension().is_some_and(|e| e == "so"));
        let old = now.duration_since(meta.modified().ok()?).is_ok_and(|age| age >= LEFT_AFTER);
        (ours && old && is_mine(&meta)).then(|| entry.path())
    };
    entries.flatten().filter_map(left).collect()
}

#[cfg(unix)]
fn is_mine(meta: &std::fs::Metadata) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    meta.uid() == rustix::process::geteuid().as_raw()
}

#[cfg(not(unix))]
fn is_mine(_: &std::fs::Metadata) -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_folders_and_libraries_are_leftovers_and_nothing_else() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        for name in ["ropejit-host-a", "ropejit-host-full", "ropejit-cache", "other"] {
            fs_err::create_dir(at(name)).expect("made");
        }
        let files = [
            "ropejit-host-a/kernel.cpp",
            "ropejit-host-full/mine",
            "ropejit-host-b.so",
            "ropejit-0123-c.cu",
            "other.so",
        ];
        for name in files {
            fs_err::write(at(name), "text").expect("written");
        }
        #[cfg(unix)]
        fs_err::os::unix::fs::symlink(at("other"), at("ropejit-host-link")).expect("linked");
        let found = |now| {
            let mut found = leftovers(folder.path(), now);
            found.sort();
            found
        };
        let now = SystemTime::now();
        assert_eq!(found(now + LEFT_AFTER / 2), Vec::<PathBuf>::new());
        let old = found(now + 2 * LEFT_AFTER);
        assert_eq!(old, [at("ropejit-host-a"), at("ropejit-host-b.so"), at("ropejit-host-full")]);
        assert_eq!(leftovers(&at("nowhere"), now), Vec::<PathBuf>::new());
        // A folder with something else in it is somebody's.
        assert_eq!(old.iter().map(|path| remove(path).is_ok()).collect::<Vec<_>>(), [true, true, false]);
        assert!(!at("ropejit-host-a").exists() && !at("ropejit-host-b.so").exists());
        assert!(at("ropejit-host-full/mine").exists());
    }
}
