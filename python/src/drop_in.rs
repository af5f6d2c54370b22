//! In place of a model's own function: kernels where they compute its bits, `None` where that function has to.

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyInt, PySlice, PyTuple};
use ropejit::{DType, Rounding};

use crate::call::{Form, Order};
use crate::dlpack::{Element, View};
use crate::errors::guarded;
use crate::functions::{self, Objects};
use crate::torch::{self, Kind, Torch};

/// The rotation that a model's own function computes, or `None` where it would compute something else than the kernels do:
/// the caller then lets that function do it, which also raises what is to be raised. `ropejit._forms.Form` says what the last
/// four arguments mean.
#[pyfunction]
#[pyo3(signature = (q, k, cos, sin, unsqueeze_dim, interleaved, tables, partial, rounding))]
#[allow(clippy::too_many_arguments)]
pub fn drop_in<'py>(
    q: &Bound<'py, PyAny>,
    k: Option<&Bound<'py, PyAny>>,
    cos: &Bound<'py, PyAny>,
    sin: &Bound<'py, PyAny>,
    unsqueeze_dim: &Bound<'py, PyAny>,
    interleaved: bool,
    tables: &str,
    partial: bool,
    rounding: &str,
) -> PyResult<Option<Bound<'py, PyTuple>>> {
    guarded(|| {
        let py = q.py();
        let o = Objects { q, k, cos, sin, position_ids: None, cu_seqlens: None, offset: None };
        let Some(torch) = Torch::get(py) else { return Ok(None) };
        if !matches!(functions::kind(torch, &o), Kind::Plain) || !unsqueeze_dim.is_exact_instance_of::<PyInt>() {
            return Ok(None);
        }
        if torch.any_tangent(py, &o.rotated())? {
            return Ok(None); // eager carries it
        }
        if torch.is_watched(py)? {
            let all = (q, k, cos, sin, unsqueeze_dim, interleaved, tables, partial, rounding);
            return Ok(py.import("ropejit._ops")?.call_method1("drop_in", all)?.extract()?);
        }
        // What no view can be had of (a meta tensor, five dimensions) is no call for the kernels.
        let view = |name, tensor: &Bound<'py, PyAny>| torch.view(name, tensor).ok();
        let (Some(q_view), Some(cos_view), Some(sin_view)) = (view("q", q), view("cos", cos), view("sin", sin)) else {
            return Ok(None);
        };
        let k_view = match k.map(|k| view("k", k)) {
            Some(None) => return Ok(None),
            k_view => k_view.flatten(),
        };
        let views = Views { q: &q_view, k: k_view.as_ref(), cos: &cos_view, sin: &sin_view };
        let Some((order, rotary_dim)) = unsqueeze_dim
            .extract()
            .ok()
            .and_then(|dim| views.fit(dim, tables, partial).filter(|_| views.have_one_home()))
        else {
            return Ok(None);
        };
        let Some(contract) = views.contract(rounding) else { return Ok(None) };
        let every_second = |table: &Bound<'py, PyAny>| {
            table.get_item((py.Ellipsis(), PySlice::new(py, 0, isize::MAX, 2))) // its neighbours are equal
        };
        let o =
            if tables == "twice" { &Objects { cos: &every_second(cos)?, sin: &every_second(sin)?, ..o } } else { &o };
        let form = Form { order, interleaved, rotary_dim: Some(rotary_dim), rounding: contract, backward: false };
        if torch.is_grad_enabled(py)? {
            if torch::requires_grad(cos)? || torch::requires_grad(sin)? {
                return Ok(None);
            }
            if torch::requires_grad(q)? || k.map_or(Ok(false), |k| torch::requires_grad(k))? {
                return recorded(o, &form, views.gradient(rounding, contract));
            }
        }
        functions::rotate(torch, o, &form, false).map(Some)
    })
}

/// The rotation, with autograd told of it.
fn recorded<'py>(
    o: &Objects<'_, 'py>,
    form: &Form,
    gradient: Option<Rounding>,
) -> PyResult<Option<Bound<'py, PyTuple>>> {
    let py = o.q.py();
    let Some(gradient) = gradient else { return Ok(None) };
    let layout = match form.order {
        Order::Bhsd => "bhsd",
        Order::Bshd => "bshd",
        Order::Thd => "thd",
    };
    let Objects { q, k, cos, sin, .. } = *o;
    let (interleaved, rotary_dim) = (form.interleaved, form.rotary_dim);
    let out = if gradient == form.rounding {
        let none = py.None();
        let word = if gradient == Rounding::Once { "once" } else { "per_op" };
        let all = (q, k, cos, sin, &none, &none, &none, interleaved, rotary_dim, layout, word, false);
        py.import(intern!(py, "ropejit._autograd"))?.call_method1("apply", all)?
    } else {
        let all = (q, k, cos, sin, interleaved, rotary_dim, layout);
        py.import(intern!(py, "ropejit._each"))?.call_method1("apply", all)?
    };
    Ok(Some(out.cast_into()?))
}

