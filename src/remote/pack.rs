//! The file. All numbers are little-endian.
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 8 | `ROPEPACK` |
//! | 8 | 4 | format version |
//! | 12 | 8 | length of the index, N |
//! | 20 | 32 | SHA-256 of the index |
//! | 52 | N | [`Index`], JSON |
//! | 52+N | | the entries, one after another, as they are in a cache folder |
//!
//! A file is exactly that long: entries lie where the sizes before them say, so none can name a place outside or overlap another.
//! Every byte counts: the index is checked when a pack is opened, an entry before it is used. The same entries make
//! the same file. A pack is known by the SHA-256 of its file.

use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::index::{Index, Item, own_templates};
use crate::error::{Error, ErrorKind, Result};
use crate::service::key::Key;
use crate::service::store::disk::MAX_ENTRY;
use crate::service::store::{Entry, Head, Kind, Listed, Lookup, Store};
use crate::system::{open_regular, replace};

const MAGIC: &[u8; 8] = b"ROPEPACK";
const VERSION: u32 = 1;
const HEADER: usize = 52;
/// An index that is longer is none: that of a hundred thousand entries has some 40 MB.
const MAX_INDEX: u64 = 64 << 20;

/// A pack whose index was checked. Its entries are not, until they are read.
#[derive(Debug)]
pub struct Pack {
    path: PathBuf,
    index: Index,
    /// Header and index, as they are in the file.
    start: Vec<u8>,
    bytes: u64,
}

/// How far long work has come: entries done, and all.
pub type OnEntry<'a> = &'a dyn Fn(usize, usize);

impl Pack {
    /// Opens a pack and checks its index; of entries, only that the file is as long as their sizes say.
    ///
    /// # Errors
    /// [`ErrorKind::Pack`], naming the file, when it is no sound pack; [`ErrorKind::Io`] when it cannot be read.
    pub fn open(path: &Path) -> Result<Self> {
        let mut file = open(path)?;
        let bytes = file.metadata().map_err(|e| unreadable(path, e))?.len();
        let (index, start) = read_index(&mut file, bytes).map_err(|why| refused(path, why))?;
        Ok(Self { path: path.to_owned(), index, start, bytes })
    }

    /// Its file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is in it.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// Size of the file.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// SHA-256 of the file, which is read for it.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] when it cannot be read.
    pub fn sha256(&self) -> Result<Key> {
        let mut hasher = Sha256::new();
        self.all().and_then(|mut file| io::copy(&mut file, &mut hasher)).map_err(|e| unreadable(&self.path, e))?;
        Ok(Key::from_bytes(hasher.finalize().into()))
    }

    /// Reads all entries and checks each one's digest, and that it is what the index says. Returns the SHA-256 of the file.
    ///
    /// # Errors
    /// [`ErrorKind::Pack`], naming the file and the entry; [`ErrorKind::Io`] when it cannot be read.
    pub fn verify_entries(&self, progress: OnEntry<'_>) -> Result<Key> {
        self.each(|at, _, _| {
            progress(at + 1, self.index.entries.len());
            Ok(())
        })
    }

    /// What stands at the head of each entry, for people: no digest is checked. An entry has no file; in its place stand the
    /// pack's and the key.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] when the pack cannot be read.
    pub fn heads(&self) -> Result<Vec<Listed<Head>>> {
        let failed = |e| unreadable(&self.path, e);
        let mut file = self.all().map_err(failed)?.into_inner();
        let mut at = self.start.len() as u64;
        let one = |item: &Item| -> io::Result<Listed<Head>> {
            file.seek(SeekFrom::Start(at))?;
            at += item.bytes;
            let entry = Head::read((&mut file).take(item.bytes), item.bytes);
            Ok(Listed { path: self.path.join(format!("{}.rope", item.key)), kind: item.kind, bytes: item.bytes, entry })
        };
        self.index.entries.iter().map(one).collect::<io::Result<_>>().map_err(failed)
    }

