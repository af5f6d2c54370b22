//! The service: joins device, store and search behind one call.
//!
//! [`Engine`] holds one device and one cache. A family's handle launches what a slot holds; where it holds nothing,
//! `Engine::resolve` finds a kernel (memory, disk, compiled ahead of time, compiled), and later calls load a pointer.

mod builder;
mod choices;
pub(crate) mod extensions;
pub(crate) mod kernels;
mod locked;
mod lookup;
mod policy;
mod priors;
mod resolve;
pub(crate) mod shared;
mod single_flight;
pub(crate) mod slots;
mod stats;
pub(crate) mod throttle;
mod tuning;
mod worker;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use shared::Shared;
use slots::Slots;
use worker::Worker;

use crate::device::{Device, Facts, Stream};
use crate::error::Result;
use crate::service::family::{Config, Plan, Problem};
use crate::store::Store;

pub use builder::Builder;
pub use choices::ChoiceMeta;
pub use kernels::ArtifactMeta;
pub(crate) use locked::read_lock;
pub use policy::{Progress, Tuning};
pub(crate) use resolve::Prepared;
pub use stats::Stats;
#[cfg(test)]
pub(crate) use worker::QUIET;

/// One device, one cache. Cheap to clone; background work ends when the last clone and the last handle are dropped.
#[derive(Clone)]
pub struct Engine {
    // Dropped first: it waits for background work, which uses the rest.
    worker: Arc<Worker>,
    shared: Arc<Shared>,
}

impl Engine {
    /// From now on, anything that is not loaded or cached is an error, as under [`Tuning::Frozen`]. Tuning that is queued
    /// goes on.
    pub fn freeze(&self) {
        self.shared.frozen.store(true, Ordering::Relaxed);
    }

    /// Waits until no tuning is queued or running in the background. What was put off because memory is low is not waited
    /// for.
    pub fn wait_tuned(&self) {
        self.worker.wait();
    }

    /// What it has done.
    pub fn stats(&self) -> Stats {
        self.shared.stats()
    }

    /// What is known of its device.
    pub fn facts(&self) -> &Facts {
        self.shared.device.facts()
    }

    /// Its device.
    pub fn device(&self) -> &Arc<dyn Device> {
        &self.shared.device
    }

    /// Its store.
    pub fn store(&self) -> &dyn Store {
        self.shared.store.as_ref()
    }

    /// What its handles share.
    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// The first call of a problem: fills its slot and returns what is in it. What is left to do follows in the background.
    ///
    /// # Errors
    /// When no kernel can be had.
    pub(crate) fn resolve(
        &self,
        problem: &Arc<dyn Problem>,
        slots: &Arc<Slots>,
        stream: Stream<'_>,
        tuning: Tuning,
    ) -> Result<Arc<Plan>> {
        let (plan, left) = resolve::resolve(&self.shared, slots, problem.as_ref(), stream, tuning)?;
        if left {
            self.tune_in_background(problem, slots);
        }
        Ok(plan)
    }

    /// Queues a tuning.
    pub(crate) fn tune_in_background(&self, problem: &Arc<dyn Problem>, slots: &Arc<Slots>) {
        self.worker.enqueue(Arc::clone(problem), Arc::clone(slots));
    }

    /// Makes sure that calls of a problem find everything in the cache; `slots` take what was tuned, where the device runs.
    ///
    /// # Errors
    /// When nothing can be compiled, the device fails or has too little free memory to tune in.
    pub(crate) fn prewarm_problem(
        &self,
        problem: &dyn Problem,
        slots: Option<&Slots>,
        tune: bool,
    ) -> Result<Vec<Prepared>> {
        resolve::prewarm(&self.shared, slots, problem, tune)
    }

    /// The config that the engine's lock file names for a problem, if it can be read, and the file's line that does.
    pub fn locked_config(&self, problem: &dyn Problem) -> Option<(Config, String)> {
        let line = self.shared.lock.as_ref()?.decides(&self.shared, problem)?;
        Some((line.named(problem)?, line.at()))
    }

    /// Ends background work and waits for that.
    pub(crate) fn close(&self) {
        self.worker.close();
    }
}
