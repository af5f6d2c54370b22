//! Temporary files and folders for the user alone, whatever the umask is: others could put code into what is compiled there.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use tempfile::{NamedTempFile, TempDir};

use super::{environment, trust};
use crate::error::{Error, ErrorKind, Result};

/// A new folder of mode 0700.
pub fn folder_in(place: &Path, prefix: &str) -> io::Result<TempDir> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(prefix);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        let private = std::fs::Permissions::from_mode(0o700);
        let made = builder.permissions(private.clone()).tempdir_in(place)?;
        // A umask may have taken some of the user's own rights.
        std::fs::set_permissions(made.path(), private)?;
        Ok(made)
    }
    #[cfg(not(unix))]
    builder.tempdir_in(place)
}

/// A new folder of mode 0700, of this name.
pub fn new_folder(path: &Path) -> io::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)?;
    #[cfg(unix)]
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
    Ok(())
}

/// A new file of mode 0600, removed when it is dropped.
pub(crate) fn file_in(place: &Path, prefix: &str, suffix: &str) -> io::Result<NamedTempFile> {
    let made = tempfile::Builder::new().prefix(prefix).suffix(suffix).tempfile_in(place)?;
    own(made.as_file())?;
    Ok(made)
}

/// Writes a new file of mode 0600.
pub fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.write(true).create_new(true).open(path)?;
    own(&file)?;
    file.write_all(bytes)
}

#[cfg(unix)]
fn own(file: &File) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    file.set_permissions(std::fs::Permissions::from_mode(0o600))
}

#[cfg(not(unix))]
fn own(_: &File) -> io::Result<()> {
    Ok(())
}

/// The folder to put code in that is then loaded: that for temporary files (`TMPDIR`), else another usual one, where programs
/// may be run and nobody else can exchange what lies in it.
///
/// # Errors
/// When none will do; says why `TMPDIR` will not.
pub(crate) fn place_for_code() -> Result<PathBuf> {
    let first = std::env::temp_dir();
    let runtime = environment::raw("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|p| p.is_absolute());
    let others = runtime.into_iter().chain(["/tmp", "/var/tmp"].map(PathBuf::from));
    let Some(unfit) = unfit_for_code(&first) else { return Ok(first) };
    if let Some(other) = others.filter(|other| *other != first).find(|other| unfit_for_code(other).is_none()) {
        tracing::debug!("{} is used in place of {}: {unfit}", other.display(), first.display());
        return Ok(other);
    }
    Err(Error::new(
        ErrorKind::Io,
        format!("code cannot be compiled and loaded in this folder for temporary files: {unfit}"),
    )
    .subject_is(first.display().to_string())
    .hint("set TMPDIR to a folder of your own, on a file system that programs may be run from"))
}

/// Why code cannot be compiled and loaded in a folder.
fn unfit_for_code(folder: &Path) -> Option<String> {
    if !folder.is_dir() {
        return Some("there is no such folder".into());
    }
    if let Err(refused) = trust::folder(folder) {
        return Some(refused.to_string());
    }
    runs_nothing(folder).then(|| "its file system is mounted noexec".into())
}

/// Whether no program may be run from the folder's file system.
#[cfg(target_os = "linux")]
pub(crate) fn runs_nothing(folder: &Path) -> bool {
    rustix::fs::statvfs(folder).is_ok_and(|s| s.f_flag.contains(rustix::fs::StatVfsMountFlags::NOEXEC))
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn runs_nothing(_: &Path) -> bool {
    false
}

#[cfg(test)]
#[path = "private_tests.rs"]
mod tests;
