//! Compiled kernels: in memory, on disk, or compiled now. One kernel is compiled once, however many threads and processes
//! ask.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use dashmap::DashMap;
use serde::{Deserialize, Serialize};

use super::stats::Counters;
use super::throttle::cancelled;
use super::watch::{self, Work};
use crate::error::{Error, ErrorKind, Result};
use crate::service::device::{self, Binary, Device, Kernel};
use crate::service::digest::text_digest;
use crate::service::family::{Config, Origin, Problem, Source, Stated};
use crate::service::key::{Key, KeyFields};
use crate::service::store::flight::{self, Flight};
use crate::service::store::{Entry, Kind, Lookup, Miss, Store};

/// What stands in an artifact's metadata.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ArtifactMeta {
    /// What the key hashes.
    pub fields: KeyFields,
    /// What the kernel computes.
    pub spec: Stated,
    /// The layout class it was compiled for.
    pub class: Stated,
    /// Its tunables.
    #[serde(rename = "variant")]
    pub config: Config,
    /// The family, for entries that have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub family: Option<String>,
    /// The crate's version that compiled it.
    pub made_by: String,
}

/// A compiled kernel, loaded where the device can run it.
#[derive(Clone)]
pub struct Loaded {
    /// `None` for one that comes with the crate.
    pub artifact: Option<Key>,
    /// `None` for a device that only compiles.
    pub kernel: Option<Arc<dyn Kernel>>,
}

/// How long to wait for another process that compiles the same kernel. That takes it 0.1 s, on a busy host seconds; after
/// this time it is taken to be stopped.
const COMPILE_PATIENCE: Duration = Duration::from_secs(10);
/// What failed is tried again after this time.
const RETRY_AFTER: Duration = Duration::from_secs(30);

type Slot = Arc<Mutex<Option<Loaded>>>;

/// All kernels of an engine.
pub struct Kernels {
    device: Arc<dyn Device>,
    store: Arc<dyn Store>,
    counters: Arc<Counters>,
    /// Set when the engine is dropped: nobody waits for what is made.
    closing: Arc<AtomicBool>,
    /// By their source; the lock of a slot is held while its kernel is made.
    slots: DashMap<String, Slot>,
    /// What could not be compiled or loaded, and when.
    failures: DashMap<Key, (Instant, Error)>,
}

impl Kernels {
    pub fn new(
        device: Arc<dyn Device>,
        store: Arc<dyn Store>,
        counters: Arc<Counters>,
        closing: Arc<AtomicBool>,
    ) -> Self {
        Self { device, store, counters, closing, slots: DashMap::new(), failures: DashMap::new() }
    }

