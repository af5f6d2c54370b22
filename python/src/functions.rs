//! The functions that rotate: what a call costs before its launch is here.

use pyo3::exceptions::PyNotImplementedError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyString, PyTuple};

use crate::call::{Call, Tensors};
use crate::dlpack::View;
use crate::errors::{guarded, wrong};
use crate::foreign;
use crate::form::{self, Form, Order};
use crate::objects::{Objects, kind, views};
use crate::torch::{Kind, Torch};

/// A copy whose last dimension is contiguous, where that of the tensor is not.
pub fn dense<'py>(
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
    *view = torch.view_of_new(name, &copy)?;
    Ok(copy)
}

/// Copies of cos and sin, where a kernel cannot read them as they lie.
pub fn tables<'py>(torch: &Torch, o: &Objects<'_, 'py>, t: &mut Tensors) -> PyResult<[Option<Bound<'py, PyAny>>; 2]> {
    let tables = [dense(torch, "cos", o.cos, &mut t.cos)?, dense(torch, "sin", o.sin, &mut t.sin)?];
    if t.cos.strides() != t.sin.strides() && t.cos.shape() == t.sin.shape() {
        let both = (contiguous(torch, "cos", o.cos, &mut t.cos)?, contiguous(torch, "sin", o.sin, &mut t.sin)?);
        return Ok([Some(both.0), Some(both.1)]);
    }
    Ok(tables)
}

/// Rotates tensors of PyTorch; autograd is not told. `beside` adds what else the launch does.
pub fn rotate<'py>(
    torch: &Torch,
    o: &Objects<'_, 'py>,
    t: &mut Tensors,
    form: &Form,
    inplace: bool,
    beside: impl FnOnce(&mut Call) -> PyResult<()>,
) -> PyResult<Bound<'py, PyTuple>> {
    let py = o.py();
    let tables = tables(torch, o, t)?;
    if inplace {
        // A tensor that is written where it is cannot be a copy: the call itself refuses it if it must.
        let mut call = Call::new(form, t)?;
        beside(&mut call)?;
        let results = match o.k {
            Some(k) => PyTuple::new(py, [o.q, k])?,
            None => PyTuple::new(py, [o.q])?,
        };
        torch.will_write(&results)?;
        call.launch(py, torch.stream(py, call.device)?)?;
        return pair(py, results);
    }
    let like = |name: &str, input: &Bound<'py, PyAny>| -> PyResult<_> {
        let output = torch.empty_like.bind(py).call1((input,))?;
        let view = torch.view_of_new(name, &output)?;
        Ok((output, Some(view)))
    };
    let q_copy = dense(torch, "q", o.q, &mut t.q)?;
    let q_out;
    (q_out, t.q_out) = like("q", q_copy.as_ref().unwrap_or(o.q))?;
    let (mut k_copy, mut k_out) = (None, None);
    if let (Some(k), Some(view)) = (o.k, &mut t.k) {
        k_copy = dense(torch, "k", k, view)?;
        let output;
        (output, t.k_out) = like("k", k_copy.as_ref().unwrap_or(k))?;
        k_out = Some(output);
    }
    let mut call = Call::new(form, t)?;
    beside(&mut call)?;
    call.launch(py, torch.stream(py, call.device)?)?;
    drop((q_copy, k_copy, tables)); // held until the launch
    (q_out, k_out).into_pyobject(py)
}

/// `(q, k)`, where k may be absent.
fn pair<'py>(py: Python<'py>, results: Bound<'py, PyTuple>) -> PyResult<Bound<'py, PyTuple>> {
    if results.len() == 2 { Ok(results) } else { (results.get_item(0)?, py.None()).into_pyobject(py) }
}

