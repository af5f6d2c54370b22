//! What a call computes, read from its tensors and checked: all that ropejit takes a caller's word for.

use candle_core::{Result, Tensor};
use ropejit::rope::Norm;
use ropejit::{DType, Direction, Layout, PositionForm, RopeSpec, TableForm, TableWidth};

use crate::form::Rope;
use crate::{raise, wrong};

/// The tensors of a launch, and what is done with them.
pub struct Launch<'a> {
    pub rope: &'a Rope,
    /// What turns; backward its gradient.
    pub q: &'a Tensor,
    pub k: Option<&'a Tensor>,
    pub cos: &'a Tensor,
    pub sin: &'a Tensor,
    pub norm: Option<Normed<'a>>,
}

/// What a norm takes beside.
pub struct Normed<'a> {
    pub norm: Norm,
    pub eps: f32,
    pub q_weight: Option<&'a Tensor>,
    pub k_weight: Option<&'a Tensor>,
    /// Whether a gradient will be asked for, which needs the reciprocal roots.
    pub save: bool,
    /// Backward: what was normalised, and its reciprocal roots. There is no k then.
    pub before: Option<[&'a Tensor; 2]>,
}

impl<'a> Launch<'a> {
    /// A rotation alone.
    pub fn new(
        rope: &'a Rope,
        q: &'a Tensor,
        k: impl Into<Option<&'a Tensor>>,
        cos: &'a Tensor,
        sin: &'a Tensor,
    ) -> Self {
        Self { rope, q, k: k.into(), cos, sin, norm: None }
    }

    /// Every tensor of it, by its name.
    fn named(&self) -> impl Iterator<Item = (&'static str, &'a Tensor)> {
        let norm = self.norm.as_ref();
        let weights = [norm.and_then(|norm| norm.q_weight), norm.and_then(|norm| norm.k_weight)];
        let before = norm.and_then(|norm| norm.before);
        let optional = [
            ("k", self.k),
            ("position_ids", self.rope.position_ids.as_ref()),
            ("q_weight", weights[0]),
            ("k_weight", weights[1]),
            ("q", before.map(|before| before[0])),
        ];
        let given = optional.into_iter().filter_map(|(name, tensor)| Some((name, tensor?)));
        [("q", self.q), ("cos", self.cos), ("sin", self.sin)].into_iter().chain(given)
    }
}

/// A launch that can be.
pub struct Checked {
    pub spec: RopeSpec,
    pub q: Layout,
    pub k: Option<Layout>,
    /// Backward through a norm: how lies what was normalised.
    pub before: Option<Layout>,
    pub rows: usize,
    /// Of a sequence and of a row, in elements.
    pub table_strides: [i64; 2],
    /// Of a sequence and of a token, in elements.
    pub id_strides: [i64; 2],
}

impl Checked {
    pub fn of(launch: &Launch<'_>) -> Result<Self> {
        let Launch { rope, q, k, cos, sin, norm } = launch;
        for (name, tensor) in launch.named() {
            if !tensor.device().same_device(q.device()) {
                let (there, here) = (tensor.device().location(), q.device().location());
                return Err(wrong(name, format!("is on {there:?}, q on {here:?}, or on another stream")));
            }
        }
        let dtype = float("q", q)?;
        let q_layout = layout("q", q, rope.thd)?;
        let [batch, tokens, heads, head_dim] = q_layout.shape;
        let k_layout = k.map(|k| layout("k", k, rope.thd)).transpose()?;
        for (name, other) in launch.named().filter(|(name, _)| matches!(*name, "k" | "q_weight" | "k_weight")) {
            if float(name, other)? != dtype {
                return Err(wrong(name, format!("is {:?}, q is {:?}", other.dtype(), q.dtype())));
            }
        }
        let rotary_dim = rope.rotary_dim.unwrap_or(head_dim);
        let k_heads = k_layout.map_or(0, |k| k.shape[2]);
        let mut spec = RopeSpec::new(dtype, number(head_dim), number(heads), number(k_heads));
        spec.rotary_dim = number(rotary_dim);
        spec.style = rope.style;
        spec.rounding = rope.rounding.of(dtype);
        spec.direction = rope.direction;
        spec.validate().map_err(raise)?;
        let table = float("cos", cos)?;
        if table != DType::F32 && table != dtype {
            return Err(wrong("cos", format!("is {table}, f32 or the type of q ({dtype}) is needed")));
        }
        let (rows, table_strides, width) = tables(cos, sin, batch)?;
        let form = match width {
            w if 2 * w == rotary_dim => TableWidth::Half,
            w if w == rotary_dim => TableWidth::Full,
            w => {
                let half = rotary_dim / 2;
                let what = format!("has rows of {w}, {half} or {rotary_dim} are needed: rotary_dim is {rotary_dim}");
                return Err(wrong("cos", what));
            }
        };
        spec.table = TableForm { dtype: table, width: form };
        spec.norm = norm.as_ref().map(|norm| norm.norm);
        let mut id_strides = [0; 2];
        if let Some(ids) = &rope.position_ids {
            (spec.positions, id_strides) = positions(ids, batch, tokens)?;
        }
        let mut before = None;
        if let Some(Normed { q_weight, k_weight, before: Some([x, _]), .. }) = norm {
            debug_assert!(spec.direction == Direction::Backward && k.is_none() && k_weight.is_none());
            debug_assert_eq!(q_weight.is_some(), spec.norm.is_some_and(Norm::has_weight));
            before = Some(layout("q", x, rope.thd)?);
        }
        if let Some(norm) = norm {
            for (name, weight) in [("q_weight", norm.q_weight), ("k_weight", norm.k_weight)] {
                if weight.is_some_and(|w| !w.is_contiguous() || w.dims() != [head_dim]) {
                    return Err(wrong(name, format!("must be contiguous, [{head_dim}]: as long as a head")));
                }
            }
        }
        Ok(Self { spec, q: q_layout, k: k_layout, before, rows, table_strides, id_strides })
    }
}

