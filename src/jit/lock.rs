//! The tuning lock file: which variant serves each spec, layout class and bucket, as a small text to commit.
//!
//! ```text
//! # comments, and empty lines
//! version = 1
//! templates = <SHA-256 of the templates that the choices were made with>
//!
//! [sm_90]                                       choices for an architecture, not measured
//! [sm_90: NVIDIA H200; cc 9.0; …]               choices measured on a device, by its identity
//! bf16 d128 h32/8 half_split once table=f32/half pos=implicit | bshd/16B/t16B | 8192 = t128 v8 h1 wb/cs keep pdl
//! ```
//!
//! One choice is one line, whole in itself, and sections and lines are sorted: two versions of a file differ where choices
//! do, and two branches merge. Comments and empty lines stay in front of the line that they were written in front of. All
//! processes that read one file launch the same variants without talking to each other. Here is the text alone; the engine
//! reads the file.
//!
//! The first versions had the memory's clock in the device's identity. Their sections are read without it: two that differ
//! in nothing else are one, in which the first of two lines for the same call holds.

mod parse;

use std::collections::BTreeMap;
use std::fmt;

use super::identity::Identity;
use super::render::templates_digest;
use super::variant::{Abilities, Bucket, Class, Variant, check};
use crate::error::{Error, ErrorKind, Result};
use crate::rope::RopeSpec;
use parse::Parser;

/// Version of the file's format.
const VERSION: &str = "1";
/// A file that is longer is no lock file; a thousand choices are some 130 KB.
pub const MAX_BYTES: u64 = 8 << 20;
const HEAD: &str = "\
# ropejit lock file: the variant that serves each RoPE, layout and number of tokens. Commit it.
# Written by `ropejit prewarm --lock FILE`, tested by `ropejit prewarm --check FILE`, used with ROPEJIT_LOCK=FILE.
";

/// Where choices hold: on one kind of device, or, not measured, on all of an architecture.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// What kernels are compiled for.
    pub arch: String,
    /// The device that they were measured on.
    pub device: Option<Identity>,
}

impl Place {
    /// A place.
    pub fn new(arch: &str, device: Option<&Identity>) -> Self {
        Self { arch: arch.to_owned(), device: device.cloned() }
    }
}

impl fmt::Display for Place {
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
    /// What is computed.
    pub spec: RopeSpec,
    /// For which layouts.
    pub class: Class,
    /// For how many tokens.
    pub bucket: Bucket,
    /// The variant that serves.
    pub variant: Variant,
    /// The line that says so; 0 for one that was not read from a file.
    pub line: usize,
}

/// What a choice is looked up by, in the order of the file.
type Call = (String, String, Bucket);

fn call(spec: &RopeSpec, class: Class, bucket: Bucket) -> Call {
    (spec.to_string(), class.to_string(), bucket)
}

/// A line that comments and empty lines stand in front of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Line {
    Version,
    Templates,
    Section(Place),
    Choice(Place, Call),
    /// After the last line.
    End,
}

/// What no longer holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The line; 0 for the file as a whole.
    pub line: usize,
    /// What is wrong with it.
    pub what: String,
}

/// The choices of a lock file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lock {
    templates: (String, usize),
    places: BTreeMap<Place, BTreeMap<Call, Locked>>,
    /// Comments and empty lines, by the line that follows them.
    notes: BTreeMap<Line, Vec<String>>,
}

impl Default for Lock {
    /// No choices, for this program's templates.
    fn default() -> Self {
        let head = HEAD.lines().map(String::from).collect();
        Self {
            templates: (templates_digest().to_owned(), 0),
            places: BTreeMap::new(),
            notes: BTreeMap::from([(Line::Version, head)]),
        }
    }
}

impl Lock {
    /// Reads the text of a file that errors call `name`.
    ///
    /// # Errors
    /// [`ErrorKind::LockFile`] with `name:line` as its subject.
    pub fn parse(name: &str, text: &str) -> Result<Self> {
        Parser::read(text).map_err(|(line, what)| {
            let error = Error::new(ErrorKind::LockFile, what).subject_is(format!("{name}:{line}"));
            error.hint("correct the line, or name a file that `ropejit prewarm --lock FILE` has written")
        })
    }

    /// The same file without its choices, for this program's templates: people's comments stay.
    #[must_use]
    pub fn emptied(&self) -> Self {
        Self { notes: self.notes.clone(), ..Self::default() }
    }

    /// Whether its choices were made with this program's templates.
    pub fn is_of_these_templates(&self) -> bool {
        self.templates.0 == templates_digest()
    }

