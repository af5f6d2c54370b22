//! k and v appended to a paged cache in the launch that turns q and k.

use pyo3::exceptions::{PyNotImplementedError, PyTypeError};
use pyo3::prelude::*;
use pyo3::types::{PyFloat, PyInt, PyTuple};
use ropejit::rope::{RotaryPart, ScaleUse};

use crate::cache::{self, Given, PAGES, SCALES, Views, seen};
use crate::call::Call;
use crate::errors::{guarded, wrong};
use crate::functions::{self, dense, word};
use crate::norm::{self, Object, Settings, only_torch, torch_of};
use crate::objects::{Objects, fields, kind_of, optional, views};
use crate::torch::{Kind, Torch};

/// Arguments of [`rope_append`].
const ARGUMENTS: usize = 29;
/// Of [`Given::named`]: so many may want a gradient, and from here on there are scales.
const INPUTS: usize = 10;
const SCALE: usize = 15;
type All<'a, 'py> = [Borrowed<'a, 'py, PyAny>; ARGUMENTS];

/// The tensors among the arguments.
fn read<'a, 'py>(all: &'a All<'a, 'py>) -> PyResult<(Objects<'a, 'py>, Given<'a, 'py>)> {
    let tensors: [&Bound<'py, PyAny>; 17] = std::array::from_fn(|i| &*all[i]);
    let [q, k, v, cos, sin, k_cache, v_cache, slots, pages, rest @ ..] = tensors;
    let [q_scale, k_scale, v_scale, q_weight, k_weight, q_out, ids, cu_seqlens] = rest.map(optional);
    let pages = match optional(pages) {
        None => None,
        Some(pages) => match pages.cast::<PyTuple>() {
            Ok(four) if four.len() == 4 => Some(fields::<4>(four)?),
            _ => {
                let what = "must be a tuple of four tensors: kv_indices, kv_indptr, batch_indices and positions";
                return Err(wrong("pages", what));
            }
        },
    };
    let o = Objects { q, k: Some(k), cos, sin, position_ids: ids, cu_seqlens, offset: None };
    let given = Given {
        v: optional(v),
        k_cache,
        v_cache: optional(v_cache),
        slots: optional(slots),
        pages,
        scales: [q_scale, k_scale, v_scale],
        weights: [q_weight, k_weight],
        q_out,
    };
    Ok((o, given))
}

impl<'py> Given<'_, 'py> {
    /// All tensors that may be of any kind, with their names.
    fn named<'b>(&'b self, o: &'b Objects<'_, 'py>) -> [(&'static str, Object<'b, 'py>); 18] {
        let page = |i: usize| self.pages.as_ref().map(|pages| &*pages[i]);
        [
            ("q", Some(o.q)),
            ("k", o.k),
            ("v", self.v),
            ("cos", Some(o.cos)),
            ("sin", Some(o.sin)),
            ("k_cache", Some(self.k_cache)),
            ("v_cache", self.v_cache),
            ("q_weight", self.weights[0]),
            ("k_weight", self.weights[1]),
            ("q_out", self.q_out),
            ("slot_mapping", self.slots),
            (PAGES[0], page(0)),
            (PAGES[1], page(1)),
            (PAGES[2], page(2)),
            (PAGES[3], page(3)),
            (SCALES[0], self.scales[0]),
            (SCALES[1], self.scales[1]),
            (SCALES[2], self.scales[2]),
        ]
    }
}

/// `ropejit.rope_append`, but for tracing: q, k, v, cos, sin, `k_cache`, `v_cache`, `slot_mapping`, pages, `q_scale`, `k_scale`,
/// `v_scale`, `q_weight`, `k_weight`, `q_out`, `position_ids`, `cu_seqlens`; eps (None: no norm), flavour, order, rsqrt,
/// `after_rope`; style, `rotary_dim`, layout, rounding; `scale_use`, part, inplace.
#[pyfunction]
#[pyo3(signature = (*args))]
pub fn rope_append<'py>(args: &Bound<'py, PyTuple>) -> PyResult<Bound<'py, PyAny>> {
    guarded(|| {
        let py = args.py();
        let all = fields::<ARGUMENTS>(args)?;
        let (o, given) = read(&all)?;
        let torch = torch_of(py)?;
        let by_operators = || py.import("ropejit._append_ops")?.getattr("append_to_any_tensors")?.call1(args);
        let named = given.named(&o);
        for (name, number) in &named[SCALE..] {
            refuse_number(name, *number)?;
        }
        let tensors = named.map(|(_, tensor)| tensor);
        match kind_of(torch, &tensors) {
            Kind::Plain => {}
            Kind::Subclass => return by_operators(),
            Kind::Foreign => only_torch(torch, &named)?,
        }
        if torch.any_tangent(py, &tensors[..INPUTS])? {
            return Err(PyNotImplementedError::new_err(
                "forward-mode differentiation of rope_append is not implemented",
            ));
        }
        if torch.is_watched(py)? {
            return by_operators();
        }
        if torch.is_grad_enabled(py)? {
            for (name, tensor) in &named[..INPUTS] {
                if let Some(tensor) = tensor
                    && torch.requires_grad(tensor)?
                {
                    let what = "requires a gradient, and rope_append is for inference: it has none; hint: call it under \
                                torch.no_grad() or torch.inference_mode()";
                    return Err(wrong(name, what));
                }
            }
        }
        match launch(torch, &o, &given, &all)? {
            Some(q) => Ok(q),
            None => by_operators(),
        }
    })
}

