//! `[spec]` and `[tune]`: what decides bits, and what decides speed only.

use super::keys::{Document, Value};
use super::{EXPRESSION, add_name, expression};
use crate::error::{Result, clip};
use crate::families::template::description::{Allowed, Rule, SpecKey, Tunable};
use crate::families::template::element::Element;
use crate::families::template::names::{Meaning, Names, Section, is_name};

/// Rules at most.
const MOST_RULES: usize = 32;
/// Values of one key at most.
const MOST_VALUES: usize = 256;

pub fn spec(value: &Value<'_>, names: &mut Names) -> Result<Vec<SpecKey>> {
    let mut table = value.table("[spec]")?;
    let mut all = Vec::new();
    for (name, value) in table.rest() {
        let (values, meaning) = match value.as_text() {
            Some(text) => match Element::of(text).filter(|e| e.range().is_some()) {
                Some(element) => (Allowed::Any(element), Meaning::Number),
                None => {
                    let what = format!("'{}' is no integer type", clip(text));
                    return Err(value.error(what).hint("write \"u32\" for any number, or a list of values"));
                }
            },
            None => {
                let (values, words) = list(&value, "\"u32\" or a list of values", names)?;
                let meaning = meaning(&values, words);
                (if words { Allowed::Words(values) } else { Allowed::Numbers(values) }, meaning)
            }
        };
        add_name(&value, name, Section::Spec, meaning, names)?;
        all.push(SpecKey { name: name.to_owned(), values });
    }
    Ok(all)
}

/// A list of numbers, or of words.
fn list(value: &Value<'_>, wanted: &str, names: &mut Names) -> Result<(Vec<i64>, bool)> {
    let list = value.list(wanted)?;
    if list.is_empty() || list.len() > MOST_VALUES {
        return Err(value.error(format!("has {} values, and may have 1 to {MOST_VALUES}", list.len())));
    }
    let words = list[0].as_text().is_some();
    let mut values = Vec::new();
    for value in &list {
        let (number, shown) = match value.as_text() {
            Some(word) if words && is_name(word) => (names.word(word), word.to_owned()),
            Some(word) if words => {
                let what = format!("'{}' is no word: use a-z, 0-9 and _, a letter first", clip(word));
                return Err(value.error(what));
            }
            None if !words => value.integer("an integer or a word in quotes").map(|n| (n, n.to_string()))?,
            _ => return Err(value.error("has numbers and words in one list")),
        };
        if values.contains(&number) {
            return Err(value.error(format!("has {shown} twice")));
        }
        values.push(number);
    }
    Ok((values, words))
}

fn meaning(values: &[i64], words: bool) -> Meaning {
    if words {
        Meaning::Word { elements: values.iter().all(|v| (*v as usize) < Element::ALL.len()) }
    } else {
        Meaning::Number
    }
}

/// `[tune]`, whose rules can be parsed when all names are known.
#[derive(Default)]
pub struct Tune<'a> {
    pub tunables: Vec<Tunable>,
    pub rules: Vec<Value<'a>>,
}

