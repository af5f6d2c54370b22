//! The domain, pure: what a rotary position embedding is, without saying how or where it is computed.
//!
//! No I/O and no CUDA here. [`RopeSpec`] states one computation, [`Layout`] how a tensor lies in memory, [`mod@reference`]
//! computes it in plain Rust, [`scaling`] and [`model`] turn a model's configuration into frequencies and a spec, [`library`]
//! says what other libraries' calls compute.

mod append;
mod dtype;
mod e4m3;
mod forms;
mod layout;
pub mod library;
pub mod model;
mod norm;
pub mod reference;
pub mod scaling;
mod spec;
pub(crate) mod text;

pub use append::{Append, Fp8, ScaleUse, SlotForm};
pub use dtype::DType;
pub use forms::{Direction, PairStyle, PositionForm, RotaryPart, Rounding, TableForm, TableWidth};
pub use layout::Layout;
pub use norm::{Flavour, Norm, Rsqrt, SumOrder};
pub use spec::{MAX_HEAD_DIM, RopeSpec, weight_tiles};
