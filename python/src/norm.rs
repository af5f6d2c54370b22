//! A norm of q and k in the launch that turns them, and its gradient.

use pyo3::exceptions::{PyNotImplementedError, PyTypeError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyTuple;
use ropejit::rope::{Flavour, Rsqrt, SumOrder};
use ropejit::{DType, Norm};

use crate::beside;
use crate::call::Call;
use crate::dlpack::{Device, View};
use crate::errors::{guarded, wrong};
use crate::form::{Form, element, float, layout};
use crate::functions::{self, dense, word};
use crate::objects::{Objects, fields, kind_of, optional, views};
use crate::torch::{Kind, Torch};

/// A tensor that may be absent.
pub type Object<'a, 'py> = Option<&'a Bound<'py, PyAny>>;

const NAMES: [&str; 2] = ["q_weight", "k_weight"];

/// What Python says of a norm, but for its weights.
pub struct Settings<'a> {
    pub eps: f32,
    flavour: Flavour,
    order: SumOrder,
    rsqrt: Option<&'a str>,
    after_rope: bool,
}

impl<'a> Settings<'a> {
    pub fn parse([eps, flavour, order, rsqrt, after_rope]: [&'a Bound<'_, PyAny>; 5]) -> PyResult<Self> {
        let eps =
            eps.extract::<f64>().map_err(|_| wrong("eps", format!("must be a number, got {}", eps.get_type())))?;
        let flavour = match word("flavour", flavour)? {
            "weight_after" => Flavour::WeightAfter,
            "one_plus_weight" => Flavour::OnePlusWeight,
            "weight_f32" => Flavour::WeightF32,
            "no_weight" => Flavour::NoWeight,
            other => {
                let words = "'weight_after', 'one_plus_weight', 'weight_f32' and 'no_weight'";
                return Err(wrong("flavour", format!("'{other}' is not one of {words}")));
            }
        };
        let order = match word("order", order)? {
            "torch" => SumOrder::Torch,
            "tree" => SumOrder::Tree,
            other => return Err(wrong("order", format!("'{other}' is not one of 'torch' and 'tree'"))),
        };
        let rsqrt = optional(rsqrt).map(|rsqrt| word("rsqrt", rsqrt)).transpose()?;
        if rsqrt.is_some_and(|rsqrt| rsqrt != "approx" && rsqrt != "ieee") {
            let what = format!("'{}' is not one of 'approx', 'ieee' and None", rsqrt.unwrap_or_default());
            return Err(wrong("rsqrt", what));
        }
        Ok(Self { eps: eps as f32, flavour, order, rsqrt, after_rope: after_rope.is_truthy()? })
    }

    /// The norm on a device: unless told, the reciprocal root is the one that PyTorch has there.
    fn norm(&self, device: Device) -> Norm {
        let rsqrt = match (self.rsqrt, device) {
            (Some("approx"), _) | (None, Device::Cuda(_)) => Rsqrt::Approx,
            _ => Rsqrt::Ieee,
        };
        let mut norm = Norm::new(self.flavour).with_order(self.order).with_rsqrt(rsqrt);
        norm.after_rope = self.after_rope;
        norm
    }

