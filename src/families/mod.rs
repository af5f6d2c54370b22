//! The families of kernels that the service serves: this list is all that knows them all.

pub mod rope;
pub mod template;

use std::path::Path;

use once_cell::race::OnceBox;

use crate::error::Result;
use crate::service::engine::{ArtifactMeta, Builder, ChoiceMeta, Engine, read_lock as read};
use crate::service::family::{Abilities, Line};
use crate::service::lock::Lock;

pub use crate::service::family::{Config, Families, Problem, Stated};

/// The list.
struct All;

impl Families for All {
    fn read(&self, line: &Line<'_>) -> Result<()> {
        if template::lines::is_own(line) { template::lines::read(line) } else { rope::lines::read(line) }
    }

    fn check(&self, line: &Line<'_>, can: Abilities) -> Result<()> {
        // Of a user's kernel it is known when its description is.
        if template::lines::is_own(line) { Ok(()) } else { rope::lines::check(line, can) }
    }

    fn templates(&self) -> &str {
        crate::families::rope::render::templates_digest()
    }

    fn is_of_templates(&self, line: &Line<'_>) -> bool {
        !template::lines::is_own(line)
    }
}

/// All families, for lock files.
pub fn families() -> &'static dyn Families {
    &All
}

/// Reads a lock file.
///
/// # Errors
/// [`ErrorKind::LockFile`](crate::ErrorKind::LockFile), naming file and line, when it is none;
/// [`ErrorKind::Io`](crate::ErrorKind::Io) when it cannot be read.
pub fn read_lock(path: &Path) -> Result<Lock> {
    read(path, families())
}

/// A choice's metadata, each value in the words of its family.
///
/// # Errors
/// When it is none.
pub fn read_choice(meta: &[u8]) -> Result<ChoiceMeta, String> {
    let mut meta: ChoiceMeta = serde_json::from_slice(meta).map_err(|e| e.to_string())?;
    let family = meta.fields.get("family").unwrap_or_default().to_owned();
    if family == rope::NAME {
        rope::lines::restate(
            &mut meta.spec,
            &mut meta.class,
            meta.record.candidates.iter_mut().map(|c| &mut c.config),
        )?;
    } else {
        template::lines::restate(&family, &mut meta.spec, &mut meta.class);
    }
    Ok(meta)
}

/// Whether a config's kernel comes with the crate, so that no cache holds it.
pub fn comes_with_crate(config: &Config) -> bool {
    config.to::<rope::variant::Variant>().is_some_and(|variant| variant.shipped)
}

/// An artifact's metadata, each value in the words of its family.
///
/// # Errors
/// When it is none.
pub fn read_artifact(meta: &[u8]) -> Result<ArtifactMeta, String> {
    let mut meta: ArtifactMeta = serde_json::from_slice(meta).map_err(|e| e.to_string())?;
    // Entries of releases that had one family do not name it.
    match meta.family.as_deref().filter(|family| *family != rope::NAME) {
        None => rope::lines::restate(&mut meta.spec, &mut meta.class, std::iter::once(&mut meta.config))?,
        Some(family) => template::lines::restate(family, &mut meta.spec, &mut meta.class),
    }
    Ok(meta)
}

static GLOBAL: OnceBox<Engine> = OnceBox::new();

impl Engine {
    /// Options of an engine to be.
    pub fn builder() -> Builder {
        Builder::new(families())
    }

    /// The process's engine, with all options from the environment. It is never dropped; when the process ends, its
    /// background work does.
    ///
    /// # Errors
    /// As [`Builder::build`], when this call is the first that succeeds.
    pub fn global() -> Result<&'static Self> {
        if let Some(engine) = GLOBAL.get() {
            return Ok(engine);
        }
        GLOBAL.get_or_try_init(|| Self::builder().build().map(Box::new))
    }
}
