//! Filling the cache ahead of time.

use std::collections::BTreeSet;

use super::handle::TemplateKernel;
use super::space::WIDEST;
use crate::error::Result;
use crate::service::family::{Bucket, Origin, Provenance};

/// What a prewarm has done for one spec and bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrewarmedTemplate {
    /// What it is compiled for, such as `add_rmsnorm dtype=bf16,hidden=4096`.
    pub spec: String,
    /// For which layouts.
    pub class: String,
    /// For which size.
    pub bucket: Bucket,
    /// The tunables that will serve.
    pub config: String,
    /// Why.
    pub provenance: Provenance,
    /// Where it came from: [`Origin::Disk`] when there was nothing to do.
    pub origin: Origin,
}

impl TemplateKernel {
    /// Compiles, tunes (where the device can run and `tune` says so) and keeps what calls of these sizes need, for tensors
    /// that start where allocators put them. A size is what `bucket` of `[launch]` counts; each is rounded up to a power of
    /// two, and those that are rounded to the same are one.
    ///
    /// # Errors
    /// At the first that is not to be had: nothing can be compiled, the device fails or has too little free memory to tune
    /// in. What was made before is kept, and found the next time.
    pub fn prewarm(&self, sizes: &[u64], tune: bool) -> Result<Vec<PrewarmedTemplate>> {
        if let Some(kernel) = self.stand_in()? {
            return kernel.prewarm(sizes, tune);
        }
        let buckets: BTreeSet<Bucket> = sizes.iter().map(|&size| Bucket::of(size)).collect();
        let mut all = Vec::new();
        for bucket in buckets {
            let (problem, slots) = self.problem_of(WIDEST, bucket)?;
            let runs = tune && self.engine().device().runs();
            let done = self.engine().prewarm_problem(problem.as_ref(), runs.then_some(slots.as_ref()), tune)?;
            all.extend(done.into_iter().map(|done| PrewarmedTemplate {
                spec: self.spec().to_owned(),
                class: problem.class().text().to_owned(),
                bucket,
                config: done.config.text().to_owned(),
                provenance: done.provenance,
                origin: done.origin,
            }));
        }
        Ok(all)
    }
}
