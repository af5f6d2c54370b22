//! The cache folder, on a real disk.

use std::os::unix::fs::{PermissionsExt as _, symlink};

use super::*;
use crate::service::key::KeyFields;

fn entry(name: &str) -> Entry {
    let key = KeyFields(vec![("name".into(), name.into())]).key();
    Entry::new(Kind::Artifact, key, b"{}".to_vec(), vec![1], vec![2; 100])
}

fn open() -> (tempfile::TempDir, Disk) {
    let folder = tempfile::tempdir().expect("a folder");
    let disk = Disk::open(folder.path().join("cache")).expect("opens");
    (folder, disk)
}

fn why(disk: &Disk, e: &Entry) -> String {
    match disk.get(e.kind, e.key) {
        Lookup::Hit(_) => panic!("a hit"),
        Lookup::Miss(miss) => miss.to_string(),
    }
}

#[test]
fn keeps_lists_replaces_and_removes() {
    let (_folder, disk) = open();
    let (a, b) = (entry("a"), entry("b"));
    assert_eq!(why(&disk, &a), "not in the cache");
    disk.put(&a).expect("kept");
    disk.put(&a).expect("kept again");
    disk.put(&b).expect("kept");
    assert!(matches!(disk.get(a.kind, a.key), Lookup::Hit(e) if e == a));
    assert_eq!(disk.list(Kind::Artifact).expect("listed").len(), 2);
    assert_eq!(disk.list(Kind::Choice).expect("listed").len(), 0);
    assert!(disk.remove(a.kind, a.key).expect("removed"));
    assert!(!disk.remove(a.kind, a.key).expect("nothing to remove"));
    let mode = |p: &Path| fs_err::metadata(p).expect("there").permissions().mode() & 0o777;
    let file = disk.path(b.kind, b.key);
    assert_eq!((mode(disk.root().expect("has one")), mode(&file)), (0o700, 0o600));
    assert_eq!(mode(file.parent().expect("has one")), 0o700);
}

#[test]
fn a_folder_that_was_not_made_is_judged_once_it_is_there() {
    let folder = tempfile::tempdir().expect("a folder");
    let root = folder.path().join("cache");
    let (a, reader) = (entry("a"), Disk::open_unmade(folder.path().join("cache"), None).expect("opens"));
    assert_eq!((why(&reader, &a), root.exists()), ("not in the cache".to_owned(), false));
    assert!(reader.list(Kind::Artifact).expect("listed").is_empty() && reader.searched().ends_with("not there"));
    // Another process makes it: what is in it is found, unless others could have put it there.
    Disk::open(&root).expect("opens").put(&a).expect("kept");
    assert!(matches!(reader.get(a.kind, a.key), Lookup::Hit(e) if e == a));
    let mode = |mode| fs_err::set_permissions(&root, std::fs::Permissions::from_mode(mode)).expect("set");
    mode(0o777);
    assert!(why(&reader, &a).contains("others can write to it (mode 777)"), "{}", why(&reader, &a));
    assert!(reader.put(&a).is_err() && reader.list(Kind::Artifact).expect("listed").is_empty());
    mode(0o700);
    fs_err::remove_dir_all(&root).expect("removed");
    reader.put(&a).expect("kept");
    assert!(root.join("CACHEDIR.TAG").exists() && matches!(reader.get(a.kind, a.key), Lookup::Hit(_)));
}

#[test]
fn a_renamed_foreign_linked_or_odd_file_is_a_miss_that_names_it() {
    let (folder, disk) = open();
    let (a, b) = (entry("a"), entry("b"));
    disk.put(&a).expect("kept");
    disk.put(&b).expect("kept");
    let (at_a, at_b) = (disk.path(a.kind, a.key), disk.path(b.kind, b.key));
    fs_err::copy(&at_b, &at_a).expect("copied");
    assert!(why(&disk, &a).contains("another entry"), "{}", why(&disk, &a));
    assert!(why(&disk, &a).contains(&at_a.display().to_string()));
    fs_err::set_permissions(&at_b, std::fs::Permissions::from_mode(0o666)).expect("set");
    assert!(why(&disk, &b).contains("others can write"));
    let outside = folder.path().join("outside");
    fs_err::write(&outside, a.encode()).expect("written");
    fs_err::remove_file(&at_a).expect("removed");
    symlink(&outside, &at_a).expect("linked");
    assert!(why(&disk, &a).contains("cannot be opened"), "{}", why(&disk, &a));
    fs_err::remove_file(&at_a).expect("removed");
    fs_err::create_dir(&at_a).expect("made");
    assert!(why(&disk, &a).contains("not a file"));
}

#[test]
fn a_folder_open_to_others_is_refused_with_the_command_that_repairs_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let root = folder.path().join("cache");
    Disk::open(&root).expect("opens").put(&entry("a")).expect("kept");
    for mode in [0o777, 0o770, 0o1777] {
        fs_err::set_permissions(&root, std::fs::Permissions::from_mode(mode)).expect("set");
        for refused in [Disk::open(&root).err(), Disk::read_only(&root).err()] {
            let e = refused.expect("refused");
            assert_eq!(e.kind(), ErrorKind::UntrustedCache);
            let hint = e.advice().expect("has a hint");
            for part in ["chmod -R go-w", "fsGroupChangePolicy: OnRootMismatch", "subfolder"] {
                assert!(hint.contains(part), "{e}");
            }
            assert_eq!(hint.contains("ROPEJIT_TRUST_GROUP="), mode == 0o770, "{e}");
        }
    }
    fs_err::set_permissions(&root, std::fs::Permissions::from_mode(0o700)).expect("set");
    assert!(Disk::open(&root).is_ok());
}

#[test]
fn readers_beside_writers_see_whole_entries() {
    let (_folder, disk) = open();
    let a = entry("a");
    disk.put(&a).expect("kept");
    std::thread::scope(|s| {
        for _ in 0..4 {
            s.spawn(|| (0..50).for_each(|_| disk.put(&a).expect("kept")));
            s.spawn(|| (0..200).for_each(|_| assert!(matches!(disk.get(a.kind, a.key), Lookup::Hit(_)))));
        }
    });
    let folder = disk.path(a.kind, a.key);
    let left = children(folder.parent().expect("has one")).expect("read");
    assert_eq!(left.len(), 1, "temporary files are left: {left:?}");
}
