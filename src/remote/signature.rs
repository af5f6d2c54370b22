//! Who made a pack: signatures in the format of minisign, which its program makes and verifies as well.
//!
//! A signature is a file of four lines beside what it signs, `OUT.pack.minisig`. The public key is a line of 56 characters
//! (`RW…`), the secret key a file, with a password or without.

use std::fmt;
use std::io::{self, Read, Write as _};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::pack::{OnEntry, Pack};
use crate::error::{Error, ErrorKind, Result};
use crate::service::key::Key;
use crate::system::{private, read_text, replace};

/// Longer files are no keys and no signatures.
const MAX_TEXT: u64 = 16 << 10;

/// A key that says whose signatures count.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey {
    key: minisign_verify::PublicKey,
    text: String,
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

impl std::str::FromStr for PublicKey {
    type Err = Error;

    /// A key as a line of text, `RW…`.
    fn from_str(text: &str) -> Result<Self> {
        let text = text.trim();
        let key = minisign_verify::PublicKey::from_base64(text).map_err(|_| {
            Error::argument("--pubkey", format!("'{}' is not a public key of minisign", crate::error::clip(text)))
                .hint("give the line that `ropejit pack keygen` printed (56 characters that begin with RW), or the file with it")
        })?;
        Ok(Self { key, text: text.to_owned() })
    }
}

impl PublicKey {
    /// A key as a line of text, or the file that holds it (`ropejit.pub`).
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] when it is neither.
    pub fn read(text_or_file: &str) -> Result<Self> {
        let path = Path::new(text_or_file);
        if !path.is_file() {
            return text_or_file.parse();
        }
        let text = read_text(path, MAX_TEXT).map_err(|e| Error::io(path, "the public key cannot be read", e))?;
        let line = text.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or_default();
        line.parse().map_err(|e: Error| e.subject_is(text_or_file))
    }
}

/// What was signed, by whom: comes of [`verify`] only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    sha256: Key,
    key: PublicKey,
    comment: String,
}

impl Signed {
    /// SHA-256 of what was signed.
    pub fn sha256(&self) -> Key {
        self.sha256
    }

    /// The key that it was signed with.
    pub fn key(&self) -> &PublicKey {
        &self.key
    }

    /// The comment that was signed with it.
    pub fn comment(&self) -> &str {
        &self.comment
    }
}

/// Where a file's signature is.
pub fn path_of(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".minisig");
    name.into()
}

/// Verifies that one of the keys has signed all that `data` reads. Errors call it `name`.
///
/// # Errors
/// [`ErrorKind::Signature`] when `signature` is none, of none of the keys, or of something else.
pub fn verify(name: &str, data: impl Read, signature: &str, keys: &[PublicKey]) -> Result<Signed> {
    let refused = |why: String, hint: &str| Error::new(ErrorKind::Signature, why).subject_is(name).hint(hint);
    if keys.is_empty() {
        return Err(refused("no public key says whose signatures count".into(), "name one: --pubkey RW…"));
    }
    let signature = minisign_verify::Signature::decode(signature).map_err(|e| {
        refused(
            format!("its signature cannot be read: {e}"),
            "sign it again: ropejit pack sign OUT.pack --key ropejit.key",
        )
    })?;
    // One that another key has made is told by the key's number, which both name.
    let mut verifiers = Vec::new();
    let mut legacy = false;
    for key in keys {
        match key.key.verify_stream(&signature) {
            Ok(verifier) => verifiers.push((key, verifier)),
            Err(minisign_verify::Error::UnsupportedLegacyMode) => legacy = true,
            Err(_) => {}
        }
    }
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    let mut data = data;
    loop {
        match data.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => {
                hasher.update(&buffer[..n]);
                for (_, verifier) in &mut verifiers {
                    verifier.update(&buffer[..n]);
                }
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Error::io(Path::new(name), "cannot be read", e)),
        }
    }
    let sha256 = Key::from_bytes(hasher.finalize().into());
    if legacy {
        return Err(refused(
            "its signature is of the format before minisign 0.8".into(),
            "sign it again: minisign -S -H, or ropejit pack sign",
        ));
    }
    if verifiers.is_empty() {
        return Err(refused(
            "signed with another key than those that are accepted".into(),
            "give the signer's key as well, if you trust it: --pubkey may be given more than once",
        ));
    }
    for (key, mut verifier) in verifiers {
        if verifier.finalize().is_ok() {
            let comment = signature.trusted_comment().to_owned();
            return Ok(Signed { sha256, key: key.clone(), comment });
        }
    }
    Err(refused(
        "its signature does not match: it is not what was signed".into(),
        "get it and its .minisig again; it may have been tampered with",
    ))
}

