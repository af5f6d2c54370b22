//! What was stored of this family, read back without an engine: lines of a lock file, metadata of entries.

use super::variant::{self, Class, Variant};
use crate::error::Result;
use crate::rope::RopeSpec;
use crate::service::bucket::Bucket;
use crate::service::family::{Abilities, Line, Stated};
use crate::service::lock::Locked;

/// A line's spec, layout class and variant.
pub(crate) fn typed(line: &Line<'_>) -> Result<(RopeSpec, Class, Variant)> {
    Ok((line.spec.parse()?, line.class.parse()?, line.config.parse()?))
}

/// Whether a line can be read.
pub(crate) fn read(line: &Line<'_>) -> Result<()> {
    typed(line).map(drop)
}

/// Whether a line's variant is legal on a device that can do this.
pub(crate) fn check(line: &Line<'_>, can: Abilities) -> Result<()> {
    let (spec, class, variant) = typed(line)?;
    variant::check(&spec, class, variant, can)
}

/// Gives what an entry holds the family's words.
pub(crate) fn restate<'a>(
    spec: &mut Stated,
    class: &mut Stated,
    configs: impl Iterator<Item = &'a mut Stated>,
) -> Result<(), String> {
    *spec = Stated::of(&spec.to::<RopeSpec>().ok_or_else(|| format!("'{spec}' is no spec"))?);
    *class = Stated::of(&class.to::<Class>().ok_or_else(|| format!("'{class}' is no layout class"))?);
    for config in configs {
        *config = Stated::of(&config.to::<Variant>().ok_or_else(|| format!("'{config}' is no variant"))?);
    }
    Ok(())
}

impl Locked {
    /// Its spec, layout class and variant, where it is a choice of this family.
    ///
    /// # Errors
    /// What cannot be read, with the part as its subject.
    pub fn typed(&self) -> Result<(RopeSpec, Class, Variant)> {
        typed(&self.parts())
    }

    /// A choice of this family, to be written.
    pub fn of(spec: &RopeSpec, class: Class, bucket: Bucket, variant: Variant) -> Self {
        let [spec, class, config] = [spec.to_string(), class.to_string(), variant.to_string()];
        Self { spec, class, bucket, config, line: 0 }
    }
}

#[cfg(test)]
#[path = "lines_tests.rs"]
mod tests;
