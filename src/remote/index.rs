//! What a pack's index says of each entry, and what an entry says of itself.

use serde::{Deserialize, Serialize};

use crate::families::{families, read_artifact, read_choice};
use crate::service::key::{Key, KeyFields};
use crate::service::store::{Head, Kind};

/// The head of a pack: what is in it, in the order of the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Index {
    /// SHA-256 of the templates of the program that made it: it serves programs that have the same.
    pub templates: Key,
    /// Its entries, by kind and key.
    pub entries: Vec<Item>,
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// A compiled kernel, or a choice.
    pub kind: Kind,
    /// What it is kept under.
    pub key: Key,
    /// What it is for: `sm_90`, …, or the host's architecture.
    pub arch: String,
    /// The device that a choice was made on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// What is computed, as people read it.
    pub spec: String,
    /// For which layouts.
    pub layout: String,
    /// For how many tokens; a kernel does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<u64>,
    /// The tunables.
    pub variant: String,
    /// Size of the entry.
    pub bytes: u64,
    /// SHA-256 of the entry's bytes.
    pub sha256: Key,
}

impl Index {
    /// The architectures that entries are for, sorted.
    pub fn architectures(&self) -> Vec<&str> {
        let all: std::collections::BTreeSet<&str> = self.entries.iter().map(|item| item.arch.as_str()).collect();
        all.into_iter().collect()
    }

    /// The number of entries of a kind.
    pub fn count(&self, kind: Kind) -> usize {
        self.entries.iter().filter(|item| item.kind == kind).count()
    }

    /// Bytes of all entries.
    pub fn bytes(&self) -> u64 {
        self.entries.iter().fold(0, |sum, item| sum.saturating_add(item.bytes))
    }
}

impl Item {
    /// What an entry says of itself.
    ///
    /// # Errors
    /// When its metadata cannot be read, or its key is not that of the fields that it claims to hash.
    pub(super) fn of(head: &Head, bytes: u64, sha256: Key) -> Result<Self, String> {
        let hashed = |fields: &KeyFields| {
            if fields.key() == head.key { Ok(()) } else { Err("its key is not that of its fields".to_owned()) }
        };
        let unread = |e: String| format!("its metadata cannot be read: {e}");
        match head.kind {
            Kind::Artifact => {
                let meta = read_artifact(&head.meta).map_err(unread)?;
                hashed(&meta.fields)?;
                Ok(Self {
                    kind: head.kind,
                    key: head.key,
                    arch: meta.fields.get("arch").unwrap_or_default().to_owned(),
                    device: None,
                    spec: meta.spec.to_string(),
                    layout: meta.class.to_string(),
                    tokens: None,
                    variant: meta.config.to_string(),
                    bytes,
                    sha256,
                })
            }
            Kind::Choice => {
                let meta = read_choice(&head.meta).map_err(unread)?;
                hashed(&meta.fields)?;
                Ok(Self {
                    kind: head.kind,
                    key: head.key,
                    device: Some(meta.record.device.clone()).filter(|name| !name.is_empty()),
                    spec: meta.spec.to_string(),
                    layout: meta.class.to_string(),
                    tokens: Some(meta.bucket.tokens()),
                    variant: meta.record.chosen().map(|c| c.config.to_string()).unwrap_or_default(),
                    arch: meta.arch,
                    bytes,
                    sha256,
                })
            }
        }
    }
}

/// SHA-256 of the templates of this program.
pub fn own_templates() -> Key {
    // 64 hexadecimal digits, made by this program.
    families().templates().parse().unwrap_or(Key::from_bytes([0; 32]))
}
