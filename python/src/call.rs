//! From Python's arguments to a launch.

#![allow(unsafe_code)]

use std::ffi::c_void;

use pyo3::prelude::*;
use ropejit::{
    Args, CuSeqlens, DType, Direction, Input, Layout, Offsets, Operand, PairStyle, PositionForm, PositionIds,
    Positions, RopeSpec, Rounding, Stream, TableForm, TableWidth, Tables, Tensor,
};

use crate::dlpack::{Device, Element, View};
use crate::engines;
use crate::errors::{raise, wrong};
use crate::overlap;

/// How q and k are laid out.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Order {
    Bshd,
    Bhsd,
    Thd,
}

impl Order {
    pub fn parse(text: &str) -> PyResult<Self> {
        match text {
            "bshd" => Ok(Self::Bshd),
            "bhsd" => Ok(Self::Bhsd),
            "thd" => Ok(Self::Thd),
            _ => Err(wrong("layout", format!("'{text}' is not one of 'bshd', 'bhsd' and 'thd'"))),
        }
    }
}

/// `once` or `per_op`.
pub fn rounding(text: &str) -> PyResult<Rounding> {
    match text {
        "once" => Ok(Rounding::Once),
        "per_op" => Ok(Rounding::PerOp),
        _ => Err(wrong("rounding", format!("'{text}' is not one of 'once' and 'per_op'"))),
    }
}

/// What is asked for, besides tensors.
#[derive(Clone, Copy)]
pub struct Form {
    pub order: Order,
    pub interleaved: bool,
    /// As many elements of each head turn; `None`: all.
    pub rotary_dim: Option<u32>,
    pub rounding: Rounding,
    pub backward: bool,
}

/// Which rows of the tables a token gets.
#[derive(Clone, Copy)]
pub enum Place {
    Offset(i64),
    Offsets(View),
    Ids(View),
    Packed { cu_seqlens: View, offset: i64, offsets: Option<View> },
}

/// The tensors of a call; `None` for an output that is the input.
pub struct Tensors {
    pub q: View,
    pub k: Option<View>,
    pub q_out: Option<View>,
    pub k_out: Option<View>,
    pub cos: View,
    pub sin: View,
    pub place: Place,
}

/// A call that names its spec, device and layouts. Plain numbers, so that it can go where the GIL is not held.
pub struct Call {
    pub device: Device,
    pub spec: RopeSpec,
    q: [(u64, Layout); 2],
    k: Option<[(u64, Layout); 2]>,
    in_place: bool,
    tables: [u64; 2],
    rows: usize,
    table_strides: [i64; 2],
    place: Place,
}

fn layout(name: &str, view: &View, order: Order) -> PyResult<Layout> {
    let (shape, strides) = (view.shape(), view.strides());
    let n = |axis: usize| shape[axis] as usize;
    let wanted = if order == Order::Thd { 3 } else { 4 };
    if view.rank != wanted {
        let dims = if wanted == 3 { "[tokens, heads, head_dim]" } else { "batch, tokens, heads and head_dim" };
        return Err(wrong(name, format!("has {} dimensions, its layout has {wanted} ({dims})", view.rank)));
    }
    Ok(match order {
        Order::Bshd => {
            Layout { shape: [n(0), n(1), n(2), n(3)], strides: [strides[0], strides[1], strides[2], strides[3]] }
        }
        Order::Bhsd => {
            Layout { shape: [n(0), n(2), n(1), n(3)], strides: [strides[0], strides[2], strides[1], strides[3]] }
        }
        Order::Thd => Layout { shape: [1, n(0), n(1), n(2)], strides: [0, strides[0], strides[1], strides[2]] },
    })
}

fn float(name: &str, view: &View) -> PyResult<DType> {
    match view.element {
        Element::Float(dtype) => Ok(dtype),
        _ => Err(wrong(name, format!("its elements must be float32, float16 or bfloat16, got {}", element(view)))),
    }
}

fn element(view: &View) -> String {
    match view.element {
        Element::Float(dtype) => dtype.to_string(),
        Element::I32 => "int32".into(),
        Element::I64 => "int64".into(),
        Element::Other { code, bits } => format!("DLPack type {code} of {bits} bits"),
    }
}

