//! The tuning lock file: which config serves each spec, layout class and bucket, as a small text to commit.
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
//! processes that read one file launch the same kernels without talking to each other. Here is the text alone; the engine
//! reads the file.
//!
//! The first versions had the memory's clock in the device's identity. Their sections are read without it: two that differ
//! in nothing else are one, in which the first of two lines for the same call holds.

mod content;
mod parse;

use std::collections::BTreeMap;
use std::fmt;

use crate::error::{Error, ErrorKind, Result};
use crate::service::bucket::Bucket;
use crate::service::device::Identity;
use crate::service::family::{Abilities, Families};
use content::{At, Content, VERSION, sought};
pub use content::{Locked, Section};

/// A file that is longer is no lock file; a thousand choices are some 130 KB.
pub const MAX_BYTES: u64 = 8 << 20;
const HEAD: &str = "\
# ropejit lock file: the variant that serves each spec, layout and number of tokens. Commit it.
# Written by `ropejit prewarm --lock FILE`, tested by `ropejit prewarm --check FILE`, used with ROPEJIT_LOCK=FILE.
";

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
pub struct Lock(Content);

impl Lock {
    /// No choices, for templates of this digest.
    pub fn new(templates: &str) -> Self {
        let (sections, notes) =
            (BTreeMap::new(), BTreeMap::from([(At::Version, HEAD.lines().map(String::from).collect())]));
        Self(Content { templates: (templates.to_owned(), 0), sections, notes })
    }

    /// Reads the text of a file that errors call `name`.
    ///
    /// # Errors
    /// [`ErrorKind::LockFile`] with `name:line` as its subject.
    pub fn parse(name: &str, text: &str, families: &dyn Families) -> Result<Self> {
        parse::read(text, families).map(Self).map_err(|(line, what)| {
            let error = Error::new(ErrorKind::LockFile, what).subject_is(format!("{name}:{line}"));
            error.hint("correct the line, or name a lock file that a prewarm has written")
        })
    }

    /// The same file for the templates of this program, without the choices that [`outdated`](Self::outdated) counts. Those
    /// of users' kernels and people's comments stay.
    #[must_use]
    pub fn renewed(&self, families: &dyn Families) -> Self {
        let mut content = self.0.clone();
        if self.outdated(families) > 0 {
            for lines in content.sections.values_mut() {
                lines.retain(|_, locked| !families.is_of_templates(&locked.parts()));
            }
            content.sections.retain(|_, lines| !lines.is_empty());
        }
        content.templates = (families.templates().to_owned(), 0);
        Self(content)
    }

    /// The number of choices that were made with other templates than this program's. A user's kernel is made of none.
    pub fn outdated(&self, families: &dyn Families) -> usize {
        if self.is_of(families.templates()) {
            return 0;
        }
        self.choices().filter(|(_, locked)| families.is_of_templates(&locked.parts())).count()
    }

    /// Whether it was written with templates of this digest.
    pub fn is_of(&self, templates: &str) -> bool {
        self.0.templates.0 == templates
    }

    /// The choice for a device, else for its architecture.
    pub fn find(
        &self,
        arch: &str,
        device: &Identity,
        spec: &str,
        class: &str,
        bucket: Bucket,
    ) -> Option<(&Section, &Locked)> {
        let sought = sought(spec, class, bucket);
        [Section::new(arch, Some(device)), Section::new(arch, None)]
            .iter()
            .filter_map(|section| self.0.sections.get_key_value(section))
            .find_map(|(section, lines)| Some((section, lines.get(&sought)?)))
    }

    /// The choices for all devices of an architecture: what is compiled where the device is not there.
    pub fn of_arch(&self, arch: &str, spec: &str, class: &str, bucket: Bucket) -> Vec<&Locked> {
        let sought = sought(spec, class, bucket);
        self.0
            .sections
            .iter()
            .filter(|(section, _)| section.arch == arch)
            .filter_map(|(_, lines)| lines.get(&sought))
            .collect()
    }

    /// Adds a choice, or replaces the one for the same call.
    pub fn set(&mut self, section: Section, locked: Locked) {
        let sought = sought(&locked.spec, &locked.class, locked.bucket);
        self.0.sections.entry(section).or_default().insert(sought, locked);
    }

    /// Its sections, with the number of choices in each.
    pub fn sections(&self) -> impl Iterator<Item = (&Section, usize)> {
        self.0.sections.iter().map(|(section, lines)| (section, lines.len()))
    }

    /// Its choices, with where they hold.
    pub fn choices(&self) -> impl Iterator<Item = (&Section, &Locked)> {
        self.0.sections.iter().flat_map(|(section, lines)| lines.values().map(move |locked| (section, locked)))
    }

    /// What no longer holds on a device, or, without its identity, on an architecture.
    pub fn problems(
        &self,
        arch: &str,
        device: Option<&Identity>,
        can: Abilities,
        families: &dyn Families,
    ) -> Vec<Problem> {
        let mut all = Vec::new();
        if self.outdated(families) > 0 {
            let (made, line) = &self.0.templates;
            let what = format!(
                "made with templates {}, this program has {}: the kernels have changed since",
                &made[..12], // hexadecimal digits, checked when it was read
                &families.templates()[..12]
            );
            all.push(Problem { line: *line, what });
        }
        let found = !self.is_silent(arch, device);
        for lines in
            self.0.sections.iter().filter(|(section, _)| concerns(section, arch, device)).map(|(_, lines)| lines)
        {
            for locked in lines.values() {
                if let Err(e) = families.check(&locked.parts(), can) {
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
        !self.0.sections.iter().any(|(section, lines)| concerns(section, arch, device) && !lines.is_empty())
    }

    /// Says that it has no choices for a device, and for what it has some.
    pub fn silence(&self, arch: &str, device: Option<&Identity>) -> String {
        let there: Vec<_> = self.0.sections.keys().map(|p| format!("[{p}]")).collect();
        let there = if there.is_empty() { "none".to_owned() } else { there.join(", ") };
        format!("no choices for {}; there are {there}", Section::new(arch, device))
    }
}

/// Whether choices for a section bear on a device, or, without its identity, on an architecture.
fn concerns(section: &Section, arch: &str, device: Option<&Identity>) -> bool {
    section.arch == arch && (section.device.is_none() || device.is_none() || section.device.as_ref() == device)
}

impl fmt::Display for Lock {
    /// The text of its file.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut lost = self.0.notes.clone();
        let mut notes = |f: &mut fmt::Formatter<'_>, line: At, usual: &str| match lost.remove(&line) {
            Some(notes) => notes.iter().try_for_each(|note| writeln!(f, "{note}")),
            None => f.write_str(usual),
        };
        notes(f, At::Version, "")?;
        writeln!(f, "version = {VERSION}")?;
        notes(f, At::Templates, "")?;
        writeln!(f, "templates = {}", self.0.templates.0)?;
        for (section, lines) in self.0.sections.iter().filter(|(_, lines)| !lines.is_empty()) {
            notes(f, At::Section(section.clone()), "\n")?;
            writeln!(f, "[{section}]")?;
            for (sought, locked) in lines {
                notes(f, At::Choice(section.clone(), sought.clone()), "")?;
                let (spec, class, bucket) = sought;
                writeln!(f, "{spec} | {class} | {} = {}", bucket.tokens(), locked.config)?;
            }
        }
        // The comments of lines that are no more.
        let end = lost.remove(&At::End).unwrap_or_default();
        let lost = lost.values().flatten().filter(|note| !note.is_empty());
        lost.chain(&end).try_for_each(|note| writeln!(f, "{note}"))
    }
}
