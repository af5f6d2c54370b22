//! Autotuning JIT service for rotary position embedding kernels.

pub mod args;
pub mod device;
pub mod engine;
pub mod error;
pub mod jit;
mod plan;
pub mod rope;
pub mod store;
pub mod tune;

pub use args::{Args, Input, Operand, PositionIds, Positions, Tables, Tensor};
pub use device::{DeviceChoice, Stream};
pub use engine::{Engine, Rope, Stats, Tuning};
pub use error::{Error, ErrorKind, Result};
pub use plan::Origin;
pub use rope::{DType, Direction, Layout, PairStyle, PositionForm, RopeSpec, Rounding, TableForm, TableWidth};
