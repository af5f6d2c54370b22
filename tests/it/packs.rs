//! The reader of packs and what it installs, against any bytes, any death and any disk.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use proptest::prelude::*;
use ropejit::jit::Key;
use ropejit::remote::pack::{read_index, write};
use ropejit::remote::select::{Selection, select};
use ropejit::remote::signature::{keygen, path_of, verify};
use ropejit::remote::{Accept, Installed, Pack, PublicKey, SecretKey, Target};
use ropejit::store::disk::Disk;
use ropejit::store::layers::{Layers, Places};
use ropejit::store::{Kind, Lookup, Store as _};
use ropejit::{DType, DeviceChoice, Engine, Error, ErrorKind, RopeSpec, Tuning};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

/// Of the host's processor, in a cache folder that all tests share and none changes.
pub fn cache() -> &'static Path {
    static CACHE: OnceLock<TempDir> = OnceLock::new();
    let folder = CACHE.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a folder");
        let builder = Engine::builder().device(DeviceChoice::Host).cache_dir(folder.path()).cache_path([""; 0]);
        let engine = builder.tuning(Tuning::Never).build().expect("opens");
        for heads in [2, 4] {
            engine.prewarm(&[RopeSpec::new(DType::F32, 64, heads, 2)], &[8, 64], false, false).expect("made");
        }
        folder
    });
    folder.path()
}

fn disk() -> Disk {
    Disk::open(cache()).expect("opens")
}

pub fn quiet(_: usize, _: usize) {}

/// A pack of all, and one of a choice alone, which is small.
pub fn pack_of(folder: &Path, all: bool) -> Pack {
    let disk = disk();
    let mut entries = select(&disk, &Selection::default()).expect("entries");
    if !all {
        entries = vec![*entries.iter().find(|(kind, _)| *kind == Kind::Choice).expect("a choice")];
    }
    write(&folder.join("out.pack"), &disk, &entries, &quiet).expect("written")
}

fn install(pack: &Path, into: &Path) -> Result<Installed, Error> {
    Pack::open(pack)?.install(into, Accept::Unsigned, Target::here(None), &quiet)
}

/// All files below a folder, with what is in them.
pub fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let (mut folders, mut all) = (vec![folder.to_owned()], BTreeMap::new());
    while let Some(at) = folders.pop() {
        for child in fs_err::read_dir(&at).into_iter().flatten() {
            let path = child.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                all.insert(path.strip_prefix(folder).expect("inside").to_owned(), fs_err::read(&path).expect("read"));
            }
        }
    }
    all
}

/// What would be read of packs installed in a folder.
pub fn installed(into: &Path) -> Vec<PathBuf> {
    ropejit::store::packs::installed_in(into)
}

#[track_caller]
fn nothing_in(into: &Path, what: &str) {
    let left: Vec<_> = fs_err::read_dir(into).into_iter().flatten().map(|e| e.expect("an entry").path()).collect();
    assert_eq!(left, Vec::<PathBuf>::new(), "{what}");
}

/// The same pack with another index, and the digest that belongs to it.
fn with_index(bytes: &[u8], change: impl FnOnce(&mut serde_json::Value)) -> Vec<u8> {
    let length = u64::from_le_bytes(bytes[12..20].try_into().expect("8 bytes")) as usize;
    let mut index = serde_json::from_slice(&bytes[52..52 + length]).expect("JSON");
    change(&mut index);
    sealed(bytes, &serde_json::to_vec(&index).expect("JSON"), &bytes[52 + length..])
}

fn sealed(header: &[u8], index: &[u8], entries: &[u8]) -> Vec<u8> {
    let mut all = header[..12].to_vec();
    all.extend_from_slice(&(index.len() as u64).to_le_bytes());
    all.extend_from_slice(&Sha256::digest(index));
    all.extend_from_slice(index);
    all.extend_from_slice(entries);
    all
}

/// A choice whose kernel comes with the crate is complete without one.
#[test]
fn a_choice_of_what_is_shipped_is_packed_without_a_kernel() {
    let folder = tempfile::tempdir().expect("a folder");
    let root = folder.path().join("cache");
    let builder = Engine::builder().arch("sm_90").cache_dir(&root).cache_path([""; 0]);
    let engine = builder.tuning(Tuning::Never).build().expect("opens");
    engine.prewarm(&[RopeSpec::new(DType::BF16, 128, 32, 8)], &[1, 8192], false, false).expect("nothing is compiled");
    assert_eq!(engine.stats().compiles, 0);
    let disk = Disk::open(&root).expect("opens");
    let entries = select(&disk, &Selection::default()).expect("complete");
    assert_eq!(entries.iter().map(|(kind, _)| *kind).collect::<Vec<_>>(), [Kind::Choice; 2]);
    let pack = write(&folder.path().join("out.pack"), &disk, &entries, &quiet).expect("written");
    pack.verify_entries(&quiet).expect("sound");
}

