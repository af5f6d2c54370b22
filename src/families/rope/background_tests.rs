//! Background tuning on a fake GPU: kernels are the reference, compiling waits until a test lets it go on, memory and captures
//! are what it says. What must not wait is shown by what was not done meanwhile, not by a clock: machines are busy.

use std::ffi::c_void;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use super::problem::problem;
use super::reference_kernel::ReferenceKernel;
use super::variant::Class;
use crate::error::Result;
use crate::rope::{DType, RopeSpec};
use crate::service::bucket::Bucket;
use crate::service::device::host::Host;
use crate::service::device::{
    Binary, Device, Dialect, Facts, FaultWord, Geometry, Kernel, LaunchAttrs, Measuring, Memory, Source, Stream,
    TimedLaunch, Timer,
};
use crate::service::engine::resolve::take_over;
use crate::service::engine::{Engine, QUIET, Tuning};
use crate::service::family::{Config, Origin, Plan, Problem, Provenance};
use crate::service::store::claim::Claim;
use crate::service::store::disk::Disk;
use crate::service::store::{Kind, Store, memory};

struct Fake {
    host: Host,
    facts: Facts,
    spec: RopeSpec,
    /// How many compilations may come to their end.
    allowed: Mutex<usize>,
    more: Condvar,
    compiles: AtomicUsize,
    loaded: AtomicUsize,
    gone: Arc<Gone>,
    samples: Arc<AtomicUsize>,
    free: AtomicU64,
    asked_for_memory: AtomicUsize,
    capturing: AtomicBool,
    asked_for_captures: AtomicUsize,
}

impl Fake {
    fn new() -> Arc<Self> {
        Self::that_compiles(usize::MAX)
    }

    /// Compilations beyond `allowed` wait for [`allow`](Self::allow).
    fn that_compiles(allowed: usize) -> Arc<Self> {
        let host = Host::open();
        let facts = Facts { compute_capability: (9, 0), l2_bytes: 1 << 20, ..host.facts().clone() };
        Arc::new(Self {
            host,
            facts,
            spec: RopeSpec::new(DType::BF16, 64, 4, 2),
            allowed: Mutex::new(allowed),
            more: Condvar::new(),
            compiles: AtomicUsize::new(0),
            loaded: AtomicUsize::new(0),
            gone: Arc::default(),
            samples: Arc::default(),
            free: AtomicU64::new(8 << 30),
            asked_for_memory: AtomicUsize::new(0),
            capturing: AtomicBool::new(false),
            asked_for_captures: AtomicUsize::new(0),
        })
    }

    fn allow(&self, compiles: usize) {
        *self.allowed.lock().expect("sound") = compiles;
        self.more.notify_all();
    }

    /// Compilations and samples so far.
    fn work(&self) -> [usize; 2] {
        [&self.compiles, &*self.samples].map(|count| count.load(Relaxed))
    }
}

/// What becomes of kernels when nothing holds them any more.
#[derive(Default)]
struct Gone {
    unloaded: AtomicUsize,
    kept: AtomicUsize,
}

struct Loaded {
    kernel: Arc<dyn Kernel>,
    kept: AtomicBool,
    gone: Arc<Gone>,
}

impl Kernel for Loaded {
    #[allow(unsafe_code)]
    unsafe fn launch(&self, s: Stream<'_>, geometry: &Geometry, args: &[*const c_void]) -> Result<()> {
        // SAFETY: this function's contract.
        unsafe { self.kernel.launch(s, geometry, args) }
    }
    fn keep(&self) {
        self.kept.store(true, Relaxed);
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        if self.kept.load(Relaxed) { &self.gone.kept } else { &self.gone.unloaded }.fetch_add(1, Relaxed);
    }
}

/// Counts samples.
struct Counted(Box<dyn Timer>, Arc<AtomicUsize>);

impl Timer for Counted {
    fn sample(&mut self) -> Result<f64> {
        self.1.fetch_add(1, Relaxed);
        self.0.sample()
    }
}

