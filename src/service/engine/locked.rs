//! Problems that a lock file decides: the config that it names is obtained, whatever was measured here, and nothing is tuned.

use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, Result};
use crate::service::family::{Abilities, Config, Device, Families, Problem};
use crate::service::lock::{Lock, Locked, MAX_BYTES};
use crate::system::read_bytes;

/// Reads a lock file.
///
/// # Errors
/// [`ErrorKind::LockFile`], naming file and line, when it is none; [`ErrorKind::Io`] when it cannot be read.
pub fn read_lock(path: &Path, families: &dyn Families) -> Result<Lock> {
    let name = path.display().to_string();
    let failed = |e| {
        Error::io(path, "the lock file cannot be read", e).hint("name a lock file that a prewarm has written, or none")
    };
    let bad = |what: String| {
        Err(Error::new(ErrorKind::LockFile, what)
            .subject_is(&*name)
            .hint("name a lock file that a prewarm has written"))
    };
    let bytes = match read_bytes(path, MAX_BYTES) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::FileTooLarge => {
            return bad(format!("more than {MAX_BYTES} bytes are no lock file"));
        }
        Err(e) => return Err(failed(e)),
    };
    match String::from_utf8(bytes) {
        Ok(text) => Lock::parse(&name, &text, families),
        Err(e) => bad(format!("not a text: {}", e.utf8_error())),
    }
}

/// The lock file of an engine.
pub struct Held {
    path: PathBuf,
    lock: Lock,
}

/// A line of it that decides a problem.
pub struct Decided<'a> {
    held: &'a Held,
    locked: &'a Locked,
    /// The choice was measured on this device or its model.
    pub measured: bool,
}

impl Held {
    /// Reads it; warns where its choices are for other templates, which costs speed, not correctness.
    pub fn read(path: PathBuf, families: &dyn Families) -> Result<Self> {
        let lock = read_lock(&path, families)?;
        if lock.outdated(families) > 0 {
            tracing::warn!(
                "{}: made with other templates; its variants are used, but others may be faster now: write it again",
                path.display()
            );
        }
        Ok(Self { path, lock })
    }

    /// The line that decides a problem, if one does.
    pub fn decides(&self, device: &dyn Device, problem: &dyn Problem) -> Option<Decided<'_>> {
        let facts = device.facts();
        let (spec, class) = (problem.spec().text(), problem.class().text());
        let (section, locked) = self.lock.find(&facts.arch, &facts.identity(), spec, class, problem.bucket())?;
        Some(Decided { held: self, locked, measured: section.device.is_some() })
    }

    /// The lines for all devices of the architecture.
    pub fn all_of_arch(&self, device: &dyn Device, problem: &dyn Problem) -> Vec<Decided<'_>> {
        let (arch, spec, class) = (&device.facts().arch, problem.spec().text(), problem.class().text());
        let all = self.lock.of_arch(arch, spec, class, problem.bucket());
        all.into_iter().map(|locked| Decided { held: self, locked, measured: false }).collect()
    }

    /// Says so where it names nothing for a device: what is prepared is chosen there.
    pub fn silence(&self, device: &dyn Device) -> Option<String> {
        let facts = device.facts();
        let identity = device.runs().then(|| facts.identity());
        let is_silent = self.lock.is_silent(&facts.arch, identity.as_ref());
        let what = || self.lock.silence(&facts.arch, identity.as_ref());
        is_silent.then(|| format!("{} has {}; it decides nothing here", self.path.display(), what()))
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Decided<'_> {
    /// Where it stands.
    pub fn at(&self) -> String {
        format!("{}:{}", self.held.path.display(), self.locked.line)
    }

    /// The config that it names, if it is one.
    pub fn named(&self, problem: &dyn Problem) -> Option<Config> {
        problem.parse(&self.locked.config).ok()
    }

    /// The config that it names, if that is legal here.
    pub fn config(&self, device: &dyn Device, can: Abilities, problem: &dyn Problem) -> Result<Config> {
        let config = problem.parse(&self.locked.config)?;
        problem.check(&config, can).map_err(|e| {
            let what = format!("the variant is not legal on {}: {}", device.facts().name, e.message());
            Error::new(ErrorKind::LockFile, what)
                .subject_is(self.at())
                .hint("correct the line, or write the file again")
        })?;
        Ok(config)
    }

    /// The text of the config that it names.
    pub fn text(&self) -> &str {
        &self.locked.config
    }

    /// The path of its file.
    pub fn path(&self) -> &Path {
        &self.held.path
    }
}
