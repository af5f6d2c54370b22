//! Filling the cache ahead of time.

use std::collections::BTreeSet;

use super::angles;
use super::in_engine::InEngine;
use super::problem::{RopeProblem, variant_of};
use super::variant::{Class, Variant};
use crate::error::Result;
use crate::rope::RopeSpec;
use crate::service::bucket::Bucket;
use crate::service::engine::Engine;
use crate::service::family::{Origin, Provenance};

/// What a prewarm has done for one spec, bucket and class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prewarmed {
    /// What is computed.
    pub spec: RopeSpec,
    /// For how many tokens.
    pub bucket: Bucket,
    /// For which layouts.
    pub class: Class,
    /// The variant that will serve.
    pub variant: Variant,
    /// Whether it was chosen by measuring.
    pub tuned: bool,
    /// Whether it was chosen by measuring another GPU of the model: a choice that comes with the crate.
    pub prior: bool,
    /// Where it came from: [`Origin::Disk`] when there was nothing to do.
    pub origin: Origin,
}

impl Engine {
    /// Compiles, tunes (where the device can run and `tune` says so) and keeps what calls with these specs and numbers of
    /// tokens need, for contiguous tensors, out of place and in place. Returns what will serve, in the order of specs, then
    /// of numbers of tokens; where everything is in the cache, nothing is done.
    ///
    /// `tokens` are those of a call, over its whole batch; each is rounded up to a power of two, and those that are rounded
    /// to the same are one. With `head_major`, tensors are `[B, H, S, D]`, otherwise `[B, S, H, D]`.
    ///
    /// # Errors
    /// At the first that is not to be had: a spec is invalid, nothing can be compiled, the device fails or has too little
    /// free memory to tune in. What was made before is kept, and found the next time.
    pub fn prewarm(&self, specs: &[RopeSpec], tokens: &[u64], head_major: bool, tune: bool) -> Result<Vec<Prewarmed>> {
        self.prewarm_all(specs, tokens, tune, |spec| prepared_classes(spec, head_major))
    }

    /// As [`prewarm`](Self::prewarm), for calls of these layout classes: those of tensors that are not contiguous, or not
    /// aligned as far as their sizes allow. The error of a call that is not cached names its class.
    ///
    /// # Errors
    /// As [`prewarm`](Self::prewarm), and where a spec has no calls of a class.
    pub fn prewarm_classes(
        &self,
        specs: &[RopeSpec],
        tokens: &[u64],
        classes: &[Class],
        tune: bool,
    ) -> Result<Vec<Prewarmed>> {
        for (spec, class) in specs.iter().flat_map(|spec| classes.iter().map(move |class| (spec, class))) {
            class.check(spec)?;
        }
        self.prewarm_all(specs, tokens, tune, |_| classes.to_vec())
    }

    fn prewarm_all(
        &self,
        specs: &[RopeSpec],
        tokens: &[u64],
        tune: bool,
        classes: impl Fn(&RopeSpec) -> Vec<Class>,
    ) -> Result<Vec<Prewarmed>> {
        if let Some(engine) = self.stand_in()? {
            return engine.prewarm_all(specs, tokens, tune, classes);
        }
        let buckets: BTreeSet<Bucket> = tokens.iter().map(|&tokens| Bucket::of(tokens)).collect();
        let mut done = Vec::new();
        for spec in specs {
            spec.validate()?;
            for &bucket in &buckets {
                for class in classes(spec) {
                    done.extend(self.prewarm_call(spec, bucket, class, tune)?);
                }
                if let Some(mode) = spec.angles {
                    // What makes their tables.
                    let maker = angles::maker_spec(spec.rotary_dim, mode);
                    let class = tableless(Class::contiguous(&maker, false, true));
                    done.extend(self.prewarm_call(&maker, angles::maker_bucket(), class, false)?);
                }
            }
        }
        Ok(done)
    }

    /// Makes sure that calls of a spec, bucket and class find everything in the cache.
    fn prewarm_call(&self, spec: &RopeSpec, bucket: Bucket, class: Class, tune: bool) -> Result<Vec<Prewarmed>> {
        let problem = RopeProblem::new(spec, class, bucket, InEngine::of(self));
        // Where nothing is tuned there is nothing to serve from either.
        let rope = (tune && self.device().runs()).then(|| self.rope(spec)).transpose()?;
        let slots = rope.as_ref().map(|rope| rope.state.slots.as_ref());
        let done = self.prewarm_problem(&problem, slots, tune)?;
        let prewarmed = done.into_iter().map(|done| Prewarmed {
            spec: spec.clone(),
            bucket,
            class,
            variant: variant_of(&done.config),
            tuned: done.provenance.is_tuned(),
            prior: done.provenance == Provenance::Prior,
            origin: done.origin,
        });
        Ok(prewarmed.collect())
    }
}

/// The classes of calls with contiguous tensors. Partial rotary has one kernel out of place, which copies what does not turn,
/// and another in place. Angles of the engine are read from a table, or computed for lengths that have none.
pub fn prepared_classes(spec: &RopeSpec, head_major: bool) -> Vec<Class> {
    let mut classes = vec![Class::contiguous(spec, head_major, true), Class::contiguous(spec, head_major, false)];
    classes.dedup();
    if spec.angles.is_some() {
        classes.extend(classes.clone().into_iter().map(tableless));
    }
    classes
}

fn tableless(class: Class) -> Class {
    Class { table_word: 0, ..class }
}
