//! What all handles of an engine share.

use std::any::Any;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use once_cell::race::OnceBox;

use super::choices::Choices;
use super::extensions::Extensions;
use super::kernels::Kernels;
use super::locked::Held;
use super::policy::{OnProgress, Progress, Tuning};
use super::slots::Slots;
use super::stats::{Counters, Stats};
use crate::service::device::{Abilities, Device, DeviceChoice};
use crate::service::family::{Config, Problem};
use crate::service::store::Store;
use crate::system::fork;

/// An engine that stands in for a parent's in a child of `fork()`.
pub trait StandIn: Send + Sync {
    /// The engine.
    fn engine(&self) -> &dyn Any;
    /// Ends its background work.
    fn close(&self);
    /// Waits for its background work.
    fn wait(&self);
}

/// What all handles of an engine share.
pub struct Shared {
    pub device: Arc<dyn Device>,
    pub store: Arc<dyn Store>,
    pub choices: Choices,
    pub kernels: Kernels,
    pub counters: Arc<Counters>,
    pub(super) tuning: Tuning,
    /// Decides calls before the policy does.
    pub(super) lock: Option<Arc<Held>>,
    /// The device and the cache folder, where the builder was told and not the environment.
    pub(super) named_device: Option<DeviceChoice>,
    pub(super) named_folder: Option<PathBuf>,
    /// Whether to follow what was measured on other GPUs.
    pub(super) priors: bool,
    /// Whether kernels that were compiled ahead of time may serve.
    pub(super) ahead_of_time: bool,
    /// Set by `Engine::freeze`.
    pub(super) frozen: AtomicBool,
    /// Set when the last handle is dropped, or the process ends: background work ends.
    pub closing: Arc<AtomicBool>,
    /// Tunings that run, in whatever thread.
    pub(super) running: AtomicUsize,
    /// Of the process that has made it (`system::fork`), and the engine that stands in for it in a child of that.
    pub(super) generation: u32,
    pub(super) renewed: OnceBox<Box<dyn StandIn>>,
    pub(super) opened: Instant,
    /// So long after the first call, one that waits for a compiler is late.
    pub(super) late_after: Duration,
    /// When the first call came: milliseconds since `opened`, plus one; 0 for not yet.
    pub(super) first_call: AtomicU64,
    /// When a capture was last seen: milliseconds since `opened`, plus one; 0 for never.
    pub(super) captured: AtomicU64,
    /// Of all specs.
    pub(super) slots: Mutex<Vec<Arc<Slots>>>,
    pub extensions: Extensions,
    pub(super) on_progress: Option<OnProgress>,
}

/// What bears on which configs are legal in an engine where kernels that were compiled ahead of time may serve, or not.
pub fn abilities(device: &dyn Device, ahead_of_time: bool) -> Abilities {
    let can = device.abilities();
    Abilities { cubins: can.cubins.filter(|_| ahead_of_time), ..can }
}

impl Shared {
    pub fn tuning(&self) -> Tuning {
        if self.frozen.load(Ordering::Relaxed) { Tuning::Frozen } else { self.tuning }
    }

    /// Whether it was made by a parent of this process.
    pub fn is_parents(&self) -> bool {
        self.generation != fork::generation()
    }

    /// Takes note that somebody captures a graph.
    pub fn note_capture(&self) {
        self.captured.store(self.opened.elapsed().as_millis() as u64 + 1, Ordering::Relaxed);
    }

    /// Time since a capture was last seen.
    pub fn since_capture(&self) -> Option<Duration> {
        let seen = Duration::from_millis(self.captured.load(Ordering::Relaxed).checked_sub(1)?);
        Some(self.opened.elapsed().saturating_sub(seen))
    }

    /// Time since the engine's first call; `None` for that call, which is the first to ask.
    pub(super) fn since_first_call(&self) -> Option<Duration> {
        let now = self.opened.elapsed();
        let first =
            self.first_call.compare_exchange(0, now.as_millis() as u64 + 1, Ordering::Relaxed, Ordering::Relaxed);
        first.err().map(|ms| now.saturating_sub(Duration::from_millis(ms - 1)))
    }

    pub fn tell(&self, progress: &Progress<'_>) {
        if let Some(f) = &self.on_progress {
            f(progress);
        }
    }

    /// Slots for a spec.
    pub fn new_slots(&self, classes: usize) -> Arc<Slots> {
        let slots = Arc::new(Slots::new(classes));
        self.slots.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&slots));
        slots
    }

    pub fn stats(&self) -> Stats {
        let hits = self.slots.lock().unwrap_or_else(PoisonError::into_inner).iter().map(|slots| slots.hits()).sum();
        self.counters.snapshot(hits)
    }

    /// What bears on which configs are legal here.
    pub fn abilities(&self) -> Abilities {
        abilities(self.device.as_ref(), self.ahead_of_time)
    }

    /// The config that serves where nothing is known.
    pub fn default_config(&self, problem: &dyn Problem) -> Config {
        problem.space(self.abilities()).swap_remove(0)
    }

    /// Whether kernels that were compiled ahead of time serve a problem.
    pub fn has_ahead_of_time(&self, problem: &dyn Problem) -> bool {
        self.ahead_of_time && problem.has_ahead_of_time(self.device.as_ref(), self.abilities())
    }
}
