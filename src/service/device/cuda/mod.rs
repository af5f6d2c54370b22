//! A GPU, through the CUDA driver (loaded when it is there) and NVRTC.

mod context;
mod graph;
mod kernel;
mod memory;

use std::ffi::c_int;
use std::sync::Arc;

use cudarc::driver::{result, sys};
use once_cell::race::OnceBox;

use super::kernel::{AheadOfTime, Binary, Dialect, LaunchAttrs, Source};
use super::machine::{Device, Facts, FaultWord, Kernel, Measuring, Memory, Stream, TimedLaunch, Timer, in_fork, range};
use super::nvrtc::Nvrtc;
use super::target;
use crate::error::{Error, ErrorKind, Result};
use crate::system::fork;
use context::{Context, OwnStream, failed};

/// A GPU.
pub struct Cuda {
    context: Arc<Context>,
    facts: Facts,
    /// For what is done beside somebody's work.
    stream: Arc<OwnStream>,
    /// Made when the first is asked for: pinning a page takes a millisecond.
    fault_words: OnceBox<memory::FaultWords>,
    ahead_of_time: AheadOfTime,
    ordinal: u32,
}

/// `CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED` to `CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD`.
const CAPTURE_ERRORS: std::ops::RangeInclusive<u32> = 900..=908;

impl Cuda {
    /// Opens the GPU of this ordinal.
    ///
    /// # Errors
    /// [`ErrorKind::DeviceUnavailable`] when there is no driver or no such GPU, [`ErrorKind::Device`] when there is one that
    /// cannot be used.
    pub fn open(ordinal: u32) -> Result<Self> {
        let subject = || format!("cuda:{ordinal}");
        let host = "install NVIDIA's driver; in a container: docker run --gpus all; the processor serves with \
                    ROPEJIT_DEVICE=host, or DeviceChoice::Host where the program says which device";
        let unavailable = |why: String| Error::new(ErrorKind::DeviceUnavailable, why).subject_is(subject());
        if !driver_is_present() {
            return Err(unavailable("no CUDA driver (libcuda.so.1) on this machine".into()).hint(host));
        }
        result::init().map_err(|e| match e.0 {
            sys::CUresult::CUDA_ERROR_NO_DEVICE | sys::CUresult::CUDA_ERROR_STUB_LIBRARY => {
                unavailable(failed("cuInit", &e).to_string()).hint(host)
            }
            // The driver's word for a child of a process that has used it.
            sys::CUresult::CUDA_ERROR_NOT_INITIALIZED => in_fork(ErrorKind::Device, &subject()),
            _ => failed("cuInit", &e).subject_is(subject()).hint(host),
        })?;
        let started = std::time::Instant::now();
        let count = result::device::get_count().map_err(|e| failed("cuDeviceGetCount", &e).subject_is(subject()))?;
        if i64::from(ordinal) >= i64::from(count) {
            return Err(unavailable(format!("there are {count} GPUs"))
                .hint("CUDA_VISIBLE_DEVICES may hide some; the processor serves with ROPEJIT_DEVICE=host"));
        }
        let device = result::device::get(ordinal as c_int).map_err(|e| failed("cuDeviceGet", &e))?;
        let facts = facts(device)?;
        // SAFETY: the device comes from cuDeviceGet.
        let raw = unsafe { result::primary_ctx::retain(device) }.map_err(|e| failed("cuDevicePrimaryCtxRetain", &e))?;
        let context = Arc::new(Context { device, raw, name: subject(), generation: fork::generation() });
        let asked = started.elapsed();
        let stream = Arc::new(OwnStream::new(&context)?);
        tracing::debug!("{}: its context after {asked:?}, a stream after {:?}", subject(), started.elapsed());
        Ok(Self { context, facts, stream, fault_words: OnceBox::new(), ahead_of_time: AheadOfTime::Cubin, ordinal })
    }

    /// Takes the PTX that is shipped for newer GPUs in place of this one's own kernels: to try it where there is none.
    #[must_use]
    pub fn with_portable_ptx(mut self) -> Self {
        self.ahead_of_time = AheadOfTime::Ptx;
        self
    }
}

/// Whether the driver's library can be loaded, by a name that cudarc tries too: without one, cudarc panics. cudarc's own
/// probe is not there where another crate of the program (candle) has it linked.
fn driver_is_present() -> bool {
    let names: &[&str] = if cfg!(windows) { &["nvcuda.dll"] } else { &["libcuda.so.1", "libcuda.so"] };
    // SAFETY: loads libcuda, whose initialisers have no requirements.
    names.iter().any(|name| unsafe { libloading::Library::new(*name) }.is_ok())
}

