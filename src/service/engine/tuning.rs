//! One tuning run: compile all candidates, check their bits, time them, keep the record.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::choices::record_of;
use super::kernels::Loaded;
use super::policy::Progress;
use super::priors;
use super::room::room;
use super::shared::Shared;
use super::throttle::{Throttle, cancelled};
use crate::error::{Error, ErrorKind, Result};
use crate::service::device::{self, Stream, Timer};
use crate::service::family::{Origin, Plan, Problem, Provenance, Same, Trial};
use crate::service::record::{Candidate, Record};
use crate::service::tune::{Measure, Policy, search};

/// Progress is saved this often while measuring.
const SAVE_EVERY: Duration = Duration::from_millis(100);

/// Tunes a problem, keeps the record and returns the winner.
pub fn tune(shared: &Shared, problem: &dyn Problem, budget: Duration, throttle: &Throttle<'_>) -> Result<Plan> {
    let started = Instant::now();
    let _running = Running::begin(shared);
    shared.device.compiler()?; // without one there is nothing to tune
    let _aside = shared.device.aside()?;
    let (configs, prior) = priors::candidates(shared, problem);
    // An earlier run that was cut short has left its samples.
    let (mut candidates, tokens): (Vec<Candidate>, u64) = match shared.choices.read_own(problem) {
        Some(r) if !r.tuned && r.candidates.iter().map(|c| &c.config).eq(&configs) => (r.candidates, r.tokens),
        _ => (configs.into_iter().map(Candidate::new).collect(), problem.bucket().tokens()),
    };
    let kernels = compile_all(shared, problem, &mut candidates, throttle);
    let tolerance = match problem.same() {
        Same::Bits => None,
        Same::Within(tolerance) => Some(tolerance),
    };
    let record = Record { prior, tolerance, ..record_of(shared.device.as_ref(), tokens, candidates) };
    let plan = if stopped(shared, throttle) {
        Err(cancelled())
    } else {
        measure(shared, problem, budget, throttle, &kernels, record, started)
    };
    release(shared, kernels, throttle);
    plan
}

/// Whether nobody needs the result any more, at whatever pace.
fn stopped(shared: &Shared, throttle: &Throttle<'_>) -> bool {
    throttle.cancelled() || shared.closing.load(Relaxed)
}

/// Counts a tuning that runs: the end of an engine waits for it.
struct Running<'a>(&'a Shared);

impl<'a> Running<'a> {
    fn begin(shared: &'a Shared) -> Self {
        shared.running.fetch_add(1, Relaxed);
        Self(shared)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Relaxed);
    }
}

/// Times all candidates that were loaded, keeps the record and returns the winner.
fn measure(
    shared: &Shared,
    problem: &dyn Problem,
    budget: Duration,
    throttle: &Throttle<'_>,
    kernels: &[Option<Loaded>],
    mut record: Record,
    started: Instant,
) -> Result<Plan> {
    let spec = problem.spec();
    let mut run = Run::prepare(shared, problem, kernels, &mut record, throttle)?;
    run.started = started;
    if run.hangs {
        return settle_for_default(shared, problem, kernels, record);
    }
    let live: Vec<bool> = run.timers.iter().map(Option::is_some).collect();
    let samples = run.record.candidates.iter().map(|c| c.samples_ns.clone()).collect();
    let policy = Policy { budget, ..Policy::default() };
    let outcome = search(&mut run, samples, &live, &policy);
    drop(run);
    if stopped(shared, throttle) {
        return Err(cancelled()); // what was measured is kept
    }
    let outcome = outcome.ok_or_else(|| {
        let why = record.candidates.iter().find_map(|c| c.dropped.clone()).unwrap_or_default();
        Error::new(ErrorKind::Device, format!("no candidate could be measured: {why}")).subject_is(spec.to_string())
    })?;
    for (candidate, (samples, dropped)) in
        record.candidates.iter_mut().zip(outcome.samples.into_iter().zip(outcome.dropped))
    {
        candidate.samples_ns = samples;
        candidate.dropped = candidate.dropped.take().or(dropped);
    }
    record.winner = outcome.winner;
    record.near_ties = outcome.near_ties;
    record.tuned = outcome.complete;
    record.took_ms = started.elapsed().as_secs_f64() * 1e3;
    let config = record.candidates[record.winner].config.clone();
    let provenance = record.provenance();
    let tuned = record.tuned;
    tracing::debug!(
        "{spec}, {} tokens: '{config}' in {:?}, of that rested {:?}; longest slice {:?}",
        problem.bucket().tokens(),
        started.elapsed(),
        throttle.rested(),
        throttle.longest()
    );
    shared.choices.write(problem, record, true);
    if tuned {
        shared.counters.tunings.add();
    }
    let kernel = kernels
        .get(outcome.winner)
        .and_then(|loaded| loaded.as_ref()?.kernel.clone())
        .ok_or_else(|| Error::new(ErrorKind::Device, "the winner was not loaded"))?;
    Plan::new(problem, Some(kernel), config, Origin::Tuned, provenance)
}

