//! Folders that are full, read-only, somebody else's, or one of several layers.

use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use ropejit::store::disk::Disk;
use ropejit::store::layers::{Layers, Places};
use ropejit::store::{Kind, Lookup, Store};
use ropejit::{DeviceChoice, Engine, ErrorKind, Origin, Tuning};
use serde_json::Value;

use super::{Fault, Faulty, entry, leftovers, on, scratch, skipped, sound, with, works};

/// A small file system in memory, mounted on a folder.
struct Mounted(PathBuf);

impl Mounted {
    /// `None`, and a loud word, where this process may not mount.
    fn new(at: &Path, bytes: u64, test: &str) -> Option<Self> {
        fs_err::create_dir_all(at).expect("made");
        let options = format!("size={bytes},mode=700");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(at).output();
        if mounted.is_ok_and(|o| o.status.success()) {
            return Some(Self(at.to_owned()));
        }
        skipped(&format!("{test} on a real file system: this user cannot mount one; the injected fault was tried"));
        None
    }

    fn read_only(&self) {
        let done = Command::new("mount").args(["-o", "remount,ro"]).arg(&self.0).status();
        assert!(done.expect("started").success());
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

/// `ropejit run` of the small case, and the warnings it prints.
fn run(environment: &[(&str, Option<&str>)], tuning: &str) -> (Value, Vec<String>) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ropejit"));
    let numbers = ["--head-dim", "64", "--num-heads", "4", "--num-kv-heads", "2", "--tokens", "8"];
    command.arg("run").args(numbers).args(["--tuning", tuning, "--json"]).stdin(Stdio::null());
    command.env("ROPEJIT_DEVICE", "host").env_remove("ROPEJIT_CACHE_DIR").env_remove("ROPEJIT_CACHE_PATH");
    for (name, value) in environment {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let output = command.output().expect("started");
    let stderr = String::from_utf8(output.stderr).expect("text");
    assert!(output.status.success(), "{stderr}");
    let warnings = stderr.lines().filter(|l| l.contains("WARN")).map(String::from).collect();
    (serde_json::from_slice(&output.stdout).expect("JSON"), warnings)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("text")
}

/// At every step from which on nothing can be made: right results, nothing torn, nothing left.
#[test]
fn disks_that_refuse_from_any_step_on() {
    let mut refused = 0;
    for kind in [io::ErrorKind::StorageFull, io::ErrorKind::ReadOnlyFilesystem, io::ErrorKind::PermissionDenied] {
        for at in 0.. {
            let folder = scratch();
            let (old, new) = (entry("a", 1), entry("a", 2));
            Disk::open(folder.path()).expect("opens").put(&old).expect("kept");
            let disk = Disk::open(folder.path()).expect("opens").files(Faulty::new(Fault::Refuse(kind), at));
            let done = disk.put(&new);
            let Lookup::Hit(found) = disk.get(new.kind, new.key) else { panic!("{kind} at {at}: the entry is gone") };
            match &done {
                Ok(()) => assert_eq!(found, new),
                Err(e) => {
                    assert_eq!(found, old);
                    assert!(e.kind() == ErrorKind::Io && e.advice().is_some() && e.subject().is_some(), "{e}");
                    refused += 1;
                }
            }
            drop(disk);
            assert_eq!(leftovers(folder.path()), Vec::<PathBuf>::new(), "{kind} at {at}");
            sound(folder.path(), "after a refusal");
            if done.is_ok() {
                break;
            }
        }
    }
    let folder = scratch();
    let engine = with(folder.path(), &Faulty::new(Fault::Refuse(io::ErrorKind::StorageFull), 0), Tuning::BLOCKING);
    assert_eq!(works(&engine), Origin::Tuned);
    assert!(engine.stats().failed_writes > 1);
    say!("{refused} refused writes, each old entry whole, nothing left");
}

#[test]
fn a_full_disk() {
    let folder = scratch();
    let Some(mounted) = Mounted::new(&folder.path().join("full"), 16 << 10, "a full disk") else { return };
    let cache = mounted.0.join("cache");
    for _ in 0..2 {
        let (report, warnings) = run(&[("ROPEJIT_CACHE_DIR", Some(text(&cache)))], "blocking");
        assert_eq!(report["tuned"], true);
        assert!(report["stats"]["failed_writes"].as_u64() > Some(0), "{report}");
        assert_eq!(warnings.len(), 1, "once: {warnings:#?}");
        assert!(warnings[0].contains("cannot be kept"), "{warnings:?}");
        assert_eq!(leftovers(&cache), Vec::<PathBuf>::new());
    }
    sound(&cache, "a full disk");
}

#[test]
fn a_read_only_folder() {
    let folder = scratch();
    let Some(mounted) = Mounted::new(&folder.path().join("fixed"), 4 << 20, "a read-only folder") else { return };
    let (empty, full) = (mounted.0.join("empty"), mounted.0.join("full"));
    on(&empty, Tuning::Never);
    works(&on(&full, Tuning::Never));
    mounted.read_only();
    // What is there is used, without a word.
    let (report, warnings) = run(&[("ROPEJIT_CACHE_DIR", Some(text(&full)))], "frozen");
    assert_eq!((report["stats"]["compiles"].as_u64(), warnings.len()), (Some(0), 0), "{warnings:#?}");
    // What is not is made, and it is said once that it is not kept.
    for folder in [empty, mounted.0.join("missing")] {
        let (report, warnings) = run(&[("ROPEJIT_CACHE_DIR", Some(text(&folder)))], "blocking");
        assert_eq!((&report["tuned"], warnings.len()), (&Value::Bool(true), 1), "{warnings:#?}");
        assert!(warnings[0].contains(text(&folder)), "{warnings:?}");
    }
}

#[test]
fn no_home_is_said_once_and_layers_serve_on() {
    let folder = scratch();
    works(&on(folder.path(), Tuning::Never));
    // A user without an entry in the list of users has no home but HOME; root has one.
    let none = [("HOME", Some("/nonexistent/home")), ("XDG_CACHE_HOME", Some("/proc/nothing"))];
    let (report, warnings) = run(&none, "never");
    assert_eq!((report["stats"]["compiles"].as_u64(), warnings.len()), (Some(1), 1), "{warnings:#?}");
    let layered = [&none[..], &[("ROPEJIT_CACHE_PATH", Some(text(folder.path())))]].concat();
    // With nothing to keep there is nothing to say.
    let (report, warnings) = run(&layered, "frozen");
    assert_eq!((report["stats"]["compiles"].as_u64(), warnings.len()), (Some(0), 0), "{warnings:#?}");
    // A tuning is.
    let (report, warnings) = run(&layered, "blocking");
    assert_eq!((report["stats"]["tunings"].as_u64(), warnings.len()), (Some(1), 1), "{warnings:#?}");
}

#[test]
fn a_folder_of_another_user() {
    let folder = scratch();
    let root = folder.path().join("cache");
    works(&on(&root, Tuning::Never));
    let disk = Disk::open(&root).expect("opens");
    let e = entry("a", 1);
    disk.put(&e).expect("kept");
    let path = disk.path(e.kind, e.key);
    if chown(&path, Some(12345), None).is_err() {
        return skipped("a folder of another user: this user cannot give files away");
    }
    let Lookup::Miss(miss) = disk.get(e.kind, e.key) else { panic!("a file of another user is used") };
    assert!(miss.to_string().contains("belongs to another user (12345"), "{miss}");
    for at in ["v1", ""] {
        chown(root.join(at), Some(12345), None).expect("given away");
        for refused in [Disk::open(&root).err(), Disk::read_only(&root).err()] {
            let e = refused.expect("refused");
            assert_eq!(e.kind(), ErrorKind::UntrustedCache);
            assert!(e.advice().is_some_and(|hint| hint.contains("chown -R")), "{e}");
        }
    }
    let builder = || Engine::builder().device(DeviceChoice::Host).cache_dir(&root).cache_path([&root]);
    assert_eq!(builder().strict(true).build().err().expect("refused").kind(), ErrorKind::UntrustedCache);
    // Unless that is asked for, a program runs on without it.
    let engine = builder().tuning(Tuning::Never).build().expect("opens");
    assert_eq!((works(&engine), engine.store().root()), (Origin::Compiled, None));
    assert!(engine.stats().failed_writes > 0, "and knows that nothing is kept");
}

#[test]
fn layers_are_read_from_the_top_and_written_at_the_top() {
    let folder = scratch();
    let (user, first, second) = (folder.path().join("user"), folder.path().join("1"), folder.path().join("2"));
    let [a, a_below, b] = [entry("a", 1), entry("a", 2), entry("b", 3)];
    Disk::open(&first).expect("opens").put(&a_below).expect("kept");
    Disk::open(&second).expect("opens").put(&b).expect("kept");
    let missing = folder.path().join("missing");
    let places = Places {
        user: Some(user.clone()),
        read_only: vec![missing.clone(), first.clone(), second],
        ..Places::default()
    };
    let layers = Layers::open(&places).expect("opens");
    assert!(!missing.exists(), "a folder to read is not made");
    let hit = |e| match layers.get(Kind::Artifact, e) {
        Lookup::Hit(entry) => entry,
        Lookup::Miss(miss) => panic!("{miss}"),
    };
    assert_eq!((hit(a.key), hit(b.key)), (a_below.clone(), b.clone()));
    assert!(layers.path(a.kind, a.key).starts_with(&first));
    layers.put(&a).expect("kept");
    assert_eq!(hit(a.key), a);
    assert!(layers.path(a.kind, a.key).starts_with(&user));
    // A damaged entry above is no reason not to use a sound one below, which then takes its place.
    fs_err::write(layers.path(a.kind, a.key), "damaged").expect("written");
    assert_eq!(hit(a.key), a_below);
    assert!(matches!(Disk::open(&user).expect("opens").get(a.kind, a.key), Lookup::Hit(e) if e == a_below));
    assert_eq!(layers.list(Kind::Artifact).expect("listed").len(), 3);
    // Of heads no digest is checked: they are not read whole, in layers either.
    let path = layers.path(b.kind, b.key);
    let mut flipped = b.encode();
    flipped[200] ^= 1;
    fs_err::write(&path, &flipped).expect("written");
    let (whole, heads) = (layers.list(Kind::Artifact).expect("listed"), layers.heads(Kind::Artifact).expect("listed"));
    assert_eq!(whole.iter().filter(|l| l.entry.is_err()).count(), 1);
    assert_eq!(heads.iter().filter(|l| l.entry.is_err()).count(), 0);
    fs_err::write(&path, b.encode()).expect("written");
    assert!(layers.remove(a.kind, a.key).expect("removed"));
    assert!(!layers.remove(b.kind, b.key).expect("only above"), "a layer below is only read");
    fs_err::set_permissions(&first, std::fs::Permissions::from_mode(0o777)).expect("set");
    let refused = Layers::open(&Places { strict: true, ..places.clone() }).err().expect("refused");
    assert_eq!(refused.kind(), ErrorKind::UntrustedCache);
    // It is passed over, and what is searched says of each folder what became of it.
    let layers = Layers::open(&places).expect("opens");
    assert!(
        matches!(layers.get(a.kind, a.key), Lookup::Miss(_)) && matches!(layers.get(b.kind, b.key), Lookup::Hit(_))
    );
    let searched = layers.searched();
    let parts: Vec<&str> = searched.split("; ").collect();
    assert_eq!(parts.len(), 4, "{searched}");
    assert!(parts[0] == text(&user) && parts[1].contains("missing") && parts[3].ends_with("/2"), "{searched}");
    assert!(parts[2].contains("others can write to it"), "{searched}");
}

/// What root prepared in an image serves a user who can write nowhere.
#[test]
fn a_layer_of_roots_serves_another_user() {
    let folder = tempfile::tempdir().expect("a folder");
    if fs_err::metadata(folder.path()).expect("there").uid() != 0 {
        return skipped("a layer of root's serves another user: this is not root");
    }
    let open = |path: &Path| fs_err::set_permissions(path, std::fs::Permissions::from_mode(0o755)).expect("set");
    let layer = folder.path().join("layer");
    works(&on(&layer, Tuning::Never));
    let copied = Command::new("chmod").args(["-R", "a+rX"]).arg(&layer).status().expect("started");
    assert!(copied.success());
    open(folder.path());
    let binary = folder.path().join("ropejit");
    fs_err::copy(env!("CARGO_BIN_EXE_ropejit"), &binary).expect("copied");
    open(&binary);
    let output = Command::new(&binary)
        .args(["run", "--head-dim", "64", "--num-heads", "4", "--num-kv-heads", "2", "--tokens", "8", "--json"])
        .env_clear()
        .envs([("ROPEJIT_DEVICE", "host"), ("ROPEJIT_TUNING", "frozen"), ("HOME", "/nonexistent")])
        .env("ROPEJIT_CACHE_PATH", &layer)
        .uid(65534)
        .gid(65534)
        .output();
    let output = match output {
        Ok(output) => output,
        Err(e) => return skipped(&format!("a layer of root's serves another user: {e}")),
    };
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((&report["stats"]["compiles"], &report["stats"]["disk_hits"]), (&0.into(), &1.into()));
    assert_eq!(stderr, "");
}
