//! Packs over object stores: `ropejit push`, `ropejit pull`. The engine has no network; this is the command's alone.
//!
//! ```text
//! <URL>/v1/<templates>/<arch>/
//!   <sha256>.pack            named by its digest, never changed
//!   <sha256>.pack.minisig    its signature
//!   latest                   which pack to pull; signed, written last
//! ```
//!
//! [`place`] reads and writes objects within a time limit, [`latest`] is the text of that object, [`trust`] whose signatures count.

mod latest;
mod place;
mod pull;
mod push;
mod trust;

use std::time::Duration;

pub use pull::{Order, Pull};
pub use push::{Push, publish};
pub use trust::{Accepted, Signing};

use ropejit::jit::Key;

/// The layout of a store that this version reads and writes.
const LAYOUT: &str = "v1";
/// The object that says which pack to pull.
const LATEST: &str = "latest";

/// What the help says of a URL.
macro_rules! url_help {
    () => {
        "Folder of a store: s3://bucket/folder, gs://…, az://…, https://host/folder or file:///folder. Credentials and \
         endpoints come from the environment, as the store's own tools name them; certificates of your own from SSL_CERT_FILE"
    };
}
pub(super) use url_help;

/// How long to wait for a store.
#[derive(clap::Args, Clone, Copy)]
pub struct Patience {
    /// Seconds that connecting to the store may take.
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "1")]
    connect_timeout: Duration,
    /// Seconds that all of it may take, retries included.
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "5")]
    timeout: Duration,
}

fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.001..=86_400.0).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err(format!("'{text}' is not a number of seconds from 0.001 to 86400")),
    }
}

/// Where in a store the packs for these templates and an architecture lie.
fn folder(templates: Key, arch: &str) -> String {
    format!("{LAYOUT}/{templates}/{arch}")
}