/// Where a candidate hangs nothing can be measured, here or in another process: the default serves from now on, and the record
/// says why.
fn settle_for_default(
    shared: &Shared,
    problem: &dyn Problem,
    kernels: &[Option<Loaded>],
    mut record: Record,
) -> Result<Plan> {
    let (config, kernel) = (record.candidates[0].config.clone(), kernels[0].as_ref().and_then(|l| l.kernel.clone()));
    (record.winner, record.tuned) = (0, true);
    shared.choices.write(problem, record, true);
    Plan::new(problem, kernel, config, Origin::Tuned, Provenance::Tuned)
}

/// Unloads the candidates that no plan uses: one at a time, since the driver may wait for the device.
fn release(shared: &Shared, kernels: Vec<Option<Loaded>>, throttle: &Throttle<'_>) {
    let artifacts: Vec<_> = kernels.iter().flatten().filter_map(|loaded| loaded.artifact).collect();
    drop(kernels);
    for loser in shared.kernels.take_unused(&artifacts) {
        let unload = || {
            drop(loser);
            Ok(())
        };
        if throttle.slice(unload).is_err() {
            return; // cancelled, and the rest goes with the engine
        }
    }
}

/// Compiles and loads all candidates on as many threads as there are cores, in the background half as many.
fn compile_all(
    shared: &Shared,
    problem: &dyn Problem,
    candidates: &mut [Candidate],
    throttle: &Throttle<'_>,
) -> Vec<Option<Loaded>> {
    let total = candidates.len();
    let results: Vec<Mutex<Option<Result<Loaded>>>> = (0..total).map(|_| Mutex::new(None)).collect();
    let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let threads = if throttle.in_slices() { cores.div_ceil(2) } else { cores }.min(total);
    let wanted: Vec<_> = candidates.iter().map(|c| (c.config.clone(), c.artifact)).collect();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let i = next.fetch_add(1, Relaxed);
                    if i >= total || shared.closing.load(Relaxed) {
                        return;
                    }
                    let (config, named) = &wanted[i];
                    let made = shared.kernels.obtain(problem, config, *named).map(|(loaded, _)| loaded);
                    *results[i].lock().unwrap_or_else(PoisonError::into_inner) = Some(made);
                    let done = done.fetch_add(1, Relaxed) + 1;
                    shared.tell(&Progress::Compiled { spec: problem.spec(), bucket: problem.bucket(), done, total });
                }
            });
        }
    });
    let collect = |(candidate, result): (&mut Candidate, Mutex<Option<Result<Loaded>>>)| match result
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner)
    {
        Some(Ok(loaded)) => {
            candidate.artifact = loaded.artifact;
            Some(loaded)
        }
        // What fails while all ends is no news.
        Some(Err(_)) if shared.closing.load(Relaxed) => None,
        Some(Err(e)) => {
            shared.counters.warn_once(format!("candidate '{}' is left out: {e}", candidate.config));
            candidate.dropped = Some(e.to_string());
            None
        }
        None => None,
    };
    candidates.iter_mut().zip(results).map(collect).collect()
}

/// Candidates ready to be timed.
struct Run<'a> {
    shared: &'a Shared,
    problem: &'a dyn Problem,
    record: &'a mut Record,
    timers: Vec<Option<Box<dyn Timer>>>,
    /// One of them hangs on the device.
    hangs: bool,
    started: Instant,
    saved: Instant,
    throttle: &'a Throttle<'a>,
}

