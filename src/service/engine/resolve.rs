//! The first call of a bucket and layout class: looks up, decides, obtains or tunes, publishes.

use std::sync::Arc;
use std::time::Instant;

use super::policy::{BUDGET, Tuning};
use super::shared::Shared;
use super::slots::Slots;
use super::throttle::Throttle;
use super::{lookup, missing, priors, single_flight, watch};
use crate::error::{Error, ErrorKind, Result};
use crate::service::device::Stream;
use crate::service::family::{Config, Origin, Plan, Problem, Provenance};

/// What a prewarm has done for a problem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prepared {
    /// The config that will serve.
    pub config: Config,
    /// Why.
    pub provenance: Provenance,
    /// Where it came from: [`Origin::Disk`] when there was nothing to do.
    pub origin: Origin,
}

/// Fills a problem's slot and returns what is in it, and whether background work is left to do for it.
pub fn resolve(
    shared: &Shared,
    slots: &Slots,
    problem: &dyn Problem,
    stream: Stream<'_>,
    tuning: Tuning,
) -> Result<(Arc<Plan>, bool)> {
    if shared.device.is_capturing(stream) {
        shared.note_capture();
        return while_capturing(slots, problem).map(|plan| (plan, false));
    }
    let slot = slots.of(problem);
    let _filling = slot.fill();
    if let Some(plan) = slot.plan_to_keep() {
        slots.note_hit();
        // Another thread has filled it meanwhile.
        return Ok((plan, false));
    }
    let started = Instant::now();
    let since_first = shared.since_first_call();
    let plan = find_or_make(shared, problem, tuning)?;
    let left = tuning == Tuning::Background && !plan.provenance.is_settled(shared.priors);
    let plan = Arc::new(if left { plan.watched(&shared.device) } else { plan });
    let (spec, tokens) = (problem.spec(), problem.bucket().tokens());
    tracing::debug!("{spec}, {tokens} tokens: {:?} in {:?}", plan.origin, started.elapsed());
    if let Some(since_first) = since_first.filter(|&time| time >= shared.late_after && watch::has_waited(plan.origin)) {
        shared.counters.late_compiles.add();
        tracing::warn!(
            "a call waited {:?} for a compiler, {since_first:?} after the first call: {} {spec}, {tokens} tokens, layout {}; prewarm it",
            started.elapsed(),
            problem.family(),
            problem.class()
        );
    }
    slots.publish(problem, Arc::clone(&plan));
    Ok((plan, left))
}

/// How many times faster the new kernel has to be than one that a graph keeps, for a warning.
const WORTH_A_CAPTURE: f64 = 1.03;

/// From now on the plan that background work has found serves. Warns where a graph was captured with the one that served until
/// now, if that is slower, or not known to be as fast.
pub fn take_over(shared: &Shared, slots: &Slots, problem: &dyn Problem, plan: Plan) {
    let before = slots.of(problem).plan_to_keep();
    let plan = Arc::new(plan);
    slots.publish(problem, Arc::clone(&plan));
    let Some(before) =
        before.filter(|p| p.config != plan.config && p.watched.as_ref().is_some_and(|w| w.was_captured()))
    else {
        return;
    };
    let record = shared.choices.read(problem);
    let ns = |config: &Config| record.as_ref()?.candidates.iter().find(|c| c.config == *config)?.median_ns();
    let how = match (ns(&before.config), ns(&plan.config)) {
        (Some(slow), Some(fast)) if slow <= WORTH_A_CAPTURE * fast => return,
        (Some(slow), Some(fast)) => format!("{:.0} % slower", 100.0 * (slow / fast - 1.0)),
        _ => "probably slower".into(),
    };
    shared.counters.warn_once(format!(
        "a CUDA graph was captured while {} of {} tokens was being tuned, and keeps '{}', which is {how} than '{}'; hint: \
         prewarm, or wait for the tuning before the capture (Engine::wait_tuned, ropejit.wait_tuned())",
        problem.spec(),
        problem.bucket().tokens(),
        before.config,
        plan.config
    ));
}