// SAFETY: it serves the reference in place of every kernel.
#[allow(unsafe_code)]
unsafe impl Device for Fake {
    fn facts(&self) -> &Facts {
        &self.facts
    }
    fn dialect(&self) -> Dialect {
        Dialect::Cuda
    }
    fn measuring(&self) -> Measuring {
        Measuring { launches: (1, 4), sample_ns: 100e3, scratch_bytes: 64 << 20, slice_ns: 50e6 }
    }
    fn compiler(&self) -> Result<String> {
        Ok("fake".into())
    }
    fn compile_options(&self) -> Vec<String> {
        Vec::new()
    }
    fn compile(&self, source: &Source) -> Result<Binary> {
        let number = self.compiles.fetch_add(1, Relaxed) + 1;
        let allowed = self.allowed.lock().expect("sound");
        let waits = |allowed: &mut usize| *allowed < number;
        let (allowed, ended) = self.more.wait_timeout_while(allowed, EVER, waits).expect("sound");
        drop(allowed);
        assert!(!ended.timed_out(), "a compilation was never let go on: somebody waits for it");
        Ok(Binary { ptx: source.text.as_bytes().to_vec(), image: vec![0] })
    }
    unsafe fn load(&self, _: &Binary, _: &str, _: &LaunchAttrs) -> Result<Arc<dyn Kernel>> {
        let kernel: Arc<dyn Kernel> = Arc::new(ReferenceKernel::new(&self.spec));
        self.loaded.fetch_add(1, Relaxed);
        let (kept, gone) = (AtomicBool::new(false), Arc::clone(&self.gone));
        Ok(Arc::new(Loaded { kernel, kept, gone }))
    }
    fn alloc(&self, bytes: usize) -> Result<Box<dyn Memory>> {
        self.host.alloc(bytes)
    }
    fn free_memory(&self) -> Result<u64> {
        self.asked_for_memory.fetch_add(1, Relaxed);
        Ok(self.free.load(Relaxed))
    }
    fn fault_word(&self) -> Result<Box<dyn FaultWord>> {
        self.host.fault_word()
    }
    unsafe fn timer(&self, launches: usize, launch: TimedLaunch) -> Result<Box<dyn Timer>> {
        Ok(Box::new(Counted(crate::device::timer(&self.host, launches, launch)?, Arc::clone(&self.samples))))
    }
    unsafe fn copy(
        &self,
        to: (&dyn Memory, usize),
        from: (&dyn Memory, usize),
        bytes: usize,
        s: Stream<'_>,
    ) -> Result<()> {
        crate::service::device::copy(&self.host, to, from, bytes, s)
    }
    fn synchronize(&self) -> Result<()> {
        Ok(())
    }
    fn is_capturing(&self, _: Stream<'_>) -> bool {
        self.asked_for_captures.fetch_add(1, Relaxed);
        self.capturing.load(Relaxed)
    }
}

/// A folder that is trusted as a cache, whatever the umask is.
fn folder() -> tempfile::TempDir {
    let mut folder = tempfile::Builder::new();
    #[cfg(unix)]
    folder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o700));
    folder.tempdir().expect("a folder")
}

/// An engine on a fake GPU with a cache of its own, or on a folder.
fn engine(fake: &Arc<Fake>, folder: Option<&std::path::Path>) -> Engine {
    let store: Arc<dyn Store> = match folder {
        Some(folder) => Arc::new(Disk::open(folder).expect("opens")),
        None => Arc::<memory::InMemory>::default(),
    };
    let builder = Engine::builder().with_device(Arc::clone(fake) as Arc<dyn Device>).store(store);
    builder.tuning(Tuning::Background).build().expect("opened")
}

/// What a first call does: a kernel serves, and its tuning is queued.
fn call(engine: &Engine, fake: &Fake, tokens: u64) -> Result<Arc<Plan>> {
    let rope = engine.rope(&fake.spec)?;
    rope.resolve(Stream::DEFAULT, Bucket::of(tokens), class(fake), Tuning::Background)
}

/// The problem of such a call.
fn problem_of(fake: &Fake, tokens: u64) -> Arc<dyn Problem> {
    problem(&fake.spec, class(fake), Bucket::of(tokens))
}

fn class(fake: &Fake) -> Class {
    Class::contiguous(&fake.spec, false, true)
}

