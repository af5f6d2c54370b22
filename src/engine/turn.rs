//! One process tunes. Others that want the same wait for what it finds, or in the background come back for it.

use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::throttle::{Throttle, cancelled};
use super::{BUDGET, RopeState, Shared, priors, resolve, scratch, tuning};
use crate::error::Result;
use crate::jit::{Bucket, Class};
use crate::plan::Plan;
use crate::store::Kind;
use crate::store::flight::{self, Flight};

/// Beyond the time to measure, what another process may take to compile its candidates before it is taken to be stopped.
const PATIENCE: Duration = Duration::from_secs(20);
/// In the background a tuning takes that much longer: it rests, and compiles on fewer threads.
const BACKGROUND: u32 = 2;

/// Tunes one spec, bucket and class, unless a prior has chosen already, or another process does or has done so meanwhile;
/// returns the winner.
pub(super) fn tune(shared: &Shared, state: &RopeState, class: Class, bucket: Bucket, budget: Duration) -> Result<Plan> {
    if let Some(plan) = priors::take(shared, &state.spec, bucket, class) {
        return Ok(plan);
    }
    let key = shared.choices.own_key(&state.spec, bucket, class);
    let (flight, waited) = flight::fly(
        shared.store.as_ref(),
        (Kind::Choice, key),
        budget.saturating_add(PATIENCE),
        || shared.closing.load(Relaxed),
        || shared.choices.is_settled(key, shared.priors.is_on()),
    );
    if waited {
        shared.counters.waited.add();
    }
    follow(shared, state, class, bucket, budget, &Throttle::full(), flight.ok_or_else(cancelled)?)
}

/// As [`tune`], in slices and without waiting: `None` while another process tunes the same, and has for not too long since
/// `since`.
pub(super) fn tune_in_slices(
    shared: &Shared,
    state: &RopeState,
    class: Class,
    bucket: Bucket,
    since: Instant,
    throttle: &Throttle<'_>,
) -> Result<Option<Plan>> {
    if let Some(plan) = priors::take(shared, &state.spec, bucket, class) {
        return Ok(Some(plan));
    }
    let key = shared.choices.own_key(&state.spec, bucket, class);
    let (wanted, patience) = ((Kind::Choice, key), BACKGROUND * (BUDGET + PATIENCE));
    let settled = || shared.choices.is_settled(key, shared.priors.is_on());
    let flight = flight::attempt(shared.store.as_ref(), wanted, since, patience, settled);
    flight.map(|flight| follow(shared, state, class, bucket, BUDGET, throttle, flight)).transpose()
}

fn follow(
    shared: &Shared,
    state: &RopeState,
    class: Class,
    bucket: Bucket,
    budget: Duration,
    throttle: &Throttle<'_>,
    flight: Flight,
) -> Result<Plan> {
    let _turn = match flight {
        Flight::Make(turn) => turn,
        Flight::Made => match resolve::find(shared, &state.spec, bucket, class, shared.tuning(), true)? {
            Some(plan) if resolve::is_settled(shared, &plan) => return Ok(plan),
            // Its choice is none that this program would make.
            _ => None,
        },
    };
    // Before candidates are compiled for nothing.
    scratch::room(shared.device.as_ref(), &state.spec, bucket)?;
    tuning::tune(shared, state, class, bucket, budget, throttle)
}
