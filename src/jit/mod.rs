//! From a spec to the text of a kernel and the keys it is kept under. Pure: no I/O, no CUDA.
//!
//! [`variant`] holds the tunables and their legal space, [`render`] the source, [`key`] all that is hashed, [`record`]
//! what a tuning run leaves behind, [`lock`] choices as a text to commit, [`portable`] and [`prior`] the
//! kernels and choices that the crate ships.

pub mod key;
pub mod lock;
pub mod portable;
pub mod prior;
pub mod record;
pub mod render;
pub(crate) mod text;
pub mod variant;

pub use key::{Key, KeyFields};
pub use record::{Candidate, Prior, Record};
pub use variant::{Abilities, Bucket, Class, Hint, Variant};
