//! How much memory a tuning may take.

use crate::error::{Error, ErrorKind, Result};
use crate::service::family::{Device, Problem};

/// Memory that is never measured in, and the part of what is free beyond it that is.
const RESERVE: u64 = 256 << 20;
const PART_OF_FREE: u64 = 4;
/// In less than this, times of large buckets say nothing.
const LEAST_SCRATCH: u64 = 32 << 20;

/// Bytes to measure a problem in: a quarter of what is free beyond a reserve of 256 MiB, or the device's limit.
///
/// # Errors
/// [`ErrorKind::OutOfMemory`] where that is too little.
pub fn room(device: &dyn Device, problem: &dyn Problem) -> Result<u64> {
    let free = device.free_memory()?.saturating_sub(RESERVE);
    let limit = device.measuring().scratch_bytes.min(free / PART_OF_FREE);
    let twice = |size| problem.bytes(size).saturating_mul(2);
    if limit >= LEAST_SCRATCH.min(twice(problem.bucket().tokens())) && limit >= twice(1) {
        return Ok(limit);
    }
    Err(Error::new(ErrorKind::OutOfMemory, "too little free memory to measure in")
        .subject_is(problem.spec().to_string()))
}
