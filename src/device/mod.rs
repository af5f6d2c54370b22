//! The machines that kernels run on. Nothing else in the crate knows which one it is.
//!
//! [`cuda`] is a GPU through the driver and NVRTC, [`host`] the processor through the system's C++ compiler, and
//! [`Target`] a GPU that is not there: it compiles for an architecture and runs nothing. All `unsafe` of the crate lives
//! in this module, but for the one call of [`Kernel::launch`].
//!
//! The traits here are the lowest level. Who implements one vouches for memory and code that others use without a look:
//! such traits are unsafe, and so is every function that runs code or touches memory on a caller's word:
//!
//! ```compile_fail,E0200
//! struct Word;
//! impl ropejit::device::FaultWord for Word {
//!     fn address(&self) -> u64 { 8 }
//!     fn take(&self) -> u64 { 0 }
//! }
//! ```
//!
//! ```compile_fail,E0133
//! # use ropejit::{Engine, device::{Binary, Kernel}, jit::Variant};
//! # use std::sync::Arc;
//! fn load(engine: &Engine, binary: &Binary, variant: Variant) -> ropejit::Result<Arc<dyn Kernel>> {
//!     engine.device().load(binary, variant)
//! }
//! ```
//!
//! ```compile_fail,E0596
//! fn two_threads_could_write(memory: &dyn ropejit::device::Memory) -> ropejit::Result<()> {
//!     memory.upload(0, &[1])
//! }
//! ```

#![allow(unsafe_code)]

mod compiler_version;
pub mod cuda;
pub mod host;
mod host_reference;
mod leftovers;
mod nvrtc;
mod nvrtc_search;
mod params;
mod target;

use std::io::Write as _;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use serde::Serialize;

use crate::error::{Error, ErrorKind, Result};
use crate::jit::render::Dialect;
use crate::jit::{Abilities, Class, Identity, Variant};
use crate::rope::RopeSpec;
use crate::system::{fork, private};

pub use params::{AngleParams, Divider, Params, ShapeParams, TensorParams};
pub use target::Target;

/// What is known of a device.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Facts {
    /// Name, as the driver or the system gives it.
    pub name: String,
    /// What kernels are compiled for: `sm_90`, or the host's architecture.
    pub arch: String,
    /// Compute capability, major and minor; 0.0 for a host.
    pub compute_capability: (u32, u32),
    /// Multiprocessors, or cores.
    pub multiprocessors: u32,
    /// Bytes of the last-level cache.
    pub l2_bytes: u64,
    /// Width of the memory bus in bits; 0 when unknown.
    pub memory_bus_bits: u32,
    /// Memory clock in kHz; 0 when unknown. No part of the identity: drivers report it differently.
    pub memory_clock_khz: u32,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Driver version; empty for a host.
    pub driver: String,
    /// Whether a kernel can start before the one ahead of it has ended (programmatic dependent launch).
    pub overlap: bool,
}

impl Facts {
    /// What a timing depends on. The name tells a MIG slice from the whole GPU, as do its multiprocessors.
    pub fn identity(&self) -> Identity {
        let (name, capability) = (&self.name, self.compute_capability);
        Identity::new(name, capability, self.multiprocessors, self.l2_bytes, self.memory_bus_bits)
    }

    /// The identity's text as the first versions wrote it, with the memory's clock: they kept choices under it.
    pub(crate) fn identity_with_clock(&self) -> String {
        format!(
            "{}; cc {}.{}; {} multiprocessors; L2 {} B; bus {} bit; memory {} kHz",
            self.name,
            self.compute_capability.0,
            self.compute_capability.1,
            self.multiprocessors,
            self.l2_bytes,
            self.memory_bus_bits,
            self.memory_clock_khz
        )
    }

    /// Bytes that its memory moves in a nanosecond at most; 0 when unknown.
    pub fn peak_bytes_per_ns(&self) -> f64 {
        // Two transfers a clock.
        2.0 * f64::from(self.memory_bus_bits) / 8.0 * f64::from(self.memory_clock_khz) * 1e-6
    }
}

/// A compiled kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binary {
    /// PTX; empty for a host.
    pub(crate) ptx: Vec<u8>,
    /// Cubin, or the host's shared library.
    pub(crate) image: Vec<u8>,
}

impl Binary {
    /// PTX; empty for a host.
    pub fn ptx(&self) -> &[u8] {
        &self.ptx
    }

