//! Single flight across processes: one makes an entry, the others wait for it a while.
//!
//! The right to make it is a [`Claim`].

use std::time::{Duration, Instant};

use super::claim::{Claim, Lease};
use super::{Kind, Store};
use crate::service::key::Key;

/// What a process has to do for an entry.
pub enum Flight {
    /// Nothing, another process has made it.
    Made,
    /// Make it; the lease, if there is one, ends when it is dropped.
    Make(Option<Lease>),
}

/// Asks once whether this process may make an entry, or `made` says that it is there. `None`: another process
/// is making it, and has been for less than `patience` since `since`.
pub fn attempt(
    store: &dyn Store,
    (kind, key): (Kind, Key),
    since: Instant,
    patience: Duration,
    made: impl Fn() -> bool,
) -> Option<Flight> {
    let claim = store.claim(kind, key);
    // Others may have made it since the caller looked, or waited.
    if !matches!(claim, Claim::Unavailable) && made() {
        return Some(Flight::Made);
    }
    match claim {
        Claim::Mine(lease) => Some(Flight::Make(Some(lease))),
        Claim::Unavailable => Some(Flight::Make(None)),
        Claim::Taken if since.elapsed() >= patience => {
            tracing::warn!(
                "another process has been making {} {key} for {patience:?}; it is made here as well",
                kind.name()
            );
            Some(Flight::Make(None))
        }
        Claim::Taken => None,
    }
}

/// Waits until this process may make an entry, `made` says that it is there, or `patience` ends; `None` as soon
/// as `stop` says so. Also says whether it had to wait.
pub fn fly(
    store: &dyn Store,
    wanted: (Kind, Key),
    patience: Duration,
    stop: impl Fn() -> bool,
    made: impl Fn() -> bool,
) -> (Option<Flight>, bool) {
    let (started, mut pause) = (Instant::now(), Duration::from_millis(1));
    let mut waited = false;
    loop {
        let flight = attempt(store, wanted, started, patience, &made);
        if flight.is_some() || stop() {
            return (flight, waited);
        }
        waited = true;
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(32));
    }
}
