//! Who may put code into a cache folder: its user, and for a folder that is only read, the system's administrator.

use std::fs::Metadata;
use std::path::Path;

use crate::error::{Error, ErrorKind, Result};

/// Whose files are trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner {
    /// The user's own.
    Me,
    /// The user's own and root's, who can run code as the user anyway.
    MeOrRoot,
}

impl Owner {
    /// What is wrong with the owner or the mode of a file or folder.
    #[cfg(unix)]
    pub fn objects(self, meta: &Metadata) -> Option<String> {
        use std::os::unix::fs::MetadataExt as _;
        let me = rustix::process::geteuid().as_raw();
        if meta.uid() != me && !(self == Self::MeOrRoot && meta.uid() == 0) {
            return Some(format!("belongs to another user ({}, not {me})", meta.uid()));
        }
        (meta.mode() & 0o022 != 0).then(|| format!("others can write to it (mode {:o})", meta.mode() & 0o7777))
    }

    #[cfg(not(unix))]
    pub fn objects(self, _: &Metadata) -> Option<String> {
        None
    }

    /// Refuses a folder in which others could put code, with the command that repairs it.
    pub fn check(self, folder: &Path) -> Result<()> {
        let meta = fs_err::metadata(folder).map_err(|e| Error::io(folder, "the cache folder cannot be read", e))?;
        let refuse = |why: &str, hint: String| {
            Err(Error::new(ErrorKind::UntrustedCache, format!("the cache folder is refused: {why}"))
                .subject_is(folder.display().to_string())
                .hint(hint))
        };
        let variable = if self == Self::Me { "ROPEJIT_CACHE_DIR" } else { "ROPEJIT_CACHE_PATH" };
        if !meta.is_dir() {
            return refuse(
                "it is not a folder",
                format!("remove '{}', or set {variable} to a folder", folder.display()),
            );
        }
        match self.objects(&meta) {
            Some(why) if why.starts_with("belongs") => {
                let own = format!(
                    "chown -R \"$(id -u)\" '{}'   (or set {variable} to a folder of your own",
                    folder.display()
                );
                let root = if self == Self::Me { "; root's, to be read only, go in ROPEJIT_CACHE_PATH" } else { "" };
                refuse(&why, format!("{own}{root})"))
            }
            Some(why) => refuse(&why, format!("chmod -R go-w '{}'", folder.display())),
            None => Ok(()),
        }
    }

    /// What is wrong with the folders between `root` and a file in it: one that is a link would lead out of the root.
    /// Those that are not there are no harm.
    pub fn objects_between(self, root: &Path, file: &Path) -> Option<String> {
        let between = file.ancestors().skip(1).take_while(|folder| *folder != root);
        between.filter_map(|folder| Some((folder, std::fs::symlink_metadata(folder).ok()?))).find_map(
            |(folder, meta)| {
                let why = if meta.is_dir() { self.objects(&meta)? } else { "not a folder of its own".into() };
                Some(format!("{}: {why}", folder.display()))
            },
        )
    }
}