    /// Adds the norm to a call. `weights` are those of q and k, `saved` is where the reciprocal roots are. What is returned
    /// has to be held until the launch.
    pub fn add<'py>(
        &self,
        torch: &Torch,
        call: &mut Call,
        weights: [Object<'_, 'py>; 2],
        saved: Object<'_, 'py>,
    ) -> PyResult<[Option<Bound<'py, PyAny>>; 2]> {
        let norm = self.norm(call.device);
        call.spec.norm = Some(norm);
        let has_k = call.spec.num_kv_heads > 0;
        let (mut held, mut addresses) = ([None, None], [None; 2]);
        for (i, weight) in weights.into_iter().enumerate() {
            let Some(weight) = weight else {
                if norm.has_weight() && (i == 0 || has_k) {
                    let what = "is missing; hint: flavour=\"no_weight\" is a norm without weights";
                    return Err(wrong(NAMES[i], what));
                }
                continue;
            };
            if !norm.has_weight() {
                return Err(wrong(NAMES[i], "is given, and the flavour 'no_weight' has none; hint: pass None"));
            }
            if i == 1 && !has_k {
                return Err(wrong(NAMES[i], "is given, and there is no k; hint: pass None"));
            }
            let Some(mut view) = torch.view(NAMES[i], weight)? else {
                return Err(wrong(NAMES[i], "has memory that cannot be read as it lies; hint: pass its clone()"));
            };
            call.here(NAMES[i], &view)?;
            if view.shape() != [i64::from(call.spec.head_dim)] {
                let what = format!(
                    "is {:?}, [{}] is needed: one number an element of a head",
                    view.shape(),
                    call.spec.head_dim
                );
                return Err(wrong(NAMES[i], what));
            }
            if float(NAMES[i], &view)? != call.spec.dtype {
                let what = format!("is {}, q is {}; hint: pass it in q's type", element(&view), call.spec.dtype);
                return Err(wrong(NAMES[i], what));
            }
            held[i] = dense(torch, NAMES[i], weight, &mut view)?;
            addresses[i] = Some(view.address);
        }
        let saved = saved.map(|saved| address_of_saved(torch, call, saved)).transpose()?;
        call.norm = Some(beside::Norm { eps: self.eps, weights: addresses, saved, gradient: None });
        Ok(held)
    }
}

/// Where the reciprocal roots of q and, behind them, of k are.
fn address_of_saved(torch: &Torch, call: &Call, saved: &Bound<'_, PyAny>) -> PyResult<u64> {
    let view = torch.view("saved", saved)?.ok_or_else(|| wrong("saved", "has no memory"))?;
    call.here("saved", &view)?;
    let [batch, tokens, ..] = call.shape();
    let heads = (call.spec.num_heads + call.spec.num_kv_heads) as usize;
    if view.len() as usize != batch * tokens * heads || !view.is_contiguous() || float("saved", &view)? != DType::F32 {
        let what =
            format!("is {:?}, {} contiguous numbers of float32 are needed", view.shape(), batch * tokens * heads);
        return Err(wrong("saved", what));
    }
    Ok(view.address)
}

/// Raises where one of the tensors is of another library.
pub fn only_torch(torch: &Torch, tensors: &[(&str, Object<'_, '_>)]) -> PyResult<()> {
    for (name, tensor) in tensors {
        if let Some(tensor) = tensor
            && let Kind::Foreign = torch.kind(tensor)
        {
            let what =
                format!("{name}: must be a torch.Tensor, got {}; hint: torch.from_dlpack makes one", tensor.get_type());
            return Err(PyTypeError::new_err(what));
        }
    }
    Ok(())
}

