//! Owners and modes.

use std::collections::{BTreeSet, VecDeque};
use std::ffi::OsString;
use std::fs::Metadata;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};

use super::Refused;
use crate::system::environment;

/// Links that a path may lead over, as the system has it.
const MOST_LINKS: usize = 40;
const STICKY: u32 = 0o1000;

/// Who is trusted.
#[derive(Debug, Default)]
pub(super) struct Trusted {
    me: u32,
    users: BTreeSet<u32>,
    groups: BTreeSet<u32>,
}

impl Trusted {
    /// Who is trusted by this process; a refusal of everything where the environment names a group that is none.
    pub fn now() -> Result<Self, Refused> {
        let named = environment::trust_group().map_err(|e| Refused::Because {
            path: e.subject().unwrap_or_default().into(),
            why: e.message().to_owned(),
            cure: e.advice().unwrap_or_default().to_owned(),
        })?;
        let me = rustix::process::geteuid().as_raw();
        let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let mut trusted = Self::of(me, &text("/etc/passwd"), &text("/etc/group"), named);
        trusted.users.extend(std::fs::metadata("/").map(|root| root.uid()));
        for program in [std::fs::read_link("/proc/self/exe").ok(), own_file()].into_iter().flatten() {
            trusted.add_changers(&program);
        }
        Ok(trusted)
    }

    /// Who is trusted whatever the program and the system's folders are: the user, root, the user's private group, and the
    /// group that the operator has named.
    fn of(me: u32, passwd: &str, group: &str, named: Option<u32>) -> Self {
        let groups = private_group(me, passwd, group).into_iter().chain(named).collect();
        Self { me, users: [me, 0].into(), groups }
    }

    /// Adds who can change a file: the owners, and the groups that can write, of it and of all folders above.
    fn add_changers(&mut self, file: &Path) {
        for meta in file.ancestors().filter_map(|path| std::fs::metadata(path).ok()) {
            self.users.insert(meta.uid());
            if meta.mode() & 0o020 != 0 && !is_sticky(&meta) {
                self.groups.insert(meta.gid());
            }
        }
    }

    /// What is wrong with the owner or mode of a file or folder, and how to repair it.
    fn objects(&self, path: &Path, meta: &Metadata) -> Option<Refused> {
        // A link has no mode, and in a sticky folder nobody can exchange what another has made.
        let mode = (!meta.is_symlink() && !is_sticky(meta)).then_some(meta.mode() & 0o7777);
        self.judge(path, meta.uid(), meta.gid(), mode)
    }

    /// As `objects`; the mode is `None` where it says nothing.
    fn judge(&self, path: &Path, uid: u32, gid: u32, mode: Option<u32>) -> Option<Refused> {
        let because = |why: String, cure: String| Some(Refused::Because { path: path.to_owned(), why, cure });
        if !self.users.contains(&uid) {
            let why = format!(
                "it belongs to user {uid}, who is neither user {} nor root nor owns the program that runs",
                self.me
            );
            return because(why, "make a copy of your own".into());
        }
        let mode = mode?;
        let cure = |who: &str| format!("chmod {who}-w '{}'", path.display());
        if mode & 0o002 != 0 {
            return because(format!("anybody can write to it (mode {mode:o})"), cure("o"));
        }
        if mode & 0o020 != 0 && !self.groups.contains(&gid) {
            let cure = format!("{}, or ROPEJIT_TRUST_GROUP={gid} if its members are trusted", cure("g"));
            return because(format!("group {gid} can write to it (mode {mode:o})"), cure);
        }
        None
    }
}

fn is_sticky(meta: &Metadata) -> bool {
    meta.is_dir() && meta.mode() & STICKY != 0
}

