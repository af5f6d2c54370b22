//! Arrays of libraries other than PyTorch (NumPy, CuPy, …), through `__dlpack__`.

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use crate::call::{Call, Form, Tensors};
use crate::dlpack::{self, Borrowed};
use crate::objects::Objects;

/// Rotates arrays. On a GPU the work is ordered by the legacy default stream, which DLPack calls 1.
pub fn rotate<'py>(o: &Objects<'_, 'py>, form: &Form, inplace: bool) -> PyResult<Bound<'py, PyTuple>> {
    let py = o.q.py();
    let on_gpu = device(o.q)? == 2;
    let mut held: Vec<Borrowed<'py>> = Vec::new();
    let mut look = |name: &str, object: &Bound<'py, PyAny>, written: bool| {
        let borrowed = dlpack::borrow(name, object, on_gpu.then_some(1), written)?;
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
    Call::new(form, &tensors)?.launch(py, 0)?;
    (q, k).into_pyobject(py)
}

fn device(object: &Bound<'_, PyAny>) -> PyResult<i32> {
    let no_tensor =
        |_| PyTypeError::new_err(format!("q: '{}' is no tensor that DLPack can hand over", object.get_type()));
    object.call_method0("__dlpack_device__").and_then(|d| d.get_item(0)?.extract()).map_err(no_tensor)
}

/// An array of the same form from the array's own library.
fn empty_like<'py>(array: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    let library = if let Ok(namespace) = array.call_method0("__array_namespace__") {
        namespace
    } else {
        // NumPy before 2.0 and others: the package that the type is of.
        let module: String = array.get_type().getattr("__module__")?.extract()?;
        array.py().import(module.split('.').next().unwrap_or(&module))?.into_any()
    };
    library.call_method1("empty_like", (array,))
}