fn facts(device: sys::CUdevice) -> Result<Facts> {
    use sys::CUdevice_attribute as A;
    let attribute = |a: A| {
        // SAFETY: the device comes from cuDeviceGet.
        unsafe { result::device::get_attribute(device, a) }
            .map(|v| u32::try_from(v).unwrap_or(0))
            .map_err(|e| failed("cuDeviceGetAttribute", &e))
    };
    let major = attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    let mut version = 0;
    // SAFETY: valid for a write.
    unsafe { sys::cuDriverGetVersion(&raw mut version) }.result().map_err(|e| failed("cuDriverGetVersion", &e))?;
    Ok(Facts {
        name: result::device::get_name(device).map_err(|e| failed("cuDeviceGetName", &e))?,
        arch: format!("sm_{major}{minor}"),
        compute_capability: (major, minor),
        multiprocessors: attribute(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        l2_bytes: attribute(A::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?.into(),
        memory_bus_bits: attribute(A::CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH)?,
        // SAFETY: the device comes from cuDeviceGet.
        memory_bytes: unsafe { result::device::total_mem(device) }.map_err(|e| failed("cuDeviceTotalMem", &e))? as u64,
        driver: format!("CUDA {}.{}", version / 1000, version % 1000 / 10),
        overlap: major >= 9 && version >= 12030,
    })
}

// SAFETY: kernels are compiled from the templates or shipped; memory is of the primary context, whose number is `context`.
unsafe impl Device for Cuda {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn memory_clock_khz(&self) -> u32 {
        let clock = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE;
        // SAFETY: the device comes from cuDeviceGet.
        let asked = unsafe { result::device::get_attribute(self.context.device, clock) };
        asked.map_or(0, |khz| u32::try_from(khz).unwrap_or(0))
    }

    fn dialect(&self) -> Dialect {
        Dialect::Cuda
    }

    fn measuring(&self) -> Measuring {
        Measuring { launches: (8, 128), sample_ns: 400e3, scratch_bytes: 1 << 30, slice_ns: 2e6 }
    }

    fn compiler(&self) -> Result<String> {
        Ok(Nvrtc::get()?.identity().to_owned())
    }

    fn compile_options(&self) -> Vec<String> {
        target::options(&self.facts.arch)
    }

    fn compile(&self, source: &Source) -> Result<Binary> {
        Ok(Nvrtc::get()?.compile(&source.text, &self.options_for(source))?.0)
    }

    unsafe fn load(&self, binary: &Binary, entry: &str, attrs: &LaunchAttrs) -> Result<Arc<dyn Kernel>> {
        // SAFETY: this function's contract.
        unsafe { kernel::load(&self.context, binary, entry, attrs) }
    }

    fn ahead_of_time(&self) -> Option<AheadOfTime> {
        Some(self.ahead_of_time)
    }

    fn alloc(&self, bytes: usize) -> Result<Box<dyn Memory>> {
        memory::alloc(&self.stream, bytes)
    }

    fn free_memory(&self) -> Result<u64> {
        let _aside = self.context.aside()?;
        result::mem_get_info().map(|(free, _)| free as u64).map_err(|e| failed("cuMemGetInfo", &e))
    }

    fn fault_word(&self) -> Result<Box<dyn FaultWord>> {
        Ok(self.fault_words.get_or_try_init(|| memory::FaultWords::new(&self.context).map(Box::new))?.take())
    }

    unsafe fn timer(&self, launches: usize, launch: TimedLaunch) -> Result<Box<dyn Timer>> {
        // Launches and replays what this function's contract keeps valid.
        graph::timer(&self.stream, launches, launch)
    }

    fn context(&self) -> u64 {
        self.context.raw as u64
    }

    fn aside(&self) -> Result<Box<dyn std::any::Any>> {
        Ok(Box::new(self.context.aside()?))
    }

    fn stream(&self) -> Stream<'_> {
        Stream { raw: self.stream.raw, recorder: None, lives: std::marker::PhantomData }
    }

    unsafe fn copy(
        &self,
        to: (&dyn Memory, usize),
        from: (&dyn Memory, usize),
        bytes: usize,
        stream: Stream<'_>,
    ) -> Result<()> {
        let (to, from) = (range(to.0, to.1, bytes)?, range(from.0, from.1, bytes)?);
        if let Some(recorder) = stream.recorder {
            return recorder.copy(to, from, bytes);
        }
        let _aside = self.context.aside()?;
        // SAFETY: both ranges are inside memory of this device, by this function's contract, and freeing memory waits for
        // work in flight.
        unsafe { result::memcpy_dtod_async(to, from, bytes, stream.raw) }.map_err(|e| failed("cuMemcpyDtoDAsync", &e))
    }

    fn wait(&self) -> Result<()> {
        let _aside = self.context.aside()?;
        self.stream.wait("a kernel or a copy")
    }

    fn wait_at_most(&self, patience: std::time::Duration) -> Result<bool> {
        let _aside = self.context.aside()?;
        self.stream.wait_at_most(patience)
    }

    fn wait_for(&self, stream: Stream<'_>) -> Result<()> {
        let _aside = self.context.aside()?;
        // SAFETY: a `Stream` is a live stream of this device.
        unsafe { result::stream::synchronize(stream.raw) }.map_err(|e| failed("a kernel", &e))
    }

    fn synchronize(&self) -> Result<()> {
        let _current = self.context.make_current()?;
        result::ctx::synchronize().map_err(|e| failed("a kernel", &e))
    }

    fn ordinal(&self) -> Option<u32> {
        Some(self.ordinal)
    }

    fn is_capturing(&self, stream: Stream<'_>) -> bool {
        let Ok(_current) = self.context.make_current() else { return false };
        // SAFETY: a `Stream` is a live stream of this device.
        let status = unsafe { result::stream::is_capturing(stream.raw) };
        match status {
            Ok(status) => status != sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE,
            // The default stream answers with such an error while a stream that waits for it is captured. Any other comes
            // back from what is done next.
            Err(e) => CAPTURE_ERRORS.contains(&(e.0 as u32)),
        }
    }
}
