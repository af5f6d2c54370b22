//! From a spec to the text of a kernel and the keys it is kept under. Pure: no I/O, no CUDA.
//!
//! [`variant`] holds the tunables and their legal space, [`render`] the source, [`key`] all that is hashed, [`record`]
//! what a tuning run leaves behind.

pub mod key;
pub mod record;
pub mod render;
pub mod variant;

pub use key::{Key, KeyFields};
pub use record::{Candidate, Record};
pub use variant::{Abilities, Bucket, Class, Hint, Variant};