/// Whether integers are i64 rather than i32.
fn wide(name: &str, view: &View) -> PyResult<bool> {
    match view.element {
        Element::I32 => Ok(false),
        Element::I64 => Ok(true),
        _ => Err(wrong(name, format!("must be int32 or int64, got {}", element(view)))),
    }
}

impl Call {
    /// Checks what the crate takes the caller's word for: shapes of tables and positions, devices.
    pub fn new(form: &Form, tensors: &Tensors) -> PyResult<Self> {
        let Tensors { q, k, q_out, k_out, cos, sin, place } = tensors;
        let dtype = float("q", q)?;
        let q_layout = layout("q", q, form.order)?;
        let [batch, tokens, heads, head_dim] = q_layout.shape;
        let device = q.device;
        let here = |name: &str, view: &View| {
            if view.device == device {
                Ok(())
            } else {
                Err(wrong(name, format!("is on {}, q on {device}", view.device)))
            }
        };
        let k_layout = k.as_ref().map(|k| layout("k", k, form.order)).transpose()?;
        if let Some(k) = k {
            here("k", k)?;
            if float("k", k)? != dtype {
                return Err(wrong("k", format!("is {}, q is {dtype}", element(k))));
            }
        }
        here("cos", cos)?;
        here("sin", sin)?;
        let (rows, table_strides, width) = tables(cos, sin, batch)?;
        let table = float("cos", cos)?;
        if table != DType::F32 && table != dtype {
            return Err(wrong("cos", format!("is {table}, f32 or the type of q ({dtype}) is needed")));
        }
        let rotary_dim = form.rotary_dim.map_or(head_dim, |r| r as usize);
        let width = match width {
            w if w == rotary_dim => TableWidth::Full,
            w if 2 * w == rotary_dim => TableWidth::Half,
            w => {
                let what = format!(
                    "has rows of {w}, rotary_dim is {rotary_dim}: {rotary_dim} or {} are needed",
                    rotary_dim / 2
                );
                return Err(wrong("cos", what));
            }
        };
        let mut spec =
            RopeSpec::new(dtype, number(head_dim), number(heads), k_layout.map_or(0, |k| number(k.shape[2])));
        spec.rotary_dim = number(rotary_dim);
        spec.style = if form.interleaved { PairStyle::Interleaved } else { PairStyle::HalfSplit };
        // In f32 the contracts are one: one kernel serves both.
        spec.rounding = if dtype == DType::F32 { Rounding::Once } else { form.rounding };
        spec.direction = if form.backward { Direction::Backward } else { Direction::Forward };
        spec.table = TableForm { dtype: table, width };
        spec.positions = position_form(place, form.order, [batch, tokens], &here)?;
        if let (None, Some(k), Some(k_layout)) = (q_out, k, &k_layout) {
            let bytes = (k.address as i64).wrapping_sub(q.address as i64);
            let gap = bytes.div_euclid(dtype.size() as i64);
            if overlap::meet(&q_layout, k_layout, gap, rotary_dim) {
                let what = "shares elements with q, and in place they would be turned twice: rotate the tensor that holds \
                            both as q, or pass a copy";
                return Err(wrong("k", what));
            }
        }
        let out = |name: &str, view: &Option<View>, input: (u64, Layout)| match view {
            None => Ok([input; 2]),
            Some(view) => layout(name, view, form.order).map(|layout| [input, (view.address, layout)]),
        };
        let k = match (k, k_layout) {
            (Some(k), Some(layout)) => Some(out("k", k_out, (k.address, layout))?),
            _ => None,
        };
        Ok(Self {
            device,
            spec,
            q: out("q", q_out, (q.address, q_layout))?,
            k,
            in_place: q_out.is_none(),
            tables: [cos.address, sin.address],
            rows,
            table_strides,
            place: *place,
        })
    }

