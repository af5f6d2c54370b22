//! A cache with very many entries.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

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
    let started = Instant::now();
    let listed = Command::new(env!("CARGO_BIN_EXE_ropejit"))
        .args(["inspect", "list"])
        .env("ROPEJIT_CACHE_DIR", folder.path())
        .env_remove("ROPEJIT_CACHE_PATH")
        .stdin(Stdio::null())
        .output()
        .expect("started");
    let took = started.elapsed();
    let lines = String::from_utf8(listed.stdout).expect("text").lines().count();
    say!("inspect list: {lines} lines in {took:?}");
    assert!(lines as u32 > ENTRIES, "{lines}");
    // Alone on two cores it takes less than a second; tests run beside it.
    assert!(took < Duration::from_secs(10), "{took:?}");
}
