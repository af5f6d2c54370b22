//! `DLPack`: how libraries of tensors tell each other where a tensor is. All `unsafe` that reads foreign structures is here.
//!
//! Two ways lead to the same [`View`]. The C exchange API (`type(x).__dlpack_c_exchange_api__`, PyTorch 2.10 and newer)
//! is a table of functions behind one capsule: a tensor costs some ten nanoseconds. `x.__dlpack__()` works for every
//! library and costs about a microsecond.

#![allow(unsafe_code)]

use std::ffi::{CStr, c_int, c_void};
use std::ptr::NonNull;

use pyo3::exceptions::{PyBufferError, PyTypeError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyCapsule, PyDict};
use ropejit::DType;

/// Most dimensions that any argument has.
pub const MOST: usize = 8;

/// What an element is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Element {
    Float(DType),
    I32,
    I64,
    Other { code: u8, bits: u8 },
}

/// The name of an element's type by `DLPack`'s numbers, as PyTorch and NumPy write it.
pub fn type_name(code: u8, bits: u8) -> String {
    let kind = match (code, bits) {
        (0, _) => "int",
        (1, _) => "uint",
        (2, _) => "float",
        (4, _) => "bfloat",
        (5, _) => "complex",
        (6, 8) => return "bool".into(),
        (7, 8) => return "float8_e3m4".into(),
        (8, 8) => return "float8_e4m3".into(),
        (9, 8) => return "float8_e4m3b11fnuz".into(),
        (10, 8) => return "float8_e4m3fn".into(),
        (11, 8) => return "float8_e4m3fnuz".into(),
        (12, 8) => return "float8_e5m2".into(),
        (13, 8) => return "float8_e5m2fnuz".into(),
        (14, 8) => return "float8_e8m0fnu".into(),
        _ => return format!("DLPack type {code} of {bits} bits"),
    };
    format!("{kind}{bits}")
}

/// Where a tensor is. Two tensors can meet in a call when these are equal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Device {
    Host,
    Cuda(u32),
}

impl std::fmt::Display for Device {
    /// As PyTorch writes it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Host => f.write_str("cpu"),
            Self::Cuda(gpu) => write!(f, "cuda:{gpu}"),
        }
    }
}

/// A tensor, as far as a call needs to know it. Strides are in elements.
#[derive(Clone, Copy, Debug)]
pub struct View {
    pub address: u64,
    pub element: Element,
    pub device: Device,
    pub rank: usize,
    shape: [i64; MOST],
    strides: [i64; MOST],
}

impl View {
    pub fn shape(&self) -> &[i64] {
        &self.shape[..self.rank]
    }

    pub fn strides(&self) -> &[i64] {
        &self.strides[..self.rank]
    }

    /// Whether its last dimension lies element by element in memory.
    pub fn rows_are_contiguous(&self) -> bool {
        self.rank > 0 && (self.shape[self.rank - 1] < 2 || self.strides[self.rank - 1] == 1)
    }

    /// Whether its elements follow each other in memory.
    pub fn is_contiguous(&self) -> bool {
        let mut stride = 1;
        self.shape().iter().zip(self.strides()).rev().all(|(&n, &s)| {
            let fits = n < 2 || s == stride;
            stride *= n;
            fits
        }) || self.len() == 0
    }

    /// Elements in it.
    pub fn len(&self) -> i64 {
        self.shape().iter().product()
    }
}

#[repr(C)]
struct DlDevice {
    kind: c_int,
    id: i32,
}

#[repr(C)]
struct DlDataType {
    code: u8,
    bits: u8,
    lanes: u16,
}

#[repr(C)]
struct DlTensor {
    data: *mut c_void,
    device: DlDevice,
    ndim: i32,
    dtype: DlDataType,
    shape: *const i64,
    strides: *const i64,
    byte_offset: u64,
}

impl DlTensor {
    const EMPTY: Self = Self {
        data: std::ptr::null_mut(),
        device: DlDevice { kind: 0, id: 0 },
        ndim: 0,
        dtype: DlDataType { code: 0, bits: 0, lanes: 0 },
        shape: std::ptr::null(),
        strides: std::ptr::null(),
        byte_offset: 0,
    };

