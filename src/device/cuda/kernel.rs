//! Loaded kernels and their launch.

use std::ffi::{CString, c_uint, c_void};
use std::sync::Arc;

use cudarc::driver::{result, sys};

use super::{Context, failed};
use crate::device::{AngleParams, Binary, Kernel, Params, Stream};
use crate::error::{Error, ErrorKind, Result};
use crate::jit::Variant;
use crate::jit::render::ENTRY;

/// Loads a compiled kernel: its cubin, else its PTX.
pub(super) fn load(context: &Arc<Context>, binary: &Binary, variant: Variant) -> Result<Arc<dyn Kernel>> {
    let _aside = context.aside()?;
    let raw = load_image(&binary.image).or_else(|refused| {
        // A cubin of another architecture or a newer toolkit: the driver can still compile the PTX.
        tracing::debug!("the driver refused the cubin ({refused}), loading its PTX");
        load_image(&binary.ptx).map_err(|e| {
            Error::new(ErrorKind::Device, format!("the driver refused the cubin ({refused}) and the PTX ({e})"))
        })
    })?;
    let module = Module { raw, context: Arc::clone(context) };
    let name = CString::new(ENTRY).unwrap_or_default();
    // SAFETY: the module is loaded.
    let function =
        unsafe { result::module::get_function(module.raw, name) }.map_err(|e| failed("cuModuleGetFunction", &e))?;
    // The driver loads a kernel's code at its first use, and to load it may have to wait for the context: not at a launch.
    // SAFETY: the function is of the loaded module.
    unsafe {
        result::function::get_function_attribute(function, sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_NUM_REGS)
    }
    .map_err(|e| failed("cuFuncGetAttribute", &e))?;
    Ok(Arc::new(CudaKernel { function, threads: variant.threads.into(), overlap: variant.overlap, module }))
}

/// Loads a cubin or PTX.
fn load_image(image: &[u8]) -> Result<sys::CUmodule> {
    if image.is_empty() {
        return Err(Error::new(ErrorKind::Device, "empty"));
    }
    let mut terminated = Vec::with_capacity(image.len() + 1);
    terminated.extend_from_slice(image);
    terminated.push(0); // PTX is read up to a NUL
    // SAFETY: a digest has vouched for the image, and the driver checks its form.
    unsafe { result::module::load_data(terminated.as_ptr().cast::<c_void>()) }
        .map_err(|e| failed("cuModuleLoadData", &e))
}

struct Module {
    raw: sys::CUmodule,
    context: Arc<Context>,
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
    module: Module,
}

// SAFETY: as for `Module`.
unsafe impl Send for CudaKernel {}
// SAFETY: as for `Module`.
unsafe impl Sync for CudaKernel {}

impl Kernel for CudaKernel {
    unsafe fn launch(&self, stream: Stream<'_>, blocks: u32, params: &Params, angles: &AngleParams) -> Result<()> {
        // A kernel that reads its tables has no second parameter: the driver looks at as many as there are.
        let mut arguments = [
            std::ptr::from_ref(params).cast_mut().cast::<c_void>(),
            std::ptr::from_ref(angles).cast_mut().cast::<c_void>(),
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
}
