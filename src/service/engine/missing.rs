//! What a frozen engine lacks: an error says it in words, and for those who can say how to get it, as a value.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::choices::ChoiceMeta;
use super::locked::Decided;
use super::shared::Shared;
use crate::error::{Error, ErrorKind};
use crate::service::bucket::Bucket;
use crate::service::device::{DeviceChoice, Dialect};
use crate::service::family::{Problem, Stated};
use crate::service::key::Key;
use crate::service::store::{Kind, Lookup, Miss};
use crate::system::environment;

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
    /// Whether the engine has a cache folder.
    pub has_folder: bool,
    /// What to do about an entry or a folder that is there and is not used, or that was named and is not there: the likely
    /// cause.
    pub cure: Option<String>,
    /// Architectures of GPUs that the cache holds choices for, where no GPU was found and it holds none for the processor.
    pub gpus: Vec<String>,
}

/// A problem that neither the cache nor a lock file names anything for, or whose kernel is not there.
pub(super) fn no_choice(shared: &Shared, problem: &dyn Problem) -> Error {
    let [own, arch] = shared.choices.fields(problem).map(|f| f.key());
    let (kernel, unusable) = found(shared, [own, arch]);
    let why = unusable.as_ref().map_or_else(String::new, |miss| format!("; {miss}"));
    let kernel = kernel.map_or_else(String::new, |key| format!(", then for its kernel {key}"));
    let what = format!(
        "not in the cache ({}) for {}, and tuning is frozen; looked for choice {own} and {arch}{kernel}{why}",
        shared.store.searched(),
        call(shared, problem)
    );
    missing(shared, what, problem, None, false, unusable.and_then(|miss| miss.cure()))
}

/// The kernel that the first of these choices names, and the first file among all of them that is there and cannot be used.
fn found(shared: &Shared, choices: [Key; 2]) -> (Option<Key>, Option<Miss>) {
    let mut unusable = None;
    let mut entry = |kind, key| match shared.store.get(kind, key) {
        Lookup::Hit(entry) => Some(entry),
        Lookup::Miss(miss) => {
            unusable = unusable.take().or(matches!(miss, Miss::Unusable { .. }).then_some(miss));
            None
        }
    };
    let choice = choices.into_iter().find_map(|key| entry(Kind::Choice, key));
    let meta = choice.and_then(|entry| serde_json::from_slice::<ChoiceMeta>(&entry.meta).ok());
    let kernel = meta.and_then(|meta| meta.record.chosen()?.artifact);
    if let Some(key) = kernel {
        entry(Kind::Artifact, key);
    }
    (kernel, unusable)
}

/// A problem that the lock file is silent about.
pub(super) fn not_in_file(shared: &Shared, problem: &dyn Problem, file: &Path) -> Error {
    let what = format!("{} has no choice for {}, and tuning is frozen", file.display(), call(shared, problem));
    missing(shared, what, problem, Some(file), false, None)
}

/// A problem whose line of the lock file names a kernel that is not there.
pub(super) fn no_kernel(shared: &Shared, problem: &dyn Problem, line: &Decided<'_>) -> Error {
    let what = format!(
        "{} names '{}', which is not in the cache ({}), and tuning is frozen",
        line.at(),
        line.text(),
        shared.store.searched()
    );
    missing(shared, what, problem, Some(line.path()), true, None)
}

fn call(shared: &Shared, problem: &dyn Problem) -> String {
    let (facts, tokens) = (shared.device.facts(), problem.bucket().tokens());
    format!("{tokens} tokens, layout {}, {} ({})", problem.class(), facts.name, facts.arch)
}

/// The error of a problem that a frozen engine lacks.
fn missing(
    shared: &Shared,
    what: String,
    problem: &dyn Problem,
    lock_file: Option<&Path>,
    is_locked: bool,
    cure: Option<String>,
) -> Error {
    let cure = cure.or_else(|| shared.store.unused().iter().find_map(|e| e.advice().map(String::from)));
    let gpus = gpus(shared);
    let prewarm = match (lock_file, is_locked) {
        (None, _) => "prewarm this spec, layout and number of tokens with an engine that is not frozen",
        (Some(_), true) => "prewarm it with an engine that has this lock file and is not frozen",
        (Some(_), false) => "prewarm it with an engine without the lock file, and write the file again",
    };
    let hint = match &cure {
        _ if !gpus.is_empty() => no_gpu(&gpus),
        Some(cure) => format!("{cure}; if it is still missing then: {prewarm}"),
        None => prewarm.to_owned(),
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
        cure,
        gpus,
    })
}

fn no_gpu(gpus: &[String]) -> String {
    format!(
        "no GPU was found, and the cache is for {}: give the container the GPU (docker run --gpus all), or install NVIDIA's \
         driver; ropejit doctor says what is found",
        gpus.join(", ")
    )
}

/// See [`Missing::gpus`].
fn gpus(shared: &Shared) -> Vec<String> {
    let named = shared.named_device.or_else(|| environment::parsed("ROPEJIT_DEVICE").ok().flatten());
    if shared.device.dialect() != Dialect::Host || !matches!(named, None | Some(DeviceChoice::Auto)) {
        return Vec::new();
    }
    let choices = shared.store.heads(Kind::Choice).unwrap_or_default();
    let metas = choices
        .iter()
        .filter_map(|listed| serde_json::from_slice::<ChoiceMeta>(&listed.entry.as_ref().ok()?.meta).ok());
    let archs: BTreeSet<String> = metas.map(|meta| meta.arch).collect();
    if archs.iter().all(|arch| arch.starts_with("sm_")) { archs.into_iter().collect() } else { Vec::new() }
}