impl<'a> Run<'a> {
    fn prepare(
        shared: &'a Shared,
        problem: &'a dyn Problem,
        kernels: &[Option<Loaded>],
        record: &'a mut Record,
        throttle: &'a Throttle<'a>,
    ) -> Result<Self> {
        let spec = problem.spec();
        let mut trial = problem.trial(&shared.device, room(shared.device.as_ref(), problem)?, throttle)?;
        let mut plans: Vec<Option<Arc<Plan>>> = Vec::new();
        let mut expected: Option<Vec<u8>> = None;
        for (candidate, loaded) in record.candidates.iter_mut().zip(kernels) {
            let Some(kernel) = loaded.as_ref().and_then(|l| l.kernel.clone()) else {
                plans.push(None);
                continue;
            };
            let plan = Plan::new(problem, Some(kernel), candidate.config.clone(), Origin::Tuned, Provenance::Tuned)?;
            let output = match trial.outputs(&plan, throttle) {
                Ok(output) => output,
                Err(e) if throttle.cancelled() => return Err(e),
                Err(e) => {
                    candidate.dropped = Some(e.to_string());
                    plans.push(None);
                    if trial.hangs() {
                        // To unload one, the driver would wait for all that runs.
                        for kernel in kernels.iter().flatten().filter_map(|l| l.kernel.as_ref()) {
                            kernel.keep();
                        }
                    }
                    continue;
                }
            };
            let expected = expected.get_or_insert_with(|| output.clone());
            candidate.bit_equal = Some(*expected == output);
            let same = trial.compare(expected, &output);
            if let Err(why) = &same {
                // A mistake of the family, or a compiler's: never a kernel to use.
                tracing::error!("candidate '{}' of {spec} is left out: {why}", candidate.config);
                candidate.dropped = Some(why.clone());
            }
            plans.push(same.is_ok().then(|| Arc::new(plan)));
        }
        let trial: Arc<dyn Trial> = Arc::from(trial);
        // What ran first is what the others were compared with: the default, unless that cannot be had.
        let Some(default) = plans.iter().flatten().next() else {
            let why = record.candidates.first().and_then(|c| c.dropped.clone()).unwrap_or_default();
            let what = format!("no variant runs, the default does not because: {why}");
            return Err(Error::new(ErrorKind::Device, what).subject_is(spec.to_string()));
        };
        if trial.hangs() {
            let (now, timers) = (Instant::now(), Vec::new());
            return Ok(Self { shared, problem, record, timers, hangs: true, started: now, saved: now, throttle });
        }
        let sizes = Sizes::find(shared, &trial, default, throttle)?;
        if sizes.tokens != record.tokens {
            // Samples of an earlier run that had more memory, or was in more of a hurry.
            record.candidates.iter_mut().for_each(|c| c.samples_ns.clear());
        }
        record.tokens = sizes.tokens;
        record.bytes = problem.bytes(sizes.tokens);
        let mut timers = Vec::new();
        for (candidate, plan) in record.candidates.iter_mut().zip(&plans) {
            let timer = plan.as_ref().map(|plan| sizes.timer_that_fits(shared, &trial, plan, throttle)).transpose()?;
            if timer.as_ref().is_some_and(Option::is_none) {
                candidate.dropped = Some("takes more than twice the default's time".into());
            }
            timers.push(timer.flatten());
        }
        record.copy_ns = Some(copy_ns(shared, &trial, sizes, throttle)?);
        let now = Instant::now();
        Ok(Self { shared, problem, record, timers, hangs: false, started: now, saved: now, throttle })
    }
}

/// What a sample consists of.
#[derive(Clone, Copy)]
struct Sizes {
    tokens: u64,
    launches: usize,
}

