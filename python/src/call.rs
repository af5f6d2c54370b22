//! From Python's arguments to a launch.

#![allow(unsafe_code)]

use std::ffi::c_void;

use pyo3::prelude::*;
use ropejit::rope::MAX_HEAD_DIM;
use ropejit::{
    Angles, Args, CuSeqlens, DType, Direction, Input, Layout, Operand, PositionIds, Positions, RopeSpec, Stream,
    TableForm, TableWidth, Tables, Tensor,
};

use crate::beside;
use crate::dlpack::{Device, Element, View};
use crate::engines;
use crate::errors::{raise, wrong};
use crate::form::{Form, element, float, layout};
use crate::overlap;
use crate::place::{self, Place};

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
    pub norm: Option<beside::Norm>,
    pub append: Option<beside::Append>,
    /// Where the engine computes cos and sin: of what, and for sequences of how many tokens.
    pub angles: Option<(Angles, u64)>,
}

impl Call {
    /// Checks what the crate takes the caller's word for: shapes of tables and positions, devices.
    pub fn new(form: &Form, tensors: &Tensors) -> PyResult<Self> {
        let Tensors { q, k, q_out, k_out, cos, sin, place } = tensors;
        let dtype = float("q", q)?;
        let q_layout = layout("q", q, form.order)?;
        let [batch, tokens, heads, head_dim] = q_layout.shape;
        if head_dim > MAX_HEAD_DIM as usize {
            let what = format!(
                "has heads of {head_dim} elements, {MAX_HEAD_DIM} are the most; hint: rotary_dim with rotary_dim_offset=0 has \
                 only the part that turns passed on"
            );
            return Err(wrong("q", what));
        }
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
        let (rows, table_strides, width) = place::tables(cos, sin, batch)?;
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
        spec.style = form.style;
        spec.rounding = form.rounding.of(dtype);
        spec.direction = if form.backward { Direction::Backward } else { Direction::Forward };
        spec.table = TableForm { dtype: table, width };
        spec.mrope = form.sections;
        let axes = spec.mrope.is_some();
        spec.positions = place::position_form(place, form.order, [batch, tokens], axes, &here)?;
        if let (None, Some(k), Some(k_layout)) = (q_out, k, &k_layout) {
            let bytes = (k.address as i64).wrapping_sub(q.address as i64);
            let gap = bytes.div_euclid(dtype.size() as i64);
            let widths = [head_dim, k_layout.shape[3]].map(|dim| if form.whole { dim } else { rotary_dim });
            if overlap::meet(&q_layout, k_layout, gap, widths) {
                let what = if form.whole {
                    "shares elements with q, which is written in place: pass a copy"
                } else {
                    "shares elements with q, and in place they would be turned twice: rotate the tensor that holds both as \
                     q, or pass a copy"
                };
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
            norm: None,
            append: None,
            angles: None,
        })
    }

    /// The shape of q: `[batch, tokens, heads, head_dim]`.
    pub fn shape(&self) -> [usize; 4] {
        self.q[0].1.shape
    }

    /// Raises for a tensor that is on another device than q.
    pub fn here(&self, name: &str, view: &View) -> PyResult<()> {
        if view.device == self.device {
            return Ok(());
        }
        Err(wrong(name, format!("is on {}, q on {}", view.device, self.device)))
    }

    fn args(&self) -> ropejit::Result<Args<'_>> {
        let dtype = self.spec.dtype;
        // SAFETY: `Call::new`'s views are of live tensors of `device`, which the caller's frame holds until the launch; until
        // the stream has passed it, the tensor library keeps freed memory for its own stream, the one launched on.
        let read = |(address, layout)| unsafe { Input::from_raw(address as *const c_void, dtype, layout) };
        let operand = |[input, output]: [(u64, Layout); 2], dtype: DType| {
            // SAFETY: as above.
            let written = unsafe { Tensor::from_raw(output.0 as *mut c_void, dtype, output.1) };
            if self.in_place { Operand::in_place(written) } else { Operand::out_of_place(read(input), written) }
        };
        let k = |k: [(u64, Layout); 2]| match self.append {
            Some(_) => Operand::read_only(read(k[0])),
            None => operand(k, dtype),
        };
        let mut tables = self.tables.map(|address| address as *const c_void);
        let mut rows = self.rows;
        let positions = match &self.place {
            Place::Offset(offset) => Positions::Offset(*offset),
            // SAFETY: as above; `position_form` has checked how many there are.
            Place::Offsets(view) => Positions::Offsets(unsafe { place::offsets(view) }),
            // SAFETY: as above; `position_form` has checked the shape, which is that of q or repeats.
            Place::Ids(view) => Positions::Ids(unsafe {
                PositionIds::from_raw(
                    view.address as *const c_void,
                    view.element == Element::I64,
                    place::id_strides(view),
                )
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
                    offsets: each.as_ref().map(|view| unsafe { place::offsets(view) }),
                }
            }
        };
        let (form, width) = (self.spec.table, self.spec.table_width() as usize);
        let tables = match &self.angles {
            Some((angles, tokens)) => angles.tables(*tokens)?,
            // SAFETY: as above; `tables` has checked that both have these rows and strides.
            None => unsafe { Tables::from_raw(tables[0], tables[1], form.dtype, rows, width, self.table_strides) },
        };
        Ok(Args {
            q: operand(self.q, self.spec.q_out_dtype()),
            k: self.k.map(k),
            tables,
            positions,
            norm: self.norm.as_ref().map(|norm| norm.args(&self.spec, self.shape())),
            append: self.append.as_ref().map(|append| append.args(&self.spec, self.shape())),
        })
    }

    /// Launches on the stream. Without the GIL where that may take long: where a kernel has to be found first, and on the
    /// processor, where the launch is the work.
    pub fn launch(&self, py: Python<'_>, stream: u64) -> PyResult<()> {
        let in_use = engines::rope(py, self.device, &self.spec)?;
        let rope = &in_use.rope;
        // SAFETY: the tensor library's current stream of this device, which lives as long as the library says so.
        let stream = move || unsafe { Stream::from_raw(stream as *mut c_void) };
        if self.device != Device::Host && rope.apply_loaded(stream(), &self.args().map_err(raise)?).map_err(raise)? {
            return Ok(());
        }
        py.detach(|| self.args().and_then(|args| rope.apply(stream(), &args))).map(drop).map_err(raise)
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

fn number(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}
