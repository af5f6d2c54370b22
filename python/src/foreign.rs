//! Arrays of libraries other than PyTorch (NumPy, CuPy, JAX, …), through `__dlpack__`.
//!
//! On a GPU two orders matter. What the arrays' library has put on its streams comes before the launch: `__dlpack__(stream=…)` sees
//! to that. And what the library does next comes after it, which `DLPack` has no word for. So the launch goes on the
//! stream that the library works on now, where it says which that is. Where it does not, or where the arrays of a call are
//! of several libraries on several streams, the call returns when the launch has ended: whatever is done next comes after it.

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyTuple, PyType};

use crate::call::{Call, Tensors};
use crate::dlpack::{self, Borrowed, Exchange};
use crate::form::Form;
use crate::objects::Objects;

/// The legacy default stream, for the driver and for `DLPack`, which has no stream 0.
const DEFAULT: (u64, i64) = (0, 1);

/// Rotates arrays.
pub fn rotate<'py>(o: &Objects<'_, 'py>, form: &Form, inplace: bool) -> PyResult<Bound<'py, PyTuple>> {
    let py = o.q.py();
    if inplace && is_immutable(o.q) {
        return Err(PyValueError::new_err("q: JAX's arrays are immutable, they cannot be written in place"));
    }
    let gpu = gpu_of(o.q)?;
    let stream = gpu.map(|gpu| stream_of(o.q, gpu)).transpose()?.flatten();
    // Whether the launch has to end before the call does.
    let mut wait = gpu.is_some() && stream.is_none();
    let (handle, number) = match stream {
        None | Some(0) => DEFAULT,
        Some(stream) => (stream, stream as i64),
    };
    let mut held: Vec<Borrowed<'py>> = Vec::new();
    let mut look = |name: &str, object: &Bound<'py, PyAny>, written: bool| {
        if let (Some(gpu), false) = (gpu, wait || dlpack::type_of(object) == dlpack::type_of(o.q)) {
            wait = stream_of(object, gpu)? != stream;
        }
        let borrowed = dlpack::borrow(name, object, gpu.map(|_| number), written)?;
        let view = borrowed.view;
        held.push(borrowed);
        Ok::<_, PyErr>(view)
    };
    let mut tensors = Tensors {
        q: look("q", o.q, inplace)?,
        k: o.k.map(|k| look("k", k, inplace)).transpose()?,
        q_out: None,
        k_out: None,
        cos: look("cos", o.cos, false)?,
        sin: look("sin", o.sin, false)?,
        place: o.place(&mut |name, object| look(name, object, false))?,
    };
    let like = |x: &Bound<'py, PyAny>| if inplace { Ok(x.clone()) } else { empty_like(x) };
    let (q, k) = (like(o.q)?, o.k.map(like).transpose()?);
    if !inplace {
        tensors.q_out = Some(look("q", &q, true)?);
        tensors.k_out = k.as_ref().map(|k| look("k", k, true)).transpose()?;
    }
    let call = Call::new(form, &tensors)?;
    if wait {
        call.launch_and_wait(py, handle)?;
    } else {
        call.launch(py, handle)?;
    }
    (q, k).into_pyobject(py)
}

/// The GPU that an array is on; `None`: it is the processor's.
fn gpu_of(object: &Bound<'_, PyAny>) -> PyResult<Option<u32>> {
    let no_tensor =
        |_| PyTypeError::new_err(format!("q: '{}' is no tensor that DLPack can hand over", object.get_type()));
    let device = object.call_method0(intern!(object.py(), "__dlpack_device__")).map_err(no_tensor)?;
    let (kind, number): (i32, i32) =
        device.get_item(0).and_then(|kind| Ok((kind.extract()?, device.get_item(1)?.extract()?))).map_err(no_tensor)?;
    Ok((kind == 2).then_some(number.max(0) as u32))
}

/// The stream that an array's library works on now; `None` where it does not say.
fn stream_of(array: &Bound<'_, PyAny>, gpu: u32) -> PyResult<Option<u64>> {
    let py = array.py();
    if let Some(cupy) = CuPy::get(py)
        && array.is_instance(cupy.ndarray.bind(py))?
    {
        let stream = cupy.current_stream.bind(py).call1((gpu,))?;
        return stream.getattr(intern!(py, "ptr"))?.extract().map(Some);
    }
    Exchange::of(&array.get_type()).map(|exchange| exchange.stream(py, gpu)).transpose()
}

/// `CuPy`, as far as it is used here: it has no exchange API.
struct CuPy {
    ndarray: Py<PyType>,
    current_stream: Py<PyAny>,
}

impl CuPy {
    /// `CuPy`, if the program has imported it.
    fn get(py: Python<'_>) -> Option<&'static Self> {
        static CUPY: PyOnceLock<CuPy> = PyOnceLock::new();
        if let Some(cupy) = CUPY.get(py) {
            return Some(cupy);
        }
        let module = py.import("sys").ok()?.getattr("modules").ok()?.get_item("cupy").ok()?;
        let ndarray = module.getattr("ndarray").ok()?.cast_into::<PyType>().ok()?.unbind();
        let current_stream = module.getattr("cuda").ok()?.getattr("get_current_stream").ok()?.unbind();
        Some(CUPY.get_or_init(py, || Self { ndarray, current_stream }))
    }
}

/// The package that an array's type is of.
fn package(array: &Bound<'_, PyAny>) -> PyResult<String> {
    let module: String = array.get_type().getattr("__module__")?.extract()?;
    Ok(module.split('.').next().unwrap_or(&module).to_owned())
}

/// Whether an array's library relies on nobody writing to it.
pub fn is_immutable(array: &Bound<'_, PyAny>) -> bool {
    package(array).is_ok_and(|name| name == "jax" || name == "jaxlib")
}

/// An array of the same form from the array's own library.
fn empty_like<'py>(array: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    let library = if let Ok(namespace) = array.call_method0("__array_namespace__") {
        namespace
    } else {
        // NumPy before 2.0 and others.
        array.py().import(package(array)?)?.into_any()
    };
    library.call_method1("empty_like", (array,))
}
