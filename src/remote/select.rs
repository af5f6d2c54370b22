//! Which entries go into a pack: choices, and the kernels that they name but for those that come with the crate. What no choice
//! names serves nobody.

use std::collections::BTreeSet;

use crate::error::{Error, ErrorKind, Result};
use crate::families::{comes_with_crate, families, read_choice, rope};
use crate::service::bucket::Bucket;
use crate::service::engine::ChoiceMeta;
use crate::service::key::Key;
use crate::service::lock::Lock;
use crate::service::record::Candidate;
use crate::service::store::{Kind, Store};

/// What to pack; all that is in the store, unless it says otherwise.
#[derive(Default)]
pub struct Selection<'a> {
    /// Only for these architectures; all where none is named.
    pub architectures: Vec<String>,
    /// Only specs of whose text this holds.
    pub spec: Option<&'a dyn Fn(&str) -> bool>,
    /// Only what these lines need: the variants that a lock file names.
    pub lock: Option<&'a Lock>,
}

/// The entries that are to be packed, complete: each choice with the kernel that serves it.
///
/// # Errors
/// [`ErrorKind::NotCached`] when a kernel that serves is not in the store, or when nothing is left to pack.
pub fn select(store: &dyn Store, selection: &Selection<'_>) -> Result<Vec<(Kind, Key)>> {
    let kernels: BTreeSet<Key> =
        store.heads(Kind::Artifact)?.into_iter().filter_map(|listed| Some(listed.entry.ok()?.key)).collect();
    let there = |candidate: &Candidate| candidate.artifact.filter(|key| kernels.contains(key));
    let (mut picked, mut served) = (BTreeSet::new(), BTreeSet::new());
    let mut missing: Vec<String> = Vec::new();
    for listed in store.heads(Kind::Choice)? {
        let Ok(head) = listed.entry else { continue };
        let Ok(meta) = read_choice(&head.meta) else { continue };
        if !is_wanted(&meta, selection) {
            continue;
        }
        let (spec, class) = (meta.spec.to_string(), meta.class.to_string());
        // Whether what serves a candidate is at hand; then it is picked.
        let mut pick = |candidate: &Candidate| {
            let kernel = there(candidate);
            let serves = kernel.is_some() || comes_with_crate(&candidate.config);
            picked.extend(kernel.map(|key| (Kind::Artifact.name(), key)));
            picked.extend(serves.then(|| (Kind::Choice.name(), head.key)));
            serves
        };
        if let Some(lock) = selection.lock {
            // Of several choices for one call (a device's, an architecture's) one has the kernel of the locked variant.
            for line in lock.of_arch(&meta.arch, &spec, &class, meta.bucket) {
                let mut candidates = meta.record.candidates.iter().filter(|c| c.config.to_string() == line.config);
                if candidates.any(&mut pick) {
                    served.insert(line.line);
                }
            }
        } else if let Some(chosen) = meta.record.chosen()
            && !pick(chosen)
        {
            missing.push(call(&meta.arch, &spec, &class, meta.bucket, &chosen.config.to_string()));
        }
    }
    if let Some(lock) = selection.lock {
        let (archs, holds) = (&selection.architectures, selection.spec);
        let unserved = lock.choices().filter(|(section, line)| {
            (archs.is_empty() || archs.contains(&section.arch))
                && holds.is_none_or(|holds| holds(&line.spec))
                && !served.contains(&line.line)
        });
        missing.extend(
            unserved.map(|(section, line)| call(&section.arch, &line.spec, &line.class, line.bucket, &line.config)),
        );
    }
    let incomplete = |what: String, hint: &str| Error::new(ErrorKind::NotCached, what).hint(hint);
    if let Some(first) = missing.first() {
        let what = format!(
            "the pack would not be complete, kernels that are not in the cache: {}, the first is {first}",
            missing.len()
        );
        return Err(incomplete(
            what,
            "make them first: ropejit prewarm, with the same --model, --arch and ROPEJIT_LOCK",
        ));
    }
    if picked.is_empty() {
        return Err(incomplete(
            "nothing in the cache is what was asked for".into(),
            "fill it first: ropejit prewarm --model config.json; ropejit inspect says what it holds",
        ));
    }
    let kind = |name: &str| if name == Kind::Choice.name() { Kind::Choice } else { Kind::Artifact };
    Ok(picked.into_iter().map(|(name, key)| (kind(name), key)).collect())
}

/// A call and its variant, for people.
fn call(arch: &str, spec: &str, class: &str, bucket: Bucket, config: &str) -> String {
    format!("{arch}, {spec}, {class}, {} tokens: {config}", bucket.tokens())
}

/// Whether a choice is of this program's templates, and what was asked for.
fn is_wanted(meta: &ChoiceMeta, selection: &Selection<'_>) -> bool {
    let Selection { architectures, spec, .. } = selection;
    // A user's kernel is made of none of the templates.
    let of_these =
        meta.fields.get("family") != Some(rope::NAME) || meta.fields.get("templates") == Some(families().templates());
    of_these
        && (architectures.is_empty() || architectures.contains(&meta.arch))
        && spec.is_none_or(|holds| holds(&meta.spec.to_string()))
}