/// Writes a signature beside what it signs; one that is there is replaced, at once.
///
/// # Errors
/// [`ErrorKind::Io`] when it cannot be written.
pub fn write(path: &Path, signature: &str) -> Result<()> {
    replace(path, |file| file.write_all(signature.as_bytes())).map_err(|e| {
        Error::io(path, "the signature cannot be written", e).hint("sign it where you can write beside it")
    })
}

impl Pack {
    /// Verifies the signature beside the pack's file.
    ///
    /// # Errors
    /// As [`verify`]; [`ErrorKind::Signature`] also where there is no signature.
    pub fn verify_signature(&self, keys: &[PublicKey]) -> Result<Signed> {
        let path = path_of(self.path());
        let text = match read_text(&path, MAX_TEXT) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(Error::new(ErrorKind::Signature, "not signed: there is no .minisig beside it")
                    .subject_is(self.path().display().to_string())
                    .hint("sign it (ropejit pack sign), or say --trust-unsigned if you know who made it"));
            }
            Err(e) => return Err(Error::io(&path, "the signature cannot be read", e)),
        };
        let data = self.all().map_err(|e| Error::io(self.path(), "the pack cannot be read", e))?;
        verify(&self.path().display().to_string(), data, &text, keys)
    }
}

/// A key that signs.
pub struct SecretKey {
    key: minisign::SecretKey,
    path: PathBuf,
}

impl SecretKey {
    /// Reads a key's file. Where the key has a password, `password` says it; `None` asks for it at the terminal.
    ///
    /// # Errors
    /// [`ErrorKind::Signature`] when it is no key or the password is wrong; [`ErrorKind::Io`] when it cannot be read.
    pub fn read(path: &Path, password: impl FnOnce() -> Result<Option<String>>) -> Result<Self> {
        let text = read_text(path, MAX_TEXT).map_err(|e| {
            Error::io(path, "the secret key cannot be read", e).hint("make one: ropejit pack keygen --key ropejit.key")
        })?;
        let refused = |why: &str, e: &minisign::PError| {
            Error::new(ErrorKind::Signature, format!("{why}: {e}")).subject_is(path.display().to_string())
        };
        let hint = "make one: ropejit pack keygen --key ropejit.key";
        let parse =
            || minisign::SecretKeyBox::from_string(&text).map_err(|e| refused("it cannot be read", &e).hint(hint));
        let raw = raw_key(&text).ok_or_else(|| {
            Error::new(ErrorKind::Signature, "not a secret key of minisign")
                .subject_is(path.display().to_string())
                .hint(hint)
        })?;
        let key = if !has_password(&raw) && raw[CHECKSUM..].iter().all(|&byte| byte == 0) {
            // `minisign -G -W` writes no checksum; the signature itself is checked.
            minisign::SecretKey::from_bytes(&raw).map_err(|e| refused("it cannot be read", &e).hint(hint))?
        } else if has_password(&raw) {
            parse()?.into_secret_key(password()?).map_err(|e| {
                refused("cannot be opened", &e).hint("name the file with its password: --password-file FILE")
            })?
        } else {
            parse()?.into_unencrypted_secret_key().map_err(|e| refused("it is damaged", &e).hint(hint))?
        };
        Ok(Self { key, path: path.to_owned() })
    }

