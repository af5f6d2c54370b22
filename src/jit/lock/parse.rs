//! Reads the text of a lock file, line by line.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use super::{Call, Line, Lock, Locked, Place, VERSION};
use crate::error::{Error, clip};
use crate::jit::Identity;
use crate::rope::RopeSpec;

/// Where a text is read.
pub(super) struct Parser {
    lock: Lock,
    version: bool,
    templates: bool,
    place: Option<Place>,
    /// The texts of the sections so far.
    sections: BTreeSet<String>,
    /// The section differs from one before in the memory's clock alone.
    again: bool,
    /// Comments and empty lines since the last line.
    notes: Vec<String>,
    /// The spec of the line before: lines are sorted, and most share it.
    last: Option<(String, RopeSpec)>,
}

impl Parser {
    /// The lock, or the line that is wrong and why.
    pub fn read(text: &str) -> Result<Lock, (usize, String)> {
        let mut parser = Self {
            lock: Lock { notes: BTreeMap::new(), ..Lock::default() },
            version: false,
            templates: false,
            place: None,
            sections: BTreeSet::new(),
            again: false,
            notes: Vec::new(),
            last: None,
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
        parser.note(Line::End);
        Ok(parser.lock)
    }

    /// Keeps the comments that stand in front of a line.
    fn note(&mut self, line: Line) {
        let notes = std::mem::take(&mut self.notes);
        self.lock.notes.entry(line).or_default().extend(notes);
    }

    fn line(&mut self, line: &str, number: usize) -> Result<(), String> {
        if !self.version {
            return match line.strip_prefix("version = ") {
                Some(VERSION) => {
                    self.version = true;
                    self.note(Line::Version);
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
            self.note(Line::Templates);
            return Ok(());
        }
        if let Some(name) = line.strip_prefix('[') {
            return self.section(name.strip_suffix(']').ok_or("a section's name ends with ']'")?);
        }
        let (call, locked) = self.choice(line, number)?;
        let place = self.place.clone().ok_or("a choice must stand in a section such as [sm_90]")?;
        match self.lock.places.entry(place.clone()).or_default().entry(call.clone()) {
            Entry::Occupied(taken) if !self.again => {
                return Err(format!("line {} has made this choice already", taken.get().line));
            }
            Entry::Occupied(_) => {}
            Entry::Vacant(free) => drop(free.insert(locked)),
        }
        if !self.notes.is_empty() {
            self.note(Line::Choice(place, call));
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
        let place = Place { arch: arch.to_owned(), device: device.map(|(identity, _)| identity) };
        if !self.sections.insert(name.to_owned()) {
            return Err(format!("[{place}] begins a second time"));
        }
        self.again = self.lock.places.contains_key(&place);
        self.lock.places.entry(place.clone()).or_default();
        self.note(Line::Section(place.clone()));
        self.place = Some(place);
        Ok(())
    }

    /// A choice, and what it is looked up by: one value has one text, so that needs not be written anew.
    fn choice(&mut self, line: &str, number: usize) -> Result<(Call, Locked), String> {
        let form = || format!("'{}' is not of the form 'spec | layout | tokens = variant'", clip(line));
        let (call, variant) = line.rsplit_once(" = ").ok_or_else(form)?;
        let mut parts = call.split(" | ");
        let (Some(name), Some(class), Some(tokens), None) = (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(form());
        };
        let why = |e: Error| format!("{}: {}", e.subject().unwrap_or_default(), e.message());
        let spec: RopeSpec = match &self.last {
            Some((last, spec)) if last == name => spec.clone(),
            _ => {
                let spec: RopeSpec = name.parse().map_err(why)?;
                self.last = Some((name.to_owned(), spec.clone()));
                spec
            }
        };
        let bucket = tokens.parse().map_err(why)?;
        let locked = Locked {
            spec,
            class: class.parse().map_err(why)?,
            bucket,
            variant: variant.parse().map_err(why)?,
            line: number,
        };
        Ok(((name.to_owned(), class.to_owned(), bucket), locked))
    }
}