fn number(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// ropejit's word for the type of a tensor of numbers.
pub fn float(name: &str, tensor: &Tensor) -> Result<DType> {
    match tensor.dtype() {
        candle_core::DType::F32 => Ok(DType::F32),
        candle_core::DType::F16 => Ok(DType::F16),
        candle_core::DType::BF16 => Ok(DType::BF16),
        other => Err(wrong(name, format!("is {other:?}, f32, f16 or bf16 is needed"))),
    }
}

/// How q or k lies in memory: `[batch, heads, tokens, head_dim]`, or with `thd` `[batch, tokens, heads, head_dim]`.
fn layout(name: &str, tensor: &Tensor, thd: bool) -> Result<Layout> {
    let (&[b, x, y, d], &[bs, xs, ys, ds]) = (tensor.dims(), tensor.stride()) else {
        let order = if thd { "[batch, tokens, heads, head_dim]" } else { "[batch, heads, tokens, head_dim]" };
        return Err(wrong(name, format!("has the shape {:?}, {order} is needed", tensor.dims())));
    };
    if d > 1 && ds != 1 {
        let e = ropejit::Error::argument(name, format!("must have contiguous heads, the last stride is {ds}"));
        return Err(raise(e.hint("call .contiguous() on it, or pass the view before its last dimension was moved")));
    }
    let ([tokens, heads], [ts, hs]) = if thd { ([x, y], [xs, ys]) } else { ([y, x], [ys, xs]) };
    Ok(Layout { shape: [b, tokens, heads, d], strides: [bs, ts, hs, 1].map(|stride| stride as i64) })
}

/// Rows, strides and width of cos and sin.
fn tables(cos: &Tensor, sin: &Tensor, batch: usize) -> Result<(usize, [i64; 2], usize)> {
    for (name, table) in [("cos", cos), ("sin", sin)] {
        if table.track_op() {
            let e = ropejit::Error::argument(name, "wants a gradient, and cos and sin are constants here");
            return Err(raise(e.hint("call .detach() on it")));
        }
        if table.stride().last().is_some_and(|stride| *stride != 1) && table.dims().last() != Some(&1) {
            return Err(wrong(name, "must have contiguous rows: call .contiguous() on it"));
        }
    }
    if sin.dims() != cos.dims() || sin.dtype() != cos.dtype() {
        let [sin, cos] = [sin, cos].map(|table| format!("{:?} of {:?}", table.dims(), table.dtype()));
        return Err(wrong("sin", format!("is {sin}, cos is {cos}")));
    }
    if sin.stride() != cos.stride() {
        return Err(wrong("sin", "lies in memory otherwise than cos: call .contiguous() on both"));
    }
    match (cos.dims(), cos.stride()) {
        (&[rows, width], &[row, _]) | (&[1, rows, width], &[_, row, _]) => Ok((rows, [0, row as i64], width)),
        (&[b, rows, width], &[sequence, row, _]) if b == batch => Ok((rows, [sequence as i64, row as i64], width)),
        (dims, _) => {
            Err(wrong("cos", format!("has the shape {dims:?}, [rows, width] or [{batch}, rows, width] is needed")))
        }
    }
}

/// The form and the strides of `position_ids`.
fn positions(ids: &Tensor, batch: usize, tokens: usize) -> Result<(PositionForm, [i64; 2])> {
    let form = match ids.dtype() {
        // Numbers of 2^31 and above read as negative ones: no table has them.
        candle_core::DType::U32 | candle_core::DType::I32 => PositionForm::Ids32,
        candle_core::DType::I64 => PositionForm::Ids64,
        other => return Err(wrong("position_ids", format!("are {other:?}, u32, i32 or i64 is needed"))),
    };
    let strides = match (ids.dims(), ids.stride()) {
        (&[t], &[token]) | (&[1, t], &[_, token]) if t == tokens => [0, token as i64],
        (&[b, t], &[sequence, token]) if b == batch && t == tokens => [sequence as i64, token as i64],
        (dims, _) => {
            let what = format!("have the shape {dims:?}, [{tokens}] or [{batch}, {tokens}] is needed");
            return Err(wrong("position_ids", what));
        }
    };
    Ok((form, strides))
}
