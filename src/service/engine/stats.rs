//! What an engine has done, counted.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use serde::Serialize;

use super::watch;
use crate::error::Result;
use crate::service::store::Miss;

/// What an engine has done since it was built.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Stats {
    /// Kernels compiled.
    pub compiles: u64,
    /// Tuning runs finished.
    pub tunings: u64,
    /// Choices taken from those that come with the crate, measured on another GPU of the model.
    pub priors: u64,
    /// Calls served by a kernel that was loaded already.
    pub memory_hits: u64,
    /// Kernels read from the cache folder.
    pub disk_hits: u64,
    /// Kernels taken from those shipped with the crate.
    pub embedded_hits: u64,
    /// Times that it waited while another process compiled or tuned the same.
    pub waited: u64,
    /// Entries that were there but could not be trusted.
    pub unusable_entries: u64,
    /// Entries that could not be kept.
    pub failed_writes: u64,
    /// Calls that waited for a compiler long after the engine's first call ([`Builder::late_after`](super::Builder::late_after)).
    pub late_compiles: u64,
}

/// A counter that threads share.
#[derive(Default)]
pub struct Counter(AtomicU64, Option<&'static str>);

impl Counter {
    /// One that the metric of this name counts too.
    const fn watched(metric: &'static str) -> Self {
        Self(AtomicU64::new(0), Some(metric))
    }

    pub fn add(&self) {
        self.0.fetch_add(1, Relaxed);
        if let Some(metric) = self.1 {
            watch::count(metric);
        }
    }

    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// The counters behind [`Stats`]; the hits in memory are counted where calls are made.
pub struct Counters {
    pub compiles: Counter,
    pub tunings: Counter,
    pub priors: Counter,
    pub disk_hits: Counter,
    pub embedded_hits: Counter,
    pub waited: Counter,
    pub unusable_entries: Counter,
    pub failed_writes: Counter,
    pub late_compiles: Counter,
    pub choices_written: Counter,
    told_failures: Mutex<BTreeSet<String>>,
    told: AtomicBool,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            compiles: Counter::watched("ropejit_compiles_total"),
            tunings: Counter::watched("ropejit_tunings_total"),
            priors: Counter::watched("ropejit_priors_total"),
            disk_hits: Counter::watched("ropejit_disk_hits_total"),
            embedded_hits: Counter::watched("ropejit_embedded_hits_total"),
            waited: Counter::watched("ropejit_waited_total"),
            unusable_entries: Counter::watched("ropejit_unusable_entries_total"),
            failed_writes: Counter::watched("ropejit_failed_writes_total"),
            late_compiles: Counter::watched("ropejit_late_compiles_total"),
            choices_written: Counter::default(),
            told_failures: Mutex::default(),
            told: AtomicBool::new(false),
        }
    }
}

impl Counters {
    /// Tells of an entry that could not be used; one that is not there is no news.
    pub fn note_miss(&self, miss: &Miss) {
        if let Miss::Unusable { path, why } = miss {
            self.unusable_entries.add();
            self.warn_once(format!("{}: {why}; the cache entry is not used", path.display()));
        }
    }

    /// Warns of a failure that is met again and again, once.
    pub fn warn_once(&self, failure: String) {
        let mut told = self.told_failures.lock().unwrap_or_else(PoisonError::into_inner);
        if !told.contains(&failure) {
            tracing::warn!("{failure}");
            told.insert(failure);
        }
    }

    /// Warnings so far that contain a text.
    #[cfg(test)]
    pub fn told(&self, part: &str) -> usize {
        let told = self.told_failures.lock().unwrap_or_else(PoisonError::into_inner);
        told.iter().filter(|failure| failure.contains(part)).count()
    }

    /// Takes note of an entry that could not be kept: the work was done all the same. Warns once.
    pub fn keep(&self, written: Result<()>) {
        if let Err(e) = written {
            self.failed_writes.add();
            if !self.told.swap(true, Relaxed) {
                tracing::warn!("the cache cannot be written to, later processes will repeat this work: {e}");
            }
        }
    }

    pub fn snapshot(&self, memory_hits: u64) -> Stats {
        Stats {
            compiles: self.compiles.get(),
            tunings: self.tunings.get(),
            priors: self.priors.get(),
            memory_hits,
            disk_hits: self.disk_hits.get(),
            embedded_hits: self.embedded_hits.get(),
            waited: self.waited.get(),
            unusable_entries: self.unusable_entries.get(),
            failed_writes: self.failed_writes.get(),
            late_compiles: self.late_compiles.get(),
        }
    }
}