    /// # Safety
    /// `shape`, and `strides` where not null, point to `ndim` numbers.
    unsafe fn view(&self, name: &str) -> PyResult<View> {
        let rank = usize::try_from(self.ndim).unwrap_or(0);
        if rank > MOST {
            return Err(PyValueError::new_err(format!("{name}: has {rank} dimensions, at most {MOST} are known")));
        }
        let device = match self.device.kind {
            // The processor's memory; memory that CUDA has pinned is the processor's as well.
            1 | 3 => Device::Host,
            2 => Device::Cuda(self.device.id.max(0) as u32),
            kind => {
                let what =
                    format!("{name}: is on a device that is neither the processor nor a CUDA GPU (DLPack {kind})");
                return Err(PyValueError::new_err(what));
            }
        };
        if self.dtype.lanes != 1 {
            let what = format!("{name}: each element is {} numbers, which no kernel takes", self.dtype.lanes);
            return Err(PyValueError::new_err(what));
        }
        let element = match (self.dtype.code, self.dtype.bits) {
            (2, 32) => Element::Float(DType::F32),
            (2, 16) => Element::Float(DType::F16),
            (4, 16) => Element::Float(DType::BF16),
            (10, 8) => Element::Float(DType::E4M3),
            (0, 32) => Element::I32,
            (0, 64) => Element::I64,
            (code, bits) => Element::Other { code, bits },
        };
        let (mut shape, mut strides) = ([1; MOST], [0; MOST]);
        if rank > 0 {
            // SAFETY: this function's contract.
            shape[..rank].copy_from_slice(unsafe { std::slice::from_raw_parts(self.shape, rank) });
            if self.strides.is_null() {
                let mut stride = 1i64;
                for axis in (0..rank).rev() {
                    strides[axis] = stride;
                    stride = stride.saturating_mul(shape[axis]);
                }
            } else {
                // SAFETY: this function's contract.
                strides[..rank].copy_from_slice(unsafe { std::slice::from_raw_parts(self.strides, rank) });
            }
        }
        if shape.iter().any(|&n| n < 0) {
            return Err(PyValueError::new_err(format!("{name}: has a negative size")));
        }
        Ok(View { address: self.data as u64 + self.byte_offset, element, device, rank, shape, strides })
    }
}

#[repr(C)]
struct Version {
    major: u32,
    minor: u32,
}

/// `DLPackExchangeAPI` of dlpack.h 1.3. Functions that are not called here are pointers without a type.
#[repr(C)]
struct RawExchange {
    version: Version,
    previous: *const c_void,
    allocate: *const c_void,
    managed_from_object: *const c_void,
    managed_to_object: *const c_void,
    tensor_from_object: Option<unsafe extern "C" fn(*mut c_void, *mut DlTensor) -> c_int>,
    current_stream: Option<unsafe extern "C" fn(c_int, i32, *mut *mut c_void) -> c_int>,
}

/// A library's C exchange API.
#[derive(Clone, Copy)]
pub struct Exchange(NonNull<RawExchange>);

// SAFETY: the table is immutable and lives as long as the process; its functions are called with the GIL held.
unsafe impl Send for Exchange {}
// SAFETY: as above.
unsafe impl Sync for Exchange {}

impl Exchange {
    /// The API of a tensor type; `None` where it has none that is understood.
    pub fn of(tensor_type: &Bound<'_, PyAny>) -> Option<Self> {
        const NAME: &CStr = c"dlpack_exchange_api";
        let capsule = tensor_type.getattr("__dlpack_c_exchange_api__").ok()?;
        let capsule = capsule.cast::<PyCapsule>().ok()?;
        let table = capsule.pointer_checked(Some(NAME)).ok()?.cast::<RawExchange>();
        // SAFETY: a capsule of this name holds a `DLPackExchangeAPI`, which lives as long as the process; its first field
        // is the version, whatever the version.
        let major = unsafe { table.as_ref() }.version.major;
        (major == 1).then_some(Self(table))
    }

    /// What an object of the API's tensor type is; `None` where the library does not say it: such a tensor has no memory of
    /// its own. Does not synchronise.
    pub fn view(self, name: &str, object: &Bound<'_, PyAny>) -> PyResult<Option<View>> {
        // SAFETY: see `of`.
        let Some(from_object) = (unsafe { self.0.as_ref() }).tensor_from_object else {
            return Err(PyTypeError::new_err("the tensor library's exchange API lacks a function"));
        };
        let mut tensor = DlTensor::EMPTY;
        // SAFETY: the object is a live tensor of the API's type, the GIL is held, the struct is valid for a write.
        if unsafe { from_object(object.as_ptr().cast(), &raw mut tensor) } != 0 {
            drop(fetch(object.py())); // its text is that of the library's C++
            return Ok(None);
        }
        // SAFETY: shape and strides are the object's own, which is alive.
        unsafe { tensor.view(name) }.map(Some)
    }