    /// The choice for a device, else for its architecture.
    pub fn find(
        &self,
        arch: &str,
        device: &Identity,
        spec: &RopeSpec,
        class: Class,
        bucket: Bucket,
    ) -> Option<(&Place, &Locked)> {
        let call = call(spec, class, bucket);
        [Place::new(arch, Some(device)), Place::new(arch, None)]
            .iter()
            .filter_map(|place| self.places.get_key_value(place))
            .find_map(|(place, lines)| Some((place, lines.get(&call)?)))
    }

    /// The choices for all devices of an architecture: what is compiled where the device is not there.
    pub fn of_arch(&self, arch: &str, spec: &RopeSpec, class: Class, bucket: Bucket) -> Vec<&Locked> {
        let call = call(spec, class, bucket);
        self.places.iter().filter(|(place, _)| place.arch == arch).filter_map(|(_, lines)| lines.get(&call)).collect()
    }

    /// Adds a choice, or replaces the one for the same call.
    pub fn set(&mut self, place: Place, locked: Locked) {
        let call = call(&locked.spec, locked.class, locked.bucket);
        self.places.entry(place).or_default().insert(call, locked);
    }

    /// Its sections, with the number of choices in each.
    pub fn places(&self) -> impl Iterator<Item = (&Place, usize)> {
        self.places.iter().map(|(place, lines)| (place, lines.len()))
    }

    /// Its choices, with where they hold.
    pub fn choices(&self) -> impl Iterator<Item = (&Place, &Locked)> {
        self.places.iter().flat_map(|(place, lines)| lines.values().map(move |locked| (place, locked)))
    }

    /// What no longer holds on a device, or, without its identity, on an architecture.
    pub fn problems(&self, arch: &str, device: Option<&Identity>, can: Abilities) -> Vec<Problem> {
        let mut all = Vec::new();
        if !self.is_of_these_templates() {
            let (made, line) = &self.templates;
            let what = format!(
                "made with templates {}, this program has {}: the kernels have changed since",
                &made[..12], // hexadecimal digits, checked when it was read
                &templates_digest()[..12]
            );
            all.push(Problem { line: *line, what });
        }
        let found = !self.is_silent(arch, device);
        for lines in self.places.iter().filter(|(place, _)| concerns(place, arch, device)).map(|(_, lines)| lines) {
            for locked in lines.values() {
                if let Err(e) = check(&locked.spec, locked.class, locked.variant, can) {
                    let what = format!("not legal here: {}: {}", e.subject().unwrap_or_default(), e.message());
                    all.push(Problem { line: locked.line, what });
                }
            }
        }
        if !found {
            all.push(Problem { line: 0, what: self.silence(arch, device) });
        }
        all.sort_by_key(|p| p.line);
        all
    }

    /// Whether it has a choice for the device or its architecture; without an identity, for any device of that.
    pub fn is_silent(&self, arch: &str, device: Option<&Identity>) -> bool {
        !self.places.iter().any(|(place, lines)| concerns(place, arch, device) && !lines.is_empty())
    }

    /// Says that it has no choices for a device, and for what it has some.
    pub fn silence(&self, arch: &str, device: Option<&Identity>) -> String {
        let there: Vec<_> = self.places.keys().map(|p| format!("[{p}]")).collect();
        let there = if there.is_empty() { "none".to_owned() } else { there.join(", ") };
        format!("no choices for {}; there are {there}", Place::new(arch, device))
    }
}

/// Whether choices for a place bear on a device, or, without its identity, on an architecture.
fn concerns(place: &Place, arch: &str, device: Option<&Identity>) -> bool {
    place.arch == arch && (place.device.is_none() || device.is_none() || place.device.as_ref() == device)
}

impl fmt::Display for Lock {
    /// The text of its file.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut lost = self.notes.clone();
        let mut notes = |f: &mut fmt::Formatter<'_>, line: Line, usual: &str| match lost.remove(&line) {
            Some(notes) => notes.iter().try_for_each(|note| writeln!(f, "{note}")),
            None => f.write_str(usual),
        };
        notes(f, Line::Version, "")?;
        writeln!(f, "version = {VERSION}")?;
        notes(f, Line::Templates, "")?;
        writeln!(f, "templates = {}", self.templates.0)?;
        for (place, lines) in self.places.iter().filter(|(_, lines)| !lines.is_empty()) {
            notes(f, Line::Section(place.clone()), "\n")?;
            writeln!(f, "[{place}]")?;
            for (call, locked) in lines {
                notes(f, Line::Choice(place.clone(), call.clone()), "")?;
                let (spec, class, bucket) = call;
                writeln!(f, "{spec} | {class} | {} = {}", bucket.tokens(), locked.variant)?;
            }
        }
        // The comments of lines that are no more.
        let end = lost.remove(&Line::End).unwrap_or_default();
        let lost = lost.values().flatten().filter(|note| !note.is_empty());
        lost.chain(&end).try_for_each(|note| writeln!(f, "{note}"))
    }
}

#[cfg(test)]
#[path = "lock_tests.rs"]
mod tests;
