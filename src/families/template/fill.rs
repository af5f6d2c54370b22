//! What tensors hold while a candidate is checked and measured: the same values each time.

use super::expr::Expr;

/// How a tensor is filled.
#[derive(Debug, Clone)]
pub enum Fill {
    /// Mean zero, deviation one.
    Normal,
    /// Evenly between two numbers.
    Uniform { low: f64, high: f64 },
    /// Integers from `low` up to, but not including, `high`; with `also`, every eighth at random is that instead.
    Randint { low: Expr, high: Expr, also: Option<Expr> },
}
