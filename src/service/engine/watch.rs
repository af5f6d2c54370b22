//! What an engine tells to those who watch it: counters and times for the `metrics` facade, spans for `tracing`.
//!
//! All of it is on the way of a first call. The call after that counts in its slot and tells nobody: [`Stats`](super::Stats)
//! has that count.
//!
//! | metric | kind | labels |
//! |---|---|---|
//! | `ropejit_compiles_total`, `ropejit_tunings_total`, `ropejit_priors_total`, `ropejit_disk_hits_total`, `ropejit_embedded_hits_total`, `ropejit_waited_total`, `ropejit_unusable_entries_total`, `ropejit_failed_writes_total`, `ropejit_late_compiles_total` | counter | |
//! | `ropejit_compile_seconds`, `ropejit_tune_seconds`, `ropejit_load_seconds` | histogram | `family`, `ok` |
//!
//! Spans have the histograms' names without the unit: `ropejit_compile`, `ropejit_tune`, `ropejit_load`.

use std::time::{Duration, Instant};

use crate::error::Result;
use crate::service::family::{Origin, Problem};

/// Work that is worth a span and a time.
#[derive(Debug, Clone, Copy)]
pub enum Work {
    /// One kernel is compiled.
    Compile,
    /// One problem is tuned, compiles included.
    Tune,
    /// One kernel is loaded to the device.
    Load,
}

/// Does work within its span, and tells how long it took.
pub fn timed<T>(work: Work, problem: &dyn Problem, f: impl FnOnce() -> Result<T>) -> Result<T> {
    let (family, spec, tokens) = (problem.family(), problem.spec(), problem.bucket().tokens());
    let span = match work {
        Work::Compile => tracing::info_span!("ropejit_compile", family, %spec, tokens),
        Work::Tune => tracing::info_span!("ropejit_tune", family, %spec, tokens),
        Work::Load => tracing::info_span!("ropejit_load", family, %spec, tokens),
    };
    let started = Instant::now();
    let done = span.in_scope(f);
    record(work, family, done.is_ok(), started.elapsed());
    done
}

/// Counts one more of what [`Stats`](super::Stats) counts.
#[cfg(feature = "metrics")]
pub fn count(metric: &'static str) {
    metrics::counter!(metric).increment(1);
}

#[cfg(feature = "metrics")]
fn record(work: Work, family: &str, ok: bool, took: Duration) {
    let name = match work {
        Work::Compile => "ropejit_compile_seconds",
        Work::Tune => "ropejit_tune_seconds",
        Work::Load => "ropejit_load_seconds",
    };
    let ok = if ok { "true" } else { "false" };
    metrics::histogram!(name, "family" => family.to_owned(), "ok" => ok).record(took.as_secs_f64());
}

#[cfg(not(feature = "metrics"))]
pub fn count(_: &'static str) {}

#[cfg(not(feature = "metrics"))]
fn record(_: Work, _: &str, _: bool, _: Duration) {}

/// Whether a call waited for a compiler.
pub fn has_waited(origin: Origin) -> bool {
    matches!(origin, Origin::Compiled | Origin::Tuned)
}
