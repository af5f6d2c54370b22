//! A GPU, through the CUDA driver (loaded when it is there) and NVRTC.

use std::ffi::{CString, c_int, c_uint, c_void};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cudarc::driver::{DriverError, result, sys};

use super::{
    Binary, Device, Facts, FaultWord, Kernel, Measuring, Memory, Params, Stream, TimedLaunch, Timer, nvrtc::Nvrtc,
    range, target,
};
use crate::error::{Error, ErrorKind, Result};
use crate::jit::Variant;
use crate::jit::render::{Dialect, ENTRY};

/// A GPU.
pub struct Cuda {
    context: Arc<Context>,
    facts: Facts,
    /// Of the lowest priority, for measuring beside somebody's work.
    stream: Arc<OwnStream>,
}

/// The device's primary context, which PyTorch and others share.
struct Context {
    device: sys::CUdevice,
    raw: sys::CUcontext,
}

// SAFETY: a context handle may be used from any thread; the driver synchronises.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained once in `Cuda::open`, released once here. An error at exit has nobody to tell.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}

/// Keeps a context current on this thread, and puts back what was there.
struct Current {
    pushed: bool,
}

impl Context {
    fn make_current(&self) -> Result<Current> {
        if result::ctx::get_current().map_err(|e| failed("cuCtxGetCurrent", &e))? == Some(self.raw) {
            return Ok(Current { pushed: false });
        }
        // SAFETY: the context is retained for as long as `self` lives.
        unsafe { sys::cuCtxPushCurrent_v2(self.raw) }.result().map_err(|e| failed("cuCtxPushCurrent", &e))?;
        Ok(Current { pushed: true })
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

fn failed(what: &str, e: &DriverError) -> Error {
    let text = e.error_string().map_or_else(|_| format!("{:?}", e.0), |s| s.to_string_lossy().into_owned());
    Error::new(ErrorKind::Device, format!("{what} failed: {text}"))
}

impl Cuda {
    /// Opens the GPU of this ordinal.
    ///
    /// # Errors
    /// [`ErrorKind::DeviceUnavailable`] when there is no driver or no such GPU.
    pub fn open(ordinal: u32) -> Result<Self> {
        let unavailable =
            |why: String| Error::new(ErrorKind::DeviceUnavailable, why).subject_is(format!("cuda:{ordinal}"));
        // SAFETY: loads libcuda, whose initialisers have no requirements. Without this probe cudarc panics.
        if !unsafe { sys::is_culib_present() } {
            return Err(unavailable("no CUDA driver (libcuda.so.1) on this machine".into())
                .hint("ROPEJIT_DEVICE=host uses the processor instead"));
        }
        result::init().map_err(|e| unavailable(failed("cuInit", &e).to_string()))?;
        let count = result::device::get_count().map_err(|e| unavailable(failed("cuDeviceGetCount", &e).to_string()))?;
        if i64::from(ordinal) >= i64::from(count) {
            return Err(unavailable(format!("there are {count} GPUs"))
                .hint("CUDA_VISIBLE_DEVICES may hide some; ROPEJIT_DEVICE=host uses the processor instead"));
        }
        let device = result::device::get(ordinal as c_int).map_err(|e| failed("cuDeviceGet", &e))?;
        let facts = facts(device)?;
        // SAFETY: the device comes from cuDeviceGet.
        let raw = unsafe { result::primary_ctx::retain(device) }.map_err(|e| failed("cuDevicePrimaryCtxRetain", &e))?;
        let context = Arc::new(Context { device, raw });
        let stream = Arc::new(OwnStream::new(&context)?);
        Ok(Self { context, facts, stream })
    }
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
        memory_clock_khz: attribute(A::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE)?,
        // SAFETY: the device comes from cuDeviceGet.
        memory_bytes: unsafe { result::device::total_mem(device) }.map_err(|e| failed("cuDeviceTotalMem", &e))? as u64,
        driver: format!("CUDA {}.{}", version / 1000, version % 1000 / 10),
        overlap: major >= 9 && version >= 12030,
    })
}

impl Device for Cuda {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn dialect(&self) -> Dialect {
        Dialect::Cuda
    }

    fn measuring(&self) -> Measuring {
        Measuring { launches: (8, 128), sample_ns: 400e3, scratch_bytes: 1 << 30 }
    }

    fn compiler(&self) -> Result<String> {
        Ok(Nvrtc::get()?.identity().to_owned())
    }

