//! Where calls find their kernel: a slot for each bucket and layout class.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::{ArcSwapOption, Guard};

use super::stats::Counter;
use crate::service::bucket::Bucket;
use crate::service::family::{Plan, Problem, Same};

/// The slots of one spec.
pub struct Slots {
    classes: usize,
    /// By bucket, then by class.
    all: Box<[Slot]>,
    /// Plans that others have replaced, kept since a call may be launching one.
    replaced: Mutex<Vec<Arc<Plan>>>,
    /// Calls served by a filled slot.
    hits: Counter,
}

/// Where a call of one bucket and class finds its kernel.
#[derive(Default)]
pub struct Slot {
    plan: ArcSwapOption<Plan>,
    /// Held while the slot is filled, so that it is filled once.
    filling: Mutex<()>,
}

impl Slot {
    /// What serves, if anything does: one atomic load.
    pub fn plan(&self) -> Guard<Option<Arc<Plan>>> {
        self.plan.load()
    }

    /// What serves, to keep.
    pub fn plan_to_keep(&self) -> Option<Arc<Plan>> {
        self.plan.load_full()
    }

    /// While this is held nobody else fills the slot.
    pub fn fill(&self) -> MutexGuard<'_, ()> {
        self.filling.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slots {
    pub(super) fn new(classes: usize) -> Self {
        let all = (0..Bucket::COUNT * classes).map(|_| Slot::default()).collect();
        Self { classes, all, replaced: Mutex::default(), hits: Counter::default() }
    }

    /// The slot of a bucket and the class of this number.
    pub fn at(&self, bucket: Bucket, class: usize) -> &Slot {
        &self.all[bucket.index() * self.classes + class]
    }

    /// The slot of a problem.
    pub fn of(&self, problem: &dyn Problem) -> &Slot {
        self.at(problem.bucket(), problem.class_index())
    }

    /// A call was served by what it found.
    pub fn note_hit(&self) {
        self.hits.add();
    }

    /// Calls served by what they found.
    pub fn hits(&self) -> u64 {
        self.hits.get()
    }

    /// The plan of any bucket of a class: every kernel of it is correct for every size.
    pub fn any_of_class(&self, class: usize) -> Option<Arc<Plan>> {
        self.all.iter().skip(class).step_by(self.classes).filter_map(Slot::plan_to_keep).last()
    }

    /// From now on `plan` serves, unless results would no longer be the same.
    pub(crate) fn publish(&self, problem: &dyn Problem, plan: Arc<Plan>) {
        let slot = self.of(problem);
        if problem.same() != Same::Bits && slot.plan().is_some() {
            return;
        }
        // It stays loaded until the process ends: whether a call is captured into a graph, which then launches it at any time, is
        // not looked at when it is made.
        plan.kernel.keep();
        let replaced = slot.plan.swap(Some(plan));
        self.replaced.lock().unwrap_or_else(PoisonError::into_inner).extend(replaced);
    }

    /// How many plans others have replaced.
    #[cfg(test)]
    pub fn replaced(&self) -> usize {
        self.replaced.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}
