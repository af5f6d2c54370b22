//! The cache that a call appends to: its tensors, slots and scales, checked and turned into what a launch is told.

use pyo3::intern;
use pyo3::prelude::*;
use ropejit::rope::{Append, Fp8, ScaleUse, SlotForm};
use ropejit::{DType, Layout};

use crate::beside::{self, Where};
use crate::call::Call;
use crate::dlpack::{Element, View};
use crate::errors::wrong;
use crate::form::{Form, Order, element, float, layout};
use crate::norm::Object;
use crate::overlap;
use crate::torch::Torch;

/// The tensors beside q, k and the tables, as Python passes them.
pub struct Given<'a, 'py> {
    pub v: Object<'a, 'py>,
    pub k_cache: &'a Bound<'py, PyAny>,
    pub v_cache: Object<'a, 'py>,
    pub slots: Object<'a, 'py>,
    pub pages: Option<[Borrowed<'a, 'py, PyAny>; 4]>,
    /// Of q, k and v.
    pub scales: [Object<'a, 'py>; 3],
    pub weights: [Object<'a, 'py>; 2],
    pub q_out: Object<'a, 'py>,
}

pub const SCALES: [&str; 3] = ["q_scale", "k_scale", "v_scale"];
pub const PAGES: [&str; 4] = ["kv_indices", "kv_indptr", "batch_indices", "positions"];

/// The tensors of a call, in memory.
pub struct Views {
    pub q: View,
    pub k: Option<View>,
    pub q_out: Option<View>,
    pub v: Option<View>,
    pub k_cache: View,
    pub v_cache: Option<View>,
}

/// Adds the cache to a call.
pub fn add(
    torch: &Torch,
    call: &mut Call,
    given: &Given<'_, '_>,
    scale_use: ScaleUse,
    form: &Form,
    views: &Views,
) -> PyResult<()> {
    let dtype = call.spec.dtype;
    let [batch, tokens, ..] = call.shape();
    let k_dim = views.k.as_ref().and_then(|k| k.shape().last().copied()).unwrap_or(0) as u32;
    if k_dim != call.spec.head_dim {
        if k_dim != call.spec.rotary_dim {
            let (q, turns) = (call.spec.head_dim, call.spec.rotary_dim);
            let what = format!("has heads of {k_dim}, those of q have {q}: {q} or rotary_dim ({turns}) are needed");
            return Err(wrong("k", what));
        }
        call.spec.k_head_dim = Some(k_dim);
    }
    let q_fp8 = views.q_out.as_ref().is_some_and(is_fp8);
    if let Some(q_out) = &views.q_out {
        call.here("q_out", q_out)?;
        if !q_fp8 && float("q_out", q_out)? != dtype {
            return Err(wrong(
                "q_out",
                format!("is {}, q's type ({dtype}) or float8_e4m3fn is needed", element(q_out)),
            ));
        }
        if given.q_out.is_some() && share(&views.q, q_out, form.order, q_fp8)? {
            return Err(wrong("q_out", "shares memory with q; hint: inplace=True writes q where it is"));
        }
    }
    let cache_is_fp8 = is_fp8(&views.k_cache);
    let k_cache = cache("k_cache", &views.k_cache, call)?;
    let v_cache = match (&views.v, &views.v_cache) {
        (None, None) => None,
        (None, Some(_)) => return Err(wrong("v", "is missing, and v_cache is given; hint: pass both or neither")),
        (Some(_), None) => return Err(wrong("v_cache", "is missing, and v is given; hint: pass both or neither")),
        (Some(_), Some(view)) => {
            let v_cache = cache("v_cache", view, call)?;
            if is_fp8(view) != cache_is_fp8 {
                let what = format!("is {}, k_cache is {}", element(view), element(&views.k_cache));
                return Err(wrong("v_cache", what));
            }
            let size = if cache_is_fp8 { 1 } else { dtype.size() };
            let gap = (v_cache.0 as i64).wrapping_sub(k_cache.0 as i64).div_euclid(size as i64);
            if overlap::meet(&k_cache.1, &v_cache.1, gap, [k_cache.1.shape[3], v_cache.1.shape[3]]) {
                return Err(wrong("v_cache", "shares elements with k_cache, and both would be written there"));
            }
            Some(v_cache)
        }
    };
    let v = match &views.v {
        None => None,
        Some(v) => {
            call.here("v", v)?;
            if float("v", v)? != dtype {
                return Err(wrong("v", format!("is {}, q is {dtype}", element(v))));
            }
            Some((v.address, layout("v", v, form.order)?))
        }
    };
    let heads = [call.spec.num_heads, call.spec.num_kv_heads, call.spec.num_kv_heads];
    let wanted = [q_fp8, cache_is_fp8, cache_is_fp8 && v.is_some()];
    let mut scales = [None; 3];
    for i in 0..3 {
        scales[i] = scale(torch, call, SCALES[i], given.scales[i], wanted[i], heads[i])?;
    }
    if let [_, Some((_, k)), Some((_, v))] = scales
        && k != v
    {
        return Err(wrong(
            "v_scale",
            format!("has {v} numbers, k_scale has {k}: one each, or one a head each, are needed"),
        ));
    }
    let fp8 = |scale: Option<(u64, usize)>| scale.map(|(_, n)| Fp8 { scale: scale_use, per_head: n > 1 });
    let slots = slots(torch, call, given, batch * tokens)?;
    let mut append = Append::new(v.map_or(0, |(_, layout)| layout.shape[3] as u32));
    append.slots = if matches!(slots, Where::Pages(_)) { SlotForm::Pages } else { SlotForm::SlotMapping };
    (append.cache, append.q) = (fp8(scales[1]), fp8(scales[0]));
    call.spec.append = Some(append);
    call.append = Some(beside::Append { v, k_cache, v_cache, slots, scales });
    Ok(())
}

