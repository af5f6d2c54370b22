//! What is needed of PyTorch, looked up once, and only where the program has imported it.

#![allow(unsafe_code)]

use std::ffi::c_void;
use std::{mem, ptr};

use pyo3::ffi;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyCFunction, PyTuple};

use crate::dlpack::{self, Borrowed, Device, Exchange, View};
use crate::errors::wrong;

/// PyTorch, as far as it is used here.
pub struct Torch {
    tensor_type: usize,
    parameter_type: usize,
    exchange: Option<Exchange>,
    pub empty_like: Py<PyAny>,
    pub is_grad_enabled: Py<PyAny>,
    is_negated: Method,
    requires_grad: Property,
    version: Property,
    is_inference_mode: Py<PyAny>,
    dispatch_modes: Py<PyAny>,
    is_tracing: Py<PyAny>,
    forward_ad: Py<PyAny>,
    no_level: Py<PyAny>,
    increment_version: Py<PyAny>,
}

/// What an argument is.
pub enum Kind {
    /// A `torch.Tensor` or `Parameter`, nothing in between.
    Plain,
    /// A subclass, such as the stand-ins of a tracer: only PyTorch's dispatcher knows what to do.
    Subclass,
    /// Of another library.
    Foreign,
}

impl Torch {
    /// PyTorch, if it is imported.
    pub fn get(py: Python<'_>) -> Option<&'static Self> {
        static TORCH: PyOnceLock<Torch> = PyOnceLock::new();
        if let Some(torch) = TORCH.get(py) {
            return Some(torch);
        }
        let modules = py.import("sys").and_then(|sys| sys.getattr("modules")).ok()?;
        let torch = modules.get_item("torch").ok()?;
        let found = Self::look_up(&torch).ok()?;
        Some(TORCH.get_or_init(py, || found))
    }

    fn look_up(torch: &Bound<'_, PyAny>) -> PyResult<Self> {
        let tensor = torch.getattr("Tensor")?;
        let parameter = torch.getattr("nn")?.getattr("Parameter")?;
        Ok(Self {
            tensor_type: tensor.as_ptr() as usize,
            parameter_type: parameter.as_ptr() as usize,
            exchange: Exchange::of(&tensor),
            empty_like: torch.getattr("empty_like")?.unbind(),
            is_grad_enabled: torch.getattr("is_grad_enabled")?.unbind(),
            is_negated: Method::of(&tensor, &torch.call_method1("empty", (0,))?, "is_neg")?,
            requires_grad: Property::of(&tensor, "requires_grad")?,
            version: Property::of(&tensor, "_version")?,
            is_inference_mode: torch.getattr("is_inference_mode_enabled")?.unbind(),
            dispatch_modes: torch.getattr("_C")?.getattr("_len_torch_dispatch_stack")?.unbind(),
            is_tracing: torch.getattr("_C")?.getattr("_is_tracing")?.unbind(),
            forward_ad: torch.getattr("autograd")?.getattr("forward_ad")?.unbind(),
            no_level: (-1i64).into_pyobject(torch.py())?.into_any().unbind(),
            increment_version: torch.getattr("_C")?.getattr("_increment_version")?.unbind(),
        })
    }

    pub fn kind(&self, object: &Bound<'_, PyAny>) -> Kind {
        let is = dlpack::type_of(object) as usize;
        if is == self.tensor_type || is == self.parameter_type {
            Kind::Plain
        } else if object.hasattr(intern!(object.py(), "__torch_function__")).unwrap_or(false) {
            Kind::Subclass
        } else {
            Kind::Foreign
        }
    }

    /// What a tensor is, where a kernel may read its memory as it lies there. `None`: it has none (zero, meta, sparse and
    /// freed tensors, those of `torch.func`), or its memory does not hold its numbers (a negated view).
    pub fn view(&self, name: &str, tensor: &Bound<'_, PyAny>) -> PyResult<Option<View>> {
        match self.memory(name, tensor)? {
            Some(_) if self.is_negated.says(tensor)? => Ok(None),
            view => Ok(view),
        }
    }

    /// What a tensor is that PyTorch has just made, which is no view.
    pub fn view_of_new(&self, name: &str, tensor: &Bound<'_, PyAny>) -> PyResult<View> {
        self.memory(name, tensor)?.ok_or_else(|| wrong(name, "PyTorch made a tensor without memory for it"))
    }

    /// The same, but that its memory may hold its numbers with the other sign.
    pub fn memory(&self, name: &str, tensor: &Bound<'_, PyAny>) -> PyResult<Option<View>> {
        let view = match self.exchange {
            Some(exchange) => exchange.view(name, tensor)?,
            // Alive for as long as the tensor, so the capsule need not be kept.
            None => detached(name, tensor).map(|b| b.view).ok(),
        };
        Ok(view.filter(|view| view.address != 0 || view.len() == 0))
    }

    /// The stream that PyTorch works on now, on this device.
    pub fn stream(&self, py: Python<'_>, device: Device) -> PyResult<u64> {
        match (device, self.exchange) {
            (Device::Host, _) => Ok(0),
            (Device::Cuda(gpu), Some(exchange)) => exchange.stream(py, gpu),
            (Device::Cuda(gpu), None) => {
                let current = py.import("torch.cuda")?.call_method1("current_stream", (gpu,))?;
                current.getattr("cuda_stream")?.extract()
            }
        }
    }

    pub fn is_grad_enabled(&self, py: Python<'_>) -> PyResult<bool> {
        self.is_grad_enabled.bind(py).call0()?.is_truthy()
    }

    /// Whether somebody wants to see every operator: `torch.jit.trace`, or a mode, as tracers of plain tensors and selective
    /// checkpointing have.
    pub fn is_watched(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self.dispatch_modes.bind(py).call0()?.is_truthy()? || self.is_tracing.bind(py).call0()?.is_truthy()?)
    }

