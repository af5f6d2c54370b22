//! Choices on disk: which config serves a problem, and why.
//!
//! A choice is looked up for the device first, then for its architecture alone: the second is what a prewarm without the
//! device leaves behind. A choice names its artifact, so a look-up opens two files at most and asks no compiler.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::stats::Counters;
use crate::service::bucket::Bucket;
use crate::service::device::Device;
use crate::service::family::{Abilities, Config, Problem, Stated};
use crate::service::key::{Key, KeyFields};
use crate::service::record::{Candidate, Record};
use crate::service::store::{Entry, Kind, Lookup, Miss, Store};

/// What stands in a choice's metadata.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ChoiceMeta {
    /// What the key hashes.
    pub fields: KeyFields,
    /// What is computed.
    pub spec: Stated,
    /// For how many tokens.
    pub bucket: Bucket,
    /// For which layouts.
    pub class: Stated,
    /// What kernels are compiled for.
    pub arch: String,
    /// The choice and its reasons.
    pub record: Record,
}

/// A record of these candidates that says which device, driver and compiler it was made with.
pub fn record_of(device: &dyn Device, tokens: u64, candidates: Vec<Candidate>) -> Record {
    let facts = device.facts();
    Record {
        device: facts.name.clone(),
        driver: facts.driver.clone(),
        memory_clock_khz: device.memory_clock_khz(),
        compiler: device.compiler().unwrap_or_default(),
        ..Record::new(tokens, candidates)
    }
}

/// The choices of one device.
pub struct Choices {
    store: Arc<dyn Store>,
    counters: Arc<Counters>,
    identity: String,
    arch: String,
    can: Abilities,
}

impl Choices {
    pub fn new(store: Arc<dyn Store>, counters: Arc<Counters>, device: &dyn Device, can: Abilities) -> Self {
        let facts = device.facts();
        Self { store, counters, identity: facts.identity().to_string(), arch: facts.arch.clone(), can }
    }

    /// The keys that choices are kept under, for this device and for its architecture, with the fields they hash.
    pub fn fields(&self, problem: &dyn Problem) -> [KeyFields; 2] {
        let space = problem.space(self.can);
        [&self.identity, &self.arch].map(|device| KeyFields::choice(problem, &space, device))
    }

    /// The choice for this device, else for its architecture.
    pub fn read(&self, problem: &dyn Problem) -> Option<Record> {
        self.read_own(problem).or_else(|| self.read_arch(problem))
    }

    /// The choice for this device alone.
    pub fn read_own(&self, problem: &dyn Problem) -> Option<Record> {
        self.read_one(problem, self.own_key(problem))
    }

    /// The choice for its architecture alone.
    pub fn read_arch(&self, problem: &dyn Problem) -> Option<Record> {
        self.read_one(problem, self.fields(problem)[1].key())
    }

    /// The artifact of a config, where a choice for this device or its architecture names it.
    pub fn artifact_of(&self, problem: &dyn Problem, config: &Config) -> Option<Key> {
        let named = |record: Record| record.candidates.into_iter().find(|c| c.config == *config)?.artifact;
        self.read_own(problem).and_then(named).or_else(|| self.read_arch(problem).and_then(named))
    }

    /// The key of the choice for this device.
    pub fn own_key(&self, problem: &dyn Problem) -> Key {
        self.fields(problem)[0].key()
    }

    /// Whether a choice is kept under a key that leaves nothing to find out. Says nothing of one that cannot be used.
    pub fn is_settled(&self, key: Key, priors: bool) -> bool {
        let Lookup::Hit(entry) = self.store.get(Kind::Choice, key) else { return false };
        serde_json::from_slice::<ChoiceMeta>(&entry.meta).is_ok_and(|meta| meta.record.is_settled(priors))
    }

    fn read_one(&self, problem: &dyn Problem, key: Key) -> Option<Record> {
        match self.store.get(Kind::Choice, key) {
            Lookup::Hit(entry) => match read(problem, &entry.meta) {
                Ok(record) => Some(record),
                Err(why) => {
                    let (path, why) = (self.store.path(Kind::Choice, key), format!("it cannot be read: {why}"));
                    self.counters.note_miss(&Miss::Unusable { path, why });
                    None
                }
            },
            Lookup::Miss(miss) => {
                self.counters.note_miss(&miss);
                None
            }
        }
    }

    /// Keeps a choice: one that was measured for this device, one that was not for its architecture.
    pub fn write(&self, problem: &dyn Problem, record: Record, measured: bool) {
        let fields = self.fields(problem)[usize::from(!measured)].clone();
        let key = fields.key();
        let meta = ChoiceMeta {
            fields,
            spec: problem.spec().clone(),
            bucket: problem.bucket(),
            class: problem.class().clone(),
            arch: self.arch.clone(),
            record,
        };
        let meta = serde_json::to_vec(&meta).unwrap_or_default();
        let entry = Entry::choice(key, meta);
        let written = self.store.put(&entry);
        if written.is_ok() {
            self.counters.choices_written.add();
        }
        self.counters.keep(written);
    }
}

/// The record of a problem's choice, its configs as the family writes them.
fn read(problem: &dyn Problem, meta: &[u8]) -> Result<Record, String> {
    let mut record = serde_json::from_slice::<ChoiceMeta>(meta).map_err(|e| e.to_string())?.record;
    for candidate in &mut record.candidates {
        let restated = problem.restate(&candidate.config);
        candidate.config = restated.ok_or_else(|| format!("'{}' is no variant", candidate.config))?;
    }
    Ok(record)
}