/// Follows a path from `/` on, and asks all that is on its way.
pub(super) fn follow(path: &Path, trusted: &Trusted) -> Result<(PathBuf, Metadata), Refused> {
    let because =
        |path: &Path, why: String, cure: &str| Refused::Because { path: path.to_owned(), why, cure: cure.into() };
    if !path.is_absolute() {
        return Err(because(path, "its path is not absolute".into(), "name it from / on"));
    }
    let parts = |path: &Path| path.components().map(|part| part.as_os_str().to_owned()).collect::<VecDeque<OsString>>();
    let (mut to_go, mut at, mut links) = (parts(path), PathBuf::from("/"), 0);
    let mut meta = None;
    while let Some(part) = to_go.pop_front() {
        match Path::new(&part).components().next() {
            Some(Component::RootDir) => at = PathBuf::from("/"),
            Some(Component::ParentDir) => _ = at.pop(),
            Some(Component::Normal(name)) => at.push(name),
            _ => continue,
        }
        let found = std::fs::symlink_metadata(&at).map_err(|e| match e.kind() {
            ErrorKind::NotFound | ErrorKind::NotADirectory => Refused::Absent,
            _ => because(&at, format!("it cannot be looked at: {e}"), "make it readable"),
        })?;
        if let Some(refused) = trusted.objects(&at, &found) {
            return Err(refused);
        }
        if found.is_symlink() {
            links += 1;
            if links > MOST_LINKS {
                return Err(because(path, "too many links".into(), "name the file itself"));
            }
            let target = std::fs::read_link(&at).map_err(|_| Refused::Absent)?;
            at.pop();
            let mut from_here = parts(&target);
            from_here.append(&mut to_go);
            to_go = from_here;
        }
        meta = Some(found);
    }
    match meta {
        // The last thing may have been a link with an empty rest.
        Some(meta) if !meta.is_symlink() => Ok((at, meta)),
        _ => Err(Refused::Absent),
    }
}

/// The file that this code is in: the program, or a library that it has loaded.
fn own_file() -> Option<PathBuf> {
    file_of(own_file as *const () as usize)
}

pub(super) fn file_of(address: usize) -> Option<PathBuf> {
    file_at(&std::fs::read_to_string("/proc/self/maps").ok()?, address)
}

/// The file that is mapped at an address.
fn file_at(maps: &str, address: usize) -> Option<PathBuf> {
    let line = maps.lines().find(|line| {
        let range = line.split(' ').next().and_then(|range| range.split_once('-'));
        let number = |text| usize::from_str_radix(text, 16).ok();
        let range = range.and_then(|(first, end)| Some(number(first)?..number(end)?));
        range.is_some_and(|range| range.contains(&address))
    })?;
    Some(PathBuf::from(&line[line.find('/')?..]))
}

/// The group of the user alone, if there is one: it is named or numbered as the user is, nobody else is in it. Group 0 is
/// none, not even root's: `OpenShift` runs programs of any user in it, and no list of users says so.
fn private_group(me: u32, passwd: &str, group: &str) -> Option<u32> {
    let fields = |line: &str| line.split(':').map(str::to_owned).collect::<Vec<_>>();
    let users: Vec<(String, u32, u32)> = passwd
        .lines()
        .map(fields)
        .filter_map(|f| Some((f.first()?.clone(), f.get(2)?.parse().ok()?, f.get(3)?.parse().ok()?)))
        .collect();
    let user = users.iter().find(|(_, uid, _)| *uid == me);
    // Who is not listed here is known to a directory service: such a group has the user's number.
    let gid = user.map_or(me, |(.., gid)| *gid);
    if users.iter().any(|(_, uid, theirs)| *theirs == gid && *uid != me) {
        return None;
    }
    let listed = group.lines().map(fields).find(|f| f.get(2).is_some_and(|number| number.parse() == Ok(gid)));
    let name = user.map(|(name, ..)| name);
    let others = listed.as_ref().and_then(|f| f.get(3)).is_some_and(|members| {
        members.split(',').any(|member| !member.is_empty() && Some(member) != name.map(String::as_str))
    });
    let named_so = listed.as_ref().and_then(|f| f.first()).is_some_and(|group| Some(group) == name);
    (gid != 0 && !others && (gid == me || named_so)).then_some(gid)
}

#[cfg(test)]
#[path = "trust_tests.rs"]
mod tests;
