//! Processes that are killed at every step of publishing, sweeping and tuning, and at any time.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use ropejit::store::claim::Claim;
use ropejit::store::disk::Disk;
use ropejit::store::{Lookup, Store};

use super::{ended, entry, process, scratch, sound};

/// A C++ compiler that remembers what it has compiled: killing a process hundreds of times must not take an hour.
const COMPILER: &str = r#"#!/bin/sh
for word; do
    if [ "$before" = -o ]; then out=$word; fi
    before=$word
done
known=$(dirname "$0")/$(cksum < "$before" | tr ' ' -)
if [ ! -f "$known" ]; then
    c++ "$@" || exit 1
    cp "$out" "$known.$$" && mv "$known.$$" "$known"
else
    cp "$known" "$out"
fi
"#;

fn compiler(folder: &Path) -> PathBuf {
    let path = folder.join("remembering-c++");
    fs_err::write(&path, COMPILER).expect("written");
    // Whatever the umask is: a compiler that others can change is not run.
    for own in [folder, &path] {
        fs_err::set_permissions(own, std::fs::Permissions::from_mode(0o700)).expect("set");
    }
    path
}

#[test]
fn killed_at_every_step_of_publishing_and_sweeping() {
    let mut kills = 0;
    // Nothing there; an older entry of the same key; one that is damaged; the leftovers of others.
    for before in ["nothing", "old", "damaged", "leftovers"] {
        for job in ["put", "gc"] {
            for at in 0.. {
                let folder = scratch();
                let root = folder.path().join("cache");
                let disk = Disk::open(&root).expect("opens");
                let (old, new, other) = (entry("a", 1), entry("a", 2), entry("b", 3));
                disk.put(&other).expect("kept");
                let path = disk.path(new.kind, new.key);
                match before {
                    "nothing" => {}
                    "leftovers" => {
                        fs_err::write(root.join("v1/tmp/left"), "half").expect("written");
                        fs_err::create_dir(root.join("v1/lock")).expect("made");
                        fs_err::write(root.join("v1/lock/left"), "").expect("written");
                        fs_err::create_dir(root.join("v0")).expect("made");
                        fs_err::write(root.join("v0/old"), "old").expect("written");
                    }
                    _ => disk.put(&old).expect("kept"),
                }
                if before == "damaged" {
                    fs_err::write(&path, &old.encode()[..300]).expect("written");
                }
                drop(disk); // uses nothing any more
                let over = ended(&process(&root, job, "kill", at).output().expect("started"));
                kills += u64::from(!over);
                let disk = Disk::open(&root).expect("opens");
                let found = disk.get(new.kind, new.key);
                let fine = match &found {
                    Lookup::Hit(e) if over && job == "put" => *e == new,
                    Lookup::Hit(e) => *e == new && job == "put" || *e == old && before == "old",
                    Lookup::Miss(_) => before != "old" && !(over && job == "put"),
                };
                assert!(fine, "{before}, {job} killed at step {at}: {found:?}");
                assert!(matches!(disk.get(other.kind, other.key), Lookup::Hit(e) if e == other));
                // The dead hold nothing: the next one gets on with it.
                let Claim::Mine(turn) = disk.claim(new.kind, new.key) else { panic!("a dead process holds a lock") };
                disk.put(&new).expect("kept");
                drop(turn);
                assert!(matches!(disk.get(new.kind, new.key), Lookup::Hit(e) if e == new));
                sound(&root, &format!("{before}, {job} killed at step {at}"));
                if over {
                    break;
                }
            }
        }
    }
    say!("publishing and sweeping: {kills} kills, no torn entry, nothing left");
    assert!(kills >= 60, "{kills}");
}

#[test]
fn killed_at_every_step_of_tuning() {
    let shared = tempfile::tempdir().expect("a folder");
    let compiler = compiler(shared.path());
    let tune = |root: &Path, fault: &str, at: u64| {
        let mut command = process(root, "tune", fault, at);
        ended(&command.env("CXX", &compiler).env("TMPDIR", shared.path()).output().expect("started"))
    };
    let started = Instant::now();
    let mut kills = 0;
    for at in 0.. {
        let folder = scratch();
        let root = folder.path().join("cache");
        let over = tune(&root, "kill", at);
        if over {
            break;
        }
        kills += 1;
        // The next process finishes the work, is right, and leaves a complete cache.
        assert!(tune(&root, "nothing", 0));
        sound(&root, &format!("tuning killed at step {at}"));
    }
    say!("tuning: {kills} kills at steps, each resumed, no wrong bit, in {:?}", started.elapsed());
    assert!(kills >= 60, "{kills}");
}

#[test]
fn killed_at_any_time() {
    const KILLS: u32 = 80;
    let shared = tempfile::tempdir().expect("a folder");
    let compiler = compiler(shared.path());
    let command = |root: &Path, words: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ropejit"));
        command.args(words).args(["--head-dim", "64", "--num-heads", "4", "--num-kv-heads", "2", "--tokens", "8"]);
        command.env("ROPEJIT_CACHE_DIR", root).env("ROPEJIT_DEVICE", "host").env("TMPDIR", shared.path());
        command.env_remove("ROPEJIT_TUNING").env("CXX", &compiler).stdin(Stdio::null()).stdout(Stdio::null());
        command
    };
    let whole = |root: &Path| {
        let started = Instant::now();
        let output = command(root, &["run", "--tuning", "blocking"]).stderr(Stdio::piped()).output().expect("started");
        // `run` compares its result with the reference.
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        started.elapsed()
    };
    let fresh = || scratch();
    whole(fresh().path()); // compiles all there is
    let once = whole(fresh().path());
    let (mut kills, mut tries, mut span) = (0, 0, once);
    while kills < KILLS {
        let folder = fresh();
        let root = folder.path().join("cache");
        // Moments spread over the life of a process, which is shorter when the machine is less busy.
        let delay = span.mul_f64((f64::from(tries) * 0.618_034).fract());
        let mut child = command(&root, &["prewarm"]).stderr(Stdio::null()).spawn().expect("started");
        std::thread::sleep(delay);
        let alive = child.try_wait().expect("waited").is_none();
        child.kill().expect("killed");
        child.wait().expect("waited");
        kills += u32::from(alive);
        span = if alive { span.mul_f64(1.02) } else { span.mul_f64(0.9) };
        tries += 1;
        assert!(tries < 10 * KILLS, "{kills} kills in {tries} tries");
        whole(&root);
        sound(&root, &format!("killed after {delay:?}"));
    }
    say!("at any time: {kills} kills of a prewarm within {span:?}, no wrong result, nothing left");
}
