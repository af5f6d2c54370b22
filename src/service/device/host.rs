//! The processor as a device: the same templates, compiled by the system's C++ compiler into a shared library.
//!
//! Blocks are spread over all cores and a launch returns when they are done. Beside its entry point, a text for this device
//! has a function `ENTRY_blocks(args, geometry, first, last)`, which runs some blocks of a launch: `args` are pointers to the
//! values of the parameters, `geometry` the blocks and threads in three dimensions each, and blocks are numbered x first.

use std::alloc::Layout;
use std::ffi::{OsStr, c_void};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use libloading::Library;
use rayon::prelude::*;

use super::compiler_version;
use super::kernel::{AheadOfTime, Binary, Dialect, Geometry, LaunchAttrs, Source};
use super::leftovers;
use super::machine::{
    Device, Facts, FaultWord, Kernel, Measuring, Memory, Stream, TimedLaunch, Timer, compile_error, range,
};
use crate::error::{Error, ErrorKind, Result};
use crate::system::{environment, fork, private, trust};

/// The processor.
pub struct Host {
    facts: Facts,
    ahead_of_time: Option<AheadOfTime>,
}

impl Host {
    /// Opens it; there is always one.
    pub fn open() -> Self {
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let name = cpuinfo
            .lines()
            .find_map(|l| l.strip_prefix("model name")?.split_once(':').map(|(_, v)| v.trim().to_owned()))
            .unwrap_or_else(|| "host processor".into());
        let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let facts = Facts {
            name,
            arch: std::env::consts::ARCH.to_owned(),
            compute_capability: (0, 0),
            multiprocessors: std::thread::available_parallelism().map_or(1, |n| n.get() as u32),
            l2_bytes: last_level_cache(),
            memory_bus_bits: 0,
            memory_bytes: memory_line(&meminfo, "MemTotal:"),
            driver: String::new(),
            overlap: false,
        };
        Self { facts, ahead_of_time: None }
    }

    /// As if the system had told this of it: for tests of nodes that differ.
    #[must_use]
    pub fn with_facts(mut self, facts: Facts) -> Self {
        self.facts = facts;
        self
    }

    /// Compiles portable kernels where it is asked for them. The crate ships none for processors: this is to try their
    /// text without a GPU.
    #[must_use]
    pub fn with_portable(mut self) -> Self {
        self.ahead_of_time = Some(AheadOfTime::Text);
        self
    }
}

/// A `/proc/meminfo` line's kilobytes, in bytes.
fn memory_line(meminfo: &str, name: &str) -> u64 {
    meminfo
        .lines()
        .find_map(|l| l.strip_prefix(name)?.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok())
        .map_or(0, |kb| kb.saturating_mul(1024))
}

