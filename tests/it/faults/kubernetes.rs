//! Folders as Kubernetes makes them: a volume whose files are given to a group at every mount, an emptyDir for everybody, users
//! with random numbers in group 0. No start may fail, and nothing that others can write to is used.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use super::skipped;

/// `fsGroup`.
const GROUP: u32 = 2000;
const SMALL: [&str; 8] = ["--head-dim", "64", "--num-heads", "4", "--num-kv-heads", "2", "--tokens", "8"];

/// Containers that run this program, each as the user it is told.
struct Cluster {
    folder: TempDir,
    binary: PathBuf,
}

/// How a start went.
#[derive(Debug)]
struct Start {
    code: i32,
    warnings: Vec<String>,
    stdout: String,
    stderr: String,
}

impl Cluster {
    /// `None`, and a loud word, where this user may not be others.
    fn new(test: &str) -> Option<Self> {
        let folder = tempfile::tempdir().expect("a folder");
        if fs_err::metadata(folder.path()).expect("there").uid() != 0 {
            skipped(&format!("{test}: this is not root"));
            return None;
        }
        mode(folder.path(), 0o755);
        let binary = folder.path().join("ropejit");
        fs_err::copy(env!("CARGO_BIN_EXE_ropejit"), &binary).expect("copied");
        mode(&binary, 0o755);
        Some(Self { folder, binary })
    }

    /// A folder of root's with this group and mode.
    fn volume(&self, name: &str, group: u32, bits: u32) -> PathBuf {
        let path = self.folder.path().join(name);
        fs_err::create_dir(&path).expect("made");
        chown(&path, Some(0), Some(group)).expect("given");
        mode(&path, bits);
        path
    }

    fn command(&self, (user, group): (u32, u32), environment: &[(&str, &str)], words: &[&str]) -> Start {
        let mut command = Command::new(&self.binary);
        command.args(words).stdin(Stdio::null()).env_clear().envs(environment.iter().copied());
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("HOME", "/nonexistent");
        let output = command.env("ROPEJIT_DEVICE", "host").uid(user).gid(group).output().expect("started");
        let [stdout, stderr] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).expect("text"));
        let warnings = stderr.lines().filter(|line| line.contains("WARN")).map(String::from).collect();
        Start { code: output.status.code().expect("not killed"), warnings, stdout, stderr }
    }

    /// One start of a program with this cache folder.
    fn start(&self, who: (u32, u32), cache: &Path, tuning: &str, more: &[(&str, &str)]) -> Start {
        let cache = [("ROPEJIT_CACHE_DIR", cache.to_str().expect("text"))];
        let words = [&["run", "--tuning", tuning, "--json"], &SMALL[..]].concat();
        self.command(who, &[&cache, more].concat(), &words)
    }
}

impl Start {
    /// It was served as it should, without a word: so many kernels compiled.
    #[track_caller]
    fn quiet(&self, compiles: u64) {
        assert_eq!((self.code, self.stderr.as_str()), (0, ""));
        assert_eq!(self.stat("compiles"), compiles);
        assert_eq!(self.stat("failed_writes"), 0);
    }

    /// It was served, nothing was kept, and one warning names these.
    #[track_caller]
    fn warned(&self, parts: &[&str]) {
        assert_eq!((self.code, self.warnings.len()), (0, 1), "{}", self.stderr);
        assert!(self.stat("compiles") == 1 && self.stat("failed_writes") > 0, "{}", self.stdout);
        self.says(parts);
    }

    #[track_caller]
    fn says(&self, parts: &[&str]) {
        let said = [&*self.stdout, &self.stderr].concat();
        for part in parts {
            assert!(said.contains(part), "{part} is not in: {said}");
        }
    }

    fn stat(&self, name: &str) -> u64 {
        let report: Value = serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {}", self.stderr));
        report["stats"][name].as_u64().expect("a count")
    }
}

fn mode(path: &Path, bits: u32) {
    fs_err::set_permissions(path, std::fs::Permissions::from_mode(bits)).expect("set");
}

fn mode_of(path: &Path) -> u32 {
    fs_err::metadata(path).expect("there").mode() & 0o7777
}

