use std::fs::Permissions;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use super::*;

/// As `now`, but without what the machine that the test runs on happens to have.
fn only_me() -> Trusted {
    let me = rustix::process::geteuid().as_raw();
    Trusted { me, users: [me, 0, std::fs::metadata("/").expect("there").uid()].into(), groups: BTreeSet::new() }
}

fn mode(path: &Path, mode: u32) {
    fs_err::set_permissions(path, Permissions::from_mode(mode)).expect("set");
}

fn why(path: &Path, trusted: &Trusted) -> String {
    follow(path, trusted).map_or_else(|refused| refused.to_string(), |(found, _)| format!("found {}", found.display()))
}

/// A folder that nobody else can change, whatever the umask is.
fn private() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    mode(folder.path(), 0o700);
    let at = fs_err::canonicalize(folder.path()).expect("there");
    (folder, at)
}

#[test]
fn every_folder_on_the_way_counts() {
    let (_kept, at) = private();
    let (inner, file) = (at.join("a/b"), at.join("a/b/lib.so"));
    fs_err::create_dir_all(&inner).expect("made");
    fs_err::write(&file, "x").expect("written");
    for (path, bits) in [(at.join("a"), 0o755), (inner.clone(), 0o755), (file.clone(), 0o644)] {
        mode(&path, bits);
    }
    let trusted = only_me();
    let found = format!("found {}", file.display());
    assert_eq!(why(&file, &trusted), found);
    assert_eq!(why(&at.join("a/b/../b/./lib.so"), &trusted), found);
    for path in [at.join("a"), inner, file.clone()] {
        let before = fs_err::metadata(&path).expect("there").mode() & 0o7777;
        mode(&path, before | 0o002);
        let refused = why(&file, &trusted);
        assert!(refused.starts_with(&format!("{}: anybody can write to it", path.display())), "{refused}");
        assert!(refused.ends_with(&format!("(chmod o-w '{}')", path.display())), "{refused}");
        mode(&path, before | 0o020);
        let gid = fs_err::metadata(&path).expect("there").gid();
        let refused = why(&file, &trusted);
        assert!(refused.starts_with(&format!("{}: group {gid} can write to it", path.display())), "{refused}");
        assert!(refused.contains(&format!("ROPEJIT_TRUST_GROUP={gid}")), "{refused}");
        let group = Trusted { groups: [gid].into(), ..only_me() };
        assert_eq!(why(&file, &group), found);
        mode(&path, before);
    }
    // As /tmp: others can make files, and not exchange this one.
    mode(&at.join("a"), 0o1777);
    assert_eq!(why(&file, &trusted), found);
    assert_eq!(why(&at.join("a/none"), &trusted), "not there");
    assert_eq!(why(&at.join("a/b/lib.so/none"), &trusted), "not there");
    assert!(why(Path::new("lib.so"), &trusted).contains("its path is not absolute"));
}

#[test]
fn links_are_followed_and_what_is_behind_them_counts() {
    let (_kept, at) = private();
    for folder in ["open", "closed"] {
        fs_err::create_dir(at.join(folder)).expect("made");
        fs_err::write(at.join(folder).join("lib.so.13.1"), "x").expect("written");
        mode(&at.join(folder).join("lib.so.13.1"), 0o644);
        mode(&at.join(folder), if folder == "open" { 0o777 } else { 0o755 });
    }
    symlink("closed", at.join("current")).expect("linked");
    symlink("lib.so.13.1", at.join("closed/lib.so")).expect("linked");
    symlink(at.join("open/lib.so.13.1"), at.join("closed/out.so")).expect("linked");
    symlink("loop", at.join("loop")).expect("linked");
    let trusted = only_me();
    assert_eq!(why(&at.join("current/lib.so"), &trusted), format!("found {}", at.join("closed/lib.so.13.1").display()));
    assert!(why(&at.join("closed/out.so"), &trusted).starts_with(&at.join("open").display().to_string()));
    assert!(why(&at.join("loop"), &trusted).contains("too many links"));
    assert_eq!(why(&at.join("current/gone"), &trusted), "not there");
}

