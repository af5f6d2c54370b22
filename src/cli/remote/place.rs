//! A place in an object store: `s3://`, `gs://`, `az://`, `https://` or `file://`, read and written within a time limit.
//!
//! The crate `object_store` speaks to stores. Credentials and endpoints are read from the environment as that crate documents
//! (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT`, `GOOGLE_SERVICE_ACCOUNT`, …), certificates as `rustls-native-certs` does (`SSL_CERT_FILE`).
//! It also retries, with a jittered back-off. All here ends when the time is up.

use std::io::Write;
use std::sync::Once;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::client::ClientConfigKey;
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::http::HttpBuilder;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    BackoffConfig, ClientOptions, ObjectStore, ObjectStoreExt as _, ObjectStoreScheme, PutMode, PutPayload, RetryConfig,
};
use ropejit::{Error, ErrorKind, Result};
use tokio::runtime::Runtime;
use url::{Position, Url};

use super::reach::Limits;

/// How long to wait before a request that failed and may succeed is made again, such as one that a server was too busy for: the first
/// wait, and the factor by which the range grows that each further one is drawn from. `benches/fleet.py` has simulated it.
const BACKOFF: (Duration, f64) = (Duration::from_millis(200), 3.0);
/// The longest wait, as a part of all the time that there is. So long before its end nothing is tried again, so that the error is
/// what the store said, not that time ran out.
const LAST: u32 = 5;
/// How much of a server's answer an error repeats.
const REPEATED: usize = 200;

/// Why an object could not be read.
#[derive(Debug)]
pub enum Fault {
    /// The store is not there, refuses, does not have it, or takes too long: nothing was learnt.
    Away(Error),
    /// What came is not the object: it breaks off, or is larger than it can be.
    Broken(Error),
}

impl Fault {
    /// The error, for those to whom both are the same.
    pub fn into_error(self) -> Error {
        match self {
            Self::Away(e) | Self::Broken(e) => e,
        }
    }
}

/// A place in an object store.
pub struct Place {
    runtime: Option<Runtime>,
    store: Box<dyn ObjectStore>,
    root: Path,
    /// Without what it says of users and passwords.
    shown: String,
    ends: Instant,
    limit: Duration,
}

impl Place {
    /// The place that a URL names; asks no server yet. The time runs from now on.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] when the URL, or what the environment says about its store, is wrong.
    pub fn open(address: &str, limits: Limits) -> Result<Self> {
        let wrong = |why: String| {
            Error::argument("URL", why)
                .hint("such as s3://bucket/folder, gs://…, az://…, https://host/folder or file:///folder")
        };
        let url = Url::parse(address).map_err(|e| wrong(format!("'{}': {e}", without_password(address))))?;
        let mut shown = url.clone();
        if !url.username().is_empty() || url.password().is_some() {
            let _ = (shown.set_username("***"), shown.set_password(None));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(wrong(format!("{}: a URL of a folder has no ? and no #", &shown[..Position::AfterPath])));
        }
        let shown = shown.as_str().trim_end_matches('/').to_owned();
        let unusable = |e: object_store::Error| {
            Error::argument("URL", format!("{shown}: the store cannot be used: {}", told(&e)))
                .hint("its region, endpoint and credentials come from the environment")
        };
        let (scheme, root) =
            ObjectStoreScheme::parse(&url).map_err(|_| wrong(format!("{shown}: no kind of store that is known")))?;
        let store = open(&scheme, &url, limits)
            .map_err(unusable)?
            .ok_or_else(|| wrong(format!("{shown}: no kind of store that is known")))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime =
            runtime.map_err(|e| Error::new(ErrorKind::Io, "no network: it cannot be waited for").caused_by(e))?;
        let limit = limits.whole;
        Ok(Self { runtime: Some(runtime), store, root, shown, ends: Instant::now() + limit, limit })
    }

    /// The address of an object, for people.
    pub fn address(&self, name: &str) -> String {
        format!("{}/{name}", self.shown)
    }

