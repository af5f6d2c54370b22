//! Who can change what is loaded: libraries, compilers, and the folder that a kernel is compiled in.
//!
//! A path is followed from `/` on, link by link, and every folder and file on it is asked for its owner and mode. So nobody
//! but those who are trusted can put something else in its place, before it is opened or after. Trusted are
//!
//! - the user and root (or who else owns `/`: in a user namespace root has another number);
//! - whoever can change the program that runs, or the library that this code is in: its owners, and the groups that can write
//!   to it. They decide what the process does in any case. An environment that a laboratory shares, a cluster's software
//!   that belongs to an account of its own, an image whose folders a group can write to, load what lies beside them;
//! - the user's private group, which Debian, Fedora and others make together with a user, whose files it can write to: the
//!   group that is named or numbered as the user is, and has no other member; never group 0;
//! - a group that the operator names in `ROPEJIT_TRUST_GROUP`.

use std::fmt;
use std::path::{Path, PathBuf};

/// Why something is not loaded.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// There is no such file.
    Absent,
    /// It is there.
    Because {
        /// The file or folder that is the reason.
        path: PathBuf,
        why: String,
        /// What to do about it.
        cure: String,
    },
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("not there"),
            Self::Because { path, why, cure } => write!(f, "{}: {why} ({cure})", path.display()),
        }
    }
}

/// The file itself behind a path, all links followed, if nobody but those who are trusted can change it.
pub(crate) fn file(path: &Path) -> Result<PathBuf, Refused> {
    let (found, meta) = follow(path)?;
    if meta.is_file() {
        return Ok(found);
    }
    Err(Refused::Because { path: found, why: "it is not a file".into(), cure: "name a file".into() })
}

/// As `file`, for a folder: others may make files of their own in it, as in `/tmp`, but not exchange any.
pub(crate) fn folder(path: &Path) -> Result<PathBuf, Refused> {
    let (found, meta) = follow(path)?;
    if meta.is_dir() {
        return Ok(found);
    }
    Err(Refused::Because { path: found, why: "it is not a folder".into(), cure: "name a folder".into() })
}

/// The file that the process has mapped at an address.
pub(crate) fn file_of(address: usize) -> Option<PathBuf> {
    #[cfg(unix)]
    return unix::file_of(address);
    #[cfg(not(unix))]
    {
        let _ = address;
        None
    }
}

#[cfg(unix)]
fn follow(path: &Path) -> Result<(PathBuf, std::fs::Metadata), Refused> {
    unix::follow(path, &unix::Trusted::now()?)
}

#[cfg(not(unix))]
fn follow(path: &Path) -> Result<(PathBuf, std::fs::Metadata), Refused> {
    let failed = |_| Refused::Absent;
    let found = std::fs::canonicalize(path).map_err(failed)?;
    let meta = std::fs::metadata(&found).map_err(failed)?;
    Ok((found, meta))
}

#[cfg(unix)]
#[path = "trust_unix.rs"]
mod unix;
