//! Reads the text of a lock file, line by line.

use std::collections::BTreeSet;
use std::collections::btree_map::Entry;

use super::content::{At, Content, Locked, Section, Sought, VERSION, sought};
use crate::error::{Error, clip};
use crate::service::device::Identity;
use crate::service::family::{Families, Line};

/// The lock that a text is, or the line that is wrong and why.
pub(super) fn read(text: &str, families: &dyn Families) -> Result<Content, (usize, String)> {
    let mut parser = Parser {
        lock: Content::default(),
        families,
        version: false,
        templates: false,
        section: None,
        sections: BTreeSet::new(),
        again: false,
        notes: Vec::new(),
    };
    let mut last = 1;
    for (i, line) in text.lines().enumerate() {
        last = i + 1;
        let trimmed = line.trim();
        if trimmed.is_empty() || trimmed.starts_with('#') {
            parser.notes.push(line.trim_end().to_owned());
        } else {
            parser.line(trimmed, last).map_err(|what| (last, what))?;
        }
    }
    if !(parser.version && parser.templates) {
        return Err((last, "ends before its header".into()));
    }
    parser.note(At::End);
    Ok(parser.lock)
}

/// Where a text is read.
struct Parser<'a> {
    lock: Content,
    families: &'a dyn Families,
    version: bool,
    templates: bool,
    section: Option<Section>,
    /// The texts of the sections so far.
    sections: BTreeSet<String>,
    /// The section differs from one before in the memory's clock alone.
    again: bool,
    /// Comments and empty lines since the last line.
    notes: Vec<String>,
}

impl Parser<'_> {
    /// Keeps the comments that stand in front of a line.
    fn note(&mut self, line: At) {
        let notes = std::mem::take(&mut self.notes);
        self.lock.notes.entry(line).or_default().extend(notes);
    }

    fn line(&mut self, line: &str, number: usize) -> Result<(), String> {
        if !self.version {
            return match line.strip_prefix("version = ") {
                Some(VERSION) => {
                    self.version = true;
                    self.note(At::Version);
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
            self.note(At::Templates);
            return Ok(());
        }
        if let Some(name) = line.strip_prefix('[') {
            return self.section(name.strip_suffix(']').ok_or("a section's name ends with ']'")?);
        }
        let (sought, locked) = self.choice(line, number)?;
        let section = self.section.clone().ok_or("a choice must stand in a section such as [sm_90]")?;
        match self.lock.sections.entry(section.clone()).or_default().entry(sought.clone()) {
            Entry::Occupied(taken) if !self.again => {
                return Err(format!("line {} has made this choice already", taken.get().line));
            }
            Entry::Occupied(_) => {}
            Entry::Vacant(free) => drop(free.insert(locked)),
        }
        if !self.notes.is_empty() {
            self.note(At::Choice(section, sought));
        }
        Ok(())
    }

    fn section(&mut self, name: &str) -> Result<(), String> {
        let (arch, device) = match name.split_once(": ") {
            Some((arch, device)) => (arch, Some(Identity::read(device))),
            None => (name, None),
        };
        let (Some(device), false) =
            (device.map_or(Some(None), |read| read.map(Some)), arch.is_empty() || arch.contains([':', ' ']))
        else {
            return Err("a section is named like [sm_90], or [sm_90: identity of a device]".into());
        };
        let section = Section { arch: arch.to_owned(), device: device.map(|(identity, _)| identity) };
        if !self.sections.insert(name.to_owned()) {
            return Err(format!("[{section}] begins a second time"));
        }
        self.again = self.lock.sections.contains_key(&section);
        self.lock.sections.entry(section.clone()).or_default();
        self.note(At::Section(section.clone()));
        self.section = Some(section);
        Ok(())
    }

    /// A choice, and what it is looked up by: one value has one text, so that needs not be written anew.
    fn choice(&self, line: &str, number: usize) -> Result<(Sought, Locked), String> {
        let form = || format!("'{}' is not of the form 'spec | layout | tokens = variant'", clip(line));
        let (call, config) = line.rsplit_once(" = ").ok_or_else(form)?;
        let mut parts = call.split(" | ");
        let (Some(spec), Some(class), Some(tokens), None) = (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(form());
        };
        let why = |e: Error| format!("{}: {}", e.subject().unwrap_or_default(), e.message());
        let bucket = tokens.parse().map_err(why)?;
        self.families.read(&Line { spec, class, config }).map_err(why)?;
        let [spec, class, config] = [spec, class, config].map(str::to_owned);
        Ok((sought(&spec, &class, bucket), Locked { spec, class, bucket, config, line: number }))
    }
}
