//! What a frozen engine lacks: an error says it in words, and for those who can say how to get it, as a value.

use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind};
use crate::service::bucket::Bucket;
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
}

/// The error of a problem that a frozen engine lacks.
pub(super) fn missing(what: String, problem: &dyn Problem, lock_file: Option<&Path>, is_locked: bool) -> Error {
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
    })
}