/// Whether autograd has to know of the call; `weights` are what else has a gradient.
pub fn needs_grad(torch: &Torch, o: &Objects<'_, '_>, weights: &[Option<&Bound<'_, PyAny>>]) -> PyResult<bool> {
    if !torch.is_grad_enabled(o.py())? {
        return Ok(false);
    }
    for (name, table) in [("cos", o.cos), ("sin", o.sin)] {
        if torch.requires_grad(table)? {
            return Err(wrong(name, "requires a gradient, and none is computed for tables: pass a detached one"));
        }
    }
    for x in [Some(o.q), o.k].iter().chain(weights).flatten() {
        if torch.requires_grad(x)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A function of the operators.
pub fn operators<'py>(py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyAny>> {
    py.import("ropejit._ops")?.getattr(name)
}

/// The rotation that autograd records.
pub fn recorded(py: Python<'_>) -> PyResult<&Bound<'_, PyAny>> {
    static APPLY: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let apply = APPLY.get_or_try_init(py, || py.import("ropejit._autograd")?.getattr("apply").map(Bound::unbind))?;
    Ok(apply.bind(py))
}

/// `ropejit.apply`, but for tracing. `lenient`: in place under autograd, where PyTorch would refuse q, as flash-attn does.
#[pyfunction]
#[pyo3(signature = (
    q, k, cos, sin, position_ids, cu_seqlens, offset, style, rotary_dim, layout, rounding, inplace, lenient=false
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
    style: &Bound<'py, PyAny>,
    rotary_dim: Option<u32>,
    layout: &Bound<'py, PyAny>,
    rounding: &Bound<'py, PyAny>,
    inplace: bool,
    lenient: bool,
) -> PyResult<Bound<'py, PyTuple>> {
    guarded(|| {
        let py = q.py();
        let o = Objects { q, k, cos, sin, position_ids, cu_seqlens, offset };
        let form = form_of(layout, rounding, style, rotary_dim, false)?;
        let Some(torch) = Torch::get(py) else { return foreign::rotate(&o, &form, inplace) };
        let by = |function: Bound<'py, PyAny>| {
            // Tuples of so many different things end at twelve.
            let tensors = (q, k, cos, sin, position_ids, cu_seqlens, offset).into_pyobject(py)?;
            let rest = (style, rotary_dim, layout, rounding, inplace, lenient).into_pyobject(py)?;
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
        let is_watched = torch.is_watched(py)?;
        if !is_watched && needs_grad(torch, &o, &[])? {
            return by(recorded(py)?.clone());
        }
        match views(torch, &o, inplace)? {
            None => by(operators(py, "of_any_tensors")?),
            Some(_) if is_watched => by(operators(py, "apply")?),
            Some(mut tensors) => rotate(torch, &o, &mut tensors, &form, inplace, |_| Ok(())),
        }
    })
}

/// The rotation without autograd: what autograd and the operators call. `None` where a kernel may not read a tensor as it lies
/// in memory: what they do then differs.
#[pyfunction]
#[allow(clippy::too_many_arguments)]
#[pyo3(signature = (q, k, cos, sin, position_ids, cu_seqlens, offset, style, rotary_dim, layout, rounding, backward, inplace))]
pub fn rotate_plain<'py>(
    q: &Bound<'py, PyAny>,
    k: Option<&Bound<'py, PyAny>>,
    cos: &Bound<'py, PyAny>,
    sin: &Bound<'py, PyAny>,
    position_ids: Option<&Bound<'py, PyAny>>,
    cu_seqlens: Option<&Bound<'py, PyAny>>,
    offset: Option<&Bound<'py, PyAny>>,
    style: &Bound<'py, PyAny>,
    rotary_dim: Option<u32>,
    layout: &Bound<'py, PyAny>,
    rounding: &Bound<'py, PyAny>,
    backward: bool,
    inplace: bool,
) -> PyResult<Option<Bound<'py, PyTuple>>> {
    guarded(|| {
        let Some(torch) = Torch::get(q.py()) else { return Err(wrong("q", "is no torch.Tensor")) };
        let o = Objects { q, k, cos, sin, position_ids, cu_seqlens, offset };
        let form = form_of(layout, rounding, style, rotary_dim, backward)?;
        if let Kind::Foreign = kind(torch, &o) {
            return Err(wrong("q", "must be a torch.Tensor, and k, cos and sin as well"));
        }
        views(torch, &o, inplace)?
            .map(|mut tensors| rotate(torch, &o, &mut tensors, &form, inplace, |_| Ok(())))
            .transpose()
    })
}

/// A word that Python passes.
pub fn word<'a>(name: &str, object: &'a Bound<'_, PyAny>) -> PyResult<&'a str> {
    match object.cast::<PyString>() {
        Ok(text) => text.to_str(),
        Err(_) => Err(wrong(name, format!("must be a str, got {}", object.get_type()))),
    }
}

/// How many elements of a head turn, as Python passes it.
pub fn rotary_dim(object: &Bound<'_, PyAny>) -> PyResult<Option<u32>> {
    let number = object.extract::<Option<u32>>();
    number.map_err(|_| wrong("rotary_dim", format!("is {object}, an even number above 0 or None is needed")))
}

pub fn form_of(
    layout: &Bound<'_, PyAny>,
    rounding: &Bound<'_, PyAny>,
    style: &Bound<'_, PyAny>,
    rotary_dim: Option<u32>,
    backward: bool,
) -> PyResult<Form> {
    Ok(Form {
        order: Order::parse(word("layout", layout)?)?,
        style: form::style(word("style", style)?)?,
        rotary_dim,
        rounding: form::rounding(word("rounding", rounding)?)?,
        backward,
        whole: false,
        sections: None,
    })
}
