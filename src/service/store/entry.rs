//! One entry, one file. All numbers are little-endian.
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 8 | `ROPEJIT\0` |
//! | 8 | 4 | format version |
//! | 12 | 4 | kind: 1 artifact, 2 choice |
//! | 16 | 32 | key |
//! | 48 | 8 | length of the metadata, M |
//! | 56 | 8 | length of the PTX, P |
//! | 64 | 8 | length of the image (cubin, or the host's library), I |
//! | 72 | M | metadata, JSON |
//! | 72+M | P | PTX |
//! | 72+M+P | I | image |
//! | 72+M+P+I | 32 | SHA-256 of all before |
//!
//! A file is exactly that long. Lengths are compared with the file before anything is allocated or sliced.

use std::io::Read;
use std::ops::Deref;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::service::key::FORMAT_VERSION;
use crate::service::key::Key;

const MAGIC: &[u8; 8] = b"ROPEJIT\0";
const HEADER: usize = 72;
const DIGEST: usize = 32;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A compiled kernel.
    Artifact,
    /// Which variant was chosen, and why.
    Choice,
}

impl Kind {
    /// Both kinds.
    pub const ALL: [Self; 2] = [Self::Artifact, Self::Choice];

    /// `artifact` or `choice`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Artifact => "artifact",
            Self::Choice => "choice",
        }
    }

    const fn code(self) -> u32 {
        match self {
            Self::Artifact => 1,
            Self::Choice => 2,
        }
    }
}

/// One entry: its head, and the code of an artifact. None of it can be changed, and code comes in by unsafe functions only:
/// an engine runs what its store returns, if the head says that it was made of the source that is wanted.
///
/// ```compile_fail,E0133
/// let entry = ropejit::store::Entry::decode(b"from anywhere");
/// ```
///
/// ```compile_fail,E0594
/// fn claims_to_be_another(mut entry: ropejit::store::Entry) {
///     entry.meta = Vec::new();
/// }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    head: Head,
    ptx: Vec<u8>,
    image: Vec<u8>,
}

impl Deref for Entry {
    type Target = Head;

    fn deref(&self) -> &Head {
        &self.head
    }
}

impl Entry {
    /// A choice; it has no code.
    pub fn choice(key: Key, meta: Vec<u8>) -> Self {
        Self::new(Kind::Choice, key, meta, Vec::new(), Vec::new())
    }

    /// An artifact: a compiled kernel's PTX, and its cubin or the host's library.
    ///
    /// # Safety
    /// An engine may load and run the code: a compiler has made it of the source that `meta` names, or it is never loaded.
    #[allow(unsafe_code)]
    pub unsafe fn artifact(key: Key, meta: Vec<u8>, ptx: Vec<u8>, image: Vec<u8>) -> Self {
        Self::new(Kind::Artifact, key, meta, ptx, image)
    }

    pub(crate) fn new(kind: Kind, key: Key, meta: Vec<u8>, ptx: Vec<u8>, image: Vec<u8>) -> Self {
        let (ptx_bytes, image_bytes) = (ptx.len() as u64, image.len() as u64);
        Self { head: Head { kind, key, meta, ptx_bytes, image_bytes }, ptx, image }
    }

    /// PTX of an artifact.
    pub fn ptx(&self) -> &[u8] {
        &self.ptx
    }

    /// Cubin of an artifact, or the host's library.
    pub fn image(&self) -> &[u8] {
        &self.image
    }

    pub(crate) fn into_code(self) -> (Vec<u8>, Vec<u8>) {
        (self.ptx, self.image)
    }

    /// The bytes of its file.
    pub fn encode(&self) -> Vec<u8> {
        let length = HEADER + self.meta.len() + self.ptx.len() + self.image.len() + DIGEST;
        let mut bytes = Vec::with_capacity(length);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes.extend_from_slice(&self.kind.code().to_le_bytes());
        bytes.extend_from_slice(self.key.as_bytes());
        for section in [&self.meta, &self.ptx, &self.image] {
            bytes.extend_from_slice(&(section.len() as u64).to_le_bytes());
        }
        for section in [&self.meta, &self.ptx, &self.image] {
            bytes.extend_from_slice(section);
        }
        let digest = Sha256::digest(&bytes);
        bytes.extend_from_slice(&digest);
        bytes
    }

    /// Reads an entry back, and checks its length and digest.
    ///
    /// # Safety
    /// Who could write these bytes can have code run in the process, as of [`artifact`](Self::artifact): digests find
    /// accidents, not attackers.
    ///
    /// # Errors
    /// What is wrong with the bytes.
    #[allow(unsafe_code)]
    pub unsafe fn decode(bytes: &[u8]) -> Result<Self, String> {
        Self::read(bytes)
    }

