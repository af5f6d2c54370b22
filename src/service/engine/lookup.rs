//! What names a kernel for a problem: a line of the lock file, else the cache's choice. Then the kernel itself, from memory, from
//! disk or compiled.

use super::choices::record_of;
use super::kernels::Loaded;
use super::locked::Decided;
use super::missing;
use super::policy::Tuning;
use super::shared::Shared;
use crate::error::Result;
use crate::service::family::{Config, Origin, Plan, Problem, Provenance};
use crate::service::key::Key;
use crate::service::record::{Candidate, Record};

/// A config that is named for a problem.
pub struct Named<'a> {
    pub config: Config,
    /// The artifact that it is kept as, where that is known: finding it asks no compiler.
    pub artifact: Option<Key>,
    pub provenance: Provenance,
    /// The lock file's line that names it.
    pub line: Option<Decided<'a>>,
}

/// What the lock file names, else the cache.
///
/// # Errors
/// When the lock file's line cannot be used, or is missing where tuning is frozen.
pub fn named<'a>(shared: &'a Shared, problem: &dyn Problem, tuning: Tuning) -> Result<Option<Named<'a>>> {
    let Some(held) = &shared.lock else { return Ok(cached(shared, problem, tuning)) };
    match held.decides(shared.device.as_ref(), problem) {
        Some(line) => locked(shared, problem, line).map(Some),
        None if tuning == Tuning::Frozen => Err(missing::not_in_file(shared, problem, held.path())),
        None => Ok(cached(shared, problem, tuning)),
    }
}

/// What a line of the lock file names.
pub fn locked<'a>(shared: &Shared, problem: &dyn Problem, line: Decided<'a>) -> Result<Named<'a>> {
    let config = line.config(shared.device.as_ref(), shared.abilities(), problem)?;
    let artifact = shared.choices.artifact_of(problem, &config);
    Ok(Named { config, artifact, provenance: Provenance::Locked { measured: line.measured }, line: Some(line) })
}

/// What the cache's choice names; nothing where the caller waits for a tuning, and that has not been.
pub fn cached<'a>(shared: &Shared, problem: &dyn Problem, tuning: Tuning) -> Option<Named<'a>> {
    let record = shared.choices.read(problem)?;
    if !record.is_settled(shared.priors) && matches!(tuning, Tuning::Blocking { .. }) {
        return None;
    }
    named_by(shared, problem, &record)
}

/// What a record names, unless it is something that this program would not generate.
pub fn named_by<'a>(shared: &Shared, problem: &dyn Problem, record: &Record) -> Option<Named<'a>> {
    let chosen = record.chosen()?;
    match problem.check(&chosen.config, shared.abilities()) {
        Ok(()) => Some(Named {
            config: chosen.config.clone(),
            artifact: chosen.artifact,
            provenance: record.provenance(),
            line: None,
        }),
        Err(e) => {
            tracing::warn!("choice {} is not used: {e}", shared.choices.own_key(problem));
            None
        }
    }
}

/// The kernel of what is named; one that is gone or damaged is made again if `compile` says so, not tuned again.
///
/// # Errors
/// When it cannot be made or loaded; where tuning is frozen also when the lock file names it and it is not there.
pub fn obtain(
    shared: &Shared,
    problem: &dyn Problem,
    named: &Named<'_>,
    tuning: Tuning,
    compile: bool,
) -> Result<Option<(Loaded, Origin)>> {
    let found = match (compile, named.artifact) {
        (true, artifact) => Some(shared.kernels.obtain(problem, &named.config, artifact)?),
        (false, artifact) => shared.kernels.find(problem, &named.config, artifact)?,
    };
    match (found, &named.line) {
        (None, Some(line)) if tuning == Tuning::Frozen => Err(missing::no_kernel(shared, problem, line)),
        (Some((loaded, origin)), Some(_)) => {
            if loaded.artifact.is_some() && named.artifact != loaded.artifact {
                note(shared, problem, &named.config, &loaded);
            }
            Ok(Some((loaded, origin)))
        }
        (found, _) => Ok(found),
    }
}

/// As [`obtain`], ready to launch.
pub fn plan(
    shared: &Shared,
    problem: &dyn Problem,
    named: &Named<'_>,
    tuning: Tuning,
    compile: bool,
) -> Result<Option<Plan>> {
    let found = obtain(shared, problem, named, tuning, compile)?;
    let plan = |(loaded, origin): (Loaded, _)| {
        if origin == Origin::Embedded {
            shared.counters.embedded_hits.add();
        }
        Plan::new(problem, loaded.kernel, named.config.clone(), origin, named.provenance)
    };
    found.map(plan).transpose()
}

/// Notes the artifact among the candidates of the architecture's choice, so that the next process finds it without asking
/// a compiler. A choice that is there keeps its winner.
fn note(shared: &Shared, problem: &dyn Problem, config: &Config, loaded: &Loaded) {
    let mut record = shared
        .choices
        .read_arch(problem)
        .unwrap_or_else(|| record_of(shared.device.as_ref(), problem.bucket().tokens(), Vec::new()));
    let artifact = loaded.artifact;
    match record.candidates.iter_mut().find(|c| c.config == *config) {
        Some(candidate) => candidate.artifact = artifact,
        None => record.candidates.push(Candidate { artifact, ..Candidate::new(config.clone()) }),
    }
    shared.choices.write(problem, record, false);
}

/// The default config, compiled now, and noted so that the next process finds its artifact without asking a compiler.
pub fn default(shared: &Shared, problem: &dyn Problem) -> Result<(Config, Loaded, Origin)> {
    let config = shared.default_config(problem);
    let (loaded, origin) = shared.kernels.obtain(problem, &config, None)?;
    let candidate = Candidate { artifact: loaded.artifact, ..Candidate::new(config.clone()) };
    let record = record_of(shared.device.as_ref(), problem.bucket().tokens(), vec![candidate]);
    shared.choices.write(problem, record, false);
    Ok((config, loaded, origin))
}