#[test]
fn files_of_other_users_are_refused() {
    let (_kept, at) = private();
    let file = at.join("lib.so");
    fs_err::write(&file, "x").expect("written");
    mode(&file, 0o644);
    let trusted = Trusted {
        me: 7,
        users: only_me().users.into_iter().filter(|&u| u != only_me().me).collect(),
        groups: BTreeSet::new(),
    };
    if trusted.users.contains(&only_me().me) {
        // Of root, who is always trusted: give the file away instead.
        rustix::fs::chown(&file, Some(rustix::fs::Uid::from_raw(4321)), None).expect("root may");
    }
    let refused = why(&file, &trusted);
    assert!(refused.contains("it belongs to user") && refused.contains("make a copy of your own"), "{refused}");
    let theirs = fs_err::metadata(&file).expect("there").uid();
    let same = Trusted { users: trusted.users.iter().copied().chain([theirs]).collect(), ..trusted };
    assert!(why(&file, &same).starts_with("found"), "who owns the program is trusted");
}

#[test]
fn who_can_change_the_program_is_trusted() {
    let (_kept, at) = private();
    let program = at.join("bin/program");
    fs_err::create_dir(at.join("bin")).expect("made");
    fs_err::write(&program, "x").expect("written");
    let groups = |folder: u32, file: u32| {
        mode(&at.join("bin"), folder);
        mode(&program, file);
        let mut trusted = Trusted::default();
        trusted.add_changers(&program);
        assert!(trusted.users.contains(&rustix::process::geteuid().as_raw()));
        trusted.groups.contains(&fs_err::metadata(&program).expect("there").gid())
    };
    assert!(groups(0o775, 0o755) && groups(0o755, 0o775));
    assert!(!groups(0o755, 0o755) && !groups(0o1777, 0o755));
    assert_eq!(own_file().and_then(|f| fs_err::canonicalize(f).ok()), std::env::current_exe().ok());
}

/// Images for `OpenShift` give their files to group 0, in which programs of any user run.
#[test]
fn group_0_is_trusted_only_where_the_operator_says_so() {
    let (passwd, group) = ("root:x:0:0::/root:/bin/sh\nann:x:1000:1000::/:/bin/sh\n", "root:x:0:\nann:x:1000:\n");
    for me in [0, 1000, 1_000_650_000] {
        let judge = |named| Trusted::of(me, passwd, group, named).judge(Path::new("/lib.so"), me, 0, Some(0o660));
        let refused = judge(None).expect("refused").to_string();
        assert!(refused.starts_with("/lib.so: group 0 can write to it (mode 660)"), "{refused}");
        assert!(refused.contains("ROPEJIT_TRUST_GROUP=0"), "{refused}");
        assert_eq!(judge(Some(0)), None);
        assert!(judge(Some(7)).is_some(), "another group");
    }
    let own = Trusted::of(1000, passwd, group, None).judge(Path::new("/lib.so"), 1000, 1000, Some(0o660));
    assert_eq!(own, None, "the user's private group");
}

#[test]
fn maps_are_read() {
    let maps = "00400000-00452000 r-xp 00000000 08:02 173521      /usr/bin/a b\n\
                7f0000000000-7f0000001000 r--p 00000000 00:00 0 \nnonsense\n";
    assert_eq!(file_at(maps, 0x0040_1000), Some("/usr/bin/a b".into()));
    assert_eq!(file_at(maps, 0x7f00_0000_0010), None);
    assert_eq!(file_at(maps, 0x0045_2000), None);
}

#[test]
fn a_private_group_is_the_users_alone() {
    let passwd = "root:x:0:0::/root:/bin/sh\nann:x:1000:1000::/:/bin/sh\nbob:x:1001:100::/:/bin/sh\ncy:x:1002:100::/:/bin/sh\n\
                  dan:x:1003:2003::/:/bin/sh\neve:x:1004:50::/:/bin/sh\nbroken\n";
    let group = "root:x:0:\nann:x:1000:\nusers:x:100:\ndan:x:2003:dan\nstaff:x:50:\n";
    let of = |uid, group| private_group(uid, passwd, group);
    assert_eq!(of(1000, group), Some(1000));
    assert_eq!(of(1003, group), Some(2003), "named as the user is");
    assert_eq!(of(1001, group), None, "the first group of another user, too");
    assert_eq!(of(1004, group), None, "neither named nor numbered as the user is");
    assert_eq!(of(1000, "ann:x:1000:ann,bob\n"), None, "it has another member");
    assert_eq!(of(5000, group), Some(5000), "known to a directory service");
    assert_eq!(of(5000, "lab:x:5000:ann\n"), None);
    assert_eq!(private_group(1, "", ""), Some(1));
}
