//! What a description names, and where the value of each lies while an expression is evaluated.

use super::element::Element;

/// Names at most, over `[spec]`, `[tune]` and `[args]`.
pub const MOST: usize = 64;

/// One value for each name, by [`Names`]' numbers. A word is its number, a tensor the alignment of its address in bytes.
pub type Values = [i64; MOST];

/// The type of a tensor's elements: fixed, or a word of the spec.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ElementOf {
    Fixed(Element),
    Word(u8),
}

/// What a name stands for in an expression.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meaning {
    /// An integer.
    Number,
    /// One of some words; with `elements`, all of them are types.
    Word { elements: bool },
    /// A tensor: has an alignment, and elements.
    Tensor(ElementOf),
    /// A number that is no integer: nothing in an expression.
    Float,
}

/// Which section a name is from: says when its value is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Section {
    Spec,
    Tune,
    Args,
}

impl Section {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Spec => "[spec]",
            Self::Tune => "[tune]",
            Self::Args => "[args]",
        }
    }
}

/// A name of a description.
#[derive(Debug, Clone)]
pub struct Named {
    pub name: String,
    pub section: Section,
    pub meaning: Meaning,
}

/// All names of a description, in its order, and all words.
#[derive(Debug, Clone)]
pub struct Names {
    all: Vec<Named>,
    words: Vec<String>,
}

impl Default for Names {
    /// No names, and the words that everybody has: the types of elements.
    fn default() -> Self {
        Self { all: Vec::new(), words: Element::ALL.map(|e| e.name().to_owned()).to_vec() }
    }
}

impl Names {
    /// Adds a name; its number, or `None` where there are too many.
    pub fn add(&mut self, name: &str, section: Section, meaning: Meaning) -> Option<u8> {
        if self.all.len() == MOST {
            return None;
        }
        self.all.push(Named { name: name.to_owned(), section, meaning });
        Some(self.all.len() as u8 - 1)
    }

    /// The number of a word, which is added if it is new.
    pub fn word(&mut self, word: &str) -> i64 {
        self.find_word(word).unwrap_or_else(|| {
            self.words.push(word.to_owned());
            self.words.len() as i64 - 1
        })
    }

    pub fn find_word(&self, word: &str) -> Option<i64> {
        self.words.iter().position(|w| w == word).map(|i| i as i64)
    }

    pub fn word_text(&self, number: i64) -> &str {
        usize::try_from(number).ok().and_then(|i| self.words.get(i)).map_or("?", String::as_str)
    }

    pub fn find(&self, name: &str) -> Option<(u8, &Named)> {
        self.all.iter().position(|n| n.name == name).map(|i| (i as u8, &self.all[i]))
    }

    pub fn get(&self, number: u8) -> &Named {
        &self.all[usize::from(number)]
    }

    pub fn iter(&self) -> impl Iterator<Item = (u8, &Named)> {
        self.all.iter().enumerate().map(|(i, n)| (i as u8, n))
    }
}

/// Whether a text may be the name of something: `[a-z][a-z0-9_]*`, at most 64 letters.
pub fn is_name(text: &str) -> bool {
    text.len() <= 64
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}