    /// The signature of all that `data` reads, as the text of its file; `comment` is signed with it.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] when that cannot be read.
    pub fn sign(&self, data: impl Read, comment: &str) -> Result<String> {
        let failed = |e: minisign::PError| {
            Error::new(ErrorKind::Io, "cannot sign").subject_is(self.path.display().to_string()).caused_by(e)
        };
        // The signature is verified before it is given out.
        let public = minisign::PublicKey::from_secret_key(&self.key).map_err(failed)?;
        let signature =
            minisign::sign(Some(&public), &self.key, data, Some(comment), Some("signature from ropejit's secret key"))
                .map_err(failed)?;
        Ok(signature.into_string())
    }

    /// The signature of a pack whose entries were all checked.
    ///
    /// # Errors
    /// As [`Pack::verify_entries`].
    pub fn sign_pack(&self, pack: &Pack, progress: OnEntry<'_>) -> Result<String> {
        let sha256 = pack.verify_entries(progress)?;
        let data = pack.all().map_err(|e| Error::io(pack.path(), "the pack cannot be read", e))?;
        let name = pack.path().file_name().unwrap_or_default().to_string_lossy().replace(char::is_control, "_");
        self.sign(data, &format!("file:{name} sha256:{sha256}"))
    }

    /// The public key that belongs to it.
    ///
    /// # Errors
    /// [`ErrorKind::Signature`] when it has none.
    pub fn public(&self) -> Result<PublicKey> {
        let key = minisign::PublicKey::from_secret_key(&self.key).map_err(|e| {
            Error::new(ErrorKind::Signature, format!("it has no public key: {e}"))
                .subject_is(self.path.display().to_string())
        })?;
        key.to_base64().parse()
    }
}

/// Length of a secret key, and where in it its checksum begins: algorithm, derivation and checksum's algorithm (2 bytes each), salt
/// (32), limits (16), number (8), key (64), checksum (32).
const SECRET: usize = 158;
const CHECKSUM: usize = SECRET - 32;

/// The bytes of a secret key's file.
fn raw_key(text: &str) -> Option<Vec<u8>> {
    use ct_codecs::Decoder as _;
    let raw = ct_codecs::Base64::decode_to_vec(text.lines().nth(1)?.trim(), None).ok()?;
    (raw.len() == SECRET && raw.starts_with(b"Ed")).then_some(raw)
}

/// Whether a key is derived from a password.
fn has_password(raw: &[u8]) -> bool {
    raw[2..4] != [0, 0]
}

/// Makes a pair of keys: the secret one in a new file of mode 0600, the public one beside it (`.pub`). Without a password the
/// file alone signs; one that is wanted and not given is asked for at the terminal.
///
/// # Errors
/// [`ErrorKind::Io`] when one of the files is there already or cannot be written.
pub fn keygen(path: &Path, protected: bool, password: Option<String>) -> Result<(PublicKey, PathBuf)> {
    let failed = |e: minisign::PError| Error::new(ErrorKind::Io, "no key can be made").caused_by(e);
    let (pair, comment) = if protected {
        (minisign::KeyPair::generate_encrypted_keypair(password), "ropejit's secret key, with a password")
    } else {
        (minisign::KeyPair::generate_unencrypted_keypair(), "ropejit's secret key")
    };
    let pair = pair.map_err(failed)?;
    let public_path = path.with_extension("pub");
    let texts = [
        (path, pair.sk.to_box(Some(comment)).map_err(failed)?.into_string()),
        (&public_path, pair.pk.to_box().map_err(failed)?.into_string()),
    ];
    for (path, _) in &texts {
        if path.exists() {
            let there = io::ErrorKind::AlreadyExists.into();
            return Err(
                Error::io(path, "a key is never written over", there).hint("name another file: --key OTHER.key")
            );
        }
    }
    for (path, text) in &texts {
        private::write_new(path, text.as_bytes()).map_err(|e| {
            Error::io(path, "the key cannot be written", e)
                .hint("name a new file in a folder that is there: --key FILE")
        })?;
    }
    Ok((pair.pk.to_base64().parse()?, public_path))
}