pub fn torch_of(py: Python<'_>) -> PyResult<&'static Torch> {
    Torch::get(py).ok_or_else(|| PyTypeError::new_err("q: must be a torch.Tensor, and PyTorch is not imported"))
}

/// What Python says of the rotation beside a norm.
pub fn form_of([style, rotary_dim, layout, rounding]: [&Bound<'_, PyAny>; 4], backward: bool) -> PyResult<Form> {
    Ok(Form {
        whole: true,
        ..functions::form_of(layout, rounding, style, functions::rotary_dim(rotary_dim)?, backward)?
    })
}

/// `ropejit.qk_norm_rope`, but for tracing: q, k, their weights, cos, sin, `position_ids`, `cu_seqlens`; eps, flavour, order,
/// rsqrt, `after_rope`; style, `rotary_dim`, layout, rounding; inplace.
#[pyfunction]
#[pyo3(signature = (*args))]
pub fn qk_norm_rope<'py>(args: &Bound<'py, PyTuple>) -> PyResult<Bound<'py, PyTuple>> {
    guarded(|| {
        let py = args.py();
        let all = fields::<18>(args)?;
        let tensors: [&Bound<'py, PyAny>; 8] = std::array::from_fn(|i| &*all[i]);
        let [q, k, q_weight, k_weight, cos, sin, ids, cu_seqlens] = tensors;
        let inplace = all[17].is_truthy()?;
        let torch = torch_of(py)?;
        let weights = [optional(q_weight), optional(k_weight)];
        let o = Objects {
            q,
            k: optional(k),
            cos,
            sin,
            position_ids: optional(ids),
            cu_seqlens: optional(cu_seqlens),
            offset: None,
        };
        let by =
            |module: &str, name: &str| Ok(py.import(module)?.getattr(name)?.call1(args)?.cast_into::<PyTuple>()?);
        let given = [Some(q), o.k, weights[0], weights[1], Some(cos), Some(sin)];
        match kind_of(torch, &given) {
            Kind::Plain => {}
            Kind::Subclass => return by("ropejit._norm_ops", "norm_of_any_tensors"),
            Kind::Foreign => {
                let names = ["q", "k", "q_weight", "k_weight", "cos", "sin"];
                let named: [(&str, Object<'_, 'py>); 6] = std::array::from_fn(|i| (names[i], given[i]));
                only_torch(torch, &named)?;
            }
        }
        if torch.any_tangent(py, &given)? {
            let what = "forward-mode differentiation of a norm and rotation is not implemented";
            return Err(PyNotImplementedError::new_err(what));
        }
        if torch.is_watched(py)? {
            return by("ropejit._norm_ops", "norm_of_any_tensors");
        }
        if functions::needs_grad(torch, &o, &weights)? {
            return by("ropejit._norm_autograd", "qk_norm_rope");
        }
        match launch(torch, &o, weights, None, &rest(&all, 8), inplace)? {
            Some(out) => Ok(out),
            None => by("ropejit._norm_ops", "norm_of_any_tensors"),
        }
    })
}

/// The nine words and numbers that end with the rounding contract.
fn rest<'a, 'py, const N: usize>(all: &'a [Borrowed<'a, 'py, PyAny>; N], at: usize) -> [&'a Bound<'py, PyAny>; 9] {
    std::array::from_fn(|i| &*all[at + i])
}

/// The forward call without autograd; `None` where a kernel may not read a tensor as it lies in memory.
fn launch<'py>(
    torch: &Torch,
    o: &Objects<'_, 'py>,
    weights: [Object<'_, 'py>; 2],
    saved: Object<'_, 'py>,
    rest: &[&Bound<'py, PyAny>; 9],
    inplace: bool,
) -> PyResult<Option<Bound<'py, PyTuple>>> {
    let [eps, flavour, order, rsqrt, after_rope, style, rotary_dim, layout, rounding] = *rest;
    let settings = Settings::parse([eps, flavour, order, rsqrt, after_rope])?;
    let form = form_of([style, rotary_dim, layout, rounding], false)?;
    let Some(mut tensors) = views(torch, o, false)? else { return Ok(None) };
    let mut held = [None, None];
    let out = functions::rotate(torch, o, &mut tensors, &form, inplace, |call| {
        held = settings.add(torch, call, weights, saved)?;
        Ok(())
    })?;
    drop(held); // held until the launch
    Ok(Some(out))
}

/// The forward call without autograd, as autograd and the operators call it: the arguments of [`qk_norm_rope`], then where the
/// reciprocal roots are written to, f32, those of q and then those of k.
#[pyfunction]
#[pyo3(signature = (*args))]
pub fn norm_plain<'py>(args: &Bound<'py, PyTuple>) -> PyResult<Option<Bound<'py, PyTuple>>> {
    guarded(|| {
        let all = fields::<19>(args)?;
        let tensors: [&Bound<'py, PyAny>; 8] = std::array::from_fn(|i| &*all[i]);
        let [q, k, q_weight, k_weight, cos, sin, ids, cu_seqlens] = tensors;
        let (position_ids, cu_seqlens) = (optional(ids), optional(cu_seqlens));
        let o = Objects { q, k: optional(k), cos, sin, position_ids, cu_seqlens, offset: None };
        let weights = [optional(q_weight), optional(k_weight)];
        let (torch, inplace, saved) = (torch_of(args.py())?, all[17].is_truthy()?, optional(&all[18]));
        launch(torch, &o, weights, saved, &rest(&all, 8), inplace)
    })
}

