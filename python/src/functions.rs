//! The functions that rotate: what a call costs before its launch is here.

use pyo3::exceptions::PyNotImplementedError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyString, PyTuple};

use crate::call::{self, Call, Form, Order, Place, Tensors};
use crate::dlpack::View;
use crate::errors::{guarded, wrong};
use crate::foreign;
use crate::torch::{self, Kind, Torch};

/// The tensors of a call as Python passes them.
pub struct Objects<'a, 'py> {
    pub q: &'a Bound<'py, PyAny>,
    pub k: Option<&'a Bound<'py, PyAny>>,
    pub cos: &'a Bound<'py, PyAny>,
    pub sin: &'a Bound<'py, PyAny>,
    pub position_ids: Option<&'a Bound<'py, PyAny>>,
    pub cu_seqlens: Option<&'a Bound<'py, PyAny>>,
    /// An int, or a tensor with one for each sequence.
    pub offset: Option<&'a Bound<'py, PyAny>>,
}

impl<'py> Objects<'_, 'py> {
    fn py(&self) -> Python<'py> {
        self.q.py()
    }

    /// What the result is computed from.
    pub fn rotated(&self) -> [Option<&Bound<'py, PyAny>>; 4] {
        [Some(self.q), self.k, Some(self.cos), Some(self.sin)]
    }

    /// Which rows tokens get. `view` tells what a tensor is.
    pub fn place(&self, view: &mut dyn FnMut(&str, &Bound<'py, PyAny>) -> PyResult<View>) -> PyResult<Place> {
        let number = self.offset.map_or(Some(0), |offset| offset.extract::<i64>().ok());
        let mut offsets = || match self.offset {
            Some(offset) if number.is_none() => view("offsets", offset).map(Some),
            _ => Ok(None),
        };
        match (self.position_ids, self.cu_seqlens) {
            (None, None) => Ok(offsets()?.map_or(Place::Offset(number.unwrap_or(0)), Place::Offsets)),
            (None, Some(cu_seqlens)) => {
                let offsets = offsets()?;
                Ok(Place::Packed { cu_seqlens: view("cu_seqlens", cu_seqlens)?, offset: number.unwrap_or(0), offsets })
            }
            (Some(_), Some(_)) => Err(wrong("cu_seqlens", "cannot be given beside position_ids")),
            (Some(_), None) if self.offset.is_some() => Err(wrong("offset", "cannot be given beside position_ids")),
            (Some(ids), None) => view("position_ids", ids).map(Place::Ids),
        }
    }
}

/// A plain tensor whose last dimension is contiguous, and what it is: a copy where it was not.
fn dense<'py>(torch: &Torch, name: &str, tensor: &Bound<'py, PyAny>) -> PyResult<(Option<Bound<'py, PyAny>>, View)> {
    let view = torch.view(name, tensor)?;
    if view.rows_are_contiguous() {
        return Ok((None, view));
    }
    let copy = tensor.call_method0(intern!(tensor.py(), "contiguous"))?;
    let view = torch.view(name, &copy)?;
    Ok((Some(copy), view))
}

/// Rotates plain tensors of PyTorch; autograd is not told.
pub fn rotate<'py>(torch: &Torch, o: &Objects<'_, 'py>, form: &Form, inplace: bool) -> PyResult<Bound<'py, PyTuple>> {
    let py = o.py();
    let (cos_copy, mut cos) = dense(torch, "cos", o.cos)?;
    let (sin_copy, mut sin) = dense(torch, "sin", o.sin)?;
    let mut tables = [cos_copy, sin_copy];
    if cos.strides() != sin.strides() && cos.shape() == sin.shape() {
        for (copy, (view, object)) in tables.iter_mut().zip([(&mut cos, o.cos), (&mut sin, o.sin)]) {
            let contiguous = object.call_method0(intern!(py, "contiguous"))?;
            *view = torch.view("cos", &contiguous)?;
            *copy = Some(contiguous);
        }
    }
    let place = o.place(&mut |name, tensor| match torch.kind(tensor) {
        Kind::Plain => torch.view(name, tensor),
        _ => Err(wrong(name, "must be a torch.Tensor, as q is")),
    })?;
    // A tensor that is written where it is cannot be a copy: the call itself refuses it if it must.
    let operand = |name: &str, tensor| {
        if inplace { torch.view(name, tensor).map(|view| (None, view)) } else { dense(torch, name, tensor) }
    };
    let (q_copy, q) = operand("q", o.q)?;
    let mut tensors = Tensors { q, k: None, q_out: None, k_out: None, cos, sin, place };
    let mut k_copy = None;
    if let Some(k) = o.k {
        let (copy, view) = operand("k", k)?;
        (k_copy, tensors.k) = (copy, Some(view));
    }
    if inplace {
        let call = Call::new(form, &tensors)?;
        call.launch(py, torch.stream(py, call.device)?)?;
        let results = match o.k {
            Some(k) => PyTuple::new(py, [o.q, k])?,
            None => PyTuple::new(py, [o.q])?,
        };
        torch.wrote(&results)?;
        return pair(py, results);
    }
    let like = |name: &str, input: &Bound<'py, PyAny>| -> PyResult<_> {
        let output = torch.empty_like.bind(py).call1((input,))?;
        let view = torch.view(name, &output)?;
        Ok((output, Some(view)))
    };
    let q_out;
    (q_out, tensors.q_out) = like("q", q_copy.as_ref().unwrap_or(o.q))?;
    let mut k_out = None;
    if let Some(k) = o.k {
        let (output, view) = like("k", k_copy.as_ref().unwrap_or(k))?;
        (k_out, tensors.k_out) = (Some(output), view);
    }
    let call = Call::new(form, &tensors)?;
    call.launch(py, torch.stream(py, call.device)?)?;
    drop((q_copy, k_copy, tables)); // held until the launch
    (q_out, k_out).into_pyobject(py)
}

