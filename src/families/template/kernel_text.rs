//! A `.cu`, looked at before it is compiled: that it is one flat text, that its entry point has the parameters of `[args]`, and
//! what of CUDA it uses that the host device has only at a price, or not at all.

use super::description::{Description, Kind};
use super::element::Element;
use super::names::ElementOf;
use super::on_host::{OnHost, on_host};
use super::tokens::{Token, tokens};
use crate::error::{Error, ErrorKind, Result, clip};

/// Bytes of a source at most.
pub const LARGEST: usize = 1 << 20;

/// Checks the text of a description's kernel; `path` is what errors call it.
pub fn check(path: &str, text: &str, description: &Description) -> Result<OnHost> {
    if text.len() > LARGEST {
        return Err(Error::new(ErrorKind::Template, format!("is larger than {LARGEST} bytes")).subject_is(path));
    }
    let error = |line: usize, what: String| Error::new(ErrorKind::Template, what).subject_is(format!("{path}:{line}"));
    let all = tokens(text);
    if let Some(token) = include(&all) {
        let what = format!("#{} reads another file, and a kernel is one flat text", token.text);
        return Err(
            error(token.line, what).hint("copy what it needs into the .cu; conversions and types need no header")
        );
    }
    let entries = entries(&all, &description.family);
    if entries.is_empty() {
        let what = format!("has no entry point: extern \"C\" __global__ void {}(…)", description.family);
        return Err(Error::new(ErrorKind::Template, what).subject_is(path));
    }
    for (line, parameters) in entries {
        compare(line, &parameters, description).map_err(|(line, what)| error(line, what))?;
    }
    if !description.host {
        return Ok(OnHost::No("its description says host = false".into()));
    }
    Ok(on_host(&all, &description.launch.shared))
}

/// The first directive that reads another file.
fn include<'a>(all: &[Token<'a>]) -> Option<Token<'a>> {
    let directive = |pair: &[Token<'a>], sign: usize| {
        let word = pair.get(sign)?;
        ["include", "include_next", "import", "embed"].contains(&word.text).then_some(*word)
    };
    (0..all.len()).filter(|&i| all[i].first).find_map(|i| match all[i].text {
        "#" => directive(&all[i..], 1),
        "%" if all.get(i + 1).is_some_and(|t| t.text == ":") => directive(&all[i..], 2),
        _ => None,
    })
}

/// A parameter: whether it is a pointer, the word of its type where it is one word, and its name.
struct Parameter<'a> {
    pointer: bool,
    kind: String,
    name: Option<&'a str>,
    line: usize,
}

/// The parameters of all definitions of the entry point: there may be several, under `#if`.
fn entries<'a>(all: &[Token<'a>], name: &str) -> Vec<(usize, Vec<Parameter<'a>>)> {
    let mut found = Vec::new();
    for (i, token) in all.iter().enumerate() {
        if token.text != name || all.get(i + 1).is_none_or(|t| t.text != "(") {
            continue;
        }
        let start = all[..i].iter().rposition(|t| matches!(t.text, ";" | "}")).map_or(0, |at| at + 1);
        let before = &all[start..i];
        let has = |text: &str| before.iter().any(|t| t.text == text);
        if has("extern") && has("\"C\"") && has("__global__") {
            found.push((token.line, parameters(&all[i + 2..])));
        }
    }
    found
}

