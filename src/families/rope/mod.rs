//! Rotary position embeddings: the first family.

pub(crate) mod ahead_of_time;
mod angles;
mod handle;
mod in_engine;
mod kept_angles;
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
pub(crate) use problem::NAME;
pub use problem::{choice_fields, problem};

#[cfg(test)]
mod background_tests;