    fn compile_options(&self) -> Vec<String> {
        target::options(&self.facts.arch)
    }

    fn compile(&self, source: &str) -> Result<Binary> {
        Ok(Nvrtc::get()?.compile(source, &self.compile_options())?.0)
    }

    fn load(&self, binary: &Binary, variant: Variant) -> Result<Arc<dyn Kernel>> {
        let _current = self.context.make_current()?;
        let module = load_image(&binary.image).or_else(|refused| {
            // A cubin of another architecture or a newer toolkit: the driver can still compile the PTX.
            tracing::debug!("the driver refused the cubin ({refused}), loading its PTX");
            load_image(&binary.ptx).map_err(|e| {
                Error::new(ErrorKind::Device, format!("the driver refused the cubin ({refused}) and the PTX ({e})"))
            })
        })?;
        let module = Module { raw: module, context: Arc::clone(&self.context) };
        let name = CString::new(ENTRY).unwrap_or_default();
        // SAFETY: the module is loaded.
        let function =
            unsafe { result::module::get_function(module.raw, name) }.map_err(|e| failed("cuModuleGetFunction", &e))?;
        Ok(Arc::new(CudaKernel { function, threads: variant.threads.into(), overlap: variant.overlap, module }))
    }

    fn alloc(&self, bytes: usize) -> Result<Box<dyn Memory>> {
        let _current = self.context.make_current()?;
        // SAFETY: what is written and read there is up to those who launch.
        let address = unsafe { result::malloc_sync(bytes.max(1)) }
            .map_err(|e| failed("cuMemAlloc", &e).subject_is(format!("{bytes} bytes")))?;
        Ok(Box::new(CudaMemory { address, bytes, context: Arc::clone(&self.context) }))
    }

    fn free_memory(&self) -> Result<u64> {
        let _current = self.context.make_current()?;
        result::mem_get_info().map(|(free, _)| free as u64).map_err(|e| failed("cuMemGetInfo", &e))
    }

    fn fault_word(&self) -> Result<Box<dyn FaultWord>> {
        let _current = self.context.make_current()?;
        let (mut host, mut device) = (std::ptr::null_mut(), 0);
        let flags = sys::CU_MEMHOSTALLOC_DEVICEMAP | sys::CU_MEMHOSTALLOC_PORTABLE;
        // SAFETY: `host` is valid for a write.
        unsafe { sys::cuMemHostAlloc(&raw mut host, 8, flags) }.result().map_err(|e| failed("cuMemHostAlloc", &e))?;
        let word = CudaFaultWord { host: host.cast(), device, context: Arc::clone(&self.context) };
        // SAFETY: `host` was allocated for mapping above.
        unsafe { sys::cuMemHostGetDevicePointer_v2(&raw mut device, host, 0) }
            .result()
            .map_err(|e| failed("cuMemHostGetDevicePointer", &e))?;
        word.take();
        let mut word = word;
        word.device = device;
        Ok(Box::new(word))
    }

    fn timer(&self, launches: usize, launch: TimedLaunch) -> Result<Box<dyn Timer>> {
        let current = self.context.make_current()?;
        let stream = self.stream.raw;
        // SAFETY: the stream is ours; capture is confined to this thread.
        unsafe { result::stream::begin_capture(stream, sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL) }
            .map_err(|e| failed("cuStreamBeginCapture", &e))?;
        let view = Stream { raw: stream, lives: std::marker::PhantomData };
        let launched = (0..launches).try_for_each(|i| launch(i, view));
        // SAFETY: capture was begun above; it must be ended whether or not the launches succeeded.
        let graph = unsafe { result::stream::end_capture(stream) }.map_err(|e| failed("cuStreamEndCapture", &e));
        launched?;
        let graph = graph?;
        let mut exec = std::ptr::null_mut();
        // SAFETY: the graph was captured above.
        let made = unsafe { sys::cuGraphInstantiateWithFlags(&raw mut exec, graph, 0) }.result();
        // SAFETY: an executable graph does not need the graph it came from.
        let _ = unsafe { result::graph::destroy(graph) };
        made.map_err(|e| failed("cuGraphInstantiate", &e))?;
        drop(current);
        let mut timer = GraphTimer {
            exec,
            launches,
            start: OwnEvent::new(&self.context)?,
            end: OwnEvent::new(&self.context)?,
            stream: Arc::clone(&self.stream),
            _launch: launch,
        };
        timer.sample()?; // uploads the graph and warms up
        Ok(Box::new(timer))
    }

