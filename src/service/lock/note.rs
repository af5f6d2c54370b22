//! Comments and empty lines of a lock file: each stays in front of the line that it was written in front of.

use std::collections::BTreeMap;

use super::{Section, Sought};

/// A line that comments and empty lines stand in front of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum At {
    Version,
    Templates,
    Section(Section),
    Choice(Section, Sought),
    /// After the last line.
    End,
}

/// Comments and empty lines, by the line that follows them.
pub(super) type Notes = BTreeMap<At, Vec<String>>;
