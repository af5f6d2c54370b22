//! The identity of the host's C++ compiler: what it says to `--version`, the same on every machine that has this version. Not
//! its file's path, size or time, which differ between machines.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

use sha2::{Digest as _, Sha256};

use crate::error::{Error, Result};
use crate::service::digest::hex;

/// The version of the compiler in this file, asked for once a process.
pub(super) fn of(file: &Path) -> Result<String> {
    // Never waited for: a child of `fork` may have it locked for ever.
    static KNOWN: Mutex<Vec<(PathBuf, String)>> = Mutex::new(Vec::new());
    if let Ok(known) = KNOWN.try_lock()
        && let Some((_, version)) = known.iter().find(|(known, _)| known == file)
    {
        return Ok(version.clone());
    }
    let version = ask(file)?;
    if let Ok(mut known) = KNOWN.try_lock() {
        known.push((file.to_owned(), version.clone()));
    }
    Ok(version)
}

fn ask(file: &Path) -> Result<String> {
    // In the language of the program, not of the user.
    let asked = Command::new(file).arg("--version").env("LC_ALL", "C").stdin(Stdio::null()).output();
    let asked = asked.map_err(|e| Error::io(file, "cannot be run", e))?;
    let said = String::from_utf8_lossy(&asked.stdout);
    if let Some(version) = asked.status.success().then(|| version(&said, file)).flatten() {
        return Ok(version);
    }
    // It does not say: then it is what its file holds.
    let bytes = fs_err::read(file).map_err(|e| Error::io(file, "cannot be read", e))?;
    Ok(format!("c++ {}", &hex(&Sha256::digest(&bytes))[..16]))
}

/// The first line that is not empty, without the name that the program was called by: `c++ (Debian 12.2.0-14) 12.2.0` is
/// `g++ (Debian 12.2.0-14) 12.2.0` as well.
fn version(said: &str, file: &Path) -> Option<String> {
    let line = said.lines().map(str::trim).find(|line| !line.is_empty())?;
    let name = file.file_name().and_then(OsStr::to_str).unwrap_or_default();
    match line.strip_prefix(name).filter(|rest| !name.is_empty() && rest.starts_with(' ')) {
        Some(rest) => Some(format!("c++{rest}")),
        None => Some(line.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_compiler_under_several_names_is_one() {
        let of = |said: &str, file: &str| version(said, Path::new(file));
        let gcc = "(Debian 12.2.0-14+deb12u1) 12.2.0\nCopyright (C) 2022 Free Software Foundation, Inc.";
        for file in ["/usr/bin/c++", "/usr/bin/x86_64-linux-gnu-g++-12", "/opt/bin/g++"] {
            let name = file.rsplit('/').next().expect("a name");
            let version = of(&format!("{name} {gcc}"), file);
            assert_eq!(version.as_deref(), Some("c++ (Debian 12.2.0-14+deb12u1) 12.2.0"));
        }
        let clang = "\nDebian clang version 14.0.6\nInstalledDir: /usr/bin\n";
        assert_eq!(of(clang, "/usr/bin/clang++").as_deref(), Some("Debian clang version 14.0.6"));
        assert_eq!(of("\n \n", "/usr/bin/c++"), None);
    }

    #[cfg(unix)]
    #[test]
    fn a_compiler_is_known_by_what_it_says_not_by_its_file() {
        let folders = [tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder")];
        let script = |at: usize, name: &str, text: &str| {
            let path = folders[at].path().join(name);
            // Written by another process: one that this one starts meanwhile cannot hold it open.
            let write = "printf '#!/bin/sh\\n%s\\n' \"$2\" > \"$1\" && chmod 700 \"$1\"";
            let written = Command::new("sh").args(["-c", write, "sh"]).arg(&path).arg(text).status();
            assert!(written.expect("started").success());
            ask(&path).expect("answers")
        };
        let said = script(0, "c++", "echo 'c++ (GCC) 14.1'");
        assert_eq!(said, "c++ (GCC) 14.1");
        assert_eq!(script(1, "g++", "# elsewhere, of another size\necho 'g++ (GCC) 14.1'"), said);
        assert_ne!(script(1, "newer", "echo 'newer (GCC) 14.2'"), said);
        // Those that do not say are told apart by what their files hold.
        let silent = [script(0, "a", "exit 1"), script(1, "b", "exit 1"), script(1, "c", "exit 2")];
        assert!(silent[0] == silent[1] && silent[1] != silent[2], "{silent:?}");
    }
}
