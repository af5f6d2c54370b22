//! Priors in an engine: a miss on a GPU of a known model takes what was measured there, a tuning elsewhere measures few.

use super::choices::record_of;
use super::{Shared, resolve};
use crate::jit::prior::{self, Priors};
use crate::jit::{Bucket, Candidate, Class, Prior, Record, Variant, variant};
use crate::plan::Plan;
use crate::rope::RopeSpec;

/// Which priors an engine follows. They are read at the first miss, so that a process with a full cache never does.
#[derive(Default)]
pub(super) enum Source {
    /// None: every choice is measured here, among all candidates.
    Off,
    /// Those that come with the crate.
    #[default]
    Shipped,
    /// A test's.
    Given(Priors),
}

impl Source {
    pub fn is_on(&self) -> bool {
        !matches!(self, Self::Off)
    }

    fn get(&self) -> Option<&Priors> {
        match self {
            Self::Off => None,
            Self::Shipped => Some(prior::shipped()),
            Self::Given(priors) => Some(priors),
        }
    }
}

/// Takes what was measured on a GPU of this model for such a call: one kernel is made and kept as the device's choice.
/// `None` where nothing is known, or its kernel cannot be had: then all goes on as if there were no priors.
pub(super) fn take(shared: &Shared, spec: &RopeSpec, bucket: Bucket, class: Class) -> Option<Plan> {
    let facts = shared.device.facts();
    let priors = shared.priors.get()?;
    let (model, variant) = priors.exact(&facts.identity(), spec, class, bucket, shared.device.abilities())?;
    let named = shared.choices.artifact_of(spec, bucket, class, variant);
    let made = shared.kernels.obtain(spec, class, variant, named).and_then(|(loaded, origin)| {
        let artifact = Some(loaded.artifact);
        Ok((artifact, resolve::plan(shared, spec, class, loaded, variant, origin, false)?))
    });
    let (artifact, mut plan) = match made {
        Ok(made) => made,
        Err(e) => {
            shared.counters.warn_once(format!("'{variant}', measured on {model}, cannot be had: {e}"));
            return None;
        }
    };
    let record = Record {
        prior: Some(Prior::Chose(model.to_owned())),
        ..record_of(shared.device.as_ref(), bucket.tokens(), vec![Candidate { artifact, ..Candidate::new(variant) }])
    };
    shared.choices.write(spec, bucket, class, record, true);
    shared.counters.priors.add();
    plan.prior = true;
    Some(plan)
}

/// The candidates to measure, the default first: all, or the few that the choices of the most similar GPU name.
pub(super) fn candidates(
    shared: &Shared,
    spec: &RopeSpec,
    bucket: Bucket,
    class: Class,
) -> (Vec<Variant>, Option<Prior>) {
    let (identity, can) = (shared.device.facts().identity(), shared.device.abilities());
    match shared.priors.get().and_then(|priors| priors.few(&identity, spec, class, bucket, can)) {
        Some((model, few)) => (few, Some(Prior::Ordered(model.to_owned()))),
        None => (variant::space(spec, class, bucket, can), None),
    }
}
