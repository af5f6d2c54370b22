//! A `.toml` and its `.cu`, read and checked.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::description::Description;
use super::kernel_text;
use super::on_host::OnHost;
use super::{read, source};
use crate::error::{Error, ErrorKind, Result};
use crate::system;

/// A kernel of a user's: its description and its text. Cheap to clone.
///
/// The text is compiled and run as it stands: load what you would run.
#[derive(Clone)]
pub struct Template(Arc<Inner>);

struct Inner {
    path: PathBuf,
    description: Description,
    body: String,
    on_host: OnHost,
    digest: String,
    /// The tensors whose alignment rules read.
    aligned: Vec<u8>,
}

/// Tensors at most whose alignments are told apart: a class is a number of 64 bits, three for each.
const MOST_ALIGNED: usize = 21;

impl Template {
    /// Reads a description and the source that it names. Nothing is compiled yet.
    ///
    /// # Errors
    /// [`ErrorKind::Template`], naming file, line and key, when one of the two is wrong; [`ErrorKind::Io`] when it cannot be
    /// read.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let text = text(path, read::LARGEST)?;
        let shown = path.display().to_string();
        let description = read::read(&shown, &text)?;
        let source = path.with_file_name(&description.source);
        let body = self::text(&source, kernel_text::LARGEST).map_err(|e| {
            let line = 1 + text.lines().position(|l| l.trim_start().starts_with("source")).unwrap_or(0);
            if e.kind() == ErrorKind::Io { e.hint(format!("{shown}:{line} names it as its source")) } else { e }
        })?;
        Self::new(path, description, &source, body)
    }

    fn new(path: &Path, description: Description, source_path: &Path, body: String) -> Result<Self> {
        description.check_combinations()?;
        let aligned = description.aligned();
        if aligned.len() > MOST_ALIGNED {
            let what = format!(
                "[tune] where: asks for the alignment of {} tensors, {MOST_ALIGNED} is the most",
                aligned.len()
            );
            return Err(Error::new(ErrorKind::Template, what).subject_is(description.at(description.tune_line)));
        }
        let on_host = kernel_text::check(&source_path.display().to_string(), &body, &description)?;
        Ok(Self::made(path, description, body, on_host))
    }

    /// Of parts that were not checked against each other: nothing may be compiled of it.
    pub(super) fn of_parts(path: &Path, description: Description, body: String) -> Self {
        Self::made(path, description, body, OnHost::InTurn)
    }

    fn made(path: &Path, description: Description, body: String, on_host: OnHost) -> Self {
        let (digest, aligned) = (source::digest(&description, &body), description.aligned());
        Self(Arc::new(Inner { path: path.to_owned(), description, body, on_host, digest, aligned }))
    }

    /// The family's name.
    pub fn family(&self) -> &str {
        &self.0.description.family
    }

    /// Where its description lies.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// Why the host device cannot run it; `None` where it can.
    pub fn gpu_only(&self) -> Option<&str> {
        match &self.0.on_host {
            OnHost::No(why) => Some(why),
            _ => None,
        }
    }

    /// SHA-256, in hexadecimal, of all that its kernels are made of.
    pub fn digest(&self) -> &str {
        &self.0.digest
    }

    pub(super) fn description(&self) -> &Description {
        &self.0.description
    }

    pub(super) fn body(&self) -> &str {
        &self.0.body
    }

    pub(super) fn on_host(&self) -> &OnHost {
        &self.0.on_host
    }

    pub(super) fn aligned(&self) -> &[u8] {
        &self.0.aligned
    }
}

/// The text of a regular file that has at most this many bytes.
fn text(path: &Path, most: usize) -> Result<String> {
    let bytes = system::read_bytes(path, most as u64).map_err(|e| match e.kind() {
        std::io::ErrorKind::FileTooLarge => Error::new(ErrorKind::Template, format!("is larger than {most} bytes"))
            .subject_is(path.display().to_string()),
        _ => Error::io(path, "cannot be read", e).hint("name the .toml of a kernel; its `source` lies beside it"),
    })?;
    String::from_utf8(bytes).map_err(|e| {
        let valid = &e.as_bytes()[..e.utf8_error().valid_up_to()];
        let line = 1 + String::from_utf8_lossy(valid).matches('\n').count();
        Error::new(ErrorKind::Template, "is not UTF-8 text").subject_is(format!("{}:{line}", path.display()))
    })
}

#[cfg(test)]
#[path = "loaded_tests.rs"]
mod tests;
