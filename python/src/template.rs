//! Kernels of the user's own: a `.toml` and a `.cu` become a callable.

#![allow(unsafe_code)]

use std::ffi::c_void;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use pyo3::exceptions::{PyNotImplementedError, PyTypeError};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyString, PyTuple};
use ropejit::families::template::{Arg, Element, Given, Template, TemplateKernel};
use ropejit::{DType, Stream};

use crate::dlpack::{self, Borrowed, Device, View};
use crate::engines;
use crate::errors::{guarded, raise, wrong};
use crate::foreign;
use crate::torch::{Kind, Torch};

/// A kernel in use.
struct InUse {
    /// Its device, and the values of its spec.
    device: Device,
    spec: Box<[i64]>,
    kernel: TemplateKernel,
}

/// See `ropejit.template`.
#[pyclass(frozen, name = "Template", module = "ropejit")]
pub struct PyTemplate {
    template: Template,
    /// Few, which go with the object: what is compiled stays with the engine. Held by who holds the GIL only, so that it is
    /// free in a child of `os.fork()`, which takes the GIL first.
    in_use: Mutex<Vec<Arc<InUse>>>,
    arguments: Vec<Named>,
    spec_keys: Vec<Py<PyString>>,
}

/// An argument of the kernel.
struct Named {
    name: String,
    /// The same, as keywords have it.
    keyword: Py<PyString>,
    is_tensor: bool,
    is_written: bool,
}

/// A tensor or a number of a call.
enum Value {
    Nothing,
    Integer(i64),
    Float(f64),
    Tensor(Element, View),
}

#[pymethods]
impl PyTemplate {
    #[new]
    fn new(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        guarded(|| {
            let template = Template::load(path).map_err(raise)?;
            let keyword = |name: &str| PyString::intern(py, name).unbind();
            let named = |(name, is_tensor, is_written): (&str, bool, bool)| Named {
                name: name.to_owned(),
                keyword: keyword(name),
                is_tensor,
                is_written,
            };
            Ok(Self {
                in_use: Mutex::default(),
                arguments: template.arguments().map(named).collect(),
                spec_keys: template.spec_keys().map(keyword).collect(),
                template,
            })
        })
    }

    /// Launches the kernel. Each argument is given by its name; sizes and the spec follow from the tensors.
    #[pyo3(signature = (*args, **kwargs))]
    fn __call__(&self, args: &Bound<'_, PyTuple>, kwargs: Option<&Bound<'_, PyDict>>) -> PyResult<()> {
        if !args.is_empty() {
            let names: Vec<_> = self.arguments.iter().map(|a| a.name.as_str()).collect();
            let what = format!("arguments are given by name: {}", names.join(", "));
            return Err(PyTypeError::new_err(what));
        }
        let kwargs = match kwargs {
            Some(kwargs) => kwargs.clone(),
            None => PyDict::new(args.py()),
        };
        guarded(|| self.call(&kwargs))
    }

    /// The family's name.
    #[getter]
    fn family(&self) -> &str {
        self.template.family()
    }

    /// Why the processor cannot run it; `None` where it can.
    #[getter]
    fn gpu_only(&self) -> Option<&str> {
        self.template.gpu_only()
    }

    fn __repr__(&self) -> String {
        format!("ropejit.template({:?})", self.template.path().display().to_string())
    }
}

impl PyTemplate {
    fn call(&self, kwargs: &Bound<'_, PyDict>) -> PyResult<()> {
        let py = kwargs.py();
        let torch = Torch::get(py);
        let mut objects: Vec<Option<Bound<'_, PyAny>>> = Vec::with_capacity(self.arguments.len());
        let mut values = Vec::with_capacity(self.arguments.len());
        let mut held: Vec<Borrowed<'_>> = Vec::new();
        let (mut taken, mut device) = (0, None);
        for argument in &self.arguments {
            let object = kwargs.get_item(&argument.keyword)?;
            taken += usize::from(object.is_some());
            let value = match &object {
                None => Value::Nothing,
                Some(object) if argument.is_tensor => tensor(torch, argument, object, &mut held)?,
                Some(object) => number(&argument.name, object)?,
            };
            if let Value::Tensor(_, view) = &value {
                let (first, on) = device.get_or_insert((argument.name.as_str(), view.device));
                if *on != view.device {
                    return Err(wrong(&argument.name, format!("is on {}, {first} on {on}", view.device)));
                }
            }
            objects.push(object);
            values.push(value);
        }
        self.apart(&values)?;
        let words = self.words(kwargs, taken)?;
        let words: Vec<Option<&str>> = words.iter().map(Option::as_deref).collect();
        let given: Vec<Given<'_>> = values.iter().map(Value::given).collect();
        let inferred = self.template.infer(&given, &words).map_err(raise)?;
        let device = device.map_or(Device::Host, |(_, device)| device);
        let mut args = Vec::with_capacity(values.len());
        for (i, (value, argument)) in values.iter().zip(&self.arguments).enumerate() {
            args.push(match value {
                Value::Float(x) => (*x).into(),
                Value::Tensor(element, view) => raw(view, *element)?,
                _ if argument.is_tensor => return Err(wrong(&argument.name, "is missing")),
                Value::Nothing | Value::Integer(_) => inferred.number(i).into(),
            });
        }
        let in_use = self.kernel(py, device, inferred.spec(), || self.template.spec_words(&inferred))?;
        let stream = match torch {
            Some(torch) => torch.stream(py, device)?,
            None => 0,
        };
        if let Some(torch) = torch {
            let written = objects.iter().zip(&self.arguments).filter(|(_, argument)| argument.is_written);
            let plain = |object: &&Bound<'_, PyAny>| matches!(torch.kind(object), Kind::Plain);
            let written: Vec<_> = written.filter_map(|(object, _)| object.as_ref()).filter(plain).collect();
            torch.will_write(&PyTuple::new(py, written)?)?;
        }
        launch(py, &in_use.kernel, device, stream, &args)?;
        drop(held);
        Ok(())
    }

