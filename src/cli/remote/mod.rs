//! Packs over object stores: `ropejit push`, `ropejit pull`. The engine has no network; this is the command's alone.
//!
//! ```text
//! <URL>/v1/<templates>/<arch>/
//!   <sha256>.pack            named by its digest, never changed
//!   <sha256>.pack.minisig    its signature
//!   latest                   which pack to pull; signed, written last
//! ```
//!
//! [`place`] reads and writes objects within a time limit, [`latest`] is the text of that object, [`trust`] whose signatures count, [`reach`] where objects are and how long
//! to wait for them.

mod latest;
mod place;
mod pull;
mod push;
mod reach;
mod trust;

pub use pull::{Order, Pull};
pub use push::{Push, publish};
pub use reach::Patience;
pub use trust::{Accepted, Signing};
