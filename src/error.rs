//! The one error type of the crate: what went wrong, where (argument, path or key), why, and what to do about it.

use std::any::Any;
use std::borrow::Cow;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// The result of every fallible operation of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What class of failure an [`Error`] is, for callers that react to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// An argument is wrong: the subject names it.
    InvalidArgument,
    /// A model configuration cannot be understood: the subject names the key.
    Config,
    /// A kernel's description (its `.toml` or `.cu`) is wrong: the subject is its path, and the line where there is one.
    Template,
    /// No device of the wanted kind can be used.
    DeviceUnavailable,
    /// A compiler (NVRTC, or the system's C++ compiler) cannot be found.
    CompilerMissing,
    /// A kernel does not compile.
    Compile,
    /// The driver refused an operation.
    Device,
    /// Not enough free memory on the device.
    OutOfMemory,
    /// Reading or writing a file failed: the subject is its path.
    Io,
    /// The cache folder cannot be trusted: the subject is its path.
    UntrustedCache,
    /// `Frozen` forbids work, and what was asked for is not in the cache: the subject names the entry.
    NotCached,
    /// A pack cannot be used: it is damaged, or for something else. The subject is its path.
    Pack,
    /// A signature is missing, wrong, or of nobody who is trusted; or a key is none.
    Signature,
    /// A lock file cannot be used as it stands: the subject is its path, and the line where there is one.
    LockFile,
    /// A token's position lies outside the cos/sin table.
    PositionOutOfRange,
    /// A correct request that this version cannot serve.
    Unsupported,
}

/// What went wrong, where, why, and what to do about it.
///
/// `Display` prints `subject: message`, the cause if there is one, and the hint on a line of its own.
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    subject: Option<String>,
    message: String,
    hint: Option<String>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
    detail: Option<Arc<dyn Any + Send + Sync>>,
}

impl Error {
    /// An error of this kind with a message that says what is wrong.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Box::new(Inner { kind, subject: None, message: message.into(), hint: None, source: None, detail: None }))
    }

    /// An argument that is wrong: `argument` is its name as the caller wrote it.
    pub fn argument(argument: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidArgument, message).subject_is(argument)
    }

    /// A failed file operation.
    pub fn io(path: &Path, message: impl Into<String>, source: std::io::Error) -> Self {
        Self::new(ErrorKind::Io, message).subject_is(path.display().to_string()).caused_by(source)
    }

    /// Names what the error is about: an argument, a path or a key.
    #[must_use]
    pub fn subject_is(mut self, subject: impl Into<String>) -> Self {
        self.0.subject = Some(subject.into());
        self
    }

    /// Says what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// Keeps what the error is about, for those who can say more of it than a text does.
    #[must_use]
    pub(crate) fn about<T: Any + Send + Sync>(mut self, detail: T) -> Self {
        self.0.detail = Some(Arc::new(detail));
        self
    }

    /// What the error is about, where it says that with a value of this type.
    pub fn detail<T: Any>(&self) -> Option<&T> {
        self.0.detail.as_deref()?.downcast_ref()
    }

    /// Keeps the error underneath.
    #[must_use]
    pub fn caused_by(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// What went wrong and where, in one line.
    pub(crate) fn without_hint(&self) -> String {
        let mut error = self.again();
        error.0.hint = None;
        error.to_string()
    }

    /// The same error once more, with its cause as text: for a failure that is remembered.
    pub(crate) fn again(&self) -> Self {
        let Inner { kind, subject, message, hint, source, detail } = self.0.as_ref();
        let source = source.as_ref().map(|s| s.to_string().into());
        let (subject, message, hint) = (subject.clone(), message.clone(), hint.clone());
        Self(Box::new(Inner { kind: *kind, subject, message, hint, source, detail: detail.clone() }))
    }

    /// The class of the failure.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The argument, path or key that the error is about.
    pub fn subject(&self) -> Option<&str> {
        self.0.subject.as_deref()
    }

    /// What went wrong, without subject, cause and hint.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// What to do about it.
    pub fn advice(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }
}

impl fmt::Display for Error {
    /// What comes from files, keys and paths say, is in here as well: nothing of it is obeyed by a terminal.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(subject) = &self.0.subject {
            write!(f, "{}: ", shown(subject))?;
        }
        f.write_str(&shown(&self.0.message))?;
        if let Some(source) = &self.0.source {
            write!(f, ": {}", shown(&source.to_string()))?;
        }
        if let Some(hint) = &self.0.hint {
            write!(f, "\nhint: {}", shown(hint))?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.0.kind)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|s| s as _)
    }
}

/// As much of a text from outside as a message should repeat.
pub(crate) fn clip(text: &str) -> &str {
    text.char_indices().nth(160).map_or(text, |(at, _)| &text[..at])
}

/// The text without what a terminal would obey: control characters are spelled out (`\u{1b}`), but for line ends and tabs, and
/// so are those that turn the direction of writing.
pub fn shown(text: &str) -> Cow<'_, str> {
    let obeyed = |c: char| {
        (c.is_control() && !matches!(c, '\n' | '\t'))
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if !text.contains(obeyed) {
        return Cow::Borrowed(text);
    }
    let spelled = |c: char| if obeyed(c) { c.escape_unicode().collect() } else { String::from(c) };
    Cow::Owned(text.chars().map(spelled).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_where_why_and_what_to_do() {
        let e = Error::io(Path::new("/x"), "cannot be read", std::io::Error::other("disk on fire")).hint("buy a disk");
        assert_eq!(e.to_string(), "/x: cannot be read: disk on fire\nhint: buy a disk");
        assert_eq!(e.kind(), ErrorKind::Io);
        assert_eq!(e.subject(), Some("/x"));
    }

    #[test]
    fn a_terminal_obeys_nothing_of_it() {
        let io = std::io::Error::other("c\x1b[2J");
        let e = Error::io(Path::new("/a\x1b]0;b\x07"), "k\u{9b}31m", io).hint("d\r");
        assert_eq!(e.to_string(), "/a\\u{1b}]0;b\\u{7}: k\\u{9b}31m: c\\u{1b}[2J\nhint: d\\u{d}");
    }

    #[test]
    fn what_a_terminal_obeys_is_spelled_out() {
        assert_eq!(shown("a\x1b[31mb\u{9b}2J\x07\r\x7f"), "a\\u{1b}[31mb\\u{9b}2J\\u{7}\\u{d}\\u{7f}");
        assert_eq!(shown("\u{202e}cba"), "\\u{202e}cba");
        for plain in ["", "two\nlines\tand µs × …", "模型"] {
            assert!(matches!(shown(plain), Cow::Borrowed(same) if same == plain));
        }
    }
}
