//! Entries that are cut, flipped, from another version, or linked from elsewhere; clocks that jump.

use std::fs::File;
use std::os::unix::fs::{FileExt as _, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

use ropejit::store::claim::Claim;
use ropejit::store::disk::Disk;
use ropejit::store::{Entry, Kind, Lookup, Miss, Store};
use ropejit::{Origin, Tuning};
use sha2::{Digest as _, Sha256};

use super::{entry, leftovers, on, scratch, sound, works};

/// A real artifact and a real choice.
fn real(root: &Path) -> Vec<Entry> {
    works(&on(root, Tuning::Never));
    let disk = Disk::open(root).expect("opens");
    let all = Kind::ALL.into_iter().flat_map(|kind| disk.list(kind).expect("listed"));
    all.map(|l| l.entry.expect("sound")).collect()
}

#[test]
fn cut_at_every_offset_and_flipped_at_every_byte() {
    let folder = scratch();
    let entries = real(folder.path());
    assert_eq!(entries.len(), 2);
    let disk = Disk::open(folder.path()).expect("opens");
    let unusable = |e: &Entry, what: &str| match disk.get(e.kind, e.key) {
        Lookup::Miss(Miss::Unusable { .. }) => {}
        other => panic!("{what}: {other:?}"),
    };
    let (mut cuts, mut flips) = (0, 0);
    for e in &entries {
        let (path, good) = (disk.path(e.kind, e.key), e.encode());
        let file = File::options().write(true).open(&path).expect("there");
        for at in 0..good.len() {
            file.write_all_at(&[good[at] ^ (1 << (at % 8))], at as u64).expect("written");
            unusable(e, &format!("byte {at}"));
            file.write_all_at(&good[at..=at], at as u64).expect("written");
            flips += 1;
        }
        assert!(matches!(disk.get(e.kind, e.key), Lookup::Hit(got) if got == *e));
        for at in (0..good.len()).rev() {
            file.set_len(at as u64).expect("cut");
            unusable(e, &format!("cut at {at}"));
            cuts += 1;
        }
        // What only reads heads must bear it as well.
        assert!(disk.heads(e.kind).expect("listed")[0].entry.is_err());
        // The empty file is healed by the next process.
        works(&on(folder.path(), Tuning::Never));
        assert!(matches!(disk.get(e.kind, e.key), Lookup::Hit(got) if got == *e || e.kind == Kind::Choice));
    }
    say!("{cuts} cuts and {flips} flipped bytes of two real entries, each a miss");
    sound(folder.path(), "after cuts and flips");
}

#[test]
fn clocks_that_jump_break_nothing() {
    let folder = scratch();
    let disk = Disk::open(folder.path()).expect("opens");
    let now = SystemTime::now();
    let (past, future) = (SystemTime::UNIX_EPOCH, now + Duration::from_secs(3_000_000_000));
    let time = |e: &Entry| disk.path(e.kind, e.key).metadata().expect("there").modified().expect("known");
    let set =
        |path: &Path, time| File::options().write(true).open(path).expect("there").set_modified(time).expect("set");
    let entries: Vec<Entry> = (0..8).map(|i| entry(&format!("clock {i}"), i)).collect();
    for e in &entries {
        disk.put(e).expect("kept");
    }
    for (e, t) in entries.iter().zip([past, future].into_iter().cycle()) {
        set(&disk.path(e.kind, e.key), t);
        assert!(matches!(disk.get(e.kind, e.key), Lookup::Hit(got) if got == *e));
    }
    // An old time becomes now; one in the future counts as now and stays.
    assert!(time(&entries[0]) >= now && time(&entries[1]) == future);
    drop(disk);
    // Half of them are used long ago by this clock: those go first, the future ones stay.
    let disk = Disk::open(folder.path()).expect("opens").max_bytes(4 * entries[0].encode().len() as u64);
    for e in entries.iter().step_by(2) {
        set(&disk.path(e.kind, e.key), past);
    }
    fs_err::write(folder.path().join("v1/tmp/left"), "half").expect("written");
    set(&folder.path().join("v1/tmp/left"), future);
    let swept = disk.gc().expect("swept");
    assert_eq!((swept.evicted, swept.entries, swept.temporaries), (4, 4, 1), "{swept:?}");
    for (i, e) in entries.iter().enumerate() {
        assert_eq!(matches!(disk.get(e.kind, e.key), Lookup::Hit(_)), i % 2 == 1, "entry {i}");
    }
    sound(folder.path(), "after the clock jumped");
}

#[test]
fn two_versions_of_the_program_share_a_folder() {
    let folder = scratch();
    let entries = real(folder.path());
    let root = folder.path();
    for version in ["v0", "v2", "v10"] {
        fs_err::create_dir_all(root.join(version).join("artifact/00")).expect("made");
        fs_err::write(root.join(version).join("artifact/00/00.rope"), "of another version").expect("written");
    }
    // An entry of a newer format in this version's folder, whole by its own rules.
    let artifact = entries.iter().find(|e| e.kind == Kind::Artifact).expect("one");
    let mut newer = artifact.encode();
    newer[8] = 2;
    let body = newer.len() - 32;
    let digest = Sha256::digest(&newer[..body]);
    newer[body..].copy_from_slice(&digest);
    let disk = Disk::open(root).expect("opens");
    fs_err::write(disk.path(artifact.kind, artifact.key), &newer).expect("written");
    let Lookup::Miss(miss) = disk.get(artifact.kind, artifact.key) else { panic!("a hit") };
    assert!(miss.to_string().contains("format version 2"), "{miss}");
    let engine = on(root, Tuning::Never);
    assert_eq!(works(&engine), Origin::Compiled);
    assert_eq!((engine.stats().unusable_entries, engine.stats().compiles), (1, 1));
    assert_eq!(works(&on(root, Tuning::Frozen)), Origin::Disk);
    // Older versions go, newer ones are not ours.
    assert_eq!(disk.gc().expect("swept").versions, 1);
    assert_eq!(["v0", "v1", "v2", "v10"].map(|v| root.join(v).exists()), [false, true, true, true]);
    sound(root, "beside other versions");
}

#[test]
fn links_lead_nowhere() {
    let folder = scratch();
    let (root, outside) = (folder.path().join("cache"), folder.path().join("outside"));
    let e = entry("a", 1);
    for (at, of) in [("v1", ""), ("v1/artifact", "artifact"), ("v1/artifact/xx", "artifact/xx"), ("v1/tmp", "tmp")] {
        let shard = Disk::open(&outside).expect("opens").path(e.kind, e.key);
        let shard = shard.parent().and_then(Path::file_name).and_then(|n| n.to_str()).expect("a name").to_owned();
        let (at, of) = (at.replace("xx", &shard), of.replace("xx", &shard));
        Disk::open(&outside).expect("opens").put(&e).expect("kept");
        fs_err::write(outside.join("v1/tmp/mine"), "not a leftover").expect("written");
        let link = root.join(&at);
        fs_err::create_dir_all(link.parent().expect("has one")).expect("made");
        symlink(outside.join("v1").join(&of), &link).expect("linked");
        let disk = Disk::open(&root).expect("opens");
        assert!(!matches!(disk.get(e.kind, e.key), Lookup::Hit(_)), "{at}");
        let children = |folder: &Path| fs_err::read_dir(folder).expect("readable").count();
        let before = children(&outside.join("v1"));
        assert!(matches!(disk.claim(e.kind, e.key), Claim::Unavailable) || at != "v1", "{at}");
        let refused = disk.put(&entry("a", 2)).expect_err("refused").to_string();
        assert_eq!(children(&outside.join("v1")), before, "{at}: made through a link");
        assert!(refused.contains("not a folder of its own"), "{at}: {refused}");
        disk.max_bytes(0).gc().expect("swept");
        let kept = Disk::open(&outside).expect("opens").get(e.kind, e.key);
        assert!(matches!(kept, Lookup::Hit(got) if got == e), "{at}: written or removed through a link");
        assert!(outside.join("v1/tmp/mine").exists(), "{at}: swept through a link");
        fs_err::remove_dir_all(&root).expect("removed");
        fs_err::remove_dir_all(&outside).expect("removed");
    }
}

/// Without anybody calling for it, what dead writers left goes with the next write; what a living one writes stays.
#[test]
fn writers_sweep_what_the_dead_have_left() {
    let folder = scratch();
    let disk = Disk::open(folder.path()).expect("opens");
    disk.put(&entry("a", 1)).expect("kept");
    let now = SystemTime::now();
    let minutes = |n: u64| Duration::from_secs(60 * n);
    let make = |name: &str, time| {
        let file = File::create(folder.path().join("v1/tmp").join(name)).expect("made");
        file.set_modified(time).expect("set");
        file
    };
    make("dead", now - minutes(2));
    make("from the future", now + minutes(60 * 24 * 365));
    make("young", now);
    let living = make("living", now - minutes(2));
    living.lock().expect("locked");
    disk.put(&entry("b", 1)).expect("kept");
    let mut left: Vec<_> =
        leftovers(folder.path()).iter().filter_map(|p| Some(p.file_name()?.to_str()?.to_owned())).collect();
    left.sort();
    assert_eq!(left, ["living", "young"]);
    drop(living);
    assert_eq!(disk.gc().expect("swept").temporaries, 2);
    sound(folder.path(), "swept");
}

#[test]
fn what_is_used_is_not_evicted() {
    let folder = scratch();
    let (a, b, c) = (entry("a", 1), entry("b", 2), entry("c", 3));
    let size = a.encode().len() as u64;
    let user = Disk::open(folder.path()).expect("opens");
    user.put(&a).expect("kept");
    drop(user);
    let user = Disk::open(folder.path()).expect("opens");
    assert!(matches!(user.get(a.kind, a.key), Lookup::Hit(_)));
    let other = Disk::open(folder.path()).expect("opens").max_bytes(size * 2);
    let age = |e: &Entry, seconds| {
        let time = SystemTime::now() - Duration::from_secs(seconds);
        File::options().write(true).open(other.path(e.kind, e.key)).expect("there").set_modified(time).expect("set");
    };
    other.put(&b).expect("kept");
    age(&a, 1000);
    age(&b, 500);
    // `other` itself uses b; a third process, which only writes, makes room: a is the oldest, but both are in use.
    let third = Disk::open(folder.path()).expect("opens").max_bytes(size * 2);
    third.put(&c).expect("kept");
    let there = |e: &Entry| other.path(e.kind, e.key).exists();
    assert_eq!([&a, &b, &c].map(there), [true, true, true]);
    drop(third);
    drop(user);
    let swept = other.gc().expect("swept");
    assert_eq!([&a, &b, &c].map(there), [false, true, true], "{swept:?}");
    assert_eq!(leftovers(folder.path()).len(), 0);
}

#[test]
fn writers_keep_the_folder_within_its_size() {
    let folder = scratch();
    let size = entry("x", 0).encode().len() as u64;
    for i in 0..60u8 {
        // A process each: it uses nothing when it has ended.
        let disk = Disk::open(folder.path()).expect("opens").max_bytes(20 * size);
        disk.put(&entry(&format!("writer {i}"), i)).expect("kept");
    }
    let disk = Disk::open(folder.path()).expect("opens");
    let left = disk.list(Kind::Artifact).expect("listed");
    assert!((18..=20).contains(&left.len()), "{}", left.len());
    let last = entry("writer 59", 59);
    assert!(matches!(disk.get(last.kind, last.key), Lookup::Hit(_)), "the newest stays");
}