    /// Cubin, or the host's shared library.
    pub fn image(&self) -> &[u8] {
        &self.image
    }
}

/// A stream to launch on. For the host device, which runs at once, any will do.
#[derive(Clone, Copy)]
pub struct Stream<'a> {
    raw: cudarc::driver::sys::CUstream,
    /// Takes what is launched, to be timed later, in place of the stream.
    recorder: Option<&'a cuda::Recorder>,
    lives: PhantomData<&'a ()>,
}

// SAFETY: a stream handle is an opaque number to the driver, which may be used from any thread.
unsafe impl Send for Stream<'_> {}
// SAFETY: as above.
unsafe impl Sync for Stream<'_> {}

impl Stream<'static> {
    /// The default stream.
    pub const DEFAULT: Self = Self { raw: std::ptr::null_mut(), recorder: None, lives: PhantomData };

    /// A stream made elsewhere (a `CUstream` or `cudaStream_t`, such as PyTorch's current stream).
    ///
    /// # Safety
    /// It is a stream of the engine's device, alive for as long as it is launched on.
    pub const unsafe fn from_raw(stream: *mut std::ffi::c_void) -> Self {
        Self { raw: stream.cast(), recorder: None, lives: PhantomData }
    }
}

impl Stream<'_> {
    /// Its handle, to tell one from another.
    pub(crate) fn id(&self) -> u64 {
        self.raw as u64
    }
}

impl<'a> From<&'a cudarc::driver::CudaStream> for Stream<'a> {
    fn from(stream: &'a cudarc::driver::CudaStream) -> Self {
        Self { raw: stream.cu_stream(), recorder: None, lives: PhantomData }
    }
}

