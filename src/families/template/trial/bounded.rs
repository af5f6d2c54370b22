//! A launch whose time is bounded, for a kernel that may hang.
//!
//! On the host a launch is a call: it runs on a thread of its own, with a pool of its own for its blocks, and where it does
//! not return in time both are left to themselves, with what they use. On a GPU the stream is asked until it has passed the
//! launch; the driver cannot end a kernel, so the stream stays busy, and what is measured on it afterwards hangs as well.

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use super::Problem;
use crate::error::{Error, ErrorKind, Result};
use crate::families::template::call::{Cells, geometry, launch};
use crate::families::template::names::Values;
use crate::service::family::{Device, Dialect, Memory, Plan};

/// What a launch uses, all of it kept alive by it.
pub struct Bounded {
    pub p: Problem,
    pub plan: Plan,
    pub values: Values,
    pub cells: Cells,
}

impl Bounded {
    fn launch(&self, device: &dyn Device) -> Result<()> {
        let mut values = self.values;
        self.p.d().assign(&mut values, &self.plan.attrs.numbers);
        match geometry(self.p.d(), &values, self.plan.attrs.shared)? {
            Some(geometry) => launch(&self.plan, device.stream(), &geometry, &self.cells),
            None => Ok(()),
        }
    }
}

/// What an error is about that says that a kernel hangs.
struct Hang;

/// Whether an error is that of a kernel that hangs.
pub fn is_hang(e: &Error) -> bool {
    e.detail::<Hang>().is_some()
}

/// Starts a thread.
type Start = fn(Box<dyn FnOnce() + Send>) -> std::io::Result<()>;

fn start(run: Box<dyn FnOnce() + Send>) -> std::io::Result<()> {
    std::thread::Builder::new().name("ropejit-check".into()).spawn(run).map(drop)
}

/// Launches and waits, for at most this long. The memory that the launch works on comes back, but from a kernel that hangs: it
/// is the kernel's from then on.
///
/// # Errors
/// When it hangs, or cannot be launched.
pub fn run(
    what: Bounded,
    device: &Arc<dyn Device>,
    memory: Box<dyn Memory>,
    patience: Duration,
    with: &str,
) -> (Option<Box<dyn Memory>>, Result<()>) {
    run_on(start, what, device, memory, patience, with)
}

fn run_on(
    start: Start,
    what: Bounded,
    device: &Arc<dyn Device>,
    memory: Box<dyn Memory>,
    patience: Duration,
    with: &str,
) -> (Option<Box<dyn Memory>>, Result<()>) {
    let hangs = || {
        let what = format!("hangs: it has not ended in {} s, with {with}", patience.as_secs_f64());
        Error::new(ErrorKind::Device, what).about(Hang)
    };
    if device.dialect() != Dialect::Host {
        return match what.launch(device.as_ref()).and_then(|()| device.wait_at_most(patience)) {
            Ok(true) => (Some(memory), Ok(())),
            Err(e) => (Some(memory), Err(e)),
            Ok(false) => {
                // To free it, or to unload the kernel, the driver would wait for the kernel.
                std::mem::forget((memory, what));
                (None, Err(hangs()))
            }
        };
    }
    let (tell, told) = channel();
    let (lend, lent) = channel();
    let device = Arc::clone(device);
    let run = move || {
        let Ok(memory) = lent.recv() else { return };
        let done = rayon::ThreadPoolBuilder::new()
            .num_threads(std::thread::available_parallelism().map_or(1, std::num::NonZero::get))
            .build()
            .map_err(|e| Error::new(ErrorKind::Device, format!("no threads to run a check on: {e}")))
            .and_then(|pool| pool.install(|| what.launch(device.as_ref())));
        // Where nobody hears it, the memory goes now that the kernel has ended.
        let _ = tell.send((Some(memory), done));
    };
    if let Err(e) = start(Box::new(run)) {
        return (Some(memory), Err(Error::new(ErrorKind::Device, "no thread to run a check on").caused_by(e)));
    }
    if let Err(unsent) = lend.send(memory) {
        return (Some(unsent.0), Err(Error::new(ErrorKind::Device, "a check ended before it began")));
    }
    match told.recv_timeout(patience) {
        Ok(done) => done,
        Err(RecvTimeoutError::Timeout) => (None, Err(hangs())),
        Err(RecvTimeoutError::Disconnected) => {
            (None, Err(Error::new(ErrorKind::Device, "a check ended without a result")))
        }
    }
}

#[cfg(test)]
#[path = "bounded_tests.rs"]
mod tests;
