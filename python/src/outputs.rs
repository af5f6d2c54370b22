//! Outputs that lie as their inputs do, made by PyTorch's C functions: `torch.empty_like` takes most of its time to read its arguments.

#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};
use std::ptr;

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyList;
use ropejit::DType;

use crate::dlpack::{Device, Element, View};

type Make = unsafe extern "C" fn(i64, *const i64, *const i64, i32, i32, i32, *mut *mut c_void) -> c_int;
type Address = unsafe extern "C" fn(*mut c_void, *mut *mut c_void) -> c_int;
type Delete = unsafe extern "C" fn(*mut c_void) -> c_int;
type Number = unsafe extern "C" fn() -> i32;

/// A tensor of PyTorch's, and what it is.
pub type Output<'py> = (Bound<'py, PyAny>, View);

/// What of PyTorch makes a tensor: of `torch/csrc/inductor/aoti_torch/c/shim.h`, whose functions keep their form between versions.
pub struct Maker {
    make: Make,
    address: Address,
    delete: Delete,
    /// PyTorch's numbers of float32, float16 and bfloat16.
    dtypes: [i32; 3],
    /// Of the processor and of CUDA.
    devices: [i32; 2],
    /// Takes a list of capsules with what `make` has made, and returns a list of `torch.Tensor`, which own it. (The function for one
    /// tensor owns a copy, and the first stays for ever.)
    adopt: Py<PyAny>,
}

impl Maker {
    /// `None` where this PyTorch lacks one of the functions.
    pub fn of(torch: &Bound<'_, PyAny>) -> Option<Self> {
        let adopt = torch.getattr("_C").ok()?.getattr("_aoti").ok()?;
        let adopt = adopt.getattr("alloc_tensors_by_stealing_from_void_ptrs").ok()?.unbind();
        let library = library()?;
        let number = |name: &[u8]| {
            // SAFETY: a function of this name has this type.
            let function = unsafe { library.get::<Number>(name) }.ok()?;
            // SAFETY: it takes nothing and says a number.
            Some(unsafe { function() })
        };
        let dtypes = [
            number(b"aoti_torch_dtype_float32\0")?,
            number(b"aoti_torch_dtype_float16\0")?,
            number(b"aoti_torch_dtype_bfloat16\0")?,
        ];
        let devices = [number(b"aoti_torch_device_type_cpu\0")?, number(b"aoti_torch_device_type_cuda\0")?];
        // SAFETY: a function of this name has this type; PyTorch is never unloaded.
        let make = *unsafe { library.get::<Make>(b"aoti_torch_empty_strided\0") }.ok()?;
        // SAFETY: as above.
        let address = *unsafe { library.get::<Address>(b"aoti_torch_get_data_ptr\0") }.ok()?;
        // SAFETY: as above.
        let delete = *unsafe { library.get::<Delete>(b"aoti_torch_delete_tensor_object\0") }.ok()?;
        Some(Self { make, address, delete, dtypes, devices, adopt })
    }

    /// Tensors without values that lie as these do, and what they are. `None` where `torch.empty_like` decides how one lies, or has
    /// to say what is wrong, such as that memory is used up.
    pub fn make<'py, const N: usize>(&self, py: Python<'py>, like: [&View; N]) -> PyResult<Option<[Output<'py>; N]>> {
        let mut made = [Made { tensor: 0, address: 0 }; N];
        // Without the GIL, as PyTorch does it: the allocator may wait for a thread that wants it.
        let all = py.detach(|| {
            for i in 0..N {
                let Some(one) = self.make_one(like[i]) else {
                    for one in &made[..i] {
                        // SAFETY: a live tensor of `make_one`, which nobody else has.
                        unsafe { (self.delete)(one.tensor as *mut c_void) };
                    }
                    return false;
                };
                made[i] = one;
            }
            true
        });
        if !all {
            return Ok(None);
        }
        let capsules = PyList::empty(py);
        for one in &made {
            // SAFETY: a pointer that is not null; there is no destructor, since `adopt` takes the tensor.
            let capsule = unsafe { ffi::PyCapsule_New(one.tensor as *mut c_void, ptr::null(), None) };
            // SAFETY: a new reference, or null with an error set.
            capsules.append(unsafe { Bound::from_owned_ptr_or_err(py, capsule) }?)?;
        }
        let tensors = self.adopt.bind(py).call1((capsules,))?;
        let mut results = [const { None }; N];
        for (i, result) in results.iter_mut().enumerate() {
            let mut view = *like[i];
            view.address = made[i].address;
            *result = Some((tensors.get_item(i)?, view));
        }
        Ok(Some(results.map(|result| result.expect("filled above"))))
    }

    fn make_one(&self, like: &View) -> Option<Made> {
        let dtype = match like.element {
            Element::Float(DType::F32) => self.dtypes[0],
            Element::Float(DType::F16) => self.dtypes[1],
            Element::Float(DType::BF16) => self.dtypes[2],
            _ => return None,
        };
        let (device, index) = match like.device {
            Device::Host => (self.devices[0], 0),
            Device::Cuda(gpu) => (self.devices[1], gpu as i32),
        };
        let (mut tensor, mut address) = (ptr::null_mut(), ptr::null_mut());
        let (shape, strides) = (like.shape(), like.strides());
        if !like.is_dense() {
            return None;
        }
        // SAFETY: as many sizes and strides as it is told; the pointer is valid for a write.
        let status = unsafe {
            (self.make)(shape.len() as i64, shape.as_ptr(), strides.as_ptr(), dtype, device, index, &raw mut tensor)
        };
        if status != 0 {
            return None;
        }
        // SAFETY: a live tensor, which has just been made; the pointer is valid for a write.
        unsafe { (self.address)(tensor, &raw mut address) };
        Some(Made { tensor: tensor as usize, address: address as u64 })
    }
}

/// A tensor that nobody owns yet, and where its memory is.
#[derive(Clone, Copy)]
struct Made {
    tensor: usize,
    address: u64,
}

/// PyTorch's library, which is loaded. Its symbols are not those of the program: Python loads what it imports apart.
#[cfg(unix)]
fn library() -> Option<libloading::os::unix::Library> {
    use libloading::os::unix::{Library, RTLD_LAZY};
    /// `RTLD_NOLOAD` of Linux: says whether it is loaded, and loads nothing.
    const NO_LOAD: c_int = 4;
    // SAFETY: nothing is loaded, so nothing of it runs.
    unsafe { Library::open(Some("libtorch_cpu.so"), RTLD_LAZY | NO_LOAD) }.ok()
}

#[cfg(not(unix))]
fn library() -> Option<libloading::Library> {
    None
}