#[test]
fn the_same_entries_make_the_same_file_and_come_back_as_they_were() {
    let folder = tempfile::tempdir().expect("a folder");
    let pack = pack_of(folder.path(), true);
    let bytes = fs_err::read(pack.path()).expect("read");
    assert_eq!(fs_err::read(pack_of(folder.path(), true).path()).expect("read"), bytes);
    let index = pack.index();
    assert_eq!((index.count(Kind::Choice), index.architectures().len()), (4, 1));
    let into = folder.path().join("into");
    let done = install(pack.path(), &into).expect("installed");
    assert!(!done.before && done.folder.starts_with(&into));
    assert_eq!(done.sha256, Key::from_bytes(Sha256::digest(&bytes).into()));
    assert!(install(pack.path(), &into).expect("again").before);
    let read = Disk::read_only(&done.folder).expect("trusted");
    for item in &index.entries {
        let (Lookup::Hit(a), Lookup::Hit(b)) = (read.get(item.kind, item.key), disk().get(item.kind, item.key)) else {
            panic!("{} is not there", item.key)
        };
        assert_eq!((&a, a.encode().len() as u64), (&b, item.bytes));
    }
    // As a layer of its own, and as a folder of packs.
    for (read_only, packs) in
        [(vec![done.folder.clone()], None), (vec![into.clone()], None), (vec![], Some(into.clone()))]
    {
        let layers = Layers::open(&Places { read_only, packs, ..Places::default() }).expect("opens");
        assert_eq!(layers.heads(Kind::Choice).expect("read").len(), 4);
    }
}

#[test]
fn what_is_installed_is_the_users_alone_whatever_is_around_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let pack = pack_of(folder.path(), true);
    // An emptyDir: the user's own folder is made in it, and read there.
    let shared = folder.path().join("shared");
    fs_err::create_dir(&shared).expect("made");
    fs_err::set_permissions(&shared, PermissionsExt::from_mode(0o777)).expect("set");
    let done = install(pack.path(), &shared).expect("installed");
    let own = done.folder.parent().expect("inside");
    assert_eq!(own.parent(), Some(shared.as_path()));
    let layers = Layers::open(&Places { read_only: vec![shared.clone()], strict: true, ..Places::default() });
    assert_eq!(layers.expect("opens").heads(Kind::Choice).expect("read").len(), 4);
    // A link in a pack's place is none; a folder that others can write to is passed over.
    let link = own.join(format!("pack-{}", Key::from_bytes([7; 32])));
    std::os::unix::fs::symlink(&done.folder, link).expect("linked");
    assert_eq!(installed(own), std::slice::from_ref(&done.folder));
    fs_err::set_permissions(&done.folder, PermissionsExt::from_mode(0o770)).expect("set");
    let open = |strict| Layers::open(&Places { read_only: vec![shared.clone()], strict, ..Places::default() });
    assert_eq!(open(false).expect("opens").heads(Kind::Choice).expect("read").len(), 0);
    assert_eq!(open(true).err().expect("refused").kind(), ErrorKind::UntrustedCache);
    // One that others may write to and that is not for many, as its entries say, is refused with a way out.
    fs_err::create_dir(shared.join("v1")).expect("made");
    let e = install(pack.path(), &shared).expect_err("refused");
    assert_eq!(e.kind(), ErrorKind::UntrustedCache);
    assert!(e.advice().is_some_and(|hint| hint.contains("--into")), "{e}");
}

#[test]
fn every_flipped_byte_is_refused_and_nothing_is_installed() {
    let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a folder");
    let (mut small, mut large) = (0, 0);
    for all in [false, true] {
        let pack = pack_of(folder.path(), all);
        let good = fs_err::read(pack.path()).expect("read");
        let (bad, into) = (folder.path().join("bad.pack"), folder.path().join("into"));
        // Of the large one every 97th: its entries are read as those of the small one are.
        for at in (0..good.len()).step_by(if all { 97 } else { 1 }) {
            let mut bytes = good.clone();
            bytes[at] ^= 1 << (at % 8);
            fs_err::write(&bad, &bytes).expect("written");
            let e = install(&bad, &into).expect_err("refused");
            assert_eq!(e.kind(), ErrorKind::Pack, "byte {at}: {e}");
            assert!(Pack::open(&bad).and_then(|pack| pack.verify_entries(&quiet)).is_err(), "byte {at}");
            nothing_in(&into, &format!("byte {at}"));
            *(if all { &mut large } else { &mut small }) += 1;
        }
    }
    println!("flipped bytes: all {small} of a small pack, {large} of a large one: each refused, nothing installed");
    assert!(small > 1000 && large > 100, "{small} {large}");
}

