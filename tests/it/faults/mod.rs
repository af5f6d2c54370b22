//! What happens to the disk, to processes and to clocks must cost no more than work done again: never a wrong result, a
//! crash or a file that stays behind.
//!
//! Operations on files go through [`Files`], so a test puts a fault in at any step of them. A process that dies is a child
//! of this binary: it runs [`child`], which does nothing in an ordinary run.

/// Says what was counted, past the harness, which shows nothing of tests that pass.
macro_rules! say {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($text)*);
    }};
}

mod damage;
mod kills;
mod kubernetes;
mod many;
mod packs;
mod places;
mod processes;
mod templates;
mod upkeep;

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use ropejit::jit::KeyFields;
use ropejit::store::claim::Claim;
use ropejit::store::disk::Disk;
use ropejit::store::{Entry, Files, Kind, Lookup, Store, System};
use ropejit::{DType, DeviceChoice, Engine, Origin, RopeSpec, Tuning};
use rustix::process::{Signal, getpid, kill_process};
use tempfile::TempDir;

use crate::cases::{Case, Data, assert_bits, run};

/// What happens at a step.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    Nothing,
    Kill,
    /// The process stops, with all that it holds.
    Stop,
    /// From the step on, nothing can be made or written.
    Refuse(io::ErrorKind),
    /// Locks are not supported.
    NoLocks,
}

/// The system's files, with a fault at one step; a write is two steps, with half of the bytes between them.
struct Faulty {
    fault: Fault,
    at: u64,
    steps: AtomicU64,
    opens: AtomicU64,
    locks: AtomicU64,
}

impl Faulty {
    fn new(fault: Fault, at: u64) -> Arc<Self> {
        Arc::new(Self { fault, at, steps: AtomicU64::new(0), opens: AtomicU64::new(0), locks: AtomicU64::new(0) })
    }

    fn step(&self) -> io::Result<()> {
        let step = self.steps.fetch_add(1, Relaxed);
        match self.fault {
            Fault::Kill if step == self.at => kill_process(getpid(), Signal::KILL)?,
            Fault::Stop if step == self.at => {
                kill_process(getpid(), Signal::STOP)?;
                loop {
                    std::thread::park(); // another thread may have taken the signal
                }
            }
            Fault::Refuse(kind) if step >= self.at => return Err(kind.into()),
            _ => {}
        }
        Ok(())
    }
}

impl Files for Faulty {
    fn open(&self, path: &Path) -> io::Result<File> {
        if !matches!(self.fault, Fault::Refuse(_)) {
            self.step()?; // a disk that is full can be read
        }
        let file = System.open(path)?;
        self.opens.fetch_add(1, Relaxed);
        Ok(file)
    }

    fn create(&self, path: &Path) -> io::Result<File> {
        self.step()?;
        System.create(path)
    }

    fn lock_file(&self, path: &Path) -> io::Result<File> {
        self.step()?;
        System.lock_file(path)
    }

    fn make_folder(&self, folder: &Path) -> io::Result<()> {
        self.step()?;
        System.make_folder(folder)
    }

    fn write(&self, file: &File, bytes: &[u8]) -> io::Result<()> {
        let (head, tail) = bytes.split_at(bytes.len() / 2);
        self.step()?;
        System.write(file, head)?;
        self.step()?;
        System.write(file, tail)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        self.step()?;
        System.sync(file)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.step()?;
        System.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        if !matches!(self.fault, Fault::Refuse(_)) {
            self.step()?; // room can be made on a full disk
        }
        System.remove(path)
    }

    fn lock(&self, file: &File, shared: bool) -> Result<(), TryLockError> {
        self.locks.fetch_add(1, Relaxed);
        if self.fault == Fault::NoLocks {
            return Err(TryLockError::Error(io::ErrorKind::Unsupported.into()));
        }
        if !matches!(self.fault, Fault::Refuse(_)) {
            self.step().map_err(TryLockError::Error)?;
        }
        System.lock(file, shared)
    }
}

/// An entry of this name; `age` tells one content from another.
#[allow(unsafe_code)]
fn entry(name: &str, age: u8) -> Entry {
    let key = KeyFields(vec![("name".into(), name.into())]).key();
    // SAFETY: nothing loads it.
    unsafe { Entry::artifact(key, b"{}".to_vec(), vec![age; 100], vec![age; 5000]) }
}

fn small() -> Case {
    Case::new(RopeSpec::new(DType::BF16, 64, 4, 2), 1, 5)
}

/// Runs the small case and compares every bit.
fn works(engine: &Engine) -> Origin {
    let (case, data) = (small(), Data::new(&small(), 1));
    let (origin, got) = run(engine, &case, &data).unwrap_or_else(|e| panic!("{e}"));
    assert_bits(&case, &got, &data.expected);
    origin
}

