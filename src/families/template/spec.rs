//! Values for `[spec]`, from words such as `hidden=4096`.

use serde_json::{Map, Value};

use super::description::{Allowed, Description};
use super::names::{MOST, Values};
use crate::error::{Error, Result, clip};
use crate::service::family::Stated;

/// The values of one spec.
#[derive(Debug, Clone)]
pub struct Spec {
    /// Those of the spec's names; the others are zero.
    pub values: Values,
    /// As keys and records have it: `hidden` by `4096`; its text is `add_rmsnorm dtype=bf16,hidden=4096`.
    pub stated: Stated,
}

impl Description {
    /// A value for each key of `[spec]`.
    ///
    /// # Errors
    /// Naming the key that is unknown, missing, or has a value that it may not have.
    pub fn spec<'a>(&self, given: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Spec> {
        let mut found: Vec<Option<i64>> = vec![None; self.spec.len()];
        for (key, text) in given {
            let Some(at) = self.spec.iter().position(|s| s.name == key) else {
                let keys: Vec<_> = self.spec.iter().map(|s| s.name.as_str()).collect();
                let hint = if keys.is_empty() {
                    "its [spec] has no keys".into()
                } else {
                    format!("[spec] has {}", keys.join(", "))
                };
                return Err(Error::argument(clip(key), format!("{} has no such spec", self.family)).hint(hint));
            };
            if found[at].is_some() {
                return Err(Error::argument(key, "is given twice"));
            }
            found[at] = Some(self.spec_value(at, text)?);
        }
        let mut values = [0; MOST];
        for ((key, value), slot) in self.spec.iter().zip(found).zip(&mut values) {
            *slot = value.ok_or_else(|| {
                Error::argument(&*key.name, format!("is missing: {} is compiled for a value of it", self.family))
                    .hint(format!("it is {}", self.allowed_text(&key.values)))
            })?;
        }
        Ok(Spec { stated: self.stated(&values), values })
    }

    pub(super) fn spec_value(&self, at: usize, text: &str) -> Result<i64> {
        let key = &self.spec[at];
        let number = text.parse::<i64>().ok().filter(|n| n.to_string() == text);
        let value = match &key.values {
            Allowed::Any(element) => {
                number.filter(|n| element.range().is_some_and(|(least, most)| (least..=most).contains(n)))
            }
            Allowed::Numbers(list) => number.filter(|n| list.contains(n)),
            Allowed::Words(list) => self.names.find_word(text).filter(|w| list.contains(w)),
        };
        value.ok_or_else(|| {
            Error::argument(&*key.name, format!("'{}' is not {}", clip(text), self.allowed_text(&key.values)))
        })
    }

    pub(super) fn allowed_text(&self, allowed: &Allowed) -> String {
        match allowed {
            Allowed::Any(element) => format!("an integer of type {element}"),
            Allowed::Numbers(list) => {
                format!("one of {}", list.iter().map(i64::to_string).collect::<Vec<_>>().join(", "))
            }
            Allowed::Words(list) => {
                format!("one of {}", list.iter().map(|w| self.names.word_text(*w)).collect::<Vec<_>>().join(", "))
            }
        }
    }

    /// The values of the spec's names, as words: `dtype=bf16,hidden=4096`.
    pub fn spec_text(&self, values: &Values) -> String {
        let word = |(i, key): (usize, &super::description::SpecKey)| match key.values {
            Allowed::Words(_) => format!("{}={}", key.name, self.names.word_text(values[i])),
            _ => format!("{}={}", key.name, values[i]),
        };
        self.spec.iter().enumerate().map(word).collect::<Vec<_>>().join(",")
    }

    fn stated(&self, values: &Values) -> Stated {
        let mut json = Map::new();
        for (key, &value) in self.spec.iter().zip(values) {
            let value = match key.values {
                Allowed::Words(_) => self.names.word_text(value).into(),
                _ => Value::from(value),
            };
            json.insert(key.name.clone(), value);
        }
        Stated::new(Value::Object(json), format!("{} {}", self.family, self.spec_text(values)).trim_end().to_owned())
    }

    /// An assignment of the tunables, as records have it.
    pub fn config(&self, assignment: &[i64]) -> Stated {
        let mut json = Map::new();
        for (tunable, &value) in self.tune.iter().zip(assignment) {
            let value = if tunable.words { self.names.word_text(value).into() } else { Value::from(value) };
            json.insert(tunable.name.clone(), value);
        }
        Stated::new(Value::Object(json), self.assignment_text(assignment))
    }

    /// The assignment that a record's JSON is, if it is one of this description.
    pub fn assignment_of(&self, config: &Value) -> Option<Box<[i64]>> {
        let fields = config.as_object().filter(|f| f.len() == self.tune.len())?;
        let value = |tunable: &super::description::Tunable| {
            let value = fields.get(&tunable.name)?;
            let number = if tunable.words { self.names.find_word(value.as_str()?)? } else { value.as_i64()? };
            tunable.values.contains(&number).then_some(number)
        };
        self.tune.iter().map(value).collect()
    }

    /// The assignment that a text such as `threads=256 vec=1` is.
    ///
    /// # Errors
    /// When it is none of this description.
    pub fn parse_assignment(&self, text: &str) -> Result<Box<[i64]>> {
        let value = |word: &str| {
            let (name, value) = word.split_once('=')?;
            let tunable = self.tune.iter().find(|t| t.name == name)?;
            if tunable.words { self.names.find_word(value) } else { value.parse().ok() }
        };
        let read: Option<Box<[i64]>> =
            if self.tune.is_empty() { Some(Box::default()) } else { text.split(' ').map(value).collect() };
        read.filter(|a| a.len() == self.tune.len() && self.assignment_text(a) == text).ok_or_else(|| {
            Error::argument("variant", format!("'{}' is no assignment of {}'s tunables", clip(text), self.family))
                .hint(format!("one reads like this: {}", self.assignment_text(&self.default_assignment())))
        })
    }
}
