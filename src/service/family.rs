//! What a kernel family is: all that the service asks of one, on one page.
//!
//! A [`Problem`] is one thing to compute, for one kind of layout and one size: it decides the bits, which assignments of the
//! tunables (a [`Config`]) are legal, and which of them is fast. A family makes it when a call finds no kernel; then the service
//! looks up, compiles, tunes and keeps, and fills a slot with a [`Plan`]. The calls after that are the family's own: it finds the
//! slot by arithmetic, and launches the plan with its arguments. No method here is called by them.
//!
//! [`Families`] is the list of all of them, for what was stored: lines of a lock file, whose families need not be in use.

use std::sync::Arc;

use crate::error::{Error, Result};

pub use super::bucket::Bucket;
pub use super::stated::Stated;
pub use crate::service::device::{
    Abilities, Binary, Device, Dialect, Geometry, Kernel, LaunchAttrs, Memory, Source, Stream, Watched,
};
pub use crate::service::engine::throttle::Throttle;

/// One assignment of a family's tunables. All configs of a problem give the same bits, or within its tolerance.
pub type Config = Stated;

/// One spec, layout class and bucket.
pub trait Problem: Send + Sync {
    /// The family's name, as keys have it.
    fn family(&self) -> &str;

    /// SHA-256 of all that its sources are made of, in hexadecimal: a choice made with other templates is not taken over.
    fn templates(&self) -> &str;

    /// What is computed: all that decides a bit of the result.
    fn spec(&self) -> &Stated;

    /// The layout class: what a call's layout allows.
    fn class(&self) -> &Stated;

    /// The number of its class, below the number that the family's slots were made with.
    fn class_index(&self) -> usize;

    /// The size, rounded up to a power of two.
    fn bucket(&self) -> Bucket;

    /// The legal configs on a device that can do this, 64 at most; the first is the default. The key of a choice holds all of
    /// their texts.
    fn space(&self, can: Abilities) -> Vec<Config>;

    /// Whether a config is legal on a device that can do this.
    ///
    /// # Errors
    /// [`InvalidArgument`](crate::ErrorKind::InvalidArgument), naming the tunable.
    fn check(&self, config: &Config, can: Abilities) -> Result<()>;

    /// A config from its text, which a lock file holds.
    ///
    /// # Errors
    /// When it is none of this family.
    fn parse(&self, text: &str) -> Result<Config>;

    /// A config from JSON, which a record holds: with the family's text. `None` when it is none of this family.
    fn restate(&self, config: &Config) -> Option<Config>;

    /// The whole source of a config's kernel.
    fn source(&self, dialect: Dialect, config: &Config) -> Source;

    /// Whether a kernel that was compiled is what the family takes it for.
    ///
    /// # Errors
    /// When it is not: it is not kept.
    fn compiled(&self, _binary: &Binary) -> Result<()> {
        Ok(())
    }

    /// What loading and launching a config's kernel needs.
    fn attrs(&self, config: &Config) -> LaunchAttrs;

    /// Bytes that a launch of this size reads and writes: what a copy of the same bytes moves.
    fn bytes(&self, size: u64) -> u64;

    /// Scratch data to check and to time configs on, in at most `limit` bytes of the device's memory.
    ///
    /// # Errors
    /// [`OutOfMemory`](crate::ErrorKind::OutOfMemory) when that is too little.
    fn trial(&self, device: &Arc<dyn Device>, limit: u64, throttle: &Throttle<'_>) -> Result<Box<dyn Trial>>;

    /// What configs have in common.
    fn same(&self) -> Same {
        Same::Bits
    }

    /// Whether kernels that were compiled ahead of time serve this family on a device.
    fn has_ahead_of_time(&self, _device: &dyn Device, _can: Abilities) -> bool {
        false
    }

    /// A kernel that was compiled ahead of time and comes with the crate: it answers at once, with nothing compiled. With the
    /// config that it runs as, which need not be one of the space.
    ///
    /// # Errors
    /// When there is one that cannot be loaded.
    fn ahead_of_time(&self, _device: &dyn Device, _can: Abilities) -> Result<Option<(Arc<dyn Kernel>, Config)>> {
        Ok(None)
    }

    /// The kernel of a config of the space whose kernel comes with the crate; `None` where it has to be compiled.
    ///
    /// # Errors
    /// When it cannot be loaded.
    fn shipped(&self, _device: &dyn Device, _config: &Config) -> Result<Option<Arc<dyn Kernel>>> {
        Ok(None)
    }

    /// Whether a config's kernel comes with the crate, so that there is no artifact of it.
    fn is_shipped(&self, _config: &Config) -> bool {
        false
    }

    /// What serves when nothing can be compiled.
    fn fallback(&self, _device: &dyn Device) -> Option<Arc<dyn Kernel>> {
        None
    }

    /// What was measured on a GPU of the device's model for a problem that is near enough: the model's name and the config.
    fn prior(&self, _device: &dyn Device, _can: Abilities) -> Option<(String, Config)> {
        None
    }

    /// The few configs worth measuring, by what was measured on a similar GPU: its name, and the configs, the default first.
    fn prior_few(&self, _device: &dyn Device, _can: Abilities) -> Option<(String, Vec<Config>)> {
        None
    }
}

/// What configs of a problem have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Same {
    /// All bits: the fastest can take over at any time.
    Bits,
    /// Results within a tolerance, said in words: within a process the first choice stays.
    Within(String),
}

