//! The operations on files that keeping an entry takes. Their bodies are the system's; a test puts faults in by
//! overriding one: a full disk, a read-only one, a process that dies between two steps.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::path::Path;

/// Operations on files.
pub trait Files: Send + Sync {
    /// Opens a file to read it. A link is not followed, and a pipe does not block.
    fn open(&self, path: &Path) -> io::Result<File> {
        private(OpenOptions::new().read(true)).open(path)
    }

    /// Makes a new file for the user alone.
    fn create(&self, path: &Path) -> io::Result<File> {
        private(OpenOptions::new().read(true).write(true).create_new(true)).open(path)
    }

    /// Opens a lock file, and makes it if it is not there.
    fn lock_file(&self, path: &Path) -> io::Result<File> {
        private(OpenOptions::new().read(true).write(true).create(true)).open(path)
    }

    /// Makes a folder and those above it that are missing, for the user alone.
    fn make_folder(&self, folder: &Path) -> io::Result<()> {
        let mut builder = std::fs::DirBuilder::new();
        builder.recursive(true);
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.create(folder)
    }

    /// Appends to a file.
    fn write(&self, mut file: &File, bytes: &[u8]) -> io::Result<()> {
        file.write_all(bytes)
    }

    /// Waits until what was written is on the disk.
    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_data()
    }

    /// Renames a file, over one that is there.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    /// Takes a file's lock, alone or with others who share it, or fails at once. It dies with the handle.
    fn lock(&self, file: &File, shared: bool) -> Result<(), TryLockError> {
        if shared { file.try_lock_shared() } else { file.try_lock() }
    }
}

/// The system's files, as they are.
pub struct System;

impl Files for System {}

fn private(options: &mut OpenOptions) -> &mut OpenOptions {
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt as _;
        options.mode(0o600).custom_flags((rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK).bits() as i32);
    }
    options
}