/// `(q, k)`, where k may be absent.
fn pair<'py>(py: Python<'py>, results: Bound<'py, PyTuple>) -> PyResult<Bound<'py, PyTuple>> {
    if results.len() == 2 { Ok(results) } else { (results.get_item(0)?, py.None()).into_pyobject(py) }
}

/// Whether autograd has to know of the call.
fn needs_grad(torch: &Torch, o: &Objects<'_, '_>) -> PyResult<bool> {
    if !torch.is_grad_enabled(o.py())? {
        return Ok(false);
    }
    for (name, table) in [("cos", o.cos), ("sin", o.sin)] {
        if torch::requires_grad(table)? {
            return Err(wrong(name, "requires a gradient, and none is computed for tables: pass a detached one"));
        }
    }
    Ok(torch::requires_grad(o.q)? || o.k.map_or(Ok(false), |k| torch::requires_grad(k))?)
}

/// What all tensors of q, k, cos and sin are.
pub fn kind(torch: &Torch, o: &Objects<'_, '_>) -> Kind {
    let mut all = Kind::Plain;
    for object in o.rotated().into_iter().flatten() {
        match torch.kind(object) {
            Kind::Plain => {}
            Kind::Subclass => all = Kind::Subclass,
            Kind::Foreign => return Kind::Foreign,
        }
    }
    all
}

/// `ropejit.apply`, but for tracing.
#[pyfunction]
#[pyo3(signature = (q, k, cos, sin, position_ids, cu_seqlens, offset, interleaved, rotary_dim, layout, rounding, inplace))]
#[allow(clippy::too_many_arguments)]
pub fn apply<'py>(
    q: &Bound<'py, PyAny>,
    k: Option<&Bound<'py, PyAny>>,
    cos: &Bound<'py, PyAny>,
    sin: &Bound<'py, PyAny>,
    position_ids: Option<&Bound<'py, PyAny>>,
    cu_seqlens: Option<&Bound<'py, PyAny>>,
    offset: Option<&Bound<'py, PyAny>>,
    interleaved: bool,
    rotary_dim: Option<u32>,
    layout: &Bound<'py, PyAny>,
    rounding: &Bound<'py, PyAny>,
    inplace: bool,
) -> PyResult<Bound<'py, PyTuple>> {
    guarded(|| {
        let py = q.py();
        let o = Objects { q, k, cos, sin, position_ids, cu_seqlens, offset };
        let form = form(layout, rounding, interleaved, rotary_dim, false)?;
        let Some(torch) = Torch::get(py) else { return foreign::rotate(&o, &form, inplace) };
        let by_name = |module: &str| {
            let all =
                (q, k, cos, sin, position_ids, cu_seqlens, offset, interleaved, rotary_dim, layout, rounding, inplace);
            Ok(py.import(module)?.call_method1("apply", all)?.cast_into::<PyTuple>()?)
        };
        match kind(torch, &o) {
            Kind::Plain if torch.any_tangent(py, &o.rotated())? => {
                Err(PyNotImplementedError::new_err("forward-mode differentiation of a rotation is not implemented"))
            }
            Kind::Plain if torch.is_watched(py)? => by_name("ropejit._ops"),
            Kind::Plain if needs_grad(torch, &o)? => by_name("ropejit._autograd"),
            Kind::Plain => rotate(torch, &o, &form, inplace),
            Kind::Subclass => by_name("ropejit._ops"),
            Kind::Foreign => foreign::rotate(&o, &form, inplace),
        }
    })
}

/// The rotation of plain tensors, without autograd: what autograd and the operators call.
#[pyfunction]
#[allow(clippy::too_many_arguments)]
#[pyo3(signature = (q, k, cos, sin, position_ids, cu_seqlens, offset, interleaved, rotary_dim, layout, rounding, backward, inplace))]
pub fn rotate_plain<'py>(
    q: &Bound<'py, PyAny>,
    k: Option<&Bound<'py, PyAny>>,
    cos: &Bound<'py, PyAny>,
    sin: &Bound<'py, PyAny>,
    position_ids: Option<&Bound<'py, PyAny>>,
    cu_seqlens: Option<&Bound<'py, PyAny>>,
    offset: Option<&Bound<'py, PyAny>>,
    interleaved: bool,
    rotary_dim: Option<u32>,
    layout: &Bound<'py, PyAny>,
    rounding: &Bound<'py, PyAny>,
    backward: bool,
    inplace: bool,
) -> PyResult<Bound<'py, PyTuple>> {
    guarded(|| {
        let Some(torch) = Torch::get(q.py()) else { return Err(wrong("q", "is no torch.Tensor")) };
        let o = Objects { q, k, cos, sin, position_ids, cu_seqlens, offset };
        match kind(torch, &o) {
            Kind::Plain => rotate(torch, &o, &form(layout, rounding, interleaved, rotary_dim, backward)?, inplace),
            _ => Err(wrong("q", "must be plain tensors, no subclass")),
        }
    })
}

fn form(
    layout: &Bound<'_, PyAny>,
    rounding: &Bound<'_, PyAny>,
    interleaved: bool,
    rotary_dim: Option<u32>,
    backward: bool,
) -> PyResult<Form> {
    let text = |name, object| -> PyResult<_> {
        let object: &Bound<'_, PyAny> = object;
        object.cast::<PyString>().map_err(|_| wrong(name, format!("must be a str, got {}", object.get_type())))
    };
    let order = Order::parse(text("layout", layout)?.to_str()?)?;
    let rounding = call::rounding(text("rounding", rounding)?.to_str()?)?;
    Ok(Form { order, interleaved, rotary_dim, rounding, backward })
}
