//! Reads a `.toml`. Every error names the file, the line and the key; what is read is whole and legal.

pub mod args;
mod keys;
mod launch;
mod lists;
mod test;
#[cfg(test)]
mod tests;

use toml::de::DeTable;

pub use self::args::MOST_DIMENSIONS;
use self::keys::{Document, Table, Value};
use super::description::Description;
use super::expr::{self, Expr};
use super::names::{Names, Section, is_name};
use crate::error::{Error, ErrorKind, Result, clip};

/// What is wanted where an expression stands.
const EXPRESSION: &str = "an expression in quotes";

/// Bytes of a description at most.
pub const LARGEST: usize = 256 << 10;

/// The keys that a description may have.
const KEYS: [&str; 8] = ["family", "source", "host", "spec", "tune", "args", "launch", "test"];

/// Reads the text of a description; `path` is what errors call it.
pub fn read(path: &str, text: &str) -> Result<Description> {
    let doc = Document { path, text };
    if text.len() > LARGEST {
        return Err(Error::new(ErrorKind::Template, format!("is larger than {LARGEST} bytes")).subject_is(path));
    }
    let root = DeTable::parse(text).map_err(|e| no_toml(&doc, &e))?;
    let mut root = Table::new(&doc, "", 0, root.get_ref());
    let known = "family, source, host, [spec], [tune], [args], [launch], [test]";
    root.only(|key| KEYS.contains(&key), known)?;
    let family = family(&root.require("family")?)?;
    let source = file_name(&root.require("source")?)?;
    let host = root.take("host").map_or(Ok(true), |v| v.boolean("true or false"))?;
    let mut names = Names::default();
    let spec = root.take("spec").map(|v| lists::spec(&v, &mut names)).transpose()?.unwrap_or_default();
    let tune = root.take("tune");
    let tune_line = tune.as_ref().map_or(1, Value::line);
    let tune = tune.map(|v| lists::tune(&v, &mut names)).transpose()?.unwrap_or_default();
    let (args, shapes) = args::arguments(&root.require("args")?, &mut names)?;
    lists::words_are_no_names(&doc, &names)?;
    lists::defines_differ(&doc, &spec, &tune.tunables, &names)?;
    let args = args::with_shapes(args, shapes, &names)?;
    let rules = lists::rules(&tune.rules, &names)?;
    let launch = launch::launch(&root.require("launch")?, &names)?;
    let test = test::test(root.take("test").as_ref(), &doc, &args, &spec, &names, launch.bucket_arg)?;
    let path = path.to_owned();
    Ok(Description {
        path,
        tune_line,
        family,
        source,
        host,
        names,
        spec,
        tune: tune.tunables,
        rules,
        args,
        launch,
        test,
    })
}

fn no_toml(doc: &Document<'_>, e: &toml::de::Error) -> Error {
    let span = e.span().unwrap_or_default();
    let near = doc.text.get(span.clone()).unwrap_or_default().lines().next().unwrap_or_default();
    let near = if near.is_empty() { String::new() } else { format!(", near '{}'", clip(near)) };
    doc.error(span.start, "", format!("is not TOML: {}{near}", e.message()))
}

fn family(value: &Value<'_>) -> Result<String> {
    let text = value.text("a name")?;
    if !is_name(text) {
        return Err(value.error(format!("'{}' is no name: use a-z, 0-9 and _, a letter first", clip(text))));
    }
    if super::element::Element::of(text).is_some() {
        return Err(value.error(format!("'{text}' is a type, and can be no family")));
    }
    if text == "rope" {
        return Err(value.error("'rope' is the family that comes with ropejit"));
    }
    Ok(text.to_owned())
}

/// The name of a file in the same folder.
fn file_name(value: &Value<'_>) -> Result<String> {
    let text = value.text("a file's name")?;
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    if text.is_empty() || text.starts_with('.') || !text.bytes().all(plain) {
        let what =
            format!("'{}' is no name of a file beside this one, of letters, digits, '.', '_' and '-'", clip(text));
        return Err(value.error(what));
    }
    Ok(text.to_owned())
}

/// Adds a name, which nothing else may have.
fn add_name(
    value: &Value<'_>,
    name: &str,
    section: Section,
    meaning: super::names::Meaning,
    names: &mut Names,
) -> Result<u8> {
    const TAKEN: [&str; 7] = ["min", "max", "ceil_div", "sizeof", "align", "infinity", "nan"];
    if !is_name(name) {
        return Err(value.error("is no name: use a-z, 0-9 and _, a letter first, 64 at most"));
    }
    if let Some((_, other)) = names.find(name) {
        return Err(value.error(format!("is a name in {} already", other.section.name())));
    }
    if TAKEN.contains(&name) || super::element::Element::of(name).is_some() {
        return Err(value.error(format!("'{name}' means something already, and can be no name")));
    }
    names.add(name, section, meaning).ok_or_else(|| {
        value.error(format!("is one name too many: {} in [spec], [tune] and [args] together", super::names::MOST))
    })
}

/// An expression, which is the value's text or a part of it, that may only read what `may` allows of a name; `may` says else why not.
fn expression(
    value: &Value<'_>,
    text: &str,
    names: &Names,
    may: impl Fn(&super::names::Named) -> Result<(), &'static str>,
) -> Result<Expr> {
    let shown = clip(text.trim());
    let expr =
        expr::parse(text, names).map_err(|e| value.error(format!("'{shown}', letter {}: {}", e.at + 1, e.what)))?;
    for name in expr.reads() {
        let named = names.get(name);
        may(named).map_err(|why| value.error(format!("'{shown}' reads '{}', {why}", named.name)))?;
    }
    Ok(expr)
}
