//! All integration tests, one binary. What a test needs is in its module's name: `pure`, `nvrtc`, `host`, `gpu`, `cli`,
//! `faults`.

mod allocations;
mod angles;
mod cases;
mod chains;
#[cfg(all(feature = "cli", unix))]
mod cli;
mod eager;
mod engine;
#[cfg(all(feature = "cli", unix))]
mod faults;
mod gpu;
mod host;
mod nvrtc;
mod structure;
