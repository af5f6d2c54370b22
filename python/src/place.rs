//! Where the rows of the tables are, and which of them a token gets.

#![allow(unsafe_code)]

use std::ffi::c_void;

use pyo3::prelude::*;
use ropejit::{Offsets, PositionForm};

use crate::dlpack::{Element, View};
use crate::errors::wrong;
use crate::form::{Order, element, wide};

/// Which rows of the tables a token gets.
#[derive(Clone, Copy)]
pub enum Place {
    Offset(i64),
    Offsets(View),
    Ids(View),
    Packed { cu_seqlens: View, offset: i64, offsets: Option<View> },
}

/// Rows, strides of sequence and row, and width of the tables.
pub fn tables(cos: &View, sin: &View, batch: usize) -> PyResult<(usize, [i64; 2], usize)> {
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
pub fn position_form(
    place: &Place,
    order: Order,
    [batch, tokens]: [usize; 2],
    axes: bool,
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
                [n, b, t] if axes => n == 3 && t as usize == tokens && (b == 1 || b as usize == batch),
                _ if axes => false,
                [t] => t as usize == tokens,
                [b, t] => t as usize == tokens && (b == 1 || b as usize == batch),
                _ => false,
            };
            if !fits {
                let needed = if axes {
                    format!("[3, 1, {tokens}] or [3, {batch}, {tokens}] is needed beside mrope_section")
                } else {
                    format!("[{tokens}], [1, {tokens}] or [{batch}, {tokens}] is needed")
                };
                let hint = if !axes && view.rank == 3 { "; hint: three axes need an mrope_section" } else { "" };
                let what = format!("is {:?}, {needed}{hint}", view.shape());
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
pub fn id_strides(view: &View) -> [i64; 3] {
    match (view.shape(), view.strides()) {
        (&[_], &[token]) | (&[1, _], &[_, token]) => [0, 0, token],
        (_, &[batch, token]) => [0, batch, token],
        (&[_, 1, _], &[axis, _, token]) => [axis, 0, token],
        (_, &[axis, batch, token]) => [axis, batch, token],
        _ => [0; 3],
    }
}

/// # Safety
/// The view is of a live tensor with one dimension.
pub unsafe fn offsets(view: &View) -> Offsets<'static> {
    // SAFETY: this function's contract.
    unsafe { Offsets::from_raw(view.address as *const c_void, view.element == Element::I64) }
}
