//! One process tunes. Others that want the same wait for what it finds, or in the background come back for it.

use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::policy::BUDGET;
use super::shared::Shared;
use super::throttle::{Throttle, cancelled};
use super::watch::{self, Work};
use super::{lookup, priors, room, tuning};
use crate::error::Result;
use crate::service::family::{Plan, Problem};
use crate::service::store::Kind;
use crate::service::store::flight::{self, Flight};

/// Beyond the time to measure, what another process may take to compile its candidates before it is taken to be stopped.
const PATIENCE: Duration = Duration::from_secs(20);
/// In the background a tuning takes that much longer: it rests, and compiles on fewer threads.
const BACKGROUND: u32 = 2;

/// Tunes a problem, unless a prior has chosen already, or another process does or has done so meanwhile; returns the winner.
pub fn tune(shared: &Shared, problem: &dyn Problem, budget: Duration) -> Result<Plan> {
    if let Some(plan) = priors::take(shared, problem) {
        return Ok(plan);
    }
    let key = shared.choices.own_key(problem);
    let (flight, waited) = flight::fly(
        shared.store.as_ref(),
        (Kind::Choice, key),
        budget.saturating_add(PATIENCE),
        || shared.closing.load(Relaxed),
        || shared.choices.is_settled(key, shared.priors),
    );
    if waited {
        shared.counters.waited.add();
    }
    follow(shared, problem, budget, &Throttle::full(), flight.ok_or_else(cancelled)?)
}

/// As [`tune`], in slices and without waiting: `None` while another process tunes the same, and has for not too long since
/// `since`.
pub fn tune_in_slices(
    shared: &Shared,
    problem: &dyn Problem,
    since: Instant,
    throttle: &Throttle<'_>,
) -> Result<Option<Plan>> {
    if let Some(plan) = priors::take(shared, problem) {
        return Ok(Some(plan));
    }
    let key = shared.choices.own_key(problem);
    let (wanted, patience) = ((Kind::Choice, key), BACKGROUND * (BUDGET + PATIENCE));
    let settled = || shared.choices.is_settled(key, shared.priors);
    let flight = flight::attempt(shared.store.as_ref(), wanted, since, patience, settled);
    flight.map(|flight| follow(shared, problem, BUDGET, throttle, flight)).transpose()
}

fn follow(
    shared: &Shared,
    problem: &dyn Problem,
    budget: Duration,
    throttle: &Throttle<'_>,
    flight: Flight,
) -> Result<Plan> {
    let _claim = match flight {
        Flight::Make(claim) => claim,
        Flight::Made => {
            let tuning = shared.tuning();
            let named = lookup::cached(shared, problem, tuning);
            let made = named.map(|named| lookup::plan(shared, problem, &named, tuning, true)).transpose()?.flatten();
            match made {
                Some(plan) if plan.provenance.is_settled(shared.priors) => return Ok(plan),
                // Its choice is none that this program would make.
                _ => None,
            }
        }
    };
    // Before candidates are compiled for nothing.
    room::room(shared.device.as_ref(), problem)?;
    watch::timed(Work::Tune, problem, || tuning::tune(shared, problem, budget, throttle))
}
