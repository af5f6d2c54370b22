//! The first call of a bucket and layout class: memory, disk, what is shipped; else compile, tune, publish.

use std::sync::{Arc, PoisonError};
use std::time::Instant;

use super::kernels::Loaded;
use super::throttle::Throttle;
use super::{BUDGET, Engine, Rope, RopeState, Shared, Tuning, lock, priors, turn};
use crate::device::Stream;
use crate::error::{Error, ErrorKind, Result};
use crate::jit::{Bucket, Candidate, Class, Record, Variant, variant};
use crate::plan::{Origin, Plan};
use crate::rope::scaling::TableMode;
use crate::rope::{DType, Direction, PairStyle, PositionForm, RopeSpec, Rounding, TableWidth};

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

/// Fills a slot and returns what is in it.
pub(super) fn resolve(
    rope: &Rope,
    stream: Stream<'_>,
    bucket: Bucket,
    class: Class,
    tuning: Tuning,
) -> Result<Arc<Plan>> {
    let (shared, state) = (rope.shared.as_ref(), &rope.state);
    if shared.device.is_capturing(stream) {
        shared.note_capture();
        return while_capturing(state, class);
    }
    let slot = state.slot(bucket, class);
    let _filling = slot.filling.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(plan) = slot.plan.load_full() {
        state.hits.add();
        // Another thread has filled it meanwhile.
        return Ok(plan);
    }
    let started = Instant::now();
    let plan = Arc::new(find_or_make(shared, state, bucket, class, tuning)?);
    tracing::debug!("{}, {} tokens: {:?} in {:?}", state.spec, bucket.tokens(), plan.origin, started.elapsed());
    state.serve(bucket, class, Arc::clone(&plan));
    let settled = is_settled(shared, &plan) || plan.origin == Origin::Reference;
    let decided = plan.origin != Origin::Embedded && lock::decides(shared, &state.spec, bucket, class);
    if tuning == Tuning::Background && !settled && !decided {
        rope.worker.enqueue(Arc::clone(state), bucket, class);
    }
    Ok(plan)
}

/// What serves for good, compiled and tuned as need be: the work that a first call leaves to the background. `None` while
/// another process tunes the same, as it has `since` then.
pub(super) fn settle(
    shared: &Shared,
    state: &RopeState,
    bucket: Bucket,
    class: Class,
    since: Instant,
    throttle: &Throttle<'_>,
) -> Result<Option<Plan>> {
    let decided = lock::decides(shared, &state.spec, bucket, class);
    match chosen(shared, &state.spec, bucket, class, Tuning::Background, true) {
        Ok(Some(plan)) if is_settled(shared, &plan) || decided => Ok(Some(plan)),
        Err(e) if decided => Err(e),
        // A default that cannot be made again is no reason not to look for a better one.
        _ => turn::tune_in_slices(shared, state, class, bucket, since, throttle),
    }
}

/// Whether nothing is left to measure.
pub(super) fn is_settled(shared: &Shared, plan: &Plan) -> bool {
    plan.tuned || (plan.prior && shared.priors.is_on())
}

/// During graph capture nothing may be compiled, loaded or allocated: any loaded kernel of the class is correct.
fn while_capturing(state: &RopeState, class: Class) -> Result<Arc<Plan>> {
    (0..Bucket::COUNT).filter_map(|b| state.slots[b * Class::COUNT + class.index()].plan.load_full()).last().ok_or_else(
        || {
            Error::new(
                ErrorKind::Unsupported,
                "no kernel for this layout is loaded, and none can be while a graph is captured",
            )
            .subject_is(state.spec.to_string())
            .hint("call it once before the capture, or prewarm")
        },
    )
}

