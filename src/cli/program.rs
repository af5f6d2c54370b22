//! How this command is started once more, in another process.

use std::ffi::OsString;
use std::sync::OnceLock;

/// Its command line.
static PROGRAM: OnceLock<Vec<OsString>> = OnceLock::new();

pub fn set(program: Vec<OsString>) {
    let _ = PROGRAM.set(program);
}

/// The program, and its first arguments.
pub fn get() -> Option<(&'static OsString, &'static [OsString])> {
    PROGRAM.get()?.split_first()
}
