//! The kernels for all shapes, compiled ahead of time: those that are loaded are few, and shared by all specs.

#![allow(unsafe_code)] // hands a launch on, with one argument more

use std::ffi::c_void;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::params::ShapeParams;
use super::portable::{PTX_ARCH, Portable, arch_for, render_portable};
use super::render::{Dialect, ENTRY, source};
use super::variant::{Class, Variant};
use crate::error::Result;
use crate::rope::RopeSpec;
use crate::service::device::{AheadOfTime, Binary, Device, Geometry, Kernel, LaunchAttrs, Stream, load};

/// Those of one engine.
#[derive(Default)]
pub(crate) struct Loaded(Mutex<Vec<(Portable, Arc<dyn Kernel>)>>);

/// Whether there are any for a device.
pub(crate) fn serves(device: &dyn Device) -> bool {
    match device.ahead_of_time() {
        None => false,
        Some(AheadOfTime::Cubin) => arch_for(device.facts().compute_capability).is_some(),
        Some(AheadOfTime::Ptx | AheadOfTime::Text) => true,
    }
}

/// The compiled kernel for a device; `None` if none is shipped for it.
fn binary(portable: Portable, device: &dyn Device) -> Result<Option<Binary>> {
    let arch = match device.ahead_of_time() {
        None => return Ok(None),
        Some(AheadOfTime::Text) => {
            return device.compile(&source(render_portable(Dialect::Host, &portable))).map(Some);
        }
        Some(AheadOfTime::Ptx) => Some(PTX_ARCH),
        Some(AheadOfTime::Cubin) => arch_for(device.facts().compute_capability),
    };
    let code = arch.and_then(|arch| portable.code(arch));
    Ok(code.map(|code| match arch {
        Some(PTX_ARCH) => Binary { ptx: code, image: Vec::new() },
        _ => Binary { ptx: Vec::new(), image: code },
    }))
}

impl Loaded {
    /// The one that serves a spec and layout class, with how it runs; `None` if none is shipped for this device.
    pub fn get(
        &self,
        device: &dyn Device,
        spec: &RopeSpec,
        class: Class,
    ) -> Result<Option<(Arc<dyn Kernel>, Variant)>> {
        let portable = Portable::of(spec, class);
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let inner = match all.iter().find(|(p, _)| *p == portable) {
            Some((_, kernel)) => Arc::clone(kernel),
            None => {
                let started = Instant::now();
                let Some(binary) = binary(portable, device)? else { return Ok(None) };
                let unpacked = started.elapsed();
                let kernel = load(device, &binary, ENTRY, &LaunchAttrs::default())?;
                tracing::debug!("{portable}: unpacked in {unpacked:?}, loaded after {:?}", started.elapsed());
                all.push((portable, Arc::clone(&kernel)));
                kernel
            }
        };
        let variant = portable.variant();
        let shape = ShapeParams::of(spec, class, variant);
        Ok(Some((Arc::new(Shaped { inner, shape }), variant)))
    }
}

/// A kernel for all shapes, told the shape.
struct Shaped {
    inner: Arc<dyn Kernel>,
    shape: ShapeParams,
}

impl Kernel for Shaped {
    unsafe fn launch(&self, stream: Stream<'_>, geometry: &Geometry, args: &[*const c_void]) -> Result<()> {
        let args = [args[0], args[1], std::ptr::from_ref(&self.shape).cast()];
        // SAFETY: this function's contract; the third parameter is the shape.
        unsafe { self.inner.launch(stream, geometry, &args) }
    }

    fn keep(&self) {
        self.inner.keep();
    }
}
