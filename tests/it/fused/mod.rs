//! RoPE with its neighbours against the plain reference, to the bit: a norm before or after it, its gradient, a cache, fp8,
//! pairs that move. On the host device, which needs a C++ compiler; cases and what is expected of them are for any device.

mod append;
mod arguments;
mod data;
mod division;
mod expected;
mod faults;
mod gradient;
mod norm;
mod reference;
mod run;
mod vectors;

pub use data::{Case, Data};
pub use run::assert_right;
