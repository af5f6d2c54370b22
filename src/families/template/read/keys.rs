//! Sections and values of a `.toml`, each with its line, so that every error can name file, line and key.

use std::fmt::Display;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::error::{Error, ErrorKind, Result, clip};

/// A file that is read.
pub struct Document<'a> {
    /// As errors call it.
    pub path: &'a str,
    pub text: &'a str,
}

impl Document<'_> {
    /// The line of a byte, from one on.
    pub fn line(&self, at: usize) -> usize {
        1 + self.text.bytes().take(at).filter(|b| *b == b'\n').count()
    }

    /// What is wrong, at a byte, with a key.
    pub fn error(&self, at: usize, key: &str, what: impl Display) -> Error {
        let key = if key.is_empty() { String::new() } else { format!("{key}: ") };
        Error::new(ErrorKind::Template, format!("{key}{what}")).subject_is(format!("{}:{}", self.path, self.line(at)))
    }
}

/// A value with its place. `key` is how errors call it: `[tune] threads`.
pub struct Value<'a> {
    pub doc: &'a Document<'a>,
    pub key: String,
    pub at: usize,
    content: &'a DeValue<'a>,
}

impl<'a> Value<'a> {
    pub fn error(&self, what: impl Display) -> Error {
        self.doc.error(self.at, &self.key, what)
    }

    pub fn line(&self) -> usize {
        self.doc.line(self.at)
    }

    fn wrong(&self, wanted: &str) -> Error {
        let is = self.content.type_str();
        let an = if is.starts_with(['a', 'i']) { "an" } else { "a" };
        self.error(format!("is {an} {is}, and should be {wanted}"))
    }

    pub fn as_text(&self) -> Option<&'a str> {
        self.content.as_str()
    }

    pub fn text(&self, wanted: &str) -> Result<&'a str> {
        self.content.as_str().ok_or_else(|| self.wrong(wanted))
    }

    pub fn as_integer(&self) -> Option<Result<i64>> {
        let integer = self.content.as_integer()?;
        let digits = integer.as_str().replace('_', "");
        let fits = i64::from_str_radix(&digits, integer.radix());
        Some(fits.map_err(|_| self.error(format!("{integer} does not fit 64 bits"))))
    }

    pub fn integer(&self, wanted: &str) -> Result<i64> {
        self.as_integer().unwrap_or_else(|| Err(self.wrong(wanted)))
    }

    pub fn boolean(&self, wanted: &str) -> Result<bool> {
        self.content.as_bool().ok_or_else(|| self.wrong(wanted))
    }

    /// A number, whole or not.
    pub fn number(&self, wanted: &str) -> Result<f64> {
        if let Some(integer) = self.as_integer() {
            return integer.map(|n| n as f64);
        }
        let float = self.content.as_float().ok_or_else(|| self.wrong(wanted))?;
        float.as_str().replace('_', "").parse().map_err(|_| self.error(format!("{float} is not a number")))
    }

    pub fn as_list(&self) -> Option<Vec<Self>> {
        let list = self.content.as_array()?;
        let (doc, key) = (self.doc, &self.key);
        Some(list.iter().map(|v| Self { doc, key: key.clone(), at: v.span().start, content: v.get_ref() }).collect())
    }

    pub fn list(&self, wanted: &str) -> Result<Vec<Self>> {
        self.as_list().ok_or_else(|| self.wrong(wanted))
    }

    /// A list of texts.
    pub fn texts(&self, wanted: &str) -> Result<Vec<(Self, &'a str)>> {
        self.list(wanted)?
            .into_iter()
            .map(|v| {
                let text = v.text(wanted)?;
                Ok((v, text))
            })
            .collect()
    }

    pub fn is_table(&self) -> bool {
        self.content.is_table()
    }

    /// Its keys, which errors call `name key`.
    pub fn table(&self, name: &str) -> Result<Table<'a>> {
        let table = self.content.as_table().ok_or_else(|| self.wrong("a table"))?;
        Ok(Table::new(self.doc, name, self.at, table))
    }
}

/// A section, whose keys are taken one by one.
pub struct Table<'a> {
    doc: &'a Document<'a>,
    name: String,
    at: usize,
    keys: Vec<(&'a str, Value<'a>)>,
}

impl<'a> Table<'a> {
    pub fn new(doc: &'a Document<'a>, name: &str, at: usize, table: &'a DeTable<'a>) -> Self {
        let path = |key: &str| if name.is_empty() { clip(key).to_owned() } else { format!("{name} {}", clip(key)) };
        let value = |(key, value): (&'a Spanned<_>, &'a Spanned<DeValue<'a>>)| {
            let key: &'a std::borrow::Cow<'a, str> = key.get_ref();
            let at = value.span().start;
            (key.as_ref(), Value { doc, key: path(key), at, content: value.get_ref() })
        };
        Self { doc, name: name.to_owned(), at, keys: table.iter().map(value).collect() }
    }

    /// Takes a key, if it is there.
    pub fn take(&mut self, key: &str) -> Option<Value<'a>> {
        let at = self.keys.iter().position(|(k, _)| *k == key)?;
        Some(self.keys.remove(at).1)
    }

    pub fn require(&mut self, key: &str) -> Result<Value<'a>> {
        match self.take(key) {
            Some(value) => Ok(value),
            None if self.name.is_empty() => Err(self.doc.error(self.at, key, "is missing")),
            None => Err(self.error(format!("{key} is missing"))),
        }
    }

    /// All keys that were not taken.
    pub fn rest(&mut self) -> Vec<(&'a str, Value<'a>)> {
        std::mem::take(&mut self.keys)
    }

    /// It has no other keys. To be asked before keys are taken: one that is misspelt would be said to be missing.
    pub fn only(&self, is_known: impl Fn(&str) -> bool, known: &str) -> Result<()> {
        match self.keys.iter().filter(|(key, _)| !is_known(key)).min_by_key(|(_, value)| value.at) {
            None => Ok(()),
            Some((_, value)) => Err(value.error("unknown key").hint(format!("known here: {known}"))),
        }
    }

    pub fn error(&self, what: impl Display) -> Error {
        self.doc.error(self.at, &self.name, what)
    }
}
