//! `latest`: which pack of a folder to pull.
//!
//! One small object, so that a reader has all of it or none: what it says, one fact a line; the pack's signature, if it has one;
//! the signature of these lines, if they have one.
//!
//! ```text
//! ropejit latest 1
//! templates 5f70…
//! arch sm_90
//! pack 3f09…
//! bytes 301245
//! signature of the pack       and four lines of minisign, if it has one
//! signature of the above      the same of all lines before, if they have one
//! ```
//!
//! The pack's signature is in it so that a node makes two requests, not three. Every line is known: what a later version may
//! add needs another number in the first.

use std::fmt::Write as _;

use ropejit::jit::Key;
use ropejit::{Error, ErrorKind, Result};

/// What a `latest` may be, in bytes.
pub const MOST: u64 = 64 << 10;
const FIRST: &str = "ropejit latest 1";
const OF_PACK: &str = "signature of the pack";
const OF_THIS: &str = "signature of the above";
/// Lines before signatures.
const FACTS: usize = 5;
/// Lines of a signature: its title, and minisign's four.
const SIGNATURE: usize = 5;

/// What a `latest` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Latest {
    /// The templates that the pack's kernels are of.
    pub templates: String,
    /// Their architecture.
    pub arch: String,
    /// SHA-256 of the pack's file.
    pub pack: Key,
    /// Its size.
    pub bytes: u64,
    /// The pack's signature in minisign's format.
    pub signature: Option<String>,
}

impl Latest {
    /// The text that is signed.
    pub fn text(&self) -> String {
        let Self { templates, arch, pack, bytes, signature } = self;
        let mut text = format!("{FIRST}\ntemplates {templates}\narch {arch}\npack {pack}\nbytes {bytes}\n");
        if let Some(signature) = signature {
            let _ = writeln!(text, "{OF_PACK}\n{}", signature.trim_end());
        }
        text
    }

    /// The whole object; `signature` is that of [`text`](Self::text).
    pub fn with(&self, signature: Option<&str>) -> String {
        let signature = signature.map(|signature| format!("{OF_THIS}\n{}\n", signature.trim_end()));
        self.text() + &signature.unwrap_or_default()
    }

    /// Reads a `latest`: what it says, and the signature of its text.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] when it is none.
    pub fn read(bytes: &[u8]) -> Result<(Self, Option<String>)> {
        let bad = |why: &str| Error::new(ErrorKind::Io, format!("is no list of packs of this version: {why}"));
        let text = std::str::from_utf8(bytes).map_err(|_| bad("it is no text"))?;
        let lines: Vec<&str> = text.lines().collect();
        let fact = |at: usize, name: &str| {
            let line = lines.get(at).and_then(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.ok_or_else(|| bad(&format!("line {} does not say '{name}'", at + 1)))
        };
        if lines.first() != Some(&FIRST) {
            return Err(bad(&format!("it does not begin with '{FIRST}'")));
        }
        let pack = fact(3, "pack")?.parse().map_err(|_| bad("its pack's name is no SHA-256"))?;
        let size = fact(4, "bytes")?.parse().map_err(|_| bad("its pack's size is no number"))?;
        let joined = |lines: &[&str]| lines.iter().fold(String::new(), |all, line| all + line + "\n");
        let mut end = FACTS;
        let mut section = |title: &str| {
            let lines = lines.get(end..end + SIGNATURE).filter(|lines| lines[0] == title)?;
            end += SIGNATURE;
            Some(joined(&lines[1..]))
        };
        let signature = section(OF_PACK);
        let own = section(OF_THIS);
        let latest = Self {
            templates: fact(1, "templates")?.to_owned(),
            arch: fact(2, "arch")?.to_owned(),
            pack,
            bytes: size,
            signature,
        };
        // What it says, written anew, is what was read: so nothing is in it that was not understood.
        if latest.with(own.as_deref()).as_bytes() != bytes {
            return Err(bad("it holds more than that, or is written otherwise"));
        }
        Ok((latest, own))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn some(signature: Option<&str>) -> Latest {
        Latest {
            templates: "5f".repeat(32),
            arch: "sm_90".into(),
            pack: Key::from_bytes([7; 32]),
            bytes: 12,
            signature: signature.map(Into::into),
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let minisig = "untrusted comment: x\nRU\ntrusted comment: y\nAA\n";
        for of_pack in [None, Some(minisig)] {
            for own in [None, Some(minisig)] {
                let latest = some(of_pack);
                let (read, signature) = Latest::read(latest.with(own).as_bytes()).expect("reads");
                assert_eq!((read, signature.as_deref()), (latest, own));
            }
        }
    }

    #[test]
    fn other_text_is_refused() {
        let good = some(None).text();
        for bad in [
            "",
            "<html>",
            &good.replace("latest 1", "latest 2"),
            &good.replace("bytes 12", "bytes  12"),
            &good.replace("bytes 12", "bytes +12"),
            &good.replace("pack 07", "pack 0"),
            &(good.clone() + "more\n"),
            &good.to_uppercase(),
            &good.replace('\n', "\r\n"),
        ] {
            assert!(Latest::read(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(bytes in proptest::collection::vec(any::<u8>(), 0..400), at in 0usize..400, byte: u8) {
            let _ = Latest::read(&bytes);
            let mut near = some(None).text().into_bytes();
            let at = at % near.len();
            near[at] = byte;
            if let Ok((read, own)) = Latest::read(&near) {
                prop_assert_eq!(read.with(own.as_deref()).into_bytes(), near);
            }
        }
    }
}