/// What a mount does to a volume with `fsGroup`: all of it is given to the group, unless the policy is `OnRootMismatch` and
/// its root is the group's already.
fn mount(volume: &Path, on_root_mismatch: bool) {
    let root = fs_err::metadata(volume).expect("there");
    if on_root_mismatch && root.gid() == GROUP && root.mode() & 0o2770 == 0o2770 {
        return;
    }
    let given = Command::new("chgrp").args(["-R", &GROUP.to_string()]).arg(volume).status();
    assert!(given.expect("started").success());
    let mut folders = vec![volume.to_owned()];
    while let Some(folder) = folders.pop() {
        mode(&folder, mode_of(&folder) | 0o2770);
        for entry in fs_err::read_dir(&folder).expect("read") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                mode(&path, mode_of(&path) | 0o660);
            }
        }
    }
}

#[test]
fn in_a_folder_for_everybody_each_user_has_one() {
    let Some(cluster) = Cluster::new("in_a_folder_for_everybody_each_user_has_one") else { return };
    // An emptyDir, and a folder like /tmp.
    for (name, bits) in [("empty-dir", 0o777), ("tmp", 0o1777)] {
        let volume = cluster.volume(name, 0, bits);
        for who in [(1000, 1000), (1001, 1000), (0, 0)] {
            cluster.start(who, &volume, "never", &[]).quiet(1);
            cluster.start(who, &volume, "frozen", &[]).quiet(0);
            let own = volume.join(format!("uid-{}", who.0));
            assert_eq!((mode_of(&own) & 0o777, fs_err::metadata(&own).expect("there").uid()), (0o700, who.0));
        }
        assert_eq!(mode_of(&volume), bits);
        assert_eq!(fs_err::read_dir(&volume).expect("read").count(), 3, "nothing lies beside the users' folders");
        // What another user has put in the place of one's own is not used.
        let (planted, theirs) = (volume.join("uid-1002"), volume.join("theirs"));
        fs_err::create_dir(&planted).expect("made");
        chown(&planted, Some(1000), Some(1000)).expect("given");
        cluster.start((1002, 1000), &volume, "never", &[]).warned(&["uid-1002", "belongs to another user (1000"]);
        fs_err::create_dir(&theirs).expect("made");
        chown(&theirs, Some(1003), Some(1000)).expect("given");
        mode(&theirs, 0o700);
        symlink(&theirs, volume.join("uid-1003")).expect("linked");
        cluster.start((1003, 1000), &volume, "never", &[]).warned(&["uid-1003", "not a folder"]);
        assert_eq!(fs_err::read_dir(&theirs).expect("read").count(), 0);
        // One's own that others can write to is not used either, nor is another made in it.
        mode(&volume.join("uid-1001"), 0o777);
        cluster.start((1001, 1000), &volume, "never", &[]).warned(&["uid-1001", "others can write to it (mode 777)"]);
        assert!(!volume.join("uid-1001/uid-1001").exists());
        // `inspect` and `doctor` look where the engine does.
        let environment = [("ROPEJIT_CACHE_DIR", volume.to_str().expect("text"))];
        let own = volume.join("uid-1000").display().to_string();
        cluster.command((1000, 1000), &environment, &["inspect", "path"]).says(&[&own]);
        cluster.command((1000, 1000), &environment, &["inspect", "verify"]).says(&["entries 2, damaged 0"]);
        cluster.command((1000, 1000), &environment, &["doctor"]).says(&[&own, "owner 1000", "entries 2"]);
    }
}

#[test]
fn a_volume_that_is_given_to_a_group_at_every_mount() {
    let Some(cluster) = Cluster::new("a_volume_that_is_given_to_a_group_at_every_mount") else { return };
    let who = (1000, GROUP);
    let trusted = [("ROPEJIT_TRUST_GROUP", "2000")];
    let cures = ["fsGroupChangePolicy: OnRootMismatch", "subfolder", "ROPEJIT_TRUST_GROUP=2000"];
    for subfolder in [false, true] {
        let volume = |name: &str| cluster.volume(&format!("{name}-{subfolder}"), 0, 0o755);
        let cache = |volume: &Path| if subfolder { volume.join("ropejit") } else { volume.to_owned() };
        // The usual policy takes the folder away from its user: that costs a warning, not the start.
        let always = volume("always");
        mount(&always, false);
        cluster.start(who, &cache(&always), "never", &[]).quiet(1);
        mount(&always, false);
        cluster.start(who, &cache(&always), "never", &[]).warned(&cures);
        let strict = cluster.start(who, &cache(&always), "never", &[("ROPEJIT_STRICT", "1")]);
        assert_eq!(strict.code, 1, "{}", strict.stderr);
        strict.says(&cures);
        let environment = [("ROPEJIT_CACHE_DIR", &*cache(&always).display().to_string())];
        let doctor = cluster.command(who, &environment, &["doctor", "--require", "cache"]);
        assert_eq!(doctor.code, 1);
        doctor.says(&cures);
        // Each cure is one.
        let once = volume("once");
        for compiles in [1, 0, 0] {
            mount(&once, true);
            cluster.start(who, &cache(&once), if compiles > 0 { "never" } else { "frozen" }, &[]).quiet(compiles);
        }
        let group = volume("group");
        for compiles in [1, 0, 0] {
            mount(&group, false);
            cluster.start(who, &cache(&group), if compiles > 0 { "never" } else { "frozen" }, &trusted).quiet(compiles);
        }
        // Another group is another matter.
        let other = [("ROPEJIT_TRUST_GROUP", "2001")];
        cluster.start(who, &cache(&group), "never", &other).warned(&["others can write to it", "group 2000"]);
        mode(&cache(&group), 0o2777);
        cluster
            .start(who, &cache(&group).join("v1/.."), "never", &trusted)
            .warned(&["others can write to it (mode 2777)"]);
    }
}