fn on(folder: &Path, tuning: Tuning) -> Engine {
    Engine::builder()
        .device(DeviceChoice::Host)
        .cache_dir(folder)
        .cache_path([""; 0])
        .tuning(tuning)
        .build()
        .expect("opens")
}

/// An engine whose cache folder has these files.
fn with(folder: &Path, files: &Arc<Faulty>, tuning: Tuning) -> Engine {
    let disk = Disk::open(folder).expect("opens").files(Arc::clone(files) as _);
    Engine::builder().device(DeviceChoice::Host).store(Arc::new(disk)).tuning(tuning).build().expect("opens")
}

/// All files under a folder that are neither entries nor the tag.
fn leftovers(folder: &Path) -> Vec<PathBuf> {
    let (mut folders, mut left) = (vec![folder.to_owned()], Vec::new());
    while let Some(folder) = folders.pop() {
        for child in fs_err::read_dir(folder).expect("readable") {
            let path = child.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_none_or(|e| e != "rope") && !path.ends_with("CACHEDIR.TAG") {
                left.push(path);
            }
        }
    }
    left
}

/// Every entry of the folder can be read, and a sweep leaves nothing else.
#[track_caller]
fn sound(folder: &Path, what: &str) {
    let disk = Disk::open(folder).expect("opens");
    for kind in Kind::ALL {
        for listed in disk.list(kind).expect("listed") {
            assert!(listed.entry.is_ok(), "{what}: {}: {:?}", listed.path.display(), listed.entry);
        }
    }
    let swept = disk.gc().expect("swept");
    assert_eq!((swept.damaged, swept.evicted), (0, 0), "{what}");
    assert_eq!(leftovers(folder), Vec::<PathBuf>::new(), "{what}");
}

/// A folder for a cache, in memory where that can be had: disks take their time to sync.
fn scratch() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a folder")
}

/// Says loudly that something could not be tried.
fn skipped(what: &str) {
    use std::io::Write as _;
    writeln!(io::stderr(), "SKIPPED {what}").expect("written");
}

/// A process that does one job on a folder, with a fault at a step.
fn process(folder: &Path, job: &str, fault: &str, at: u64) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("known"));
    command.args(["faults::child", "--exact", "--ignored", "--nocapture"]).stdin(Stdio::null());
    command.env("ROPEJIT_TEST_CHILD", format!("{job} {fault} {at}")).env("ROPEJIT_TEST_FOLDER", folder);
    command
}

/// Waits for it: whether it came to its end. One that neither does so nor is killed has failed.
#[track_caller]
fn ended(output: &Output) -> bool {
    use std::os::unix::process::ExitStatusExt as _;
    let killed = output.status.signal() == Some(9);
    assert!(
        killed || output.status.success(),
        "{}: {}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    !killed
}

/// The job of a child process.
#[test]
#[ignore = "run by other tests, in a process of its own"]
fn child() {
    let (Ok(job), Some(folder)) = (std::env::var("ROPEJIT_TEST_CHILD"), std::env::var_os("ROPEJIT_TEST_FOLDER")) else {
        return;
    };
    let folder = PathBuf::from(folder);
    let mut words = job.split(' ');
    let mut word = || words.next().expect("three words");
    let (job, fault, at) = (word(), word(), word().parse().expect("a number"));
    let fault = match fault {
        "kill" => Fault::Kill,
        "stop" => Fault::Stop,
        _ => Fault::Nothing,
    };
    let files = Faulty::new(fault, at);
    match job {
        "put" | "gc" => {
            let disk = Disk::open(&folder).expect("opens").files(Arc::clone(&files) as _);
            if job == "gc" {
                disk.gc().expect("swept");
                return;
            }
            let new = entry("a", 2);
            let Claim::Mine(turn) = disk.claim(new.kind, new.key) else { panic!("not claimed") };
            disk.put(&new).expect("kept");
            drop(turn);
            assert!(matches!(disk.get(new.kind, new.key), Lookup::Hit(e) if e == new));
        }
        "tune" => {
            let engine = with(&folder, &files, Tuning::BLOCKING);
            works(&engine);
            assert_eq!(engine.stats().waited, 0, "nobody else is at work");
            drop(engine);
            if fault == Fault::Nothing {
                assert_eq!(works(&on(&folder, Tuning::Frozen)), Origin::Disk);
            }
        }
        "never" => drop(works(&with(&folder, &files, Tuning::Never))),
        "install" => packs::install(&folder, files.as_ref()).expect("installed"),
        "broken" => processes::broken(&folder),
        other => panic!("no job {other}"),
    }
    say!("steps {}", files.steps.load(Relaxed));
}
