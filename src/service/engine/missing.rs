//! What a frozen engine lacks: an error says it in words, and for those who can say how to get it, as a value.

use std::path::{Path, PathBuf};

use super::locked::Decided;
use super::shared::Shared;
use crate::error::{Error, ErrorKind};
use crate::service::bucket::Bucket;
use crate::service::device::DeviceChoice;
use crate::service::family::{Problem, Stated};

/// What was asked for and is not in the cache.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Missing {
    /// The family.
    pub family: String,
    /// What is computed.
    pub spec: Stated,
    /// For which layouts.
    pub class: Stated,
    /// For how many tokens.
    pub bucket: Bucket,
    /// The engine's lock file.
    pub lock_file: Option<PathBuf>,
    /// Whether that names a config, whose kernel is missing.
    pub is_locked: bool,
    /// The device and the cache folder that the engine was told of, and not the environment.
    pub device: Option<DeviceChoice>,
    /// See `device`.
    pub cache_dir: Option<PathBuf>,
    /// Whether the engine has a cache folder; what to do, where it had to go without the one it was to have.
    pub has_folder: bool,
    /// See `has_folder`.
    pub cure: Option<String>,
}

/// A problem that neither the cache nor a lock file names anything for.
pub(super) fn no_choice(shared: &Shared, problem: &dyn Problem) -> Error {
    let [own, arch] = shared.choices.fields(problem).map(|f| f.key());
    let what = format!(
        "not in the cache ({}) for {}, and tuning is frozen; looked for choice {own} and {arch}",
        shared.store.searched(),
        call(shared, problem)
    );
    missing(shared, what, problem, None, false)
}

/// A problem that the lock file is silent about.
pub(super) fn not_in_file(shared: &Shared, problem: &dyn Problem, file: &Path) -> Error {
    let what = format!("{} has no choice for {}, and tuning is frozen", file.display(), call(shared, problem));
    missing(shared, what, problem, Some(file), false)
}

/// A problem whose line of the lock file names a kernel that is not there.
pub(super) fn no_kernel(shared: &Shared, problem: &dyn Problem, line: &Decided<'_>) -> Error {
    let what = format!(
        "{} names '{}', which is not in the cache ({}), and tuning is frozen",
        line.at(),
        line.text(),
        shared.store.searched()
    );
    missing(shared, what, problem, Some(line.path()), true)
}

fn call(shared: &Shared, problem: &dyn Problem) -> String {
    let (facts, tokens) = (shared.device.facts(), problem.bucket().tokens());
    format!("{tokens} tokens, layout {}, {} ({})", problem.class(), facts.name, facts.arch)
}

/// The error of a problem that a frozen engine lacks.
fn missing(shared: &Shared, what: String, problem: &dyn Problem, lock_file: Option<&Path>, is_locked: bool) -> Error {
    let hint = match (lock_file, is_locked) {
        (None, _) => "prewarm this spec, layout and number of tokens with an engine that is not frozen",
        (Some(_), true) => "prewarm it with an engine that has this lock file and is not frozen",
        (Some(_), false) => "prewarm it with an engine without the lock file, and write the file again",
    };
    Error::new(ErrorKind::NotCached, what).subject_is(problem.spec().to_string()).hint(hint).about(Missing {
        family: problem.family().to_owned(),
        spec: problem.spec().clone(),
        class: problem.class().clone(),
        bucket: problem.bucket(),
        lock_file: lock_file.map(Into::into),
        is_locked,
        device: shared.named_device,
        cache_dir: shared.named_folder.clone(),
        has_folder: shared.store.root().is_some(),
        cure: shared.store.lost().and_then(|e| e.advice().map(String::from)),
    })
}
