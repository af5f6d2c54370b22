//! Files that a command is told to write.

use std::fs::File;
use std::io;
use std::path::Path;

/// Writes a file in another's place at once, so that nobody reads half of it: for all to read, as far as the umask lets them, but
/// never for others to write.
///
/// # Errors
/// When `write` fails, or it cannot be put there.
pub(crate) fn replace(path: &Path, write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    builder.prefix(".ropejit-");
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644));
    let mut file = builder.tempfile_in(folder)?;
    write(file.as_file_mut())?;
    file.as_file().sync_all()?;
    file.persist(path).map(drop).map_err(|e| e.error)
}
