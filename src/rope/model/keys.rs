//! Typed access to the keys of a JSON object, with the whole path of a key in every error.

use std::cell::RefCell;
use std::collections::BTreeSet;

use serde_json::{Map, Value};

use crate::error::{Error, ErrorKind, Result};

/// Paths of all keys that were asked for, whether they are there or not.
pub(super) type Asked = RefCell<BTreeSet<String>>;

/// An object of the configuration and where it lies.
#[derive(Clone, Copy)]
pub(super) struct Keys<'a> {
    object: &'a Map<String, Value>,
    /// The path of this object, empty for the root.
    prefix: &'a str,
    asked: &'a Asked,
}

impl<'a> Keys<'a> {
    /// An object that lies at `prefix`; empty for the root.
    pub fn at(object: &'a Map<String, Value>, prefix: &'a str, asked: &'a Asked) -> Self {
        Self { object, prefix, asked }
    }

    /// Another object of the same configuration.
    pub fn within<'b>(&self, object: &'b Map<String, Value>, prefix: &'b str) -> Keys<'b>
    where
        'a: 'b,
    {
        Keys { object, prefix, asked: self.asked }
    }

    /// Whether somebody asked for this key.
    pub fn was_asked(&self, key: &str) -> bool {
        self.asked.borrow().contains(&self.path(key))
    }

    /// The full path of a key.
    pub fn path(&self, key: &str) -> String {
        if self.prefix.is_empty() { key.to_owned() } else { format!("{}.{key}", self.prefix) }
    }

    pub fn object(&self) -> &'a Map<String, Value> {
        self.object
    }

    /// An error about a key of this object.
    pub fn wrong(&self, key: &str, message: impl Into<String>) -> Error {
        Error::new(ErrorKind::Config, message).subject_is(self.path(key))
    }

    /// The value of a key; null is the same as absent.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.asked.borrow_mut().insert(self.path(key));
        self.object.get(key).filter(|value| !value.is_null())
    }

    pub fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    fn typed<T>(&self, key: &str, what: &str, read: impl FnOnce(&'a Value) -> Option<T>) -> Result<Option<T>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match read(value) {
            Some(x) => Ok(Some(x)),
            None => Err(self.wrong(key, format!("must be {what}, got {}", short(value)))),
        }
    }

    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a finite number", number)
    }

    /// A whole number; one that is written as 8192.0 is one too.
    pub fn count(&self, key: &str) -> Result<Option<u64>> {
        self.typed(key, "a positive whole number", count)
    }

    /// A whole number that fits 32 bits.
    pub fn count32(&self, key: &str) -> Result<Option<u32>> {
        self.typed(key, "a positive whole number of 32 bits", |v| count(v).and_then(|n| n.try_into().ok()))
    }

    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "true or false", Value::as_bool)
    }

    pub fn text(&self, key: &str) -> Result<Option<&'a str>> {
        self.typed(key, "a string", Value::as_str)
    }

    pub fn map(&self, key: &str) -> Result<Option<&'a Map<String, Value>>> {
        self.typed(key, "an object", Value::as_object)
    }

    pub fn numbers(&self, key: &str) -> Result<Option<Vec<f64>>> {
        self.typed(key, "a list of finite numbers", |v| v.as_array()?.iter().map(number).collect())
    }

    pub fn texts(&self, key: &str) -> Result<Option<Vec<&'a str>>> {
        self.typed(key, "a list of strings", |v| v.as_array()?.iter().map(Value::as_str).collect())
    }

    /// What `read` finds under several spellings of one key, which must agree; and the spelling that was used.
    pub fn one_of<T: PartialEq>(
        &self,
        spellings: &[&'static str],
        read: impl Fn(&Self, &str) -> Result<Option<T>>,
    ) -> Result<Option<(T, &'static str)>> {
        let mut found: Option<(T, &'static str)> = None;
        for key in spellings {
            let Some(value) = read(self, key)? else { continue };
            match &found {
                Some((first, name)) if *first != value => {
                    let message = format!("contradicts {}", self.path(name));
                    return Err(self.wrong(key, message).hint("the two keys mean the same: keep one"));
                }
                Some(_) => {}
                None => found = Some((value, key)),
            }
        }
        Ok(found)
    }
}

fn number(value: &Value) -> Option<f64> {
    value.as_f64().filter(|x| x.is_finite())
}

fn count(value: &Value) -> Option<u64> {
    let whole = |x: f64| (x.fract() == 0.0 && (1.0..=9_007_199_254_740_992.0).contains(&x)).then_some(x as u64);
    value.as_u64().or_else(|| value.as_f64().and_then(whole)).filter(|n| *n > 0)
}

/// A value for a message: never more than a line.
fn short(value: &Value) -> String {
    match value {
        Value::Array(list) => format!("a list of {}", list.len()),
        Value::Object(_) => "an object".to_owned(),
        Value::String(name) if super::json::NOT_FINITE.contains(&name.as_str()) => name.clone(),
        other => {
            let text = other.to_string();
            if text.chars().count() > 60 { text.chars().take(60).chain(['…']).collect() } else { text }
        }
    }
}