#[test]
fn a_pack_that_is_cut_or_longer_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let good = fs_err::read(pack_of(folder.path(), true).path()).expect("read");
    let (bad, into) = (folder.path().join("bad.pack"), folder.path().join("into"));
    let mut longer = good.clone();
    longer.push(0);
    let cuts = (0..50).map(|n| good[..good.len() * n / 50].to_vec());
    for bytes in cuts.chain([longer, good[..good.len() - 1].to_vec(), good[..51].to_vec()]) {
        fs_err::write(&bad, &bytes).expect("written");
        let e = install(&bad, &into).expect_err("refused");
        assert_eq!(e.kind(), ErrorKind::Pack, "{} bytes: {e}", bytes.len());
        assert!(e.to_string().contains("bad.pack"), "{e}");
        nothing_in(&into, "cut");
    }
}

/// What is changed in an index.
type Lie = fn(&mut serde_json::Value);

/// With a digest that is right: whoever makes a pack can say anything in its index.
#[test]
fn an_index_that_lies_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let good = fs_err::read(pack_of(folder.path(), true).path()).expect("read");
    let (bad, into) = (folder.path().join("bad.pack"), folder.path().join("into"));
    let lies: &[(Lie, &str)] = &[
        (|i| i["entries"][0]["key"] = "../../../etc/passwd".into(), "not a key"),
        (|i| i["entries"][0]["key"] = "00".repeat(32).into(), "another entry"),
        (|i| i["entries"][0]["arch"] = "sm_90".into(), "another entry"),
        (|i| i["entries"][0]["bytes"] = u64::MAX.into(), "more than"),
        (|i| i["entries"][0]["bytes"] = (60 << 20).into(), "do not add up"),
        (|i| i["entries"][0]["bytes"] = (-1).into(), "cannot be read"),
        (|i| i["entries"][0]["sha256"] = "11".repeat(32).into(), "does not match"),
        (|i| i["entries"][0]["kind"] = "choice".into(), "not in order"),
        (|i| i["entries"][1] = i["entries"][0].clone(), "there twice"),
        (|i| i["entries"] = serde_json::json!([]), "do not add up"),
        (|i| i["templates"] = "22".repeat(32).into(), "another version"),
    ];
    for (lie, word) in lies {
        fs_err::write(&bad, with_index(&good, lie)).expect("written");
        let e = install(&bad, &into).expect_err("refused");
        assert!(e.to_string().contains(word) && e.kind() == ErrorKind::Pack, "{word}: {e}");
        nothing_in(&into, word);
    }
    // Nested without end: refused by the reader of JSON, not by the stack.
    fs_err::write(&bad, sealed(&good, "[".repeat(1 << 20).as_bytes(), &[])).expect("written");
    assert_eq!(install(&bad, &into).expect_err("refused").kind(), ErrorKind::Pack);
    // Of another architecture; and one that fits.
    let pack = Pack::open(&folder.path().join("out.pack")).expect("opens");
    let e = pack.install(&into, Accept::Unsigned, Target::here(Some("sm_90")), &quiet).expect_err("refused");
    assert!(e.to_string().contains("this is sm_90"), "{e}");
    nothing_in(&into, "another architecture");
    let own = pack.index().architectures()[0].to_owned();
    pack.install(&into, Accept::Unsigned, Target::here(Some(&own)), &quiet).expect("installed");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// An index that says how long it is costs no more than the file holds, and any bytes are an error or an index.
    #[test]
    fn any_bytes_are_read_without_a_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..600), length: u64, ours: bool) {
        if ours && bytes.len() >= 52 {
            bytes[..8].copy_from_slice(b"ROPEPACK");
            bytes[8..12].copy_from_slice(&1u32.to_le_bytes());
            if length % 2 == 0 {
                let rest = (bytes.len() - 52) as u64;
                bytes[12..20].copy_from_slice(&rest.to_le_bytes());
                let digest = Sha256::digest(&bytes[52..]);
                bytes[20..52].copy_from_slice(&digest);
            }
        }
        prop_assert!(read_index(bytes.as_slice(), bytes.len() as u64).is_err());
        prop_assert!(read_index(bytes.as_slice(), length).is_err());
    }
}

struct Keys {
    folder: TempDir,
    pack: Pack,
    secret: SecretKey,
    public: PublicKey,
}

fn keys() -> Keys {
    let folder = tempfile::tempdir().expect("a folder");
    let pack = pack_of(folder.path(), false);
    let path = folder.path().join("a.key");
    let (public, _) = keygen(&path, false, None).expect("made");
    let secret = SecretKey::read(&path, || panic!("it has no password")).expect("read");
    Keys { folder, pack, secret, public }
}

