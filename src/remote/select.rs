//! Which entries go into a pack: choices, and the kernels that they name. What no choice names serves nobody.

use std::collections::BTreeSet;

use crate::error::{Error, ErrorKind, Result};
use crate::families::{Stated, families, read_choice, rope};
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
    /// Only specs of which this holds.
    pub spec: Option<&'a dyn Fn(&Stated) -> bool>,
    /// Only what these choices need: the variants that the lock file names.
    pub lock: Option<&'a Lock>,
}

/// The entries that are to be packed, complete: each choice with the kernel that serves it.
///
/// # Errors
/// [`ErrorKind::NotCached`] when a kernel that serves is not in the store, or when nothing is left to pack.
pub fn select(store: &dyn Store, selection: &Selection<'_>) -> Result<Vec<(Kind, Key)>> {
    let kernels: BTreeSet<Key> =
        store.heads(Kind::Artifact)?.into_iter().filter_map(|listed| Some(listed.entry.ok()?.key)).collect();
    let (mut picked, mut locked) = (BTreeSet::new(), BTreeSet::new());
    let mut missing: Vec<String> = Vec::new();
    for listed in store.heads(Kind::Choice)? {
        let Ok(head) = listed.entry else { continue };
        let Ok(meta) = read_choice(&head.meta) else { continue };
        if !is_wanted(&meta, selection) {
            continue;
        }
        let needed: Vec<&Candidate> = match selection.lock {
            None => meta.record.chosen().into_iter().collect(),
            Some(lock) => {
                let (spec, class) = (meta.spec.to_string(), meta.class.to_string());
                let named = lock.of_arch(&meta.arch, &spec, &class, meta.bucket);
                locked.extend(named.iter().map(|line| line.line));
                let configs: BTreeSet<&str> = named.iter().map(|line| line.config.as_str()).collect();
                meta.record.candidates.iter().filter(|c| configs.contains(c.config.to_string().as_str())).collect()
            }
        };
        let mut complete = !needed.is_empty();
        for candidate in needed {
            match candidate.artifact.filter(|key| kernels.contains(key)) {
                Some(key) => {
                    picked.insert((Kind::Artifact.name(), key));
                }
                None => {
                    complete = false;
                    missing.push(format!(
                        "{}, {}, {} tokens, {}: {}",
                        meta.arch,
                        meta.spec,
                        meta.bucket.tokens(),
                        meta.class,
                        candidate.config
                    ));
                }
            }
        }
        if complete {
            picked.insert((Kind::Choice.name(), head.key));
        }
    }
    if let Some(lock) = selection.lock {
        let wanted =
            |arch: &str| selection.architectures.is_empty() || selection.architectures.iter().any(|a| a == arch);
        let lines = lock.choices().filter(|(section, line)| wanted(&section.arch) && !locked.contains(&line.line));
        missing.extend(lines.map(|(section, line)| {
            format!("{}, {}, {} tokens, {}: {}", section.arch, line.spec, line.bucket.tokens(), line.class, line.config)
        }));
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

/// Whether a choice is of this program's templates, and what was asked for.
fn is_wanted(meta: &ChoiceMeta, selection: &Selection<'_>) -> bool {
    let Selection { architectures, spec, .. } = selection;
    // A user's kernel is made of none of the templates.
    let of_these =
        meta.fields.get("family") != Some(rope::NAME) || meta.fields.get("templates") == Some(families().templates());
    of_these
        && (architectures.is_empty() || architectures.contains(&meta.arch))
        && spec.is_none_or(|holds| holds(&meta.spec))
}