fn last_level_cache() -> u64 {
    let size = |index: u32| {
        let text = std::fs::read_to_string(format!("/sys/devices/system/cpu/cpu0/cache/index{index}/size")).ok()?;
        let text = text.trim();
        let (digits, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
        let scale = match unit {
            "K" => 1 << 10,
            "M" => 1 << 20,
            _ => 1,
        };
        digits.parse::<u64>().ok()?.checked_mul(scale)
    };
    (0..8).filter_map(size).max().unwrap_or(0)
}

/// The system's C++ compiler: `CXX`, else `c++`, `g++` or `clang++` on the path; one that others cannot change.
fn find_compiler() -> Result<PathBuf> {
    let variable = |name: &str| environment::raw(name).unwrap_or_default();
    compiler_in(&variable("CXX"), &variable("PATH"))
}

fn compiler_in(named: &OsStr, path: &OsStr) -> Result<PathBuf> {
    let missing = |what: String, hint: &str| Err(Error::new(ErrorKind::CompilerMissing, what).hint(hint));
    // An empty part of the path is the current folder, and a relative one lies in it: anybody's.
    let folders: Vec<PathBuf> = std::env::split_paths(path).filter(|folder| folder.is_absolute()).collect();
    let on_path = |name: &Path| folders.iter().map(|folder| folder.join(name)).find(|file| file.is_file());
    let named = Some(Path::new(named)).filter(|name| !name.as_os_str().is_empty());
    let found = match named {
        Some(file) if file.components().count() > 1 => {
            if !file.is_absolute() {
                let what = format!("CXX names '{}', which is relative to the current folder", file.display());
                return missing(what, "name the compiler from / on, or by a name that is found on the PATH");
            }
            Some(file.to_owned()).filter(|file| file.is_file())
        }
        Some(name) => on_path(name),
        None => ["c++", "g++", "clang++"].iter().find_map(|name| on_path(Path::new(name))),
    };
    let Some(found) = found else {
        return match named {
            Some(name) => missing(
                format!("CXX names '{}', which was not found", name.display()),
                "set CXX to a C++ compiler, or unset it",
            ),
            None => missing(
                "no C++ compiler (c++, g++, clang++) on the path".into(),
                "install one, such as with: apt-get install g++",
            ),
        };
    };
    match trust::file(&found) {
        // By the name it was found by: some programs are several compilers, by their names.
        Ok(_) => Ok(found),
        Err(refused) => missing(
            format!("the C++ compiler {} is not run: {refused}", found.display()),
            "repair that, or set CXX to another compiler",
        ),
    }
}

// SAFETY: kernels are compiled from the templates, or are the reference; memory is this process's.
unsafe impl Device for Host {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn dialect(&self) -> Dialect {
        Dialect::Host
    }

    fn measuring(&self) -> Measuring {
        Measuring { launches: (1, 64), sample_ns: 10e6, scratch_bytes: 64 << 20, slice_ns: 100e6 }
    }

    /// What the compiler says of its version. Asked once a process, and only where something is to be compiled.
    fn compiler(&self) -> Result<String> {
        compiler_version::of(&find_compiler()?)
    }

    fn compile_options(&self) -> Vec<String> {
        let mut options: Vec<String> =
            ["-x", "c++", "-std=c++17", "-O3", "-fopenmp-simd", "-fPIC", "-shared", "-ffp-contract=off"]
                .into_iter()
                .chain(["-fno-strict-aliasing", "-fwrapv"]) // positions wrap, as on a GPU, and are then outside
                .map(String::from)
                .collect();
        // For sanitizers and the like: part of the key, as all options are.
        let extra = environment::text("ROPEJIT_HOST_CXXFLAGS").ok().flatten().unwrap_or_default();
        options.extend(extra.split_whitespace().map(String::from));
        options
    }

    fn compile(&self, source: &Source) -> Result<Binary> {
        let compiler = find_compiler()?;
        let place = private::place_for_code()?;
        let io = |e| Error::io(&place, "a folder to compile in cannot be used", e);
        leftovers::sweep_once(&place);
        let folder = private::folder_in(&place, leftovers::PREFIX).map_err(io)?;
        let (text, library) = (folder.path().join(leftovers::SOURCE), folder.path().join(leftovers::LIBRARY));
        private::write_new(&text, source.text.as_bytes()).map_err(io)?;
        let options = self.options_for(source);
        let output = under_private_umask(&compiler)
            .args(&options)
            .arg("-o")
            .arg(&library)
            .arg(&text)
            .output()
            .map_err(|e| Error::io(&compiler, "cannot be run", e))?;
        if !output.status.success() {
            let log = String::from_utf8_lossy(&output.stderr);
            return Err(compile_error(&compiler.display().to_string(), &options, &source.text, &log));
        }
        Ok(Binary { ptx: Vec::new(), image: fs_err::read(&library).map_err(io)? })
    }

    unsafe fn load(&self, binary: &Binary, entry: &str, _: &LaunchAttrs) -> Result<Arc<dyn Kernel>> {
        // SAFETY: this function's contract.
        unsafe { load(binary, entry) }
    }

    fn ahead_of_time(&self) -> Option<AheadOfTime> {
        self.ahead_of_time
    }

    fn alloc(&self, bytes: usize) -> Result<Box<dyn Memory>> {
        let refused = || Error::new(ErrorKind::OutOfMemory, "out of memory").subject_is(format!("{bytes} bytes"));
        let layout = Layout::from_size_align(bytes.max(1), 64).map_err(|_| refused())?;
        // SAFETY: the size is not zero.
        let start = unsafe { std::alloc::alloc_zeroed(layout) };
        if start.is_null() {
            return Err(refused());
        }
        Ok(Box::new(HostMemory { address: start as u64, bytes, layout }))
    }

    fn free_memory(&self) -> Result<u64> {
        let path = Path::new("/proc/meminfo");
        let text = fs_err::read_to_string(path).map_err(|e| Error::io(path, "cannot be read", e))?;
        Ok(memory_line(&text, "MemAvailable:"))
    }

    fn fault_word(&self) -> Result<Box<dyn FaultWord>> {
        Ok(Box::new(HostFaultWord(Box::new(AtomicU64::new(0)))))
    }

    unsafe fn timer(&self, launches: usize, launch: TimedLaunch) -> Result<Box<dyn Timer>> {
        let mut timer = HostTimer { launches, launch };
        timer.sample()?;
        Ok(Box::new(timer))
    }

    unsafe fn copy(
        &self,
        to: (&dyn Memory, usize),
        from: (&dyn Memory, usize),
        bytes: usize,
        _: Stream<'_>,
    ) -> Result<()> {
        const CHUNK: usize = 1 << 20;
        let (to, from) = (range(to.0, to.1, bytes)? as usize, range(from.0, from.1, bytes)? as usize);
        let chunk = |i: usize| {
            let (at, len) = (i * CHUNK, CHUNK.min(bytes - i * CHUNK));
            // SAFETY: both ranges are inside memory of this device, by this function's contract, and nobody else uses them.
            unsafe { std::ptr::copy((from + at) as *const u8, (to + at) as *mut u8, len) };
        };
        fork::spread(|| (0..bytes.div_ceil(CHUNK)).into_par_iter().for_each(chunk));
        Ok(())
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    fn is_capturing(&self, _: Stream<'_>) -> bool {
        false
    }

    fn in_fork(&self) -> Result<Arc<dyn Device>> {
        Ok(Arc::new(Self { facts: self.facts.clone(), ahead_of_time: self.ahead_of_time }))
    }
}

/// A compiler whose files are for the user alone: it names its own temporary files, and a linker makes the output anew. A
/// shell sets the umask, since to do that between fork and exec would copy the page tables of a large process.
fn under_private_umask(compiler: &Path) -> Command {
    if cfg!(not(unix)) {
        return Command::new(compiler);
    }
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "umask 077 && exec \"$0\" \"$@\""]).arg(compiler);
    command
}

