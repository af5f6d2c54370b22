//! In place of a model's own function: kernels where they compute its bits, `None` where that function has to.

use pyo3::prelude::*;
use pyo3::types::{PyInt, PySlice, PyTuple};
use ropejit::{DType, Rounding};

use crate::call::Tensors;
use crate::dlpack::{Element, View};
use crate::errors::guarded;
use crate::form::{self, Form, Order};
use crate::functions;
use crate::objects::{Objects, kind, views};
use crate::torch::{Kind, Torch};

/// The rotation that a model's own function computes, or `None` where it would compute something else than the kernels do:
/// the caller then lets that function do it, which also raises what is to be raised. `ropejit._forms.Form` says what the last
/// four arguments mean.
#[pyfunction]
#[pyo3(signature = (q, k, cos, sin, unsqueeze_dim, style, tables, partial, rounding))]
#[allow(clippy::too_many_arguments)]
pub fn drop_in<'py>(
    q: &Bound<'py, PyAny>,
    k: Option<&Bound<'py, PyAny>>,
    cos: &Bound<'py, PyAny>,
    sin: &Bound<'py, PyAny>,
    unsqueeze_dim: &Bound<'py, PyAny>,
    style: &str,
    tables: &str,
    partial: bool,
    rounding: &str,
) -> PyResult<Option<Bound<'py, PyTuple>>> {
    guarded(|| {
        let py = q.py();
        let o = Objects { q, k, cos, sin, position_ids: None, cu_seqlens: None, offset: None };
        let Some(torch) = Torch::get(py) else { return Ok(None) };
        if !matches!(kind(torch, &o), Kind::Plain) || !unsqueeze_dim.is_exact_instance_of::<PyInt>() {
            return Ok(None);
        }
        if torch.any_tangent(py, &o.rotated())? {
            return Ok(None); // eager carries it
        }
        // What no view can be had of (a meta tensor, a negated one, five dimensions) is no call for the kernels.
        let Ok(seen) = views(torch, &o, false) else { return Ok(None) };
        let Some(mut tensors) = seen else {
            py.import("ropejit._tensors")?.call_method1("refuse_freed", (q, k, cos, sin))?;
            return Ok(None);
        };
        let fit = unsqueeze_dim.extract().ok().and_then(|dim| fit(&tensors, dim, tables, partial));
        let (Some((order, rotary_dim)), Some(contract)) = (fit, contract(&tensors, rounding)) else { return Ok(None) };
        let mut is_recorded = false;
        if torch.is_grad_enabled(py)? {
            if torch.requires_grad(cos)? || torch.requires_grad(sin)? {
                return Ok(None);
            }
            is_recorded = torch.requires_grad(q)? || k.map_or(Ok(false), |k| torch.requires_grad(k))?;
        }
        let is_watched = torch.is_watched(py)?;
        let mut word = match contract {
            Rounding::Once => "once",
            Rounding::PerOp => "per_op",
            Rounding::Contracted => "contracted",
        };
        if is_recorded && tensors.q.element != Element::Float(DType::F32) {
            match rounding {
                // Eager rounds some steps of the gradient, as no contract does.
                "promoted" | "once_each" if tensors.q.element != tensors.cos.element => return Ok(None),
                "once_each" if is_watched => return Ok(None), // operators have one contract for both directions
                "once_each" => word = rounding,
                _ => {}
            }
        }
        let every_second = |table: &Bound<'py, PyAny>| {
            table.get_item((py.Ellipsis(), PySlice::new(py, 0, isize::MAX, 2))) // its neighbours are equal
        };
        let twice = (tables == "twice").then(|| PyResult::Ok((every_second(cos)?, every_second(sin)?))).transpose()?;
        let (cos, sin) = twice.as_ref().map_or((cos, sin), |(cos, sin)| (cos, sin));
        if is_watched || is_recorded {
            let layout = match order {
                Order::Bhsd => "bhsd",
                Order::Bshd => "bshd",
                Order::Thd => "thd",
            };
            let none = py.None();
            let all = (q, k, cos, sin, &none, &none, &none, style, rotary_dim, layout, word, false);
            let function =
                if is_watched { functions::operators(py, "apply")? } else { functions::recorded(py)?.clone() };
            return Ok(Some(function.call1(all)?.cast_into()?));
        }
        let style = form::style(style)?;
        let form = Form {
            order,
            style,
            rotary_dim: Some(rotary_dim),
            rounding: contract,
            backward: false,
            whole: false,
            sections: None,
        };
        let o = Objects { cos, sin, ..o };
        if twice.is_some() {
            let Some(again) = views(torch, &o, false)? else { return Ok(None) };
            tensors = again;
        }
        functions::rotate(torch, &o, &mut tensors, &form, false, |_| Ok(())).map(Some)
    })
}

/// The order of dimensions, and how many elements of a head turn; `None` where eager would refuse or broadcast.
fn fit(t: &Tensors, unsqueeze_dim: i64, tables: &str, partial: bool) -> Option<(Order, u32)> {
    let Tensors { q, k, cos, sin, .. } = t;
    let order = order(q.rank, cos.rank, unsqueeze_dim)?;
    let (tokens, heads) = match order {
        Order::Bhsd => (2, 1),
        Order::Bshd => (1, 2),
        Order::Thd => (0, 1),
    };
    let (batch, &[rows, width]) = cos.shape().split_at(cos.rank - 2) else { return None };
    let shape = q.shape();
    let head_dim = *shape.last()?;
    let rotary_dim = if tables == "half" { 2 * width } else { width };
    let whole = |view: &View| rows < 2 || view.strides()[view.rank - 2] == width;
    let fits = cos.shape() == sin.shape()
        && cos.element == sin.element
        && [cos.device, sin.device] == [q.device; 2]
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
    let k_fits = k.as_ref().is_none_or(|k| {
        let n = k.shape();
        k.rank == q.rank
            && k.element == q.element
            && k.device == q.device
            && (0..k.rank).all(|axis| axis == heads || n[axis] == shape[axis])
            && (1..=65_536).contains(&n[heads])
    });
    (fits && sizes && k_fits).then_some((order, rotary_dim as u32))
}

/// The contract under which kernels compute what eager PyTorch would of these types.
fn contract(t: &Tensors, rounding: &str) -> Option<Rounding> {
    let (Element::Float(dtype), Element::Float(table)) = (t.q.element, t.cos.element) else { return None };
    if dtype == DType::E4M3 {
        return None;
    }
    match rounding {
        "per_op" | "promoted" if table == dtype => Some(Rounding::PerOp),
        "promoted" | "once" | "once_each" if table == DType::F32 || table == dtype => Some(Rounding::Once),
        "contracted" if table == DType::F32 || table == dtype => Some(Rounding::Contracted),
        _ => None,
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
