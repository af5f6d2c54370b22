//! `[args]`: the kernel's parameters, in its order.

use super::keys::Value;
use super::{add_name, expression};
use crate::error::{Result, clip};
use crate::families::template::description::{Allowed, Argument, Kind, Role, SpecKey};
use crate::families::template::element::Element;
use crate::families::template::names::{ElementOf, Meaning, Names, Section};

/// Dimensions of a tensor at most.
pub const MOST_DIMENSIONS: usize = 8;

/// An argument whose shape is still text, since it may name arguments that follow.
pub struct Shape<'a> {
    value: Value<'a>,
    dimensions: Vec<&'a str>,
}

/// The arguments without their shapes, and the shapes.
pub fn arguments<'a>(value: &Value<'a>, names: &mut Names) -> Result<(Vec<Argument>, Vec<Shape<'a>>)> {
    let mut table = value.table("[args]")?;
    let (mut args, mut shapes) = (Vec::new(), Vec::new());
    for (name, value) in table.rest() {
        let text = value.text("a type, or a role, a type and a shape")?;
        let (kind, dimensions) = declaration(text, names).map_err(|what| {
            value.error(what).hint("write \"in f32[rows, 64]\" for a tensor (in, out, inout or scratch), or \"u32\"")
        })?;
        let meaning = match &kind {
            Kind::Number(element) if element.is_float() => Meaning::Float,
            Kind::Number(_) => Meaning::Number,
            Kind::Tensor { element, .. } => Meaning::Tensor(*element),
        };
        if ["fill", "same", "reference"].contains(&name) {
            return Err(value.error("is a key of [test], and can be no argument"));
        }
        add_name(&value, name, Section::Args, meaning, names)?;
        args.push(Argument { name: name.to_owned(), line: value.line(), kind });
        shapes.push(Shape { value, dimensions });
    }
    if !args.iter().any(|a| matches!(a.kind, Kind::Tensor { role: Role::Out | Role::InOut, .. })) {
        return Err(table.error("no tensor is out or inout, so the kernel has no result"));
    }
    Ok((args, shapes))
}

/// `role type[dimension, …]`, or `type`.
fn declaration<'a>(text: &'a str, names: &Names) -> Result<(Kind, Vec<&'a str>), String> {
    let shown = clip(text);
    let text = text.trim();
    let Some((first, rest)) = text.split_once([' ', '\t']) else {
        return match Element::of(text) {
            Some(Element::F16 | Element::Bf16) => Err(format!("'{shown}': numbers are f32, f64 or integers")),
            Some(element) => Ok((Kind::Number(element), Vec::new())),
            None => Err(format!("'{shown}' is no type of a number")),
        };
    };
    let Some((_, role)) = Role::ALL.into_iter().find(|(name, _)| *name == first) else {
        return Err(format!("'{}' is no role: in, out, inout or scratch", clip(first)));
    };
    let Some((element, shape)) = rest.trim().strip_suffix(']').and_then(|r| r.split_once('[')) else {
        return Err(format!("'{shown}' has no shape in brackets"));
    };
    let element = element.trim();
    let element = match (Element::of(element), names.find(element)) {
        (Some(element), _) => ElementOf::Fixed(element),
        (None, Some((number, named)))
            if named.meaning == (Meaning::Word { elements: true }) && named.section == Section::Spec =>
        {
            ElementOf::Word(number)
        }
        _ => {
            let what = "is no type, and no key of [spec] whose values are types";
            return Err(format!("'{}' {what}: {}", clip(element), Element::ALL.map(Element::name).join(", ")));
        }
    };
    let dimensions = split(shape);
    if dimensions.len() > MOST_DIMENSIONS {
        return Err(format!("'{shown}' has {} dimensions, and may have {MOST_DIMENSIONS}", dimensions.len()));
    }
    Ok((Kind::Tensor { role, element, shape: Vec::new() }, dimensions))
}

/// Splits at the commas that are not in parentheses.
pub fn split(list: &str) -> Vec<&str> {
    let (mut parts, mut start, mut depth) = (Vec::new(), 0, 0usize);
    for (at, c) in list.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                parts.push(&list[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&list[start..]);
    parts
}

/// The arguments with their shapes: expressions over the spec and the numbers among the arguments.
pub fn with_shapes(mut args: Vec<Argument>, shapes: Vec<Shape<'_>>, names: &Names) -> Result<Vec<Argument>> {
    for (arg, given) in args.iter_mut().zip(shapes) {
        let Kind::Tensor { shape, .. } = &mut arg.kind else { continue };
        for dimension in given.dimensions {
            shape.push(expression(&given.value, dimension, names, |named| match named.section {
                Section::Tune => Err("a tunable, and a tensor's shape must not depend on one"),
                _ => Ok(()),
            })?);
        }
    }
    Ok(args)
}

/// The types that a tensor's elements may have.
pub fn elements(element: ElementOf, spec: &[SpecKey]) -> Vec<Element> {
    match element {
        ElementOf::Fixed(element) => vec![element],
        ElementOf::Word(key) => match spec.get(usize::from(key)).map(|k| &k.values) {
            Some(Allowed::Words(words)) => {
                words.iter().filter_map(|w| Element::ALL.get(*w as usize).copied()).collect()
            }
            _ => Vec::new(),
        },
    }
}
