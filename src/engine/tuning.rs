//! One tuning run: compile all candidates, check their bits, time them, keep the record.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::kernels::Loaded;
use super::scratch::{Scratch, bytes_per_token};
use super::{Progress, RopeState, Shared, priors};
use crate::device::{Stream, Timer};
use crate::error::{Error, ErrorKind, Result};
use crate::jit::{Bucket, Candidate, Class, Record};
use crate::plan::{Origin, Plan};
use crate::tune::{Measure, Policy, search};

/// Progress is saved this often while measuring.
const SAVE_EVERY: Duration = Duration::from_millis(100);

/// Tunes one spec, bucket and class, keeps the record and returns the winner.
pub(super) fn tune(
    shared: &Shared,
    state: &RopeState,
    class: Class,
    bucket: Bucket,
    budget: Duration,
    stop: &AtomicBool,
) -> Result<Plan> {
    let started = Instant::now();
    let spec = &state.spec;
    let compiler = shared.device.compiler()?;
    let _aside = shared.device.aside()?;
    let (variants, prior) = priors::candidates(shared, spec, bucket, class);
    // An earlier run that was cut short has left its samples.
    let mut candidates: Vec<Candidate> = match shared.choices.read_own(spec, bucket, class) {
        Some(r) if !r.tuned && r.candidates.iter().map(|c| c.variant).eq(variants.iter().copied()) => r.candidates,
        _ => variants.iter().map(|&v| Candidate::new(v)).collect(),
    };
    let kernels = compile_all(shared, state, class, bucket, &mut candidates, stop);
    if stop.load(Relaxed) {
        return Err(Error::new(ErrorKind::Unsupported, "tuning was cancelled"));
    }
    let facts = shared.device.facts();
    let mut record = Record {
        prior,
        device: facts.name.clone(),
        driver: facts.driver.clone(),
        compiler,
        ..Record::new(bucket.tokens(), candidates)
    };
    let mut run = Run::prepare(shared, state, class, bucket, &kernels, &mut record)?;
    run.started = started;
    run.stop = Some(stop);
    let live: Vec<bool> = run.timers.iter().map(Option::is_some).collect();
    let samples = run.record.candidates.iter().map(|c| c.samples_ns.clone()).collect();
    let policy = Policy { budget, ..Policy::default() };
    let outcome = search(&mut run, samples, &live, &policy);
    drop(run);
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
    let variant = variants[record.winner];
    let tuned = record.tuned;
    shared.choices.write(spec, bucket, class, record, true);
    if tuned {
        shared.counters.tunings.add();
    }
    let kernel = kernels
        .into_iter()
        .nth(outcome.winner)
        .flatten()
        .and_then(|l| l.kernel)
        .ok_or_else(|| Error::new(ErrorKind::Device, "the winner was not loaded"))?;
    Ok(Plan::new(spec, class, variant, kernel, Origin::Tuned, tuned))
}

