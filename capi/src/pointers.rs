//! Where a pointer of C becomes a reference.

#![allow(unsafe_code)]

use std::ffi::{CStr, c_char};

use ropejit::Result;

use crate::status::wrong;

/// What a pointer points to.
///
/// # Safety
/// It is null, or points to a value that is valid and not written to for `'a`.
pub unsafe fn required<'a, T>(name: &str, pointer: *const T) -> Result<&'a T> {
    // SAFETY: this function's contract.
    unsafe { optional(name, pointer) }?.ok_or_else(|| wrong(name, "is null"))
}

/// What a pointer points to; nothing where it is null.
///
/// # Safety
/// As [`required`].
pub unsafe fn optional<'a, T>(name: &str, pointer: *const T) -> Result<Option<&'a T>> {
    if !pointer.is_aligned() {
        return Err(wrong(name, "is a pointer that is not aligned"));
    }
    // SAFETY: this function's contract; it is aligned.
    Ok(unsafe { pointer.as_ref() })
}

/// `len` values from a pointer on.
///
/// # Safety
/// It is null, or points to as many values that are valid and not written to for `'a`.
pub unsafe fn slice<'a, T>(name: &str, pointer: *const T, len: usize) -> Result<&'a [T]> {
    if len == 0 {
        return Ok(&[]);
    }
    if len > isize::MAX as usize / size_of::<T>().max(1) {
        return Err(wrong(name, format!("cannot have {len} values")));
    }
    // SAFETY: this function's contract.
    let first = unsafe { required(name, pointer) }?;
    // SAFETY: as above; the length is one that memory can have.
    Ok(unsafe { std::slice::from_raw_parts(first, len) })
}

/// A text; nothing where the pointer is null.
///
/// # Safety
/// It is null, or points to a text that ends with a 0 and is not written to for `'a`.
pub unsafe fn text<'a>(name: &str, pointer: *const c_char) -> Result<Option<&'a str>> {
    if pointer.is_null() {
        return Ok(None);
    }
    // SAFETY: this function's contract.
    let text = unsafe { CStr::from_ptr(pointer) };
    text.to_str().map(Some).map_err(|_| wrong(name, "is not UTF-8"))
}

/// Where a result goes: what is there is not looked at.
///
/// # Safety
/// It is null, or may be written to.
pub unsafe fn give<T>(name: &str, place: *mut T, make: impl FnOnce() -> Result<T>) -> Result<()> {
    if place.is_null() || !place.is_aligned() {
        return Err(wrong(name, "is null, or a pointer that is not aligned: there is no place for the result"));
    }
    let made = make()?;
    // SAFETY: this function's contract; it is aligned.
    unsafe { place.write(made) };
    Ok(())
}