    fn args(&self) -> Args<'static> {
        let dtype = self.spec.dtype;
        let operand = |[input, output]: [(u64, Layout); 2]| {
            // SAFETY: `Call::new`'s views are of live tensors of `device`, which the caller's frame holds until the launch;
            // until the stream has passed it, the tensor library keeps freed memory for its own stream, the one launched on.
            let written = unsafe { Tensor::from_raw(output.0 as *mut c_void, dtype, output.1) };
            if self.in_place {
                return Operand::in_place(written);
            }
            // SAFETY: as above.
            Operand::out_of_place(unsafe { Input::from_raw(input.0 as *const c_void, dtype, input.1) }, written)
        };
        let mut tables = self.tables.map(|address| address as *const c_void);
        let mut rows = self.rows;
        let positions = match &self.place {
            Place::Offset(offset) => Positions::Offset(*offset),
            // SAFETY: as above; `position_form` has checked how many there are.
            Place::Offsets(view) => Positions::Offsets(unsafe { offsets(view) }),
            // SAFETY: as above; `position_form` has checked the shape, which is that of q or repeats.
            Place::Ids(view) => Positions::Ids(unsafe {
                PositionIds::from_raw(view.address as *const c_void, view.element == Element::I64, id_strides(view))
            }),
            Place::Packed { cu_seqlens, offset, offsets: each } => {
                // One offset for all sequences: as if the tables began there. `position_form` has checked its sign.
                let skipped = usize::try_from(*offset).unwrap_or(0).min(rows);
                rows -= skipped;
                let bytes = skipped as i64 * self.table_strides[1] * self.spec.table.dtype.size() as i64;
                tables = tables.map(|table| table.wrapping_byte_offset(bytes as isize));
                Positions::Packed {
                    // SAFETY: as above; it has one dimension.
                    cu_seqlens: unsafe {
                        let (at, wide) = (cu_seqlens.address as *const c_void, cu_seqlens.element == Element::I64);
                        CuSeqlens::from_raw(at, wide, (cu_seqlens.len() - 1).max(0) as usize)
                    },
                    // SAFETY: as above.
                    offsets: each.as_ref().map(|view| unsafe { offsets(view) }),
                }
            }
        };
        let (form, width) = (self.spec.table, self.spec.table_width() as usize);
        // SAFETY: as above; `tables` has checked that both have these rows and strides.
        let tables = unsafe { Tables::from_raw(tables[0], tables[1], form.dtype, rows, width, self.table_strides) };
        Args { q: operand(self.q), k: self.k.map(operand), tables, positions, norm: None, append: None }
    }

    /// Launches on the stream. Without the GIL where that may take long: where a kernel has to be found first, and on the
    /// processor, where the launch is the work.
    pub fn launch(&self, py: Python<'_>, stream: u64) -> PyResult<()> {
        let in_use = engines::rope(py, self.device, &self.spec)?;
        let rope = &in_use.rope;
        // SAFETY: the tensor library's current stream of this device, which lives as long as the library says so.
        let stream = move || unsafe { Stream::from_raw(stream as *mut c_void) };
        if self.device != Device::Host && rope.apply_loaded(stream(), &self.args()).map_err(raise)? {
            return Ok(());
        }
        py.detach(|| rope.apply(stream(), &self.args())).map(drop).map_err(raise)
    }

    /// The same, and returns when the launch has ended.
    pub fn launch_and_wait(&self, py: Python<'_>, stream: u64) -> PyResult<()> {
        let engine = engines::engine(py, self.device)?;
        // SAFETY: as in `launch`.
        let used = move || unsafe { Stream::from_raw(stream as *mut c_void) };
        if engine.device().is_capturing(used()) {
            let what = "a CUDA graph is captured, and this call has to wait for its end: its arrays' library does not say \
                        which stream it works on, or their libraries work on several";
            return Err(wrong("q", what));
        }
        self.launch(py, stream)?;
        py.detach(|| engine.device().wait_for(used())).map_err(raise)
    }
}

/// # Safety
/// The view is of a live tensor with one dimension.
unsafe fn offsets(view: &View) -> Offsets<'static> {
    // SAFETY: this function's contract.
    unsafe { Offsets::from_raw(view.address as *const c_void, view.element == Element::I64) }
}

