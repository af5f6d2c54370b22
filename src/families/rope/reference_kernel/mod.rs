//! What serves on the host where there is no C++ compiler: the reference, driven by the same arguments as a kernel.

#![allow(unsafe_code)] // reads and writes what a kernel would

mod cache;
mod forward;
mod gradient;
mod memory;
mod token;

use std::ffi::c_void;

use token::Launch;

use super::params::{AngleParams, FusedParams, Params};
use crate::error::Result;
use crate::rope::{Direction, RopeSpec};
use crate::service::device::{Geometry, Kernel, Stream};

/// The reference as a kernel.
pub(crate) struct ReferenceKernel {
    spec: RopeSpec,
}

impl ReferenceKernel {
    pub(crate) fn new(spec: &RopeSpec) -> Self {
        Self { spec: spec.clone() }
    }
}

impl Kernel for ReferenceKernel {
    unsafe fn launch(&self, _: Stream<'_>, _: &Geometry, args: &[*const c_void]) -> Result<()> {
        let spec = &self.spec;
        // SAFETY: this function's contract: the parameters of these kernels.
        let p = unsafe { &*args[0].cast::<Params>() };
        let f = if spec.is_fused() {
            // SAFETY: as above.
            unsafe { *args[1].cast::<FusedParams>() }
        } else {
            FusedParams::default()
        };
        // SAFETY: as above.
        let angles = unsafe { &*args[if spec.is_fused() { 2 } else { 1 }].cast::<AngleParams>() };
        let launch = Launch { spec, p, f, angles };
        match spec.norm.filter(|_| spec.direction == Direction::Backward) {
            // SAFETY: this function's contract.
            None => unsafe { forward::run(&launch) },
            // The first launch does all: the second, for sums of tiles, finds nothing left to do.
            // SAFETY: as above.
            Some(norm) if f.stage == 0 => unsafe { gradient::run(&launch, norm) },
            Some(_) => {}
        }
        Ok(())
    }

    /// It is part of the program.
    fn keep(&self) {}
}
