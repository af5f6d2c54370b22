//! Who may put code into a cache folder: its user, for a folder that is only read the system's administrator as well, and a
//! group that the operator has named.
//!
//! What counts is the owner and mode of what is opened, asked of the open descriptor. A folder that is for many (`/tmp`, a
//! volume that Kubernetes makes) is not used itself: the user's folder in it is, `uid-<uid>`.

use std::fs::{File, Metadata, OpenOptions};
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, Result};

/// Whose files are trusted, besides the user's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Trust {
    /// The folder is only read: root's files are trusted too, since root can run code as the user anyway.
    pub read_only: bool,
    /// A group that may write, whoever owns what belongs to it.
    pub group: Option<u32>,
}

#[cfg(unix)]
impl Trust {
    /// What is wrong with the owner or the mode of a file or folder.
    pub fn objects(self, meta: &Metadata) -> Option<String> {
        use std::os::unix::fs::MetadataExt as _;
        let (me, mode) = (me(), meta.mode() & 0o7777);
        let by_group = self.group == Some(meta.gid());
        if mode & 0o002 != 0 {
            return Some(format!("others can write to it (mode {mode:o})"));
        }
        if mode & 0o020 != 0 && !by_group {
            return Some(format!("others can write to it (mode {mode:o}, group {})", meta.gid()));
        }
        let trusted = meta.uid() == me || (self.read_only && meta.uid() == 0) || by_group;
        (!trusted).then(|| format!("belongs to another user ({}, not {me})", meta.uid()))
    }

    /// Whether a folder is for several users, who keep what is theirs in folders of their own.
    fn is_shared(self, meta: &Metadata) -> bool {
        use std::os::unix::fs::MetadataExt as _;
        meta.mode() & 0o002 != 0 || (meta.mode() & 0o020 != 0 && self.group != Some(meta.gid()))
    }

    /// What to do about a folder that is refused.
    fn cure(self, folder: &Path, meta: &Metadata) -> String {
        use std::os::unix::fs::MetadataExt as _;
        let (shown, variable) = (folder.display(), self.variable());
        if self.is_shared(meta) {
            let repair = if meta.uid() == me() {
                format!("chmod -R go-w '{shown}'")
            } else {
                format!("set {variable} to a folder of your own")
            };
            let group = match meta.mode() & 0o002 {
                0 => format!(", or ROPEJIT_TRUST_GROUP={} if whoever is in that group may run code here", meta.gid()),
                _ => String::new(),
            };
            return format!(
                "{repair}; on a Kubernetes volume set fsGroupChangePolicy: OnRootMismatch and {variable} to a new subfolder{group}"
            );
        }
        let root = if self.read_only { "" } else { "; root's, to be read only, go in ROPEJIT_CACHE_PATH" };
        format!("chown -R \"$(id -u)\" '{shown}'   (or set {variable} to a folder of your own{root})")
    }
}

#[cfg(not(unix))]
impl Trust {
    pub fn objects(self, _: &Metadata) -> Option<String> {
        None
    }

    fn is_shared(self, _: &Metadata) -> bool {
        false
    }

    fn cure(self, _: &Path, _: &Metadata) -> String {
        format!("set {} to a folder of your own", self.variable())
    }
}

impl Trust {
    /// The user's folder for entries that are made: what is the user's own, or what the group may write to.
    pub const fn own(group: Option<u32>) -> Self {
        Self { read_only: false, group }
    }

    /// A folder that is only read.
    pub const fn read_only(group: Option<u32>) -> Self {
        Self { read_only: true, group }
    }

