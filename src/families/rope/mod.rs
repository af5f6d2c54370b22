//! Rotary position embeddings: the first family.

pub(crate) mod ahead_of_time;
mod angles;
mod archs;
pub mod args;
mod beside;
mod fused;
mod handle;
mod in_engine;
mod kept_angles;
pub mod known_head;
pub(crate) mod launch;
pub(crate) mod lines;
pub mod params;
pub mod portable;
mod prewarm;
pub mod prior;
mod problem;
mod reference_kernel;
pub mod render;
pub mod shipped;
pub(crate) mod text;
mod trial;
mod tunables;
pub mod variant;

pub use angles::Angles;
pub use handle::{Rope, Serving};
pub use prewarm::{Prewarmed, prepared_classes};
pub(crate) use problem::NAME;
pub use problem::{choice_fields, problem};

#[cfg(test)]
mod background_tests;
