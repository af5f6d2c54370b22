//! The engine itself: one device and one cache.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::policy::Tuning;
use super::resolve::{self, Prepared};
use super::shared::Shared;
use super::slots::Slots;
use super::stats::Stats;
use super::worker::{self, Worker};
use crate::error::Result;
use crate::service::device::{Device, Facts, Stream};
use crate::service::family::{Config, Plan, Problem};
use crate::service::key::KeyFields;
use crate::service::store::Store;

/// One device, one cache. Cheap to clone; background work ends when the last clone and the last handle are dropped, or when
/// the process ends.
///
/// In a child of `fork()` an engine of the parent goes on serving on the processor: with what is loaded, and for the rest as
/// an engine that was built there, with counters of its own and nothing queued. A GPU cannot be used in a child of a process
/// that has opened it: calls are errors that say so.
#[derive(Clone)]
pub struct Engine {
    // Dropped first: it waits for background work, which uses the rest.
    worker: Arc<Worker>,
    shared: Arc<Shared>,
}

impl Engine {
    pub(super) fn new(shared: &Arc<Shared>, is_gpu: bool) -> Self {
        let worker = Arc::new(Worker::new(shared));
        worker::close_at_exit(&worker, is_gpu);
        Self { worker, shared: Arc::clone(shared) }
    }

    /// From now on, anything that is not loaded or cached is an error, as under [`Tuning::Frozen`]. Tuning that is queued
    /// goes on.
    pub fn freeze(&self) {
        self.shared.frozen.store(true, Ordering::Relaxed);
        if let Some(engine) = self.stand_in_so_far() {
            engine.freeze();
        }
    }

    /// Waits until no tuning is queued or running in the background. What was put off because memory is low is not waited
    /// for.
    pub fn wait_tuned(&self) {
        self.worker.wait();
    }

    /// What it has done.
    pub fn stats(&self) -> Stats {
        if self.is_parents() {
            return self.stand_in_so_far().map_or_else(Stats::default, Self::stats);
        }
        self.shared.stats()
    }

    /// Choices that it has written to its store.
    pub fn choices_written(&self) -> u64 {
        self.shared.counters.choices_written.get()
    }

    /// What is known of its device.
    pub fn facts(&self) -> &Facts {
        self.shared.device.facts()
    }

    /// Its device.
    pub fn device(&self) -> &Arc<dyn Device> {
        self.stand_in().ok().flatten().map_or(&self.shared.device, |engine| &engine.shared.device)
    }

    /// Its store.
    pub fn store(&self) -> &dyn Store {
        self.stand_in().ok().flatten().map_or(&self.shared.store, |engine| &engine.shared.store).as_ref()
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

    /// The keys that a look-up of a problem tries in turn, with the fields they hash: the choice for this device, and the
    /// choice for its architecture, which is the only one where the device is not there.
    pub fn choice_keys(&self, problem: &dyn Problem) -> Vec<KeyFields> {
        let choices = &self.shared.choices;
        let [own, arch] = choices.fields(problem);
        if self.shared.device.runs() { vec![own, arch] } else { vec![arch] }
    }

    /// The config that the engine's lock file names for a problem, if it can be read, and the file's line that does.
    pub fn locked_config(&self, problem: &dyn Problem) -> Option<(Config, String)> {
        let line = self.shared.lock.as_ref()?.decides(self.shared.device.as_ref(), problem)?;
        Some((line.named(problem)?, line.at()))
    }

    /// Ends background work, and waits for the end: what runs is cancelled, what is queued is not begun. Calls go on with what
    /// is loaded; nothing is compiled or tuned any more. It happens by itself when the last handle is dropped, and when a
    /// process ends that does so by `exit` or by returning from `main`.
    pub fn close(&self) {
        self.worker.close();
    }
}
