//! The machines that kernels run on. Nothing else in the crate knows which one it is.
//!
//! [`cuda`] is a GPU through the driver and NVRTC, [`host`] the processor through the system's C++ compiler, and
//! [`Target`] a GPU that is not there: it compiles for an architecture and runs nothing. All `unsafe` of the crate lives
//! in this module, but for the one call of [`Kernel::launch`].

#![allow(unsafe_code)]

mod compiler_version;
pub mod cuda;
pub mod host;
pub mod identity;
mod leftovers;
mod machine;
mod nvrtc;
mod target;

use std::path::PathBuf;
use std::sync::Arc;

use crate::error::{ErrorKind, Result};

pub use identity::Identity;
pub use machine::{
    Abilities, AheadOfTime, Binary, Device, DeviceChoice, Dialect, Facts, FaultWord, Geometry, Kernel, LaunchAttrs,
    Measuring, Memory, Source, Stream, TimedLaunch, Timer,
};
pub use target::Target;

/// Opens a device.
///
/// # Errors
/// [`ErrorKind::DeviceUnavailable`] when a GPU was asked for and there is none.
pub fn open(choice: DeviceChoice) -> Result<Arc<dyn Device>> {
    match choice {
        DeviceChoice::Host => Ok(Arc::new(host::Host::open())),
        DeviceChoice::Cuda(ordinal) => Ok(Arc::new(cuda::Cuda::open(ordinal)?)),
        DeviceChoice::Auto => match cuda::Cuda::open(0) {
            Ok(gpu) => Ok(Arc::new(gpu)),
            Err(e) if e.kind() == ErrorKind::DeviceUnavailable => {
                tracing::debug!("no GPU, the host device serves: {e}");
                Ok(Arc::new(host::Host::open()))
            }
            Err(e) => Err(e),
        },
    }
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

/// Where NVRTC is and which version; for `doctor`.
///
/// # Errors
/// [`ErrorKind::CompilerMissing`], with the places searched and the command that installs it.
pub fn nvrtc_version() -> Result<(PathBuf, String)> {
    nvrtc::Nvrtc::get().map(|n| (n.path().to_owned(), n.identity().to_owned()))
}

/// Where NVRTC is not found otherwise, it is searched for in this folder too: for programs whose environment keeps it where
/// nobody else would look. Says nothing of whether it is there.
pub fn search_nvrtc_in(folder: impl Into<PathBuf>) {
    nvrtc::search_in(folder.into());
}
