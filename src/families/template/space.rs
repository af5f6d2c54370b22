//! The candidates: the product of the tunables' lists, but for what a rule forbids; and classes, which are what rules know of
//! a call's layout.

use std::fmt::Write as _;

use super::description::{Description, Rule};
use super::expr::Fault;
use super::names::{Meaning, Section, Values};
use crate::error::{Error, ErrorKind, Result};

/// Candidates at most, and combinations at most before rules have forbidden any.
pub const MOST: usize = 64;
const MOST_COMBINATIONS: u64 = 1 << 16;

/// The widest alignment that is told apart, in bytes: no access of a thread is wider.
pub const WIDEST: i64 = 32;

/// One value for each tunable, in their order.
pub type Assignment = Box<[i64]>;

impl Description {
    /// A line of its file, as errors name it.
    pub fn at(&self, line: usize) -> String {
        format!("{}:{line}", self.path)
    }

    /// Combinations of the tunables' values. Quick, however many they are.
    pub fn combinations(&self) -> u128 {
        self.tune.iter().fold(1u128, |n, t| n.saturating_mul(t.values.len() as u128))
    }

    /// What `[tune]` says is wrong without a spec: too many combinations.
    pub fn check_combinations(&self) -> Result<()> {
        let n = self.combinations();
        if n <= u128::from(MOST_COMBINATIONS) {
            return Ok(());
        }
        let what = format!("[tune]: its lists make {n} combinations, and {MOST} candidates is the most");
        Err(Error::new(ErrorKind::Template, what)
            .subject_is(self.at(self.tune_line))
            .hint("shorten the lists, or forbid more by 'where'"))
    }

    /// The default's values.
    pub fn default_assignment(&self) -> Assignment {
        self.tune.iter().map(|t| t.default).collect()
    }

    /// Writes an assignment among the values.
    pub fn assign(&self, values: &mut Values, assignment: &[i64]) {
        let start = self.spec.len();
        values[start..start + assignment.len()].copy_from_slice(assignment);
    }

    /// The first rule that forbids what the values are.
    ///
    /// # Errors
    /// A rule that has no value.
    pub fn forbids(&self, values: &Values) -> Result<Option<&Rule>, (&Rule, Fault)> {
        for rule in &self.rules {
            if rule.expr.eval(values).map_err(|fault| (rule, fault))? == 0 {
                return Ok(Some(rule));
            }
        }
        Ok(None)
    }

    /// The legal candidates for a spec and alignments, which are among the values; the default first.
    ///
    /// # Errors
    /// When the default is illegal, a rule has no value, or there are too many.
    pub fn space(&self, values: &Values) -> Result<Vec<Assignment>> {
        let mut values = *values;
        let default = self.default_assignment();
        let mut all = Vec::new();
        let mut legal = 0;
        let mut at = vec![0usize; self.tune.len()];
        loop {
            let assignment: Assignment = at.iter().zip(&self.tune).map(|(i, t)| t.values[*i]).collect();
            self.assign(&mut values, &assignment);
            let forbidden = self.forbids(&values).map_err(|(rule, fault)| self.no_value(rule, fault, &assignment))?;
            match forbidden {
                None => {
                    legal += 1;
                    if assignment != default && legal <= MOST + 1 {
                        all.push(assignment);
                    }
                }
                Some(rule) if assignment == default => return Err(self.illegal_default(rule, &values)),
                Some(_) => {}
            }
            // The last list turns fastest.
            let Some(turns) = (0..at.len()).rev().find(|&i| at[i] + 1 < self.tune[i].values.len()) else { break };
            at[turns] += 1;
            at[turns + 1..].fill(0);
        }
        if legal > MOST {
            let what = format!("[tune]: {legal} candidates are legal, and {MOST} is the most");
            let error = Error::new(ErrorKind::Template, what).subject_is(self.at(self.tune_line));
            return Err(error.hint("shorten the lists, or forbid more by 'where'"));
        }
        all.insert(0, default);
        Ok(all)
    }

    fn no_value(&self, rule: &Rule, fault: Fault, assignment: &[i64]) -> Error {
        let what = format!("[tune] where: '{}' {fault} for {}", rule.expr.text(), self.assignment_text(assignment));
        Error::new(ErrorKind::Template, what).subject_is(self.at(rule.line))
    }

    fn illegal_default(&self, rule: &Rule, values: &Values) -> Error {
        let mut with = String::new();
        let mut reads: Vec<u8> = rule.expr.reads().collect();
        reads.sort_unstable();
        reads.dedup();
        for name in reads {
            let (named, value) = (self.names.get(name), values[usize::from(name)]);
            let text = match named.meaning {
                Meaning::Word { .. } => format!("{} = {}", named.name, self.names.word_text(value)),
                Meaning::Tensor(_) => format!("align({}) = {value}", named.name),
                _ => format!("{} = {value}", named.name),
            };
            let _ = write!(with, "{}{text}", if with.is_empty() { "" } else { ", " });
        }
        let what = format!("[tune] default: '{}' forbids it where {with}", rule.expr.text());
        Error::new(ErrorKind::Template, what)
            .subject_is(self.at(rule.line))
            .hint("choose a default that is legal for every call: it answers the first one")
    }

    /// `threads=256 vec=1`.
    pub fn assignment_text(&self, assignment: &[i64]) -> String {
        let mut text = String::new();
        for (tunable, &value) in self.tune.iter().zip(assignment) {
            let space = if text.is_empty() { "" } else { " " };
            let _ = if tunable.words {
                write!(text, "{space}{}={}", tunable.name, self.names.word_text(value))
            } else {
                write!(text, "{space}{}={value}", tunable.name)
            };
        }
        if text.is_empty() { "default".into() } else { text }
    }

    /// The names of tensors whose alignment a rule reads.
    pub fn aligned(&self) -> Vec<u8> {
        let mut all: Vec<u8> = self.rules.iter().flat_map(|r| r.expr.reads()).collect();
        all.retain(|n| self.names.get(*n).section == Section::Args);
        all.sort_unstable();
        all.dedup();
        all
    }

    /// The least alignments with the same candidates: calls that no rule tells apart share a class, and so a tuning.
    pub fn canonical_class(&self, values: &Values) -> Result<Values> {
        let space = self.space(values)?;
        let mut least = *values;
        for name in self.aligned() {
            let slot = usize::from(name);
            while least[slot] > 1 {
                let mut lower = least;
                lower[slot] /= 2;
                if !self.space(&lower).is_ok_and(|s| s == space) {
                    break;
                }
                least = lower;
            }
        }
        Ok(least)
    }

    /// `x:16 y:4`: the bytes by which each tensor is aligned that a rule asks for; `any` where none needs more than one.
    pub fn class_text(&self, values: &Values) -> String {
        let told = |name: &u8| (self.names.get(*name), values[usize::from(*name)]);
        let needed = self.aligned();
        let texts: Vec<_> = needed
            .iter()
            .map(told)
            .filter(|(_, align)| *align > 1)
            .map(|(named, align)| format!("{}:{align}", named.name))
            .collect();
        if texts.is_empty() { "any".into() } else { texts.join(" ") }
    }
}

#[cfg(test)]
#[path = "space_tests.rs"]
mod tests;