/// From behind the opening parenthesis to the closing one.
fn parameters<'a>(all: &[Token<'a>]) -> Vec<Parameter<'a>> {
    let (mut depth, mut start, mut parts) = (0i32, 0, Vec::new());
    for (i, token) in all.iter().enumerate() {
        match token.text {
            "(" | "<" | "[" => depth += 1,
            ")" if depth == 0 => {
                parts.push(&all[start..i]);
                break;
            }
            ")" | ">" | "]" => depth -= 1,
            "," if depth == 0 => {
                parts.push(&all[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    if parts.len() == 1 && (parts[0].is_empty() || (parts[0].len() == 1 && parts[0][0].text == "void")) {
        return Vec::new();
    }
    parts.into_iter().map(parameter).collect()
}

fn parameter<'a>(part: &[Token<'a>]) -> Parameter<'a> {
    const QUALIFIERS: [&str; 6] = ["const", "volatile", "__restrict__", "__restrict", "__grid_constant__", "register"];
    let words: Vec<_> = part.iter().filter(|t| t.is_word() && !QUALIFIERS.contains(&t.text)).collect();
    let pointer = part.iter().any(|t| matches!(t.text, "*" | "["));
    let name = words.last().filter(|_| words.len() > 1).map(|t| t.text);
    let kind = words[..words.len().saturating_sub(1)].iter().map(|t| t.text).collect::<Vec<_>>().join(" ");
    Parameter { pointer, kind, name, line: part.first().map_or(0, |t| t.line) }
}

/// The element type that a C++ type surely is; `None` for one that may be anything.
fn element_of(kind: &str) -> Option<Element> {
    Some(match kind {
        "float" => Element::F32,
        "double" => Element::F64,
        "signed char" | "int8_t" => Element::I8,
        "unsigned char" | "uint8_t" => Element::U8,
        "short" | "int16_t" => Element::I16,
        "unsigned short" | "uint16_t" => Element::U16,
        "int" | "signed" | "signed int" | "int32_t" => Element::I32,
        "unsigned" | "unsigned int" | "uint32_t" => Element::U32,
        "long long" | "int64_t" | "long long int" => Element::I64,
        "unsigned long long" | "uint64_t" | "size_t" => Element::U64,
        name => return Element::of(name),
    })
}

/// The parameters are those of `[args]`, in their order.
fn compare(line: usize, parameters: &[Parameter<'_>], description: &Description) -> Result<(), (usize, String)> {
    let (entry, args) = (&description.family, &description.args);
    for (i, (parameter, arg)) in parameters.iter().zip(args).enumerate() {
        let at = format!("parameter {} of {entry}", i + 1);
        let wrong = |what: String| Err((parameter.line, what));
        if parameter.name != Some(&arg.name) {
            let name = parameter.name.map_or("without a name".into(), |n| format!("'{}'", clip(n)));
            return wrong(format!("{at} is {name}, and [args] has '{}' there", arg.name));
        }
        let known = element_of(&parameter.kind);
        match &arg.kind {
            Kind::Tensor { .. } if !parameter.pointer => {
                return wrong(format!("{at}, '{}', is a number, and [args] says that it is a tensor", arg.name));
            }
            Kind::Number(element) if parameter.pointer => {
                return wrong(format!("{at}, '{}', is a pointer, and [args] says {element}", arg.name));
            }
            Kind::Number(element) if known.is_some_and(|k| k != *element) => {
                return wrong(format!(
                    "{at}, '{}', is of type {}, and [args] says {element}",
                    arg.name, parameter.kind
                ));
            }
            Kind::Tensor { element: ElementOf::Fixed(element), .. }
                if known.is_some_and(|k| k.size() != element.size()) =>
            {
                let what = format!("{at}, '{}', points to {}, and [args] says {element}", arg.name, parameter.kind);
                return wrong(what);
            }
            _ => {}
        }
    }
    if parameters.len() == args.len() {
        return Ok(());
    }
    let more = match args.get(parameters.len()) {
        Some(arg) => format!("'{}' is not among them", arg.name),
        None => {
            let name = parameters.get(args.len()).and_then(|p| p.name).unwrap_or("the last");
            format!("[args] lacks '{}'", clip(name))
        }
    };
    Err((line, format!("{entry} has {} parameters, and [args] has {}: {more}", parameters.len(), args.len())))
}

#[cfg(test)]
#[path = "kernel_text_tests.rs"]
mod tests;
