//! Filling the cache ahead of time.

use std::collections::BTreeSet;

use super::{Engine, Prewarmed, angles, resolve};
use crate::error::Result;
use crate::jit::{Bucket, Class};
use crate::rope::RopeSpec;

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
        if let Some(engine) = self.shared.stand_in()? {
            return engine.prewarm_all(specs, tokens, tune, classes);
        }
        let buckets: BTreeSet<Bucket> = tokens.iter().map(|&tokens| Bucket::of(tokens)).collect();
        let mut done = Vec::new();
        for spec in specs {
            spec.validate()?;
            for &bucket in &buckets {
                for class in classes(spec) {
                    done.extend(resolve::prewarm(self, spec, bucket, class, tune)?);
                }
                if let Some(mode) = spec.angles {
                    // What makes their tables.
                    let maker = angles::maker_spec(spec.rotary_dim, mode);
                    let class = tableless(Class::contiguous(&maker, false, true));
                    done.extend(resolve::prewarm(self, &maker, angles::maker_bucket(), class, false)?);
                }
            }
        }
        Ok(done)
    }
}

/// The classes of calls with contiguous tensors. Partial rotary has one kernel out of place, which copies what does not turn,
/// and another in place. Angles of the engine are read from a table, or computed for lengths that have none.
pub(crate) fn prepared_classes(spec: &RopeSpec, head_major: bool) -> Vec<Class> {
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