impl Sizes {
    /// Enough launches to be told from noise. In slices, few enough tokens and launches to fit one.
    fn find(shared: &Shared, trial: &Arc<dyn Trial>, default: &Arc<Plan>, throttle: &Throttle<'_>) -> Result<Self> {
        let measuring = shared.device.measuring();
        let probe = |tokens| {
            if throttle.in_slices() {
                return one_launch(shared, trial, default, tokens, throttle);
            }
            let sizes = Self { tokens, launches: measuring.launches.0 };
            timer(shared, trial, default, sizes, throttle)?.sample().map(|ns| ns.max(1.0))
        };
        let mut ns = probe(trial.size())?;
        let tokens = throttle.tokens(&measuring, trial.size(), ns);
        if tokens < trial.size() {
            ns = probe(tokens)?;
        }
        Ok(Self { tokens, launches: throttle.launches(&measuring, ns) })
    }

    /// A candidate's timer; `None` where a sample of it would not fit a slice, of which the default takes half at most.
    fn timer_that_fits(
        self,
        shared: &Shared,
        trial: &Arc<dyn Trial>,
        plan: &Arc<Plan>,
        throttle: &Throttle<'_>,
    ) -> Result<Option<Box<dyn Timer>>> {
        if throttle.in_slices() && self.launches > 1 {
            let ns = one_launch(shared, trial, plan, self.tokens, throttle)?;
            if ns * self.launches as f64 > shared.device.measuring().slice_ns {
                return Ok(None);
            }
        }
        timer(shared, trial, plan, self, throttle).map(Some)
    }
}

/// The time of a launch by itself: the least of some, since others may come between.
fn one_launch(
    shared: &Shared,
    trial: &Arc<dyn Trial>,
    plan: &Arc<Plan>,
    tokens: u64,
    throttle: &Throttle<'_>,
) -> Result<f64> {
    let mut timer = timer(shared, trial, plan, Sizes { tokens, launches: 1 }, throttle)?;
    (0..5).try_fold(f64::INFINITY, |least, _| Ok(throttle.slice(|| timer.sample())?.min(least).max(1.0)))
}

/// A timer, warm: making it has run its launches once.
fn timer(
    shared: &Shared,
    trial: &Arc<dyn Trial>,
    plan: &Arc<Plan>,
    Sizes { tokens, launches }: Sizes,
    throttle: &Throttle<'_>,
) -> Result<Box<dyn Timer>> {
    let (plan, trial) = (Arc::clone(plan), Arc::clone(trial));
    let launch = move |i, stream: Stream<'_>| trial.launch(&plan, stream, i, tokens);
    throttle.slice(|| device::timer(shared.device.as_ref(), launches, Box::new(launch)))
}

/// The median time of a device-to-device copy of as many bytes.
fn copy_ns(
    shared: &Shared,
    trial: &Arc<dyn Trial>,
    Sizes { tokens, launches }: Sizes,
    throttle: &Throttle<'_>,
) -> Result<f64> {
    let trial = Arc::clone(trial);
    let copy = move |i, stream: Stream<'_>| trial.copy(stream, i, tokens);
    let mut timer = throttle.slice(|| device::timer(shared.device.as_ref(), launches, Box::new(copy)))?;
    let samples = (0..5).map(|_| throttle.slice(|| timer.sample())).collect::<Result<Vec<_>>>()?;
    Ok(crate::service::tune::median(&samples).unwrap_or(0.0))
}

impl Measure for Run<'_> {
    fn sample(&mut self, index: usize) -> Result<f64, String> {
        match &mut self.timers[index] {
            Some(timer) => self.throttle.slice(|| timer.sample()).map_err(|e| e.to_string()),
            None => Err("it was not loaded".into()),
        }
    }

    /// Without rests: the budget is for measuring.
    fn now(&self) -> Duration {
        self.started.elapsed().saturating_sub(self.throttle.rested())
    }

    fn stopped(&self) -> bool {
        stopped(self.shared, self.throttle)
    }

    fn round_done(&mut self, samples: &[Vec<f64>]) -> bool {
        let rounds = samples.iter().map(Vec::len).max().unwrap_or(0);
        self.shared.tell(&Progress::Measured { spec: self.problem.spec(), bucket: self.problem.bucket(), rounds });
        let stopped = self.stopped();
        if stopped || self.saved.elapsed() >= SAVE_EVERY {
            for (candidate, samples) in self.record.candidates.iter_mut().zip(samples) {
                candidate.samples_ns.clone_from(samples);
            }
            self.shared.choices.write(self.problem, self.record.clone(), true);
            self.saved = Instant::now();
        }
        !stopped
    }
}