    /// Time that is left.
    pub fn left(&self) -> Duration {
        self.ends.saturating_duration_since(Instant::now())
    }

    /// An object of at most so many bytes.
    pub fn get(&self, name: &str, most: u64) -> Result<Vec<u8>, Fault> {
        let mut bytes = Vec::new();
        self.get_to(name, most, &mut bytes).map(|()| bytes)
    }

    /// Writes an object of at most so many bytes to `sink`, as they come.
    pub fn get_to(&self, name: &str, most: u64, sink: &mut impl Write) -> Result<(), Fault> {
        let away = |e: object_store::Error| {
            let (why, hint) = match e {
                object_store::Error::NotFound { .. } => ("is not there".into(), ""),
                object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => {
                    (format!("may not be read: {}", told(&e)), "look at the credentials, or whether it is there at all")
                }
                _ => (
                    format!("cannot be read: {}", told(&e)),
                    "look at the address, the network and the store's endpoint",
                ),
            };
            let error = Error::new(ErrorKind::Io, why).subject_is(self.address(name));
            Fault::Away(if hint.is_empty() { error } else { error.hint(hint) })
        };
        let broken = |why: String| Fault::Broken(Error::new(ErrorKind::Io, why).subject_is(self.address(name)));
        let path = self.path(name);
        self.within(name, async {
            let found = self.store.get(&path).await.map_err(away)?;
            let size = found.meta.size;
            if size > most {
                return Err(broken(format!("is larger than it can be: {size} bytes, at most {most}")));
            }
            let (mut done, mut parts) = (0, found.into_stream());
            while let Some(part) = parts.next().await {
                let part = part.map_err(|e| broken(format!("broke off after {done} of {size} bytes: {}", told(&e))))?;
                done += part.len() as u64;
                if done > size {
                    return Err(broken(format!("is larger than was said: more than {size} bytes")));
                }
                sink.write_all(&part).map_err(|e| {
                    let kept = Error::new(ErrorKind::Io, "what comes cannot be kept").subject_is(self.address(name));
                    Fault::Broken(kept.caused_by(e).hint("make room there, or name another folder: --into DIR"))
                })?;
            }
            if done < size {
                return Err(broken(format!("broke off after {done} of {size} bytes")));
            }
            Ok(())
        })
        .unwrap_or_else(|late| Err(Fault::Away(late)))
    }

    /// Writes an object whose name says what is in it; says whether it was missing. One that is there is left as it is, unless its
    /// size is wrong.
    pub fn put_once(&self, name: &str, bytes: &[u8]) -> Result<bool> {
        let path = self.path(name);
        let done = self.within(name, async {
            let payload = PutPayload::from(bytes.to_vec());
            match self.store.put_opts(&path, payload.clone(), PutMode::Create.into()).await {
                Ok(_) => Ok(true),
                Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => {
                    if self.store.head(&path).await?.size == bytes.len() as u64 {
                        Ok(false)
                    } else {
                        self.store.put(&path, payload).await.map(|_| true)
                    }
                }
                // A store without conditions: writing the same bytes again is no harm.
                Err(object_store::Error::NotImplemented { .. } | object_store::Error::NotSupported { .. }) => {
                    self.store.put(&path, payload).await.map(|_| true)
                }
                Err(e) => Err(e),
            }
        });
        done?.map_err(|e| self.unwritable(name, &e))
    }

    /// Writes an object, in place of the one that is there. Readers see either.
    pub fn put(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let (path, payload) = (self.path(name), PutPayload::from(bytes.to_vec()));
        self.within(name, self.store.put(&path, payload))?.map(|_| ()).map_err(|e| self.unwritable(name, &e))
    }

    fn unwritable(&self, name: &str, e: &object_store::Error) -> Error {
        Error::new(ErrorKind::Io, format!("cannot be written: {}", told(e))).subject_is(self.address(name))
    }

    fn path(&self, name: &str) -> Path {
        name.split('/').fold(self.root.clone(), Path::join)
    }