/// Whether q and what is written in its stead share memory.
fn share(q: &View, q_out: &View, order: Order, fp8: bool) -> PyResult<bool> {
    let (a, b) = (layout("q", q, order)?, layout("q_out", q_out, order)?);
    let size = if let Element::Float(dtype) = q.element { dtype.size() as i64 } else { 1 };
    let gap = (q_out.address as i64).wrapping_sub(q.address as i64);
    if !fp8 {
        return Ok(overlap::meet(&a, &b, gap.div_euclid(size), [a.shape[3], b.shape[3]]));
    }
    let (Some(a), Some(b)) = (a.extent(), b.extent()) else { return Ok(false) };
    let (end, from) = (a.1.saturating_mul(size), a.0.saturating_mul(size));
    Ok(b.0.saturating_add(gap) < end && from < b.1.saturating_add(gap))
}

/// Where a cache is.
fn cache(name: &str, view: &View, call: &Call) -> PyResult<(u64, Layout)> {
    call.here(name, view)?;
    if !is_fp8(view) && float(name, view)? != call.spec.dtype {
        let what = format!("is {}, q's type ({}) or float8_e4m3fn is needed", element(view), call.spec.dtype);
        return Err(wrong(name, what));
    }
    let (&[blocks, size, heads, dim], &[a, b, c, d]) = (view.shape(), view.strides()) else {
        let what = format!("is {:?}, [blocks, block_size, kv_heads, head_dim] is needed", view.shape());
        return Err(wrong(name, what));
    };
    let shape = [blocks, size, heads, dim].map(|n| n as usize);
    Ok((view.address, Layout { shape, strides: [a, b, c, d] }))
}

