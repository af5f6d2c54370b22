//! Choices on disk: which variant serves a spec, bucket and class, and why.
//!
//! A choice is looked up for the device first, then for its architecture alone: the second is what a prewarm without the
//! device leaves behind. A choice names its artifact, so a look-up opens two files at most and asks no compiler.
//!
//! The first versions had the memory's clock in the device's identity. What they kept is still found, where the driver
//! reports the clock that it did then.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Engine;
use super::stats::Counters;
use crate::device::Device;
use crate::jit::key::{Key, KeyFields};
use crate::jit::{Abilities, Bucket, Candidate, Class, Record, Variant, variant};
use crate::rope::RopeSpec;
use crate::store::{Entry, Kind, Lookup, Miss, Store};

/// What stands in a choice's metadata.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ChoiceMeta {
    /// What the key hashes.
    pub fields: KeyFields,
    /// What is computed.
    pub spec: RopeSpec,
    /// For how many tokens.
    pub bucket: Bucket,
    /// For which layouts.
    pub class: Class,
    /// What kernels are compiled for.
    pub arch: String,
    /// The choice and its reasons.
    pub record: Record,
}

/// A record of these candidates that says which device, driver and compiler it was made with.
pub(super) fn record_of(device: &dyn Device, tokens: u64, candidates: Vec<Candidate>) -> Record {
    let facts = device.facts();
    Record {
        device: facts.name.clone(),
        driver: facts.driver.clone(),
        memory_clock_khz: facts.memory_clock_khz,
        compiler: device.compiler().unwrap_or_default(),
        ..Record::new(tokens, candidates)
    }
}

impl Engine {
    /// The keys that a look-up tries in turn, with the fields they hash: the choice for this device, what the first versions
    /// kept for it, and the choice for its architecture, which is the only one where the device is not there.
    pub fn choice_keys(&self, spec: &RopeSpec, bucket: Bucket, class: Class) -> Vec<KeyFields> {
        let choices = &self.shared.choices;
        let [own, arch] = choices.fields(spec, bucket, class);
        if self.shared.device.runs() { vec![own, choices.fields_before(spec, bucket, class), arch] } else { vec![arch] }
    }
}

/// The choices of one device.
pub(super) struct Choices {
    store: Arc<dyn Store>,
    counters: Arc<Counters>,
    identity: String,
    /// The identity's text of the first versions: what they kept is looked for where the own choice is missing.
    identity_before: String,
    arch: String,
    can: Abilities,
}

impl Choices {
    pub fn new(store: Arc<dyn Store>, counters: Arc<Counters>, device: &dyn Device) -> Self {
        let facts = device.facts();
        Self {
            store,
            counters,
            identity: facts.identity().to_string(),
            identity_before: facts.identity_with_clock(),
            arch: facts.arch.clone(),
            can: device.abilities(),
        }
    }

    /// The keys that choices are kept under, for this device and for its architecture, with the fields they hash.
    pub fn fields(&self, spec: &RopeSpec, bucket: Bucket, class: Class) -> [KeyFields; 2] {
        let space = variant::space(spec, class, bucket, self.can);
        [&self.identity, &self.arch].map(|device| KeyFields::choice(spec, bucket, class, &space, device))
    }

    /// The key under which the first versions kept the choice for this device.
    pub fn fields_before(&self, spec: &RopeSpec, bucket: Bucket, class: Class) -> KeyFields {
        KeyFields::choice(spec, bucket, class, &variant::space(spec, class, bucket, self.can), &self.identity_before)
    }

    /// The choice for this device, else for its architecture.
    pub fn read(&self, spec: &RopeSpec, bucket: Bucket, class: Class) -> Option<Record> {
        self.read_own(spec, bucket, class).or_else(|| self.read_arch(spec, bucket, class))
    }

    /// The choice for this device alone.
    pub fn read_own(&self, spec: &RopeSpec, bucket: Bucket, class: Class) -> Option<Record> {
        let own = self.read_one(self.own_key(spec, bucket, class));
        own.or_else(|| self.read_one(self.fields_before(spec, bucket, class).key()))
    }

    /// The choice for its architecture alone.
    pub fn read_arch(&self, spec: &RopeSpec, bucket: Bucket, class: Class) -> Option<Record> {
        self.read_one(self.fields(spec, bucket, class)[1].key())
    }

    /// The artifact of a variant, where a choice for this device or its architecture names it.
    pub fn artifact_of(&self, spec: &RopeSpec, bucket: Bucket, class: Class, variant: Variant) -> Option<Key> {
        let named = |record: Record| record.candidates.into_iter().find(|c| c.variant == variant)?.artifact;
        let own = self.read_own(spec, bucket, class).and_then(named);
        own.or_else(|| self.read_arch(spec, bucket, class).and_then(named))
    }

    /// The key of the choice for this device.
    pub fn own_key(&self, spec: &RopeSpec, bucket: Bucket, class: Class) -> Key {
        self.fields(spec, bucket, class)[0].key()
    }

    /// Whether a choice is kept under a key that leaves nothing to find out. Says nothing of one that cannot be used.
    pub fn is_settled(&self, key: Key, priors: bool) -> bool {
        let Lookup::Hit(entry) = self.store.get(Kind::Choice, key) else { return false };
        serde_json::from_slice::<ChoiceMeta>(&entry.meta).is_ok_and(|meta| meta.record.is_settled(priors))
    }

    fn read_one(&self, key: Key) -> Option<Record> {
        match self.store.get(Kind::Choice, key) {
            Lookup::Hit(entry) => match serde_json::from_slice::<ChoiceMeta>(&entry.meta) {
                Ok(meta) => Some(meta.record),
                Err(e) => {
                    let (path, why) = (self.store.path(Kind::Choice, key), format!("it cannot be read: {e}"));
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
    pub fn write(&self, spec: &RopeSpec, bucket: Bucket, class: Class, record: Record, measured: bool) {
        let fields = self.fields(spec, bucket, class)[usize::from(!measured)].clone();
        let key = fields.key();
        let meta = ChoiceMeta { fields, spec: spec.clone(), bucket, class, arch: self.arch.clone(), record };
        let meta = serde_json::to_vec(&meta).unwrap_or_default();
        let entry = Entry::choice(key, meta);
        self.counters.keep(self.store.put(&entry));
    }
}
