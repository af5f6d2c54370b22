//! `[test]`: with what to check a candidate, and when its output is right.

use super::expression;
use super::keys::{Document, Table, Value};
use crate::error::{Error, Result, clip};
use crate::families::template::description::{Allowed, Argument, Kind, Reference, Same, SpecKey, Test};
use crate::families::template::element::Element;
use crate::families::template::fill::Fill;
use crate::families::template::names::{Meaning, Names, Section};

/// Values of one number at most.
const MOST_VALUES: usize = 16;

pub fn test(
    value: Option<&Value<'_>>,
    doc: &Document<'_>,
    args: &[Argument],
    spec: &[SpecKey],
    names: &Names,
    bucket_arg: u8,
) -> Result<Test> {
    let mut table = value.map(|v| v.table("[test]")).transpose()?;
    if let Some(table) = &table {
        let is_known = |key: &str| {
            matches!(key, "fill" | "same" | "reference")
                || args.iter().any(|a| a.name == key && matches!(a.kind, Kind::Number(_)))
                || spec.iter().any(|s| s.name == key && matches!(s.values, Allowed::Any(_)))
        };
        let known = "fill, same, reference, the numbers of [args], and keys of [spec] that may be any number";
        table.only(is_known, known)?;
    }
    let mut take = |key: &str| table.as_mut().and_then(|t| t.take(key));
    let same = take("same").map_or(Ok(Same::Bits), |v| same(&v))?;
    let reference = take("reference").map(|v| reference(&v)).transpose()?;
    let mut specs = Vec::new();
    for key in spec {
        let given = match key.values {
            Allowed::Any(element) => take(&key.name).map(|v| values(&v, element)).transpose()?,
            _ => None,
        };
        specs.push(given.unwrap_or_default().into_iter().map(|n| n as i64).collect());
    }
    let fills = fills(take("fill").as_ref(), doc, args, spec, names)?;
    let mut numbers = Vec::new();
    for arg in args {
        let Kind::Number(element) = arg.kind else {
            numbers.push(Vec::new());
            continue;
        };
        let given = take(&arg.name).map(|v| values(&v, element)).transpose()?;
        let is_bucket = names.find(&arg.name).is_some_and(|(n, _)| n == bucket_arg);
        numbers.push(match given {
            Some(values) => values,
            None if is_bucket => Vec::new(),
            None if element.is_float() => vec![1.0],
            None => return Err(not_said(value, doc, arg)),
        });
    }
    Ok(Test { specs, numbers, fills, same, reference })
}

fn not_said(value: Option<&Value<'_>>, doc: &Document<'_>, arg: &Argument) -> Error {
    let what = format!("has no value of '{}' to check and measure with", arg.name);
    let hint = format!("write {} = 4096, or move it to [spec] if it decides the kernel", arg.name);
    doc.error(value.map_or(0, |v| v.at), "[test]", what).hint(hint)
}

/// A number, or a list of numbers, of a type.
fn values(value: &Value<'_>, element: Element) -> Result<Vec<f64>> {
    let list = match value.as_list() {
        Some(list) if list.is_empty() || list.len() > MOST_VALUES => {
            return Err(value.error(format!("has {} values, and may have 1 to {MOST_VALUES}", list.len())));
        }
        Some(list) => list.iter().map(|v| one(v, element)).collect::<Result<_>>()?,
        None => vec![one(value, element)?],
    };
    Ok(list)
}

fn one(value: &Value<'_>, element: Element) -> Result<f64> {
    let Some((least, most)) = element.range() else { return value.number("a number, or a list of numbers") };
    let n = value.integer("an integer, or a list of integers")?;
    // Sizes to check with: beyond this they are no sizes, and a float would not hold them.
    let (least, most) = (least.max(-(1 << 52)), most.min(1 << 52));
    if n < least || n > most {
        return Err(value.error(format!("{n} is outside of {element}, or too large to check with")));
    }
    Ok(n as f64)
}

fn same(value: &Value<'_>) -> Result<Same> {
    const HINT: &str = "write \"bits\", { ulp = 2 } or { rtol = 1e-3, atol = 1e-5 }";
    if !value.is_table() {
        return match value.as_text() {
            Some("bits") => Ok(Same::Bits),
            _ => Err(value.error("is neither \"bits\" nor a tolerance").hint(HINT)),
        };
    }
    let mut table = value.table("[test] same")?;
    table.only(|key| ["ulp", "rtol", "atol"].contains(&key), "ulp, rtol, atol")?;
    let number = |table: &mut Table<'_>, key: &str| {
        let value = table.take(key)?;
        Some(value.number("a number").and_then(|n| {
            if n.is_finite() && n >= 0.0 { Ok(n) } else { Err(value.error(format!("{n} is no tolerance"))) }
        }))
    };
    let ulp = number(&mut table, "ulp").transpose()?;
    let rtol = number(&mut table, "rtol").transpose()?;
    let atol = number(&mut table, "atol").transpose()?;
    match (ulp, rtol, atol) {
        (Some(ulp), None, None) if ulp.fract() == 0.0 && ulp <= 1e9 => Ok(Same::Ulp(ulp as u64)),
        (None, Some(_), _) | (None, _, Some(_)) => {
            Ok(Same::Near { rtol: rtol.unwrap_or(0.0), atol: atol.unwrap_or(0.0) })
        }
        _ => Err(value.error("is no tolerance").hint(HINT)),
    }
}

