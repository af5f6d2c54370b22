//! The machines that kernels run on. Nothing else in the crate knows which one it is.
//!
//! [`cuda`] is a GPU through the driver and NVRTC, [`host`] the processor through the system's C++ compiler, and
//! [`Target`] a GPU that is not there: it compiles for an architecture and runs nothing.
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
//! # use ropejit::{Engine, device::{Binary, Kernel, LaunchAttrs}};
//! # use std::sync::Arc;
//! fn load(engine: &Engine, binary: &Binary, attrs: &LaunchAttrs) -> ropejit::Result<Arc<dyn Kernel>> {
//!     engine.device().load(binary, "kernel", attrs)
//! }
//! ```
//!
//! ```compile_fail,E0596
//! fn two_threads_could_write(memory: &dyn ropejit::device::Memory) -> ropejit::Result<()> {
//!     memory.upload(0, &[1])
//! }
//! ```

#![allow(unsafe_code)]

mod choice;
mod compiler_version;
pub mod cuda;
pub mod host;
pub mod identity;
mod kernel;
mod leftovers;
mod machine;
mod nvrtc;
mod nvrtc_search;
mod target;
mod watched;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use crate::error::{ErrorKind, Result};
#[cfg(unix)]
use crate::system::fork;

pub use choice::DeviceChoice;
pub use identity::Identity;
pub use kernel::{Abilities, AheadOfTime, Binary, Dialect, Geometry, LaunchAttrs, Source};
pub use machine::{Device, Facts, FaultWord, Kernel, Measuring, Memory, Stream, TimedLaunch, Timer};
pub(crate) use machine::{NotCompiled, copy, load, timer};
pub use target::Target;
pub use watched::Watched;

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

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;
    use crate::error::Error;

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
}