/// What serves for good, compiled and tuned as need be: the work that a first call leaves to the background. `None` while
/// another process tunes the same, as it has `since` then.
pub fn settle(shared: &Shared, problem: &dyn Problem, since: Instant, throttle: &Throttle<'_>) -> Result<Option<Plan>> {
    let tuning = Tuning::Background;
    if let Some(named) = lookup::named(shared, problem, tuning)? {
        match lookup::plan(shared, problem, &named, tuning, true) {
            Ok(Some(plan)) if plan.provenance.is_settled(shared.priors) => return Ok(Some(plan)),
            Err(e) if named.line.is_some() => return Err(e),
            // A default that cannot be made again is no reason not to look for a better one.
            _ => {}
        }
    }
    single_flight::tune_in_slices(shared, problem, since, throttle)
}

/// During graph capture nothing may be compiled, loaded or allocated: any loaded kernel of the class is correct.
fn while_capturing(slots: &Slots, problem: &dyn Problem) -> Result<Arc<Plan>> {
    slots.any_of_class(problem.class_index()).ok_or_else(|| {
        Error::new(
            ErrorKind::Unsupported,
            "no kernel for this layout is loaded, and none can be while a graph is captured",
        )
        .subject_is(problem.spec().to_string())
        .hint("call it once before the capture, or prewarm")
    })
}

/// A kernel from the cache, one that was compiled ahead of time, a compiled or a tuned one; the family's fallback where
/// nothing else can be had.
fn find_or_make(shared: &Shared, problem: &dyn Problem, tuning: Tuning) -> Result<Plan> {
    let started = Instant::now();
    let found = look_up(shared, problem, tuning);
    tracing::debug!("looked up in {:?}", started.elapsed());
    let made = match found {
        Ok(Some(plan)) => return Ok(plan),
        Err(e) if tuning == Tuning::Frozen => return Err(e),
        Err(e) => Err(e),
        Ok(None) => match tuning {
            Tuning::Frozen => return Err(missing::no_choice(shared, problem)),
            Tuning::Blocking { budget } => single_flight::tune(shared, problem, budget).or_else(|e| {
                let told = |_: &Plan| shared.counters.warn_once(format!("not tuned, the default serves: {e}"));
                default(shared, problem).inspect(told)
            }),
            Tuning::Background | Tuning::Never => match ahead_of_time(shared, problem) {
                Some(plan) => return Ok(plan),
                None => match priors::take(shared, problem) {
                    Some(plan) => return Ok(plan),
                    None => default(shared, problem),
                },
            },
        },
    };
    made.or_else(|e| in_its_place(shared, problem, e))
}

/// What the lock file or the cache names; `None` if nothing does, or its kernel is not at hand and nobody waits for it.
fn look_up(shared: &Shared, problem: &dyn Problem, tuning: Tuning) -> Result<Option<Plan>> {
    let Some(named) = lookup::named(shared, problem, tuning)? else { return Ok(None) };
    // Waited for: a kernel, if the caller waits for tunings; a lock file's where nothing follows in the background; and any
    // where nothing was compiled ahead of time.
    let wait = match tuning {
        Tuning::Blocking { .. } => true,
        Tuning::Never => named.line.is_some() || !shared.has_ahead_of_time(problem),
        Tuning::Background => !shared.has_ahead_of_time(problem),
        Tuning::Frozen => false,
    };
    lookup::plan(shared, problem, &named, tuning, wait)
}

/// The kernel that was compiled ahead of time, if there is one for the device.
fn ahead_of_time(shared: &Shared, problem: &dyn Problem) -> Option<Plan> {
    if !shared.has_ahead_of_time(problem) {
        return None;
    }
    let plan = |(kernel, config)| Plan::new(problem, Some(kernel), config, Origin::Embedded, Provenance::AheadOfTime);
    match problem
        .ahead_of_time(shared.device.as_ref(), shared.abilities())
        .and_then(|found| found.map(plan).transpose())
    {
        Ok(found) => found.inspect(|_| shared.counters.embedded_hits.add()),
        Err(e) => {
            shared.counters.warn_once(format!("no kernel that is shipped can be loaded: {e}"));
            None
        }
    }
}

