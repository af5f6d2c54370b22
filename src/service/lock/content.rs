//! What a lock file holds.

use std::collections::BTreeMap;
use std::fmt;

use crate::service::bucket::Bucket;
use crate::service::device::Identity;
use crate::service::family::Line;

/// Version of the file's format.
pub const VERSION: &str = "1";
/// Where choices hold: on one kind of device, or, not measured, on all of an architecture.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Section {
    /// What kernels are compiled for.
    pub arch: String,
    /// The device that they were measured on.
    pub device: Option<Identity>,
}

impl Section {
    /// A section.
    pub fn new(arch: &str, device: Option<&Identity>) -> Self {
        Self { arch: arch.to_owned(), device: device.cloned() }
    }
}

impl fmt::Display for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.device {
            None => f.write_str(&self.arch),
            Some(device) => write!(f, "{}: {device}", self.arch),
        }
    }
}

/// One choice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Locked {
    /// What is computed, as its family writes it.
    pub spec: String,
    /// For which layouts.
    pub class: String,
    /// For how many tokens.
    pub bucket: Bucket,
    /// The config that serves.
    pub config: String,
    /// The line that says so; 0 for one that was not read from a file.
    pub line: usize,
}

impl Locked {
    /// The texts that its family reads.
    pub fn parts(&self) -> Line<'_> {
        Line { spec: &self.spec, class: &self.class, config: &self.config }
    }
}

/// What a choice is looked up by, in the order of the file.
pub type Sought = (String, String, Bucket);

pub fn sought(spec: &str, class: &str, bucket: Bucket) -> Sought {
    (spec.to_owned(), class.to_owned(), bucket)
}

/// A line that comments and empty lines stand in front of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum At {
    Version,
    Templates,
    Section(Section),
    Choice(Section, Sought),
    /// After the last line.
    End,
}

/// Comments and empty lines, by the line that follows them.
pub type Notes = BTreeMap<At, Vec<String>>;

/// All of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Content {
    /// The digest of the templates, and the line that says so.
    pub templates: (String, usize),
    pub sections: BTreeMap<Section, BTreeMap<Sought, Locked>>,
    pub notes: Notes,
}