/// A loaded kernel.
pub trait Kernel: Send + Sync {
    /// Launches `blocks` blocks of the kernel's threads on the stream. `angles` is for kernels that compute theirs.
    ///
    /// # Safety
    /// Every address in `params` is valid on the device for all that the kernel reads and writes with these `params`,
    /// until the stream has passed the launch.
    unsafe fn launch(&self, stream: Stream<'_>, blocks: u32, params: &Params, angles: &AngleParams) -> Result<()>;

    /// From now on it stays loaded until the process ends, whatever is dropped: a graph that was captured with it may be
    /// launched at any time. Not needed where launches cannot be captured.
    fn keep(&self) {}
}

/// Memory of a device, freed when dropped. Nobody refers to it but by its address: who hands that on says in an unsafe
/// function who reads and writes when.
///
/// # Safety
/// From `address()` on, `bytes()` bytes are valid on the device for as long as this lives.
pub unsafe trait Memory: Send + Sync {
    /// Its address on the device.
    fn address(&self) -> u64;
    /// Its size in bytes.
    fn bytes(&self) -> usize;
    /// Copies `data` to `offset` on the device's own stream, and waits for that stream.
    fn upload(&mut self, offset: usize, data: &[u8]) -> Result<()>;
    /// Copies from `offset` on the device's own stream, and waits for that stream.
    fn download(&self, offset: usize, data: &mut [u8]) -> Result<()>;
}

/// The address of a range of memory, if it is inside.
fn range(memory: &dyn Memory, offset: usize, len: usize) -> Result<u64> {
    if offset.checked_add(len).is_none_or(|end| end > memory.bytes()) {
        let what = format!("{offset} + {len} is past the {} bytes allocated", memory.bytes());
        return Err(Error::argument("offset", what));
    }
    Ok(memory.address() + offset as u64)
}

/// A word that kernels write and the host reads without synchronising.
///
/// # Safety
/// At `address()`, eight bytes are valid on the device for atomic writes for as long as kernels run that were launched while
/// this lives.
pub unsafe trait FaultWord: Send + Sync {
    /// Its address on the device.
    fn address(&self) -> u64;
    /// Its value, which becomes zero.
    fn take(&self) -> u64;
}

/// A prepared sequence of launches that can be timed again and again.
pub trait Timer {
    /// Device time in nanoseconds per launch.
    fn sample(&mut self) -> Result<f64>;
}

/// What a [`Timer`] times: launch number `i` on the stream it is given.
pub type TimedLaunch = Box<dyn Fn(usize, Stream<'_>) -> Result<()> + Send>;

/// A machine that kernels are compiled for and run on.
///
/// # Safety
/// An engine launches what a device gives it on memory that its callers own, and relies on this: a kernel of
/// [`load`](Self::load), [`portable`](Self::portable) or [`fallback`](Self::fallback) computes what the source, spec and
/// class it was asked for say, and touches nothing else; memory is of the device that [`dialect`](Self::dialect) and
/// [`context`](Self::context) name.
pub unsafe trait Device: Send + Sync {
    /// What is known of it.
    fn facts(&self) -> &Facts;

    /// Which text it takes.
    fn dialect(&self) -> Dialect;

    /// What bears on which variants are legal.
    fn abilities(&self) -> Abilities {
        Abilities { dialect: self.dialect(), overlap: self.facts().overlap }
    }

    /// Whether it can run what it compiles.
    fn runs(&self) -> bool {
        true
    }

    /// How to measure on it.
    fn measuring(&self) -> Measuring;

    /// Whether the crate ships kernels for all shapes that run on it.
    fn has_portable(&self) -> bool {
        false
    }

    /// A kernel for all shapes that the crate ships, with its geometry: it serves at once, with nothing compiled. `None`
    /// where none is shipped for the device.
    fn portable(&self, _spec: &RopeSpec, _class: Class) -> Result<Option<(Arc<dyn Kernel>, Variant)>> {
        Ok(None)
    }

    /// What serves when nothing can be compiled.
    fn fallback(&self, _spec: &RopeSpec) -> Option<Arc<dyn Kernel>> {
        None
    }

    /// Identity of its compiler, which enters the keys of artifacts.
    ///
    /// # Errors
    /// [`ErrorKind::CompilerMissing`], with the command that installs one.
    fn compiler(&self) -> Result<String>;

    /// The compiler's options, in order.
    fn compile_options(&self) -> Vec<String>;

    /// Compiles a source. May be called from several threads at once.
    fn compile(&self, source: &str) -> Result<Binary>;

    /// Loads the compiled kernel of a variant. To load code may be to run it.
    ///
    /// # Safety
    /// [`compile`](Self::compile) of such a device has made the binary, of a source that was rendered for the variant.
    unsafe fn load(&self, binary: &Binary, variant: Variant) -> Result<Arc<dyn Kernel>>;

    /// Allocates memory; its contents are undefined.
    fn alloc(&self, bytes: usize) -> Result<Box<dyn Memory>>;

    /// Bytes of memory that are free.
    fn free_memory(&self) -> Result<u64>;

    /// A word for kernels to report a fault in.
    fn fault_word(&self) -> Result<Box<dyn FaultWord>>;

    /// While the returned value lives, this thread may do what it likes beside a graph that another thread captures.
    fn aside(&self) -> Result<Box<dyn std::any::Any>> {
        Ok(Box::new(()))
    }

    /// A stream of its own, for what is done beside the caller's work.
    fn stream(&self) -> Stream<'_> {
        Stream::DEFAULT
    }

    /// Prepares `launches` launches to be timed together.
    ///
    /// # Safety
    /// What `launch` launches can be run again at every sample: all that it refers to is valid for as long as the timer
    /// lives, and nobody else uses it while one is taken.
    unsafe fn timer(&self, launches: usize, launch: TimedLaunch) -> Result<Box<dyn Timer>>;

    /// Copies between two places of the device's memory (each a memory and an offset), ordered by the stream. They may
    /// be the same memory, but must not overlap.
    ///
    /// # Safety
    /// Both are memory of this device, and until the stream has passed the copy nobody else writes what it reads, or reads
    /// or writes what it writes.
    unsafe fn copy(
        &self,
        to: (&dyn Memory, usize),
        from: (&dyn Memory, usize),
        bytes: usize,
        stream: Stream<'_>,
    ) -> Result<()>;

    /// Waits for what was put on its own stream.
    fn wait(&self) -> Result<()> {
        Ok(())
    }

    /// Waits for what was put on a stream that is not captured. On the host all has ended when its launch returns.
    fn wait_for(&self, _: Stream<'_>) -> Result<()> {
        Ok(())
    }

    /// Waits for all work on the device. Not while anybody captures a graph.
    fn synchronize(&self) -> Result<()>;

    /// Identity of its memory, to tell one GPU's from another's; 0 for a host.
    fn context(&self) -> u64 {
        0
    }

    /// Whether the stream is, or may be, captured into a graph.
    fn is_capturing(&self, stream: Stream<'_>) -> bool;

    /// The same device for a child of `fork()`, opened afresh: nothing of what this one has locked or started is there.
    ///
    /// # Errors
    /// [`ErrorKind::DeviceUnavailable`] where a child cannot use it.
    fn in_fork(&self) -> Result<Arc<dyn Device>> {
        Err(in_fork(ErrorKind::DeviceUnavailable, &self.facts().name))
    }
}

/// The error of a device that a child of `fork()` cannot use.
fn in_fork(kind: ErrorKind, name: &str) -> Error {
    Error::new(
        kind,
        "cannot be used in this process, a child of fork(): its parent has opened the device",
    )
    .subject_is(name)
    .hint("start processes with spawn or forkserver (in Python: multiprocessing's and DataLoader's start method), or fork before the first use of the device")
}

/// Loads what an engine has compiled, or found as an entry of its store that says it was made of this very source.
pub(crate) fn load(device: &dyn Device, binary: &Binary, variant: Variant) -> Result<Arc<dyn Kernel>> {
    // SAFETY: a `Binary` is a compiler's output or code of an `Entry`, whose makers vouch for it; the engine has compared the
    // source that it was made of with the variant's.
    unsafe { device.load(binary, variant) }
}

/// Prepares launches to be timed, on memory that `launch` owns.
pub(crate) fn timer(device: &dyn Device, launches: usize, launch: TimedLaunch) -> Result<Box<dyn Timer>> {
    // SAFETY: this function's contract; a timer keeps `launch`.
    unsafe { device.timer(launches, launch) }
}

/// Copies within memory that an engine has allocated on `device` for itself, and uses on one stream.
pub(crate) fn copy(
    device: &dyn Device,
    to: (&dyn Memory, usize),
    from: (&dyn Memory, usize),
    bytes: usize,
    stream: Stream<'_>,
) -> Result<()> {
    // SAFETY: this function's contract.
    unsafe { device.copy(to, from, bytes, stream) }
}

/// How to measure on a device.
#[derive(Debug, Clone, Copy)]
pub struct Measuring {
    /// Launches in one sample, at least and at most.
    pub launches: (usize, usize),
    /// Device time that a sample should take.
    pub sample_ns: f64,
    /// Scratch memory at most, in bytes.
    pub scratch_bytes: u64,
    /// Device time, in nanoseconds, that one piece of background work may take at most.
    pub slice_ns: f64,
}

/// Which device to open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum DeviceChoice {
    /// The first GPU when there is a CUDA driver with one, else the host.
    #[default]
    Auto,
    /// The GPU of this ordinal.
    Cuda(u32),
    /// The processor.
    Host,
}

impl std::str::FromStr for DeviceChoice {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        match s.split_once(':') {
            None if s == "auto" => Ok(Self::Auto),
            None if s == "host" => Ok(Self::Host),
            None if s == "cuda" => Ok(Self::Cuda(0)),
            Some(("cuda", n)) if n.parse::<u32>().is_ok() => Ok(Self::Cuda(n.parse().unwrap_or(0))),
            _ => Err(Error::argument("device", format!("unknown device '{s}'")).hint("use auto, host, cuda or cuda:N")),
        }
    }
}