    /// What is written lies in no other tensor's memory.
    fn apart(&self, values: &[Value]) -> PyResult<()> {
        let bytes = |value: &Value| match value {
            Value::Tensor(element, view) => {
                let start = view.address;
                Some(start..start + view.len() as u64 * element.size() as u64)
            }
            _ => None,
        };
        for (i, written) in values.iter().enumerate().filter(|(i, _)| self.arguments[*i].is_written) {
            let Some(written) = bytes(written) else { continue };
            for (j, other) in values.iter().enumerate().filter(|(j, _)| *j != i) {
                let Some(other) = bytes(other) else { continue };
                if written.start.max(other.start) < written.end.min(other.end) {
                    let what = format!(
                        "is written, and shares memory with {}\nhint: give it memory of its own, such as {}.clone()",
                        self.arguments[j].name, self.arguments[i].name
                    );
                    return Err(wrong(&self.arguments[i].name, what));
                }
            }
        }
        Ok(())
    }

    /// The words of the spec that are given by name; all other keywords have been taken as arguments.
    fn words(&self, kwargs: &Bound<'_, PyDict>, mut taken: usize) -> PyResult<Vec<Option<String>>> {
        let mut words = Vec::new();
        for key in &self.spec_keys {
            let value = kwargs.get_item(key)?;
            taken += usize::from(value.is_some());
            words.push(value.map(|v| v.str().map(|s| s.to_string_lossy().into_owned())).transpose()?);
        }
        if taken == kwargs.len() {
            return Ok(words);
        }
        for key in kwargs.keys() {
            let key = key.str()?.to_string_lossy().into_owned();
            let is_spec = self.template.spec_keys().any(|k| k == key);
            if !is_spec && !self.arguments.iter().any(|a| a.name == key) {
                let names: Vec<_> = self.arguments.iter().map(|a| a.name.as_str()).collect();
                let what = format!(
                    "{key}: {} has no such argument\nhint: it has {}",
                    self.template.family(),
                    names.join(", ")
                );
                return Err(PyTypeError::new_err(what));
            }
        }
        Ok(words)
    }

    /// The kernel of a spec on a device: no hash, and one comparison where there is one.
    fn kernel(
        &self,
        py: Python<'_>,
        device: Device,
        spec: &[i64],
        words: impl Fn() -> Vec<(String, String)>,
    ) -> PyResult<Arc<InUse>> {
        let is = |k: &&Arc<InUse>| k.device == device && *k.spec == *spec;
        if let Some(found) = self.in_use.lock().unwrap_or_else(PoisonError::into_inner).iter().find(is) {
            return Ok(Arc::clone(found));
        }
        let engine = engines::engine(py, device)?;
        let kernel = engine.template(&self.template).and_then(|on| on.spec(words())).map_err(raise)?;
        let made = Arc::new(InUse { device, spec: spec.into(), kernel });
        self.in_use.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&made));
        Ok(made)
    }
}

impl Value {
    fn given(&self) -> Given<'_> {
        match self {
            Self::Nothing => Given::Nothing,
            Self::Integer(n) => Given::Integer(*n),
            Self::Float(x) => Given::Float(*x),
            Self::Tensor(element, view) => Given::Tensor(*element, view.shape()),
        }
    }
}

