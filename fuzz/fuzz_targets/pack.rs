//! Any bytes as a pack's file: an error or an index whose sizes add up; and what was made of a sound index is read back alike. What is
//! not sound leaves nothing behind when it is installed.

#![no_main]

use std::cell::RefCell;

use libfuzzer_sys::fuzz_target;
use ropejit::jit::Key;
use ropejit::remote::pack::read_index;
use ropejit::remote::{Accept, Index, Pack, Target};
use sha2::{Digest as _, Sha256};

fuzz_target!(|bytes: &[u8]| {
    check(bytes);
    // No fuzzer finds a digest: once more as a pack with this index, and what follows it as entries.
    let (index, entries) = match bytes.iter().position(|&byte| byte == 0) {
        Some(at) => (&bytes[..at], &bytes[at + 1..]),
        None => (bytes, &[][..]),
    };
    check(&sealed(index, entries));
    // And with an entry whose digests are right, so that what an entry says of itself is reached.
    if let Ok(mut index) = serde_json::from_slice::<Index>(index)
        && let Some(item) = index.entries.last_mut()
        && let Some(body) = entries.len().checked_sub(32)
    {
        let mut entry = entries[..body].to_vec();
        entry.extend_from_slice(&Sha256::digest(&entries[..body]));
        (item.bytes, item.sha256) = (entry.len() as u64, Key::from_bytes(Sha256::digest(&entry).into()));
        let index = serde_json::to_vec(&index).expect("strings and numbers");
        check(&sealed(&index, &entry));
    }
});

fn sealed(index: &[u8], entries: &[u8]) -> Vec<u8> {
    let mut sealed = b"ROPEPACK\x01\0\0\0".to_vec();
    sealed.extend_from_slice(&(index.len() as u64).to_le_bytes());
    sealed.extend_from_slice(&Sha256::digest(index));
    sealed.extend_from_slice(index);
    sealed.extend_from_slice(entries);
    sealed
}

thread_local! {
    static FOLDER: RefCell<Option<tempfile::TempDir>> = const { RefCell::new(None) };
}

fn check(bytes: &[u8]) {
    let length = bytes.len() as u64;
    let Ok((index, start)) = read_index(bytes, length) else { return };
    assert!(bytes.starts_with(&start));
    assert_eq!(start.len() as u64 + index.bytes(), length);
    let _ = (index.architectures(), read_index(bytes, length + 1), read_index(&bytes[..bytes.len() / 2], length));
    // A sound index: the rest of the way, over a file.
    FOLDER.with_borrow_mut(|folder| {
        let folder = folder.get_or_insert_with(|| tempfile::tempdir().expect("a folder")).path();
        let (path, into) = (folder.join("a.pack"), folder.join("into"));
        std::fs::write(&path, bytes).expect("written");
        let pack = Pack::open(&path).expect("it was read before");
        let _ = pack.heads().expect("readable");
        let target = Target { templates: pack.index().templates, arch: None };
        let sound = pack.verify_entries(&|_, _| {}).is_ok();
        let installed = pack.install(&into, Accept::Unsigned, target, &|_, _| {}).is_ok();
        assert_eq!(installed, sound && !pack.index().entries.is_empty());
        let left = std::fs::read_dir(&into).into_iter().flatten().count();
        assert_eq!(left, usize::from(installed));
        let _ = std::fs::remove_dir_all(&into);
    });
}