    /// Waits for an answer, as long as there is time.
    fn within<T>(&self, name: &str, answer: impl Future<Output = T>) -> Result<T> {
        let late = || {
            Error::new(ErrorKind::Io, format!("too slow: no answer within {:?}", self.limit))
                .subject_is(self.address(name))
                .hint("give it more time: --timeout SECONDS")
        };
        let runtime = self.runtime.as_ref().ok_or_else(late)?;
        runtime.block_on(async { tokio::time::timeout(self.left(), answer).await }).map_err(|_| late())
    }
}

impl Drop for Place {
    /// A file system that hangs is not waited for.
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// The store of a URL; `None` for a kind that is not served.
fn open(scheme: &ObjectStoreScheme, url: &Url, limits: Limits) -> object_store::Result<Option<Box<dyn ObjectStore>>> {
    static RING: Once = Once::new();
    RING.call_once(|| {
        // Fails where the program has chosen another one, which does as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
    let (init_backoff, base) = BACKOFF;
    let max_backoff = limits.whole / LAST;
    let retry = RetryConfig {
        backoff: BackoffConfig { init_backoff, max_backoff, base },
        max_retries: usize::MAX,
        retry_timeout: max_backoff * (LAST - 1),
    };
    // The whole is timed here; a request of its own may take all of it.
    let times = [
        (ClientConfigKey::ConnectTimeout, limits.connect),
        (ClientConfigKey::Timeout, limits.whole + Duration::from_secs(1)),
    ]
    .map(|(key, time)| (key, format!("{}ms", time.as_millis())));
    Ok(Some(match scheme {
        ObjectStoreScheme::Local => Box::new(LocalFileSystem::new()),
        ObjectStoreScheme::AmazonS3 => {
            let builder = AmazonS3Builder::from_env().with_url(url.as_str()).with_retry(retry);
            let timed = times.into_iter().fold(builder, |b, (k, v)| b.with_config(AmazonS3ConfigKey::Client(k), v));
            Box::new(timed.build()?)
        }
        ObjectStoreScheme::GoogleCloudStorage => {
            let builder = GoogleCloudStorageBuilder::from_env().with_url(url.as_str()).with_retry(retry);
            let timed = times.into_iter().fold(builder, |b, (k, v)| b.with_config(GoogleConfigKey::Client(k), v));
            Box::new(timed.build()?)
        }
        ObjectStoreScheme::MicrosoftAzure => {
            let builder = MicrosoftAzureBuilder::from_env().with_url(url.as_str()).with_retry(retry);
            let timed = times.into_iter().fold(builder, |b, (k, v)| b.with_config(AzureConfigKey::Client(k), v));
            Box::new(timed.build()?)
        }
        ObjectStoreScheme::Http => {
            // Signatures protect what comes, whatever it comes over; `pull` takes nothing unsigned over plain http.
            let options = ClientOptions::new().with_allow_http(true);
            let options = times.into_iter().fold(options, |o, (k, v)| o.with_config(k, v));
            let host = &url[..Position::BeforePath];
            Box::new(HttpBuilder::new().with_url(host).with_client_options(options).with_retry(retry).build()?)
        }
        _ => return Ok(None),
    }))
}

/// A URL that is none, without what may be a password.
fn without_password(text: &str) -> String {
    match (text.find("://"), text.rfind('@')) {
        (Some(scheme), Some(at)) if at > scheme => format!("{}***{}", &text[..scheme + 3], &text[at..]),
        _ => text.to_owned(),
    }
}

/// What is beneath an error, in one line. Its own text, and that of those in between, repeats the address and tells of retries;
/// servers answer with whole pages.
fn told(e: &dyn std::error::Error) -> String {
    let mut told: Vec<String> = Vec::new();
    for e in std::iter::successors(Some(e), |e| e.source()) {
        let text = e.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
        if !text.contains("Error performing") && !told.iter().any(|above| above.contains(&text)) {
            told.push(text);
        }
    }
    let line = if told.is_empty() { e.to_string() } else { told.join(": ") };
    match line.char_indices().nth(REPEATED) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}
