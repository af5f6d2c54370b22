//! Errors and panics as Python exceptions.

use std::panic::{AssertUnwindSafe, catch_unwind};

use pyo3::exceptions::{PyIndexError, PyNotImplementedError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use ropejit::{Error, ErrorKind};

pyo3::create_exception!(ropejit, RopejitError, PyRuntimeError, "No kernel can be had, or the device failed.");
pyo3::create_exception!(ropejit, NotCachedError, RopejitError, "Frozen, and what was asked for is not in the cache.");

/// The exception that Python's users expect for a kind of error.
pub fn raise(e: Error) -> PyErr {
    let e = ropejit::cli::advice::advised(e);
    let text = e.to_string();
    match e.kind() {
        ErrorKind::InvalidArgument | ErrorKind::Config | ErrorKind::Template => PyValueError::new_err(text),
        ErrorKind::PositionOutOfRange => PyIndexError::new_err(text),
        ErrorKind::Unsupported => PyNotImplementedError::new_err(text),
        ErrorKind::NotCached => NotCachedError::new_err(text),
        _ => RopejitError::new_err(text),
    }
}

/// A wrong argument.
pub fn wrong(argument: &str, what: impl std::fmt::Display) -> PyErr {
    PyValueError::new_err(format!("{argument}: {what}"))
}

/// Runs `f`; a panic becomes a `RopejitError`, which `except Exception` sees (that of `PyO3` is none).
pub fn guarded<T>(f: impl FnOnce() -> PyResult<T>) -> PyResult<T> {
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
        Err(RopejitError::new_err(format!("a defect of ropejit, please report it: {text}")))
    })
}
