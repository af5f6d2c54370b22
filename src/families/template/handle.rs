//! The handle of a spec: what every call goes through.

use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use dashmap::DashMap;

use super::argument::Arg;
use super::call::Call;
use super::loaded::Template;
use super::names::Values;
use super::on_host::OnHost;
use super::problem::Problem;
use super::spec::Spec;
use crate::args::borrowed::Location;
use crate::device::{Dialect, Stream};
use crate::engine::Engine;
use crate::engine::slots::Slots;
use crate::error::{Error, ErrorKind, Result};
use crate::service::family::{self, Bucket, Origin, Provenance};

/// What the family keeps in an engine.
#[derive(Default)]
struct InEngine {
    /// By the template's digest and the spec's text.
    kernels: DashMap<(String, String), Arc<State>>,
}

/// What all handles of a spec share.
pub(super) struct State {
    template: Template,
    spec: Spec,
    /// What was called so far: few, and looked for by comparing.
    classes: ArcSwap<Vec<(u64, Arc<Class>)>>,
    /// Held while one is added.
    adding: Mutex<()>,
}

/// Calls that rules do not tell apart.
struct Class {
    /// Of the spec, and the least alignments that allow its candidates.
    values: Values,
    slots: Arc<Slots>,
}

/// A template on an engine's device.
#[derive(Clone)]
pub struct OnEngine {
    engine: Engine,
    template: Template,
}

impl Engine {
    /// A kernel of the caller's, on this engine's device.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] where the device is the host, and the kernel's text uses what only GPUs have.
    pub fn template(&self, template: &Template) -> Result<OnEngine> {
        if let Some(engine) = self.stand_in()? {
            return engine.template(template);
        }
        if let (Dialect::Host, OnHost::No(why)) = (self.device().dialect(), template.on_host()) {
            let what = format!("the kernel runs on GPUs only: {why}");
            return Err(Error::new(ErrorKind::Unsupported, what).subject_is(template.family()));
        }
        Ok(OnEngine { engine: self.clone(), template: template.clone() })
    }
}

impl OnEngine {
    /// The kernel of a spec: a value, as text, for each key of `[spec]`. All handles of one spec share what is loaded.
    ///
    /// # Errors
    /// When a key is unknown, missing, or has a value that it may not have.
    pub fn spec<K: AsRef<str>, V: AsRef<str>>(
        &self,
        values: impl IntoIterator<Item = (K, V)>,
    ) -> Result<TemplateKernel> {
        let values: Vec<(K, V)> = values.into_iter().collect();
        let spec = self.template.description().spec(values.iter().map(|(k, v)| (k.as_ref(), v.as_ref())))?;
        let engine = self.engine.stand_in()?.unwrap_or(&self.engine);
        Ok(TemplateKernel::of(engine, &self.template, spec))
    }
}

/// A kernel of the caller's for one spec.
#[derive(Clone)]
pub struct TemplateKernel {
    engine: Engine,
    state: Arc<State>,
    /// Where calls run, but for their stream.
    dialect: Dialect,
    context: u64,
}

/// What serves calls of one layout and size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Serving {
    /// Its tunables, such as `threads=256 vec=1`.
    pub config: String,
    /// Where it came from.
    pub origin: Origin,
    /// Why it serves.
    pub provenance: Provenance,
}

impl TemplateKernel {
    /// On an engine of this process.
    fn of(engine: &Engine, template: &Template, spec: Spec) -> Self {
        let kept = engine.shared().extensions.get_or_make(InEngine::default);
        let key = (template.digest().to_owned(), spec.stated.text().to_owned());
        let made = || {
            let (template, classes, adding) = (template.clone(), ArcSwap::default(), Mutex::default());
            Arc::new(State { template, spec, classes, adding })
        };
        let state = Arc::clone(kept.kernels.entry(key).or_insert_with(made).value());
        let (dialect, context) = (engine.device().dialect(), engine.device().context());
        Self { engine: engine.clone(), state, dialect, context }
    }

    /// The same kernel on the engine that stands in for a parent's; `None` where the engine is of this process.
    pub(super) fn stand_in(&self) -> Result<Option<Self>> {
        let state = &self.state;
        let engine = self.engine.stand_in()?;
        Ok(engine.map(|engine| Self::of(engine, &state.template, state.spec.clone())))
    }

    /// What it is compiled for, such as `add_rmsnorm dtype=bf16,hidden=4096`.
    pub fn spec(&self) -> &str {
        self.state.spec.stated.text()
    }

