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
//! do, and two branches merge. All processes that read one file launch the same variants without talking to each other.
//! Here is the text alone; the engine reads the file.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;

use crate::error::{Error, ErrorKind, Result, clip};
use crate::service::bucket::Bucket;
use crate::service::family::{Abilities, Families, Line};

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
pub struct Section {
    /// What kernels are compiled for.
    pub arch: String,
    /// Identity of the device that they were measured on.
    pub device: Option<String>,
}

impl Section {
    /// A section; what would break its line is left out of the device's name.
    pub fn new(arch: &str, device: Option<&str>) -> Self {
        Self { arch: arch.to_owned(), device: device.map(one_line) }
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

fn one_line(device: &str) -> String {
    device.split(char::is_whitespace).filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
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
type Sought = (String, String, Bucket);

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
    sections: BTreeMap<Section, BTreeMap<Sought, Locked>>,
}

impl Lock {
    /// No choices, for templates of this digest.
    pub fn new(templates: &str) -> Self {
        Self { templates: (templates.to_owned(), 0), sections: BTreeMap::new() }
    }

    /// Reads the text of a file that errors call `name`.
    ///
    /// # Errors
    /// [`ErrorKind::LockFile`] with `name:line` as its subject.
    pub fn parse(name: &str, text: &str, families: &dyn Families) -> Result<Self> {
        Parser { lock: Self::new(""), families, version: false, templates: false, section: None }.read(text).map_err(
            |(line, what)| {
                let error = Error::new(ErrorKind::LockFile, what).subject_is(format!("{name}:{line}"));
                error.hint("correct the line, or remove the file and write it again")
            },
        )
    }

    /// Whether its choices were made with templates of this digest.
    pub fn is_of(&self, templates: &str) -> bool {
        self.templates.0 == templates
    }

    /// The choice for a device, else for its architecture.
    pub fn find(
        &self,
        arch: &str,
        device: &str,
        spec: &str,
        class: &str,
        bucket: Bucket,
    ) -> Option<(&Section, &Locked)> {
        let sought = (spec.to_owned(), class.to_owned(), bucket);
        [Section::new(arch, Some(device)), Section::new(arch, None)]
            .iter()
            .filter_map(|section| self.sections.get_key_value(section))
            .find_map(|(section, lines)| Some((section, lines.get(&sought)?)))
    }

    /// The choices for all devices of an architecture: what is compiled where the device is not there.
    pub fn of_arch(&self, arch: &str, spec: &str, class: &str, bucket: Bucket) -> Vec<&Locked> {
        let sought = (spec.to_owned(), class.to_owned(), bucket);
        self.sections
            .iter()
            .filter(|(section, _)| section.arch == arch)
            .filter_map(|(_, lines)| lines.get(&sought))
            .collect()
    }

    /// Adds a choice, or replaces the one for the same call.
    pub fn set(&mut self, section: Section, locked: Locked) {
        let sought = (locked.spec.clone(), locked.class.clone(), locked.bucket);
        self.sections.entry(section).or_default().insert(sought, locked);
    }

    /// Its sections, with the number of choices in each.
    pub fn sections(&self) -> impl Iterator<Item = (&Section, usize)> {
        self.sections.iter().map(|(section, lines)| (section, lines.len()))
    }

    /// Its choices, with where they hold.
    pub fn choices(&self) -> impl Iterator<Item = (&Section, &Locked)> {
        self.sections.iter().flat_map(|(section, lines)| lines.values().map(move |locked| (section, locked)))
    }

    /// What no longer holds on a device, or, without its identity, on an architecture.
    pub fn problems(&self, arch: &str, device: Option<&str>, can: Abilities, families: &dyn Families) -> Vec<Problem> {
        let mut all = Vec::new();
        if !self.is_of(families.templates()) {
            let (made, line) = &self.templates;
            let what = format!(
                "made with templates {}, this program has {}: the kernels have changed since",
                &made[..12], // hexadecimal digits, checked when it was read
                &families.templates()[..12]
            );
            all.push(Problem { line: *line, what });
        }
        let concerned = |section: &Section| {
            section.arch == arch
                && (section.device.is_none() || device.is_none() || section.device == device.map(one_line))
        };
        let mut found = false;
        for lines in self.sections.iter().filter(|(section, _)| concerned(section)).map(|(_, lines)| lines) {
            found |= !lines.is_empty();
            for locked in lines.values() {
                if let Err(e) = families.check(&locked.parts(), can) {
                    let what = format!("not legal here: {}: {}", e.subject().unwrap_or_default(), e.message());
                    all.push(Problem { line: locked.line, what });
                }
            }
        }
        if !found {
            let there: Vec<_> = self.sections.keys().map(|p| format!("[{p}]")).collect();
            let there = if there.is_empty() { "none".to_owned() } else { there.join(", ") };
            let what = format!("no choices for {}; there are {there}", Section::new(arch, device));
            all.push(Problem { line: 0, what });
        }
        all.sort_by_key(|p| p.line);
        all
    }
}

impl fmt::Display for Lock {
    /// The text of its file.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{HEAD}version = {VERSION}\ntemplates = {}\n", self.templates.0)?;
        for (section, lines) in self.sections.iter().filter(|(_, lines)| !lines.is_empty()) {
            writeln!(f, "\n[{section}]")?;
            for ((spec, class, bucket), locked) in lines {
                writeln!(f, "{spec} | {class} | {} = {}", bucket.tokens(), locked.config)?;
            }
        }
        Ok(())
    }
}

struct Parser<'a> {
    lock: Lock,
    families: &'a dyn Families,
    version: bool,
    templates: bool,
    section: Option<Section>,
}

