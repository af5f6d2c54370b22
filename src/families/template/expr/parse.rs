//! From the text of an expression to its operations. Depth and length are bounded, so no text can exhaust the stack.

use super::{DEEPEST, Expr, LONGEST, Op};
use crate::families::template::element::Element;
use crate::families::template::names::{ElementOf, Meaning, Names};

/// What is wrong with a text, and where: the byte at which it was noticed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    pub at: usize,
    pub what: String,
}

/// Bytes of a text at most, and parentheses in each other at most.
const LONGEST_TEXT: usize = 1024;
const MOST_NESTED: usize = 24;

/// Parses an expression over these names.
pub fn parse(text: &str, names: &Names) -> Result<Expr, Mistake> {
    if text.len() > LONGEST_TEXT {
        return Err(Mistake { at: 0, what: format!("is longer than {LONGEST_TEXT} letters") });
    }
    let mut parser = Parser { text, at: 0, names, ops: Vec::new(), depth: 0, nested: 0, token: Token::End, start: 0 };
    parser.advance()?;
    let start = parser.start;
    let value = parser.any_of()?;
    number(value, start)?;
    if parser.token != Token::End {
        return Err(parser.unexpected("an operator or the end"));
    }
    Ok(Expr { text: text.to_owned(), ops: parser.ops.into() })
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Token<'a> {
    Number(i64),
    Name(&'a str),
    /// An operator, a parenthesis or a comma.
    Sign(&'static str),
    End,
}

/// What a part of an expression is.
#[derive(Clone, Copy, PartialEq)]
enum Is {
    Number,
    Word,
}

struct Parser<'a> {
    text: &'a str,
    /// Where reading goes on; `start` is where `token` began.
    at: usize,
    names: &'a Names,
    ops: Vec<Op>,
    /// Values on the stack here.
    depth: usize,
    nested: usize,
    token: Token<'a>,
    start: usize,
}

const SIGNS: [&str; 16] = ["&&", "||", "==", "!=", "<=", ">=", "<", ">", "+", "-", "*", "/", "%", "(", ")", ","];

/// What begins at `start` is no word.
fn number(is: Is, start: usize) -> Result<(), Mistake> {
    let what = "is a word, which can only be compared, with '==' and '!=', or asked for its sizeof";
    if is == Is::Number { Ok(()) } else { Err(Mistake { at: start, what: what.into() }) }
}

impl Parser<'_> {
    fn advance(&mut self) -> Result<(), Mistake> {
        let text = self.text;
        self.at += text[self.at..].len() - text[self.at..].trim_start_matches([' ', '\t']).len();
        self.start = self.at;
        let rest = &text[self.at..];
        let take = |f: fn(char) -> bool| &rest[..rest.find(|c| !f(c)).unwrap_or(rest.len())];
        let Some(first) = rest.chars().next() else {
            self.token = Token::End;
            return Ok(());
        };
        if first.is_ascii_digit() {
            let digits = take(|c| c.is_ascii_alphanumeric() || c == '_' || c == '.');
            let number = digits.parse().map_err(|_| self.mistake(format!("'{digits}' is not an integer")))?;
            (self.token, self.at) = (Token::Number(number), self.at + digits.len());
        } else if first.is_ascii_alphabetic() || first == '_' {
            let name = take(|c| c.is_ascii_alphanumeric() || c == '_');
            (self.token, self.at) = (Token::Name(name), self.at + name.len());
        } else if let Some(sign) = SIGNS.into_iter().find(|s| rest.starts_with(s)) {
            (self.token, self.at) = (Token::Sign(sign), self.at + sign.len());
        } else {
            return Err(self.mistake(format!("'{first}' is nothing in an expression")));
        }
        Ok(())
    }

    fn mistake(&self, what: impl Into<String>) -> Mistake {
        Mistake { at: self.start, what: what.into() }
    }

    fn unexpected(&self, wanted: &str) -> Mistake {
        self.mistake(match self.token {
            Token::End => format!("ends where {wanted} should follow"),
            Token::Number(n) => format!("'{n}' stands where {wanted} should"),
            Token::Name(name) => format!("'{name}' stands where {wanted} should"),
            Token::Sign(sign) => format!("'{sign}' stands where {wanted} should"),
        })
    }

    /// Takes the sign, if it is next.
    fn takes(&mut self, sign: &str) -> Result<bool, Mistake> {
        let is = self.token == Token::Sign(SIGNS.into_iter().find(|s| *s == sign).unwrap_or(""));
        if is {
            self.advance()?;
        }
        Ok(is)
    }

    fn expect(&mut self, sign: &str) -> Result<(), Mistake> {
        if self.takes(sign)? { Ok(()) } else { Err(self.unexpected(&format!("'{sign}'"))) }
    }

    /// Adds an operation that changes the number of values on the stack by `change`.
    fn push(&mut self, op: Op, change: isize) -> Result<(), Mistake> {
        self.depth = self.depth.wrapping_add_signed(change);
        if self.depth > DEEPEST || self.ops.len() == LONGEST {
            return Err(self.mistake("is too long to be evaluated"));
        }
        self.ops.push(op);
        Ok(())
    }

    /// `a || b`.
    fn any_of(&mut self) -> Result<Is, Mistake> {
        self.chain("||", Op::Or, Self::all_of)
    }

    /// `a && b`.
    fn all_of(&mut self) -> Result<Is, Mistake> {
        self.chain("&&", Op::And, Self::comparison)
    }

    fn chain(
        &mut self,
        sign: &str,
        op: fn(u16) -> Op,
        part: fn(&mut Self) -> Result<Is, Mistake>,
    ) -> Result<Is, Mistake> {
        let mut start = self.start;
        let mut is = part(self)?;
        while self.takes(sign)? {
            number(is, start)?;
            let jump = self.ops.len();
            self.push(op(0), -1)?;
            start = self.start;
            let right = part(self)?;
            number(right, start)?;
            self.push(Op::Truth, 0)?;
            self.ops[jump] = op((self.ops.len() - jump - 1) as u16);
            is = Is::Number;
        }
        Ok(is)
    }

    /// One comparison: `a < b < c` means nothing that anybody wants.
    fn comparison(&mut self) -> Result<Is, Mistake> {
        let start = self.start;
        let left = self.sum()?;
        let Some(op) = self.comparing() else { return Ok(left) };
        self.advance()?;
        let right_start = self.start;
        let right = self.sum()?;
        if !matches!(op, Op::Eq | Op::Ne) || left != right {
            number(left, start)?;
            number(right, right_start)?;
        }
        self.push(op, -1)?;
        if self.comparing().is_some() {
            return Err(self.mistake("compares what was compared: write a < b && b < c"));
        }
        Ok(Is::Number)
    }

    fn comparing(&self) -> Option<Op> {
        let Token::Sign(sign) = self.token else { return None };
        Some(match sign {
            "==" => Op::Eq,
            "!=" => Op::Ne,
            "<" => Op::Lt,
            "<=" => Op::Le,
            ">" => Op::Gt,
            ">=" => Op::Ge,
            _ => return None,
        })
    }

    fn sum(&mut self) -> Result<Is, Mistake> {
        self.left_to_right(&[("+", Op::Add), ("-", Op::Sub)], Self::product)
    }

    fn product(&mut self) -> Result<Is, Mistake> {
        self.left_to_right(&[("*", Op::Mul), ("/", Op::Div), ("%", Op::Rem)], Self::single)
    }

    fn left_to_right(
        &mut self,
        signs: &[(&'static str, Op)],
        part: fn(&mut Self) -> Result<Is, Mistake>,
    ) -> Result<Is, Mistake> {
        let start = self.start;
        let is = part(self)?;
        loop {
            let Some(&(_, op)) = signs.iter().find(|(sign, _)| self.token == Token::Sign(sign)) else { return Ok(is) };
            number(is, start)?;
            self.advance()?;
            let right_start = self.start;
            let right = part(self)?;
            number(right, right_start)?;
            self.push(op, -1)?;
        }
    }

    /// A number, a name, a function's value, or what stands in parentheses.
    fn single(&mut self) -> Result<Is, Mistake> {
        match self.token {
            Token::Number(n) => {
                self.push(Op::Push(n), 1)?;
                self.advance()?;
                Ok(Is::Number)
            }
            Token::Sign("-") => {
                self.enter()?;
                self.push(Op::Push(0), 1)?;
                self.advance()?;
                let start = self.start;
                let is = self.single()?;
                number(is, start)?;
                self.push(Op::Sub, -1)?;
                self.nested -= 1;
                Ok(is)
            }
            Token::Sign("(") => {
                self.enter()?;
                self.advance()?;
                let is = self.any_of()?;
                self.expect(")")?;
                self.nested -= 1;
                Ok(is)
            }
            Token::Name(name) => match name {
                "min" => self.of_numbers(Op::Min, usize::MAX),
                "max" => self.of_numbers(Op::Max, usize::MAX),
                "ceil_div" => self.of_numbers(Op::CeilDiv, 2),
                "sizeof" => self.of_name(Self::size_of),
                "align" => self.of_name(Self::align),
                name => self.name(name),
            },
            _ => Err(self.unexpected("a number, a name or '('")),
        }
    }

    fn enter(&mut self) -> Result<(), Mistake> {
        self.nested += 1;
        if self.nested > MOST_NESTED {
            return Err(self.mistake(format!("nests more than {MOST_NESTED} parentheses")));
        }
        Ok(())
    }

    /// `f(a, b, …)`, of two values at least.
    fn of_numbers(&mut self, op: Op, most: usize) -> Result<Is, Mistake> {
        self.enter()?;
        self.advance()?;
        self.expect("(")?;
        for n in 1.. {
            let start = self.start;
            let is = self.any_of()?;
            number(is, start)?;
            if n > 1 {
                self.push(op, -1)?;
            }
            if n == 1 || (n < most && self.token == Token::Sign(",")) {
                self.expect(",")?;
            } else {
                break;
            }
        }
        self.expect(")")?;
        self.nested -= 1;
        Ok(Is::Number)
    }

    /// `f(name)`.
    fn of_name(&mut self, f: fn(&Self, &str) -> Result<Op, Mistake>) -> Result<Is, Mistake> {
        self.advance()?;
        self.expect("(")?;
        let Token::Name(name) = self.token else { return Err(self.unexpected("a name")) };
        let op = f(self, name)?;
        self.push(op, 1)?;
        self.advance()?;
        self.expect(")")?;
        Ok(Is::Number)
    }

    fn size_of(&self, name: &str) -> Result<Op, Mistake> {
        let size = |e: Element| Op::Push(e.size() as i64);
        match self.names.find(name).map(|(number, n)| (number, n.meaning)) {
            Some((_, Meaning::Tensor(ElementOf::Fixed(element)))) => Ok(size(element)),
            Some((_, Meaning::Tensor(ElementOf::Word(word)))) => Ok(Op::SizeOf(word)),
            Some((number, Meaning::Word { elements: true })) => Ok(Op::SizeOf(number)),
            Some(_) => Err(self.mistake(format!("'{name}' is no tensor and no type, so it has no sizeof"))),
            None => Element::of(name).map(size).ok_or_else(|| self.unknown(name)),
        }
    }

    fn align(&self, name: &str) -> Result<Op, Mistake> {
        match self.names.find(name).map(|(number, n)| (number, n.meaning)) {
            Some((number, Meaning::Tensor(_))) => Ok(Op::Load(number)),
            Some(_) => Err(self.mistake(format!("'{name}' is no tensor, so it has no align"))),
            None => Err(self.unknown(name)),
        }
    }

    fn unknown(&self, name: &str) -> Mistake {
        self.mistake(format!("nothing is named '{name}'"))
    }

    fn name(&mut self, name: &str) -> Result<Is, Mistake> {
        let (op, is) = match self.names.find(name).map(|(number, n)| (number, n.meaning)) {
            Some((number, Meaning::Number)) => (Op::Load(number), Is::Number),
            Some((number, Meaning::Word { .. })) => (Op::Load(number), Is::Word),
            Some((_, Meaning::Tensor(_))) => {
                return Err(self.mistake(format!("'{name}' is a tensor: ask for its align or its sizeof")));
            }
            Some((_, Meaning::Float)) => {
                return Err(self.mistake(format!("'{name}' is no integer, and expressions are of integers")));
            }
            None => {
                let word = self.names.find_word(name).ok_or_else(|| self.unknown(name))?;
                (Op::Push(word), Is::Word)
            }
        };
        self.push(op, 1)?;
        self.advance()?;
        Ok(is)
    }
}
