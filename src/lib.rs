//! Autotuning JIT service for rotary position embedding kernels.

pub mod error;
pub mod rope;

pub use error::{Error, ErrorKind, Result};
pub use rope::{DType, Direction, PairStyle, PositionForm, RopeSpec, Rounding, TableForm, TableWidth};
