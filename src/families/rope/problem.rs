//! One RoPE to compute, for one layout class and bucket, as the service sees it.

use std::sync::Arc;

use super::ahead_of_time;
use super::in_engine::InEngine;
use super::known_head::KnownHead;
use super::portable::render_known_head;
use super::reference_kernel::ReferenceKernel;
use super::render::{render, source, templates_digest};
use super::shipped::Shipped;
use super::trial::Scratch;
use super::variant::{self, Class, Variant};
use crate::error::{Error, Result};
use crate::rope::RopeSpec;
use crate::service::family::{
    Abilities, Bucket, Config, Device, Dialect, Kernel, LaunchAttrs, Problem, Source, Stated, Throttle, Trial,
};
use crate::service::key::KeyFields;

/// The family's name, as keys have it.
pub(crate) const NAME: &str = "rope";

/// A spec, layout class and bucket.
pub(super) struct RopeProblem {
    spec: RopeSpec,
    class: Class,
    bucket: Bucket,
    stated: [Stated; 2],
    kept: Arc<InEngine>,
}

impl RopeProblem {
    pub fn new(spec: &RopeSpec, class: Class, bucket: Bucket, kept: Arc<InEngine>) -> Self {
        Self { spec: spec.clone(), class, bucket, stated: [Stated::of(spec), Stated::of(&class)], kept }
    }

    /// The shipped kernel that a config names, and the variant that it runs as.
    fn known_head(&self, config: &Config) -> Option<(KnownHead, Variant)> {
        let variant = variant_of(config);
        let head = variant.shipped.then(|| KnownHead::of(&self.spec, self.class, variant.vec)).flatten()?;
        Some((head, variant))
    }
}

/// The variant that a config states. Configs of this family are made of one, or were read by [`Problem::restate`].
pub(super) fn variant_of(config: &Config) -> Variant {
    config.to().unwrap_or_else(|| unreachable!("'{config}' is no variant"))
}

/// What the service sees of a spec, layout class and bucket: to look it up.
pub fn problem(spec: &RopeSpec, class: Class, bucket: Bucket) -> Arc<dyn Problem> {
    Arc::new(RopeProblem::new(spec, class, bucket, Arc::default()))
}

/// The fields of the key of a choice, for a device's identity or an architecture.
pub fn choice_fields(spec: &RopeSpec, bucket: Bucket, class: Class, space: &[Variant], device: &str) -> KeyFields {
    let space: Vec<Config> = space.iter().map(Stated::of).collect();
    KeyFields::choice(&RopeProblem::new(spec, class, bucket, Arc::default()), &space, device)
}

impl Problem for RopeProblem {
    fn family(&self) -> &str {
        NAME
    }

    fn templates(&self) -> &str {
        templates_digest()
    }

    fn spec(&self) -> &Stated {
        &self.stated[0]
    }

    fn class(&self) -> &Stated {
        &self.stated[1]
    }

    fn class_index(&self) -> usize {
        self.class.index()
    }

    fn bucket(&self) -> Bucket {
        self.bucket
    }

    fn space(&self, can: Abilities) -> Vec<Config> {
        variant::space(&self.spec, self.class, self.bucket, can).iter().map(Stated::of).collect()
    }

    fn check(&self, config: &Config, can: Abilities) -> Result<()> {
        let variant = config.to().ok_or_else(|| Error::argument("variant", format!("'{config}' is no variant")))?;
        variant::check(&self.spec, self.class, variant, can)
    }

    fn parse(&self, text: &str) -> Result<Config> {
        Ok(Stated::of(&text.parse::<Variant>()?))
    }

    fn restate(&self, config: &Config) -> Option<Config> {
        config.to::<Variant>().map(|variant| Stated::of(&variant))
    }

    fn source(&self, dialect: Dialect, config: &Config) -> Source {
        source(match self.known_head(config) {
            Some((head, variant)) => render_known_head(dialect, head, variant.overlap),
            None => render(dialect, &self.spec, self.class, variant_of(config)),
        })
    }

