//! Loaded kernels and their launch.

use std::ffi::{CString, c_uint, c_void};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use cudarc::driver::{result, sys};

use super::{Context, failed};
use crate::device::{AngleParams, Binary, Kernel, Params, ShapeParams, Stream};
use crate::error::{Error, ErrorKind, Result};
use crate::jit::portable::Portable;
use crate::jit::render::ENTRY;
use crate::jit::{Class, Variant};
use crate::rope::RopeSpec;

/// Loads a compiled kernel: its cubin, else its PTX.
///
/// # Safety
/// NVRTC has made it of a source that was rendered for the variant.
pub(super) unsafe fn load(context: &Arc<Context>, binary: &Binary, variant: Variant) -> Result<Arc<dyn Kernel>> {
    let _aside = context.aside()?;
    let raw = load_image(&binary.image).or_else(|refused| {
        // A cubin of another architecture or a newer toolkit: the driver can still compile the PTX.
        tracing::debug!("the driver refused the cubin ({refused}), loading its PTX");
        load_image(&binary.ptx).map_err(|e| {
            Error::new(ErrorKind::Device, format!("the driver refused the cubin ({refused}) and the PTX ({e})"))
        })
    })?;
    let module = Module::new(raw, context)?;
    Ok(Arc::new(CudaKernel::new(&Arc::new(module), variant, ShapeParams::default())))
}

/// The portable kernels of a GPU: those that are loaded are few, and shared by all specs.
pub(super) struct Portables {
    /// Whose code is taken; `None` if none is shipped for this GPU.
    pub arch: Option<&'static str>,
    loaded: Mutex<Vec<(Portable, Arc<Module>)>>,
}

impl Portables {
    pub fn new(arch: Option<&'static str>) -> Self {
        Self { arch, loaded: Mutex::default() }
    }

    /// The one that serves a spec and layout class; `None` if none is shipped for this GPU.
    pub fn load(
        &self,
        context: &Arc<Context>,
        spec: &RopeSpec,
        class: Class,
    ) -> Result<Option<(Arc<dyn Kernel>, Variant)>> {
        let portable = Portable::of(spec, class);
        let mut all = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let module = match all.iter().find(|(p, _)| *p == portable) {
            Some((_, module)) => Arc::clone(module),
            None => {
                let started = Instant::now();
                let Some(code) = self.arch.and_then(|arch| portable.code(arch)) else { return Ok(None) };
                let unpacked = started.elapsed();
                let _aside = context.aside()?;
                let module = Arc::new(Module::new(load_image(&code)?, context)?);
                tracing::debug!("{portable}: unpacked in {unpacked:?}, loaded after {:?}", started.elapsed());
                all.push((portable, Arc::clone(&module)));
                module
            }
        };
        let variant = portable.variant();
        let shape = ShapeParams::of(spec, class, variant);
        Ok(Some((Arc::new(CudaKernel::new(&module, variant, shape)), variant)))
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
    // SAFETY: a digest has vouched for the image, or it is part of this program; the driver checks its form.
    unsafe { result::module::load_data(terminated.as_ptr().cast::<c_void>()) }
        .map_err(|e| failed("cuModuleLoadData", &e))
}

struct Module {
    raw: sys::CUmodule,
    function: sys::CUfunction,
    /// Whether it stays loaded until the process ends.
    kept: AtomicBool,
    context: Arc<Context>,
}

impl Module {
    /// Finds the entry point of what is loaded.
    fn new(raw: sys::CUmodule, context: &Arc<Context>) -> Result<Self> {
        // From here on it is unloaded when dropped.
        let (function, kept) = (std::ptr::null_mut(), AtomicBool::new(false));
        let mut module = Self { raw, function, kept, context: Arc::clone(context) };
        let name = CString::new(ENTRY).unwrap_or_default();
        // SAFETY: the module is loaded.
        module.function =
            unsafe { result::module::get_function(module.raw, name) }.map_err(|e| failed("cuModuleGetFunction", &e))?;
        // The driver loads a kernel's code at its first use, and to load it may have to wait for the context: not at a
        // launch.
        // SAFETY: the function is of the loaded module.
        unsafe {
            result::function::get_function_attribute(
                module.function,
                sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_NUM_REGS,
            )
        }
        .map_err(|e| failed("cuFuncGetAttribute", &e))?;
        Ok(module)
    }
}

// SAFETY: module and function handles may be used from any thread.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

impl Drop for Module {
    fn drop(&mut self) {
        if let Ok(_aside) = self.context.aside() {
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
    shape: ShapeParams,
    module: Arc<Module>,
}

impl CudaKernel {
    fn new(module: &Arc<Module>, variant: Variant, shape: ShapeParams) -> Self {
        let (threads, overlap) = (variant.threads.into(), variant.overlap);
        Self { function: module.function, threads, overlap, shape, module: Arc::clone(module) }
    }
}

// SAFETY: as for `Module`.
unsafe impl Send for CudaKernel {}
// SAFETY: as for `Module`.
unsafe impl Sync for CudaKernel {}

impl Kernel for CudaKernel {
    unsafe fn launch(&self, stream: Stream<'_>, blocks: u32, params: &Params, angles: &AngleParams) -> Result<()> {
        // Most kernels have fewer parameters: the driver looks at as many as there are.
        let mut arguments = [
            std::ptr::from_ref(params).cast_mut().cast::<c_void>(),
            std::ptr::from_ref(angles).cast_mut().cast::<c_void>(),
            std::ptr::from_ref(&self.shape).cast_mut().cast::<c_void>(),
        ];
        if let Some(recorder) = stream.recorder {
            return recorder.kernel(self.function, (blocks, self.threads), &mut arguments, self.overlap);
        }
        let _current = self.module.context.make_current()?;
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
        // SAFETY: the driver copies configuration and arguments before it returns; the rest is this function's contract.
        unsafe { sys::cuLaunchKernelEx(&raw const config, self.function, arguments.as_mut_ptr(), std::ptr::null_mut()) }
            .result()
            .map_err(|e| failed("cuLaunchKernelEx", &e))
    }

    fn keep(&self) {
        if !self.module.kept.swap(true, Relaxed) {
            std::mem::forget(Arc::clone(&self.module));
        }
    }
}