    /// The whole file, no longer than it was when it was opened.
    pub(super) fn all(&self) -> io::Result<io::Take<File>> {
        // Asked again: what is at this path may have been exchanged.
        Ok(open_regular(&self.path)?.take(self.bytes))
    }

    /// Gives all entries in turn, each checked, and at the end the SHA-256 of what was read: header, index and entries.
    pub(super) fn each(&self, mut take: impl FnMut(usize, &Item, &[u8]) -> Result<()>) -> Result<Key> {
        let mut file = self.all().map_err(|e| unreadable(&self.path, e))?;
        let (mut whole, mut bytes) = (Sha256::new(), Vec::new());
        let mut next = |length: u64, into: &mut Vec<u8>| -> Result<()> {
            into.clear();
            // What the file does not hold is not allocated.
            (&mut file).take(length).read_to_end(into).map_err(|e| unreadable(&self.path, e))?;
            whole.update(&*into);
            if into.len() as u64 == length { Ok(()) } else { Err(refused(&self.path, "cut short while it was read")) }
        };
        next(self.start.len() as u64, &mut bytes)?;
        if bytes != self.start {
            return Err(refused(&self.path, "it was changed while it was read"));
        }
        for (at, item) in self.index.entries.iter().enumerate() {
            next(item.bytes, &mut bytes)?;
            check(item, &bytes)
                .map_err(|why| refused(&self.path, format!("{} {}: {why}", item.kind.name(), item.key)))?;
            take(at, item, &bytes)?;
        }
        Ok(Key::from_bytes(whole.finalize().into()))
    }
}

/// Writes a pack of these entries of a store. A file that is there is replaced, at once.
///
/// # Errors
/// [`ErrorKind::NotCached`] when an entry is not in the store; [`ErrorKind::Io`] when the file cannot be written.
pub fn write(path: &Path, store: &dyn Store, entries: &[(Kind, Key)], progress: OnEntry<'_>) -> Result<Pack> {
    let mut wanted: Vec<(&str, Key)> = entries.iter().map(|(kind, key)| (kind.name(), *key)).collect();
    wanted.sort_unstable();
    wanted.dedup();
    let kind_of = |name: &str| if name == Kind::Choice.name() { Kind::Choice } else { Kind::Artifact };
    let get = |(name, key): (&str, Key)| match store.get(kind_of(name), key) {
        Lookup::Hit(entry) => Ok(entry),
        Lookup::Miss(miss) => Err(Error::new(ErrorKind::NotCached, format!("cannot be packed: {miss}"))
            .subject_is(format!("{name} {key}"))
            .hint("make it again: ropejit prewarm")),
    };
    let mut items = Vec::with_capacity(wanted.len());
    for (at, &one) in wanted.iter().enumerate() {
        let entry = get(one)?;
        let bytes = entry.encode();
        let item = Item::of(&entry, bytes.len() as u64, digest(&bytes))
            .map_err(|why| Error::new(ErrorKind::NotCached, why).subject_is(format!("{} {}", one.0, one.1)))?;
        items.push(item);
        progress(at + 1, 2 * wanted.len());
    }
    let index = Index { templates: own_templates(), entries: items };
    let failed = |e| {
        Error::io(path, "the pack cannot be written", e)
            .hint("name a file in a folder that is there and that you can write to")
    };
    let mut changed = None;
    let written = replace(path, |file| {
        file.write_all(&head_of(&index))?;
        for (at, (&one, item)) in wanted.iter().zip(&index.entries).enumerate() {
            let bytes = match get(one) {
                Ok(entry) => entry.encode(),
                Err(_) => Vec::new(),
            };
            if digest(&bytes) != item.sha256 {
                changed = Some(one);
                return Err(io::ErrorKind::InvalidData.into());
            }
            file.write_all(&bytes)?;
            progress(wanted.len() + at + 1, 2 * wanted.len());
        }
        Ok(())
    });
    if let Some((name, key)) = changed {
        return Err(Error::new(ErrorKind::Io, "was made again or removed while it was packed")
            .subject_is(format!("{name} {key}"))
            .hint("run the command once more"));
    }
    written.map_err(failed)?;
    Pack::open(path)
}