    /// Whether autograd has to know of what is done with this tensor.
    pub fn requires_grad(&self, tensor: &Bound<'_, PyAny>) -> PyResult<bool> {
        self.requires_grad.get(tensor)?.is_truthy()
    }

    /// Whether one of the tensors carries a tangent (forward-mode differentiation).
    pub fn any_tangent(&self, py: Python<'_>, tensors: &[Option<&Bound<'_, PyAny>>]) -> PyResult<bool> {
        let forward_ad = self.forward_ad.bind(py);
        let level = forward_ad.getattr(intern!(py, "_current_level"))?;
        // The interpreter has one −1: mostly it need not be read.
        if level.is(&self.no_level) || level.extract::<i64>()? < 0 {
            return Ok(false);
        }
        for tensor in tensors.iter().flatten() {
            if !forward_ad.call_method1("unpack_dual", (tensor,))?.getattr("tangent")?.is_none() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Tells autograd that tensors are about to be written, so that a graph that has saved one will not use it. Tensors of
    /// inference mode are refused outside of it, as PyTorch's own operations do.
    pub fn will_write(&self, tensors: &Bound<'_, PyTuple>) -> PyResult<()> {
        for tensor in tensors.iter_borrowed() {
            // Tensors of inference mode have no version.
            if self.version.get(&tensor).is_err() && !self.is_inference_mode.bind(tensor.py()).call0()?.is_truthy()? {
                // Raises PyTorch's own error; would write nothing, since what is narrowed has no element.
                let nothing = tensor.call_method1(intern!(tensor.py(), "narrow"), (0, 0, 0))?;
                nothing.call_method0(intern!(tensor.py(), "zero_"))?;
            }
        }
        self.increment_version.bind(tensors.py()).call1((tensors,)).map(drop)
    }
}

/// PyTorch before 2.10: its DLPack refuses tensors that require a gradient, and −1 says not to synchronise.
fn detached<'py>(name: &str, tensor: &Bound<'py, PyAny>) -> PyResult<Borrowed<'py>> {
    let detached = tensor.call_method0(intern!(tensor.py(), "detach"))?;
    dlpack::borrow(name, &detached, Some(-1), false)
}

/// A method of tensors that takes nothing and says yes or no. A call through its C function spares the interpreter's look-up
/// of the name, which costs as much as the answer.
struct Method {
    name: &'static str,
    class: Py<PyAny>,
    function: Option<ffi::PyCFunction>,
}

impl Method {
    /// That of a class, through one of its objects.
    fn of(class: &Bound<'_, PyAny>, object: &Bound<'_, PyAny>, name: &'static str) -> PyResult<Self> {
        let method = object.getattr(name)?;
        let function = if method.is_instance_of::<PyCFunction>() {
            // SAFETY: a live object of the type that this function is for.
            let flags = unsafe { ffi::PyCFunction_GetFlags(method.as_ptr()) };
            // SAFETY: as above.
            (flags == ffi::METH_NOARGS).then(|| unsafe { ffi::PyCFunction_GetFunction(method.as_ptr()) }).flatten()
        } else {
            None
        };
        Ok(Self { name, class: class.clone().unbind(), function })
    }

    fn says(&self, object: &Bound<'_, PyAny>) -> PyResult<bool> {
        let py = object.py();
        // SAFETY: both are live objects, the second is a type.
        let fits = unsafe { ffi::PyObject_TypeCheck(object.as_ptr(), self.class.as_ptr().cast()) } != 0;
        let Some(function) = self.function.filter(|_| fits) else {
            return object.call_method0(self.name)?.is_truthy();
        };
        // SAFETY: a method without arguments is called with an object of its class and a null, while the GIL is held. PyTorch,
        // whose function it is, is never unloaded.
        let answer = unsafe { function(object.as_ptr(), ptr::null_mut()) };
        // SAFETY: a new reference, or null with an error set.
        unsafe { Bound::from_owned_ptr_or_err(py, answer) }?.is_truthy()
    }
}

/// An attribute of tensors, read through its C function.
struct Property {
    name: &'static str,
    class: Py<PyAny>,
    descriptor: Py<PyAny>,
    function: Option<ffi::descrgetfunc>,
}

impl Property {
    fn of(class: &Bound<'_, PyAny>, name: &'static str) -> PyResult<Self> {
        let descriptor = class.getattr(name)?;
        // SAFETY: a live type; the slot of this number is null or such a function.
        let slot = unsafe { ffi::PyType_GetSlot(descriptor.get_type_ptr(), ffi::Py_tp_descr_get) };
        // SAFETY: as above.
        let function = unsafe { mem::transmute::<*mut c_void, Option<ffi::descrgetfunc>>(slot) };
        Ok(Self { name, class: class.clone().unbind(), descriptor: descriptor.unbind(), function })
    }

    fn get<'py>(&self, object: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let Some(function) = self.function else { return object.getattr(self.name) };
        // SAFETY: what a look-up of the attribute calls, with the descriptor, the object, which it checks, and the class, while
        // the GIL is held.
        let value = unsafe { function(self.descriptor.as_ptr(), object.as_ptr(), self.class.as_ptr()) };
        // SAFETY: a new reference, or null with an error set.
        unsafe { Bound::from_owned_ptr_or_err(object.py(), value) }
    }
}