/// Loads a shared library.
///
/// # Safety
/// The host's compiler has made it of a text for this device, whose entry point has this name.
unsafe fn load(binary: &Binary, entry: &str) -> Result<Arc<dyn Kernel>> {
    // The loader wants a file; once it is open its name is not needed.
    let place = private::place_for_code()?;
    let io = |e| Error::io(&place, "a kernel to load cannot be kept", e);
    let mut file = private::file_in(&place, leftovers::PREFIX, ".so").map_err(io)?;
    file.write_all(&binary.image).map_err(io)?;
    let path: &Path = file.path();
    let refused = |e: libloading::Error| Error::new(ErrorKind::Device, format!("the loader refused a kernel: {e}"));
    // SAFETY: this function's contract; what the compiler makes has no initialisers.
    let library = unsafe { Library::new(path) }.map_err(refused)?;
    // SAFETY: a text for this device defines it with this type (see the module).
    let run = *unsafe { library.get::<RunBlocks>(format!("{entry}_blocks").as_bytes()) }.map_err(refused)?;
    // SAFETY: as above, for texts that have one.
    let fault = unsafe { library.get::<Fault>(format!("{entry}_fault").as_bytes()) }.ok().map(|fault| *fault);
    Ok(Arc::new(HostKernel { run, fault, _library: library }))
}

/// Runs blocks `first..last`.
type RunBlocks = unsafe extern "C" fn(args: *const *const c_void, geometry: *const u32, first: u32, last: u32);

/// Whether a thread of this kernel has ever used more than its stack.
type Fault = unsafe extern "C" fn() -> u32;

