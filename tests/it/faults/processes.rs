//! Many processes on one folder, processes that are stopped, and file systems without locks.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use ropejit::store::disk::Disk;
use ropejit::store::{Kind, Store};
use ropejit::{DeviceChoice, Engine, ErrorKind, Origin, Tuning};
use rustix::process::{Pid, WaitOptions, waitpid};
use serde_json::Value;

use super::{Fault, Faulty, leftovers, on, process, scratch, sound, with, works};

const PROCESSES: usize = 64;

fn spawn(root: &Path, tuning: &str, more: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ropejit"));
    let numbers = ["--head-dim", "64", "--num-heads", "4", "--num-kv-heads", "2", "--tokens", "8"];
    command.arg("run").args(numbers).args(["--tuning", tuning, "--json"]).args(more);
    command.env("ROPEJIT_CACHE_DIR", root).env("ROPEJIT_DEVICE", "host").env_remove("ROPEJIT_CACHE_PATH");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().expect("started")
}

/// The sum of a counter over all processes; each has compared its result with the reference.
fn sum(outputs: &[Output], counter: &str) -> u64 {
    let count = |output: &Output| {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        report["stats"][counter].as_u64().expect("a count")
    };
    outputs.iter().map(count).sum()
}

#[test]
fn sixty_four_processes_on_an_empty_cache() {
    for (tuning, more) in [("blocking", &[][..]), ("background", &["--wait-tuned"])] {
        let folder = scratch();
        let started = Instant::now();
        let children: Vec<Child> = (0..PROCESSES).map(|_| spawn(folder.path(), tuning, more)).collect();
        let outputs: Vec<Output> = children.into_iter().map(|c| c.wait_with_output().expect("ended")).collect();
        let took = started.elapsed();
        let artifacts = Disk::open(folder.path()).expect("opens").list(Kind::Artifact).expect("listed").len() as u64;
        let [compiles, tunings, waited] = ["compiles", "tunings", "waited"].map(|name| sum(&outputs, name));
        say!(
            "{PROCESSES} processes, {tuning}: artifacts {artifacts}, compiles {compiles}, tunings {tunings}, waits {waited}, {took:?}"
        );
        assert!(artifacts > 1);
        assert_eq!((compiles, tunings), (artifacts, 1));
        sound(folder.path(), tuning);
    }
}

/// A process that stops while it holds a lock costs others some patience, no more.
#[test]
fn a_lock_held_by_a_stopped_process() {
    let folder = scratch();
    let root = folder.path().join("cache");
    // Stops before one of the steps of making its artifact, with the lock in its hands.
    let mut child = process(&root, "never", "stop", 7).stdout(Stdio::null()).spawn().expect("started");
    let pid = Pid::from_child(&child);
    let stopped = waitpid(Some(pid), WaitOptions::UNTRACED).expect("waited").expect("a state");
    assert!(stopped.1.stopped(), "{stopped:?}");
    assert_eq!(fs_err::read_dir(root.join("v1/lock")).expect("there").count(), 1, "it holds a lock");
    let (engine, started) = (on(&root, Tuning::Never), Instant::now());
    assert_eq!(works(&engine), Origin::Compiled);
    let waited = started.elapsed();
    assert_eq!((engine.stats().waited, engine.stats().compiles), (1, 1));
    // What has been made is there for others, at once.
    let started = Instant::now();
    assert_eq!(works(&on(&root, Tuning::Frozen)), Origin::Disk);
    say!("a stopped owner: the work is doubled after {waited:?}, a third process answers in {:?}", started.elapsed());
    // Its lock and its files are not taken for leftovers while it lives.
    let disk = Disk::open(&root).expect("opens");
    assert_eq!(disk.gc().expect("swept").locks, 0);
    child.kill().expect("killed");
    child.wait().expect("waited");
    assert_eq!(disk.gc().expect("swept").locks, 1);
    sound(&root, "after a stopped process");
}

