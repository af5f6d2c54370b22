//! A cache on its way to other machines: one file, signed, that is put where they all can get it.
//!
//! [`pack`] is the file and what reads it, [`select`] says which entries go in one, [`signature`] who made it, [`install`] puts it where
//! engines look, [`oci`] makes an image of it. Nothing here is asked by an engine: what is installed is a folder like any
//! other that is only read.

pub mod index;
pub mod install;
pub mod oci;
pub mod pack;
pub mod select;
pub mod signature;

pub use index::{Index, Item};
pub use install::{Accept, Installed, Target};
pub use pack::Pack;
pub use signature::{PublicKey, SecretKey, Signed};