/// A scale, where one is needed: where it is, and how many numbers.
fn scale(
    torch: &Torch,
    call: &Call,
    name: &str,
    given: Object<'_, '_>,
    wanted: bool,
    heads: u32,
) -> PyResult<Option<(u64, usize)>> {
    let of = match name {
        "q_scale" => "q_out",
        "k_scale" => "k_cache",
        _ => "v_cache",
    };
    match (given, wanted) {
        (None, false) => Ok(None),
        (Some(_), false) => Err(wrong(name, format!("is given, and {of} is not of float8_e4m3fn; hint: pass None"))),
        (None, true) => {
            let what =
                format!("is missing: {of} is of float8_e4m3fn; hint: a float32 tensor of one number, or of one a head");
            Err(wrong(name, what))
        }
        (Some(tensor), true) => {
            let f32s = Element::Float(DType::F32);
            let view = dense_numbers(torch, call, name, tensor, f32s, "float32")?;
            let n = view.len() as usize;
            if n != 1 && n != heads as usize {
                return Err(wrong(name, format!("has {n} numbers, 1 or {heads} (one a head) are needed")));
            }
            Ok(Some((view.address, n)))
        }
    }
}

/// Where tokens are stored.
fn slots(torch: &Torch, call: &Call, given: &Given<'_, '_>, tokens: usize) -> PyResult<Where> {
    let numbers = |name: &str, tensor: &Bound<'_, PyAny>, kind, word| {
        dense_numbers(torch, call, name, tensor, kind, word).map(|view| (view.address, view.len() as usize))
    };
    match (given.slots, &given.pages) {
        (None, None) => Err(wrong("slot_mapping", "is missing; hint: pass it, or pages")),
        (Some(_), Some(_)) => {
            Err(wrong("pages", "cannot be given beside slot_mapping; hint: pass None for one of them"))
        }
        (Some(slots), None) => {
            let (address, n) = numbers("slot_mapping", slots, Element::I64, "int64")?;
            if n != tokens {
                return Err(wrong("slot_mapping", format!("has {n} numbers, q has {tokens} tokens")));
            }
            Ok(Where::Mapping(address))
        }
        (None, Some(pages)) => {
            let mut all = [(0, 0); 4];
            for i in 0..4 {
                all[i] = numbers(PAGES[i], &pages[i], Element::I32, "int32")?;
                if i > 1 && all[i].1 != tokens {
                    return Err(wrong(PAGES[i], format!("has {} numbers, q has {tokens} tokens", all[i].1)));
                }
            }
            if all[1].1 == 0 {
                return Err(wrong(PAGES[1], "is empty: one number more than there are requests is needed"));
            }
            Ok(Where::Pages(all))
        }
    }
}

/// Contiguous numbers of one type.
fn dense_numbers(
    torch: &Torch,
    call: &Call,
    name: &str,
    tensor: &Bound<'_, PyAny>,
    wanted: Element,
    word: &str,
) -> PyResult<View> {
    let Some(view) = torch.view(name, tensor)? else {
        return Err(wrong(name, "has memory that cannot be read as it lies; hint: pass its clone()"));
    };
    call.here(name, &view)?;
    if view.element != wanted {
        return Err(wrong(name, format!("is {}, {word} is needed; hint: pass its .to(torch.{word})", element(&view))));
    }
    if !view.is_contiguous() {
        return Err(wrong(name, "is not contiguous; hint: pass its contiguous()"));
    }
    Ok(view)
}

fn is_fp8(view: &View) -> bool {
    view.element == Element::Float(DType::E4M3)
}

/// What a tensor that may be of fp8 is in memory: what PyTorch's `DLPack` does not know, its bytes tell.
pub fn seen(name: &str, torch: &Torch, tensor: &Bound<'_, PyAny>) -> PyResult<Option<View>> {
    if let Some(view) = torch.view(name, tensor)? {
        return Ok(Some(view));
    }
    let module = tensor.py().import(intern!(tensor.py(), "torch"))?;
    if !tensor.getattr("dtype")?.is(module.getattr("float8_e4m3fn")?) {
        return Ok(None);
    }
    let bytes = tensor.call_method1("view", (module.getattr("uint8")?,))?;
    let mut view = torch.view(name, &bytes)?;
    if let Some(view) = &mut view {
        view.element = Element::Float(DType::E4M3);
    }
    Ok(view)
}
