//! Autotuning JIT service for rotary position embedding kernels.

pub mod device;
pub mod error;
pub mod jit;
pub mod rope;
pub mod store;
pub mod tune;

pub use error::{Error, ErrorKind, Result};
pub use rope::{DType, Direction, Layout, PairStyle, PositionForm, RopeSpec, Rounding, TableForm, TableWidth};