#[test]
fn only_what_an_accepted_key_has_signed_is_installed() {
    let Keys { folder, pack, secret, public } = keys();
    let other = keygen(&folder.path().join("b.key"), false, None).expect("made").0;
    let judge = |keys: &[PublicKey]| pack.verify_signature(keys);
    let refused = |keys: &[PublicKey], word: &str| {
        let e = judge(keys).expect_err("refused");
        assert!(e.kind() == ErrorKind::Signature && e.to_string().contains(word), "{word}: {e}");
        assert!(e.advice().is_some(), "{e}");
    };
    refused(std::slice::from_ref(&public), "not signed");
    let signature = secret.sign_pack(&pack, &quiet).expect("signed");
    fs_err::write(path_of(pack.path()), &signature).expect("written");
    assert_eq!(secret.public().expect("known"), public);
    refused(&[], "no public key");
    refused(std::slice::from_ref(&other), "another key");
    // While a key is replaced, two are accepted, in any order.
    for keys in [vec![public.clone()], vec![other.clone(), public.clone()], vec![public.clone(), other]] {
        let signed = judge(&keys).expect("accepted");
        assert_eq!((signed.key(), signed.sha256()), (&public, pack.sha256().expect("read")));
    }
    // Exchanged after it was verified: the digest that was signed is what is installed, or nothing.
    let signed = judge(std::slice::from_ref(&public)).expect("accepted");
    let into = folder.path().join("into");
    let larger = pack_of(folder.path(), true);
    let e = larger.install(&into, Accept::Signed(&signed), Target::here(None), &quiet).expect_err("refused");
    assert!(e.to_string().contains("changed after"), "{e}");
    nothing_in(&into, "exchanged");
    refused(std::slice::from_ref(&public), "does not match"); // the pack that was opened is no longer there
    let e = larger.verify_signature(&[public]).expect_err("refused");
    assert!(e.to_string().contains("does not match"), "{e}");
}

/// What is signed, its comment and the signature itself: any byte that changes is refused, but for the first line, which nobody
/// signs.
#[test]
fn every_flipped_byte_of_a_signature_is_refused() {
    let Keys { folder: _folder, pack, secret, public } = keys();
    let signature = secret.sign_pack(&pack, &quiet).expect("signed");
    let bytes = fs_err::read(pack.path()).expect("read");
    let first_line = signature.find('\n').expect("four lines");
    let (mut refused, mut same) = (0, 0);
    for at in 0..signature.len() {
        let mut text = signature.clone().into_bytes();
        text[at] ^= 1;
        let text = String::from_utf8(text).expect("text");
        match verify("x", bytes.as_slice(), &text, std::slice::from_ref(&public)) {
            Err(e) => {
                assert_eq!(e.kind(), ErrorKind::Signature);
                refused += 1;
            }
            // What of base64 nobody reads, and line ends, say the same.
            Ok(signed) => {
                assert_eq!(signed.sha256(), pack.sha256().expect("read"));
                assert!(at <= first_line || text.len() == signature.len(), "byte {at}");
                assert!(at <= first_line || !signature.as_bytes()[at].is_ascii_alphanumeric(), "byte {at}");
                same += 1;
            }
        }
    }
    println!("flipped bytes of a signature: {refused} refused, {same} that nobody signs");
    assert!(refused > 200, "{refused}");
    let mut changed = bytes.clone();
    changed[bytes.len() / 2] ^= 1;
    assert!(verify("x", changed.as_slice(), &signature, std::slice::from_ref(&public)).is_err());
    assert!(verify("x", &changed[..10], &signature, &[public]).is_err());
}

#[test]
fn keys_are_made_once_and_for_the_user_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("c.key");
    let (public, public_path) = keygen(&path, true, Some("a word".into())).expect("made");
    let mode = fs_err::metadata(&path).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(PublicKey::read(public_path.to_str().expect("text")).expect("read"), public);
    assert!(keygen(&path, false, None).is_err(), "written over");
    let read = |word: &str| SecretKey::read(&path, || Ok(Some(word.to_owned())));
    assert_eq!(read("a word").expect("opened").public().expect("known"), public);
    assert_eq!(read("another").err().expect("refused").kind(), ErrorKind::Signature);
    for text in ["", "RW", "one line", "untrusted comment: x\nRWQ=\n", &"\n".repeat(100)] {
        fs_err::write(&path, text).expect("written");
        assert_eq!(read("a word").err().expect("refused").kind(), ErrorKind::Signature, "{text}");
        assert_eq!(text.parse::<PublicKey>().expect_err("refused").kind(), ErrorKind::InvalidArgument);
    }
    assert_eq!(SecretKey::read(&folder.path().join("none"), || Ok(None)).err().expect("absent").kind(), ErrorKind::Io);
}
