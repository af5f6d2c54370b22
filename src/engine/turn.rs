//! One process tunes, the others wait for what it finds, and serve the default meanwhile where that is asked for.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use super::{RopeState, Shared, priors, resolve, tuning};
use crate::error::Result;
use crate::jit::{Bucket, Class};
use crate::plan::Plan;
use crate::store::Kind;
use crate::store::flight::{self, Flight};

/// Beyond the time to measure, what another process may take to compile its candidates before it is taken to be stopped.
const PATIENCE: Duration = Duration::from_secs(20);

/// Tunes one spec, bucket and class, unless a prior has chosen already, or another process does or has done so meanwhile;
/// returns the winner.
pub(super) fn tune(
    shared: &Shared,
    state: &RopeState,
    class: Class,
    bucket: Bucket,
    budget: Duration,
    stop: &AtomicBool,
) -> Result<Plan> {
    if let Some(plan) = priors::take(shared, &state.spec, bucket, class) {
        return Ok(plan);
    }
    let key = shared.choices.own_key(&state.spec, bucket, class);
    let (flight, waited) = flight::fly(
        shared.store.as_ref(),
        (Kind::Choice, key),
        budget.saturating_add(PATIENCE),
        || stop.load(Relaxed),
        || shared.choices.is_settled(key, shared.priors.is_on()),
    );
    if waited {
        shared.counters.waited.add();
    }
    let _turn = match flight {
        Flight::Make(turn) => turn,
        Flight::Made => match resolve::find(shared, &state.spec, bucket, class, shared.tuning())? {
            Some(plan) if resolve::is_settled(shared, &plan) => return Ok(plan),
            // Its choice is none that this program would make.
            _ => None,
        },
    };
    tuning::tune(shared, state, class, bucket, budget, stop)
}