/// What a tensor is: of PyTorch, or of another library in the processor's memory.
fn tensor<'py>(
    torch: Option<&Torch>,
    argument: &Named,
    object: &Bound<'py, PyAny>,
    held: &mut Vec<Borrowed<'py>>,
) -> PyResult<Value> {
    let name = &argument.name;
    let kind = torch.map_or(Kind::Foreign, |torch| torch.kind(object));
    let view = match (torch, kind) {
        (Some(torch), Kind::Plain) => {
            if torch.is_grad_enabled(object.py())? && torch.requires_grad(object)? {
                let what = "requires a gradient, and the kernel has no backward\nhint: call it under torch.no_grad(), or \
                            in a torch.autograd.Function";
                return Err(wrong(name, what));
            }
            torch.view(name, object)?.ok_or_else(|| {
                wrong(
                    name,
                    "its memory does not hold its numbers (a meta, sparse or negated tensor, or one of torch.func)",
                )
            })?
        }
        (_, Kind::Subclass) => {
            let what = format!(
                "{name}: is a subclass of torch.Tensor, such as a tracer's\nhint: wrap the call in torch.library.custom_op"
            );
            return Err(PyNotImplementedError::new_err(what));
        }
        _ => {
            if argument.is_written && foreign::is_immutable(object) {
                return Err(wrong(name, "is written, and JAX's arrays are immutable"));
            }
            let borrowed = dlpack::borrow(name, object, None, argument.is_written)?;
            let view = borrowed.view;
            if view.device != Device::Host {
                let what = format!(
                    "{name}: is on {} and of another library than PyTorch\nhint: torch.from_dlpack(…) hands it over",
                    view.device
                );
                return Err(PyNotImplementedError::new_err(what));
            }
            held.push(borrowed);
            view
        }
    };
    if !view.is_contiguous() {
        return Err(wrong(name, "is not contiguous\nhint: .contiguous() makes a copy that is"));
    }
    Ok(Value::Tensor(element(name, &view)?, view))
}

fn element(name: &str, view: &View) -> PyResult<Element> {
    Ok(match view.element {
        dlpack::Element::Float(DType::F32) => Element::F32,
        dlpack::Element::Float(DType::F16) => Element::F16,
        dlpack::Element::Float(DType::BF16) => Element::Bf16,
        dlpack::Element::I32 => Element::I32,
        dlpack::Element::I64 => Element::I64,
        dlpack::Element::Other { code: 2, bits: 64 } => Element::F64,
        dlpack::Element::Other { code: 0, bits: 8 } => Element::I8,
        // Booleans are bytes of 0 and 1.
        dlpack::Element::Other { code: 1 | 6, bits: 8 } => Element::U8,
        dlpack::Element::Other { code: 0, bits: 16 } => Element::I16,
        dlpack::Element::Other { code: 1, bits: 16 } => Element::U16,
        dlpack::Element::Other { code: 1, bits: 32 } => Element::U32,
        dlpack::Element::Other { code: 1, bits: 64 } => Element::U64,
        dlpack::Element::Float(DType::E4M3) => {
            return Err(wrong(name, "has elements that no kernel takes (float8_e4m3fn)"));
        }
        dlpack::Element::Other { code, bits } => {
            return Err(wrong(name, format!("has elements that no kernel takes ({})", dlpack::type_name(code, bits))));
        }
    })
}

fn number(name: &str, object: &Bound<'_, PyAny>) -> PyResult<Value> {
    if let Ok(n) = object.extract::<i64>()
        && !object.is_instance_of::<PyBool>()
    {
        return Ok(Value::Integer(n));
    }
    let float = object.extract::<f64>().ok().filter(|_| !object.is_instance_of::<PyBool>());
    float.map(Value::Float).ok_or_else(|| wrong(name, format!("is a {}, and should be a number", object.get_type())))
}

fn raw(view: &View, element: Element) -> PyResult<Arg<'static>> {
    let mut shape = [0u64; dlpack::MOST];
    for (to, from) in shape.iter_mut().zip(view.shape()) {
        *to = *from as u64;
    }
    // SAFETY: the view is of a live contiguous tensor, which the caller's frame holds until the launch; until the stream has
    // passed it, the tensor library keeps freed memory for its own stream, the one launched on.
    unsafe { Arg::from_raw(view.address as *mut c_void, element, &shape[..view.rank]) }.map_err(raise)
}

/// Without the GIL where that may take long: where a kernel has to be found first, and on the processor, where the launch is
/// the work.
fn launch(py: Python<'_>, kernel: &TemplateKernel, device: Device, stream: u64, args: &[Arg<'static>]) -> PyResult<()> {
    // SAFETY: the tensor library's current stream of this device, which lives as long as the library says so.
    let stream = move || unsafe { Stream::from_raw(stream as *mut c_void) };
    if device != Device::Host && kernel.launch_if_loaded(stream(), args).map_err(raise)? {
        return Ok(());
    }
    let args = Across(args);
    py.detach(move || args.launch(kernel, stream())).map_err(raise)
}

/// Arguments for a launch without the GIL.
struct Across<'a>(&'a [Arg<'static>]);

// SAFETY: they hold addresses and numbers only, made by `raw`.
unsafe impl Send for Across<'_> {}

impl Across<'_> {
    fn launch(self, kernel: &TemplateKernel, stream: Stream<'_>) -> ropejit::Result<()> {
        kernel.launch(stream, self.0).map(drop)
    }
}