/// A kernel from the cache, one that is shipped, a compiled or a tuned one; the device's fallback where nothing else can
/// be had.
fn find_or_make(shared: &Shared, state: &RopeState, bucket: Bucket, class: Class, tuning: Tuning) -> Result<Plan> {
    let spec = &state.spec;
    // Waited for: a tuning, if the caller asked for that; the variants of a lock file where nothing follows in the
    // background; and any kernel where none is shipped.
    let wait = match tuning {
        Tuning::Blocking { .. } => true,
        Tuning::Never => !shared.portable || lock::decides(shared, spec, bucket, class),
        Tuning::Background => !shared.portable,
        Tuning::Frozen => false,
    };
    let made = match chosen(shared, spec, bucket, class, tuning, wait) {
        Ok(Some(plan)) => return Ok(plan),
        Err(e) if tuning == Tuning::Frozen => return Err(e),
        Err(e) => Err(e),
        Ok(None) => match tuning {
            Tuning::Frozen => return Err(not_cached(shared, spec, bucket, class)),
            Tuning::Blocking { budget } => turn::tune(shared, state, class, bucket, budget).or_else(|e| {
                let told = |_: &Plan| shared.counters.warn_once(format!("not tuned, the default serves: {e}"));
                default(shared, spec, bucket, class).inspect(told)
            }),
            Tuning::Background | Tuning::Never => match portable(shared, spec, class) {
                Some(plan) => return Ok(plan),
                None => match priors::take(shared, spec, bucket, class) {
                    Some(plan) => return Ok(plan),
                    None => default(shared, spec, bucket, class),
                },
            },
        },
    };
    made.or_else(|e| in_its_place(shared, spec, bucket, class, e))
}

/// What the lock file or the cache names; `None` if nothing does, or its kernel is not at hand and must not be compiled.
fn chosen(
    shared: &Shared,
    spec: &RopeSpec,
    bucket: Bucket,
    class: Class,
    tuning: Tuning,
    compile: bool,
) -> Result<Option<Plan>> {
    match lock::find(shared, spec, bucket, class, tuning, compile) {
        Some(locked) => locked,
        None => find(shared, spec, bucket, class, tuning, compile),
    }
}

/// What the cache's choice names. Where its kernel is gone or damaged it is made again if `compile` says so, not tuned
/// again.
pub(super) fn find(
    shared: &Shared,
    spec: &RopeSpec,
    bucket: Bucket,
    class: Class,
    tuning: Tuning,
    compile: bool,
) -> Result<Option<Plan>> {
    let Some(record) = shared.choices.read(spec, bucket, class) else { return Ok(None) };
    if !record.is_settled(shared.priors.is_on()) && matches!(tuning, Tuning::Blocking { .. }) {
        return Ok(None);
    }
    let Some(chosen) = legal_choice(shared, spec, class, bucket, &record) else { return Ok(None) };
    let found = match (compile, chosen.artifact) {
        (true, named) => Some(shared.kernels.obtain(spec, class, chosen.variant, named)?),
        (false, Some(key)) => shared.kernels.find(spec, class, chosen.variant, key)?,
        (false, None) => None,
    };
    let Some((loaded, origin)) = found else { return Ok(None) };
    let mut plan = plan(shared, spec, class, loaded, chosen.variant, origin, record.tuned)?;
    plan.prior = record.is_prior();
    Ok(Some(plan))
}

/// The kernel for all shapes that the crate ships, if there is one for the device.
fn portable(shared: &Shared, spec: &RopeSpec, class: Class) -> Option<Plan> {
    if !shared.portable {
        return None;
    }
    match shared.ahead_of_time.get(shared.device.as_ref(), spec, class) {
        Ok(Some((kernel, variant))) => {
            shared.counters.embedded_hits.add();
            Some(Plan::new(spec, class, variant, kernel, Origin::Embedded, false))
        }
        Ok(None) => None,
        Err(e) => {
            shared.counters.warn_once(format!("no kernel that is shipped can be loaded: {e}"));
            None
        }
    }
}

/// The default variant, compiled now: where nothing is shipped there is no way around it.
fn default(shared: &Shared, spec: &RopeSpec, bucket: Bucket, class: Class) -> Result<Plan> {
    let default = default_variant(shared, spec, class, bucket);
    let (loaded, origin) = shared.kernels.obtain(spec, class, default, None)?;
    keep_default(shared, spec, bucket, class, default, &loaded);
    plan(shared, spec, class, loaded, default, origin, false)
}

