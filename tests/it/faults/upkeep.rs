//! `ropejit inspect gc`, and the size that a folder may have, as people say them.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use ropejit::Tuning;
use ropejit::store::disk::Disk;
use ropejit::store::sweep::Bytes;
use ropejit::store::{Kind, Store};
use serde_json::Value;

use super::{entry, on, scratch, works};

fn inspect(root: &Path, words: &[&str], max_bytes: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ropejit"));
    command.arg("inspect").args(words).stdin(Stdio::null());
    command.env("ROPEJIT_CACHE_DIR", root).env("ROPEJIT_CACHE_MAX_BYTES", max_bytes).env_remove("ROPEJIT_CACHE_PATH");
    command.output().expect("started")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("text")
}

#[test]
fn gc_says_what_it_removes() {
    let folder = scratch();
    let root = folder.path().join("cache");
    let swept = inspect(&root, &["gc"], "");
    assert_eq!((swept.status.code(), text(&swept.stdout)), (Some(0), "entries 0, bytes 0\n"));
    assert!(!root.exists(), "nothing is made");
    works(&on(&root, Tuning::Never));
    let disk = Disk::open(&root).expect("opens");
    disk.put(&entry("a", 1)).expect("kept");
    let damaged = disk.path(Kind::Artifact, entry("a", 1).key);
    fs_err::write(&damaged, "damaged").expect("written");
    drop(disk);
    fs_err::write(root.join("v1/tmp/left"), "half").expect("written");
    fs_err::write(root.join("v1/lock/left"), "").expect("written");
    fs_err::create_dir(root.join("v0")).expect("made");
    let verified = inspect(&root, &["verify"], "");
    assert_eq!(verified.status.code(), Some(1));
    assert!(text(&verified.stderr).contains("ropejit inspect gc"), "{}", text(&verified.stderr));
    let swept = inspect(&root, &["gc"], "");
    for line in [
        "removed 1 temporary files of dead processes",
        "removed 1 locks of dead processes",
        "removed 1 folders of older format versions",
        "removed 1 damaged entries",
        "entries 2, ",
    ] {
        assert!(text(&swept.stdout).contains(line), "'{line}' is not in: {}", text(&swept.stdout));
    }
    assert_eq!(inspect(&root, &["verify"], "").status.code(), Some(0));
    // The size from the environment, and one that goes before it.
    let json = |words: &[&str], max_bytes: &str| -> Value {
        serde_json::from_slice(&inspect(&root, words, max_bytes).stdout).expect("JSON")
    };
    let swept = json(&["gc", "--json", "--max-bytes", "1G"], "1");
    assert_eq!((&swept["evicted"], &swept["entries"]), (&0.into(), &2.into()));
    let swept = json(&["gc", "--json"], "1");
    assert_eq!((&swept["evicted"], &swept["entries"], &swept["bytes"]), (&2.into(), &0.into(), &0.into()));
    for (words, from_environment, named) in
        [(&["gc", "--max-bytes", "much"][..], "", "much"), (&["gc"], "1T", "ROPEJIT_CACHE_MAX_BYTES")]
    {
        let refused = inspect(&root, words, from_environment);
        assert_eq!(refused.status.code(), Some(2));
        assert!(text(&refused.stderr).contains(named), "{}", text(&refused.stderr));
    }
}

#[test]
fn sizes_as_people_write_them() {
    let parsed = |s: &str| s.parse::<Bytes>().map(|b| b.0).ok();
    assert_eq!(["0", "17", "2K", "3M", "1G"].map(parsed), [0, 17, 2048, 3 << 20, 1 << 30].map(Some));
    assert_eq!(["", "K", "-1", "+1", "1.5G", "1T", "99999999999G", "1 G", "é"].map(parsed), [None; 9]);
}