/// Compiles and loads all candidates on as many threads as there are cores.
fn compile_all(
    shared: &Shared,
    state: &RopeState,
    class: Class,
    bucket: Bucket,
    candidates: &mut [Candidate],
    stop: &AtomicBool,
) -> Vec<Option<Loaded>> {
    let total = candidates.len();
    let results: Vec<Mutex<Option<Result<Loaded>>>> = (0..total).map(|_| Mutex::new(None)).collect();
    let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(total);
    let wanted: Vec<_> = candidates.iter().map(|c| (c.variant, c.artifact)).collect();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let i = next.fetch_add(1, Relaxed);
                    if i >= total || stop.load(Relaxed) {
                        return;
                    }
                    let (variant, named) = wanted[i];
                    let made = shared.kernels.obtain(&state.spec, class, variant, named).map(|(loaded, _)| loaded);
                    *results[i].lock().unwrap_or_else(PoisonError::into_inner) = Some(made);
                    let done = done.fetch_add(1, Relaxed) + 1;
                    shared.tell(&Progress::Compiled { spec: &state.spec, bucket, done, total });
                }
            });
        }
    });
    let collect = |(candidate, result): (&mut Candidate, Mutex<Option<Result<Loaded>>>)| match result
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner)
    {
        Some(Ok(loaded)) => {
            candidate.artifact = Some(loaded.artifact);
            Some(loaded)
        }
        Some(Err(e)) => {
            shared.counters.warn_once(format!("candidate '{}' is left out: {e}", candidate.variant));
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
    state: &'a RopeState,
    class: Class,
    bucket: Bucket,
    record: &'a mut Record,
    timers: Vec<Option<Box<dyn Timer>>>,
    started: Instant,
    saved: Instant,
    stop: Option<&'a AtomicBool>,
}

impl<'a> Run<'a> {
    fn prepare(
        shared: &'a Shared,
        state: &'a RopeState,
        class: Class,
        bucket: Bucket,
        kernels: &[Option<Loaded>],
        record: &'a mut Record,
    ) -> Result<Self> {
        let device = shared.device.as_ref();
        let spec = &state.spec;
        let scratch = Arc::new(Scratch::new(device, spec, class, bucket, state.fault.address())?);
        record.tokens = scratch.tokens;
        record.bytes = scratch.tokens * bytes_per_token(spec);
        let mut plans: Vec<Option<Arc<Plan>>> = Vec::new();
        let mut expected: Option<Vec<u8>> = None;
        for (candidate, loaded) in record.candidates.iter_mut().zip(kernels) {
            let Some(kernel) = loaded.as_ref().and_then(|l| l.kernel.clone()) else {
                plans.push(None);
                continue;
            };
            let plan = Plan::new(spec, class, candidate.variant, kernel, Origin::Tuned, true);
            let output = match scratch.run_small(device, &plan) {
                Ok(output) => output,
                Err(e) => {
                    candidate.dropped = Some(e.to_string());
                    plans.push(None);
                    continue;
                }
            };
            let equal = expected.get_or_insert_with(|| output.clone()) == &output;
            candidate.bit_equal = Some(equal);
            if !equal {
                // Our own mistake, or a compiler's: never a kernel to use.
                tracing::error!("candidate '{}' of {spec} differs in its bits and is left out", candidate.variant);
                candidate.dropped = Some("its output differs from the default's".into());
            }
            plans.push(equal.then(|| Arc::new(plan)));
        }
        let Some(Some(default)) = plans.first() else {
            // Without the default there is nothing to compare the others with.
            let why = record.candidates.first().and_then(|c| c.dropped.clone()).unwrap_or_default();
            let what = format!("the default variant does not run: {why}");
            return Err(Error::new(ErrorKind::Device, what).subject_is(spec.to_string()));
        };
        let launches = launches_per_sample(shared, &scratch, default)?;
        let timer = |plan: &Option<Arc<Plan>>| plan.as_ref().map(|p| timer(shared, &scratch, p, launches)).transpose();
        let timers = plans.iter().map(timer).collect::<Result<_>>()?;
        record.copy_ns = Some(copy_ns(shared, &scratch, launches)?);
        let now = Instant::now();
        Ok(Self { shared, state, class, bucket, record, timers, started: now, saved: now, stop: None })
    }
}

/// How many launches a sample takes to be long enough.
fn launches_per_sample(shared: &Shared, scratch: &Arc<Scratch>, default: &Arc<Plan>) -> Result<usize> {
    let measuring = shared.device.measuring();
    let (least, most) = measuring.launches;
    let ns = timer(shared, scratch, default, least)?.sample()?.max(1.0);
    Ok(((measuring.sample_ns / ns) as usize).clamp(least, most))
}

fn timer(shared: &Shared, scratch: &Arc<Scratch>, plan: &Arc<Plan>, launches: usize) -> Result<Box<dyn Timer>> {
    let (plan, scratch) = (Arc::clone(plan), Arc::clone(scratch));
    let launch = move |i, stream: Stream<'_>| scratch.launch(&plan, stream, i, 1, scratch.tokens as usize);
    shared.device.timer(launches, Box::new(launch))
}

/// The median time of a device-to-device copy of as many bytes.
fn copy_ns(shared: &Shared, scratch: &Arc<Scratch>, launches: usize) -> Result<f64> {
    let (device, scratch) = (Arc::clone(&shared.device), Arc::clone(scratch));
    let copy = move |i, stream: Stream<'_>| scratch.copy(device.as_ref(), stream, i);
    let mut timer = shared.device.timer(launches, Box::new(copy))?;
    let samples = (0..5).map(|_| timer.sample()).collect::<Result<Vec<_>>>()?;
    Ok(crate::tune::median(&samples).unwrap_or(0.0))
}

impl Measure for Run<'_> {
    fn sample(&mut self, index: usize) -> Result<f64, String> {
        match &mut self.timers[index] {
            Some(timer) => timer.sample().map_err(|e| e.to_string()),
            None => Err("it was not loaded".into()),
        }
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn round_done(&mut self, samples: &[Vec<f64>]) -> bool {
        let rounds = samples.iter().map(Vec::len).max().unwrap_or(0);
        self.shared.tell(&Progress::Measured { spec: &self.state.spec, bucket: self.bucket, rounds });
        let stopped = self.stop.is_some_and(|s| s.load(Relaxed));
        if stopped || self.saved.elapsed() >= SAVE_EVERY {
            for (candidate, samples) in self.record.candidates.iter_mut().zip(samples) {
                candidate.samples_ns.clone_from(samples);
            }
            self.shared.choices.write(&self.state.spec, self.bucket, self.class, self.record.clone(), true);
            self.saved = Instant::now();
        }
        !stopped
    }
}
