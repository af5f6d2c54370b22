//! A GPU that is not there: its architecture is known, so kernels can be compiled for it, for another machine to run.

use std::sync::Arc;

use super::kernel::{Binary, Dialect, LaunchAttrs, Source};
use super::machine::{Device, Facts, FaultWord, Kernel, Measuring, Memory, Stream, TimedLaunch, Timer};
use super::nvrtc::Nvrtc;
use crate::error::{Error, ErrorKind, Result};

/// An architecture to compile for.
pub struct Target {
    facts: Facts,
}

/// Compiler options for an architecture. `--fmad=false`: a product and a sum are two operations, each rounded.
pub(super) fn options(arch: &str) -> Vec<String> {
    vec![format!("--gpu-architecture={arch}"), "--fmad=false".into(), "--std=c++17".into()]
}

/// Compute capabilities end far below 20.0: what is typed beyond is a slip, which no compiler should be asked about.
const FIRST_OF_NO_GPU: u32 = 200;

impl Target {
    /// An architecture by name, such as `sm_90`.
    ///
    /// # Errors
    /// When it is not of that form, older than `sm_75`, or no GPU's: `sm_900`.
    pub fn new(arch: &str) -> Result<Self> {
        let digits = arch.strip_prefix("sm_").filter(|d| d.len() <= 3 && d.bytes().all(|b| b.is_ascii_digit()));
        let number = digits
            .and_then(|d| d.parse::<u32>().ok())
            .filter(|n| (75..FIRST_OF_NO_GPU).contains(n))
            .ok_or_else(|| {
                Error::argument("arch", format!("'{arch}' is not an architecture that can be served"))
                    .hint("use names such as sm_75, sm_80, sm_86, sm_89, sm_90, sm_100, sm_120")
            })?;
        let facts = Facts {
            name: arch.to_owned(),
            arch: arch.to_owned(),
            compute_capability: (number / 10, number % 10),
            multiprocessors: 0,
            l2_bytes: 0,
            memory_bus_bits: 0,
            memory_bytes: 0,
            driver: String::new(),
            // Where the driver turns out to be older, the choice is not legal and another is made.
            overlap: number >= 90,
        };
        Ok(Self { facts })
    }

    /// Compiles with options of the caller's behind the usual ones, and returns the compiler's log as well: for those
    /// who want to look at registers and spills.
    pub fn compile_with(&self, source: &Source, extra: &[&str]) -> Result<(Binary, String)> {
        let mut all = self.options_for(source);
        all.extend(extra.iter().map(|&e| e.to_owned()));
        Nvrtc::get()?.compile(&source.text, &all)
    }

    fn absent<T>(&self) -> Result<T> {
        Err(Error::new(ErrorKind::DeviceUnavailable, "kernels are compiled for this architecture, not run on it")
            .subject_is(&*self.facts.arch))
    }
}

// SAFETY: it loads and allocates nothing.
unsafe impl Device for Target {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn dialect(&self) -> Dialect {
        Dialect::Cuda
    }

    fn measuring(&self) -> Measuring {
        Measuring { launches: (1, 1), sample_ns: 0.0, scratch_bytes: 0, slice_ns: 0.0 }
    }

    fn runs(&self) -> bool {
        false
    }

    fn compiler(&self) -> Result<String> {
        Ok(Nvrtc::get()?.identity().to_owned())
    }

    fn compile_options(&self) -> Vec<String> {
        options(&self.facts.arch)
    }

    fn compile(&self, source: &Source) -> Result<Binary> {
        Ok(self.compile_with(source, &[])?.0)
    }

    unsafe fn load(&self, _: &Binary, _: &str, _: &LaunchAttrs) -> Result<Arc<dyn Kernel>> {
        self.absent()
    }

    fn alloc(&self, _: usize) -> Result<Box<dyn Memory>> {
        self.absent()
    }

    fn free_memory(&self) -> Result<u64> {
        self.absent()
    }

    fn fault_word(&self) -> Result<Box<dyn FaultWord>> {
        self.absent()
    }

    unsafe fn timer(&self, _: usize, _: TimedLaunch) -> Result<Box<dyn Timer>> {
        self.absent()
    }

    unsafe fn copy(&self, _: (&dyn Memory, usize), _: (&dyn Memory, usize), _: usize, _: Stream<'_>) -> Result<()> {
        self.absent()
    }

    fn synchronize(&self) -> Result<()> {
        self.absent()
    }

    fn is_capturing(&self, _: Stream<'_>) -> bool {
        false
    }

    fn in_fork(&self) -> Result<Arc<dyn Device>> {
        Ok(Arc::new(Self { facts: self.facts.clone() }))
    }
}
