//! Data on stdout, everything else on stderr.

use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _};
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use ropejit::engine::Progress;
use ropejit::error::shown;
use ropejit::{Error, ErrorKind, Result};
use serde::Serialize;

/// Prints one JSON document.
pub fn json(document: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(document)
        .map_err(|e| Error::new(ErrorKind::Io, "the result cannot be written as JSON").caused_by(e))?;
    // What a terminal would obey stands in strings only, where JSON can spell it out as well.
    let mut spelled = String::with_capacity(text.len());
    for c in text.chars() {
        if shown(c.encode_utf8(&mut [0; 4])).len() == c.len_utf8() {
            spelled.push(c);
        } else {
            c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| _ = write!(spelled, "\\u{unit:04x}"));
        }
    }
    line(&spelled)
}

/// Prints a line of data. What stands in it may come from any file: nothing of it is obeyed by a terminal.
pub fn line(text: &str) -> Result<()> {
    bytes(format!("{}\n", shown(text)).as_bytes())
}

/// Prints data as it is. A reader that has gone away (`| head`) ends the program without an error.
pub fn bytes(data: &[u8]) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(data).and_then(|()| stdout.flush()) {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        Err(e) => Err(Error::new(ErrorKind::Io, "cannot be written to").subject_is("stdout").caused_by(e)),
        Ok(()) => Ok(()),
    }
}

/// Prints a line beside the data, on stderr.
pub fn note(text: &str) {
    make_room();
    eprintln!("{}", shown(text));
}

/// Adds `stats` to a document of a command that runs no engine: nothing was counted.
pub fn without_engine(mut document: serde_json::Value) -> serde_json::Value {
    document["stats"] = serde_json::json!({});
    document
}

/// The word that JSON has for a unit value.
pub fn word(value: &impl Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|v| v.as_str().map(String::from)).unwrap_or_default()
}

/// How a variant was chosen: by measuring here, by measuring another GPU of the model, or not by measuring.
pub fn how(tuned: bool, prior: bool) -> &'static str {
    match (tuned, prior) {
        (true, _) => "tuned",
        (_, true) => "prior",
        _ => "default",
    }
}

/// Milliseconds for people.
pub fn ms(ms: f64) -> String {
    match ms {
        _ if ms >= 100.0 => format!("{ms:.0} ms"),
        _ if ms >= 1.0 => format!("{ms:.1} ms"),
        _ => format!("{:.0} µs", ms * 1e3),
    }
}

/// Microseconds for people.
pub fn us(us: f64) -> String {
    if us >= 1e3 { ms(us / 1e3) } else { format!("{us:.2} µs") }
}

/// Whether a spinner is on the terminal's last line.
static SPINNING: AtomicBool = AtomicBool::new(false);

/// Takes a spinner from the line that something else is about to be written to on stderr; its next turn draws it below.
pub fn make_room() {
    if SPINNING.load(Ordering::Relaxed) {
        eprint!("\r\x1b[2K");
    }
}

/// A line on stderr that shows long work while it goes on. However the work ends, the line goes.
pub struct Spinner(ProgressBar);

impl Deref for Spinner {
    type Target = ProgressBar;

    fn deref(&self) -> &ProgressBar {
        &self.0
    }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        self.0.finish_and_clear();
        SPINNING.store(false, Ordering::Relaxed);
    }
}

/// Such a line; nothing where stderr is no terminal.
pub fn spinner() -> Spinner {
    if !std::io::stderr().is_terminal() {
        return Spinner(ProgressBar::hidden());
    }
    SPINNING.store(true, Ordering::Relaxed);
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg} {elapsed}") {
        bar.set_style(style);
    }
    bar.tick();
    bar.enable_steady_tick(Duration::from_millis(100));
    Spinner(bar)
}

/// Shows an engine's progress in a spinner.
pub fn show_on(bar: &ProgressBar) -> impl Fn(&Progress<'_>) + Send + Sync + 'static {
    let bar = bar.clone();
    move |progress| {
        bar.set_message(match progress {
            Progress::Compiled { spec, bucket, done, total } => {
                format!("{spec}, {} tokens: compiled {done} of {total} candidates", bucket.tokens())
            }
            Progress::Measured { spec, bucket, rounds } => {
                format!("{spec}, {} tokens: measured {rounds} rounds", bucket.tokens())
            }
        });
    }
}

/// A moment for people, in UTC.
pub fn date(seconds: u64) -> String {
    let (days, second) = ((seconds / 86_400) as i64, seconds % 86_400);
    // Days are counted in eras of 400 years that begin on the first of March.
    let days = days + 719_468;
    let (era, day) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, early) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = year + 400 * era + early;
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02} UTC", second / 3_600, second / 60 % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        assert_eq!(date(0), "1970-01-01 00:00 UTC");
        assert_eq!(date(951_782_400), "2000-02-29 00:00 UTC");
        assert_eq!(date(1_735_689_599), "2024-12-31 23:59 UTC");
        assert_eq!(date(4_107_542_400), "2100-03-01 00:00 UTC");
    }
}
