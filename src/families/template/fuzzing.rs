//! The readers of what users write, for fuzzing: any text is read, or is an error that says where.

use super::expr::parse;
use super::loaded::Template;
use super::names::{ElementOf, MOST, Meaning, Names, Section, Values};
use super::read::read;
use super::space::WIDEST;
use crate::error::{ErrorKind, Result};

/// Combinations of tunables that are tried at most: more take longer than one input should.
const FEW: u128 = 4096;

/// Reads a text as a description, and as its source; and finds the candidates of its specs.
///
/// # Errors
/// What is wrong with it.
///
/// # Panics
/// When an error does not say where, which is what is looked for.
pub fn description(text: &str) -> Result<()> {
    let read = read("any.toml", text).inspect_err(|e| {
        assert!(e.kind() == ErrorKind::Template, "{e}");
        assert!(e.subject().is_some_and(|s| s.starts_with("any.toml")), "{e}");
    })?;
    let _ = super::kernel_text::check("any.cu", text, &read);
    if read.combinations() > FEW {
        return Ok(());
    }
    let template = Template::of_parts("any.toml".as_ref(), read, text.to_owned());
    for words in template.test_specs() {
        let d = template.description();
        let Ok(spec) = d.spec(words.iter().map(|(key, value)| (key.as_str(), value.as_str()))) else { continue };
        let mut values = spec.values;
        for name in template.aligned() {
            values[usize::from(*name)] = WIDEST;
        }
        if let Ok(space) = d.space(&values) {
            for assignment in &space {
                assert_eq!(d.parse_assignment(&d.assignment_text(assignment))?, *assignment);
                assert_eq!(d.assignment_of(d.config(assignment).json()).as_ref(), Some(assignment));
            }
        }
    }
    Ok(())
}

/// Parses a text as an expression, and evaluates it.
///
/// # Errors
/// What is wrong with it, with the letter.
pub fn expression(text: &str, numbers: [i64; 3]) -> std::result::Result<Option<i64>, String> {
    let mut names = Names::default();
    for name in ["a", "b", "c"] {
        names.add(name, Section::Spec, Meaning::Number);
    }
    names.add("dtype", Section::Spec, Meaning::Word { elements: true });
    names.add("x", Section::Args, Meaning::Tensor(ElementOf::Word(3)));
    let expr = parse(text, &names).map_err(|e| {
        assert!(e.at <= text.len(), "{e:?}");
        format!("letter {}: {}", e.at, e.what)
    })?;
    let mut values: Values = [0; MOST];
    values[..3].copy_from_slice(&numbers);
    values[4] = 16;
    Ok(expr.eval(&values).ok())
}