impl Parser<'_> {
    /// The lock, or the line that is wrong and why.
    fn read(mut self, text: &str) -> Result<Lock, (usize, String)> {
        let mut last = 1;
        for (i, line) in text.lines().enumerate() {
            last = i + 1;
            let line = line.trim();
            if !line.is_empty() && !line.starts_with('#') {
                self.line(line, last).map_err(|what| (last, what))?;
            }
        }
        if self.version && self.templates { Ok(self.lock) } else { Err((last, "ends before its header".into())) }
    }

    fn line(&mut self, line: &str, number: usize) -> Result<(), String> {
        if !self.version {
            return match line.strip_prefix("version = ") {
                Some(VERSION) => {
                    self.version = true;
                    Ok(())
                }
                Some(other) => Err(format!("version {}, this program reads {VERSION}", clip(other))),
                None => Err(format!("not a lock file: 'version = {VERSION}' must come first")),
            };
        }
        if !self.templates {
            let digest = line.strip_prefix("templates = ").ok_or("'templates = …' must come second")?;
            if digest.len() != 64 || !digest.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
                return Err("the digest of the templates has 64 hexadecimal digits".into());
            }
            self.lock.templates = (digest.to_owned(), number);
            self.templates = true;
            return Ok(());
        }
        if let Some(name) = line.strip_prefix('[') {
            let name = name.strip_suffix(']').ok_or("a section's name ends with ']'")?;
            let section = match name.split_once(": ") {
                Some((arch, device)) => Section::new(arch, Some(device)),
                None => Section::new(name, None),
            };
            if section.to_string() != name || section.arch.is_empty() || section.arch.contains([':', ' ']) {
                return Err("a section is named like [sm_90], or [sm_90: identity of a device]".into());
            }
            if self.lock.sections.insert(section.clone(), BTreeMap::new()).is_some() {
                return Err(format!("[{section}] begins a second time"));
            }
            self.section = Some(section);
            return Ok(());
        }
        let (sought, locked) = self.choice(line, number)?;
        let section = self.section.as_ref().ok_or("a choice must stand in a section such as [sm_90]")?;
        let lines = self.lock.sections.entry(section.clone()).or_default();
        match lines.entry(sought) {
            Entry::Vacant(free) => {
                free.insert(locked);
                Ok(())
            }
            Entry::Occupied(taken) => Err(format!("line {} has made this choice already", taken.get().line)),
        }
    }

    /// A choice, and what it is looked up by: one value has one text, so that needs not be written anew.
    fn choice(&mut self, line: &str, number: usize) -> Result<(Sought, Locked), String> {
        let form = || format!("'{}' is not of the form 'spec | layout | tokens = variant'", clip(line));
        let (sought, config) = line.rsplit_once(" = ").ok_or_else(form)?;
        let mut parts = sought.split(" | ");
        let (Some(spec), Some(class), Some(tokens), None) = (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(form());
        };
        let why = |e: Error| format!("{}: {}", e.subject().unwrap_or_default(), e.message());
        let bucket = tokens.parse().map_err(why)?;
        self.families.read(&Line { spec, class, config }).map_err(why)?;
        let [spec, class, config] = [spec, class, config].map(str::to_owned);
        let locked = Locked { spec: spec.clone(), class: class.clone(), bucket, config, line: number };
        Ok(((spec, class, bucket), locked))
    }
}
