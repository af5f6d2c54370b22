//! Device memory, and the word in which kernels report.
//!
//! Copies run on a stream of our own and wait for that stream alone: waiting for the whole context would be refused, and
//! break the capture, while somebody captures a graph.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use cudarc::driver::{result, sys};

use super::context::{Context, OwnStream, failed};
use crate::error::Result;
use crate::service::device::machine::{FaultWord, Memory, range};

struct CudaMemory {
    address: u64,
    bytes: usize,
    stream: Arc<OwnStream>,
}

/// Allocates device memory, which is filled and read on `stream`.
pub(super) fn alloc(stream: &Arc<OwnStream>, bytes: usize) -> Result<Box<dyn Memory>> {
    let _aside = stream.context.aside()?;
    // SAFETY: what is written and read there is up to those who launch.
    let address = unsafe { result::malloc_sync(bytes.max(1)) }
        .map_err(|e| failed("cuMemAlloc", &e).subject_is(format!("{bytes} bytes")))?;
    Ok(Box::new(CudaMemory { address, bytes, stream: Arc::clone(stream) }))
}

// SAFETY: allocated with this size, freed when dropped.
unsafe impl Memory for CudaMemory {
    fn address(&self) -> u64 {
        self.address
    }

    fn bytes(&self) -> usize {
        self.bytes
    }

    fn upload(&mut self, offset: usize, data: &[u8]) -> Result<()> {
        let at = range(self, offset, data.len())?;
        let _aside = self.stream.context.aside()?;
        // SAFETY: the range lies inside the allocation, and `data` lives until the stream was waited for.
        unsafe { result::memcpy_htod_async(at, data, self.stream.raw) }.map_err(|e| failed("cuMemcpyHtoDAsync", &e))?;
        self.stream.wait("cuMemcpyHtoDAsync")
    }

    fn download(&self, offset: usize, data: &mut [u8]) -> Result<()> {
        let at = range(self, offset, data.len())?;
        let _aside = self.stream.context.aside()?;
        // SAFETY: the range lies inside the allocation, and `data` lives until the stream was waited for.
        unsafe { result::memcpy_dtoh_async(data, at, self.stream.raw) }.map_err(|e| failed("cuMemcpyDtoHAsync", &e))?;
        self.stream.wait("a kernel, or the copy of its output,")
    }
}

impl Drop for CudaMemory {
    fn drop(&mut self) {
        if let Ok(_aside) = self.stream.context.aside() {
            // SAFETY: allocated once, freed once; the driver waits for work in flight.
            let _ = unsafe { result::free_sync(self.address) };
        }
    }
}

/// Words in pinned host memory that the GPU writes through the bus: reading one costs the host a load.
///
/// They are never freed: a kernel in flight may still write them, and to wait for all kernels would break a graph that is being
/// captured.
pub(super) struct FaultWords {
    words: &'static [AtomicU64],
    device: u64,
    next: AtomicUsize,
    /// The words go with it.
    context: Arc<Context>,
}

/// A page of them.
const FAULT_WORDS: usize = 512;

impl FaultWords {
    pub(super) fn new(context: &Arc<Context>) -> Result<Self> {
        let _aside = context.aside()?;
        let (mut host, mut device) = (std::ptr::null_mut(), 0);
        let flags = sys::CU_MEMHOSTALLOC_DEVICEMAP | sys::CU_MEMHOSTALLOC_PORTABLE;
        // SAFETY: `host` is valid for a write.
        unsafe { sys::cuMemHostAlloc(&raw mut host, 8 * FAULT_WORDS, flags) }
            .result()
            .map_err(|e| failed("cuMemHostAlloc", &e))?;
        // SAFETY: `host` was allocated for mapping above.
        let mapped = unsafe { sys::cuMemHostGetDevicePointer_v2(&raw mut device, host, 0) }.result();
        if let Err(e) = mapped {
            // SAFETY: allocated above, and nobody knows of it yet.
            let _ = unsafe { result::free_host(host) };
            return Err(failed("cuMemHostGetDevicePointer", &e));
        }
        // SAFETY: aligned to a page, never freed while the context lives; zero is a valid word, and from here on all accesses are atomic.
        let words = unsafe {
            host.write_bytes(0, 8 * FAULT_WORDS);
            std::slice::from_raw_parts(host.cast::<AtomicU64>(), FAULT_WORDS)
        };
        Ok(Self { words, device, next: AtomicUsize::new(0), context: Arc::clone(context) })
    }

    /// A word; when all are taken, one that others have as well, which then see each other's faults.
    pub(super) fn take(&self) -> Box<dyn FaultWord> {
        let index = self.next.fetch_add(1, Ordering::Relaxed) % FAULT_WORDS;
        let device = self.device + 8 * index as u64;
        Box::new(CudaFaultWord { host: &self.words[index], device, _context: Arc::clone(&self.context) })
    }
}

struct CudaFaultWord {
    host: &'static AtomicU64,
    device: u64,
    _context: Arc<Context>,
}

// SAFETY: words are never freed (`FaultWords`).
unsafe impl FaultWord for CudaFaultWord {
    fn address(&self) -> u64 {
        self.device
    }

    fn take(&self) -> u64 {
        self.host.swap(0, Ordering::Relaxed)
    }
}
