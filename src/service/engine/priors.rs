//! Priors in an engine: a miss on a GPU of a known model takes what was measured there, a tuning elsewhere measures few.

use super::choices::record_of;
use super::shared::Shared;
use crate::service::family::{Config, Origin, Plan, Problem, Provenance};
use crate::service::record::{Candidate, Prior, Record};

/// Takes what was measured on a GPU of this model for such a problem: one kernel is made and kept as the device's choice.
/// `None` where nothing is known, or its kernel cannot be had: then all goes on as if there were no priors.
pub fn take(shared: &Shared, problem: &dyn Problem) -> Option<Plan> {
    if !shared.priors {
        return None;
    }
    let (model, config) = problem.prior(shared.device.as_ref(), shared.abilities())?;
    let named = shared.choices.artifact_of(problem, &config);
    let made = shared.kernels.obtain(problem, &config, named).and_then(|(loaded, origin)| {
        let artifact = loaded.artifact;
        if origin == Origin::Embedded {
            shared.counters.embedded_hits.add();
        }
        Ok((artifact, Plan::new(problem, loaded.kernel, config.clone(), origin, Provenance::Prior)?))
    });
    let (artifact, plan) = match made {
        Ok(made) => made,
        Err(e) => {
            shared.counters.warn_once(format!("'{config}', measured on {model}, cannot be had: {e}"));
            return None;
        }
    };
    let record = Record {
        prior: Some(Prior::Chose(model)),
        ..record_of(
            shared.device.as_ref(),
            problem.bucket().tokens(),
            vec![Candidate { artifact, ..Candidate::new(config) }],
        )
    };
    shared.choices.write(problem, record, true);
    shared.counters.priors.add();
    Some(plan)
}

/// The configs to measure, the default first: all, or the few that the choices of the most similar GPU name.
pub fn candidates(shared: &Shared, problem: &dyn Problem) -> (Vec<Config>, Option<Prior>) {
    match problem.prior_few(shared.device.as_ref(), shared.abilities()).filter(|_| shared.priors) {
        Some((model, few)) => (few, Some(Prior::Ordered(model))),
        None => (problem.space(shared.abilities()), None),
    }
}
