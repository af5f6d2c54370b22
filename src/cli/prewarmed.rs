//! What a prewarm has done, and how it is told.

use std::collections::BTreeMap;

use ropejit::store::layers::Places;
use ropejit::{Engine, Error, ErrorKind, Origin, Result};
use serde::Serialize;

use super::output;
use super::table::Table;

/// One spec, layout and size.
#[derive(Serialize)]
pub struct Done {
    pub model: String,
    pub spec: String,
    pub arch: String,
    pub device: String,
    pub tokens: u64,
    pub layout: String,
    pub variant: String,
    pub tuned: bool,
    pub prior: bool,
    pub origin: Origin,
}

/// Choices that were written: without one, a frozen process does not even launch a kernel that is shipped.
const CHOICES: &str = "choices_written";

/// All of them.
#[derive(Serialize)]
pub struct Report {
    pub cache: Option<std::path::PathBuf>,
    pub prepared: Vec<Done>,
    pub stats: BTreeMap<String, u64>,
}

impl Report {
    /// Of these engines, which share a cache.
    pub fn new(engines: &[Engine]) -> Self {
        let cache = engines.first().and_then(|e| e.store().root().map(Into::into));
        Self { cache, prepared: Vec::new(), stats: BTreeMap::new() }
    }

    /// Adds what an engine has counted.
    pub fn add_stats(&mut self, engine: &Engine) {
        if let Ok(serde_json::Value::Object(stats)) = serde_json::to_value(engine.stats()) {
            for (name, n) in stats {
                *self.stats.entry(name).or_default() += n.as_u64().unwrap_or(0);
            }
        }
        *self.stats.entry(CHOICES.to_owned()).or_default() += engine.choices_written();
    }

    fn count(&self, name: &str) -> u64 {
        self.stats.get(name).copied().unwrap_or(0)
    }

    /// Fails if later processes will not find all of it.
    pub fn kept(&self) -> Result<()> {
        let lost = self.count("failed_writes");
        if lost == 0 {
            return Ok(());
        }
        let error = Error::new(ErrorKind::Io, format!("entries that could not be kept: {lost}"));
        // The folder that was refused has no cache.
        let folder = self.cache.clone().or_else(|| Places::from_environment().ok()?.user_folder());
        let error = folder.iter().fold(error, |e, folder| e.subject_is(folder.display().to_string()));
        Err(error.hint("set ROPEJIT_CACHE_DIR to a folder that you can write to"))
    }

    pub fn print(&self) -> Result<()> {
        let rows = self.prepared.iter().map(|d| {
            let tuned = output::how(d.tuned, d.prior);
            [&d.model, &d.arch, &d.layout, &d.variant, tuned, &output::word(&d.origin), &d.tokens.to_string()]
                .map(|s: &str| s.to_owned())
                .to_vec()
        });
        let header = ["model", "arch", "layout", "variant", "choice", "from", "tokens"];
        Table {
            header: &header,
            rows: rows.collect(),
            numbers: 1,
            gives: &["model", "variant"],
            drops: &["arch", "from"],
        }
        .print()?;
        let count = |name: &str| self.count(name);
        let verdict =
            if ["compiles", "tunings", "priors", "failed_writes", CHOICES].into_iter().all(|name| count(name) == 0) {
                "nothing to do"
            } else {
                "done"
            };
        let cache = self.cache.as_ref().map_or_else(|| "memory only".to_owned(), |c| c.display().to_string());
        let [compiles, tunings, choices] = ["compiles", "tunings", CHOICES].map(count);
        output::note(&format!(
            "{verdict}: compiles {compiles}, tunings {tunings}, choices written {choices} ({cache})"
        ));
        Ok(())
    }
}