fn tuned(engine: &Engine, fake: &Fake, tokens: u64) -> bool {
    engine.rope(&fake.spec).expect("valid").serving(tokens, false).is_some_and(|s| s.tuned)
}

/// Longer than the busiest machine takes for anything here: what has not happened by then never will.
const EVER: Duration = Duration::from_secs(300);

/// Waits until something is so.
fn until(what: &str, so: impl Fn() -> bool) {
    let started = Instant::now();
    while !so() {
        assert!(started.elapsed() < EVER, "never {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Drops an engine whose worker waits for something: it must end without having gone on. Waits that ran out would have gone on.
#[track_caller]
fn drops_at_once(engine: Engine, fake: &Fake) {
    engine.shared().closing.store(true, Relaxed);
    let before = fake.work();
    drop(engine);
    assert_eq!(fake.work(), before, "compilations and samples");
}

#[test]
fn dropped_in_the_middle_of_compiling() {
    let fake = Fake::that_compiles(2);
    let engine = engine(&fake, None);
    call(&engine, &fake, 8).expect("served");
    until("compiling", || fake.compiles.load(Relaxed) >= 3);
    let (closing, fake_too) = (Arc::clone(&engine.shared().closing), Arc::clone(&fake));
    let release = std::thread::spawn(move || {
        until("dropped", || closing.load(Relaxed));
        fake_too.allow(usize::MAX);
    });
    drop(engine);
    release.join().expect("ended");
    // Those that went on, one a thread, came to their end, and no other was begun.
    let candidates = super::variant::space(&fake.spec, class(&fake), Bucket::of(8), fake.abilities()).len();
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get).div_ceil(2);
    let compiles = fake.compiles.load(Relaxed);
    assert!(compiles <= 2 + threads && (compiles < candidates || threads > candidates), "{compiles} of {candidates}");
}

#[test]
fn dropped_while_another_process_tunes_or_compiles_the_same() {
    let fake = Fake::new();
    let folder = folder();
    let other = Disk::open(folder.path()).expect("opens");
    let waiting = engine(&fake, Some(folder.path()));
    let key = waiting.shared().choices.own_key(problem_of(&fake, 8).as_ref());
    let claim = other.claim(Kind::Choice, key);
    assert!(matches!(claim, Claim::Mine(_)));
    call(&waiting, &fake, 8).expect("served");
    until("waiting", || waiting.stats().waited == 1);
    drops_at_once(waiting, &fake);
    drop(claim);

    // Of each candidate, which no process has made.
    let waiting = engine(&fake, Some(folder.path()));
    call(&waiting, &fake, 8).expect("served");
    waiting.wait_tuned();
    let artifacts = other.list(Kind::Artifact).expect("listed");
    let keys: Vec<_> = artifacts.into_iter().map(|l| l.entry.expect("sound").key).collect();
    drop(waiting);
    let rest = keys.iter().filter(|&&key| other.remove(Kind::Artifact, key).expect("removed"));
    let claims: Vec<Claim> = rest.map(|&key| other.claim(Kind::Artifact, key)).collect();
    assert!(claims.len() > 2 && claims.iter().all(|c| matches!(c, Claim::Mine(_))));
    let waiting = engine(&fake, Some(folder.path()));
    let rope = waiting.rope(&fake.spec).expect("valid");
    assert!(other.remove(Kind::Choice, key).expect("removed"));
    waiting.tune_in_background(&problem_of(&fake, 8), &rope.state.slots);
    drop(rope);
    std::thread::sleep(Duration::from_millis(150)); // the default's lock is held: it waits for that
    drops_at_once(waiting, &fake);
}

#[test]
fn dropped_while_it_holds_off_for_a_capture() {
    let fake = Fake::that_compiles(1);
    let engine = engine(&fake, None);
    call(&engine, &fake, 8).expect("served");
    fake.capturing.store(true, Relaxed);
    fake.allow(usize::MAX);
    let asked = fake.asked_for_captures.load(Relaxed);
    until("holding off", || fake.asked_for_captures.load(Relaxed) > asked + 2);
    drops_at_once(engine, &fake);
}

#[test]
fn nothing_is_measured_while_a_graph_is_captured() {
    // The kernel of the first call is made, and no candidate before the capture has begun.
    let fake = Fake::that_compiles(1);
    let engine = engine(&fake, None);
    call(&engine, &fake, 8).expect("served");
    fake.capturing.store(true, Relaxed);
    // A call that is captured is served by what is loaded, and seen.
    call(&engine, &fake, 16).expect("served");
    assert!(engine.shared().since_capture().is_some());
    fake.allow(usize::MAX);
    let asked = fake.asked_for_captures.load(Relaxed);
    until("holding off", || fake.asked_for_captures.load(Relaxed) > asked + 2);
    let (samples, resumed) = (fake.samples.load(Relaxed), Instant::now());
    fake.capturing.store(false, Relaxed);
    engine.wait_tuned();
    assert_eq!(samples, 0, "the capture had begun before candidates were compiled");
    assert!(tuned(&engine, &fake, 8) && !tuned(&engine, &fake, 16));
    assert!(resumed.elapsed() >= QUIET / 2, "it waited until it had been quiet for some time");
}

#[test]
fn a_graph_that_keeps_what_answered_first_is_warned_of() {
    let fake = Fake::that_compiles(1);
    let engine = engine(&fake, None);
    for (tokens, captured) in [(8, true), (64, false)] {
        let plan = call(&engine, &fake, tokens).expect("served");
        let watched = plan.watched.as_ref().expect("until it is tuned");
        fake.capturing.store(captured, Relaxed);
        super::launch::launch_nothing(&plan, false, Stream::DEFAULT, 1).expect("launched");
        fake.capturing.store(false, Relaxed);
        assert_eq!(watched.was_captured(), captured);
    }
    let slots = Arc::clone(&super::in_engine::InEngine::of(&engine).ropes.get(&fake.spec).expect("there").slots);
    let told = || engine.shared().counters.told("a CUDA graph was captured");
    for tokens in [8, 64] {
        let (problem, before) = (problem_of(&fake, tokens), call(&engine, &fake, tokens).expect("served"));
        let take_over = |config: &Config| {
            let (kernel, origin) = (Some(Arc::clone(&before.kernel)), Origin::Tuned);
            let plan = Plan::new(problem.as_ref(), kernel, config.clone(), origin, Provenance::Tuned).expect("a plan");
            take_over(engine.shared(), &slots, problem.as_ref(), plan);
        };
        let space = problem.space(fake.abilities());
        take_over(&before.config); // the same variant: a graph loses nothing
        assert_eq!(told(), usize::from(tokens > 8));
        slots.publish(problem.as_ref(), Arc::clone(&before));
        take_over(space.iter().find(|config| **config != before.config).expect("another"));
        assert_eq!(told(), 1, "of the one that was captured alone");
    }
    fake.allow(usize::MAX);
}

#[test]
fn another_process_that_tunes_keeps_nothing_else_waiting() {
    let fake = Fake::new();
    let folder = folder();
    let engine = engine(&fake, Some(folder.path()));
    let key = engine.shared().choices.own_key(problem_of(&fake, 8).as_ref());
    let other = Disk::open(folder.path()).expect("opens");
    let claim = other.claim(Kind::Choice, key);
    assert!(matches!(claim, Claim::Mine(_)));
    call(&engine, &fake, 8).expect("served");
    until("waiting", || engine.stats().waited == 1);
    call(&engine, &fake, 64).expect("served");
    until("tuned", || tuned(&engine, &fake, 64));
    assert!(!tuned(&engine, &fake, 8) && engine.stats().waited == 1);
    drop(claim);
    engine.wait_tuned();
    assert!(tuned(&engine, &fake, 8));
    assert_eq!((engine.stats().tunings, engine.stats().waited), (2, 1));
}

#[test]
fn low_memory_puts_tuning_off_and_fails_no_call() {
    let fake = Fake::new();
    let engine = engine(&fake, None);
    fake.free.store(200 << 20, Relaxed);
    assert!(!call(&engine, &fake, 8).expect("served").provenance.is_tuned());
    engine.wait_tuned();
    assert_eq!((engine.stats().tunings, fake.compiles.load(Relaxed)), (0, 1));
    // A call that asks to wait for its tuning is served as well.
    let rope = engine.rope(&fake.spec).expect("valid");
    let plan = rope.resolve(Stream::DEFAULT, Bucket::of(4), class(&fake), Tuning::BLOCKING);
    assert!(!plan.expect("served").provenance.is_tuned());
    drop(rope);
    fake.free.store(8 << 30, Relaxed);
    until("tuned", || tuned(&engine, &fake, 8));
    fake.free.store(0, Relaxed);
    call(&engine, &fake, 64).expect("served");
    engine.wait_tuned();
    engine.shared().closing.store(true, Relaxed);
    let asked = fake.asked_for_memory.load(Relaxed);
    drops_at_once(engine, &fake);
    assert_eq!(fake.asked_for_memory.load(Relaxed), asked, "it was not waited for until memory is looked at again");
}

#[test]
fn losers_do_not_stay_loaded_and_what_has_served_does() {
    let fake = Fake::new();
    let engine = engine(&fake, None);
    let default = call(&engine, &fake, 8).expect("served");
    engine.wait_tuned();
    assert!(tuned(&engine, &fake, 8));
    let winner = engine.rope(&fake.spec).expect("valid").serving(8, false).expect("loaded").variant;
    let kept = if crate::service::family::Stated::of(&winner) == default.config { 1 } else { 2 };
    assert_eq!(engine.shared().kernels.loaded(), kept);
    let (loaded, gone) = (fake.loaded.load(Relaxed), Arc::clone(&fake.gone));
    assert!(loaded > kept);
    assert_eq!((gone.unloaded.load(Relaxed), gone.kept.load(Relaxed)), (loaded - kept, 0), "losers never served");
    drop(default);
    assert_eq!(engine.rope(&fake.spec).expect("valid").state.slots.replaced(), 1);
    // A second tuning gets its candidates from the cache.
    let compiles = engine.stats().compiles;
    call(&engine, &fake, 4).expect("served");
    engine.wait_tuned();
    assert!(tuned(&engine, &fake, 4));
    assert_eq!(engine.stats().compiles, compiles, "both buckets have the same candidates");
    let held = engine.shared().kernels.loaded();
    assert!(held <= kept + 1);
    // What has served outlives the engine: a graph that was captured with it may be launched at any time.
    drop(engine);
    let loaded = fake.loaded.load(Relaxed);
    assert_eq!((gone.unloaded.load(Relaxed), gone.kept.load(Relaxed)), (loaded - held, held));
}

#[test]
fn a_call_that_only_looks_does_not_wait_for_a_compiler() {
    let fake = Fake::that_compiles(0);
    let engine = engine(&fake, None);
    let (kernels, problem) = (&engine.shared().kernels, problem_of(&fake, 8));
    let config = problem.space(fake.abilities()).swap_remove(0);
    std::thread::scope(|scope| {
        scope.spawn(|| kernels.obtain(problem.as_ref(), &config, None).expect("compiled"));
        until("compiling", || fake.compiles.load(Relaxed) == 1);
        let key = crate::service::key::Key::from_bytes([0; 32]);
        assert!(kernels.find(problem.as_ref(), &config, Some(key)).expect("looked for").is_none());
        fake.allow(1);
    });
}

#[test]
fn calls_are_answered_while_a_prewarm_tunes() {
    let fake = Fake::that_compiles(1);
    let folder = folder();
    let engine = engine(&fake, Some(folder.path()));
    // The default is there; candidates wait.
    engine.prewarm(std::slice::from_ref(&fake.spec), &[8], false, false).expect("compiled");
    std::thread::scope(|scope| {
        scope.spawn(|| engine.prewarm(std::slice::from_ref(&fake.spec), &[8], false, true).expect("tuned"));
        until("compiling", || fake.compiles.load(Relaxed) >= 2);
        assert!(!call(&engine, &fake, 8).expect("served").provenance.is_tuned());
        fake.allow(usize::MAX);
    });
    assert!(tuned(&engine, &fake, 8));
    engine.wait_tuned();
    assert!(tuned(&engine, &fake, 8));
    assert_eq!(engine.stats().tunings, 1);
}