/// Scratch data of one problem, several sets of it where the last-level cache would hold one.
pub trait Trial: Send + Sync {
    /// The size that is measured at most: the bucket's, or less where memory is low or a launch would not fit a slice.
    fn size(&self) -> u64;

    /// Launches a plan on set number `set`, modulo the number of sets, with this size.
    fn launch(&self, plan: &Plan, stream: Stream<'_>, set: usize, size: u64) -> Result<()>;

    /// Copies within the device as many bytes as a launch of this size reads and writes.
    fn copy(&self, stream: Stream<'_>, set: usize, size: u64) -> Result<()>;

    /// Launches a plan on inputs that are the same each time, and returns all that it wrote. What it does not write stays
    /// poisoned.
    ///
    /// # Errors
    /// When it cannot be launched, or did what it must not: the message says why the config is left out.
    fn outputs(&mut self, plan: &Plan, throttle: &Throttle<'_>) -> Result<Vec<u8>>;

    /// Whether a config hangs on the device, so that nothing more can be run there, freed or unloaded.
    fn hangs(&self) -> bool {
        false
    }

    /// Whether outputs are what the default's are, or why they are not.
    fn compare(&self, expected: &[u8], got: &[u8]) -> Result<(), String> {
        if expected == got { Ok(()) } else { Err("its output differs from the default's".into()) }
    }
}

/// All families, for what was stored.
pub trait Families: Sync {
    /// Whether the parts of a lock file's line are read by the family that it is for.
    ///
    /// # Errors
    /// What is wrong, with the part as its subject.
    fn read(&self, line: &Line<'_>) -> Result<()>;

    /// Whether the config of such a line is legal for its spec and class on a device that can do this; `Ok` where that is
    /// not known.
    ///
    /// # Errors
    /// Naming the tunable.
    fn check(&self, line: &Line<'_>, can: Abilities) -> Result<()>;

    /// SHA-256 of the templates of the crate's own kernels.
    fn templates(&self) -> &str;

    /// Whether the kernel of such a line is made of those: where they have changed, another config may be faster.
    fn is_of_templates(&self, line: &Line<'_>) -> bool;
}

/// A line of a lock file: the texts of spec, layout class and config.
#[derive(Debug, Clone, Copy)]
pub struct Line<'a> {
    /// What is computed.
    pub spec: &'a str,
    /// For which layouts.
    pub class: &'a str,
    /// What serves.
    pub config: &'a str,
}

/// A loaded kernel, ready to launch.
pub struct Plan {
    /// The kernel.
    pub kernel: Arc<dyn Kernel>,
    /// Its tunables.
    pub config: Config,
    /// Where this process got it.
    pub origin: Origin,
    /// Why it serves.
    pub provenance: Provenance,
    /// What launching it needs.
    pub attrs: LaunchAttrs,
    /// While a better one may still be found: whether a graph was captured with it.
    pub watched: Option<Arc<Watched>>,
}

/// Where a kernel came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Origin {
    /// It was loaded already.
    Memory,
    /// Read from the cache folder.
    Disk,
    /// Shipped with the crate.
    Embedded,
    /// Compiled by this call, not tuned.
    Compiled,
    /// Compiled and tuned by this process.
    Tuned,
    /// The reference: nothing could be compiled.
    Reference,
}

/// Why a config serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Provenance {
    /// It is the default, and nothing was measured to the end.
    Default,
    /// It was the fastest on this device.
    Tuned,
    /// It was the fastest on another GPU of the model.
    Prior,
    /// A lock file names it.
    Locked {
        /// The file's choice was measured on this device or its model.
        measured: bool,
    },
    /// It was compiled ahead of time: it serves until there is another.
    AheadOfTime,
    /// Nothing could be compiled or loaded.
    Reference,
}

impl Provenance {
    /// Whether it was chosen by measuring.
    pub fn is_tuned(self) -> bool {
        matches!(self, Self::Tuned | Self::Locked { measured: true })
    }

    /// Whether nothing is left to find out; without `priors`, it must have been measured here.
    pub fn is_settled(self, priors: bool) -> bool {
        match self {
            Self::Tuned | Self::Locked { .. } | Self::Reference => true,
            Self::Prior => priors,
            Self::Default | Self::AheadOfTime => false,
        }
    }
}

impl Plan {
    /// A plan of a kernel that was loaded for a config of a problem.
    ///
    /// # Errors
    /// Where the device runs nothing, so that there is no kernel.
    pub fn new(
        problem: &dyn Problem,
        kernel: Option<Arc<dyn Kernel>>,
        config: Config,
        origin: Origin,
        provenance: Provenance,
    ) -> Result<Self> {
        let kernel = kernel.ok_or_else(|| {
            Error::new(crate::ErrorKind::DeviceUnavailable, "this engine compiles for another machine and runs nothing")
        })?;
        let attrs = problem.attrs(&config);
        Ok(Self { kernel, config, origin, provenance, attrs, watched: None })
    }

    /// The same, and takes note of captures from now on.
    #[must_use]
    pub fn watched(self, device: &Arc<dyn Device>) -> Self {
        let watched = Arc::new(Watched::new(Arc::clone(&self.kernel), Arc::clone(device)));
        Self { kernel: Arc::clone(&watched) as _, watched: Some(watched), ..self }
    }
}