pub(super) fn plan(
    shared: &Shared,
    spec: &RopeSpec,
    class: Class,
    loaded: Loaded,
    variant: Variant,
    origin: Origin,
    tuned: bool,
) -> Result<Plan> {
    let kernel = loaded.kernel.ok_or_else(|| {
        Error::new(ErrorKind::DeviceUnavailable, "this engine compiles for another machine and runs nothing")
            .subject_is(&*shared.device.facts().arch)
    })?;
    Ok(Plan::new(spec, class, variant, kernel, origin, tuned))
}

/// Where nothing can be compiled or loaded, what serves in its place: a kernel that is shipped, else the device's own.
fn in_its_place(shared: &Shared, spec: &RopeSpec, bucket: Bucket, class: Class, e: Error) -> Result<Plan> {
    if !matches!(
        e.kind(),
        ErrorKind::CompilerMissing | ErrorKind::Compile | ErrorKind::Io | ErrorKind::Device | ErrorKind::OutOfMemory
    ) {
        return Err(e);
    }
    if let Some(plan) = portable(shared, spec, class) {
        shared.counters.warn_once(format!("not tuned, the kernel for all shapes serves: {e}"));
        return Ok(plan);
    }
    let reference = || {
        Arc::new(crate::families::rope::reference_kernel::ReferenceKernel::new(spec)) as Arc<dyn crate::device::Kernel>
    };
    let Some(kernel) = (shared.dialect == crate::device::Dialect::Host).then(reference) else { return Err(e) };
    shared.counters.warn_once(format!("no kernel can be had, the slow reference serves: {e}"));
    let default = default_variant(shared, spec, class, bucket);
    Ok(Plan::new(spec, class, default, kernel, Origin::Reference, false))
}

fn default_variant(shared: &Shared, spec: &RopeSpec, class: Class, bucket: Bucket) -> Variant {
    variant::space(spec, class, bucket, shared.device.abilities())[0]
}

/// A record's choice, unless it names something that this program would not generate.
fn legal_choice<'a>(
    shared: &Shared,
    spec: &RopeSpec,
    class: Class,
    bucket: Bucket,
    record: &'a Record,
) -> Option<&'a Candidate> {
    let chosen = record.chosen()?;
    match variant::check(spec, class, chosen.variant, shared.device.abilities()) {
        Ok(()) => Some(chosen),
        Err(e) => {
            let key = shared.choices.fields(spec, bucket, class)[0].key();
            tracing::warn!("choice {key} is not used: {e}");
            None
        }
    }
}

/// Notes that the default serves, so that the next process finds its artifact without asking a compiler.
fn keep_default(shared: &Shared, spec: &RopeSpec, bucket: Bucket, class: Class, default: Variant, loaded: &Loaded) {
    let candidate = Candidate { artifact: Some(loaded.artifact), ..Candidate::new(default) };
    let record = Record {
        device: shared.device.facts().name.clone(),
        compiler: shared.device.compiler().unwrap_or_default(),
        ..Record::new(bucket.tokens(), vec![candidate])
    };
    shared.choices.write(spec, bucket, class, record, false);
}

fn not_cached(shared: &Shared, spec: &RopeSpec, bucket: Bucket, class: Class) -> Error {
    let [own, arch] = shared.choices.fields(spec, bucket, class).map(|f| f.key());
    let root = shared.store.root().map_or_else(|| "memory".into(), |r| r.display().to_string());
    Error::new(
        ErrorKind::NotCached,
        format!(
            "not in the cache ({root}) for {} tokens, layout {class}, {} ({}), and tuning is frozen; looked for choice \
             {own} and {arch}",
            bucket.tokens(),
            shared.device.facts().name,
            shared.device.facts().arch
        ),
    )
    .subject_is(spec.to_string())
    .hint(prewarm_command(spec, bucket, class))
}

