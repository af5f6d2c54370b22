//! The service: joins device, store and search behind one call.
//!
//! [`Engine`] holds one device and one cache. [`Engine::rope`] gives a [`Rope`] for a spec, and [`Rope::apply`] launches.
//! The first call of a bucket and layout class finds a kernel (memory, disk, shipped, compiled); every
//! later one loads a pointer.

mod angles;
mod builder;
mod choices;
mod kernels;
mod lock;
mod prewarm;
mod priors;
mod resolve;
mod scratch;
mod stats;
pub(crate) mod throttle;
mod tuning;
mod turn;
mod worker;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use dashmap::DashMap;

use crate::args::Args;
use crate::device::{Device, Facts, FaultWord, Stream};
use crate::error::{Error, ErrorKind, Result};
use crate::jit::render::Dialect;
use crate::jit::{Bucket, Class, Variant};
use crate::plan::{Call, Origin, Plan, place_of};
use crate::rope::RopeSpec;
use crate::store::Store;

pub use angles::Angles;
pub use builder::Builder;
pub use choices::ChoiceMeta;
use choices::Choices;
pub use kernels::ArtifactMeta;
use kernels::Kernels;
pub use lock::read_lock;
pub use resolve::{Prewarmed, prewarm_command};
pub use stats::Stats;
use stats::{Counter, Counters};
use worker::Worker;

/// When to compile and tune.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Tuning {
    /// Answer at once with what is cached, or with a kernel for all shapes that the crate ships; compile and tune on the
    /// side, and swap the winner in. Where nothing is shipped (the host device) the first call waits for one compile.
    #[default]
    Background,
    /// The first call of a bucket waits for its tuning, which measures for at most `budget`.
    Blocking {
        /// Time to measure; compiling is not counted.
        budget: Duration,
    },
    /// Use what is cached or shipped, or where neither is there a shipped choice for this GPU's model or the default
    /// variant; never tune, and do nothing on the side.
    Never,
    /// Anything that is not cached is an error: proves that a prewarm was complete.
    Frozen,
}

impl Tuning {
    /// `Blocking` with the usual budget.
    pub const BLOCKING: Self = Self::Blocking { budget: BUDGET };
}

/// Measuring time of one tuning run, unless the caller says otherwise.
const BUDGET: Duration = Duration::from_secs(10);

impl std::str::FromStr for Tuning {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        match s {
            "background" => Ok(Self::Background),
            "blocking" => Ok(Self::BLOCKING),
            "never" => Ok(Self::Never),
            "frozen" => Ok(Self::Frozen),
            _ => Err(Error::argument("tuning", format!("unknown policy '{s}'"))
                .hint("use background, blocking, never or frozen")),
        }
    }
}

/// What long work reports.
#[derive(Debug)]
#[non_exhaustive]
pub enum Progress<'a> {
    /// Candidates of a tuning run that are compiled.
    Compiled {
        /// What is tuned.
        spec: &'a RopeSpec,
        /// For how many tokens.
        bucket: Bucket,
        /// Candidates compiled.
        done: usize,
        /// Candidates in all.
        total: usize,
    },
    /// Rounds of measuring that are done.
    Measured {
        /// What is tuned.
        spec: &'a RopeSpec,
        /// For how many tokens.
        bucket: Bucket,
        /// Rounds done.
        rounds: usize,
    },
}

