//! Background tuning: one thread, one queue, started when there is something to tune.
//!
//! A job that cannot be done now is put off and the next is taken: where another process tunes the same, and where memory
//! is low. Dropping the worker ends it within a slice, a rest or the compile that is going on, and so does the process's end:
//! beside the driver's own, background work could crash.
//!
//! In a child of `fork()` there is no thread, and the lock of the queue may be held for ever: a parent's worker is left alone.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;

use super::resolve;
use super::shared::Shared;
use super::slots::Slots;
use super::throttle::{Beside, Throttle};
use crate::error::ErrorKind;
use crate::service::device::Stream;
use crate::service::family::Problem;

/// First calls come in bursts, those of a model's layers say: the work that one leaves begins so much later, when most are
/// through.
const BURST: Duration = Duration::from_millis(20);
/// How long a job is put off while another process tunes the same.
const TAKEN: Duration = Duration::from_millis(100);
/// How long a job is put off while memory is low. Asking costs next to nothing, but memory that is full stays so for long.
const LOW_MEMORY: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 30 });
/// So long after the last sign of a capture nobody captures any more: captures come in series, and of one only the calls
/// that find no loaded kernel are seen.
pub(crate) const QUIET: Duration = Duration::from_secs(1);

/// How long an end waits for a tuning of another thread: it looks whether it should stop after every sample.
const LAST_TUNING: Duration = Duration::from_secs(5);

struct Job {
    problem: Arc<dyn Problem>,
    slots: Arc<Slots>,
    /// When to try.
    due: Instant,
    /// Since when another process tunes the same.
    taken: Option<Instant>,
    low_memory: bool,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    /// The thread works on a job.
    busy: bool,
    thread: Option<JoinHandle<()>>,
}

impl Queue {
    /// The first job that is due.
    fn next(&mut self, now: Instant) -> Option<Job> {
        let due = self.jobs.iter().position(|job| job.due <= now)?;
        self.jobs.remove(due)
    }

    /// Time until one is due; `None` if there is none.
    fn until_due(&self, now: Instant) -> Option<Duration> {
        self.jobs.iter().map(|job| job.due.saturating_duration_since(now)).min()
    }
}

/// The background thread of an engine; dropping it cancels what runs.
pub struct Worker {
    shared: Arc<Shared>,
    queue: Arc<(Mutex<Queue>, Condvar)>,
}

impl Worker {
    pub fn new(shared: &Arc<Shared>) -> Self {
        Self { shared: Arc::clone(shared), queue: Arc::default() }
    }

    /// Queues a tuning run and starts the thread if there is none.
    pub fn enqueue(&self, problem: Arc<dyn Problem>, slots: Arc<Slots>) {
        let mut queue = lock(&self.queue.0);
        if self.shared.closing.load(Relaxed) {
            return;
        }
        queue.jobs.push_back(Job { problem, slots, due: Instant::now() + BURST, taken: None, low_memory: false });
        if queue.thread.is_none() {
            let (shared, jobs) = (Arc::clone(&self.shared), Arc::clone(&self.queue));
            let thread = std::thread::Builder::new().name("ropejit-tuning".into());
            match thread.spawn(move || work(&shared, &jobs)) {
                Ok(thread) => queue.thread = Some(thread),
                Err(e) => tracing::warn!("no background tuning, its thread cannot be started: {e}"),
            }
        }
        self.queue.1.notify_all();
    }