    /// The kernel of a config; compiled if it is nowhere. `named` is the artifact that a choice names: it is looked for
    /// first, since that asks no compiler for its version.
    pub fn obtain(&self, problem: &dyn Problem, config: &Config, named: Option<Key>) -> Result<(Loaded, Origin)> {
        if problem.is_shipped(config) {
            return self.shipped(problem, config);
        }
        self.in_slot(problem, config, true, |source| {
            if let Some(loaded) = named.and_then(|key| self.read(problem, config, key, source)) {
                return Ok(Some((loaded, Origin::Disk)));
            }
            let options = self.device.options_for(source);
            let compiler = self.device.compiler()?;
            let fields = KeyFields::artifact(source, &options, &compiler, &self.device.facts().arch);
            let key = fields.key();
            if named != Some(key)
                && let Some(loaded) = self.read(problem, config, key, source)
            {
                return Ok(Some((loaded, Origin::Disk)));
            }
            self.failed_lately(key)?;
            let (flight, waited) = flight::fly(
                self.store.as_ref(),
                (Kind::Artifact, key),
                COMPILE_PATIENCE,
                || self.closing.load(Relaxed),
                || matches!(self.store.get(Kind::Artifact, key), Lookup::Hit(_)),
            );
            if waited {
                self.counters.waited.add();
            }
            let lease = match flight {
                None => return Err(cancelled()),
                Some(Flight::Make(lease)) => lease,
                Some(Flight::Made) => match self.read(problem, config, key, source) {
                    Some(loaded) => return Ok(Some((loaded, Origin::Disk))),
                    None => None, // refused, by the driver say
                },
            };
            let compile = || self.device.compile(source).and_then(|binary| problem.compiled(&binary).map(|()| binary));
            let made = watch::timed(Work::Compile, problem, compile);
            let binary = made.inspect_err(|e| self.note_failure(key, e))?;
            self.counters.compiles.add();
            let meta = ArtifactMeta {
                fields,
                spec: problem.spec().clone(),
                class: problem.class().clone(),
                config: config.clone(),
                family: Some(problem.family().to_owned()),
                made_by: concat!("ropejit ", env!("CARGO_PKG_VERSION")).into(),
            };
            let meta = serde_json::to_vec(&meta).unwrap_or_default();
            let entry = Entry::new(Kind::Artifact, key, meta, binary.ptx.clone(), binary.image.clone());
            self.counters.keep(self.store.put(&entry));
            drop(lease);
            let loaded = self.load(problem, config, key, source, &binary).inspect_err(|e| self.note_failure(key, e))?;
            Ok(Some((loaded, Origin::Compiled)))
        })
        .and_then(|made| made.ok_or_else(|| Error::new(ErrorKind::Compile, "no kernel was made")))
    }

    /// The kernel of a config as the artifact `key`, if that is in memory or on disk and still what the config needs.
    /// Never compiles, nor waits for one who does.
    pub fn find(&self, problem: &dyn Problem, config: &Config, key: Option<Key>) -> Result<Option<(Loaded, Origin)>> {
        if problem.is_shipped(config) {
            return self.shipped(problem, config).map(Some);
        }
        let Some(key) = key else { return Ok(None) };
        self.in_slot(problem, config, false, |source| {
            Ok(self.read(problem, config, key, source).map(|loaded| (loaded, Origin::Disk)))
        })
    }

    /// The kernel of a config that comes with the crate.
    fn shipped(&self, problem: &dyn Problem, config: &Config) -> Result<(Loaded, Origin)> {
        if !self.device.runs() {
            return Ok((Loaded { artifact: None, kernel: None }, Origin::Embedded));
        }
        let kernel = problem.shipped(self.device.as_ref(), config)?.ok_or_else(|| {
            Error::new(ErrorKind::Device, format!("'{config}' names a kernel that does not come with this release"))
        })?;
        Ok((Loaded { artifact: None, kernel: Some(kernel) }, Origin::Embedded))
    }

    /// Takes out those of these kernels that nobody else holds: no plan, no thread that is at it. They are unloaded when they
    /// are dropped; who asks for one again gets it from the cache.
    pub fn take_unused(&self, artifacts: &[Key]) -> Vec<Loaded> {
        let mut unused = Vec::new();
        self.slots.retain(|_, slot| {
            // Nobody can come by a slot while its part of the map is locked.
            let Some(held) = Arc::get_mut(slot) else { return true };
            let held = held.get_mut().unwrap_or_else(PoisonError::into_inner);
            let idle = |l: &Loaded| l.kernel.as_ref().is_some_and(|k| Arc::strong_count(k) == 1);
            if !held.as_ref().is_some_and(|l| l.artifact.is_some_and(|key| artifacts.contains(&key)) && idle(l)) {
                return true;
            }
            unused.extend(held.take());
            false
        });
        unused
    }

    /// How many are loaded.
    #[cfg(test)]
    pub fn loaded(&self) -> usize {
        self.slots.iter().filter(|slot| slot.try_lock().is_ok_and(|held| held.is_some())).count()
    }