type OnProgress = Box<dyn Fn(&Progress<'_>) + Send + Sync>;

/// What all handles of an engine share.
struct Shared {
    /// Whether the kernels that the crate ships may serve.
    portable: bool,
    device: Arc<dyn Device>,
    store: Arc<dyn Store>,
    tuning: Tuning,
    /// Decides calls before the policy does.
    lock: Option<lock::Held>,
    priors: priors::Source,
    /// Set by [`Engine::freeze`].
    frozen: AtomicBool,
    /// Set when the last handle is dropped: background work ends.
    closing: Arc<AtomicBool>,
    opened: Instant,
    /// When a capture was last seen: milliseconds since `opened`, plus one; 0 for never.
    captured: AtomicU64,
    counters: Arc<Counters>,
    choices: Choices,
    kernels: Kernels,
    /// Where calls run, but for their stream.
    dialect: Dialect,
    context: u64,
    ropes: DashMap<RopeSpec, Arc<RopeState>>,
    /// Tables of parameters: few, and looked for by comparing.
    angles: Mutex<Vec<Arc<angles::Kept>>>,
    ahead_of_time: crate::families::rope::ahead_of_time::Loaded,
    on_progress: Option<OnProgress>,
}

impl Shared {
    fn tuning(&self) -> Tuning {
        if self.frozen.load(Ordering::Relaxed) { Tuning::Frozen } else { self.tuning }
    }

    /// Takes note that somebody captures a graph.
    fn note_capture(&self) {
        self.captured.store(self.opened.elapsed().as_millis() as u64 + 1, Ordering::Relaxed);
    }

    /// Time since a capture was last seen.
    fn since_capture(&self) -> Option<Duration> {
        let seen = Duration::from_millis(self.captured.load(Ordering::Relaxed).checked_sub(1)?);
        Some(self.opened.elapsed().saturating_sub(seen))
    }

    fn tell(&self, progress: &Progress<'_>) {
        if let Some(f) = &self.on_progress {
            f(progress);
        }
    }
}

/// What all handles of a spec share.
struct RopeState {
    spec: RopeSpec,
    /// One per bucket and class.
    slots: Box<[Slot]>,
    /// Plans that others have replaced. Graphs that were captured with one launch its kernel, so it stays loaded.
    replaced: Mutex<Vec<Arc<Plan>>>,
    /// Calls served by a filled slot.
    hits: Counter,
    fault: Box<dyn FaultWord>,
}

/// Where a call of one bucket and class finds its kernel.
#[derive(Default)]
struct Slot {
    plan: ArcSwapOption<Plan>,
    /// Held while the slot is filled, so that it is filled once.
    filling: Mutex<()>,
}

impl RopeState {
    fn slot(&self, bucket: Bucket, class: Class) -> &Slot {
        &self.slots[bucket.index() * Class::COUNT + class.index()]
    }

    /// From now on `plan` serves.
    fn serve(&self, bucket: Bucket, class: Class, plan: Arc<Plan>) {
        let replaced = self.slot(bucket, class).plan.swap(Some(plan));
        self.replaced.lock().unwrap_or_else(PoisonError::into_inner).extend(replaced);
    }
}

static GLOBAL: OnceLock<Engine> = OnceLock::new();

extern "C" fn close_global() {
    if let Some(engine) = GLOBAL.get() {
        engine.worker.close();
    }
}

/// One device, one cache. Cheap to clone; background work ends when the last clone and the last [`Rope`] are dropped.
#[derive(Clone)]
pub struct Engine {
    // Dropped first: it waits for background work, which uses the rest.
    worker: Arc<Worker>,
    shared: Arc<Shared>,
}

impl Engine {
    /// Options of an engine to be.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// The process's engine, with all options from the environment. It is never dropped; when the process ends, its
    /// background work does.
    ///
    /// # Errors
    /// As [`Builder::build`], when this call is the first that succeeds.
    pub fn global() -> Result<&'static Self> {
        if let Some(engine) = GLOBAL.get() {
            return Ok(engine);
        }
        let engine = Self::builder().build()?;
        Ok(GLOBAL.get_or_init(|| {
            // Beside the driver's own end, which comes after this, background work could crash.
            crate::device::at_exit(close_global);
            engine
        }))
    }

    /// The RoPE of a spec. All handles of one spec share their kernels.
    ///
    /// # Errors
    /// When the spec is invalid (see [`RopeSpec::validate`]).
    pub fn rope(&self, spec: &RopeSpec) -> Result<Rope> {
        Ok(Rope { worker: Arc::clone(&self.worker), state: self.state(spec)?, shared: Arc::clone(&self.shared) })
    }

    /// From now on, anything that is not loaded or cached is an error, as under [`Tuning::Frozen`]. Tuning that is queued
    /// goes on.
    pub fn freeze(&self) {
        self.shared.frozen.store(true, Ordering::Relaxed);
    }

    fn state(&self, spec: &RopeSpec) -> Result<Arc<RopeState>> {
        if let Some(state) = self.shared.ropes.get(spec) {
            return Ok(Arc::clone(&state));
        }
        spec.validate()?;
        let state = Arc::new(RopeState {
            spec: spec.clone(),
            slots: (0..Bucket::COUNT * Class::COUNT).map(|_| Slot::default()).collect(),
            replaced: Mutex::default(),
            hits: Counter::default(),
            fault: self.shared.device.fault_word()?,
        });
        Ok(Arc::clone(self.shared.ropes.entry(spec.clone()).or_insert(state).value()))
    }

    /// Waits until no tuning is queued or running in the background. What was put off because memory is low is not waited
    /// for.
    pub fn wait_tuned(&self) {
        self.worker.wait();
    }

    /// What it has done.
    pub fn stats(&self) -> Stats {
        self.shared.counters.snapshot(self.shared.ropes.iter().map(|r| r.hits.get()).sum())
    }

    /// What is known of its device.
    pub fn facts(&self) -> &Facts {
        self.shared.device.facts()
    }

    /// Its device.
    pub fn device(&self) -> &Arc<dyn Device> {
        &self.shared.device
    }

    /// Its store.
    pub fn store(&self) -> &dyn Store {
        self.shared.store.as_ref()
    }
}