pub fn tune<'a>(value: &Value<'a>, names: &mut Names) -> Result<Tune<'a>> {
    let mut table = value.table("[tune]")?;
    let default = table.take("default");
    let rules = table.take("where").map(|v| v.list("a list of expressions")).transpose()?.unwrap_or_default();
    let mut tunables: Vec<Tunable> = Vec::new();
    for (name, value) in table.rest() {
        let (values, words) = list(&value, "a list of values", names)?;
        add_name(&value, name, Section::Tune, meaning(&values, words), names)?;
        // One value needs no choice; of more, the default must say which.
        let default = values[0];
        tunables.push(Tunable { name: name.to_owned(), values, words, default });
    }
    let mut given = default.as_ref().map(|v| v.table("[tune] default")).transpose()?;
    if let Some(given) = &given {
        given.only(|key| tunables.iter().any(|t| t.name == key), "the tunables")?;
    }
    for tunable in &mut tunables {
        let Some(value) = given.as_mut().and_then(|t| t.take(&tunable.name)) else {
            if tunable.values.len() == 1 {
                continue;
            }
            let what = format!("default does not say which '{}'", tunable.name);
            let error = given
                .as_ref()
                .map_or_else(|| table.error(&what), |t| t.error(format!("'{}' is missing", tunable.name)));
            return Err(error.hint(format!("write default = {{ {} = …, … }} with a value of each list", tunable.name)));
        };
        let (number, shown) = match value.as_text() {
            Some(word) => (names.find_word(word).filter(|_| tunable.words), word.to_owned()),
            None => {
                let n = value.integer("a value of the list")?;
                (Some(n).filter(|_| !tunable.words), n.to_string())
            }
        };
        tunable.default = number
            .filter(|n| tunable.values.contains(n))
            .ok_or_else(|| value.error(format!("{} is not in the list of '{}'", clip(&shown), tunable.name)))?;
    }
    Ok(Tune { tunables, rules })
}

/// `where`: over the spec, the tunables and alignments, which are known before a kernel is chosen.
pub fn rules(values: &[Value<'_>], names: &Names) -> Result<Vec<Rule>> {
    if let Some(value) = values.get(MOST_RULES) {
        return Err(value.error(format!("has {} rules, and may have {MOST_RULES}", values.len())));
    }
    let rule = |value: &Value<'_>| {
        let expr = expression(value, value.text(EXPRESSION)?, names, |named| match (named.section, named.meaning) {
            (Section::Args, Meaning::Number) => {
                Err("which only a call knows; a rule may read [spec], [tune] and align()")
            }
            _ => Ok(()),
        })?;
        Ok(Rule { expr, line: value.line() })
    };
    values.iter().map(rule).collect()
}

/// In expressions, a word that is a name as well would never be seen.
pub fn words_are_no_names(doc: &Document<'_>, names: &Names) -> Result<()> {
    match names.iter().find(|(_, named)| names.find_word(&named.name).is_some()) {
        None => Ok(()),
        Some((_, named)) => {
            let key = format!("{} {}", named.section.name(), named.name);
            Err(doc.error(line_start(doc, &named.name), &key, "is a name and a word of a list as well"))
        }
    }
}

/// Where a name's line is, near enough: the first line that starts with it.
fn line_start(doc: &Document<'_>, name: &str) -> usize {
    let starts = |line: &str| line.trim_start().strip_prefix(name).is_some_and(|r| r.trim_start().starts_with('='));
    let mut at = 0;
    for line in doc.text.split_inclusive('\n') {
        if starts(line) {
            return at;
        }
        at += line.len();
    }
    0
}

/// The kernel sees every name and every name with its word in capitals: no two may be one.
pub fn defines_differ(doc: &Document<'_>, spec: &[SpecKey], tune: &[Tunable], names: &Names) -> Result<()> {
    let spec = spec.iter().map(|s| match &s.values {
        Allowed::Words(words) => (&s.name, words.as_slice()),
        _ => (&s.name, &[][..]),
    });
    let tune = tune.iter().map(|t| (&t.name, if t.words { t.values.as_slice() } else { &[] }));
    let mut seen: Vec<(String, &str)> = Vec::new();
    for (name, words) in spec.chain(tune) {
        let with_words = words.iter().map(|w| format!("{name}_{}", names.word_text(*w)));
        for define in std::iter::once(name.clone()).chain(with_words) {
            let define = define.to_uppercase();
            if let Some((_, other)) = seen.iter().find(|(d, _)| *d == define) {
                let what = format!("the kernel sees {define} for it, and for '{other}' as well");
                let key = names.find(name).map_or(name.clone(), |(_, n)| format!("{} {name}", n.section.name()));
                return Err(doc.error(line_start(doc, name), &key, what));
            }
            seen.push((define, name));
        }
    }
    Ok(())
}
