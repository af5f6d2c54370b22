//! Data on stdout, everything else on stderr.

use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use comfy_table::{Cell, CellAlignment, Table, TableComponent, presets};
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

/// Prints a line of data. What stands in it may come from any file: nothing of it is obeyed by a terminal. A reader that has gone away (`| head`) ends the program without an error.
pub fn line(text: &str) -> Result<()> {
    match writeln!(std::io::stdout().lock(), "{}", shown(text)) {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        Err(e) => Err(Error::new(ErrorKind::Io, "cannot be written to").subject_is("stdout").caused_by(e)),
        Ok(()) => Ok(()),
    }
}

/// Prints a line beside the data, on stderr.
pub fn note(text: &str) {
    eprintln!("{}", shown(text));
}

/// A table: `right` columns from the right are numbers.
pub fn table(header: &[&str], rows: Vec<Vec<String>>, right: usize) -> Result<()> {
    let numbers_from = header.len().saturating_sub(right);
    let aligned = |cells: Vec<String>| {
        cells.into_iter().enumerate().map(move |(i, text)| {
            let side = if i >= numbers_from { CellAlignment::Right } else { CellAlignment::Left };
            Cell::new(text).set_alignment(side)
        })
    };
    let mut table = Table::new();
    table
        .load_preset(presets::UTF8_HORIZONTAL_ONLY)
        .set_header(aligned(header.iter().map(ToString::to_string).collect()));
    for row in rows {
        table.add_row(aligned(row));
    }
    // Rules above, below and under the header only.
    for rule in [
        TableComponent::HorizontalLines,
        TableComponent::MiddleIntersections,
        TableComponent::LeftBorderIntersections,
        TableComponent::RightBorderIntersections,
    ] {
        table.remove_style(rule);
    }
    line(&table.to_string())
}

/// The lines of a table without rules, the header first: for rows that are printed in groups. Laid out here, since there may
/// be a hundred thousand of them.
pub fn lines(header: &[&str], rows: Vec<Vec<String>>, right: usize) -> Vec<String> {
    let header = header.iter().map(ToString::to_string).collect();
    let rows: Vec<Vec<String>> = std::iter::once(header).chain(rows).collect();
    let columns = rows[0].len();
    let width = |column: usize| rows.iter().filter_map(|r| Some(r.get(column)?.chars().count())).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let mut line = String::with_capacity(widths.iter().sum::<usize>() + 2 * columns);
        for (column, (cell, &width)) in row.iter().zip(&widths).enumerate() {
            let gap = " ".repeat(width.saturating_sub(cell.chars().count()));
            let (before, after) = if column >= columns - right { (gap.as_str(), "") } else { ("", gap.as_str()) };
            for part in [" ", before, cell.as_str(), after, " "] {
                line.push_str(part);
            }
        }
        line.truncate(line.trim_end().len());
        line
    };
    rows.iter().map(line).collect()
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

/// A line on stderr that shows long work while it goes on; nothing where stderr is no terminal.
pub fn spinner() -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg} {elapsed}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
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