    fn copy(
        &self,
        to: (&dyn Memory, usize),
        from: (&dyn Memory, usize),
        bytes: usize,
        stream: Stream<'_>,
    ) -> Result<()> {
        let (to, from) = (range(to.0, to.1, bytes)?, range(from.0, from.1, bytes)?);
        let _current = self.context.make_current()?;
        // SAFETY: both ranges are inside memory of this device, and freeing memory waits for work in flight.
        unsafe { result::memcpy_dtod_async(to, from, bytes, stream.raw) }.map_err(|e| failed("cuMemcpyDtoDAsync", &e))
    }

    fn synchronize(&self) -> Result<()> {
        let _current = self.context.make_current()?;
        result::ctx::synchronize().map_err(|e| failed("a kernel", &e))
    }

    fn is_capturing(&self, stream: Stream<'_>) -> bool {
        let Ok(_current) = self.context.make_current() else { return false };
        // SAFETY: a `Stream` is a live stream of this device.
        unsafe { result::stream::is_capturing(stream.raw) }
            .is_ok_and(|s| s != sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE)
    }
}

/// Loads a cubin or PTX.
fn load_image(image: &[u8]) -> Result<sys::CUmodule> {
    if image.is_empty() {
        return Err(Error::new(ErrorKind::Device, "empty"));
    }
    let mut terminated = Vec::with_capacity(image.len() + 1);
    terminated.extend_from_slice(image);
    terminated.push(0); // PTX is read up to a NUL
    // SAFETY: a digest has vouched for the image, and the driver checks its form.
    unsafe { result::module::load_data(terminated.as_ptr().cast::<c_void>()) }
        .map_err(|e| failed("cuModuleLoadData", &e))
}

struct Module {
    raw: sys::CUmodule,
    context: Arc<Context>,
}

// SAFETY: module and function handles may be used from any thread.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

impl Drop for Module {
    fn drop(&mut self) {
        if let Ok(_current) = self.context.make_current() {
            // SAFETY: loaded once, unloaded once; the driver waits for kernels in flight.
            let _ = unsafe { result::module::unload(self.raw) };
        }
    }
}

struct CudaKernel {
    function: sys::CUfunction,
    threads: c_uint,
    /// May start before the kernel ahead of it on the stream has ended: it waits for that itself.
    overlap: bool,
    module: Module,
}

// SAFETY: as for `Module`.
unsafe impl Send for CudaKernel {}
// SAFETY: as for `Module`.
unsafe impl Sync for CudaKernel {}

impl Kernel for CudaKernel {
    unsafe fn launch(&self, stream: Stream<'_>, blocks: u32, params: &Params) -> Result<()> {
        let _current = self.module.context.make_current()?;
        let mut arguments = [std::ptr::from_ref(params).cast_mut().cast::<c_void>()];
        let mut attribute = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        };
        let config = sys::CUlaunchConfig {
            gridDimX: blocks,
            gridDimY: 1,
            gridDimZ: 1,
            blockDimX: self.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: 0,
            hStream: stream.raw,
            attrs: &raw mut attribute,
            numAttrs: self.overlap.into(),
        };
        // SAFETY: the driver copies configuration and argument before it returns; the rest is this function's contract.
        unsafe { sys::cuLaunchKernelEx(&raw const config, self.function, arguments.as_mut_ptr(), std::ptr::null_mut()) }
            .result()
            .map_err(|e| failed("cuLaunchKernelEx", &e))
    }
}

struct CudaMemory {
    address: u64,
    bytes: usize,
    context: Arc<Context>,
}

impl Memory for CudaMemory {
    fn address(&self) -> u64 {
        self.address
    }

    fn bytes(&self) -> usize {
        self.bytes
    }

    fn upload(&self, offset: usize, data: &[u8]) -> Result<()> {
        let at = range(self, offset, data.len())?;
        let _current = self.context.make_current()?;
        // SAFETY: the range lies inside the allocation.
        unsafe { result::memcpy_htod_sync(at, data) }.map_err(|e| failed("cuMemcpyHtoD", &e))
    }

