//! What a machine is: the traits that everything else sees of one, and what they speak of.

#![allow(unsafe_code)]

use std::ffi::c_void;
use std::io::Write as _;
use std::marker::PhantomData;
use std::path::PathBuf;
use std::sync::Arc;

use cudarc::driver::sys;
use serde::Serialize;

use super::identity::Identity;
use super::kernel::{Abilities, AheadOfTime, Binary, Dialect, Geometry, LaunchAttrs, Source};
use crate::error::{Error, ErrorKind, Result};
use crate::system::private;

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

    /// Bytes that its memory moves in a nanosecond at most, with [a clock](Device::memory_clock_khz) of so much; 0 when unknown.
    pub fn peak_bytes_per_ns(&self, memory_clock_khz: u32) -> f64 {
        // Two transfers a clock.
        2.0 * f64::from(self.memory_bus_bits) / 8.0 * f64::from(memory_clock_khz) * 1e-6
    }
}

/// A stream to launch on. For the host device, which runs at once, any will do.
#[derive(Clone, Copy)]
pub struct Stream<'a> {
    pub(super) raw: sys::CUstream,
    /// Takes what is launched, to be timed later, in place of the stream.
    pub(super) recorder: Option<&'a dyn Record>,
    pub(super) lives: PhantomData<&'a ()>,
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
    pub const unsafe fn from_raw(stream: *mut c_void) -> Self {
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

/// Takes launches and copies in place of a stream, each after the one before.
pub(super) trait Record: Sync {
    /// Adds a kernel; with `overlap` it may start before the kernel ahead of it has ended.
    fn kernel(
        &self,
        function: sys::CUfunction,
        geometry: &Geometry,
        arguments: *mut *mut c_void,
        overlap: bool,
    ) -> Result<()>;

    /// Adds a copy between two places of the device's memory.
    fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()>;
}

/// A loaded kernel.
pub trait Kernel: Send + Sync {
    /// Launches the kernel on the stream. Each of `args` points to the value of one of its parameters, in their order; more
    /// than it has are not looked at.
    ///
    /// # Safety
    /// There is a value of the right type for each of the kernel's parameters. Every address in them is valid on the device
    /// for all that the kernel reads and writes when it is launched so, until the stream has passed the launch.
    unsafe fn launch(&self, stream: Stream<'_>, geometry: &Geometry, args: &[*const c_void]) -> Result<()>;

    /// From now on it stays loaded until the process ends, whatever is dropped: a graph that was captured with it may be
    /// launched at any time. There is nothing to do where launches cannot be captured, and no default, so that a kernel which
    /// wraps another cannot forget it.
    fn keep(&self);
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
pub(super) fn range(memory: &dyn Memory, offset: usize, len: usize) -> Result<u64> {
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
/// [`load`](Self::load) computes what the source says that its binary was compiled of, and touches nothing else; memory is of the device that [`dialect`](Self::dialect) and
/// [`context`](Self::context) name.
pub unsafe trait Device: Send + Sync {
    /// What is known of it.
    fn facts(&self) -> &Facts;

    /// Memory clock in kHz; 0 when unknown. No part of the identity, since drivers report it differently, and no fact: a GPU's driver
    /// takes 0.7 ms to tell it, as long as a first call's kernel takes to load.
    fn memory_clock_khz(&self) -> u32 {
        0
    }

    /// Which text it takes.
    fn dialect(&self) -> Dialect;

    /// What bears on which variants are legal.
    fn abilities(&self) -> Abilities {
        let facts = self.facts();
        let cubins = match self.ahead_of_time() {
            Some(AheadOfTime::Ptx) => None,
            Some(AheadOfTime::Text) => Some((9, 0)), // any that all kernels are shipped for
            Some(AheadOfTime::Cubin) => Some(facts.compute_capability),
            // What is compiled for another machine is chosen as it chooses.
            None => (self.dialect() == Dialect::Cuda && !self.runs()).then_some(facts.compute_capability),
        };
        Abilities { dialect: self.dialect(), overlap: facts.overlap, cubins }
    }

    /// Whether it can run what it compiles.
    fn runs(&self) -> bool {
        true
    }

    /// How to measure on it.
    fn measuring(&self) -> Measuring;

    /// What code that was compiled ahead of time it takes, if any.
    fn ahead_of_time(&self) -> Option<AheadOfTime> {
        None
    }

    /// Identity of its compiler, which enters the keys of artifacts.
    ///
    /// # Errors
    /// [`ErrorKind::CompilerMissing`], with the command that installs one.
    fn compiler(&self) -> Result<String>;

    /// The compiler's options, in order.
    fn compile_options(&self) -> Vec<String>;

    /// All options that a source is compiled with: the device's, but for those that the source names itself.
    fn options_for(&self, source: &Source) -> Vec<String> {
        let name = |option: &String| option.split('=').next().unwrap_or_default().to_owned();
        let own: Vec<String> = source.options.iter().map(name).collect();
        let mut all = self.compile_options();
        all.retain(|option| !own.contains(&name(option)));
        all.extend(source.options.iter().cloned());
        all
    }

    /// Compiles a source. May be called from several threads at once.
    fn compile(&self, source: &Source) -> Result<Binary>;

    /// Loads a compiled kernel by the name of its entry point. To load code may be to run it.
    ///
    /// # Safety
    /// [`compile`](Self::compile) of such a device has made the binary, of a source with this entry point, or a prebuilt one of the
    /// crate's is loaded; the kernel is of such attributes.
    unsafe fn load(&self, binary: &Binary, entry: &str, attrs: &LaunchAttrs) -> Result<Arc<dyn Kernel>>;

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

    /// Waits for what was put on its own stream, for at most this long; whether it is done.
    fn wait_at_most(&self, _patience: std::time::Duration) -> Result<bool> {
        self.wait().map(|()| true)
    }

    /// Waits for all work on the device. Not while anybody captures a graph.
    fn synchronize(&self) -> Result<()>;

    /// Identity of its memory, to tell one GPU's from another's; 0 for a host.
    fn context(&self) -> u64 {
        0
    }

    /// Which GPU of this process it is, as the driver counts them; `None` for all others.
    fn ordinal(&self) -> Option<u32> {
        None
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
pub(super) fn in_fork(kind: ErrorKind, name: &str) -> Error {
    Error::new(
        kind,
        "cannot be used in this process, a child of fork(): its parent has opened the device",
    )
    .subject_is(name)
    .hint("start processes with spawn or forkserver (in Python: multiprocessing's and DataLoader's start method), or fork before the first use of the device")
}

/// Loads what an engine has compiled, or found as an entry of its store that says it was made of this very source.
pub(crate) fn load(device: &dyn Device, binary: &Binary, entry: &str, attrs: &LaunchAttrs) -> Result<Arc<dyn Kernel>> {
    // SAFETY: a `Binary` is a compiler's output or code of an `Entry`, whose makers vouch for it; the engine has compared the
    // source that it was made of with the one it wants, and what is shipped is the crate's own.
    unsafe { device.load(binary, entry, attrs) }
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

/// What an error of [`ErrorKind::Compile`] is about.
pub(crate) struct NotCompiled {
    /// What the compiler said.
    pub log: String,
    /// Where the source is kept.
    pub source: Option<PathBuf>,
}

/// A failed compilation: keeps the source where a person can look at it, and says where.
pub(super) fn compile_error(compiler: &str, options: &[String], source: &str, log: &str) -> Error {
    let digest = crate::service::digest::text_digest(source);
    let prefix = format!("ropejit-{}-", &digest[..16]);
    let dump = private::file_in(&std::env::temp_dir(), &prefix, ".cu").and_then(|mut file| {
        file.write_all(source.as_bytes())?;
        Ok(file.keep()?.1)
    });
    let detail = NotCompiled { log: log.trim_end().to_owned(), source: dump.as_ref().ok().cloned() };
    let dumped = match &dump {
        Ok(path) => format!("source: {}", path.display()),
        Err(e) => format!("the source could not be kept: {e}"),
    };
    Error::new(
        ErrorKind::Compile,
        format!("the kernel does not compile\noptions: {}\n{dumped}\nlog:\n{}", options.join(" "), log.trim_end()),
    )
    .subject_is(compiler)
    .about(detail)
}

#[cfg(test)]
mod tests {
    use super::*;

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
