//! Calls that a lock file decides: the variant that it names is obtained, whatever was measured here, and nothing is tuned.

use std::path::{Path, PathBuf};

use super::choices::record_of;
use super::command::{fill, prewarm_command, quoted};
use super::kernels::Loaded;
use super::resolve::{Prewarmed, plan};
use super::{Engine, Shared, Tuning};
use crate::error::{Error, ErrorKind, Result};
use crate::jit::lock::{Lock, Locked, MAX_BYTES};
use crate::jit::{Bucket, Candidate, Class, Variant, variant};
use crate::plan::{Origin, Plan};
use crate::rope::RopeSpec;
use crate::system::read_bytes;

/// Reads a lock file.
///
/// # Errors
/// [`ErrorKind::LockFile`], naming file and line, when it is none; [`ErrorKind::Io`] when it cannot be read.
pub fn read_lock(path: &Path) -> Result<Lock> {
    let name = path.display().to_string();
    let failed = |e| {
        Error::io(path, "the lock file cannot be read", e)
            .hint("name a file that `ropejit prewarm --lock FILE` has written, or none")
    };
    let bad = |what: String| {
        Err(Error::new(ErrorKind::LockFile, what)
            .subject_is(&*name)
            .hint("name a file that `ropejit prewarm --lock FILE` has written"))
    };
    let bytes = match read_bytes(path, MAX_BYTES) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::FileTooLarge => {
            return bad(format!("more than {MAX_BYTES} bytes are no lock file"));
        }
        Err(e) => return Err(failed(e)),
    };
    match String::from_utf8(bytes) {
        Ok(text) => Lock::parse(&name, &text),
        Err(e) => bad(format!("not a text: {}", e.utf8_error())),
    }
}

/// The lock file of an engine.
pub(super) struct Held {
    path: PathBuf,
    lock: Lock,
}

impl Held {
    /// Reads it; warns where its choices are for other templates, which costs speed, not correctness.
    pub fn read(path: PathBuf) -> Result<Self> {
        let lock = read_lock(&path)?;
        if !lock.is_of_these_templates() {
            tracing::warn!(
                "{}: made with other templates; its variants are used, but others may be faster now: ropejit prewarm … \
                 --lock {0}",
                path.display()
            );
        }
        Ok(Self { path, lock })
    }

    fn choice(&self, shared: &Shared, spec: &RopeSpec, class: Class, bucket: Bucket) -> Option<(bool, &Locked)> {
        let facts = shared.device.facts();
        let (place, locked) = self.lock.find(&facts.arch, &facts.identity(), spec, class, bucket)?;
        Some((place.device.is_some(), locked))
    }

    /// Warns that the file names nothing for the device: what is prepared is chosen here.
    fn tell_if_silent(&self, shared: &Shared) {
        let facts = shared.device.facts();
        let identity = shared.device.runs().then(|| facts.identity());
        if self.lock.is_silent(&facts.arch, identity.as_ref()) {
            let (file, what) = (self.path.display(), self.lock.silence(&facts.arch, identity.as_ref()));
            shared.counters.warn_once(format!("{file} has {what}; it decides nothing here"));
        }
    }

    fn at(&self, locked: &Locked) -> String {
        format!("{}:{}", self.path.display(), locked.line)
    }

    /// Names the file in an error.
    fn not_in_it(&self, shared: &Shared, spec: &RopeSpec, bucket: Bucket, class: Class) -> Error {
        let (file, facts) = (self.path.display(), shared.device.facts());
        let what = format!(
            "{file} has no choice for {} tokens, layout {class}, {} ({}), and tuning is frozen",
            bucket.tokens(),
            facts.name,
            facts.arch
        );
        let command = format!("{} --lock {}", prewarm_command(spec, bucket, class), quoted(&self.path));
        Error::new(ErrorKind::NotCached, what).subject_is(spec.to_string()).hint(fill(
            shared,
            "ROPEJIT_LOCK= ",
            &command,
        ))
    }

    /// Says that what the file names is not in the cache.
    fn not_cached(&self, shared: &Shared, locked: &Locked) -> Error {
        let Locked { spec, class, bucket, variant, .. } = locked;
        let what = format!(
            "{} names '{variant}', which is not in the cache ({}), and tuning is frozen",
            self.at(locked),
            shared.store.searched()
        );
        let file = format!("ROPEJIT_LOCK={} ", quoted(&self.path));
        let command = prewarm_command(spec, *bucket, *class);
        Error::new(ErrorKind::NotCached, what).subject_is(spec.to_string()).hint(fill(shared, &file, &command))
    }
}