/// A layer that root has made for itself: nothing is missing in it, and the way out is not another prewarm.
#[test]
fn a_layer_that_may_not_be_read() {
    let Some(cluster) = Cluster::new("a_layer_that_may_not_be_read") else { return };
    let layer = cluster.volume("layer", 0, 0o700);
    cluster.start((0, 0), &layer, "never", &[]).quiet(1);
    let path = [("ROPEJIT_CACHE_PATH", layer.to_str().expect("text"))];
    let home = cluster.volume("home", 0, 0o777);
    let repair = format!("hint: chmod -R a+rX '{}'", layer.display());
    let frozen = cluster.start((1000, 1000), &home, "frozen", &path);
    assert_eq!(frozen.code, 1);
    frozen.says(&["cannot be opened: Permission denied", &repair]);
    let doctor = cluster.command((1000, 1000), &path, &["doctor", "--require", "cache-path"]);
    assert_eq!(doctor.code, 1);
    doctor.says(&[&repair, "or set ROPEJIT_CACHE_PATH to another folder"]);
    let given = Command::new("chmod").args(["-R", "a+rX"]).arg(&layer).status();
    assert!(given.expect("started").success());
    cluster.start((1000, 1000), &home, "frozen", &path).quiet(0);
}

#[test]
fn a_random_user_of_group_0() {
    let Some(cluster) = Cluster::new("a_random_user_of_group_0") else { return };
    let who = (1_000_650_000, 0);
    // A folder of the image that group 0 may write to, as OpenShift asks of images.
    let volume = cluster.volume("image", 0, 0o775);
    cluster.start(who, &volume, "never", &[]).quiet(1);
    cluster.start(who, &volume, "frozen", &[]).quiet(0);
    // A layer that was made in the image, and given to the group as all of it is.
    let layer = cluster.volume("layer", 0, 0o700);
    cluster.start((0, 0), &layer, "never", &[]).quiet(1);
    let given = Command::new("chmod").args(["-R", "g=u"]).arg(&layer).status();
    assert!(given.expect("started").success());
    let home = cluster.volume("home", 0, 0o777);
    let path = [("ROPEJIT_CACHE_PATH", layer.to_str().expect("text"))];
    let passed_over = cluster.start(who, &home, "never", &path);
    assert_eq!((passed_over.code, passed_over.warnings.len(), passed_over.stat("compiles")), (0, 1, 1));
    passed_over.says(&["passed over", layer.to_str().expect("text"), "ROPEJIT_TRUST_GROUP=0"]);
    let home = cluster.volume("other-home", 0, 0o777);
    let doctor = |more: &[(&str, &str)]| {
        let cache = [("ROPEJIT_CACHE_DIR", home.to_str().expect("text"))];
        cluster.command(who, &[&cache, &path, more].concat(), &["doctor", "--require", "cache-path"])
    };
    let refused = doctor(&[]);
    assert_eq!(refused.code, 1, "{}", refused.stdout);
    refused.says(&["no       cache_path", "others can write to it (mode 770, group 0)"]);
    let frozen = cluster.start(who, &home, "frozen", &path);
    assert_eq!(frozen.code, 1);
    frozen.says(&["not in the cache (", home.to_str().expect("text"), layer.to_str().expect("text"), "refused"]);
    let trusted = [path[0], ("ROPEJIT_TRUST_GROUP", "0")];
    cluster.start(who, &home, "frozen", &trusted).quiet(0);
    let passes = doctor(&trusted[1..]);
    assert_eq!(passes.code, 0, "{}", passes.stdout);
    passes.says(&["ok       cache_path", "owner 0, group 0, mode 770, entries 2"]);
}
