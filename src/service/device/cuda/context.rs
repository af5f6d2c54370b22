//! The device's context: made current where it is needed, and work beside the captures of others.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cudarc::driver::{DriverError, result, sys};

use crate::error::{Error, ErrorKind, Result};
use crate::service::device::machine::in_fork;
use crate::system::fork;

/// The device's primary context, which PyTorch and others share.
pub(super) struct Context {
    pub device: sys::CUdevice,
    pub raw: sys::CUcontext,
    pub name: String,
    /// Of the process that has opened it: a child of `fork()` must not call the driver.
    pub generation: u32,
}

// SAFETY: a context handle may be used from any thread; the driver synchronises.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Drop for Context {
    fn drop(&mut self) {
        if self.generation == fork::generation() {
            // SAFETY: retained once in `Cuda::open`, released once here. An error at exit has nobody to tell.
            let _ = unsafe { result::primary_ctx::release(self.device) };
        }
    }
}

/// Keeps a context current on this thread, and puts back what was there.
pub(super) struct Current {
    pushed: bool,
}

impl Context {
    /// Every way to the driver leads through here.
    pub fn make_current(&self) -> Result<Current> {
        if self.generation != fork::generation() {
            return Err(in_fork(ErrorKind::DeviceUnavailable, &self.name));
        }
        if result::ctx::get_current().map_err(|e| failed("cuCtxGetCurrent", &e))? == Some(self.raw) {
            return Ok(Current { pushed: false });
        }
        // SAFETY: the context is retained for as long as `self` lives.
        unsafe { sys::cuCtxPushCurrent_v2(self.raw) }.result().map_err(|e| failed("cuCtxPushCurrent", &e))?;
        Ok(Current { pushed: true })
    }

    /// Makes the context current for work beside the caller's own: anything but a launch on the caller's stream.
    pub fn aside(&self) -> Result<(Current, BesideCaptures)> {
        Ok((self.make_current()?, BesideCaptures::begin()?))
    }
}

impl Drop for Current {
    fn drop(&mut self) {
        if self.pushed {
            let mut popped = std::ptr::null_mut();
            // SAFETY: pops what `make_current` pushed on this thread.
            let _ = unsafe { sys::cuCtxPopCurrent_v2(&raw mut popped) };
        }
    }
}

/// Lets this thread allocate, load, copy and wait for a stream while another captures a graph; puts back what was set. The
/// driver refuses such calls by default, and what is captured would be lost.
pub(super) struct BesideCaptures(sys::CUstreamCaptureMode);

impl BesideCaptures {
    fn begin() -> Result<Self> {
        let mut mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: `mode` is valid for a read and a write.
        unsafe { sys::cuThreadExchangeStreamCaptureMode(&raw mut mode) }
            .result()
            .map_err(|e| failed("cuThreadExchangeStreamCaptureMode", &e))?;
        Ok(Self(mode))
    }
}

impl Drop for BesideCaptures {
    fn drop(&mut self) {
        // SAFETY: as in `begin`.
        let _ = unsafe { sys::cuThreadExchangeStreamCaptureMode(&raw mut self.0) };
    }
}

pub(super) fn failed(what: &str, e: &DriverError) -> Error {
    let text = e.error_string().map_or_else(|_| format!("{:?}", e.0), |s| s.to_string_lossy().into_owned());
    let kind = match e.0 {
        sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => ErrorKind::OutOfMemory,
        _ => ErrorKind::Device,
    };
    Error::new(kind, format!("{what} failed: {text}"))
}

/// A stream that no other waits for, of the lowest priority.
pub(super) struct OwnStream {
    pub raw: sys::CUstream,
    pub context: Arc<Context>,
}

// SAFETY: a stream handle may be used from any thread.
unsafe impl Send for OwnStream {}
// SAFETY: as above.
unsafe impl Sync for OwnStream {}

impl OwnStream {
    /// Waits for what was put on it.
    pub fn wait(&self, what: &str) -> Result<()> {
        // SAFETY: the stream lives as long as `self`.
        unsafe { result::stream::synchronize(self.raw) }.map_err(|e| failed(what, &e))
    }

    /// Whether all that was put on it is done before so long.
    pub fn wait_at_most(&self, patience: Duration) -> Result<bool> {
        /// How long to leave the processor to others between two looks.
        const PAUSE: Duration = Duration::from_micros(20);
        let started = Instant::now();
        loop {
            // SAFETY: the stream lives as long as `self`.
            match unsafe { sys::cuStreamQuery(self.raw) } {
                sys::CUresult::CUDA_ERROR_NOT_READY if started.elapsed() > patience => return Ok(false),
                sys::CUresult::CUDA_ERROR_NOT_READY => std::thread::sleep(PAUSE),
                done => return done.result().map(|()| true).map_err(|e| failed("a kernel or a copy", &e)),
            }
        }
    }

    pub fn new(context: &Arc<Context>) -> Result<Self> {
        let _current = context.make_current()?;
        let (least, _) = result::stream::get_priority_range().map_err(|e| failed("cuCtxGetStreamPriorityRange", &e))?;
        let raw = result::stream::create_with_priority(result::stream::StreamKind::NonBlocking, least)
            .map_err(|e| failed("cuStreamCreate", &e))?;
        Ok(Self { raw, context: Arc::clone(context) })
    }
}

impl Drop for OwnStream {
    fn drop(&mut self) {
        if let Ok(_current) = self.context.make_current() {
            // SAFETY: created once, destroyed once.
            let _ = unsafe { result::stream::destroy(self.raw) };
        }
    }
}