    /// Launches on the stream, with an argument for each of `[args]`, in their order. Returns where the kernel came from:
    /// [`Origin::Memory`] from the second call of a layout and bucket on, which hashes, locks, allocates, waits for and logs
    /// nothing.
    ///
    /// Tensors that the kernel writes must not overlap others. The kernel is native code, which its author vouches for.
    ///
    /// # Errors
    /// When an argument does not fit, or (first calls only) no kernel can be had.
    pub fn launch(&self, stream: Stream<'_>, args: &[Arg<'_>]) -> Result<Origin> {
        let call = self.call(stream, args)?;
        if self.launch_loaded(stream, &call)? {
            return Ok(Origin::Memory);
        }
        if let Some(kernel) = self.stand_in()? {
            return kernel.launch(stream, args);
        }
        let class = self.state.class(self.engine.shared(), &call)?;
        // Now that its alignments are known to be of this class, others may have filled the slot.
        if self.launch_loaded(stream, &call)? {
            return Ok(Origin::Memory);
        }
        let problem = self.state.problem(&class, call.bucket)?;
        let plan = self.engine.resolve(&problem, &class.slots, stream, self.engine.shared().tuning())?;
        call.launch(self.state.template.description(), &plan, stream)?;
        Ok(plan.origin)
    }

    /// As [`TemplateKernel::launch`] where that only launches: `false`, and nothing done, when a kernel has yet to be found.
    /// So a caller that holds a lock which compiling must not hold (Python's) can let go of it first.
    ///
    /// # Errors
    /// As [`TemplateKernel::launch`].
    pub fn launch_if_loaded(&self, stream: Stream<'_>, args: &[Arg<'_>]) -> Result<bool> {
        self.launch_loaded(stream, &self.call(stream, args)?)
    }

    /// What serves calls with such arguments, if it is loaded.
    ///
    /// # Errors
    /// When an argument does not fit.
    pub fn serving(&self, stream: Stream<'_>, args: &[Arg<'_>]) -> Result<Option<Serving>> {
        let call = self.call(stream, args)?;
        let loaded = |class: &Class| class.slots.at(call.bucket, 0).plan_to_keep();
        let plan = match self.state.known(call.class).as_deref().and_then(loaded) {
            Some(plan) => Some(plan),
            None => match self.stand_in()? {
                Some(kernel) => return kernel.serving(stream, args),
                None => loaded(&*self.state.class(self.engine.shared(), &call)?),
            },
        };
        Ok(plan.map(|plan| Serving {
            config: plan.config.text().to_owned(),
            origin: plan.origin,
            provenance: plan.provenance,
        }))
    }

    fn call(&self, stream: Stream<'_>, args: &[Arg<'_>]) -> Result<Call> {
        let place = match self.dialect {
            Dialect::Cuda => Location::Cuda { context: self.context, stream: stream.id() },
            Dialect::Host => Location::Host,
        };
        let state = &self.state;
        Call::new(state.template.description(), &state.spec.values, state.template.aligned(), args, place)
    }

    fn launch_loaded(&self, stream: Stream<'_>, call: &Call) -> Result<bool> {
        let classes = self.state.classes.load();
        let Some((_, class)) = classes.iter().find(|(code, _)| *code == call.class) else { return Ok(false) };
        let loaded = class.slots.at(call.bucket, 0).plan();
        let Some(plan) = loaded.as_deref() else { return Ok(false) };
        class.slots.note_hit();
        call.launch(self.state.template.description(), plan, stream)?;
        Ok(true)
    }

    /// What the service sees of calls of this size, with tensors that start where allocators put them: to look it up.
    ///
    /// # Errors
    /// When no candidate is legal for the spec.
    pub fn problem(&self, size: u64) -> Result<Arc<dyn family::Problem>> {
        Ok(Arc::new(self.typed_problem(super::space::WIDEST, Bucket::of(size))?))
    }

    /// The problem of calls with these alignments, among the spec's values, and this size, and the slots that serve it.
    pub(super) fn problem_of(&self, aligned: i64, bucket: Bucket) -> Result<(Arc<dyn family::Problem>, Arc<Slots>)> {
        let state = &self.state;
        let mut values = state.spec.values;
        let mut code = 0u64;
        for name in state.template.aligned() {
            values[usize::from(*name)] = aligned;
            code = code << 3 | u64::from(aligned.trailing_zeros());
        }
        let class = state.class_of(self.engine.shared(), code, &values)?;
        Ok((state.problem(&class, bucket)?, Arc::clone(&class.slots)))
    }

    /// As [`TemplateKernel::problem_of`], in the family's own terms.
    pub(super) fn typed_problem(&self, aligned: i64, bucket: Bucket) -> Result<Problem> {
        let state = &self.state;
        let mut values = state.spec.values;
        for name in state.template.aligned() {
            values[usize::from(*name)] = aligned;
        }
        Problem::new(&state.template, &state.spec, &values, bucket)
    }

    pub(super) fn template(&self) -> &Template {
        &self.state.template
    }

    pub(super) fn spec_values(&self) -> Values {
        self.state.spec.values
    }

    pub(super) fn engine(&self) -> &Engine {
        &self.engine
    }
}

impl State {
    /// The class of a code that was called before; takes no lock.
    fn known(&self, code: u64) -> Option<Arc<Class>> {
        self.classes.load().iter().find(|(known, _)| *known == code).map(|(_, class)| Arc::clone(class))
    }

    fn problem(&self, class: &Class, bucket: Bucket) -> Result<Arc<dyn family::Problem>> {
        Ok(Arc::new(Problem::new(&self.template, &self.spec, &class.values, bucket)?))
    }

    fn class(&self, shared: &crate::engine::shared::Shared, call: &Call) -> Result<Arc<Class>> {
        self.class_of(shared, call.class, call.values())
    }

    /// The class of these alignments, which others may share.
    fn class_of(&self, shared: &crate::engine::shared::Shared, code: u64, values: &Values) -> Result<Arc<Class>> {
        let known =
            |all: &[(u64, Arc<Class>)]| all.iter().find(|(c, _)| *c == code).map(|(_, class)| Arc::clone(class));
        let _adding = self.adding.lock().unwrap_or_else(PoisonError::into_inner);
        let all = self.classes.load_full();
        if let Some(class) = known(&all) {
            return Ok(class);
        }
        let mut of_class = self.spec.values;
        for name in self.template.aligned() {
            of_class[usize::from(*name)] = values[usize::from(*name)];
        }
        let values = self.template.description().canonical_class(&of_class)?;
        let same = all.iter().find(|(_, class)| class.values == values).map(|(_, class)| Arc::clone(class));
        let class = same.unwrap_or_else(|| Arc::new(Class { values, slots: shared.new_slots(1) }));
        let mut more = all.as_ref().clone();
        more.push((code, Arc::clone(&class)));
        self.classes.store(Arc::new(more));
        Ok(class)
    }
}
