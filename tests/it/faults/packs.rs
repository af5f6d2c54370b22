//! Packs that are installed while processes die, disks fill up and others install the same: whole, or not there.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Barrier;
use std::time::{Duration, Instant};
use std::{io, thread};

use ropejit::remote::{Accept, Pack, Target};
use ropejit::store::disk::Disk;
use ropejit::store::{Files, Kind, Store as _};
use ropejit::{Error, ErrorKind};

use super::{Fault, Faulty, ended, process, scratch};
use crate::packs::{files, installed, pack_of, quiet};

/// The job of a child: installs `out.pack` of a folder into `into` there.
pub fn install(folder: &Path, system: &dyn Files) -> Result<(), Error> {
    let pack = Pack::open(&folder.join("out.pack"))?;
    pack.install_with(system, &folder.join("into"), Accept::Unsigned, Target::here(None), &quiet).map(drop)
}

/// Nothing is read of it, or all of it.
#[track_caller]
fn whole_or_not_there(folder: &Path, what: &str) -> bool {
    let all = installed(&folder.join("into"));
    for layer in &all {
        let pack = Pack::open(&folder.join("out.pack")).expect("opens");
        let disk = Disk::read_only(layer).expect("trusted");
        let sound = |kind| disk.list(kind).expect("listed").iter().filter(|l| l.entry.is_ok()).count();
        for kind in Kind::ALL {
            assert_eq!(sound(kind), pack.index().count(kind), "{what}");
        }
    }
    !all.is_empty()
}

/// What killed processes left is removed by a later installation, once it is old enough to be nobody's.
#[track_caller]
fn leaves_nothing(folder: &Path, what: &str) {
    let into = folder.join("into");
    for left in fs_err::read_dir(&into).into_iter().flatten().map(|entry| entry.expect("an entry").path()) {
        let before = std::time::SystemTime::now() - Duration::from_secs(2 * 60 * 60);
        std::fs::File::open(&left).and_then(|file| file.set_modified(before)).expect("set");
    }
    install(folder, &ropejit::store::System).unwrap_or_else(|e| panic!("{what}: {e}"));
    assert!(whole_or_not_there(folder, what), "{what}");
    let names: Vec<PathBuf> = fs_err::read_dir(&into).expect("read").map(|e| e.expect("an entry").path()).collect();
    assert_eq!(names, installed(&into), "{what}");
}

#[test]
fn killed_at_every_step_of_installing() {
    let (mut kills, mut after) = (0, 0);
    for at in 0.. {
        let folder = scratch();
        pack_of(folder.path(), true);
        let over = ended(&process(folder.path(), "install", "kill", at).output().expect("started"));
        let what = format!("installing, killed at step {at}");
        let there = whole_or_not_there(folder.path(), &what);
        assert!(there || !over, "{what}");
        after += u64::from(there && !over);
        leaves_nothing(folder.path(), &what);
        if over {
            break;
        }
        kills += 1;
    }
    say!("installing: {kills} kills at steps, {after} behind the rename, nothing half, nothing left");
    assert!(kills >= 30, "{kills}");
}

/// The command, killed at any time.
#[test]
fn the_command_killed_at_50_moments_of_installing() {
    let command = |folder: &Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ropejit"));
        command
            .args(["pack", "install", "--trust-unsigned"])
            .arg(folder.join("out.pack"))
            .arg("--into")
            .arg(folder.join("into"));
        command.env("ROPEJIT_DEVICE", "host").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    };
    let folder = scratch();
    pack_of(folder.path(), true);
    let times = (0..3).map(|_| {
        let started = Instant::now();
        let into = folder.path().join("into");
        let _ = fs_err::remove_dir_all(into);
        assert!(command(folder.path()).status().expect("started").success());
        started.elapsed()
    });
    let took = times.min().expect("three");
    let (mut killed, mut there) = (0, 0);
    for n in 0..50 {
        let folder = scratch();
        pack_of(folder.path(), true);
        let mut child = command(folder.path()).spawn().expect("started");
        thread::sleep(took * n / 50);
        child.kill().expect("killed");
        killed += u64::from(!child.wait().expect("ended").success());
        let what = format!("the command, killed at moment {n}");
        there += u64::from(whole_or_not_there(folder.path(), &what));
        leaves_nothing(folder.path(), &what);
    }
    say!("the command: {killed} of 50 killed before their end, {there} were installed by then, nothing half");
    assert!(killed > 0, "none was killed before its end"); // the first at once
}

#[test]
fn disks_that_refuse_from_any_step_on_install_nothing() {
    let mut refused = 0;
    for kind in [io::ErrorKind::StorageFull, io::ErrorKind::ReadOnlyFilesystem, io::ErrorKind::PermissionDenied] {
        for at in 0.. {
            let folder = scratch();
            pack_of(folder.path(), true);
            let done = install(folder.path(), Faulty::new(Fault::Refuse(kind), at).as_ref());
            let left: Vec<PathBuf> = fs_err::read_dir(folder.path().join("into"))
                .expect("read")
                .map(|e| e.expect("an entry").path())
                .collect();
            assert_eq!(left, installed(&folder.path().join("into")), "{kind} at {at}");
            whole_or_not_there(folder.path(), &format!("{kind} at {at}"));
            match done {
                Ok(()) => break,
                Err(e) => assert!(e.kind() == ErrorKind::Io && e.advice().is_some(), "{e}"),
            }
            refused += 1;
        }
    }
    say!("{refused} refused installations, nothing half, nothing left");
    assert!(refused >= 90, "{refused}");
}

#[test]
fn sixty_four_at_once_and_without_locks() {
    let folder = scratch();
    pack_of(folder.path(), true);
    let (many, start) = (64, Barrier::new(64));
    let first: usize = thread::scope(|scope| {
        let one = |n: usize| {
            let (folder, start) = (folder.path(), &start);
            scope.spawn(move || {
                let system = Faulty::new(if n.is_multiple_of(2) { Fault::NoLocks } else { Fault::Nothing }, 0);
                let pack = Pack::open(&folder.join("out.pack")).expect("opens");
                start.wait();
                let into = folder.join("into");
                let done = pack.install_with(system.as_ref(), &into, Accept::Unsigned, Target::here(None), &quiet);
                usize::from(!done.expect("installed").before)
            })
        };
        let all: Vec<_> = (0..many).map(one).collect();
        all.into_iter().map(|thread| thread.join().expect("no panic")).sum()
    });
    assert_eq!(first, 1, "one renames, the others find it there");
    assert!(whole_or_not_there(folder.path(), "64 at once"));
    leaves_nothing(folder.path(), "64 at once");
    assert!(files(&folder.path().join("into")).len() > 4);
}

#[test]
fn a_folder_that_a_living_process_writes_is_left_alone() {
    let folder = scratch();
    pack_of(folder.path(), true);
    let writing = folder.path().join("into/.installing-alive");
    fs_err::create_dir_all(&writing).expect("made");
    fs_err::set_permissions(folder.path().join("into"), PermissionsExt::from_mode(0o700)).expect("set");
    let held = std::fs::File::open(&writing).expect("opened");
    held.set_modified(std::time::SystemTime::UNIX_EPOCH).expect("set");
    held.try_lock().expect("locked");
    install(folder.path(), &ropejit::store::System).expect("installed");
    assert!(writing.exists());
    drop(held);
    leaves_nothing(folder.path(), "its writer died");
}