    /// The stream that the library works on now.
    pub fn stream(self, py: Python<'_>, gpu: u32) -> PyResult<u64> {
        // SAFETY: see `of`.
        let Some(current) = (unsafe { self.0.as_ref() }).current_stream else {
            return Err(PyTypeError::new_err("the tensor library's exchange API lacks a function"));
        };
        let mut stream = std::ptr::null_mut();
        // SAFETY: the pointer is valid for a write; 2 is kDLCUDA.
        if unsafe { current(2, gpu as i32, &raw mut stream) } != 0 {
            return Err(fetch(py));
        }
        Ok(stream as u64)
    }
}

/// The error that a C function has set.
fn fetch(py: Python<'_>) -> PyErr {
    PyErr::take(py).unwrap_or_else(|| PyTypeError::new_err("the tensor library failed without an error"))
}

/// `DLManagedTensorVersioned`, which alone can say that memory is only to be read.
#[repr(C)]
struct DlManagedVersioned {
    version: Version,
    manager: *const c_void,
    deleter: *const c_void,
    flags: u64,
    tensor: DlTensor,
}

const READ_ONLY: u64 = 1;

/// A tensor that is not to be written, such as a read-only array of NumPy, which the older form of `__dlpack__` refuses.
fn borrow_read_only<'py>(
    name: &str,
    object: &Bound<'py, PyAny>,
    kwargs: &Bound<'py, PyDict>,
    written: bool,
) -> PyResult<Borrowed<'py>> {
    kwargs.set_item("max_version", (1, 0))?;
    let capsule = object.call_method("__dlpack__", (), Some(kwargs))?;
    let pointer = capsule.cast::<PyCapsule>().map_err(PyErr::from)?.pointer_checked(Some(c"dltensor_versioned"))?;
    // SAFETY: a capsule of this name holds a `DLManagedTensorVersioned`, which lives as long as the capsule; its first field
    // is the version, whatever the version.
    let major = unsafe { pointer.cast::<Version>().as_ref() }.major;
    if major != 1 {
        return Err(PyTypeError::new_err(format!("{name}: is handed over in DLPack {major}, 1 is known")));
    }
    // SAFETY: as above, of version 1, which is not marked as used.
    let tensor = unsafe { pointer.cast::<DlManagedVersioned>().as_ref() };
    if written && tensor.flags & READ_ONLY != 0 {
        return Err(PyValueError::new_err(format!("{name}: is read-only, and would be written; hint: pass a copy")));
    }
    // SAFETY: as above; shape and strides are the tensor's own.
    let view = unsafe { tensor.tensor.view(name) }?;
    Ok(Borrowed { view, _capsule: capsule })
}

/// A tensor that `__dlpack__` has given, kept for as long as the capsule lives.
pub struct Borrowed<'py> {
    pub view: View,
    _capsule: Bound<'py, PyAny>,
}

/// What `object.__dlpack__()` says, for the library's current work to be waited for on `stream` (as `DLPack` numbers them).
pub fn borrow<'py>(
    name: &str,
    object: &Bound<'py, PyAny>,
    stream: Option<i64>,
    written: bool,
) -> PyResult<Borrowed<'py>> {
    let py = object.py();
    let not_a_tensor = |e: PyErr| {
        let what = format!("{name}: '{}' is no tensor that DLPack can hand over", object.get_type());
        let error = PyTypeError::new_err(what);
        error.set_cause(py, Some(e));
        error
    };
    let kwargs = PyDict::new(py);
    if let Some(stream) = stream {
        kwargs.set_item("stream", stream)?;
    }
    let capsule = match object.call_method("__dlpack__", (), Some(&kwargs)) {
        Ok(capsule) => capsule,
        Err(e) if e.is_instance_of::<PyBufferError>(py) => {
            return borrow_read_only(name, object, &kwargs, written)
                .map_err(|again| if again.is_instance_of::<PyValueError>(py) { again } else { not_a_tensor(e) });
        }
        Err(e) => return Err(not_a_tensor(e)),
    };
    let pointer = capsule.cast::<PyCapsule>().map_err(PyErr::from)?.pointer_checked(Some(c"dltensor"))?;
    // SAFETY: a capsule of this name holds a `DLManagedTensor`, which begins with its `DLTensor` and lives as long as the
    // capsule, which is kept and not marked as used: its destructor frees the tensor.
    let view = unsafe { pointer.cast::<DlTensor>().as_ref().view(name) }?;
    Ok(Borrowed { view, _capsule: capsule })
}

/// The address of a Python type, to compare with that of an object's type.
pub fn type_of(object: &Bound<'_, PyAny>) -> *mut ffi::PyTypeObject {
    object.get_type_ptr()
}