/// The default config, compiled now: where nothing was compiled ahead of time there is no way around it.
fn default(shared: &Shared, problem: &dyn Problem) -> Result<Plan> {
    let (config, loaded, origin) = lookup::default(shared, problem)?;
    Plan::new(problem, loaded.kernel, config, origin, Provenance::Default)
}

/// Where nothing can be compiled or loaded, what serves in its place: a kernel that was compiled ahead of time, else the
/// family's own.
fn in_its_place(shared: &Shared, problem: &dyn Problem, e: Error) -> Result<Plan> {
    if !matches!(
        e.kind(),
        ErrorKind::CompilerMissing | ErrorKind::Compile | ErrorKind::Io | ErrorKind::Device | ErrorKind::OutOfMemory
    ) {
        return Err(e);
    }
    if let Some(plan) = ahead_of_time(shared, problem) {
        shared.counters.warn_once(format!("not tuned, the kernel for all shapes serves: {e}"));
        return Ok(plan);
    }
    let Some(kernel) = problem.fallback(shared.device.as_ref()) else { return Err(e) };
    shared.counters.warn_once(format!("no kernel can be had, the slow reference serves: {e}"));
    let config = shared.default_config(problem);
    Plan::new(problem, Some(kernel), config, Origin::Reference, Provenance::Reference)
}

/// Makes sure that a call finds everything in the cache. Where a device is there to run on, `slots` take what was tuned.
pub fn prewarm(shared: &Shared, slots: Option<&Slots>, problem: &dyn Problem, tune: bool) -> Result<Vec<Prepared>> {
    let locked = prewarm_locked(shared, problem)?;
    if !locked.is_empty() {
        return Ok(locked);
    }
    let done = |config, provenance, origin| vec![Prepared { config, provenance, origin }];
    let slots = slots.filter(|_| tune && shared.device.runs());
    if let Some(record) = shared.choices.read(problem)
        && (record.is_settled(shared.priors) || slots.is_none())
        && let Some(named) = lookup::named_by(shared, problem, &record)
    {
        let (_, origin) = shared.kernels.obtain(problem, &named.config, named.artifact)?;
        return Ok(done(named.config, named.provenance, origin));
    }
    if let Some(slots) = slots {
        let slot = slots.of(problem);
        // First calls that would wait for a tuning, or fail without it, wait for this one; others are answered meanwhile.
        let all_along = !matches!(shared.tuning(), Tuning::Background | Tuning::Never);
        let filling = all_along.then(|| slot.fill());
        let plan = single_flight::tune(shared, problem, BUDGET)?;
        let _filling = filling.unwrap_or_else(|| slot.fill());
        let done = done(plan.config.clone(), plan.provenance, plan.origin);
        slots.publish(problem, Arc::new(plan));
        return Ok(done);
    }
    if let Some(plan) = priors::take(shared, problem) {
        return Ok(done(plan.config, plan.provenance, plan.origin));
    }
    let (config, _, origin) = lookup::default(shared, problem)?;
    Ok(done(config, Provenance::Default, origin))
}

/// What the lock file names: on a device its own choice, for an architecture those of all devices of it. Nothing where the
/// file is silent.
fn prewarm_locked(shared: &Shared, problem: &dyn Problem) -> Result<Vec<Prepared>> {
    let Some(held) = &shared.lock else { return Ok(Vec::new()) };
    if let Some(silence) = held.silence(shared.device.as_ref()) {
        shared.counters.warn_once(silence);
    }
    let lines = if shared.device.runs() {
        held.decides(shared.device.as_ref(), problem).into_iter().collect()
    } else {
        held.all_of_arch(shared.device.as_ref(), problem)
    };
    let mut done: Vec<Prepared> = Vec::new();
    for line in lines {
        let named = lookup::locked(shared, problem, line)?;
        if done.iter().all(|d| d.config != named.config)
            && let Some((_, origin)) = lookup::obtain(shared, problem, &named, Tuning::Never, true)?
        {
            done.push(Prepared { config: named.config, provenance: named.provenance, origin });
        }
    }
    Ok(done)
}
