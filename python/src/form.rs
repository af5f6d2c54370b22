//! What a call asks for besides tensors, and how its tensors are laid out.

use pyo3::prelude::*;
use ropejit::rope::scaling::Mrope;
use ropejit::{DType, Layout, PairStyle, Rounding};

use crate::dlpack::{self, Element, View};
use crate::errors::wrong;

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

/// `once`, `per_op` or `contracted`.
pub fn rounding(text: &str) -> PyResult<Rounding> {
    match text {
        "once" => Ok(Rounding::Once),
        "per_op" => Ok(Rounding::PerOp),
        "contracted" => Ok(Rounding::Contracted),
        _ => Err(wrong("rounding", format!("'{text}' is not one of 'once', 'per_op' and 'contracted'"))),
    }
}

/// `half_split`, `interleaved` or `deinterleave`.
pub fn style(text: &str) -> PyResult<PairStyle> {
    match text {
        "half_split" => Ok(PairStyle::HalfSplit),
        "interleaved" => Ok(PairStyle::Interleaved),
        "deinterleave" => Ok(PairStyle::Deinterleave),
        _ => Err(wrong("style", format!("'{text}' is not one of 'half_split', 'interleaved' and 'deinterleave'"))),
    }
}

/// What is asked for, besides tensors.
#[derive(Clone, Copy)]
pub struct Form {
    pub order: Order,
    pub style: PairStyle,
    /// As many elements of each head turn; `None`: all.
    pub rotary_dim: Option<u32>,
    pub rounding: Rounding,
    pub backward: bool,
    /// Heads are written whole, not only what turns of them.
    pub whole: bool,
    /// Positions are on three axes, and which axis a pair follows.
    pub sections: Option<Mrope>,
}

pub fn layout(name: &str, view: &View, order: Order) -> PyResult<Layout> {
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

pub fn float(name: &str, view: &View) -> PyResult<DType> {
    match view.element {
        Element::Float(dtype) if dtype != DType::E4M3 => Ok(dtype),
        _ => Err(wrong(name, format!("its elements must be float32, float16 or bfloat16, got {}", element(view)))),
    }
}

pub fn element(view: &View) -> String {
    match view.element {
        Element::Float(dtype) => dtype.to_string(),
        Element::I32 => "int32".into(),
        Element::I64 => "int64".into(),
        Element::Other { code, bits } => dlpack::type_name(code, bits),
    }
}

/// Whether integers are i64 rather than i32.
pub fn wide(name: &str, view: &View) -> PyResult<bool> {
    match view.element {
        Element::I32 => Ok(false),
        Element::I64 => Ok(true),
        _ => Err(wrong(name, format!("must be int32 or int64, got {}", element(view)))),
    }
}
