//! What is needed of PyTorch, looked up once, and only where the program has imported it.

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyTuple;

use crate::dlpack::{self, Borrowed, Device, Exchange, View};

/// PyTorch, as far as it is used here.
pub struct Torch {
    tensor_type: usize,
    parameter_type: usize,
    exchange: Option<Exchange>,
    pub empty_like: Py<PyAny>,
    pub is_grad_enabled: Py<PyAny>,
    dispatch_modes: Py<PyAny>,
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
            dispatch_modes: torch.getattr("_C")?.getattr("_len_torch_dispatch_stack")?.unbind(),
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

    /// What a plain tensor is.
    pub fn view(&self, name: &str, tensor: &Bound<'_, PyAny>) -> PyResult<View> {
        match self.exchange {
            Some(exchange) => exchange.view(name, tensor),
            // Alive for as long as the tensor, so the capsule need not be kept.
            None => detached(name, tensor).map(|b| b.view),
        }
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

    /// Whether a mode wants to see every operator, as tracers of plain tensors and selective checkpointing do.
    pub fn is_watched(&self, py: Python<'_>) -> PyResult<bool> {
        self.dispatch_modes.bind(py).call0()?.is_truthy()
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

    /// Tells autograd that tensors were written, so that a graph that has saved one will not use it.
    pub fn wrote(&self, tensors: &Bound<'_, PyTuple>) -> PyResult<()> {
        self.increment_version.bind(tensors.py()).call1((tensors,)).map(drop)
    }
}

/// PyTorch before 2.10: its DLPack refuses tensors that require a gradient, and −1 says not to synchronise.
fn detached<'py>(name: &str, tensor: &Bound<'py, PyAny>) -> PyResult<Borrowed<'py>> {
    let detached = tensor.call_method0(intern!(tensor.py(), "detach"))?;
    dlpack::borrow(name, &detached, Some(-1))
}

/// Whether autograd has to know of what is done with this tensor.
pub fn requires_grad(tensor: &Bound<'_, PyAny>) -> PyResult<bool> {
    tensor.getattr(intern!(tensor.py(), "requires_grad"))?.is_truthy()
}
