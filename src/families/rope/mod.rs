//! Rotary position embeddings.

pub(crate) mod ahead_of_time;
pub mod params;
pub(crate) mod reference_kernel;