struct HostKernel {
    run: RunBlocks,
    fault: Option<Fault>,
    // Kept: the function is in it.
    _library: Library,
}

/// The arguments of a launch, for all threads that run its blocks.
struct Shared(*const *const c_void, [u32; 6]);

// SAFETY: they are only read, and live until the launch returns.
unsafe impl Sync for Shared {}

impl Kernel for HostKernel {
    unsafe fn launch(&self, _: Stream<'_>, geometry: &Geometry, args: &[*const c_void]) -> Result<()> {
        let ([x, y, z], [tx, ty, tz]) = (geometry.grid, geometry.block);
        let blocks = x.checked_mul(y).and_then(|xy| xy.checked_mul(z)).ok_or_else(|| {
            Error::new(ErrorKind::Unsupported, format!("a grid of {x} × {y} × {z} blocks is too large for a processor"))
        })?;
        let shared = &Shared(args.as_ptr(), [x, y, z, tx, ty, tz]);
        let run = |first: u32, last: u32| {
            // SAFETY: this function's contract; threads of a launch write disjoint elements.
            unsafe { (self.run)(shared.0, shared.1.as_ptr(), first, last) };
        };
        let chunk = blocks.div_ceil(4 * rayon::current_num_threads() as u32).max(16);
        if blocks <= chunk {
            run(0, blocks);
        } else {
            let part = |i: u32| run(i * chunk, blocks.min((i + 1).saturating_mul(chunk)));
            fork::spread(|| (0..blocks.div_ceil(chunk)).into_par_iter().for_each(part));
        }
        // SAFETY: reads a number.
        if self.fault.is_some_and(|fault| unsafe { fault() } != 0) {
            let what = "a thread of the kernel uses more than the 64 KiB of its stack";
            return Err(Error::new(ErrorKind::Device, what).hint("let it have smaller arrays, or recurse less"));
        }
        Ok(())
    }

    /// A launch is over when it returns, and nothing is captured.
    fn keep(&self) {}
}

/// Exactly as many bytes as were asked for, so that a sanitizer sees the first access past them.
struct HostMemory {
    address: u64,
    bytes: usize,
    layout: Layout,
}

impl Drop for HostMemory {
    fn drop(&mut self) {
        // SAFETY: allocated once with this layout, freed once.
        unsafe { std::alloc::dealloc(self.address as *mut u8, self.layout) };
    }
}

// SAFETY: allocated with this size, freed when dropped.
unsafe impl Memory for HostMemory {
    fn address(&self) -> u64 {
        self.address
    }

    fn bytes(&self) -> usize {
        self.bytes
    }

    fn upload(&mut self, offset: usize, data: &[u8]) -> Result<()> {
        let at = range(self, offset, data.len())? as *mut u8;
        // SAFETY: the range lies inside the allocation, which nobody else uses: `self` is borrowed alone, and kernels that
        // write here are launched by unsafe functions.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), at, data.len()) };
        Ok(())
    }

    fn download(&self, offset: usize, data: &mut [u8]) -> Result<()> {
        let at = range(self, offset, data.len())? as *const u8;
        // SAFETY: the range lies inside the allocation, and nothing writes to it but `upload` and unsafe functions.
        unsafe { std::ptr::copy_nonoverlapping(at, data.as_mut_ptr(), data.len()) };
        Ok(())
    }
}

struct HostFaultWord(Box<AtomicU64>);

// SAFETY: a launch on the host is over when it returns, and the word lives as long as this.
unsafe impl FaultWord for HostFaultWord {
    fn address(&self) -> u64 {
        self.0.as_ptr() as u64
    }

    fn take(&self) -> u64 {
        self.0.swap(0, Ordering::Relaxed)
    }
}

struct HostTimer {
    launches: usize,
    launch: TimedLaunch,
}

impl Timer for HostTimer {
    fn sample(&mut self) -> Result<f64> {
        let start = Instant::now();
        for i in 0..self.launches {
            (self.launch)(i, Stream::DEFAULT)?;
        }
        Ok(start.elapsed().as_secs_f64() * 1e9 / self.launches.max(1) as f64)
    }
}

#[cfg(test)]
#[path = "host_tests.rs"]
mod tests;