fn number(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// Rows, strides of sequence and row, and width of the tables.
fn tables(cos: &View, sin: &View, batch: usize) -> PyResult<(usize, [i64; 2], usize)> {
    if cos.shape() != sin.shape() || cos.element != sin.element {
        let what = format!("is {:?} of {}, cos is {:?} of {}", sin.shape(), element(sin), cos.shape(), element(cos));
        return Err(wrong("sin", what));
    }
    for (name, view) in [("cos", cos), ("sin", sin)] {
        if !view.rows_are_contiguous() {
            return Err(wrong(name, "its last dimension must be contiguous"));
        }
    }
    let strides = |view: &View| match (view.shape(), view.strides()) {
        (&[rows, _], &[row, _]) => Some([0, if rows > 1 { row } else { 0 }]),
        (&[sequences, rows, _], &[sequence, row, _]) => {
            Some([if sequences > 1 { sequence } else { 0 }, if rows > 1 { row } else { 0 }])
        }
        _ => None,
    };
    let Some(own) = strides(cos) else {
        return Err(wrong("cos", format!("is {:?}, [rows, width] or [batch, rows, width] is needed", cos.shape())));
    };
    if strides(sin) != Some(own) {
        return Err(wrong("sin", "has other strides than cos"));
    }
    let (sequences, rows, width) = match *cos.shape() {
        [sequences, rows, width] => (sequences, rows, width),
        [rows, width] => (1, rows, width),
        _ => (1, 0, 0),
    };
    if sequences != 1 && sequences as usize != batch {
        return Err(wrong("cos", format!("is for {sequences} sequences, q has {batch}")));
    }
    Ok((rows as usize, own, width as usize))
}

/// The form of positions, after their shape has been checked.
fn position_form(
    place: &Place,
    order: Order,
    [batch, tokens]: [usize; 2],
    here: &dyn Fn(&str, &View) -> PyResult<()>,
) -> PyResult<PositionForm> {
    let dense = |name: &str, view: &View| {
        here(name, view)?;
        if view.rank == 1 && view.rows_are_contiguous() {
            return Ok(());
        }
        Err(wrong(name, format!("is {:?}, contiguous numbers in one dimension are needed", view.shape())))
    };
    match place {
        Place::Offset(_) => Ok(PositionForm::Implicit),
        Place::Offsets(view) => {
            dense("seqlen_offsets", view)?;
            if view.len() as usize != batch {
                return Err(wrong("seqlen_offsets", format!("{} numbers for {batch} sequences", view.len())));
            }
            Ok(if wide("seqlen_offsets", view)? { PositionForm::Offsets64 } else { PositionForm::Offsets32 })
        }
        Place::Ids(view) => {
            here("position_ids", view)?;
            let fits = match *view.shape() {
                [t] => t as usize == tokens,
                [b, t] => t as usize == tokens && (b == 1 || b as usize == batch),
                _ => false,
            };
            if !fits {
                let what = format!("is {:?}, [{tokens}], [1, {tokens}] or [{batch}, {tokens}] is needed", view.shape());
                return Err(wrong("position_ids", what));
            }
            Ok(if wide("position_ids", view)? { PositionForm::Ids64 } else { PositionForm::Ids32 })
        }
        Place::Packed { cu_seqlens, offset, offsets } => {
            if order != Order::Thd {
                return Err(wrong("cu_seqlens", "packed sequences have the layout 'thd', [tokens, heads, head_dim]"));
            }
            dense("cu_seqlens", cu_seqlens)?;
            let form =
                if wide("cu_seqlens", cu_seqlens)? { PositionForm::CuSeqlens64 } else { PositionForm::CuSeqlens };
            if cu_seqlens.len() == 0 {
                return Err(wrong("cu_seqlens", "is empty: one number more than there are sequences is needed"));
            }
            if *offset < 0 {
                return Err(wrong("seqlen_offsets", format!("{offset} is negative")));
            }
            if let Some(view) = offsets {
                dense("seqlen_offsets", view)?;
                wide("seqlen_offsets", view)?;
                if view.len() + 1 != cu_seqlens.len() {
                    let what = format!("{} numbers for {} sequences", view.len(), cu_seqlens.len() - 1);
                    return Err(wrong("seqlen_offsets", what));
                }
            }
            Ok(form)
        }
    }
}

/// Strides of axis, batch and token.
fn id_strides(view: &View) -> [i64; 3] {
    match (view.shape(), view.strides()) {
        (&[_], &[token]) | (&[1, _], &[_, token]) => [0, 0, token],
        (_, &[batch, token]) => [0, batch, token],
        _ => [0; 3],
    }
}