/// The kernels of one spec.
#[derive(Clone)]
pub struct Rope {
    worker: Arc<Worker>,
    state: Arc<RopeState>,
    shared: Arc<Shared>,
}

/// The kernel that serves a bucket and layout class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Serving {
    /// Its tunables.
    pub variant: Variant,
    /// Where it came from.
    pub origin: Origin,
    /// Whether it was chosen by measuring.
    pub tuned: bool,
    /// Whether it was chosen by measuring another GPU of the model: a choice that comes with the crate.
    pub prior: bool,
}

impl Rope {
    /// What it computes.
    pub fn spec(&self) -> &RopeSpec {
        &self.state.spec
    }

    /// Rotates q and k on the stream. Returns where the kernel came from: [`Origin::Memory`] from the second call of a
    /// bucket and layout on, which hashes, locks, allocates, waits for and logs nothing.
    ///
    /// A graph that this call was captured into launches the kernel that was loaded then: keep this handle, or the engine,
    /// for as long as the graph is replayed.
    ///
    /// # Errors
    /// When an argument does not fit the spec, or (first calls only) no kernel can be had.
    pub fn apply(&self, stream: Stream<'_>, args: &Args<'_>) -> Result<Origin> {
        let Some(call) = self.call(stream, args)? else { return Ok(Origin::Memory) };
        if self.launch_loaded(stream, &call)? {
            return Ok(Origin::Memory);
        }
        let plan = resolve::resolve(self, stream, Bucket::of(call.total_tokens()), call.class, self.shared.tuning())?;
        plan.launch(stream, &call)?;
        Ok(plan.origin)
    }

    /// As [`Rope::apply`] where that only launches: `false`, and nothing done, when a kernel has yet to be found. So a
    /// caller that holds a lock which compiling must not hold (Python's) can let go of it first.
    ///
    /// # Errors
    /// As [`Rope::apply`].
    pub fn apply_loaded(&self, stream: Stream<'_>, args: &Args<'_>) -> Result<bool> {
        self.call(stream, args)?.map_or(Ok(true), |call| self.launch_loaded(stream, &call))
    }

    /// The arguments, checked; `None` where there is nothing to do.
    fn call<'a>(&self, stream: Stream<'_>, args: &'a Args<'_>) -> Result<Option<Call<'a>>> {
        let place = place_of(self.shared.dialect, self.shared.context, stream);
        Call::new(&self.state.spec, args, place, self.state.fault.address())
    }

    /// Launches with the kernel that is loaded for the call; `false` if there is none.
    fn launch_loaded(&self, stream: Stream<'_>, call: &Call<'_>) -> Result<bool> {
        let loaded = self.state.slot(Bucket::of(call.total_tokens()), call.class).plan.load();
        let Some(plan) = loaded.as_deref() else { return Ok(false) };
        self.state.hits.add();
        plan.launch(stream, call)?;
        Ok(true)
    }

    /// What serves contiguous tensors with this many tokens in all, if it is loaded.
    pub fn serving(&self, tokens: u64, head_major: bool) -> Option<Serving> {
        let class = Class::contiguous(&self.state.spec, head_major, true);
        let plan = self.state.slot(Bucket::of(tokens), class).plan.load_full()?;
        Some(Serving { variant: plan.variant, origin: plan.origin, tuned: plan.tuned, prior: plan.prior })
    }

    /// A launch of the kernel that serves such tensors, without anything around it, to be timed: as many blocks, which find
    /// no work. `None` if none is loaded.
    #[doc(hidden)]
    pub fn bare_launch(&self, tokens: u64, head_major: bool) -> Option<impl Fn() -> Result<()> + use<>> {
        let class = Class::contiguous(&self.state.spec, head_major, true);
        let plan = self.state.slot(Bucket::of(tokens), class).plan.load_full()?;
        Some(move || plan.launch_nothing(Stream::DEFAULT, tokens))
    }

    /// Reports a token whose position lay outside the table in an earlier call. Such a token became NaN; the error stays
    /// until it is reported. Calls that the device has not yet run are not seen: synchronise first to be sure.
    ///
    /// # Errors
    /// [`ErrorKind::PositionOutOfRange`], naming one such token.
    pub fn check(&self) -> Result<()> {
        let fault = self.state.fault.take();
        if fault == 0 {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::PositionOutOfRange,
            format!("token {} stands at a position outside the cos/sin tables; its q and k are NaN", fault - 1),
        )
        .subject_is("position_ids")
        .hint("make the tables longer, or the positions smaller"))
    }
}