/// Opens a device.
///
/// # Errors
/// [`ErrorKind::DeviceUnavailable`] when a GPU was asked for and there is none.
pub fn open(choice: DeviceChoice) -> Result<Arc<dyn Device>> {
    match choice {
        DeviceChoice::Host => Ok(Arc::new(host::Host::open())),
        DeviceChoice::Cuda(ordinal) => Ok(Arc::new(cuda::Cuda::open(ordinal)?)),
        DeviceChoice::Auto => Ok(auto(|| Ok(Arc::new(cuda::Cuda::open(0)?)), &|warning| tracing::warn!("{warning}"))),
    }
}

/// The GPU, else the host: without a word where there is no GPU, with a warning where there is one that cannot be used.
fn auto(gpu: impl FnOnce() -> Result<Arc<dyn Device>>, warn: &dyn Fn(&str)) -> Arc<dyn Device> {
    match gpu() {
        Ok(gpu) => return gpu,
        Err(e) if e.kind() == ErrorKind::DeviceUnavailable => tracing::debug!("no GPU, the host device serves: {e}"),
        Err(e) => {
            static WARNED: AtomicBool = AtomicBool::new(false);
            if !WARNED.swap(true, Relaxed) {
                warn(&format!("the GPU cannot be used, the processor serves in its place: {e}"));
            }
        }
    }
    Arc::new(host::Host::open())
}