/// The same, as the operators call it: `None` where a kernel may not read a tensor as it lies in memory.
#[pyfunction]
#[pyo3(signature = (*args))]
pub fn append_plain<'py>(args: &Bound<'py, PyTuple>) -> PyResult<Option<Bound<'py, PyAny>>> {
    guarded(|| {
        let all = fields::<ARGUMENTS>(args)?;
        let (o, given) = read(&all)?;
        launch(torch_of(args.py())?, &o, &given, &all)
    })
}

fn launch<'py>(
    torch: &Torch,
    o: &Objects<'_, 'py>,
    given: &Given<'_, 'py>,
    all: &All<'_, 'py>,
) -> PyResult<Option<Bound<'py, PyAny>>> {
    let py = o.py();
    let words: [&Bound<'py, PyAny>; 12] = std::array::from_fn(|i| &*all[17 + i]);
    let [eps, flavour, order, rsqrt, after_rope, style, rotary_dim, layout_word, rounding, scale_use, part, inplace] =
        words;
    let form = norm::form_of([style, rotary_dim, layout_word, rounding], false)?;
    let scale_use = scale_use_of(word("scale_use", scale_use)?)?;
    let part = part_of(word("part", part)?)?;
    let settings = match optional(eps) {
        None => None,
        Some(eps) => Some(Settings::parse([eps, flavour, order, rsqrt, after_rope])?),
    };
    let inplace = inplace.is_truthy()?;
    let Some(mut t) = views(torch, o, false)? else { return Ok(None) };
    let tables = functions::tables(torch, o, &mut t)?;
    let copies = [
        if inplace { None } else { dense(torch, "q", o.q, &mut t.q)? },
        match (o.k, &mut t.k) {
            (Some(k), Some(view)) => dense(torch, "k", k, view)?,
            _ => None,
        },
    ];
    let made = match (given.q_out, inplace) {
        (Some(_), true) => {
            return Err(wrong("q_out", "cannot be given beside inplace=True; hint: leave one of them out"));
        }
        (None, true) => None,
        (None, false) => Some(torch.empty_like.bind(py).call1((copies[0].as_ref().unwrap_or(o.q),))?),
        (Some(q_out), false) => Some(q_out.clone()),
    };
    if let Some(made) = &made {
        let Some(view) = seen("q_out", torch, made)? else { return Ok(None) };
        if view.shape() != t.q.shape() {
            return Err(wrong("q_out", format!("is {:?}, q is {:?}", view.shape(), t.q.shape())));
        }
        t.q_out = Some(view);
    }
    let v = given.v.map(|v| torch.view("v", v)).transpose()?;
    let v_cache = given.v_cache.map(|cache| seen("v_cache", torch, cache)).transpose()?;
    let (Some(k_cache), false) =
        (seen("k_cache", torch, given.k_cache)?, matches!((v, v_cache), (Some(None), _) | (_, Some(None))))
    else {
        return Ok(None);
    };
    let (mut v, v_cache) = (v.flatten(), v_cache.flatten());
    let v_copy = match (given.v, &mut v) {
        (Some(v), Some(view)) => dense(torch, "v", v, view)?,
        _ => None,
    };
    let mut call = Call::new(&form, &t)?;
    call.spec.part = part;
    let weights = match (settings, given.weights) {
        (Some(settings), weights) => settings.add(torch, &mut call, weights, None)?,
        (None, _) => [None, None],
    };
    cache::add(
        torch,
        &mut call,
        given,
        scale_use,
        &form,
        &Views { q: t.q, k: t.k, q_out: t.q_out, v, k_cache, v_cache },
    )?;
    let written = [Some(given.k_cache), given.v_cache, given.q_out, inplace.then_some(o.q)];
    torch.will_write(&PyTuple::new(py, written.iter().flatten().collect::<Vec<_>>())?)?;
    call.launch(py, torch.stream(py, call.device)?)?;
    drop((tables, copies, v_copy, weights)); // held until the launch
    Ok(Some(made.unwrap_or_else(|| o.q.clone())))
}

/// Raises for a scale that is a number of Python: its value would be read where the call is made, and a graph would keep it.
fn refuse_number(name: &str, scale: Object<'_, '_>) -> PyResult<()> {
    match scale {
        Some(scale) if scale.is_instance_of::<PyFloat>() || scale.is_instance_of::<PyInt>() => {
            let what = format!(
                "{name}: is a {}, a float32 tensor is needed; hint: make torch.tensor({scale}, device=q.device) once",
                scale.get_type().name()?
            );
            Err(PyTypeError::new_err(what))
        }
        _ => Ok(()),
    }
}

fn scale_use_of(text: &str) -> PyResult<ScaleUse> {
    match text {
        "divide" => Ok(ScaleUse::Divide),
        "multiply" => Ok(ScaleUse::Multiply),
        _ => Err(wrong("scale_use", format!("'{text}' is not one of 'divide' and 'multiply'"))),
    }
}

fn part_of(text: &str) -> PyResult<RotaryPart> {
    match text {
        "first" => Ok(RotaryPart::First),
        "last" => Ok(RotaryPart::Last),
        _ => Err(wrong("part", format!("'{text}' is not one of 'first' and 'last'"))),
    }
}