fn reference(value: &Value<'_>) -> Result<Reference> {
    let text = value.text("a file and a function")?;
    let (file, function) = text.split_once(':').unwrap_or((text, ""));
    let is_word = |t: &str| {
        t.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && t.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
    };
    if !file.strip_suffix(".py").is_some_and(is_word) || !is_word(function) {
        let what = format!("'{}' names no function of a Python file beside this one", clip(text));
        return Err(value.error(what).hint("write \"reference.py:function\""));
    }
    Ok(Reference { file: file.to_owned(), function: function.to_owned() })
}

/// A fill for each tensor that is read.
fn fills(
    value: Option<&Value<'_>>,
    doc: &Document<'_>,
    args: &[Argument],
    spec: &[SpecKey],
    names: &Names,
) -> Result<Vec<Option<Fill>>> {
    let mut table = value.map(|v| v.table("[test] fill")).transpose()?;
    if let Some(table) = &table {
        table.only(|key| args.iter().any(|a| a.name == key), "the tensors that are in or inout")?;
    }
    let mut all = Vec::new();
    for arg in args {
        let given = table.as_mut().and_then(|t| t.take(&arg.name));
        let Kind::Tensor { role, element, .. } = &arg.kind else {
            if let Some(given) = given {
                return Err(given.error("is a number: write its values as a key of [test]"));
            }
            all.push(None);
            continue;
        };
        if let (false, Some(given)) = (role.is_read(), &given) {
            return Err(given.error(format!("is {}: what it holds before a call means nothing", role.name())));
        }
        if !role.is_read() {
            all.push(None);
            continue;
        }
        let elements = super::args::elements(*element, spec);
        all.push(Some(match given {
            Some(given) => fill(&given, &elements, names)?,
            None if elements.iter().all(|e| e.is_float()) => Fill::Normal,
            None => {
                let what = format!("has no entry for '{}', which holds integers", arg.name);
                let hint = format!("write {} = \"randint(0, 100)\", or expressions in place of 0 and 100", arg.name);
                return Err(doc.error(value.map_or(0, |v| v.at), "[test] fill", what).hint(hint));
            }
        }));
    }
    Ok(all)
}

/// `normal`, `uniform(a, b)` or `randint(lo, hi)`.
fn fill(value: &Value<'_>, elements: &[Element], names: &Names) -> Result<Fill> {
    let text = value.text("a fill in quotes")?;
    let (name, inside) = match text.trim().strip_suffix(')').and_then(|t| t.split_once('(')) {
        Some((name, inside)) => (name.trim(), super::args::split(inside)),
        None => (text.trim(), Vec::new()),
    };
    let floats = elements.iter().all(|e| e.is_float());
    let integers = elements.iter().all(|e| !e.is_float());
    match (name, inside.as_slice()) {
        ("normal", []) if floats => Ok(Fill::Normal),
        ("uniform", [low, high]) if floats => {
            let bound = |text: &str| text.trim().parse::<f64>().ok().filter(|n| n.is_finite());
            match (bound(low), bound(high)) {
                (Some(low), Some(high)) if low <= high => Ok(Fill::Uniform { low, high }),
                _ => Err(value.error(format!("'{}' is no range of numbers, the lower first", clip(text)))),
            }
        }
        ("randint", [low, high] | [low, high, _]) if integers => {
            let bound = |text: &str| {
                expression(value, text, names, |named| match (named.section, named.meaning) {
                    (Section::Tune, _) => Err("a tunable, and inputs must not depend on one"),
                    (Section::Args, Meaning::Tensor(_)) => Err("a tensor"),
                    _ => Ok(()),
                })
            };
            let also = inside.get(2).map(|text| bound(text)).transpose()?;
            Ok(Fill::Randint { low: bound(low)?, high: bound(high)?, also })
        }
        ("normal" | "uniform", _) if integers => {
            Err(value.error("holds integers").hint("write \"randint(0, 100)\", or expressions in place of 0 and 100"))
        }
        ("randint", _) if floats => {
            Err(value.error("holds no integers").hint("write \"normal\" or \"uniform(-1, 1)\""))
        }
        _ => Err(value
            .error(format!("'{}' is no fill", clip(text)))
            .hint("write \"normal\", \"uniform(-1, 1)\", \"randint(0, 100)\" or \"randint(0, 100, -1)\"")),
    }
}
