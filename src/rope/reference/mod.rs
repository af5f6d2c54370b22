//! RoPE and its neighbours in plain Rust: the truth that kernels are checked against, and what serves where nothing can be
//! compiled.
//!
//! [`rotate_f64`] is the mathematics of a pair, [`rotate`] the rounding contracts, operation by operation, so that a kernel's
//! bits can be predicted. [`forward`] and [`backward`] do a whole head, with its norm; [`weight_gradient`] adds up what heads
//! give to the gradient of a weight; [`fp8`], [`slot_of`] and [`slot_in_pages`] say what a cache holds, and where.

mod append;
mod head;
mod norm;
mod pair;

pub use append::{Place, fp8, slot_in_pages, slot_of};
pub use head::{Backward, Forward, backward, forward, turn};
pub use norm::{apply_weight, mean_of_squares, root, sum, weight_gradient};
pub use pair::{Pair, first_turning, pair, pair_in, rotate, rotate_f64, sequence_of};
