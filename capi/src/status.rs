//! Errors as numbers and texts; panics as errors.

use std::cell::RefCell;
use std::ffi::{CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};

use ropejit::{Error, ErrorKind, Result};

/// What a call says of how it went. `ropejit_last_error` has the text.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// It is done; on a GPU it is queued.
    Ok = 0,
    /// An argument is wrong: the text begins with its name.
    InvalidArgument = 1,
    /// A position lies outside of cos and sin.
    PositionOutOfRange = 2,
    /// It is right, and this version cannot do it.
    Unsupported = 3,
    /// Nothing may be compiled, and what was asked for is not in the cache.
    NotCached = 4,
    /// There is no such device.
    DeviceUnavailable = 5,
    /// A kernel has to be compiled, and there is no compiler, or it fails.
    Compiler = 6,
    /// The device has too little free memory.
    OutOfMemory = 7,
    /// The device, a file or the cache failed.
    Failed = 8,
    /// A defect of ropejit.
    Defect = 9,
}

impl From<ErrorKind> for Status {
    fn from(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::InvalidArgument | ErrorKind::Config | ErrorKind::Template => Self::InvalidArgument,
            ErrorKind::PositionOutOfRange => Self::PositionOutOfRange,
            ErrorKind::Unsupported => Self::Unsupported,
            ErrorKind::NotCached => Self::NotCached,
            ErrorKind::DeviceUnavailable => Self::DeviceUnavailable,
            ErrorKind::CompilerMissing | ErrorKind::Compile => Self::Compiler,
            ErrorKind::OutOfMemory => Self::OutOfMemory,
            _ => Self::Failed,
        }
    }
}

thread_local! {
    /// The text of this thread's last error.
    static LAST: RefCell<CString> = RefCell::default();
}

fn remember(text: &str) {
    let text: Vec<u8> = text.bytes().filter(|byte| *byte != 0).collect();
    // A thread that ends may have lost it: then nobody can ask either.
    let _ = LAST.try_with(|last| last.replace(CString::new(text).unwrap_or_default()));
}

/// The text of this thread's last error, where it lies; empty when there was none.
pub fn last() -> *const c_char {
    LAST.try_with(|last| last.borrow().as_ptr()).unwrap_or(c"".as_ptr())
}

/// Runs `f`, and remembers its error. No panic gets out.
pub fn guarded(f: impl FnOnce() -> Result<()>) -> Status {
    match catch_unwind(AssertUnwindSafe(f)) {
        Ok(Ok(())) => Status::Ok,
        Ok(Err(e)) => {
            remember(&e.to_string());
            e.kind().into()
        }
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
            remember(&format!("a defect of ropejit, please report it: {text}"));
            Status::Defect
        }
    }
}

/// A wrong argument.
pub fn wrong(argument: &str, what: impl Into<String>) -> Error {
    Error::argument(argument, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text() -> String {
        LAST.with_borrow(|last| last.to_str().expect("UTF-8").to_owned())
    }

    #[test]
    fn a_panic_is_a_status_and_a_text() {
        assert_eq!(guarded(|| panic!("number {}", 7)), Status::Defect);
        assert_eq!(text(), "a defect of ropejit, please report it: number 7");
        assert_eq!(guarded(|| Err(wrong("q", "is\0 wrong"))), Status::InvalidArgument);
        assert_eq!(text(), "q: is\\u{0} wrong");
        // What goes well leaves the text as it is, and another thread has its own.
        assert_eq!(guarded(|| Ok(())), Status::Ok);
        assert_eq!(text(), "q: is\\u{0} wrong");
        std::thread::spawn(|| assert_eq!(text(), "")).join().expect("its own");
    }
}
