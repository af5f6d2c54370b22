//! What the service asks of a kernel of a user's: one spec, layout class and bucket.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::description::{Description, Kind, Same};
use super::element::Element;
use super::loaded::Template;
use super::names::Values;
use super::on_host::OnHost;
use super::spec::Spec;
use super::trial::{self, regions};
use super::{ptx, source};
use crate::error::{Error, ErrorKind, Result};
use crate::service::family::{
    self, Abilities, Binary, Bucket, Config, Device, Dialect, LaunchAttrs, Source, Stated, Throttle,
};

/// One spec, layout class and bucket of a template.
#[derive(Clone)]
pub struct Problem(Arc<Inner>);

struct Inner {
    template: Template,
    spec: Stated,
    /// Of the spec, and of the class: the least alignments that allow its candidates.
    values: Values,
    class: Stated,
    bucket: Bucket,
    space: Vec<Config>,
}

impl Problem {
    /// The problem of calls with this spec, these alignments (among `values`) and this bucket.
    ///
    /// # Errors
    /// When no candidate, or not the default, is legal for it.
    pub fn new(template: &Template, spec: &Spec, values: &Values, bucket: Bucket) -> Result<Self> {
        let d = template.description();
        let values = d.canonical_class(values)?;
        let space = d.space(&values)?.iter().map(|a| d.config(a)).collect();
        let mut class = Map::new();
        for name in template.aligned() {
            let align = values[usize::from(*name)];
            if align > 1 {
                class.insert(d.names.get(*name).name.clone(), Value::from(align));
            }
        }
        let class = Stated::new(Value::Object(class), d.class_text(&values));
        let (template, spec) = (template.clone(), spec.stated.clone());
        Ok(Self(Arc::new(Inner { template, spec, values, class, bucket, space })))
    }

    /// The same in another bucket.
    #[cfg(test)]
    pub(super) fn at(&self, bucket: Bucket) -> Self {
        let Inner { template, spec, values, class, space, .. } = self.0.as_ref();
        let (template, spec, class, space) = (template.clone(), spec.clone(), class.clone(), space.clone());
        Self(Arc::new(Inner { template, spec, values: *values, class, bucket, space }))
    }

    pub(super) fn d(&self) -> &Description {
        self.0.template.description()
    }

    pub(super) fn values(&self) -> &Values {
        &self.0.values
    }

    pub(super) fn aligned(&self) -> &[u8] {
        self.0.template.aligned()
    }

    /// The size for which it is tuned.
    pub(super) fn tokens(&self) -> u64 {
        self.0.bucket.tokens()
    }

    pub(super) fn spec_text(&self) -> &str {
        self.0.spec.text()
    }

    pub(super) fn bucket_element(&self) -> Element {
        let d = self.d();
        let first = d.spec.len() + d.tune.len();
        match d.args[usize::from(d.launch.bucket_arg) - first].kind {
            Kind::Number(element) => element,
            Kind::Tensor { .. } => Element::U32,
        }
    }

    /// The values with those of a config's tunables; its defaults where it is none of the family's.
    fn with(&self, config: &Config) -> (Values, Box<[i64]>) {
        let assignment = self.d().assignment_of(config.json()).unwrap_or_else(|| self.d().default_assignment());
        let mut values = self.0.values;
        self.d().assign(&mut values, &assignment);
        (values, assignment)
    }
}

impl family::Problem for Problem {
    fn family(&self) -> &str {
        &self.d().family
    }

    fn templates(&self) -> &str {
        self.0.template.digest()
    }

    fn spec(&self) -> &Stated {
        &self.0.spec
    }

    fn class(&self) -> &Stated {
        &self.0.class
    }

    /// Slots are made for each class by itself.
    fn class_index(&self) -> usize {
        0
    }

    fn bucket(&self) -> Bucket {
        self.0.bucket
    }

    fn space(&self, _: Abilities) -> Vec<Config> {
        self.0.space.clone()
    }

    fn check(&self, config: &Config, can: Abilities) -> Result<()> {
        if let (Dialect::Host, OnHost::No(why)) = (can.dialect, self.0.template.on_host()) {
            return Err(
                Error::new(ErrorKind::Unsupported, format!("runs on GPUs only: {why}")).subject_is(self.family())
            );
        }
        if self.0.space.contains(config) {
            return Ok(());
        }
        let what = format!("'{config}' is no candidate of {} for layout {}", self.0.spec, self.0.class);
        Err(Error::argument("variant", what))
    }

    fn parse(&self, text: &str) -> Result<Config> {
        self.d().parse_assignment(text).map(|a| self.d().config(&a))
    }

    fn restate(&self, config: &Config) -> Option<Config> {
        self.d().assignment_of(config.json()).map(|a| self.d().config(&a))
    }

    fn source(&self, dialect: Dialect, config: &Config) -> Source {
        let (values, _) = self.with(config);
        source::source(self.d(), self.0.template.body(), self.0.template.on_host(), dialect, &values)
    }

    fn compiled(&self, binary: &Binary) -> Result<()> {
        ptx::compare(&String::from_utf8_lossy(binary.ptx()), &self.d().family, &self.d().args)
    }

    fn attrs(&self, config: &Config) -> LaunchAttrs {
        let (values, numbers) = self.with(config);
        // More than a GPU has, or no value at all, is refused when the kernel is loaded.
        let shared = self.d().launch.shared.eval(&values).map_or(u32::MAX, |n| u32::try_from(n).unwrap_or(u32::MAX));
        LaunchAttrs { overlap: false, shared, numbers }
    }

    fn bytes(&self, size: u64) -> u64 {
        self.values_for(size).and_then(|v| regions::traffic(self.d(), &v)).unwrap_or(0)
    }

    fn trial(&self, device: &Arc<dyn Device>, limit: u64, throttle: &Throttle<'_>) -> Result<Box<dyn family::Trial>> {
        Ok(Box::new(trial::Trial::new(self, device, limit, throttle)?))
    }

    fn same(&self) -> family::Same {
        match self.d().test.same {
            Same::Bits => family::Same::Bits,
            Same::Ulp(ulp) => family::Same::Within(format!("{ulp} ulp")),
            Same::Near { rtol, atol } => family::Same::Within(format!("rtol {rtol}, atol {atol}")),
        }
    }
}
