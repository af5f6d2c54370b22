//! The functions that rotate: what a call costs before its launch is here.

use pyo3::exceptions::PyNotImplementedError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyString, PyTuple};
use ropejit::{DType, Rounding};

use crate::call::{self, Call, Form, Order, Tensors};
use crate::dlpack::{Element, View};
use crate::errors::{guarded, wrong};
use crate::foreign;
use crate::objects::{Objects, Views, kind};
use crate::torch::{self, Kind, Torch};

/// The view of a tensor that has just been made.
fn made(torch: &Torch, name: &str, tensor: &Bound<'_, PyAny>) -> PyResult<View> {
    torch.view(name, tensor)?.ok_or_else(|| wrong(name, "PyTorch made a tensor without memory for it"))
}

/// A copy whose last dimension is contiguous, where that of the tensor is not.
fn dense<'py>(
    torch: &Torch,
    name: &str,
    tensor: &Bound<'py, PyAny>,
    view: &mut View,
) -> PyResult<Option<Bound<'py, PyAny>>> {
    if view.rows_are_contiguous() { Ok(None) } else { contiguous(torch, name, tensor, view).map(Some) }
}

fn contiguous<'py>(
    torch: &Torch,
    name: &str,
    tensor: &Bound<'py, PyAny>,
    view: &mut View,
) -> PyResult<Bound<'py, PyAny>> {
    let copy = tensor.call_method0(intern!(tensor.py(), "contiguous"))?;
    *view = made(torch, name, &copy)?;
    Ok(copy)
}

/// Rotates tensors of PyTorch; autograd is not told.
fn rotate<'py>(
    torch: &Torch,
    o: &Objects<'_, 'py>,
    views: Views,
    form: &Form,
    inplace: bool,
) -> PyResult<Bound<'py, PyTuple>> {
    let py = o.py();
    let Views { mut q, mut k, mut cos, mut sin, place } = views;
    let mut tables = [dense(torch, "cos", o.cos, &mut cos)?, dense(torch, "sin", o.sin, &mut sin)?];
    if cos.strides() != sin.strides() && cos.shape() == sin.shape() {
        tables = [Some(contiguous(torch, "cos", o.cos, &mut cos)?), Some(contiguous(torch, "sin", o.sin, &mut sin)?)];
    }
    if inplace {
        // A tensor that is written where it is cannot be a copy: the call itself refuses it if it must.
        let call = Call::new(form, &Tensors { q, k, q_out: None, k_out: None, cos, sin, place })?;
        let results = match o.k {
            Some(k) => PyTuple::new(py, [o.q, k])?,
            None => PyTuple::new(py, [o.q])?,
        };
        torch.will_write(&results)?;
        call.launch(py, torch.stream(py, call.device)?)?;
        return pair(py, results);
    }
    let q_copy = dense(torch, "q", o.q, &mut q)?;
    let k_copy = match (o.k, &mut k) {
        (Some(tensor), Some(view)) => dense(torch, "k", tensor, view)?,
        _ => None,
    };
    let like = |name: &str, input: &Bound<'py, PyAny>| -> PyResult<_> {
        let output = torch.empty_like.bind(py).call1((input,))?;
        let view = made(torch, name, &output)?;
        Ok((output, Some(view)))
    };
    let (q_out, q_written) = like("q", q_copy.as_ref().unwrap_or(o.q))?;
    let (mut k_out, mut k_written) = (None, None);
    if let Some(k) = o.k {
        let (output, view) = like("k", k_copy.as_ref().unwrap_or(k))?;
        (k_out, k_written) = (Some(output), view);
    }
    let call = Call::new(form, &Tensors { q, k, q_out: q_written, k_out: k_written, cos, sin, place })?;
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

/// A function of the operators.
fn operators<'py>(py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyAny>> {
    py.import("ropejit._ops")?.getattr(name)
}

