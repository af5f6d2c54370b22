//! Options of an engine, and how it is opened.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::time::{Duration, Instant};

use once_cell::race::OnceBox;

use super::choices::Choices;
use super::extensions::Extensions;
use super::handle::Engine;
use super::kernels::Kernels;
use super::locked::Held;
use super::policy::{OnProgress, Progress, Tuning};
use super::shared::{Shared, abilities};
use super::stats::Counters;
use crate::error::Result;
use crate::service::device::{self, Device, DeviceChoice};
use crate::service::family::Families;
use crate::service::store::layers::{Layers, Places};
use crate::service::store::{Store, memory::InMemory};
use crate::system::{environment, fork};

/// A program warms up for less than this.
const LATE_AFTER: Duration = Duration::from_secs(60);

/// Options of an [`Engine`]. Unset ones come from the environment (`ROPEJIT_DEVICE`, `ROPEJIT_CACHE_DIR`,
/// `ROPEJIT_CACHE_PATH`, `ROPEJIT_CACHE_MAX_BYTES`, `ROPEJIT_TRUST_GROUP`, `ROPEJIT_STRICT`, `ROPEJIT_TUNING`, `ROPEJIT_LOCK`),
/// then from the defaults.
pub struct Builder {
    families: &'static dyn Families,
    extensions: Extensions,
    device: Option<DeviceChoice>,
    opened: Option<Arc<dyn Device>>,
    arch: Option<String>,
    cache_dir: Option<PathBuf>,
    cache_path: Option<Vec<PathBuf>>,
    cache_max_bytes: Option<u64>,
    trust_group: Option<u32>,
    strict: Option<bool>,
    store: Option<Arc<dyn Store>>,
    in_memory: bool,
    without_portable: bool,
    tuning: Option<Tuning>,
    lock_file: Option<PathBuf>,
    without_priors: bool,
    on_progress: Option<OnProgress>,
    late_after: Option<Duration>,
}

impl Builder {
    /// No option is set yet.
    pub(crate) fn new(families: &'static dyn Families) -> Self {
        Self {
            families,
            extensions: Extensions::default(),
            device: None,
            opened: None,
            arch: None,
            cache_dir: None,
            cache_path: None,
            cache_max_bytes: None,
            trust_group: None,
            strict: None,
            store: None,
            in_memory: false,
            without_portable: false,
            tuning: None,
            lock_file: None,
            without_priors: false,
            on_progress: None,
            late_after: None,
        }
    }

    /// The device; default: the first GPU, else the host.
    #[must_use]
    pub fn device(mut self, device: DeviceChoice) -> Self {
        self.device = Some(device);
        self
    }

    /// A device of the caller's, in place of one that is opened here. Who implements [`Device`] vouches for what it gives.
    #[must_use]
    pub fn with_device(mut self, device: Arc<dyn Device>) -> Self {
        self.opened = Some(device);
        self
    }

    /// Compile for an architecture such as `sm_90` that this machine need not have; such an engine runs nothing.
    #[must_use]
    pub fn arch(mut self, arch: impl Into<String>) -> Self {
        self.arch = Some(arch.into());
        self
    }

    /// The cache folder; default: the user's.
    #[must_use]
    pub fn cache_dir(mut self, folder: impl Into<PathBuf>) -> Self {
        self.cache_dir = Some(folder.into());
        self
    }

    /// Cache folders that are only read, such as those of an image's layers: what the cache folder lacks is looked for
    /// there, the first first. They may belong to root. Unless they are named here, they are those of `ROPEJIT_CACHE_PATH`, and behind
    /// them the packs that are installed in the user's data folder.
    #[must_use]
    pub fn cache_path(mut self, folders: impl IntoIterator<Item = impl Into<PathBuf>>) -> Self {
        self.cache_path = Some(folders.into_iter().map(Into::into).collect());
        self
    }

    /// Bytes that the cache folder may hold; default: 1 GiB. The least recently used entries go first, but none that a
    /// living process uses.
    #[must_use]
    pub fn cache_max_bytes(mut self, bytes: u64) -> Self {
        self.cache_max_bytes = Some(bytes);
        self
    }

    /// A group, by its number, that may write to the cache folders: whoever is in it can run code in this process. For volumes
    /// that Kubernetes makes writable for a group (`fsGroup`). Default: none.
    #[must_use]
    pub fn trust_group(mut self, group: u32) -> Self {
        self.trust_group = Some(group);
        self
    }

    /// Whether a cache folder that others can write to is an error; default: no, it is not used, and a warning says so.
    #[must_use]
    pub fn strict(mut self, on: bool) -> Self {
        self.strict = Some(on);
        self
    }

    /// A store of the caller's, in place of all folders.
    #[must_use]
    pub fn store(mut self, store: Arc<dyn Store>) -> Self {
        self.store = Some(store);
        self
    }

    /// Read from and keep nothing on disk.
    #[must_use]
    pub fn in_memory(mut self) -> Self {
        self.in_memory = true;
        self
    }

    /// Whether the kernels for all shapes that come with the crate may answer first calls; default: yes. Without them, what
    /// is not cached is compiled at once: for those who want to look at compiled kernels alone.
    #[must_use]
    pub fn portable(mut self, on: bool) -> Self {
        self.without_portable = !on;
        self
    }

    /// When to compile and tune.
    #[must_use]
    pub fn tuning(mut self, tuning: Tuning) -> Self {
        self.tuning = Some(tuning);
        self
    }

