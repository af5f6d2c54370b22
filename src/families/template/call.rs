//! A call, checked against its description: what every call does, so no hash, lock, allocation, sync or log.

use std::ffi::c_void;

use super::argument::{Arg, Tensor, What};
use super::description::{Argument, Description, Kind, Role};
use super::element::Element;
use super::expr::{Expr, Fault};
use super::names::{ElementOf, MOST, Values};
use super::space::WIDEST;
use crate::args::borrowed::Location;
use crate::error::{Error, ErrorKind, Result};
use crate::service::family::{Bucket, Geometry, Plan, Stream};

/// The values of a kernel's parameters, as a launch takes them: each in eight bytes, the lowest first.
pub(super) type Cells = [u64; MOST];

/// A call whose arguments fit the description and the spec.
pub(super) struct Call {
    /// Of the spec, the arguments; and of the tunables, once [`Call::launch`] has a plan.
    values: Values,
    cells: Cells,
    /// The alignments that rules ask for, three bits each.
    pub class: u64,
    pub bucket: Bucket,
}

impl Call {
    /// Checks the arguments of a call that runs at `place`. `spec` holds the values of the spec, `aligned` the tensors
    /// whose alignment rules read.
    pub fn new(d: &Description, spec: &Values, aligned: &[u8], args: &[Arg<'_>], place: Location) -> Result<Self> {
        if args.len() != d.args.len() {
            let what = format!("{} are given, and {} has {}", args.len(), d.family, d.args.len());
            return Err(Error::argument("args", what));
        }
        let mut call = Self { values: *spec, cells: [0; MOST], class: 0, bucket: Bucket::of(1) };
        let first = d.spec.len() + d.tune.len();
        // Numbers first: shapes are of them.
        for (i, (declared, arg)) in d.args.iter().zip(args).enumerate() {
            if let Kind::Number(element) = declared.kind {
                (call.values[first + i], call.cells[i]) = number(declared, element, &arg.0)?;
            }
        }
        for (i, (declared, arg)) in d.args.iter().zip(args).enumerate() {
            if let Kind::Tensor { role, element, shape } = &declared.kind {
                let What::Tensor(tensor) = &arg.0 else {
                    return Err(Error::argument(&*declared.name, "is a number, and should be a tensor"));
                };
                check_tensor(d, declared, (*role, *element, shape), tensor, &call.values, place)?;
                call.values[first + i] = alignment(tensor.address);
                call.cells[i] = tensor.address;
            }
        }
        for name in aligned {
            call.class = call.class << 3 | u64::from(call.values[usize::from(*name)].trailing_zeros());
        }
        call.bucket = Bucket::of(size(d, &call.values)?);
        Ok(call)
    }

    pub fn values(&self) -> &Values {
        &self.values
    }

    /// Launches a plan that was made for the call's spec, class and bucket. A grid without a block is no launch.
    pub fn launch(&self, d: &Description, plan: &Plan, stream: Stream<'_>) -> Result<()> {
        let mut values = self.values;
        d.assign(&mut values, &plan.attrs.numbers);
        let Some(geometry) = geometry(d, &values, plan.attrs.shared)? else { return Ok(()) };
        launch(plan, stream, &geometry, &self.cells)
    }
}

/// The one launch of the family.
///
/// `cells` come from a [`Call`], or from a trial's own memory.
#[allow(unsafe_code)]
pub(super) fn launch(plan: &Plan, stream: Stream<'_>, geometry: &Geometry, cells: &Cells) -> Result<()> {
    let pointers: [*const c_void; MOST] = std::array::from_fn(|i| std::ptr::from_ref(&cells[i]).cast());
    // SAFETY: there is a cell for each parameter of `[args]`, of its type where the text of the kernel says it (it is compared
    // when a description is read). Tensors are safe borrows that are still alive, or the caller has vouched for their life,
    // and they have the shapes that the description promises the kernel; that the kernel stays within them is what its
    // author vouches for, and what a trial checks.
    unsafe { plan.kernel.launch(stream, geometry, &pointers) }
}

/// The widest power of two of bytes that divides an address, as far as it is told apart.
pub(super) fn alignment(address: u64) -> i64 {
    1 << (address | WIDEST as u64).trailing_zeros()
}

/// What a bucket counts.
pub(super) fn size(d: &Description, values: &Values) -> Result<u64> {
    let size = d.launch.bucket.eval(values).map_err(|fault| no_value(d, "bucket", &d.launch.bucket, fault))?;
    Ok(size.max(1) as u64)
}

#[cold]
fn no_value(d: &Description, key: &str, expr: &Expr, fault: Fault) -> Error {
    let what = format!("[launch] {key}: '{}' {fault} for these arguments", expr.text());
    Error::new(ErrorKind::InvalidArgument, what).subject_is(d.family.as_str())
}

/// The geometry of a launch; `None` for one without a block.
pub(super) fn geometry(d: &Description, values: &Values, shared: u32) -> Result<Option<Geometry>> {
    const MOST_BLOCKS: [i64; 3] = [(1 << 31) - 1, 65535, 65535];
    const MOST_THREADS: [i64; 3] = [1024, 1024, 64];
    let grid = axes(d, "grid", &d.launch.grid, values, MOST_BLOCKS)?;
    let block = axes(d, "block", &d.launch.block, values, MOST_THREADS)?;
    let threads: u32 = block.iter().product();
    if grid.contains(&0) {
        return Ok(None);
    }
    if threads == 0 || threads > 1024 {
        let what = format!("[launch] block: a block has {threads} threads, and may have 1 to 1024");
        return Err(Error::new(ErrorKind::InvalidArgument, what).subject_is(d.family.as_str()));
    }
    Ok(Some(Geometry { grid, block, shared }))
}

fn axes(d: &Description, key: &str, exprs: &[Expr], values: &Values, most: [i64; 3]) -> Result<[u32; 3]> {
    let mut axes = [1; 3];
    for ((expr, axis), most) in exprs.iter().zip(&mut axes).zip(most) {
        let n = expr.eval(values).map_err(|fault| no_value(d, key, expr, fault))?;
        if n < 0 || n > most {
            let what = format!("[launch] {key}: '{}' is {n} for these arguments, and may be 0 to {most}", expr.text());
            return Err(Error::new(ErrorKind::InvalidArgument, what).subject_is(d.family.as_str()));
        }
        *axis = n as u32;
    }
    Ok(axes)
}

/// A number's value in expressions, and its bytes.
fn number(declared: &Argument, element: Element, given: &What<'_>) -> Result<(i64, u64)> {
    match (element.range(), given) {
        (Some((least, most)), What::Integer(n)) if (least..=most).contains(n) => Ok((*n, *n as u64)),
        (None, What::Float(x)) => Ok((0, float_bits(element, *x))),
        (None, What::Integer(n)) => Ok((0, float_bits(element, *n as f64))),
        _ => Err(wrong_number(declared, element, given)),
    }
}

pub(super) fn float_bits(element: Element, x: f64) -> u64 {
    if element == Element::F64 { x.to_bits() } else { u64::from((x as f32).to_bits()) }
}

#[cold]
fn wrong_number(declared: &Argument, element: Element, given: &What<'_>) -> Error {
    let what = match given {
        What::Integer(n) => format!("{n} is outside of {element}"),
        What::Float(x) => format!("{x} is given, and should be an integer of type {element}"),
        What::Tensor(_) => format!("is a tensor, and should be a number of type {element}"),
    };
    Error::argument(&*declared.name, what)
}

fn check_tensor(
    d: &Description,
    declared: &Argument,
    (role, element, shape): (Role, ElementOf, &[Expr]),
    tensor: &Tensor<'_>,
    values: &Values,
    place: Location,
) -> Result<()> {
    let name = declared.name.as_str();
    let element = element_of(element, values);
    if tensor.element != element {
        return Err(Error::argument(name, format!("is {}, and should be {element}", tensor.element)));
    }
    if !tensor.place.serves(place) {
        return Err(Error::argument(name, "is not on the engine's device, or was borrowed for another stream"));
    }
    if role.is_written() && !tensor.writable {
        return Err(Error::argument(name, format!("is {}, and was given to be read only", role.name())));
    }
    let given = &tensor.shape[..usize::from(tensor.rank)];
    let fits = |(expr, n): (&Expr, &u64)| expr.eval(values).is_ok_and(|wanted| wanted >= 0 && wanted as u64 == *n);
    if given.len() != shape.len() || !shape.iter().zip(given).all(fits) {
        return Err(wrong_shape(d, declared, shape, given, values));
    }
    if !tensor.address.is_multiple_of(element.size() as u64) {
        return Err(Error::argument(name, "is not aligned to its elements"));
    }
    if tensor.address == 0 && !given.contains(&0) {
        return Err(Error::argument(name, "has no memory"));
    }
    Ok(())
}

#[cold]
fn wrong_shape(d: &Description, declared: &Argument, shape: &[Expr], given: &[u64], values: &Values) -> Error {
    let texts: Vec<_> = shape.iter().map(|e| e.text().trim()).collect();
    let wanted: Result<Vec<_>, _> = shape.iter().map(|e| e.eval(values).map_err(|fault| (e, fault))).collect();
    let what = match wanted {
        Err((expr, fault)) => format!("'{}' {fault}", expr.text().trim()),
        Ok(wanted) => format!("has the shape {given:?}, and should have [{}] = {wanted:?}", texts.join(", ")),
    };
    Error::argument(&*declared.name, what).hint(format!("it is '{}' of {}'s [args]", declared.name, d.family))
}

/// The element type of a tensor, for a spec.
pub(super) fn element_of(element: ElementOf, values: &Values) -> Element {
    match element {
        ElementOf::Fixed(element) => element,
        // Its words are types: reading the description has seen to it.
        ElementOf::Word(key) => usize::try_from(values[usize::from(key)])
            .ok()
            .and_then(|i| Element::ALL.get(i).copied())
            .unwrap_or(Element::F32),
    }
}

#[cfg(test)]
#[path = "call_tests.rs"]
mod tests;
