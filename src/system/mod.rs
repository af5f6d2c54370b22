//! What the crate asks of the operating system besides devices: who can change what is loaded (`trust`), temporary files for
//! the user alone (`private`), files that a user names (`read`), and what is left of a process in its forked child
//! (`fork`). Nothing here is unsafe.

pub mod environment;
pub(crate) mod fork;
#[doc(hidden)] // the command has private folders as well
pub mod private;
mod read;
pub(crate) mod trust;
#[cfg(feature = "remote")]
mod write;

pub use read::{read_bytes, read_config, read_text};
#[cfg(feature = "remote")]
pub(crate) use {read::open_regular, write::replace};

/// The process's standard error, without a lock of this process: a line is one call of the system.
#[derive(Debug, Clone, Copy)]
pub struct Stderr;

#[cfg(unix)]
impl std::io::Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        Ok(rustix::io::write(rustix::stdio::stderr(), bytes)?)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(not(unix))]
impl std::io::Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        std::io::stderr().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stderr().flush()
    }
}