    /// A tuning lock file, as `ropejit prewarm --lock` writes it. The variants that it names serve, whatever was measured
    /// here, and are never tuned: all processes that are given one file launch the same. What it does not name is left to
    /// the policy, and is an error where that is [`Frozen`](Tuning::Frozen).
    #[must_use]
    pub fn lock_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.lock_file = Some(path.into());
        self
    }

    /// Whether to follow the choices that come with the crate; default: yes. On a GPU of a model that was measured for them,
    /// they are taken in place of tuning; elsewhere they say which few candidates a tuning measures. Without them all
    /// candidates are measured here, and cached choices that rest on them are made anew when they would be tuned.
    #[must_use]
    pub fn priors(mut self, on: bool) -> Self {
        self.without_priors = !on;
        self
    }

    /// A value for a family to find in the engine, in place of one that it would make.
    #[must_use]
    pub(crate) fn extend<T: Send + Sync + 'static>(mut self, value: T) -> Self {
        self.extensions.give(value);
        self
    }

    /// So long after the engine's first call, a call that waits for a compiler is a warning that names it; default: one minute.
    /// By then a program has warmed up, and what it calls should have been prewarmed.
    #[must_use]
    pub fn late_after(mut self, time: Duration) -> Self {
        self.late_after = Some(time);
        self
    }

    /// Called while candidates are compiled and measured, from any thread. It must not drop the engine.
    #[must_use]
    pub fn on_progress(mut self, f: impl Fn(&Progress<'_>) + Send + Sync + 'static) -> Self {
        self.on_progress = Some(Box::new(f));
        self
    }

    /// Opens device and cache.
    ///
    /// # Errors
    /// When the device cannot be had, the lock file cannot be read, an environment variable is wrong, or, where that is
    /// [`strict`](Self::strict), a cache folder cannot be trusted.
    pub fn build(self) -> Result<Engine> {
        // Libraries and compilers are judged by it whatever keeps the entries, and must not be refused one by one for it.
        environment::trust_group()?;
        let tuning = match self.tuning {
            Some(tuning) => tuning,
            None => environment::parsed("ROPEJIT_TUNING")?.unwrap_or_default(),
        };
        let lock_file = self.lock_file.or_else(|| environment::raw("ROPEJIT_LOCK").map(Into::into));
        let lock = lock_file.map(|path| Held::read(path, self.families)).transpose()?;
        let store: Arc<dyn Store> = match self.store {
            Some(store) => store,
            None if self.in_memory => Arc::new(InMemory::default()),
            None => {
                let mut places = Places::from_environment()?;
                places.user = self.cache_dir.clone().or(places.user);
                if let Some(named) = self.cache_path {
                    (places.read_only, places.packs) = (named, None);
                }
                places.max_bytes = self.cache_max_bytes.or(places.max_bytes);
                places.trust_group = self.trust_group.or(places.trust_group);
                places.frozen = tuning == Tuning::Frozen;
                places.strict = self.strict.unwrap_or(places.strict);
                Arc::new(Layers::open(&places)?)
            }
        };
        let device: Arc<dyn Device> = match (self.opened, self.arch) {
            (Some(device), _) => device,
            (None, Some(arch)) => Arc::new(device::Target::new(&arch)?),
            (None, None) => {
                let choice = match self.device {
                    Some(choice) => choice,
                    None => environment::parsed("ROPEJIT_DEVICE")?.unwrap_or_default(),
                };
                device::open(choice)?
            }
        };
        Ok(assemble(Parts {
            device,
            store,
            tuning,
            lock: lock.map(Arc::new),
            priors: !self.without_priors,
            ahead_of_time: !self.without_portable,
            named_device: self.device,
            named_folder: self.cache_dir,
            extensions: self.extensions,
            on_progress: self.on_progress,
            late_after: self.late_after.unwrap_or(LATE_AFTER),
        }))
    }
}

/// What an engine is made of.
pub(super) struct Parts {
    pub device: Arc<dyn Device>,
    pub store: Arc<dyn Store>,
    pub tuning: Tuning,
    pub lock: Option<Arc<Held>>,
    pub priors: bool,
    pub ahead_of_time: bool,
    pub named_device: Option<DeviceChoice>,
    pub named_folder: Option<PathBuf>,
    pub extensions: Extensions,
    pub on_progress: Option<OnProgress>,
    pub late_after: Duration,
}

/// Makes an engine, of this process.
pub(super) fn assemble(parts: Parts) -> Engine {
    device::watch_forks();
    let Parts {
        device,
        store,
        tuning,
        lock,
        priors,
        ahead_of_time,
        named_device,
        named_folder,
        extensions,
        on_progress,
        late_after,
    } = parts;
    let (counters, closing) = (Arc::new(Counters::default()), Arc::new(AtomicBool::new(false)));
    let kernels = Kernels::new(Arc::clone(&device), Arc::clone(&store), Arc::clone(&counters), Arc::clone(&closing));
    let is_gpu = device.context() != 0;
    let shared = Arc::new(Shared {
        choices: Choices::new(
            Arc::clone(&store),
            Arc::clone(&counters),
            device.as_ref(),
            abilities(device.as_ref(), ahead_of_time),
        ),
        kernels,
        device,
        store,
        tuning,
        lock,
        priors,
        ahead_of_time,
        named_device,
        named_folder,
        frozen: AtomicBool::new(false),
        closing,
        running: AtomicUsize::new(0),
        generation: fork::generation(),
        renewed: OnceBox::new(),
        opened: Instant::now(),
        late_after,
        first_call: AtomicU64::new(0),
        captured: AtomicU64::new(0),
        counters,
        slots: std::sync::Mutex::default(),
        extensions,
        on_progress,
    });
    // After the device was opened: what was there earlier ends later, and the driver is then still there.
    Engine::new(&shared, is_gpu)
}
