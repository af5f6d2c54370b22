//! Files that a user names. They may be anything: a pipe that nobody writes to, a device without an end.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{Error, ErrorKind, Read as _, Result};
use std::path::Path;

/// A file's bytes.
///
/// # Errors
/// When it cannot be opened or read, is no regular file (a pipe, a device, a folder), or has more than `most` bytes. Never
/// waits for others.
pub fn read_bytes(path: &Path, most: u64) -> Result<Vec<u8>> {
    let file = open_regular(path)?;
    let meta = file.metadata()?;
    let too_long = || Error::new(ErrorKind::FileTooLarge, format!("it has more than {most} bytes"));
    if meta.len() > most {
        return Err(too_long());
    }
    let mut bytes = Vec::with_capacity(meta.len() as usize);
    file.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most { Err(too_long()) } else { Ok(bytes) }
}

/// Opens a regular file to read it; never waits for others.
///
/// # Errors
/// When it cannot be opened, or is a pipe, a device or a folder.
pub(crate) fn open_regular(path: &Path) -> Result<File> {
    // Asked before it is opened, since opening some devices does something, and of what is open, which is what is read.
    regular(&std::fs::metadata(path)?)?;
    let file = open(path)?;
    regular(&file.metadata()?)?;
    Ok(file)
}

/// Bytes at most of a model's configuration: some name tens of thousands of labels.
const MOST_CONFIG: u64 = 16 << 20;

/// The text of a model's `config.json`.
///
/// # Errors
/// [`ErrorKind::Io`](crate::error::ErrorKind::Io), naming the file, as [`read_text`].
pub fn read_config(path: &Path) -> crate::error::Result<String> {
    read_text(path, MOST_CONFIG)
        .map_err(|e| crate::error::Error::io(path, "the model's configuration cannot be read", e))
}

/// As [`read_bytes`], for a text.
///
/// # Errors
/// As [`read_bytes`], and when it is not valid UTF-8.
pub fn read_text(path: &Path, most: u64) -> Result<String> {
    String::from_utf8(read_bytes(path, most)?)
        .map_err(|e| Error::new(ErrorKind::InvalidData, format!("it is not a text: {}", e.utf8_error())))
}

fn regular(meta: &Metadata) -> Result<()> {
    if meta.is_file() {
        return Ok(());
    }
    let what = if meta.is_dir() { "a folder" } else { "a pipe, a socket or a device" };
    Err(Error::new(ErrorKind::InvalidInput, format!("it is {what}, not a regular file")))
}

fn open(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt as _;
        // A pipe in its place would block, and a terminal become this process's own.
        options.custom_flags((rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOCTTY).bits() as i32);
    }
    options.read(true).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regular_files_up_to_a_size_are_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("a");
        fs_err::write(&file, "text").expect("written");
        assert_eq!(read_text(&file, 4).expect("read"), "text");
        assert_eq!(read_bytes(&file, 3).expect_err("too long").to_string(), "it has more than 3 bytes");
        fs_err::write(&file, [b'a', 0xff]).expect("written");
        assert!(read_text(&file, 9).expect_err("no text").to_string().starts_with("it is not a text"));
        let refused = read_bytes(folder.path(), 9).expect_err("a folder").to_string();
        assert_eq!(refused, "it is a folder, not a regular file");
        assert_eq!(read_bytes(&folder.path().join("none"), 9).expect_err("absent").kind(), ErrorKind::NotFound);
    }

    /// `/proc/self/status` says that it has no bytes.
    #[cfg(target_os = "linux")]
    #[test]
    fn neither_a_size_that_lies_nor_a_device_nor_a_pipe_is_waited_for() {
        assert!(read_text(Path::new("/proc/self/status"), 1 << 16).expect("read").contains("Name:"));
        assert!(read_bytes(Path::new("/proc/self/status"), 4).is_err());
        let folder = tempfile::tempdir().expect("a folder");
        let pipe = folder.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).expect("a pipe");
        for endless in [Path::new("/dev/zero"), &pipe] {
            let refused = read_bytes(endless, 1 << 20).expect_err("endless").to_string();
            assert_eq!(refused, "it is a pipe, a socket or a device, not a regular file");
        }
    }
}
