//! The service: joins device, store and search behind one call.
//!
//! [`Engine`] holds one device and one cache. A family's handle launches what a slot holds; where it holds nothing,
//! the engine finds a kernel (memory, disk, compiled ahead of time, compiled), and later calls load a pointer.

mod builder;
mod choices;
pub(crate) mod extensions;
mod forked;
mod handle;
pub(crate) mod kernels;
mod locked;
mod lookup;
mod missing;
mod policy;
mod priors;
pub(crate) mod resolve;
mod room;
pub(crate) mod shared;
mod single_flight;
pub(crate) mod slots;
mod stats;
pub(crate) mod throttle;
mod tuning;
mod watch;
mod worker;

pub use builder::Builder;
pub use choices::ChoiceMeta;
pub use handle::Engine;
pub use kernels::ArtifactMeta;
pub(crate) use locked::read_lock;
pub use missing::Missing;
pub use policy::{Progress, Tuning};
pub use stats::Stats;
#[cfg(test)]
pub(crate) use worker::QUIET;