    /// Cancels what runs and waits for its end; nothing is begun any more.
    pub fn close(&self) {
        if self.shared.is_parents() {
            if let Some(stand_in) = self.shared.renewed.get() {
                stand_in.close();
            }
            return;
        }
        let thread = {
            // Under the lock, so that the thread does not miss it between looking and waiting.
            let mut queue = lock(&self.queue.0);
            self.shared.closing.store(true, Relaxed);
            queue.thread.take()
        };
        self.queue.1.notify_all();
        if let Some(thread) = thread {
            thread.thread().unpark(); // from a rest
            if thread.join().is_err() {
                tracing::error!("the background tuning thread has panicked");
            }
        }
        // A tuning that another thread waits for ends as soon as it looks; it is not this one's to wait for longer.
        let since = Instant::now();
        while self.shared.running.load(Relaxed) > 0 && since.elapsed() < LAST_TUNING {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits until nothing runs, nor is queued but for what waits for memory.
    pub fn wait(&self) {
        if self.shared.is_parents() {
            if let Some(stand_in) = self.shared.renewed.get() {
                stand_in.wait();
            }
            return;
        }
        let mut queue = lock(&self.queue.0);
        while queue.thread.is_some() && (queue.busy || queue.jobs.iter().any(|job| !job.low_memory)) {
            queue = self.queue.1.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.close();
        if self.shared.is_parents() {
            std::mem::forget((Arc::clone(&self.shared), Arc::clone(&self.queue)));
        }
    }
}

/// Workers that the process's end closes.
static OPEN: ArcSwapOption<Vec<Weak<Worker>>> = ArcSwapOption::const_empty();

/// Has a worker closed when the process ends.
pub(super) fn close_at_exit(worker: &Arc<Worker>, on_gpu: bool) {
    // What ends a process runs in the order from the last to the first that asked for it: once more, after the first GPU.
    static ASKED: [AtomicBool; 2] = [AtomicBool::new(false), AtomicBool::new(false)];
    OPEN.rcu(|open| {
        let alive = open.iter().flat_map(|all| all.iter()).filter(|worker| worker.strong_count() > 0).cloned();
        Some(Arc::new(alive.chain([Arc::downgrade(worker)]).collect::<Vec<_>>()))
    });
    if !ASKED[usize::from(on_gpu)].swap(true, Relaxed) {
        crate::service::device::at_exit(close_all);
    }
}

extern "C" fn close_all() {
    if let Some(open) = OPEN.load_full() {
        open.iter().filter_map(Weak::upgrade).for_each(|worker| worker.close());
    }
}

fn lock(queue: &Mutex<Queue>) -> MutexGuard<'_, Queue> {
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}

fn work(shared: &Shared, (queue, changed): &(Mutex<Queue>, Condvar)) {
    while let Some(job) = next_job(shared, queue, changed) {
        let _done = Done { queue, changed };
        if let Some(put_off) = try_job(shared, job) {
            lock(queue).jobs.push_back(put_off);
        }
    }
}

/// Waits for a job that is due; `None` at the end.
fn next_job(shared: &Shared, queue: &Mutex<Queue>, changed: &Condvar) -> Option<Job> {
    let mut queue = lock(queue);
    loop {
        if shared.closing.load(Relaxed) {
            return None;
        }
        let now = Instant::now();
        if let Some(job) = queue.next(now) {
            queue.busy = true;
            return Some(job);
        }
        queue = match queue.until_due(now) {
            None => changed.wait(queue).unwrap_or_else(PoisonError::into_inner),
            Some(time) => changed.wait_timeout(queue, time).unwrap_or_else(PoisonError::into_inner).0,
        };
    }
}

/// Does a job, or returns it to be tried later.
fn try_job(shared: &Shared, mut job: Job) -> Option<Job> {
    let service = Service { shared };
    let now = Instant::now();
    let since = job.taken.unwrap_or(now);
    match resolve::settle(shared, job.problem.as_ref(), since, &Throttle::slices(&service)) {
        Ok(Some(plan)) => resolve::take_over(shared, &job.slots, job.problem.as_ref(), plan),
        Ok(None) => {
            if job.taken.is_none() {
                shared.counters.waited.add();
            }
            (job.taken, job.low_memory, job.due) = (Some(since), false, now + TAKEN);
            return Some(job);
        }
        Err(_) if shared.closing.load(Relaxed) => {}
        Err(e) if e.kind() == ErrorKind::OutOfMemory => {
            shared.counters.warn_once(format!(
                "the device's memory is too full to tune in; what answered first serves on, and it is tried again every {LOW_MEMORY:?}"
            ));
            tracing::debug!("put off: {e}");
            (job.taken, job.low_memory, job.due) = (None, true, now + LOW_MEMORY);
            return Some(job);
        }
        // Without a compiler every bucket of every spec ends here.
        Err(e) => shared.counters.warn_once(format!("not tuned, what answered first serves on: {e}")),
    }
    None
}

/// What background work runs beside.
struct Service<'a> {
    shared: &'a Shared,
}

impl Beside for Service<'_> {
    fn now(&self) -> Duration {
        self.shared.opened.elapsed()
    }

    fn wait(&self, time: Duration) {
        let until = Instant::now() + time;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || self.cancelled() {
                return;
            }
            std::thread::park_timeout(left);
        }
    }

    fn cancelled(&self) -> bool {
        self.shared.closing.load(Relaxed)
    }

    /// Calls see captures where they find no loaded kernel. Otherwise the default stream tells of those of streams that it
    /// waits for, at no cost to them.
    fn capturing(&self) -> bool {
        if self.shared.device.is_capturing(Stream::DEFAULT) {
            self.shared.note_capture();
        }
        self.shared.since_capture().is_some_and(|time| time < QUIET)
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
