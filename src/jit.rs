//! What stands between a spec and a kernel: the service's keys, records and lock files, and RoPE's variants and sources.
//!
//! [`variant`] holds the tunables and their legal space, [`render`] the source, [`key`] all that is hashed, [`record`] what a tuning
//! run leaves behind, [`lock`] choices as a text to commit, [`shipped`] (with [`portable`]) and [`prior`] the kernels and choices that the crate
//! ships.

pub use crate::families::rope::variant::{self, Class, Hint, Variant};
pub use crate::families::rope::{known_head, portable, prior, render, shipped};
pub use crate::service::bucket::Bucket;
pub use crate::service::device::{Abilities, Identity};
pub use crate::service::key::{self, Key, KeyFields};
pub use crate::service::lock;
pub use crate::service::record::{self, Candidate, Prior, Record};