/// Header and index.
fn head_of(index: &Index) -> Vec<u8> {
    let json = serde_json::to_vec(index).unwrap_or_default(); // strings and numbers: it cannot fail
    let mut bytes = Vec::with_capacity(HEADER + json.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&(json.len() as u64).to_le_bytes());
    bytes.extend_from_slice(digest(&json).as_bytes());
    bytes.extend_from_slice(&json);
    bytes
}

/// Reads header and index of a pack of `length` bytes, and checks them; returns both as they were read as well.
///
/// # Errors
/// What is wrong with them.
pub fn read_index(mut file: impl Read, length: u64) -> Result<(Index, Vec<u8>), String> {
    let failed = |e: io::Error| match e.kind() {
        io::ErrorKind::UnexpectedEof => "cut short".to_owned(),
        _ => format!("cannot be read: {e}"),
    };
    let mut header = [0; HEADER];
    file.read_exact(&mut header).map_err(failed)?;
    let (magic, rest) = header.split_at(8);
    let (version, rest) = rest.split_at(4);
    let (size, sha256) = rest.split_at(8);
    if magic != MAGIC {
        return Err("not a pack of ropejit".into());
    }
    if version != VERSION.to_le_bytes() {
        let number = version.iter().rev().fold(0u32, |n, &byte| n << 8 | u32::from(byte));
        return Err(format!("format version {number}, this program reads {VERSION}"));
    }
    let size = size.iter().rev().fold(0u64, |n, &byte| n << 8 | u64::from(byte));
    if size > MAX_INDEX || size > length.saturating_sub(HEADER as u64) {
        return Err("its index is longer than the file".into());
    }
    let mut start = header.to_vec();
    // What the file does not hold is not allocated.
    file.take(size).read_to_end(&mut start).map_err(failed)?;
    let json = &start[HEADER..];
    if json.len() as u64 != size {
        return Err("cut short".into());
    }
    if digest(json).as_bytes() != sha256 {
        return Err("the digest of its index does not match".into());
    }
    let index: Index = serde_json::from_slice(json).map_err(|e| format!("its index cannot be read: {e}"))?;
    let order = |item: &Item| (item.kind.name(), item.key);
    if !index.entries.iter().zip(index.entries.iter().skip(1)).all(|(a, b)| order(a) < order(b)) {
        return Err("its entries are not in order, or one is there twice".into());
    }
    if index.entries.iter().any(|item| item.bytes > MAX_ENTRY) {
        return Err(format!("an entry has more than {MAX_ENTRY} bytes"));
    }
    let total = index.entries.iter().try_fold(start.len() as u64, |sum, item| sum.checked_add(item.bytes));
    if total != Some(length) {
        return Err("its sizes do not add up to its length".into());
    }
    Ok((index, start))
}

/// Whether an entry's bytes are what the index says.
fn check(item: &Item, bytes: &[u8]) -> Result<(), String> {
    if digest(bytes) != item.sha256 {
        return Err("its digest does not match its contents".into());
    }
    let head = Head::from(Entry::read(bytes)?);
    let own = Item::of(&head, item.bytes, item.sha256)?;
    if (own.kind, own.key, &own.arch) != (item.kind, item.key, &item.arch) {
        return Err("it is another entry than the index says".into());
    }
    Ok(())
}

pub(super) fn digest(bytes: &[u8]) -> Key {
    Key::from_bytes(Sha256::digest(bytes).into())
}

fn open(path: &Path) -> Result<File> {
    open_regular(path).map_err(|e| unreadable(path, e))
}

fn unreadable(path: &Path, e: io::Error) -> Error {
    Error::io(path, "the pack cannot be read", e).hint("name a pack: ropejit pack OUT.pack makes one")
}

pub(super) fn refused(path: &Path, why: impl Into<String>) -> Error {
    Error::new(ErrorKind::Pack, why)
        .subject_is(path.display().to_string())
        .hint("get it again, or make it again: ropejit pack OUT.pack")
}
