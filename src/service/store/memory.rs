//! Entries that live as long as the process: where no cache folder can be had, and for tests.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{Entry, Kind, Listed, Lookup, Miss, Store};
use crate::error::{Error, Result};
use crate::service::key::Key;

type Entries = BTreeMap<(&'static str, Key), Entry>;

/// Entries in memory.
#[derive(Default)]
pub struct InMemory {
    entries: Mutex<Entries>,
    /// Why there is no folder, if there should be one.
    instead: Option<Error>,
}

impl InMemory {
    /// Serves where a folder cannot be had: what is put here is there for the process, and said not to be kept.
    pub fn instead_of_a_folder(why: Error) -> Self {
        Self { instead: Some(why), ..Self::default() }
    }

    fn map(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store for InMemory {
    fn get(&self, kind: Kind, key: Key) -> Lookup {
        self.map().get(&(kind.name(), key)).map_or(Lookup::Miss(Miss::Absent), |e| Lookup::Hit(e.clone()))
    }

    fn put(&self, entry: &Entry) -> Result<()> {
        self.map().insert((entry.kind.name(), entry.key), entry.clone());
        self.instead.as_ref().map_or(Ok(()), |why| Err(why.again()))
    }

    fn list(&self, kind: Kind) -> Result<Vec<Listed>> {
        let listed =
            |e: &Entry| Listed { path: PathBuf::new(), kind, bytes: e.encode().len() as u64, entry: Ok(e.clone()) };
        Ok(self.map().values().filter(|e| e.kind == kind).map(listed).collect())
    }

    fn remove(&self, kind: Kind, key: Key) -> Result<bool> {
        Ok(self.map().remove(&(kind.name(), key)).is_some())
    }

    fn path(&self, _: Kind, _: Key) -> PathBuf {
        PathBuf::new()
    }

    fn root(&self) -> Option<&Path> {
        None
    }

    fn searched(&self) -> String {
        self.instead.as_ref().map_or_else(|| "memory".into(), |why| format!("memory, since {}", why.without_hint()))
    }

    fn unused(&self) -> Vec<Error> {
        self.instead.iter().map(Error::again).collect()
    }
}
