//! Where objects are, and how long to wait for them.

use std::time::Duration;

use ropejit::jit::Key;

/// The layout of a store that this version reads and writes.
const LAYOUT: &str = "v1";
/// The object that says which pack to pull.
pub const LATEST: &str = "latest";

/// What the help says of a URL.
pub const URL_HELP: &str = "Folder of a store: s3://bucket/folder, gs://…, az://…, https://host/folder or file:///folder. Credentials \
    and endpoints come from the environment, as the store's own tools name them; certificates of your own from SSL_CERT_FILE";

/// How long to wait for a store.
#[derive(clap::Args, Clone, Copy)]
pub struct Patience {
    /// Seconds that connecting to the store may take.
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "1")]
    pub connect_timeout: Duration,
    /// Seconds that all of it may take, retries included.
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "5")]
    pub timeout: Duration,
}

fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.001..=86_400.0).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err(format!("'{text}' is not a number of seconds from 0.001 to 86400")),
    }
}

/// Where in a store the packs for these templates and an architecture lie.
pub fn folder(templates: Key, arch: &str) -> String {
    format!("{LAYOUT}/{templates}/{arch}")
}