/// The rotation that autograd records.
fn recorded(py: Python<'_>) -> PyResult<&Bound<'_, PyAny>> {
    static APPLY: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let apply = APPLY.get_or_try_init(py, || py.import("ropejit._autograd")?.getattr("apply").map(Bound::unbind))?;
    Ok(apply.bind(py))
}

/// `ropejit.apply`, but for tracing. `lenient`: in place under autograd, where PyTorch would refuse q, as flash-attn does.
#[pyfunction]
#[pyo3(signature = (
    q, k, cos, sin, position_ids, cu_seqlens, offset, interleaved, rotary_dim, layout, rounding, inplace, lenient=false
))]
#[allow(clippy::too_many_arguments, clippy::fn_params_excessive_bools)]
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
    lenient: bool,
) -> PyResult<Bound<'py, PyTuple>> {
    guarded(|| {
        let py = q.py();
        let o = Objects { q, k, cos, sin, position_ids, cu_seqlens, offset };
        let form = form(layout, rounding, interleaved, rotary_dim, false)?;
        let Some(torch) = Torch::get(py) else { return foreign::rotate(&o, &form, inplace) };
        let by = |function: Bound<'py, PyAny>| {
            // Tuples of so many different things end at twelve.
            let tensors = (q, k, cos, sin, position_ids, cu_seqlens, offset).into_pyobject(py)?;
            let rest = (interleaved, rotary_dim, layout, rounding, inplace, lenient).into_pyobject(py)?;
            let all = tensors.as_sequence().concat(rest.as_sequence())?.to_tuple()?;
            Ok(function.call1(all)?.cast_into::<PyTuple>()?)
        };
        match kind(torch, &o) {
            Kind::Foreign => return foreign::rotate(&o, &form, inplace),
            Kind::Subclass => return by(operators(py, "of_any_tensors")?),
            Kind::Plain => {}
        }
        if torch.any_tangent(py, &o.rotated())? {
            let what = "forward-mode differentiation of a rotation is not implemented";
            return Err(PyNotImplementedError::new_err(what));
        }
        let Some(views) = Views::of(torch, &o)? else {
            return by(operators(py, "of_any_tensors")?);
        };
        if torch.is_watched(py)? {
            by(operators(py, "apply")?)
        } else if needs_grad(torch, &o)? {
            by(recorded(py)?.clone())
        } else {
            rotate(torch, &o, views, &form, inplace)
        }
    })
}

/// The rotation without autograd: what autograd and the operators call. `None` where a kernel may not read a tensor as it lies
/// in memory: what they do then differs.
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
) -> PyResult<Option<Bound<'py, PyTuple>>> {
    guarded(|| {
        let Some(torch) = Torch::get(q.py()) else { return Err(wrong("q", "is no torch.Tensor")) };
        let o = Objects { q, k, cos, sin, position_ids, cu_seqlens, offset };
        let form = form(layout, rounding, interleaved, rotary_dim, backward)?;
        if let Kind::Foreign = kind(torch, &o) {
            return Err(wrong("q", "must be a torch.Tensor, and k, cos and sin as well"));
        }
        Views::of(torch, &o)?.map(|views| rotate(torch, &o, views, &form, inplace)).transpose()
    })
}