    fn variable(self) -> &'static str {
        if self.read_only { "ROPEJIT_CACHE_PATH" } else { "ROPEJIT_CACHE_DIR" }
    }

    /// What to do about a folder that cannot be read.
    pub fn readable(self, folder: &Path) -> String {
        format!("{}; or set {} to another folder", to_read(folder), self.variable())
    }

    /// Refuses a folder in which others could put code, with what to do about it.
    pub fn check(self, folder: &Path) -> Result<()> {
        let failed = |e: std::io::Error| {
            let hint = match e.kind() {
                std::io::ErrorKind::NotFound => {
                    let (name, folder) = (self.variable(), folder.display());
                    format!(
                        "{name} names '{folder}', which is not there: mount it, or set {name} to the folder that was filled"
                    )
                }
                _ => self.readable(folder),
            };
            Error::io(folder, "the cache folder cannot be read", e).hint(hint)
        };
        let meta = open_folder(folder).and_then(|file| file.metadata());
        let refuse = |why: &str, hint: String| {
            Err(Error::new(ErrorKind::UntrustedCache, format!("the cache folder is refused: {why}"))
                .subject_is(folder.display().to_string())
                .hint(hint))
        };
        match meta {
            Ok(meta) if meta.is_dir() => match self.objects(&meta) {
                Some(why) => refuse(&why, self.cure(folder, &meta)),
                None => Ok(()),
            },
            // Nobody is told to remove it: it may be anything.
            Ok(_) => refuse("it is not a folder", format!("set {} to a folder", self.variable())),
            Err(e) if e.kind() == std::io::ErrorKind::NotADirectory && folder.exists() => {
                refuse("it is not a folder", format!("set {} to a folder", self.variable()))
            }
            Err(e) => Err(failed(e)),
        }
    }

    /// The folder that the user's entries are kept in: the named one, or where that is for several users, the user's own in
    /// it. It need not be there. One that holds this user's entries itself was meant to be the user's own.
    pub fn folder_in(self, named: &Path) -> PathBuf {
        let own = own_name();
        if named.ends_with(&own) {
            return named.to_owned();
        }
        match open_folder(named).and_then(|file| file.metadata()) {
            Ok(meta) if meta.is_dir() && self.is_shared(&meta) && !holds_entries(named) => named.join(own),
            _ => named.to_owned(),
        }
    }

    /// What is wrong with the folders between `root` and a file in it: one that is a link would lead out of the root.
    /// Those that are not there are no harm.
    pub fn objects_between(self, root: &Path, file: &Path) -> Option<String> {
        let between = file.ancestors().skip(1).take_while(|folder| *folder != root);
        between.filter_map(|folder| Some((folder, std::fs::symlink_metadata(folder).ok()?))).find_map(
            |(folder, meta)| {
                let why =
                    if meta.is_dir() { self.objects(&meta)? } else { "not a folder of its own, remove it".into() };
                Some(format!("{}: {why}", folder.display()))
            },
        )
    }
}

/// How whoever owns a folder lets others read what is in it.
pub(super) fn to_read(folder: &Path) -> String {
    format!("chmod -R a+rX '{}' as its owner, and a+x for the folders above it", folder.display())
}

/// Whether others can write to a file, or to a folder between it and the root.
#[cfg(unix)]
pub(super) fn is_open_to_others(root: &Path, file: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let open = |path: &Path| std::fs::symlink_metadata(path).is_ok_and(|meta| meta.mode() & 0o022 != 0);
    file.ancestors().take_while(|path| *path != root).any(open)
}

#[cfg(not(unix))]
pub(super) fn is_open_to_others(_: &Path, _: &Path) -> bool {
    false
}

#[cfg(unix)]
fn me() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// The name of the user's folder in one that is for many.
#[cfg(unix)]
fn own_name() -> String {
    format!("uid-{}", me())
}

#[cfg(not(unix))]
fn own_name() -> String {
    "own".into()
}

/// Whether entries of this user lie in a folder, not in one of the user's own there.
#[cfg(unix)]
fn holds_entries(folder: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let version = folder.join(format!("v{}", crate::service::key::FORMAT_VERSION));
    std::fs::symlink_metadata(version).is_ok_and(|meta| meta.is_dir() && meta.uid() == me())
}

#[cfg(not(unix))]
fn holds_entries(_: &Path) -> bool {
    true
}

/// Opens a folder to ask what it is; it need not be readable. A link that was named is followed, one in a user's own folder's
/// place is not.
fn open_folder(folder: &Path) -> std::io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true);
    #[cfg(unix)]
    {
        use rustix::fs::OFlags;
        use std::os::unix::fs::OpenOptionsExt as _;
        let mut flags = OFlags::DIRECTORY;
        #[cfg(target_os = "linux")]
        flags.insert(OFlags::PATH);
        if folder.ends_with(own_name()) {
            flags.insert(OFlags::NOFOLLOW);
        }
        options.custom_flags(flags.bits() as i32);
    }
    options.open(folder)
}
