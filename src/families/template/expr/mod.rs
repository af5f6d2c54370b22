//! Integer expressions over named things: parsed once into a small vector of operations on a stack, evaluated without
//! allocation, in the time that its length bounds.
//!
//! All arithmetic is on 64-bit integers and checked: a result that does not fit, and a division by zero, are errors.
//! Comparisons and `&&`, `||` give 0 or 1; the right side of `&&` and `||` is evaluated only where it decides.

mod parse;
#[cfg(test)]
mod tests;

use std::fmt;

pub use parse::parse;

use super::element::Element;
use super::names::Values;

/// Values on the stack at most, and operations of an expression at most.
const DEEPEST: usize = 32;
const LONGEST: usize = 256;

/// One step of an evaluation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Op {
    Push(i64),
    /// The value of a name.
    Load(u8),
    /// The size of the element type that a word names.
    SizeOf(u8),
    Add,
    Sub,
    Mul,
    Div,
    Rem,
    CeilDiv,
    Min,
    Max,
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    /// Where the value on top is zero, it becomes the result and this many operations are skipped; else it is taken off.
    And(u16),
    /// Where it is not zero, the result is one, likewise.
    Or(u16),
    /// Zero stays, all else becomes one.
    Truth,
}

/// Why an expression has no value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// A result does not fit 64 bits.
    Overflow,
    /// A division, remainder or `ceil_div` by zero.
    DivisionByZero,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Overflow => "its value does not fit 64 bits",
            Self::DivisionByZero => "divides by zero",
        })
    }
}

/// An expression, parsed.
#[derive(Debug, Clone)]
pub struct Expr {
    text: String,
    ops: Box<[Op]>,
}

impl Expr {
    /// As it was written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The names that it reads, by number.
    pub fn reads(&self) -> impl Iterator<Item = u8> {
        self.ops.iter().filter_map(|op| match op {
            Op::Load(name) | Op::SizeOf(name) => Some(*name),
            _ => None,
        })
    }

    /// The name that it is, where it is nothing else.
    pub fn as_name(&self) -> Option<u8> {
        match *self.ops {
            [Op::Load(name)] => Some(name),
            _ => None,
        }
    }

    /// Its value.
    pub fn eval(&self, values: &Values) -> Result<i64, Fault> {
        let mut stack = [0i64; DEEPEST];
        let mut top = 0;
        let mut at = 0;
        while let Some(&op) = self.ops.get(at) {
            at += 1;
            let pushed = match op {
                Op::Push(n) => Some(n),
                Op::Load(name) => Some(values[usize::from(name)]),
                Op::SizeOf(name) => Some(size_of_word(values[usize::from(name)])),
                _ => None,
            };
            if let Some(n) = pushed {
                // The parser has bounded the depth.
                stack[top] = n;
                top += 1;
                continue;
            }
            let last = stack[top - 1];
            match op {
                Op::Truth => {
                    stack[top - 1] = i64::from(last != 0);
                    continue;
                }
                Op::And(skip) | Op::Or(skip) => {
                    let decided = (last != 0) == matches!(op, Op::Or(_));
                    if decided {
                        stack[top - 1] = i64::from(last != 0);
                        at += usize::from(skip);
                    } else {
                        top -= 1;
                    }
                    continue;
                }
                _ => {}
            }
            top -= 1;
            stack[top - 1] = binary(op, stack[top - 1], last)?;
        }
        Ok(stack[0])
    }
}

fn size_of_word(word: i64) -> i64 {
    usize::try_from(word).ok().and_then(|i| Element::ALL.get(i)).map_or(0, |e| e.size() as i64)
}

fn binary(op: Op, a: i64, b: i64) -> Result<i64, Fault> {
    if b == 0 && matches!(op, Op::Div | Op::Rem | Op::CeilDiv) {
        return Err(Fault::DivisionByZero);
    }
    match op {
        Op::Add => a.checked_add(b),
        Op::Sub => a.checked_sub(b),
        Op::Mul => a.checked_mul(b),
        Op::Div => a.checked_div(b),
        Op::Rem => a.checked_rem(b),
        // Rounds up: the quotient is cut towards zero, so up by one where it was positive and not whole.
        Op::CeilDiv => a.checked_div(b).map(|q| q + i64::from(a % b != 0 && (a < 0) == (b < 0))),
        Op::Min => Some(a.min(b)),
        Op::Max => Some(a.max(b)),
        Op::Eq => Some(i64::from(a == b)),
        Op::Ne => Some(i64::from(a != b)),
        Op::Lt => Some(i64::from(a < b)),
        Op::Le => Some(i64::from(a <= b)),
        Op::Gt => Some(i64::from(a > b)),
        Op::Ge => Some(i64::from(a >= b)),
        Op::Push(_) | Op::Load(_) | Op::SizeOf(_) | Op::And(_) | Op::Or(_) | Op::Truth => None,
    }
    .ok_or(Fault::Overflow)
}