    /// The error of an attempt that failed a short time ago: it is not tried again at every call.
    fn failed_lately(&self, key: Key) -> Result<()> {
        match self.failures.get(&key) {
            Some(failure) if failure.0.elapsed() < RETRY_AFTER => Err(failure.1.again()),
            _ => Ok(()),
        }
    }

    /// Notes a failure that is likely to come again at once; not one that has to do with files or a missing compiler.
    fn note_failure(&self, key: Key, e: &Error) {
        if matches!(e.kind(), ErrorKind::Compile | ErrorKind::Device) {
            self.failures.insert(key, (Instant::now(), e.again()));
        }
    }

    /// The kernel in its slot, or what `make` makes of its source, while others who ask for it wait; those who do not `wait`
    /// make one of their own.
    fn in_slot(
        &self,
        problem: &dyn Problem,
        config: &Config,
        wait: bool,
        make: impl FnOnce(&Source) -> Result<Option<(Loaded, Origin)>>,
    ) -> Result<Option<(Loaded, Origin)>> {
        let source = problem.source(self.device.dialect(), config);
        let name = [&text_digest(&source.text), &source.entry, &source.options.join(" ")].map(String::as_str).join(" ");
        let slot = Arc::clone(&self.slots.entry(name).or_default());
        let mut held = match slot.try_lock() {
            Err(TryLockError::WouldBlock) if !wait => return make(&source),
            Err(TryLockError::WouldBlock) => slot.lock().unwrap_or_else(PoisonError::into_inner),
            Err(TryLockError::Poisoned(held)) => held.into_inner(),
            Ok(held) => held,
        };
        if let Some(loaded) = held.as_ref() {
            return Ok(Some((loaded.clone(), Origin::Memory)));
        }
        let made = make(&source)?;
        *held = made.as_ref().map(|(loaded, _)| loaded.clone());
        Ok(made)
    }

    /// Reads an artifact and loads it; `None` if it is not there, not trusted, not this source's, or refused.
    fn read(&self, problem: &dyn Problem, config: &Config, key: Key, source: &Source) -> Option<Loaded> {
        let started = Instant::now();
        let entry = match self.store.get(Kind::Artifact, key) {
            Lookup::Hit(entry) => entry,
            Lookup::Miss(miss) => {
                self.counters.note_miss(&miss);
                return None;
            }
        };
        let unusable = |why: String| {
            self.counters.note_miss(&Miss::Unusable { path: self.store.path(Kind::Artifact, key), why });
            None
        };
        let meta: ArtifactMeta = match serde_json::from_slice(&entry.meta) {
            Ok(meta) => meta,
            Err(e) => return unusable(format!("its metadata cannot be read: {e}")),
        };
        let wanted = KeyFields::artifact(source, &self.device.options_for(source), "", &self.device.facts().arch);
        for name in ["source", "options", "arch", "entry"] {
            if meta.fields.get(name) != wanted.get(name) {
                return unusable(format!("it has another {name} than is wanted"));
            }
        }
        let read = started.elapsed();
        let (ptx, image) = entry.into_code();
        match self.load(problem, config, key, source, &Binary { ptx, image }) {
            Ok(loaded) => {
                tracing::debug!("artifact {key}: read in {read:?}, loaded after {:?}", started.elapsed());
                self.counters.disk_hits.add();
                Some(loaded)
            }
            Err(e) => unusable(e.to_string()),
        }
    }

    fn load(
        &self,
        problem: &dyn Problem,
        config: &Config,
        artifact: Key,
        source: &Source,
        binary: &Binary,
    ) -> Result<Loaded> {
        if !self.device.runs() {
            return Ok(Loaded { artifact: Some(artifact), kernel: None });
        }
        let load = || device::load(self.device.as_ref(), binary, &source.entry, &problem.attrs(config));
        let kernel = watch::timed(Work::Load, problem, load)?;
        Ok(Loaded { artifact: Some(artifact), kernel: Some(kernel) })
    }
}