/// What the tensors of a call are.
struct Views<'a> {
    q: &'a View,
    k: Option<&'a View>,
    cos: &'a View,
    sin: &'a View,
}

impl Views<'_> {
    /// One device, one type of q and k, one type of cos and sin.
    fn have_one_home(&self) -> bool {
        let Self { q, k, cos, sin } = self;
        [cos.device, sin.device] == [q.device; 2]
            && cos.element == sin.element
            && k.is_none_or(|k| k.element == q.element && k.device == q.device)
    }

    /// The order of dimensions, and how many elements of a head turn; `None` where eager would refuse or broadcast.
    fn fit(&self, unsqueeze_dim: i64, tables: &str, partial: bool) -> Option<(Order, u32)> {
        let Self { q, k, cos, sin } = self;
        let order = order(q.rank, cos.rank, unsqueeze_dim)?;
        let (tokens, heads) = match order {
            Order::Bhsd => (2, 1),
            Order::Bshd => (1, 2),
            Order::Thd => (0, 1),
        };
        let (batch, &[rows, width]) = (&cos.shape()[..cos.rank - 2], &cos.shape()[cos.rank - 2..]) else {
            return None;
        };
        let shape = q.shape();
        let head_dim = *shape.last()?;
        let rotary_dim = if tables == "half" { 2 * width } else { width };
        let whole = |view: &View| rows < 2 || view.strides()[view.rank - 2] == width;
        let fits = cos.shape() == sin.shape()
            && batch.iter().all(|&n| n == 1 || n == shape[0])
            && rows == shape[tokens]
            && if partial { rotary_dim <= head_dim } else { rotary_dim == head_dim }
            // A part of a wider row need not have equal halves.
            && (tables != "full" || whole(cos) && whole(sin));
        let sizes = (2..=512).contains(&rotary_dim)
            && rotary_dim % 2 == 0
            && head_dim % 2 == 0
            && head_dim <= 512
            && (1..=65_536).contains(&shape[heads]);
        let k_fits = k.is_none_or(|k| {
            let n = k.shape();
            k.rank == q.rank
                && (0..k.rank).all(|axis| axis == heads || n[axis] == shape[axis])
                && (1..=65_536).contains(&n[heads])
        });
        (fits && sizes && k_fits).then_some((order, rotary_dim as u32))
    }

    /// The contract under which kernels compute what eager PyTorch would of these types.
    fn contract(&self, rounding: &str) -> Option<Rounding> {
        let (Element::Float(dtype), Element::Float(table)) = (self.q.element, self.cos.element) else { return None };
        match rounding {
            "per_op" | "promoted" if table == dtype => Some(Rounding::PerOp),
            "promoted" | "once" | "once_each" if table == DType::F32 || table == dtype => Some(Rounding::Once),
            _ => None,
        }
    }

    /// That of the gradient; `None` where eager rounds some of its steps as no contract does.
    fn gradient(&self, rounding: &str, forward: Rounding) -> Option<Rounding> {
        if self.q.element == Element::Float(DType::F32) {
            return Some(forward);
        }
        match rounding {
            "promoted" | "once_each" if self.cos.element != self.q.element => None,
            "once_each" => Some(Rounding::PerOp),
            _ => Some(forward),
        }
    }
}

/// How q's dimensions are meant where `cos.unsqueeze(unsqueeze_dim)` is broadcast against them.
fn order(q: usize, cos: usize, unsqueeze_dim: i64) -> Option<Order> {
    let cos_rank = cos as i64;
    let dim = if unsqueeze_dim < 0 { unsqueeze_dim.checked_add(cos_rank + 1)? } else { unsqueeze_dim };
    match (q, cos, cos_rank.checked_sub(dim)?) {
        (4, 2 | 3, 2) => Some(Order::Bhsd),
        (4, 2 | 3, 1) => Some(Order::Bshd),
        (3, 2, 1) => Some(Order::Thd),
        _ => None,
    }
}