    /// As [`decode`](Self::decode), of a file whose owner and mode were looked at.
    pub(crate) fn read(bytes: &[u8]) -> Result<Self, String> {
        let Some((header, _)) = bytes.split_first_chunk::<HEADER>().filter(|_| bytes.len() >= HEADER + DIGEST) else {
            return Err(too_short(bytes.len() as u64));
        };
        is_ours(header)?;
        let (body, digest) = bytes.split_at(bytes.len() - DIGEST);
        if Sha256::digest(body).as_slice() != digest {
            return Err("its digest does not match its contents".into());
        }
        let (kind, key, lengths) = parse(header, bytes.len() as u64)?;
        let mut rest = &body[HEADER..];
        let mut section = |n: u64| {
            let (head, tail) = rest.split_at(n as usize); // inside: the sum was checked
            rest = tail;
            head.to_vec()
        };
        let [meta, ptx, image] = lengths.map(&mut section);
        Ok(Self::new(kind, key, meta, ptx, image))
    }
}

/// What stands at the head of an entry: all but its code. Its digest is not checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// What it is.
    pub kind: Kind,
    /// What it is kept under.
    pub key: Key,
    /// JSON that says what it is and where it came from.
    pub meta: Vec<u8>,
    /// Bytes of PTX.
    pub ptx_bytes: u64,
    /// Bytes of the image.
    pub image_bytes: u64,
}

impl From<Entry> for Head {
    fn from(e: Entry) -> Self {
        e.head
    }
}

impl Head {
    /// Reads the head of an entry of `length` bytes.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(mut file: impl Read, length: u64) -> Result<Self, String> {
        if length < (HEADER + DIGEST) as u64 {
            return Err(too_short(length));
        }
        let failed = |e| format!("cannot be read: {e}");
        // Most metadata comes with the header, in one read.
        let mut start = [0; 4096];
        let mut got = file.read(&mut start).map_err(failed)?;
        if got < HEADER {
            file.read_exact(&mut start[got..HEADER]).map_err(failed)?;
            got = HEADER;
        }
        let Some((header, rest)) = start[..got].split_first_chunk::<HEADER>() else { return Err(too_short(length)) };
        is_ours(header)?;
        let (kind, key, [meta_bytes, ptx_bytes, image_bytes]) = parse(header, length)?;
        let mut meta = rest[..rest.len().min(meta_bytes as usize)].to_vec();
        // A file that is shorter than it says costs no memory.
        file.take(meta_bytes - meta.len() as u64).read_to_end(&mut meta).map_err(failed)?;
        if meta.len() as u64 != meta_bytes {
            return Err("cut short while it was read".into());
        }
        Ok(Self { kind, key, meta, ptx_bytes, image_bytes })
    }
}

fn too_short(length: u64) -> String {
    format!("cut short: {length} bytes are less than an empty entry")
}

fn number(header: &[u8; HEADER], at: usize) -> u32 {
    u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
}

/// Whether it is an entry of this format.
fn is_ours(header: &[u8; HEADER]) -> Result<(), String> {
    if &header[..8] != MAGIC {
        return Err("not a ropejit entry".into());
    }
    match number(header, 8) {
        FORMAT_VERSION => Ok(()),
        version => Err(format!("format version {version}, this program reads {FORMAT_VERSION}")),
    }
}

/// Kind, key and the sections' lengths, which add up to those of a file of `length` bytes.
fn parse(header: &[u8; HEADER], length: u64) -> Result<(Kind, Key, [u64; 3]), String> {
    let kind = Kind::ALL.into_iter().find(|k| k.code() == number(header, 12)).ok_or("of an unknown kind")?;
    let long = |at: usize| u64::from(number(header, at)) | u64::from(number(header, at + 4)) << 32;
    let lengths = [long(48), long(56), long(64)];
    let total = lengths.iter().try_fold((HEADER + DIGEST) as u64, |sum, &n| sum.checked_add(n));
    if total != Some(length) {
        return Err("its lengths do not add up to its size".into());
    }
    let mut key = [0; 32];
    key.copy_from_slice(&header[16..48]);
    Ok((kind, Key::from_bytes(key), lengths))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::key::KeyFields;

    fn sample() -> Entry {
        let key = KeyFields(vec![("a".into(), "b".into())]).key();
        Entry::new(Kind::Artifact, key, b"{}".to_vec(), b"ptx".to_vec(), vec![7; 50])
    }

    #[test]
    fn reads_back() {
        assert_eq!(Entry::read(&sample().encode()), Ok(sample()));
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let good = sample().encode();
        for at in 0..good.len() {
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[at] ^= 1 << bit;
                assert!(Entry::read(&bad).is_err(), "byte {at} bit {bit}");
            }
            assert!(Entry::read(&good[..at]).is_err(), "cut at {at}");
        }
        let mut longer = good;
        longer.push(0);
        assert!(Entry::read(&longer).is_err());
    }

    #[test]
    fn lengths_that_lie_are_refused_even_with_a_matching_digest() {
        for (at, value) in [(48, u64::MAX), (56, u64::MAX - 100), (64, 1 << 60), (48, 0)] {
            let mut bytes = sample().encode();
            bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
            let body = bytes.len() - DIGEST;
            let digest = Sha256::digest(&bytes[..body]);
            bytes[body..].copy_from_slice(&digest);
            assert!(Entry::read(&bytes).expect_err("refused").contains("lengths"));
        }
    }
}
