//! Folders that packs are installed in. A pack is a cache that came from elsewhere as one signed file; installed, it is a folder
//! that is only read, named by the SHA-256 of that file.
//!
//! ```text
//! <folder>/                    0700: the user's data folder, or one that ROPEJIT_CACHE_PATH names
//!   pack-3f09…/v1/artifact/…   a layer, whole from the moment that it has this name
//!   .installing-x7Gh2k/        one that a process is writing, whose lock it holds
//!   .lock-…                    a process is getting this
//! ```

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::claim::{Claim, claim_file};
use super::trust::Trust;
use super::{Files, System};
use crate::error::{Error, ErrorKind, Result};
use crate::service::key::Key;

const INSTALLED: &str = "pack-";
/// What folders that are being written are called.
pub const INSTALLING: &str = ".installing-";
/// One that is younger may have been made and not locked yet.
const YOUNG: Duration = Duration::from_secs(60);
/// Without locks, one is taken for a leftover after this time.
const LEFTOVER_AFTER: Duration = Duration::from_secs(60 * 60);

/// The folder that packs are installed in unless the caller names another: `ropejit/packs` in the user's data folder. `None`
/// where that is not known.
pub fn default_folder() -> Option<PathBuf> {
    directories::ProjectDirs::from("", "", "ropejit").map(|d| d.data_dir().join("packs"))
}

/// The name of an installed pack's folder; `digest` is the SHA-256 of the pack's file.
pub fn installed_name(digest: Key) -> String {
    format!("{INSTALLED}{digest}")
}

/// The packs that are installed in a folder, the newest first: of two choices for one call, the later pack's serves.
pub fn installed_in(folder: &Path) -> Vec<PathBuf> {
    let mut all: Vec<(SystemTime, PathBuf)> = children(folder, INSTALLED)
        .filter(|path| name_of(path).strip_prefix(INSTALLED).is_some_and(|digest| digest.parse::<Key>().is_ok()))
        .filter_map(|path| {
            let meta = std::fs::symlink_metadata(&path).ok().filter(std::fs::Metadata::is_dir)?;
            Some((meta.modified().unwrap_or(SystemTime::UNIX_EPOCH), path))
        })
        .collect();
    all.sort_by(|a, b| (b.0, &a.1).cmp(&(a.0, &b.1)));
    all.into_iter().map(|(_, path)| path).collect()
}

/// Makes a folder ready for packs: it is made if it is not there, and in one that is for several users (an emptyDir of Kubernetes) the
/// user's own is taken. Removes what killed processes left there.
///
/// # Errors
/// [`ErrorKind::UntrustedCache`] when others can write to it; [`ErrorKind::Io`] when it cannot be made.
pub fn prepare(folder: &Path, trust_group: Option<u32>) -> Result<PathBuf> {
    let hint = "name a folder of your own: --into DIR";
    let failed = |e| Error::io(folder, "the folder for packs cannot be made", e).hint(hint);
    let trust = Trust::own(trust_group);
    let folder = trust.folder_in(&std::path::absolute(folder).map_err(failed)?);
    if !folder.exists() {
        make(&folder).map_err(failed)?;
    }
    trust.check(&folder).map_err(|e| match e.kind() {
        ErrorKind::UntrustedCache => {
            e.hint(format!("{hint}, or make this one so: chmod -R go-w '{}'", folder.display()))
        }
        _ => e.hint(hint),
    })?;
    for left in children(&folder, INSTALLING) {
        sweep(&left);
    }
    Ok(folder)
}

/// Asks for the right to get what is called `name` (letters, digits, `-`) into a folder, so that of many processes one does the
/// work. Where there are no locks the work is done twice, and nothing breaks.
pub fn claim(folder: &Path, name: &str) -> Claim {
    let files: Arc<dyn Files> = Arc::new(System);
    claim_file(&files, &folder.join(format!(".lock-{name}")), true)
}

/// Makes a folder and those above it that are missing, 0700 whatever the umask is.
fn make(folder: &Path) -> std::io::Result<()> {
    if let Some(above) = folder.parent().filter(|above| !above.exists()) {
        make(above)?;
    }
    match crate::system::private::new_folder(folder) {
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(()), // another process was faster
        done => done,
    }
}

/// Removes a folder that a process was writing when it died.
fn sweep(left: &Path) {
    let Ok(modified) = std::fs::symlink_metadata(left).and_then(|m| m.modified()) else { return };
    let away = SystemTime::now().duration_since(modified).unwrap_or_else(|ahead| ahead.duration());
    let Ok(held) = File::open(left) else { return };
    let dead = match held.try_lock() {
        Ok(()) => away >= YOUNG,
        Err(TryLockError::WouldBlock) => false,
        Err(TryLockError::Error(_)) => away >= LEFTOVER_AFTER,
    };
    if dead && let Err(e) = std::fs::remove_dir_all(left) {
        tracing::debug!("{}: cannot be removed: {e}", left.display());
    }
}

fn children(folder: &Path, prefix: &'static str) -> impl Iterator<Item = PathBuf> {
    let all = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    all.filter(move |path| name_of(path).starts_with(prefix))
}

fn name_of(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}