/// The rotation that a model's own function computes, or `None` where it would compute something else than the kernels do:
/// the caller then lets that function do it. `rounding` is what eager PyTorch's operations amount to: `per_op` where they
/// are done in the tensors' type, `once` where they are done in float32, and `promoted` where the tables decide. `half`: a
/// row of the tables has each angle once.
#[pyfunction]
#[pyo3(signature = (q, k, cos, sin, unsqueeze_dim, interleaved, half, rounding))]
#[allow(clippy::too_many_arguments)]
pub fn drop_in<'py>(
    q: &Bound<'py, PyAny>,
    k: Option<&Bound<'py, PyAny>>,
    cos: &Bound<'py, PyAny>,
    sin: &Bound<'py, PyAny>,
    unsqueeze_dim: i64,
    interleaved: bool,
    half: bool,
    rounding: &str,
) -> PyResult<Option<Bound<'py, PyTuple>>> {
    guarded(|| {
        let py = q.py();
        let o = Objects { q, k, cos, sin, position_ids: None, cu_seqlens: None, offset: None };
        let Some(torch) = Torch::get(py) else { return Ok(None) };
        if !matches!(kind(torch, &o), Kind::Plain) {
            return Ok(None);
        }
        if torch.any_tangent(py, &o.rotated())? {
            return Ok(None); // eager carries it
        }
        // What no view can be had of (a meta tensor, a negated one, five dimensions) is no call for the kernels.
        let Ok(views) = Views::of(torch, &o) else { return Ok(None) };
        let Some(views) = views else {
            py.import("ropejit._tensors")?.call_method1("refuse_freed", (q, k, cos, sin))?;
            return Ok(None);
        };
        let order = match unsqueeze_dim {
            1 => Order::Bhsd,
            2 => Order::Bshd,
            _ => return Ok(None),
        };
        let rotary_dim = views.cos.shape().get(2).map_or(0, |&width| if half { 2 * width } else { width });
        let Some(contract) = covered(&views, order, rotary_dim, rounding) else { return Ok(None) };
        let rotary_dim = rotary_dim as u32;
        let mut is_recorded = false;
        if torch.is_grad_enabled(py)? {
            if torch::requires_grad(cos)? || torch::requires_grad(sin)? {
                return Ok(None);
            }
            is_recorded = torch::requires_grad(q)? || k.map_or(Ok(false), |k| torch::requires_grad(k))?;
            if is_recorded && rounding == "promoted" && views.q.element != views.cos.element {
                return Ok(None); // eager rounds each product of the gradient, and only those
            }
        }
        let is_watched = torch.is_watched(py)?;
        if is_watched || is_recorded {
            let layout = if order == Order::Bhsd { "bhsd" } else { "bshd" };
            let word = if contract == Rounding::Once { "once" } else { "per_op" };
            let none = py.None();
            let all = (q, k, cos, sin, &none, &none, &none, interleaved, rotary_dim, layout, word, false);
            let function = if is_watched { operators(py, "apply")? } else { recorded(py)?.clone() };
            return Ok(Some(function.call1(all)?.cast_into()?));
        }
        let form = Form { order, interleaved, rotary_dim: Some(rotary_dim), rounding: contract, backward: false };
        rotate(torch, &o, views, &form, false).map(Some)
    })
}

/// The contract under which kernels compute what eager PyTorch would of these tensors; `None` where there is none, or
/// where eager would refuse or broadcast.
fn covered(views: &Views, order: Order, rotary_dim: i64, rounding: &str) -> Option<Rounding> {
    let Views { q, k, cos, sin, .. } = views;
    let (Element::Float(dtype), Element::Float(table)) = (q.element, cos.element) else { return None };
    let (tokens, heads) = if order == Order::Bhsd { (2, 1) } else { (1, 2) };
    let (&[batch, rows, _], 4) = (cos.shape(), q.rank) else { return None };
    let shape = q.shape();
    let same = cos.shape() == sin.shape() && cos.element == sin.element && [cos.device, sin.device] == [q.device; 2];
    let fits =
        (batch == 1 || batch == shape[0]) && rows == shape[tokens] && rotary_dim % 2 == 0 && rotary_dim <= shape[3];
    let sizes =
        (2..=512).contains(&rotary_dim) && shape[3] % 2 == 0 && shape[3] <= 512 && (1..=65_536).contains(&shape[heads]);
    let k_fits = k.as_ref().is_none_or(|k| {
        let n = k.shape();
        k.rank == 4
            && k.element == q.element
            && k.device == q.device
            && [n[0], n[tokens], n[3]] == [shape[0], rows, shape[3]]
            && (1..=65_536).contains(&n[heads])
    });
    if !(same && fits && sizes && k_fits) {
        return None;
    }
    match rounding {
        "per_op" | "promoted" if table == dtype => Some(Rounding::PerOp),
        "promoted" | "once" if table == DType::F32 || table == dtype => Some(Rounding::Once),
        _ => None,
    }
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