impl Engine {
    /// The variant that the engine's lock file names for a call, and the file's line that does.
    pub fn locked(&self, spec: &RopeSpec, bucket: Bucket, class: Class) -> Option<(Variant, String)> {
        let held = self.shared.lock.as_ref()?;
        let (_, locked) = held.choice(&self.shared, spec, class, bucket)?;
        Some((locked.variant, held.at(locked)))
    }
}

/// Whether the engine's lock file decides this call.
pub(super) fn decides(shared: &Shared, spec: &RopeSpec, bucket: Bucket, class: Class) -> bool {
    shared.lock.as_ref().is_some_and(|held| held.choice(shared, spec, class, bucket).is_some())
}

/// The kernel that the lock file names; `None` where there is no file or it is silent, and the policy decides. Compiles if
/// `compile`; else what is not in the cache is no plan, and under [`Tuning::Frozen`] an error.
pub(super) fn find(
    shared: &Shared,
    spec: &RopeSpec,
    bucket: Bucket,
    class: Class,
    tuning: Tuning,
    compile: bool,
) -> Option<Result<Option<Plan>>> {
    let held = shared.lock.as_ref()?;
    let frozen = tuning == Tuning::Frozen;
    let Some((measured, locked)) = held.choice(shared, spec, class, bucket) else {
        return frozen.then(|| Err(held.not_in_it(shared, spec, bucket, class)));
    };
    let found = match obtain(shared, held, locked, compile) {
        Ok(None) if frozen => Err(held.not_cached(shared, locked)),
        found => found,
    };
    let plan = |(loaded, origin)| plan(shared, spec, class, loaded, locked.variant, origin, measured);
    Some(found.and_then(|found| found.map(plan).transpose()))
}

/// Makes sure that a call finds what the lock file names: on a device its own choice, for an architecture those of all
/// devices of it. Nothing where the file is silent.
pub(super) fn prewarm(shared: &Shared, spec: &RopeSpec, bucket: Bucket, class: Class) -> Result<Vec<Prewarmed>> {
    let Some(held) = &shared.lock else { return Ok(Vec::new()) };
    held.tell_if_silent(shared);
    let named: Vec<(bool, &Locked)> = if shared.device.runs() {
        held.choice(shared, spec, class, bucket).into_iter().collect()
    } else {
        held.lock.of_arch(&shared.device.facts().arch, spec, class, bucket).into_iter().map(|l| (false, l)).collect()
    };
    let mut done: Vec<Prewarmed> = Vec::new();
    for (tuned, locked) in named {
        if done.iter().all(|d| d.variant != locked.variant)
            && let Some((_, origin)) = obtain(shared, held, locked, true)?
        {
            done.push(Prewarmed {
                spec: spec.clone(),
                bucket,
                class,
                variant: locked.variant,
                tuned,
                prior: false,
                origin,
            });
        }
    }
    Ok(done)
}

/// The locked kernel from the cache, or compiled if `compile`.
fn obtain(shared: &Shared, held: &Held, locked: &Locked, compile: bool) -> Result<Option<(Loaded, Origin)>> {
    let Locked { spec, class, bucket, variant, .. } = locked;
    let (class, bucket, variant) = (*class, *bucket, *variant);
    variant::check(spec, class, variant, shared.device.abilities()).map_err(|e| {
        let what = format!("the variant is not legal on {}: {}", shared.device.facts().name, e.message());
        let file = held.path.display();
        Error::new(ErrorKind::LockFile, what).subject_is(held.at(locked)).hint(format!(
            "ropejit prewarm --check {file} shows all such lines, ropejit prewarm … --lock {file} writes them anew"
        ))
    })?;
    let named = shared.choices.artifact_of(spec, bucket, class, variant);
    if !compile {
        return Ok(named.map(|key| shared.kernels.find(spec, class, variant, key)).transpose()?.flatten());
    }
    let (loaded, origin) = shared.kernels.obtain(spec, class, variant, named)?;
    if named != Some(loaded.artifact) {
        note(shared, spec, bucket, class, variant, &loaded);
    }
    Ok(Some((loaded, origin)))
}

/// Notes the artifact among the candidates of the architecture's choice, so that the next process finds it without asking
/// a compiler. A choice that is there keeps its winner.
fn note(shared: &Shared, spec: &RopeSpec, bucket: Bucket, class: Class, variant: Variant, loaded: &Loaded) {
    let mut record = shared
        .choices
        .read_arch(spec, bucket, class)
        .unwrap_or_else(|| record_of(shared.device.as_ref(), bucket.tokens(), Vec::new()));
    let artifact = Some(loaded.artifact);
    match record.candidates.iter_mut().find(|c| c.variant == variant) {
        Some(candidate) => candidate.artifact = artifact,
        None => record.candidates.push(Candidate { artifact, ..Candidate::new(variant) }),
    }
    shared.choices.write(spec, bucket, class, record, false);
}
