//! What a choice leaves behind: which config was chosen for a key, and why.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::key::Key;
use crate::service::family::{Config, Provenance};

/// One candidate of a tuning run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// Its tunables.
    #[serde(rename = "variant")]
    pub config: Config,
    /// The compiled kernel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub artifact: Option<Key>,
    /// Device time of one launch in nanoseconds, one sample a round.
    #[serde(default)]
    pub samples_ns: Vec<f64>,
    /// Whether its output equals the reference kernel's, bit for bit. `None`: it was not run.
    #[serde(default)]
    pub bit_equal: Option<bool>,
    /// Why it was not measured to the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dropped: Option<String>,
}

impl Candidate {
    /// A candidate of which nothing is known yet.
    pub fn new(config: Config) -> Self {
        Self { config, artifact: None, samples_ns: Vec::new(), bit_equal: None, dropped: None }
    }

    /// The median of its samples, in nanoseconds.
    pub fn median_ns(&self) -> Option<f64> {
        crate::service::tune::median(&self.samples_ns)
    }
}

/// What the choices that come with the crate, measured on a GPU that is named here, had to do with a choice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Prior {
    /// It is theirs: that GPU is of this device's model, and nothing was measured here.
    Chose(String),
    /// They said which candidates are worth measuring.
    Ordered(String),
}

#[allow(clippy::trivially_copy_pass_by_ref)] // as serde calls it
fn is_zero(n: &u32) -> bool {
    *n == 0
}

/// A choice and its reasons. Kept under a choice key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Tokens that were measured.
    pub tokens: u64,
    /// Index of the chosen candidate.
    pub winner: usize,
    /// Whether candidates were measured to the end; `false` for a default or a prior taken unmeasured, or a run cut short.
    pub tuned: bool,
    /// What shipped choices had to do with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prior: Option<Prior>,
    /// The tolerance within which candidates agree, in words: within a process the first choice stays, so that results do. Absent
    /// where all give the same bits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tolerance: Option<String>,
    /// The candidates, the default first; where a prior chose, its config alone.
    pub candidates: Vec<Candidate>,
    /// Indices of the candidates that were inside the noise of the best.
    #[serde(default)]
    pub near_ties: Vec<usize>,
    /// Device time in nanoseconds of a device-to-device copy of the same bytes, in the same run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copy_ns: Option<f64>,
    /// Bytes that one launch reads from and writes to q and k.
    #[serde(default)]
    pub bytes: u64,
    /// Name of the device.
    pub device: String,
    /// Driver version, for the record only.
    #[serde(default)]
    pub driver: String,
    /// Memory clock of the device in kHz, for the record only; 0 when unknown.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub memory_clock_khz: u32,
    /// The compiler of the winner.
    #[serde(default)]
    pub compiler: String,
    /// Wall-clock milliseconds that tuning took, compiling included.
    #[serde(default)]
    pub took_ms: f64,
    /// Seconds since 1970 when it was finished.
    #[serde(default)]
    pub created: u64,
}

impl Record {
    /// A choice of the first candidate, of which nothing is measured yet, made now.
    pub fn new(tokens: u64, candidates: Vec<Candidate>) -> Self {
        Self {
            tokens,
            winner: 0,
            tuned: false,
            prior: None,
            tolerance: None,
            candidates,
            near_ties: Vec::new(),
            copy_ns: None,
            bytes: 0,
            device: String::new(),
            driver: String::new(),
            memory_clock_khz: 0,
            compiler: String::new(),
            took_ms: 0.0,
            created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()),
        }
    }

    /// Whether nothing is left to find out; without `priors`, all candidates must have been measured here.
    pub fn is_settled(&self, priors: bool) -> bool {
        match self.prior {
            None => self.tuned,
            Some(Prior::Chose(_)) => priors,
            Some(Prior::Ordered(_)) => priors && self.tuned,
        }
    }

    /// Whether it is a prior's: nothing was measured here.
    pub fn is_prior(&self) -> bool {
        !self.tuned && matches!(self.prior, Some(Prior::Chose(_)))
    }

    /// How it was made, in a word: `tuned`, `prior` or `default`.
    pub fn how(&self) -> &'static str {
        match (self.tuned, self.is_prior()) {
            (true, _) => "tuned",
            (_, true) => "prior",
            _ => "default",
        }
    }

    /// Why a kernel of its choice serves.
    pub fn provenance(&self) -> Provenance {
        match (self.tuned, self.is_prior()) {
            (true, _) => Provenance::Tuned,
            (_, true) => Provenance::Prior,
            _ => Provenance::Default,
        }
    }

    /// The chosen candidate; `None` for a record that names one it does not have.
    pub fn chosen(&self) -> Option<&Candidate> {
        self.candidates.get(self.winner)
    }
}
