//! The keys that entries are kept under: everything that is hashed, stated once.
//!
//! | key | field | what it is |
//! |---|---|---|
//! | artifact | `format` | version of the entry format |
//! | | `source` | SHA-256 of the rendered source: prelude and all templates |
//! | | `options` | compiler options, in order |
//! | | `compiler` | NVRTC's version with its build, as its output tells it, or what the host's compiler says to
//! | | | `--version` |
//! | | `arch` | `sm_90`, …, or the host's architecture |
//! | | `entry` | name of the entry point |
//! | choice | `format`, `family`, `templates` | entry format; kernel family; SHA-256 of the templates |
//! | | `spec` | the whole spec, as JSON |
//! | | `bucket` | the size, rounded up to a power of two |
//! | | `class` | layout legality class |
//! | | `device` | identity of the device (below), or only its `arch` for a choice made without one |
//! | | `space` | all candidates, the default first |
//! | | `policy` | version of the measurement policy |
//!
//! A device's identity ([`Identity`](super::device::Identity)) is its name with the MIG slice, compute capability, multiprocessors,
//! L2 bytes and memory bus. The memory's clock and the driver's version are *not* hashed: they are recorded, and a binary that
//! the driver refuses is a miss. Nothing that differs between two nodes of one fleet is hashed: no path, host name, time or
//! size of a file. Not covered: clocks or power limits set by the operator, and neighbours on the same GPU.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::service::digest::{hex, text_digest};
use crate::service::family::{Config, Problem, Source};

/// Version of what an entry contains; part of every key and of the cache's path.
pub const FORMAT_VERSION: u32 = 1;
/// Version of how candidates are measured: it moves where samples of two versions cannot be compared, not where the same samples
/// are judged with more care.
pub const POLICY_VERSION: u32 = 1;

/// A SHA-256 key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key([u8; 32]);

impl Key {
    /// A key from its bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({self})")
    }
}

impl FromStr for Key {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        let bad = || Error::argument("key", format!("'{s}' is not a key of 64 hexadecimal digits"));
        if s.len() != 64 || !s.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(bad());
        }
        let mut bytes = [0; 32];
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&s[2 * i..2 * i + 2], 16).map_err(|_| bad())?;
        }
        Ok(Self(bytes))
    }
}

impl Serialize for Key {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// The named fields that a key hashes, kept with the entry so that a miss can say which one differed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KeyFields(pub Vec<(String, String)>);

impl KeyFields {
    fn of<const N: usize>(kind: &str, fields: [(&str, String); N]) -> Self {
        let mut all = vec![("kind".to_owned(), kind.to_owned())];
        all.extend(fields.into_iter().map(|(name, value)| (name.to_owned(), value)));
        Self(all)
    }

    /// The fields of a compiled kernel.
    pub fn artifact(source: &Source, options: &[String], compiler: &str, arch: &str) -> Self {
        Self::of(
            "artifact",
            [
                ("format", FORMAT_VERSION.to_string()),
                ("source", text_digest(&source.text)),
                ("options", options.join("\n")),
                ("compiler", compiler.to_owned()),
                ("arch", arch.to_owned()),
                ("entry", source.entry.clone()),
            ],
        )
    }

    /// The fields of a choice: `device` is a device's identity, or an architecture.
    pub fn choice(problem: &dyn Problem, space: &[Config], device: &str) -> Self {
        Self::of(
            "choice",
            [
                ("format", FORMAT_VERSION.to_string()),
                ("family", problem.family().to_owned()),
                ("templates", problem.templates().to_owned()),
                ("spec", problem.spec().compact().to_owned()),
                ("bucket", problem.bucket().tokens().to_string()),
                ("class", problem.class().to_string()),
                ("device", device.to_owned()),
                ("space", space.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")),
                ("policy", POLICY_VERSION.to_string()),
            ],
        )
    }

    /// The value of a field.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// SHA-256 over all fields, names and values, each prefixed with its length.
    pub fn key(&self) -> Key {
        let mut hasher = Sha256::new();
        for text in self.0.iter().flat_map(|(name, value)| [name, value]) {
            hasher.update((text.len() as u64).to_le_bytes());
            hasher.update(text);
        }
        Key(hasher.finalize().into())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    #[test]
    fn every_field_changes_the_key() {
        let source = Source { text: "text".into(), entry: "entry".into(), options: Vec::new() };
        let base = KeyFields::artifact(&source, &["-a".into(), "-b".into()], "nvrtc 13.0", "sm_90");
        every_field_counts(&base);
    }

    pub fn every_field_counts(base: &KeyFields) {
        let mut seen = std::collections::HashSet::from([base.key()]);
        for i in 0..base.0.len() {
            let mut other = base.clone();
            other.0[i].1.push('x');
            assert!(seen.insert(other.key()), "{} is not hashed", base.0[i].0);
        }
    }

    #[test]
    fn lengths_keep_neighbouring_fields_apart() {
        let fields = |a: &str, b: &str| KeyFields(vec![(a.into(), b.into())]).key();
        assert_ne!(fields("ab", "c"), fields("a", "bc"));
    }

    #[test]
    fn a_key_reads_back_and_nothing_else_does() {
        let key = KeyFields(vec![]).key();
        assert_eq!(key.to_string().parse::<Key>().expect("reads back"), key);
        for wrong in ["", "zz", &"é".repeat(32), &"0".repeat(63)] {
            assert!(wrong.parse::<Key>().is_err());
        }
    }
}
