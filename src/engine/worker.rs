//! Background tuning: one thread, one queue, started when there is something to tune.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::{RopeState, Shared, resolve};
use crate::jit::{Bucket, Class};

struct Job {
    state: Arc<RopeState>,
    bucket: Bucket,
    class: Class,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    /// The thread works on a job.
    busy: bool,
    thread: Option<JoinHandle<()>>,
}

/// The background thread of an engine; dropping it cancels what runs.
pub(super) struct Worker {
    shared: Arc<Shared>,
    queue: Arc<(Mutex<Queue>, Condvar)>,
    stop: Arc<AtomicBool>,
}

impl Worker {
    pub fn new(shared: &Arc<Shared>) -> Self {
        Self { shared: Arc::clone(shared), queue: Arc::default(), stop: Arc::default() }
    }

    /// Queues a tuning run and starts the thread if there is none.
    pub fn enqueue(&self, state: Arc<RopeState>, bucket: Bucket, class: Class) {
        let mut queue = lock(&self.queue.0);
        queue.jobs.push_back(Job { state, bucket, class });
        if queue.thread.is_none() {
            let (shared, jobs, stop) = (Arc::clone(&self.shared), Arc::clone(&self.queue), Arc::clone(&self.stop));
            let thread = std::thread::Builder::new().name("ropejit-tuning".into());
            match thread.spawn(move || work(&shared, &jobs, &stop)) {
                Ok(thread) => queue.thread = Some(thread),
                Err(e) => tracing::warn!("no background tuning, its thread cannot be started: {e}"),
            }
        }
        self.queue.1.notify_all();
    }

    /// Waits until the queue is empty and nothing runs.
    pub fn wait(&self) {
        let mut queue = lock(&self.queue.0);
        while queue.thread.is_some() && (queue.busy || !queue.jobs.is_empty()) {
            queue = self.queue.1.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        let thread = lock(&self.queue.0).thread.take();
        self.queue.1.notify_all();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the background tuning thread has panicked");
        }
    }
}

fn lock(queue: &Mutex<Queue>) -> MutexGuard<'_, Queue> {
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}

fn work(shared: &Shared, (queue, changed): &(Mutex<Queue>, Condvar), stop: &AtomicBool) {
    loop {
        let job = {
            let mut queue = lock(queue);
            loop {
                if stop.load(Relaxed) {
                    return;
                }
                match queue.jobs.pop_front() {
                    Some(job) => {
                        queue.busy = true;
                        break job;
                    }
                    None => queue = changed.wait(queue).unwrap_or_else(PoisonError::into_inner),
                }
            }
        };
        let _done = Done { queue, changed };
        match resolve::settle(shared, &job.state, job.bucket, job.class, stop) {
            Ok(plan) => job.state.slot(job.bucket, job.class).plan.store(Some(Arc::new(plan))),
            Err(_) if stop.load(Relaxed) => {}
            Err(e) => tracing::warn!("not tuned, what answered first serves on: {e}"),
        }
    }
}

/// Says that a job is over, however it ended: those who wait must not wait for ever.
struct Done<'a> {
    queue: &'a Mutex<Queue>,
    changed: &'a Condvar,
}

impl Drop for Done<'_> {
    fn drop(&mut self) {
        let mut queue = lock(self.queue);
        queue.busy = false;
        if std::thread::panicking() {
            queue.thread = None; // nobody works any more; the next job starts another thread
        }
        self.changed.notify_all();
    }
}
