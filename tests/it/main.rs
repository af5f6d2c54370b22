//! All integration tests, one binary. What a test needs is in its module's name: `pure`, `nvrtc`, `host`, `gpu`, `cli`,
//! `faults`.

mod allocations;
mod angles;
#[cfg(all(feature = "cli", unix))]
mod broken_cli;
mod cases;
mod chains;
#[cfg(all(feature = "cli", unix))]
mod cli;
mod configs;
mod eager;
mod engine;
mod environment;
#[cfg(all(feature = "cli", unix))]
mod faults;
mod fleet;
#[cfg(unix)]
mod fork;
mod fused;
#[cfg(all(feature = "cli", unix))]
mod fused_cli;
mod fused_tuning;
mod gpu;
#[cfg(all(feature = "cli", unix))]
mod hints;
mod host;
mod imports;
#[cfg(all(feature = "cli", unix))]
mod inspect_cli;
mod lock;
#[cfg(all(feature = "cli", unix))]
mod lock_cli;
mod nvrtc;
#[cfg(all(feature = "cli", unix))]
mod packs;
#[cfg(all(feature = "cli", unix))]
mod packs_cli;
mod portable;
mod positions;
mod priors;
mod structure;
mod templates;
#[cfg(all(feature = "cli", unix))]
mod templates_cli;
#[cfg(all(feature = "cli", unix))]
mod terminal;
#[cfg(all(feature = "cli", unix))]
mod untrusted_cli;
#[cfg(feature = "cli")]
mod watch;
