//! When to compile and tune, and what long work reports.

use std::time::Duration;

use crate::error::{Error, Result};
use crate::service::bucket::Bucket;
use crate::service::stated::Stated;

/// When to compile and tune.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Tuning {
    /// Answer at once with what is cached, or with a kernel for all shapes that the crate ships; compile and tune on the
    /// side, and swap the winner in. Where nothing is shipped (the host device) the first call waits for one compile.
    #[default]
    Background,
    /// The first call of a bucket waits for its tuning, which measures for at most `budget`.
    Blocking {
        /// Time to measure; compiling is not counted.
        budget: Duration,
    },
    /// Use what is cached or shipped, or where neither is there a shipped choice for this GPU's model or the default
    /// variant; never tune, and do nothing on the side.
    Never,
    /// Anything that is not cached is an error: proves that a prewarm was complete.
    Frozen,
}

impl Tuning {
    /// `Blocking` with the usual budget.
    pub const BLOCKING: Self = Self::Blocking { budget: BUDGET };
}

/// Measuring time of one tuning run, unless the caller says otherwise.
pub(super) const BUDGET: Duration = Duration::from_secs(10);

impl std::str::FromStr for Tuning {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        match s {
            "background" => Ok(Self::Background),
            "blocking" => Ok(Self::BLOCKING),
            "never" => Ok(Self::Never),
            "frozen" => Ok(Self::Frozen),
            _ => Err(Error::argument("tuning", format!("unknown policy '{s}'"))
                .hint("use background, blocking, never or frozen")),
        }
    }
}

/// What long work reports.
#[derive(Debug)]
#[non_exhaustive]
pub enum Progress<'a> {
    /// Candidates of a tuning run that are compiled.
    Compiled {
        /// What is tuned.
        spec: &'a Stated,
        /// For how many tokens.
        bucket: Bucket,
        /// Candidates compiled.
        done: usize,
        /// Candidates in all.
        total: usize,
    },
    /// Rounds of measuring that are done.
    Measured {
        /// What is tuned.
        spec: &'a Stated,
        /// For how many tokens.
        bucket: Bucket,
        /// Rounds done.
        rounds: usize,
    },
}

pub(super) type OnProgress = Box<dyn Fn(&Progress<'_>) + Send + Sync>;
