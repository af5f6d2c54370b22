//! The kernels that are compiled ahead of time: those that are loaded are few, and shared by all specs.

#![allow(unsafe_code)] // hands a launch on, with one argument more

use std::ffi::c_void;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::params::ShapeParams;
use super::render::{Dialect, ENTRY, source};
use super::shipped::{PTX_ARCH, Shipped, arch_for};
use super::variant::{Class, Variant};
use crate::error::Result;
use crate::rope::RopeSpec;
use crate::service::device::{AheadOfTime, Binary, Device, Geometry, Kernel, LaunchAttrs, Stream, load};

/// Those of one engine.
#[derive(Default)]
pub(crate) struct Loaded(Mutex<Vec<(Shipped, Arc<dyn Kernel>)>>);

/// Whether there are any for a device.
pub(crate) fn serves(device: &dyn Device) -> bool {
    match device.ahead_of_time() {
        None => false,
        Some(AheadOfTime::Cubin) => arch_for(device.facts().compute_capability).is_some(),
        Some(AheadOfTime::Ptx | AheadOfTime::Text) => true,
    }
}

/// The compiled kernel for a device; `None` if none is shipped for it.
fn binary(shipped: Shipped, device: &dyn Device) -> Result<Option<Binary>> {
    let arch = match device.ahead_of_time() {
        None => return Ok(None),
        Some(AheadOfTime::Text) => {
            return device.compile(&source(shipped.render(Dialect::Host, false))).map(Some);
        }
        Some(AheadOfTime::Ptx) => Some(PTX_ARCH),
        Some(AheadOfTime::Cubin) => arch_for(device.facts().compute_capability),
    };
    let code = arch.and_then(|arch| shipped.code(arch));
    Ok(code.map(|code| match arch {
        Some(PTX_ARCH) => Binary { ptx: code, image: Vec::new() },
        _ => Binary { ptx: Vec::new(), image: code },
    }))
}

/// Loads it; where the driver refuses the cubin, the PTX, which it compiles.
fn load_for(shipped: Shipped, device: &dyn Device, binary: &Binary, attrs: &LaunchAttrs) -> Result<Arc<dyn Kernel>> {
    let newest = device.facts().compute_capability >= (8, 0);
    load(device, binary, ENTRY, attrs).or_else(|refused| match shipped.code(PTX_ARCH).filter(|_| newest) {
        Some(ptx) if !binary.image.is_empty() => {
            tracing::debug!("{shipped}: {refused}; loading its PTX");
            load(device, &Binary { ptx, image: Vec::new() }, ENTRY, &LaunchAttrs::default())
        }
        _ => Err(refused),
    })
}

impl Loaded {
    /// One that serves a spec and layout class as a variant; `None` if it is not shipped for this device.
    pub fn get(
        &self,
        device: &dyn Device,
        shipped: Shipped,
        spec: &RopeSpec,
        class: Class,
        variant: Variant,
    ) -> Result<Option<Arc<dyn Kernel>>> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let inner = match all.iter().find(|(s, _)| *s == shipped) {
            Some((_, kernel)) => Arc::clone(kernel),
            None => {
                let started = Instant::now();
                let Some(binary) = binary(shipped, device)? else { return Ok(None) };
                let unpacked = started.elapsed();
                let kernel = load_for(
                    shipped,
                    device,
                    &binary,
                    &LaunchAttrs { overlap: variant.overlap, ..LaunchAttrs::default() },
                )?;
                tracing::debug!("{shipped}: unpacked in {unpacked:?}, loaded after {:?}", started.elapsed());
                all.push((shipped, Arc::clone(&kernel)));
                kernel
            }
        };
        let shape = ShapeParams::of(spec, class, variant);
        Ok(Some(Arc::new(Shaped { inner, shape, at: if spec.is_fused() { 3 } else { 2 } })))
    }
}

/// A kernel for all shapes, told the shape.
struct Shaped {
    inner: Arc<dyn Kernel>,
    shape: ShapeParams,
    /// Which parameter it is: the third, of fused kernels the fourth.
    at: usize,
}

impl Kernel for Shaped {
    unsafe fn launch(&self, stream: Stream<'_>, geometry: &Geometry, args: &[*const c_void]) -> Result<()> {
        let mut all = [std::ptr::null(); 4];
        all[..args.len().min(4)].copy_from_slice(&args[..args.len().min(4)]);
        all[self.at] = std::ptr::from_ref(&self.shape).cast();
        // SAFETY: this function's contract; that parameter is the shape.
        unsafe { self.inner.launch(stream, geometry, &all) }
    }

    fn keep(&self) {
        self.inner.keep();
    }
}
