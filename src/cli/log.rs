//! What the library warns of, on stderr, as `ROPEJIT_LOG` says; in colours as help has them (`NO_COLOR`, `CLICOLOR`, `CLICOLOR_FORCE`).

use std::ffi::OsStr;

use anstream::{AutoStream, ColorChoice};
use ropejit::system::environment;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use super::output;

/// Warnings. What the library that judges certificates says is in the error as well.
const DEFAULT: &str = "warn,rustls_platform_verifier=off";

/// Warnings of the library go to stderr, in colours only where a person reads them and wants any. A program that has set up a
/// log of its own keeps it.
pub fn to_stderr() {
    let (filter, problem) = match environment::raw("ROPEJIT_LOG") {
        Some(value) => match filter(&value) {
            Ok(filter) => (filter, None),
            Err(problem) => (EnvFilter::new(DEFAULT), Some(problem)),
        },
        None => (EnvFilter::new(DEFAULT), None),
    };
    let colours = AutoStream::choice(&std::io::stderr()) != ColorChoice::Never;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        // Without the standard library's lock, which a thread of a parent may hold in a child of fork().
        .with_writer(|| {
            output::make_room();
            ropejit::system::Stderr
        })
        .with_ansi(colours)
        .without_time()
        .with_target(false)
        .try_init()
        .ok();
    if let Some(problem) = problem {
        tracing::warn!("ROPEJIT_LOG: {problem}; warnings are logged");
    }
}

/// Levels and directives, separated by commas. A word that is no level would be taken for a module, and silence all others.
fn filter(value: &OsStr) -> Result<EnvFilter, String> {
    let text = value.to_str().ok_or("it is not valid text")?;
    for word in text.split(',').map(str::trim).filter(|word| !word.contains('=')) {
        if word.parse::<LevelFilter>().is_err() && !word.starts_with("ropejit") {
            return Err(format!("'{word}' is no level: error, warn, info, debug, trace or off"));
        }
    }
    EnvFilter::try_new(text).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_level_is_named() {
        for good in
            ["debug", "WARN", "off", "ropejit=debug", "warn,ropejit=trace", "ropejit::store=debug, info", "ropejit"]
        {
            assert!(filter(OsStr::new(good)).is_ok(), "{good}");
        }
        for (bad, word) in [("debgu", "'debgu'"), ("verbose,ropejit=info", "'verbose'"), ("ropejit=loud", "level")] {
            let problem = filter(OsStr::new(bad)).err().unwrap_or_default();
            assert!(problem.contains(word), "{bad}: {problem}");
        }
        #[cfg(unix)]
        {
            use std::os::unix::ffi::OsStrExt as _;
            assert!(filter(OsStr::from_bytes(b"\xff")).is_err());
        }
    }
}
