//! The cache as `inspect` sees it: entries, and what their metadata says.

use std::path::{Path, PathBuf};

use ropejit::engine::{ArtifactMeta, ChoiceMeta};
use ropejit::families::Stated;
use ropejit::families::{read_artifact, read_choice};
use ropejit::jit::Candidate;
use ropejit::store::layers::{Layers, Places};
use ropejit::store::{Head, Kind, Listed, Store};
use ropejit::{Error, ErrorKind, Result};
use serde::Serialize;

/// The cache folder that the environment names, else the user's; the user's own in it where it is for several.
pub fn root() -> Result<PathBuf> {
    Places::from_environment()?.user_folder().ok_or_else(|| {
        Error::new(ErrorKind::Io, "no cache folder: neither ROPEJIT_CACHE_DIR nor HOME is set")
            .hint("set ROPEJIT_CACHE_DIR")
    })
}

/// The cache folder, if it is there, and those that are only read.
pub struct Cache {
    pub root: PathBuf,
    pub store: Layers,
}

impl Cache {
    pub fn open(root: &Path) -> Result<Self> {
        Ok(Self { root: root.to_owned(), store: Layers::existing(&Places::from_environment()?)? })
    }

    /// The heads of all entries, choices first.
    pub fn heads(&self) -> Result<Vec<Listed<Head>>> {
        Ok([self.store.heads(Kind::Choice)?, self.store.heads(Kind::Artifact)?].into_iter().flatten().collect())
    }

    /// The sound choices.
    pub fn choices(&self) -> Result<Vec<(Listed<Head>, ChoiceMeta)>> {
        let sound = |listed: Listed<Head>| match listed.entry.as_ref().map(check) {
            Ok(Ok(Meta::Choice(meta))) => Some((listed, *meta)),
            _ => None,
        };
        Ok(self.store.heads(Kind::Choice)?.into_iter().filter_map(sound).collect())
    }

    /// The sound artifacts.
    pub fn artifacts(&self) -> Result<Vec<(Listed<Head>, ArtifactMeta)>> {
        let sound = |listed: Listed<Head>| match listed.entry.as_ref().map(check) {
            Ok(Ok(Meta::Artifact(meta))) => Some((listed, *meta)),
            _ => None,
        };
        Ok(self.store.heads(Kind::Artifact)?.into_iter().filter_map(sound).collect())
    }
}

/// What an entry's metadata says.
pub enum Meta {
    Artifact(Box<ArtifactMeta>),
    Choice(Box<ChoiceMeta>),
}

fn meta(entry: &Head) -> std::result::Result<Meta, String> {
    let failed = |e: String| format!("its metadata cannot be read: {e}");
    match entry.kind {
        Kind::Artifact => read_artifact(&entry.meta).map(|m| Meta::Artifact(Box::new(m))).map_err(failed),
        Kind::Choice => read_choice(&entry.meta).map(|m| Meta::Choice(Box::new(m))).map_err(failed),
    }
}

/// Beyond the digest: the key must be that of the fields it claims to hash.
pub fn check(entry: &Head) -> std::result::Result<Meta, String> {
    let meta = meta(entry)?;
    let fields = match &meta {
        Meta::Artifact(m) => &m.fields,
        Meta::Choice(m) => &m.fields,
    };
    if fields.key() == entry.key { Ok(meta) } else { Err("its key is not that of its fields".into()) }
}

/// An entry in a list.
#[derive(Serialize)]
pub struct Row {
    pub key: String,
    pub kind: &'static str,
    pub device: Option<String>,
    pub arch: Option<String>,
    #[serde(serialize_with = "as_text")]
    pub spec: Option<Stated>,
    pub tokens: Option<u64>,
    pub layout: Option<String>,
    pub variant: Option<String>,
    pub tuned: Option<bool>,
    /// How it was chosen: tuned, prior or default.
    pub choice: Option<&'static str>,
    /// Time of a copy of the same bytes over the variant's.
    pub of_copy: Option<f64>,
    /// Seconds since 1970.
    pub created: Option<u64>,
    pub bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    pub path: PathBuf,
}

#[allow(clippy::ref_option)] // as serde calls it
fn as_text<S: serde::Serializer>(spec: &Option<Stated>, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    spec.as_ref().map(ToString::to_string).serialize(serializer)
}

pub fn row(listed: &Listed<Head>) -> Row {
    let mut row = Row {
        key: listed.path.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
        kind: listed.kind.name(),
        device: None,
        arch: None,
        spec: None,
        tokens: None,
        layout: None,
        variant: None,
        tuned: None,
        choice: None,
        of_copy: None,
        created: None,
        bytes: listed.bytes,
        problem: None,
        path: listed.path.clone(),
    };
    match listed.entry.as_ref().map_err(Clone::clone).and_then(meta) {
        Ok(Meta::Artifact(m)) => {
            row.arch = m.fields.get("arch").map(String::from);
            row.spec = Some(m.spec);
            row.layout = Some(m.class.to_string());
            row.variant = Some(m.config.to_string());
        }
        Ok(Meta::Choice(m)) => {
            let chosen = m.record.chosen();
            row.variant = chosen.map(|c| c.config.to_string());
            row.of_copy = chosen.and_then(Candidate::median_ns).zip(m.record.copy_ns).map(|(ns, copy)| copy / ns);
            row.device = Some(m.record.device.clone());
            row.arch = Some(m.arch);
            row.spec = Some(m.spec);
            row.tokens = Some(m.bucket.tokens());
            row.layout = Some(m.class.to_string());
            row.tuned = Some(m.record.tuned);
            row.choice = Some(m.record.how());
            row.created = Some(m.record.created);
        }
        Err(problem) => row.problem = Some(problem),
    }
    row
}

/// Enough of a key to tell entries apart.
pub fn short(key: &str) -> &str {
    key.get(..12).unwrap_or(key)
}
