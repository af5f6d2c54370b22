//! Rotary position embeddings: the first family.

pub(crate) mod ahead_of_time;
mod angles;
mod handle;
mod in_engine;
pub(crate) mod launch;
pub(crate) mod lines;
pub mod params;
mod prewarm;
mod problem;
mod reference_kernel;
mod trial;

pub use angles::Angles;
pub use handle::{Rope, Serving};
pub use prewarm::Prewarmed;
pub use problem::{choice_fields, problem};

/// The family's name, as keys have it.
pub(crate) const NAME: &str = "rope";

#[cfg(test)]
mod background_tests;