/// Has a function called when the process ends by returning from `main` or by `exit`, before what was there earlier ends.
pub(crate) fn at_exit(f: extern "C" fn()) {
    unsafe extern "C" {
        fn atexit(f: extern "C" fn()) -> std::ffi::c_int;
    }
    // SAFETY: a function of the C library, which keeps the pointer; functions live as long as the process.
    if unsafe { atexit(f) } != 0 {
        tracing::debug!("nothing more can be done at the process's end");
    }
}

/// Has the forks of this process counted from now on (`system::fork`).
#[cfg(unix)]
pub(crate) fn watch_forks() {
    type Handler = Option<extern "C" fn()>;
    unsafe extern "C" {
        fn pthread_atfork(prepare: Handler, parent: Handler, child: Handler) -> std::ffi::c_int;
    }
    static WATCHED: AtomicBool = AtomicBool::new(false);
    if WATCHED.swap(true, Relaxed) {
        return;
    }
    // SAFETY: a function of the C library, which keeps the pointer; it may be called in a child, as it only adds one.
    if unsafe { pthread_atfork(None, None, Some(fork::in_child)) } != 0 {
        tracing::debug!("children of fork() will not be told from this process");
    }
}

#[cfg(not(unix))]
pub(crate) fn watch_forks() {}

/// Where NVRTC is and which version; for `doctor`.
///
/// # Errors
/// [`ErrorKind::CompilerMissing`], with the places searched and the command that installs it.
pub fn nvrtc_version() -> Result<(PathBuf, String)> {
    nvrtc::Nvrtc::get().map(|n| (n.path().to_owned(), n.identity().to_owned()))
}

/// Where NVRTC is not found otherwise, it is searched for in this folder too: for programs whose environment keeps it where
/// nobody else would look. Says nothing of whether it is there. What is found there has to be trusted as all that is loaded
/// (docs/SECURITY.md), and a relative path is passed over.
pub fn search_nvrtc_in(folder: impl AsRef<Path>) {
    nvrtc_search::search_in(folder.as_ref());
}

/// A failed compilation: keeps the source where a person can look at it, and says where.
fn compile_error(compiler: &str, options: &[String], source: &str, log: &str) -> Error {
    let digest = crate::jit::key::source_digest(source);
    let prefix = format!("ropejit-{}-", &digest[..16]);
    let dump = private::file_in(&std::env::temp_dir(), &prefix, ".cu").and_then(|mut file| {
        file.write_all(source.as_bytes())?;
        Ok(file.keep()?.1)
    });
    let dumped = match dump {
        Ok(path) => format!("source: {}", path.display()),
        Err(e) => format!("the source could not be kept: {e}"),
    };
    Error::new(
        ErrorKind::Compile,
        format!("the kernel does not compile\noptions: {}\n{dumped}\nlog:\n{}", options.join(" "), log.trim_end()),
    )
    .subject_is(compiler)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn only_a_gpu_that_is_not_there_is_passed_over_in_silence() {
        let told = RefCell::new(Vec::new());
        let open = |kind| {
            let device = auto(|| Err(Error::new(kind, "cuInit failed: oh")), &|warning| {
                told.borrow_mut().push(warning.to_owned());
            });
            assert_eq!(device.dialect(), Dialect::Host);
        };
        open(ErrorKind::DeviceUnavailable);
        assert!(told.borrow().is_empty());
        open(ErrorKind::Device);
        open(ErrorKind::Device);
        assert_eq!(told.borrow().len(), 1, "once: {told:?}");
        assert!(told.borrow()[0].contains("cuInit failed: oh"), "{told:?}");
    }

    #[cfg(unix)]
    #[test]
    fn a_kept_source_is_for_the_user_alone() {
        use std::os::unix::fs::PermissionsExt as _;
        let e = compile_error("c++", &["-O3".into()], "int x;", "no");
        let path = e.message().lines().find_map(|l| l.strip_prefix("source: ")).expect("it is named");
        let meta = fs_err::metadata(path).expect("kept");
        assert_eq!(meta.permissions().mode() & 0o7777, 0o600);
        assert_eq!(fs_err::read_to_string(path).expect("read"), "int x;");
        fs_err::remove_file(path).expect("removed");
    }
}