/// The command that fills the cache for a spec, bucket and class.
pub fn prewarm_command(spec: &RopeSpec, bucket: Bucket, class: Class) -> String {
    let mut command = format!(
        "ropejit prewarm --dtype {} --head-dim {} --num-heads {} --num-kv-heads {} --tokens {}",
        spec.dtype,
        spec.head_dim,
        spec.num_heads,
        spec.num_kv_heads,
        bucket.tokens()
    );
    let mut flag = |on: bool, text: &str| {
        if on {
            command.push(' ');
            command.push_str(text);
        }
    };
    flag(spec.rotary_dim < spec.head_dim, &format!("--rotary-dim {}", spec.rotary_dim));
    flag(spec.style == PairStyle::Interleaved, "--style interleaved");
    flag(spec.direction == Direction::Backward, "--backward");
    flag(spec.rounding == Rounding::PerOp, "--rounding per-op");
    flag(spec.table.dtype != DType::F32, "--table same");
    flag(spec.table.width == TableWidth::Full, "--table-width full");
    let positions = match spec.positions {
        PositionForm::Implicit => None,
        PositionForm::Ids32 => Some("ids32"),
        PositionForm::Ids64 => Some("ids64"),
        PositionForm::Offsets32 => Some("offsets32"),
        PositionForm::Offsets64 => Some("offsets64"),
        PositionForm::CuSeqlens => Some("cu-seqlens"),
    };
    let angles = match spec.angles {
        Some(TableMode::F32) => "--angles f32",
        Some(TableMode::Accurate) => "--angles accurate",
        None => "",
    };
    flag(spec.angles.is_some(), angles);
    flag(positions.is_some(), &format!("--positions {}", positions.unwrap_or_default()));
    flag(
        spec.mrope.is_some(),
        "--model CONFIG.json   (in place of the numbers: three position axes come from a model)",
    );
    flag(class.head_major, "--bhsd");
    command
}

/// Makes sure that a call finds everything in the cache.
pub(super) fn prewarm(
    engine: &Engine,
    spec: &RopeSpec,
    bucket: Bucket,
    class: Class,
    tune: bool,
) -> Result<Vec<Prewarmed>> {
    let shared = engine.shared.as_ref();
    let locked = lock::prewarm(shared, spec, bucket, class)?;
    if !locked.is_empty() {
        return Ok(locked);
    }
    let on = shared.priors.is_on();
    let done = |variant, (tuned, prior), origin| {
        vec![Prewarmed { spec: spec.clone(), bucket, class, variant, tuned, prior, origin }]
    };
    let tune = tune && shared.device.runs();
    if let Some(record) = shared.choices.read(spec, bucket, class)
        && (record.is_settled(on) || !tune)
        && let Some(chosen) = legal_choice(shared, spec, class, bucket, &record)
    {
        let (_, origin) = shared.kernels.obtain(spec, class, chosen.variant, chosen.artifact)?;
        return Ok(done(chosen.variant, (record.tuned, record.is_prior()), origin));
    }
    if tune {
        let state = engine.state(spec)?;
        let slot = state.slot(bucket, class);
        let fill = || slot.filling.lock().unwrap_or_else(PoisonError::into_inner);
        // First calls that would wait for a tuning, or fail without it, wait for this one; others are answered meanwhile.
        let all_along = !matches!(shared.tuning(), Tuning::Background | Tuning::Never);
        let filling = all_along.then(fill);
        let plan = turn::tune(shared, &state, class, bucket, BUDGET)?;
        let _filling = filling.unwrap_or_else(fill);
        let done = done(plan.variant, (plan.tuned, plan.prior), plan.origin);
        state.serve(bucket, class, Arc::new(plan));
        return Ok(done);
    }
    if let Some(plan) = priors::take(shared, spec, bucket, class) {
        return Ok(done(plan.variant, (false, true), plan.origin));
    }
    let default = default_variant(shared, spec, class, bucket);
    let (loaded, origin) = shared.kernels.obtain(spec, class, default, None)?;
    keep_default(shared, spec, bucket, class, default, &loaded);
    Ok(done(default, (false, false), origin))
}
