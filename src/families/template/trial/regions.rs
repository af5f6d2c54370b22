//! Where the tensors of a launch lie in a piece of memory.

use crate::error::{Error, ErrorKind, Result};
use crate::families::template::call::element_of;
use crate::families::template::description::{Argument, Description, Kind, Role};
use crate::families::template::element::Element;
use crate::families::template::names::Values;
use crate::families::template::space::WIDEST;

/// A tensor's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// The index of its argument.
    pub arg: usize,
    pub role: Role,
    pub element: Element,
    /// The byte at which it starts.
    pub at: usize,
    /// Its bytes.
    pub len: usize,
}

/// Bytes that a tensor has for these values.
///
/// # Errors
/// When its shape has no value, or is no size.
pub fn bytes(d: &Description, arg: &Argument, values: &Values) -> Result<u64> {
    let Kind::Tensor { element, shape, .. } = &arg.kind else { return Ok(0) };
    let size = element_of(*element, values).size() as u64;
    let wrong = |what: String| {
        Error::new(ErrorKind::Template, format!("[args] {}: {what}", arg.name)).subject_is(d.at(arg.line))
    };
    shape.iter().try_fold(size, |n, expr| {
        let text = expr.text().trim();
        let dimension = expr.eval(values).map_err(|fault| wrong(format!("'{text}' {fault}")))?;
        let fits = u64::try_from(dimension).ok().and_then(|d| n.checked_mul(d)).filter(|n| *n <= 1 << 46);
        fits.ok_or_else(|| wrong(format!("'{text}' is {dimension}, which is no size")))
    })
}

/// Bytes that a launch reads and writes: once what is in or out, twice what is both.
pub fn traffic(d: &Description, values: &Values) -> Result<u64> {
    d.args.iter().try_fold(0u64, |sum, arg| {
        let times = match arg.kind {
            Kind::Tensor { role: Role::In | Role::Out, .. } => 1,
            Kind::Tensor { role: Role::InOut, .. } => 2,
            _ => 0,
        };
        Ok(sum.saturating_add(times * bytes(d, arg, values)?))
    })
}

/// Places the tensors one after another from `start` on: each at an address with just the alignment that the class says, or,
/// where no rule asks for it, at a multiple of `starts`; and with `apart` bytes between them. Returns the end as well.
pub fn place(
    d: &Description,
    values: &Values,
    aligned: &[u8],
    (address, start): (u64, usize),
    starts: impl Fn(usize) -> usize,
    apart: usize,
) -> Result<(Vec<Region>, usize)> {
    let first = d.spec.len() + d.tune.len();
    let (mut all, mut end) = (Vec::new(), start);
    for (arg, declared) in d.args.iter().enumerate() {
        let Kind::Tensor { role, element, .. } = declared.kind else { continue };
        let len = bytes(d, declared, values)? as usize;
        let name = (first + arg) as u8;
        let element = element_of(element, values);
        let class = values[first + arg].max(element.size() as i64);
        let off = if aligned.contains(&name) && class < WIDEST { class as u64 } else { 0 };
        let starts = starts(len).max(WIDEST as usize) as u64;
        let at = (address + (end + apart) as u64).next_multiple_of(starts) + off - address;
        all.push(Region { arg, role, element, at: at as usize, len });
        end = at as usize + len;
    }
    Ok((all, end + apart))
}