    fn download(&self, offset: usize, data: &mut [u8]) -> Result<()> {
        let at = range(self, offset, data.len())?;
        let _current = self.context.make_current()?;
        result::ctx::synchronize().map_err(|e| failed("a kernel", &e))?;
        // SAFETY: the range lies inside the allocation.
        unsafe { result::memcpy_dtoh_sync(data, at) }.map_err(|e| failed("cuMemcpyDtoH", &e))
    }
}

impl Drop for CudaMemory {
    fn drop(&mut self) {
        if let Ok(_current) = self.context.make_current() {
            // SAFETY: allocated once, freed once; the driver waits for work in flight.
            let _ = unsafe { result::free_sync(self.address) };
        }
    }
}

/// Pinned host memory that the GPU writes through the bus: reading it costs the host a load.
struct CudaFaultWord {
    host: *mut u64,
    device: u64,
    context: Arc<Context>,
}

// SAFETY: the word is only accessed atomically.
unsafe impl Send for CudaFaultWord {}
// SAFETY: as above.
unsafe impl Sync for CudaFaultWord {}

impl FaultWord for CudaFaultWord {
    fn address(&self) -> u64 {
        self.device
    }

    fn take(&self) -> u64 {
        // SAFETY: allocated in `fault_word`, aligned to a page, freed in `drop`.
        unsafe { AtomicU64::from_ptr(self.host) }.swap(0, Ordering::Relaxed)
    }
}

impl Drop for CudaFaultWord {
    fn drop(&mut self) {
        if let Ok(_current) = self.context.make_current() {
            // A kernel in flight may still write here.
            let _ = result::ctx::synchronize();
            // SAFETY: allocated once, freed once.
            let _ = unsafe { result::free_host(self.host.cast()) };
        }
    }
}

struct OwnStream {
    raw: sys::CUstream,
    context: Arc<Context>,
}

// SAFETY: a stream handle may be used from any thread.
unsafe impl Send for OwnStream {}
// SAFETY: as above.
unsafe impl Sync for OwnStream {}

impl OwnStream {
    fn new(context: &Arc<Context>) -> Result<Self> {
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

struct OwnEvent {
    raw: sys::CUevent,
    context: Arc<Context>,
}

impl OwnEvent {
    fn new(context: &Arc<Context>) -> Result<Self> {
        let _current = context.make_current()?;
        let raw =
            result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT).map_err(|e| failed("cuEventCreate", &e))?;
        Ok(Self { raw, context: Arc::clone(context) })
    }
}

impl Drop for OwnEvent {
    fn drop(&mut self) {
        if let Ok(_current) = self.context.make_current() {
            // SAFETY: created once, destroyed once.
            let _ = unsafe { result::event::destroy(self.raw) };
        }
    }
}

/// Launches captured into a graph, replayed between two events: the host's launch rate does not show.
struct GraphTimer {
    exec: sys::CUgraphExec,
    launches: usize,
    start: OwnEvent,
    end: OwnEvent,
    stream: Arc<OwnStream>,
    // Keeps alive the kernel and the memory that the graph uses.
    _launch: TimedLaunch,
}

impl Timer for GraphTimer {
    fn sample(&mut self) -> Result<f64> {
        let _current = self.stream.context.make_current()?;
        let stream = self.stream.raw;
        // SAFETY: events, graph and stream live as long as `self`.
        unsafe { result::event::record(self.start.raw, stream) }.map_err(|e| failed("cuEventRecord", &e))?;
        // SAFETY: as above.
        unsafe { result::graph::launch(self.exec, stream) }.map_err(|e| failed("cuGraphLaunch", &e))?;
        // SAFETY: as above.
        unsafe { result::event::record(self.end.raw, stream) }.map_err(|e| failed("cuEventRecord", &e))?;
        // SAFETY: as above.
        unsafe { result::event::synchronize(self.end.raw) }.map_err(|e| failed("a timed kernel", &e))?;
        // SAFETY: both are recorded on one stream and passed.
        let ms = unsafe { result::event::elapsed(self.start.raw, self.end.raw) }
            .map_err(|e| failed("cuEventElapsedTime", &e))?;
        Ok(f64::from(ms) * 1e6 / self.launches.max(1) as f64)
    }
}

impl Drop for GraphTimer {
    fn drop(&mut self) {
        if let Ok(_current) = self.stream.context.make_current() {
            // SAFETY: instantiated once, destroyed once, after its last replay was waited for.
            let _ = unsafe { result::graph::exec_destroy(self.exec) };
        }
    }
}
