//! What is left of a process in its child after `fork()`: the memory of all threads, and one thread. A lock that another
//! thread held then stays locked for ever, and there is nobody in a pool of threads.
//!
//! A process counts the forks between it and the one that first asked for this. What was made under another count belongs to
//! a parent: its locks are not taken, its threads not waited for.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use arc_swap::ArcSwapOption;
use rayon::{ThreadPool, ThreadPoolBuilder};

static GENERATION: AtomicU32 = AtomicU32::new(0);

/// How many forks lie between this process and the first: one load.
#[inline]
pub(crate) fn generation() -> u32 {
    GENERATION.load(Relaxed)
}

/// What a new child does first (see `device::watch_forks`).
pub(crate) extern "C" fn in_child() {
    GENERATION.fetch_add(1, Relaxed);
}

/// Runs work that spreads over rayon's threads; in a child over threads of its own, since those of rayon's usual pool stayed
/// with the parent and would be waited for in vain.
pub(crate) fn spread<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    static POOL: ArcSwapOption<(u32, ThreadPool)> = ArcSwapOption::const_empty();
    let now = generation();
    if now == 0 {
        return work();
    }
    let pool = POOL.load_full();
    if let Some(pool) = pool.filter(|pool| pool.0 == now) {
        return pool.1.install(work);
    }
    // Where no thread can be had, the caller's is the pool.
    let made = ThreadPoolBuilder::new()
        .build()
        .or_else(|_| ThreadPoolBuilder::new().num_threads(1).use_current_thread().build());
    let Ok(made) = made else { return work() };
    let made = Arc::new((now, made));
    // Its threads are the parent's: there is nobody to be told of an end.
    std::mem::forget(POOL.swap(Some(Arc::clone(&made))));
    made.1.install(work)
}
