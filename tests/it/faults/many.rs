//! A cache with very many entries.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use ropejit::jit::KeyFields;
use ropejit::store::disk::Disk;
use ropejit::store::{Entry, Kind, Store};
use ropejit::{Origin, Tuning};

use super::{Fault, Faulty, on, with, works};

const ENTRIES: u32 = 100_000;

/// Entries like the real ones, written without the care that real ones take.
#[allow(unsafe_code)]
fn fill(root: &Path) {
    works(&on(root, Tuning::Never));
    let disk = Disk::open(root).expect("opens");
    let real = |kind| disk.list(kind).expect("listed").remove(0).entry.expect("sound");
    let write = |real: Entry, numbers: std::ops::Range<u32>| {
        for i in numbers {
            let key = KeyFields(vec![("number".into(), i.to_string())]).key();
            let code = real.image().get(..100).unwrap_or_default().to_vec();
            let entry = match real.kind {
                // SAFETY: nothing loads it. Their code is not read by what is tried here, and would be gigabytes.
                Kind::Artifact => unsafe { Entry::artifact(key, real.meta.clone(), Vec::new(), code) },
                Kind::Choice => Entry::choice(key, real.meta.clone()),
            };
            let path = disk.path(entry.kind, entry.key);
            if let Err(e) = std::fs::write(&path, entry.encode()) {
                assert_eq!(e.kind(), std::io::ErrorKind::NotFound, "{e}");
                fs_err::create_dir_all(path.parent().expect("has one")).expect("made");
                std::fs::write(&path, entry.encode()).expect("written");
            }
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| write(real(Kind::Artifact), 0..ENTRIES / 2));
        scope.spawn(|| write(real(Kind::Choice), ENTRIES / 2..ENTRIES));
    });
}

#[test]
fn a_hundred_thousand_entries() {
    let folder = tempfile::tempdir().expect("a folder");
    fill(folder.path());
    // The default was noted for the architecture; after a tuning there is a choice for the device.
    for tuned in [false, true] {
        if tuned {
            assert_eq!(works(&on(folder.path(), Tuning::BLOCKING)), Origin::Tuned);
        }
        let files = Faulty::new(Fault::Nothing, 0);
        let engine = with(folder.path(), &files, Tuning::Frozen);
        let started = Instant::now();
        assert_eq!(works(&engine), Origin::Disk);
        let (took, opens) = (started.elapsed(), files.opens.load(Relaxed));
        say!("{ENTRIES} entries: {opens} files opened, first result after {took:?}");
        assert_eq!(opens, 2);
    }
    // Its whole list opens every entry once.
    let files = Faulty::new(Fault::Nothing, 0);
    let disk = Disk::open(folder.path()).expect("opens").files(Arc::clone(&files) as _);
    let started = Instant::now();
    let listed: usize = Kind::ALL.iter().map(|&kind| disk.heads(kind).expect("listed").len()).sum();
    say!("heads of {listed} entries after {:?}", started.elapsed());
    assert!(listed as u32 > ENTRIES, "{listed}");
    assert_eq!(files.opens.load(Relaxed), listed as u64);
    let started = Instant::now();
    let output = Command::new(env!("CARGO_BIN_EXE_ropejit"))
        .args(["inspect", "list"])
        .env("ROPEJIT_CACHE_DIR", folder.path())
        .stdin(Stdio::null())
        .output()
        .expect("started");
    let lines = String::from_utf8(output.stdout).expect("text").lines().count();
    say!("inspect list: {lines} lines in {:?}", started.elapsed());
    assert!(lines > listed, "{lines}");
}