    fn attrs(&self, config: &Config) -> LaunchAttrs {
        super::launch::attrs(&self.spec, self.class, variant_of(config))
    }

    fn bytes(&self, size: u64) -> u64 {
        super::trial::bytes_per_token(&self.spec).saturating_mul(size)
    }

    fn trial(&self, device: &Arc<dyn Device>, limit: u64, throttle: &Throttle<'_>) -> Result<Box<dyn Trial>> {
        let fault = if self.spec.may_report() { self.kept.fault_address(device.as_ref())? } else { 0 };
        Ok(Box::new(Scratch::new(device, &self.spec, self.class, self.bucket, fault, limit, throttle)?))
    }

    fn has_ahead_of_time(&self, device: &dyn Device, can: Abilities) -> bool {
        ahead_of_time::serves(device) && Shipped::of(&self.spec, self.class, self.bucket, can).is_some()
    }

    fn ahead_of_time(&self, device: &dyn Device, can: Abilities) -> Result<Option<(Arc<dyn Kernel>, Config)>> {
        let Some((shipped, variant)) = Shipped::of(&self.spec, self.class, self.bucket, can) else { return Ok(None) };
        let kernel = self.kept.ahead_of_time.get(device, shipped, &self.spec, self.class, variant)?;
        Ok(kernel.map(|kernel| (kernel, Stated::of(&variant))))
    }

    fn shipped(&self, device: &dyn Device, config: &Config) -> Result<Option<Arc<dyn Kernel>>> {
        let Some((head, variant)) = self.known_head(config) else { return Ok(None) };
        self.kept.ahead_of_time.get(device, Shipped::Head(head), &self.spec, self.class, variant)
    }

    fn is_shipped(&self, config: &Config) -> bool {
        self.known_head(config).is_some()
    }

    fn fallback(&self, device: &dyn Device) -> Option<Arc<dyn Kernel>> {
        (device.dialect() == Dialect::Host).then(|| Arc::new(ReferenceKernel::new(&self.spec)) as _)
    }

    fn prior(&self, device: &dyn Device, can: Abilities) -> Option<(String, Config)> {
        let identity = device.facts().identity();
        let (model, variant) = self.kept.priors().exact(&identity, &self.spec, self.class, self.bucket, can)?;
        Some((model.to_owned(), Stated::of(&variant)))
    }

    fn prior_few(&self, device: &dyn Device, can: Abilities) -> Option<(String, Vec<Config>)> {
        let identity = device.facts().identity();
        let (model, few) = self.kept.priors().few(&identity, &self.spec, self.class, self.bucket, can)?;
        Some((model.to_owned(), few.iter().map(Stated::of).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rope::DType;
    use crate::service::key::tests::every_field_counts;

    #[test]
    fn every_field_of_a_choice_changes_its_key() {
        let spec = RopeSpec::new(DType::BF16, 128, 32, 8);
        let class = Class::contiguous(&spec, false, true);
        every_field_counts(&choice_fields(&spec, Bucket::of(8192), class, &[], "H200"));
    }

    /// What releases before families had hashed: old caches hit.
    #[test]
    fn the_key_is_what_it_was() {
        let spec = RopeSpec::new(DType::BF16, 128, 32, 8);
        let class = Class::contiguous(&spec, false, true);
        let can = Abilities { dialect: Dialect::Cuda, overlap: true, cubins: None };
        let space = variant::space(&spec, class, Bucket::of(8192), can);
        let fields = choice_fields(&spec, Bucket::of(8192), class, &space, "H200");
        let names: Vec<&str> = fields.0.iter().map(|(name, _)| name.as_str()).collect();
        let wanted = ["kind", "format", "family", "templates", "spec", "bucket", "class", "device", "space", "policy"];
        assert_eq!(names, wanted);
        assert_eq!(fields.get("spec"), Some(&*serde_json::to_string(&spec).expect("JSON")));
        assert_eq!((fields.get("bucket"), fields.get("class")), (Some("8192"), Some("bshd/16B/t16B")));
        let space = space.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        assert_eq!(fields.get("space"), Some(&*space));
    }
}
