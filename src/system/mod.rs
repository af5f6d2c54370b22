//! What the crate asks of the operating system besides devices: who can change what is loaded ([`trust`]), temporary files for
//! the user alone ([`private`]), files that a user names ([`read`]), and what is left of a process in its forked child
//! ([`fork`]). Nothing here is unsafe.

pub(crate) mod fork;
pub(crate) mod private;
mod read;
pub(crate) mod trust;

pub use read::{read_bytes, read_text};