/// Who waits for a process that dies goes on at once.
#[test]
fn a_lock_dies_with_its_owner() {
    let folder = scratch();
    let root = folder.path().join("cache");
    let mut child = process(&root, "never", "stop", 7).stdout(Stdio::null()).spawn().expect("started");
    let stopped = waitpid(Some(Pid::from_child(&child)), WaitOptions::UNTRACED).expect("waited").expect("a state");
    assert!(stopped.1.stopped(), "{stopped:?}");
    let files = Faulty::new(Fault::Nothing, 0);
    let engine = with(&root, &files, Tuning::Never);
    let (origin, waited) = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| works(&engine));
        // It has tried for the lock, and tries again.
        let tried = files.locks.load(Relaxed);
        while files.locks.load(Relaxed) < tried + 3 {
            std::thread::sleep(Duration::from_millis(2));
        }
        let killed = Instant::now();
        child.kill().expect("killed");
        child.wait().expect("waited");
        (waiting.join().expect("answers"), killed.elapsed())
    });
    assert_eq!((origin, engine.stats().waited), (Origin::Compiled, 1));
    say!("an owner that dies: the next one has compiled {waited:?} later");
    // It got the lock of the dead owner, and so removed it: who has waited for too long works without, and leaves it there.
    assert_eq!(fs_err::read_dir(root.join("v1/lock")).expect("there").count(), 0);
    drop(engine);
    sound(&root, "after a dead owner");
}

#[test]
fn without_locks_work_is_doubled_and_nothing_breaks() {
    let folder = scratch();
    let engines: Vec<Engine> =
        (0..4).map(|_| with(folder.path(), &Faulty::new(Fault::NoLocks, 0), Tuning::BLOCKING)).collect();
    std::thread::scope(|scope| {
        for engine in &engines {
            scope.spawn(|| works(engine));
        }
    });
    assert!(engines.iter().map(|e| e.stats().tunings).sum::<u64>() >= 1);
    assert_eq!(engines.iter().map(|e| e.stats().failed_writes).sum::<u64>(), 0);
    drop(engines);
    assert_eq!(leftovers(folder.path()).len(), 0);
    assert_eq!(works(&on(folder.path(), Tuning::Frozen)), Origin::Disk);
}

/// A tuning that its budget always cuts after one round comes to its end, a round a time.
#[test]
fn a_tuning_that_is_cut_again_and_again_ends() {
    let folder = scratch();
    let budget = Duration::ZERO;
    let runs = (1..100)
        .find(|_| {
            let engine = on(folder.path(), Tuning::Blocking { budget });
            works(&engine);
            engine.stats().tunings == 1
        })
        .expect("ends");
    say!("cut after every round, a tuning has ended after {runs} runs");
    assert!((2..=16).contains(&runs), "{runs}");
    assert_eq!(works(&on(folder.path(), Tuning::BLOCKING)), Origin::Disk);
}

/// A compiler that fails is asked once, not at every call, and its failure is told once.
#[test]
fn a_failing_compile_is_remembered_and_told_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let compiler = folder.path().join("broken-c++");
    let calls = folder.path().join("calls");
    let version = "if [ \"$1\" = --version ]; then echo 'c++ (broken) 1'; exit; fi";
    let script = format!("#!/bin/sh\n{version}\necho call >> {}\necho broken >&2\nexit 1\n", calls.display());
    fs_err::write(&compiler, script).expect("written");
    for own in [folder.path(), &compiler] {
        fs_err::set_permissions(own, std::fs::Permissions::from_mode(0o700)).expect("set");
    }
    let output = process(&folder.path().join("cache"), "broken", "nothing", 0).env("CXX", &compiler).output();
    let output = output.expect("started");
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(fs_err::read_to_string(&calls).expect("asked").lines().count(), 1);
}

/// The child's part of it: an engine whose compiler is broken.
pub fn broken(root: &Path) {
    let engine =
        Engine::builder().device(DeviceChoice::Host).cache_dir(root).tuning(Tuning::Never).build().expect("opens");
    let spec = super::small().spec;
    // Several buckets of a spec have one source.
    for tokens in [1, 8, 64, 512] {
        let failed =
            engine.prewarm(std::slice::from_ref(&spec), &[tokens], false, false).expect_err("cannot be compiled");
        assert_eq!(failed.kind(), ErrorKind::Compile);
        assert!(failed.to_string().contains("broken"), "{failed}");
    }
    assert_eq!(works(&engine), Origin::Reference);
    assert_eq!(engine.stats().compiles, 0);
}
