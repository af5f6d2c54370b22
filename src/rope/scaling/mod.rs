//! From `rope_parameters` to frequencies: what every scaling type of `config.json` does to `inv_freq` and to cos and sin.
//!
//! The formulas are those of the papers as transformers evaluates them, in the same precision and order. Given the powers
//! of θ that `PyTorch` computes, 1200 random parameter sets (all types but `proportional`) agree with transformers 5.23 in
//! every bit. `PyTorch`'s vectorised f32 `pow` is not correctly rounded, though, and differs between machines; ours is
//! computed in f64 and rounded once. That makes 0 or 1 ulp in all 42 configurations of `tests/data`. It can be
//! more where a subtraction cancels, at the beginning of `llama3`'s blend (6 ulp seen in random sets).
//! What changes with the sequence length, `dynamic` and `longrope`, is a function of it here and never a state.
//!
//! On purpose not here: reading JSON (that is [`model`](super::model)), and positions of several axes beyond saying which
//! axis a pair follows ([`Mrope`]).

mod angle;
mod frequencies;
mod mrope;
mod parameters;
mod table;

pub use angle::TableMode;
pub(crate) use angle::cos_sin;
pub use mrope::Mrope;
pub use parameters::{Frequencies, QueryScaling, RopeParameters, Scaling};
pub use table::cos_sin_table;