/// The gradients of q, k and their weights (None where there is none), without autograd: the gradients of the results, q and k
/// as the forward call took them, their weights, cos, sin, `position_ids`, `cu_seqlens`, the reciprocal roots; then as
/// [`qk_norm_rope`]. `None` where a kernel may not read a tensor as it lies in memory.
#[pyfunction]
#[pyo3(signature = (*args))]
pub fn norm_backward<'py>(args: &Bound<'py, PyTuple>) -> PyResult<Option<Bound<'py, PyTuple>>> {
    guarded(|| {
        let py = args.py();
        let torch = torch_of(py)?;
        let all = fields::<20>(args)?;
        let tensors: [&Bound<'py, PyAny>; 11] = std::array::from_fn(|i| &*all[i]);
        let [dq, dk, q, k, q_weight, k_weight, cos, sin, ids, cu_seqlens, saved] = tensors;
        let [eps, flavour, order, rsqrt, after_rope, style, rotary_dim, layout_word, rounding] = rest(&all, 11);
        let settings = Settings::parse([eps, flavour, order, rsqrt, after_rope])?;
        let form = form_of([style, rotary_dim, layout_word, rounding], true)?;
        let (position_ids, cu_seqlens) = (optional(ids), optional(cu_seqlens));
        let o = Objects { q: dq, k: optional(dk), cos, sin, position_ids, cu_seqlens, offset: None };
        let weights = [optional(q_weight), optional(k_weight)];
        let Some(mut tensors) = views(torch, &o, false)? else { return Ok(None) };
        let Some(q_view) = torch.view("q", q)? else { return Ok(None) };
        let k = optional(k);
        let k_view = match k {
            None => None,
            Some(k) => match torch.view("k", k)? {
                None => return Ok(None),
                view => view,
            },
        };
        let mut held: Vec<Bound<'py, PyAny>> = Vec::new();
        let mut weight_gradients = [None, None];
        let out = functions::rotate(torch, &o, &mut tensors, &form, false, |call| {
            held.extend(settings.add(torch, call, weights, Some(saved))?.into_iter().flatten());
            let mut x = |name: &str, tensor: &Bound<'py, PyAny>, mut view: View| {
                call.here(name, &view)?;
                held.extend(dense(torch, name, tensor, &mut view)?);
                Ok::<_, PyErr>((view.address, layout(name, &view, form.order)?))
            };
            let q = x("q", q, q_view)?;
            let k = k.zip(k_view).map(|(k, view)| x("k", k, view)).transpose()?;
            let [batch, tokens, ..] = call.shape();
            let tokens = (batch * tokens) as u64;
            let mut addresses = [None; 2];
            for (i, weight) in weights.into_iter().enumerate() {
                let Some(weight) = weight else { continue };
                // Of no token nothing is launched.
                let gradient = if tokens > 0 {
                    torch.empty_like.bind(py).call1((weight,))?
                } else {
                    weight.call_method0(intern!(py, "detach"))?.call_method1(intern!(py, "mul"), (0,))?
                };
                let view = torch.view_of_new(NAMES[i], &gradient)?;
                addresses[i] = Some(view.address);
                weight_gradients[i] = Some(gradient);
            }
            let numbers = call.spec.weight_workspace(tokens);
            let mut workspace = 0;
            if numbers > 0 {
                let buffer = saved.call_method1(intern!(py, "new_empty"), ((numbers,),))?;
                workspace = torch.view_of_new("workspace", &buffer)?.address;
                held.push(buffer);
            }
            if let Some(norm) = &mut call.norm {
                norm.gradient = Some(beside::Gradient { q, k, weights: addresses, workspace });
            }
            Ok(())
        })?;
        drop(held); // held until the launch
        let [q_weight, k_weight] = weight_gradients;
        (out.get_item(0)?, out.get_item(1)?, q_weight, k_weight).into_pyobject(py).map(Some)
    })
}
