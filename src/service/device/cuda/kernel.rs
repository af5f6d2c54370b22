//! Loaded kernels and their launch.

use std::ffi::{CString, c_void};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use cudarc::driver::{result, sys};

use super::context::{Context, failed};
use crate::error::{Error, ErrorKind, Result};
use crate::service::device::kernel::{Binary, Geometry, LaunchAttrs};
use crate::service::device::machine::{Kernel, Stream};

/// Dynamic shared memory that a kernel may ask for without saying so when it is loaded.
const USUAL_SHARED: u32 = 48 << 10;

/// Loads a compiled kernel: its cubin, else its PTX.
///
/// # Safety
/// NVRTC has made it, of a source with this entry point.
pub(super) unsafe fn load(
    context: &Arc<Context>,
    binary: &Binary,
    entry: &str,
    attrs: &LaunchAttrs,
) -> Result<Arc<dyn Kernel>> {
    let _aside = context.aside()?;
    let raw = match (binary.image.is_empty(), binary.ptx.is_empty()) {
        (true, false) => load_image(&binary.ptx)?,
        _ => load_image(&binary.image).or_else(|refused| {
            // A cubin of another architecture or a newer toolkit: the driver can still compile the PTX.
            tracing::debug!("the driver refused the cubin ({refused}), loading its PTX");
            load_image(&binary.ptx).map_err(|e| {
                Error::new(ErrorKind::Device, format!("the driver refused the cubin ({refused}) and the PTX ({e})"))
            })
        })?,
    };
    let module = Module::new(raw, entry, attrs.shared, context)?;
    Ok(Arc::new(CudaKernel { overlap: attrs.overlap, module: Arc::new(module) }))
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
    fn new(raw: sys::CUmodule, entry: &str, shared: u32, context: &Arc<Context>) -> Result<Self> {
        // From here on it is unloaded when dropped.
        let (function, kept) = (std::ptr::null_mut(), AtomicBool::new(false));
        let mut module = Self { raw, function, kept, context: Arc::clone(context) };
        let name = CString::new(entry).unwrap_or_default();
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
        if shared > USUAL_SHARED {
            // SAFETY: as above.
            unsafe {
                result::function::set_function_attribute(
                    module.function,
                    sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                    i32::try_from(shared).unwrap_or(i32::MAX),
                )
            }
            .map_err(|e| failed("cuFuncSetAttribute", &e))?;
        }
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
    /// May start before the kernel ahead of it on the stream has ended: it waits for that itself.
    overlap: bool,
    module: Arc<Module>,
}

impl Kernel for CudaKernel {
    unsafe fn launch(&self, stream: Stream<'_>, geometry: &Geometry, args: &[*const c_void]) -> Result<()> {
        // The driver reads them and what they point to, and looks at as many as the kernel has parameters.
        let arguments = args.as_ptr().cast_mut().cast::<*mut c_void>();
        if let Some(recorder) = stream.recorder {
            return recorder.kernel(self.module.function, geometry, arguments, self.overlap);
        }
        let _current = self.module.context.make_current()?;
        let mut attribute = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        };
        let ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]) = (geometry.grid, geometry.block);
        let config = sys::CUlaunchConfig {
            gridDimX: grid_x,
            gridDimY: grid_y,
            gridDimZ: grid_z,
            blockDimX: block_x,
            blockDimY: block_y,
            blockDimZ: block_z,
            sharedMemBytes: geometry.shared,
            hStream: stream.raw,
            attrs: &raw mut attribute,
            numAttrs: self.overlap.into(),
        };
        // SAFETY: the driver copies configuration and arguments before it returns; the rest is this function's contract.
        unsafe { sys::cuLaunchKernelEx(&raw const config, self.module.function, arguments, std::ptr::null_mut()) }
            .result()
            .map_err(|e| failed("cuLaunchKernelEx", &e))
    }

    fn keep(&self) {
        if !self.module.kept.swap(true, Relaxed) {
            std::mem::forget(Arc::clone(&self.module));
        }
    }
}
