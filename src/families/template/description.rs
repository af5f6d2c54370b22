//! What a `.toml` says, read and checked.

use super::element::Element;
use super::expr::Expr;
use super::fill::Fill;
use super::names::{ElementOf, Names};

/// A whole description.
#[derive(Debug, Clone)]
pub struct Description {
    /// As errors call its file, and the line of its `[tune]`.
    pub path: String,
    pub tune_line: usize,
    pub family: String,
    /// File name of the source, beside the `.toml`.
    pub source: String,
    /// Whether the host device may run it.
    pub host: bool,
    pub names: Names,
    /// In the order of names: the first `spec.len()` of them.
    pub spec: Vec<SpecKey>,
    /// The next `tune.len()` of the names.
    pub tune: Vec<Tunable>,
    pub rules: Vec<Rule>,
    /// The last of the names.
    pub args: Vec<Argument>,
    pub launch: Launch,
    pub test: Test,
}

/// A key of `[spec]`.
#[derive(Debug, Clone)]
pub struct SpecKey {
    pub name: String,
    pub values: Allowed,
}

/// What values a key of `[spec]` may have.
#[derive(Debug, Clone)]
pub enum Allowed {
    /// Any of this integer type.
    Any(Element),
    /// One of these numbers.
    Numbers(Vec<i64>),
    /// One of these words.
    Words(Vec<i64>),
}

/// A key of `[tune]`.
#[derive(Debug, Clone)]
pub struct Tunable {
    pub name: String,
    /// Numbers, or words' numbers.
    pub values: Vec<i64>,
    pub words: bool,
    /// Its value in the default.
    pub default: i64,
}

/// One of `where`: which candidates are legal.
#[derive(Debug, Clone)]
pub struct Rule {
    pub expr: Expr,
    pub line: usize,
}

/// A key of `[args]`: a parameter of the kernel.
#[derive(Debug, Clone)]
pub struct Argument {
    pub name: String,
    pub line: usize,
    pub kind: Kind,
}

#[derive(Debug, Clone)]
pub enum Kind {
    Number(Element),
    Tensor { role: Role, element: ElementOf, shape: Vec<Expr> },
}

/// What a kernel does with a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Reads it, and never writes it.
    In,
    /// Writes all of it, and never reads what was there.
    Out,
    /// Reads and writes it.
    InOut,
    /// Uses it as it likes; what is left there means nothing.
    Scratch,
}

impl Role {
    pub const ALL: [(&'static str, Self); 4] =
        [("in", Self::In), ("out", Self::Out), ("inout", Self::InOut), ("scratch", Self::Scratch)];

    pub const fn name(self) -> &'static str {
        Self::ALL[self as usize].0
    }

    /// Whether the caller gives values in it.
    pub const fn is_read(self) -> bool {
        matches!(self, Self::In | Self::InOut)
    }

    /// Whether the kernel may write to it.
    pub const fn is_written(self) -> bool {
        !matches!(self, Self::In)
    }
}

/// `[launch]`.
#[derive(Debug, Clone)]
pub struct Launch {
    /// One to three.
    pub grid: Vec<Expr>,
    /// One to three.
    pub block: Vec<Expr>,
    /// Bytes of dynamic shared memory.
    pub shared: Expr,
    pub bucket: Expr,
    /// The one argument that `bucket` reads.
    pub bucket_arg: u8,
    /// Further options of the compiler.
    pub options: Vec<String>,
}

/// `[test]`.
#[derive(Debug, Clone)]
pub struct Test {
    /// For keys of `[spec]` that may be any number: what to try.
    pub specs: Vec<Vec<i64>>,
    /// For numbers among the arguments, by index of the argument: what to try.
    pub numbers: Vec<Vec<f64>>,
    /// For tensors that are read, by index of the argument.
    pub fills: Vec<Option<Fill>>,
    pub same: Same,
    pub reference: Option<Reference>,
}

/// When two outputs are the same.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Same {
    Bits,
    /// At most so many representable values apart.
    Ulp(u64),
    /// `|a − b| ≤ atol + rtol · |b|`.
    Near {
        rtol: f64,
        atol: f64,
    },
}

/// A function of a Python file that computes the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    pub file: String,
    pub function: String,
}
