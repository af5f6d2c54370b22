//! A kernel that serves until a better one is found, and takes note when a call of it is captured into a CUDA graph, which then
//! launches it for ever. It asks the stream at each launch, some 50 ns, and only for as long as it serves.

#![allow(unsafe_code)] // hands launches on

use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use super::kernel::Geometry;
use super::machine::{Device, Kernel, Stream};
use crate::error::Result;

/// A kernel and whether it was captured.
pub struct Watched {
    inner: Arc<dyn Kernel>,
    device: Arc<dyn Device>,
    captured: AtomicBool,
}

impl Watched {
    /// Watches a kernel of a device.
    pub fn new(inner: Arc<dyn Kernel>, device: Arc<dyn Device>) -> Self {
        Self { inner, device, captured: AtomicBool::new(false) }
    }

    /// Whether a graph was captured with it.
    pub fn was_captured(&self) -> bool {
        self.captured.load(Relaxed)
    }
}

impl Kernel for Watched {
    unsafe fn launch(&self, stream: Stream<'_>, geometry: &Geometry, args: &[*const c_void]) -> Result<()> {
        if !self.captured.load(Relaxed) && self.device.is_capturing(stream) {
            self.captured.store(true, Relaxed);
        }
        // SAFETY: this function's contract.
        unsafe { self.inner.launch(stream, geometry, args) }
    }

    fn keep(&self) {
        self.inner.keep();
    }
}
