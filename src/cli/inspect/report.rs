//! `ropejit inspect report`

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::PathBuf;

use clap::Args;
use ropejit::engine::ChoiceMeta;
use ropejit::jit::{Bucket, Candidate, Key};
use ropejit::{Error, Result};
use serde_json::json;

use super::super::output;
use super::super::table::Table;
use super::entries::{Cache, short};
use super::picture::{draw, escape};
use super::verdict::told_how;

/// All choices: how fast each is against a copy, by spec and number of tokens, and as pictures.
///
/// With --html, one page that needs no other file and no network: an index of specs and token counts, and for each choice a
/// row for every candidate with a dot for every sample, the time of the copy as a line, what was chosen and what tied with it
/// marked. Without, the index as a table.
#[derive(Args)]
#[command(after_help = "\
Examples:
  ropejit inspect report  the index: time of the copy over the choice's
  ropejit inspect report --html tuning.html
  ropejit inspect report --html - > tuning.html")]
pub struct Report {
    /// Write a page with pictures to this file; - for stdout.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

/// A choice, and what its kernel's median is of the copy's.
struct Choice {
    key: Key,
    meta: ChoiceMeta,
    of_copy: Option<f64>,
}

/// A row of the index: spec, layout, device.
type RowName = (String, String, String);

impl Report {
    pub fn run(&self, cache: &Cache, as_json: bool) -> Result<()> {
        let mut choices: Vec<Choice> = Vec::new();
        for (listed, meta) in cache.choices()? {
            let Ok(head) = &listed.entry else { continue };
            let ns = meta.record.chosen().and_then(Candidate::median_ns);
            let of_copy = ns.zip(meta.record.copy_ns).map(|(ns, copy)| copy / ns);
            choices.push(Choice { key: head.key, meta, of_copy });
        }
        choices.sort_by_cached_key(|c| (c.row_name(), c.meta.bucket, c.key));
        if let Some(path) = &self.html {
            let to_stdout = path.as_os_str() == "-";
            if to_stdout && as_json {
                return Err(Error::argument("--html", "- is stdout, where --json prints its document"));
            }
            let page = page(&cache.root.display().to_string(), &choices);
            if to_stdout {
                return output::line(page.trim_end());
            }
            std::fs::write(path, page).map_err(|e| {
                Error::io(path, "the report cannot be written", e)
                    .hint("name a file in a folder that is there and that you can write to")
            })?;
        }
        if as_json {
            let choices: Vec<_> = choices.iter().map(Choice::json).collect();
            let document = json!({ "cache": cache.root, "html": self.html, "choices": choices });
            return output::json(&output::without_engine(document));
        }
        match &self.html {
            Some(path) => {
                output::note(&format!("{}: choices {}", path.display(), choices.len()));
                Ok(())
            }
            None if choices.is_empty() => tell_none(cache),
            None => index(&choices),
        }
    }
}

/// What there is where there is no choice.
fn tell_none(cache: &Cache) -> Result<()> {
    let damaged = cache.heads()?.iter().filter(|listed| listed.entry.is_err()).count();
    let damaged = if damaged > 0 {
        format!(" (damaged entries: {damaged}; ropejit inspect gc removes them)")
    } else {
        String::new()
    };
    output::note(&format!("there are no choices{damaged}; make some with: ropejit prewarm --model llama-3.1-8b"));
    Ok(())
}

impl Choice {
    fn row_name(&self) -> RowName {
        let device = format!("{} ({})", self.meta.record.device, self.meta.arch);
        (self.meta.spec.to_string(), self.meta.class.to_string(), device)
    }

    /// Its cell in the index.
    fn cell(&self) -> String {
        match self.of_copy {
            Some(ratio) => format!("{ratio:.3}"),
            None => self.meta.record.how().into(),
        }
    }

    fn json(&self) -> serde_json::Value {
        let (spec, layout, device) = self.row_name();
        let chosen = self.meta.record.chosen();
        json!({
            "key": self.key, "spec": spec, "layout": layout, "device": device, "tokens": self.meta.bucket.tokens(),
            "tuned": self.meta.record.tuned, "choice": self.meta.record.how(), "variant": chosen.map(|c| c.config.to_string()),
            "median_ns": chosen.and_then(Candidate::median_ns), "copy_ns": self.meta.record.copy_ns,
            "of_copy": self.of_copy,
        })
    }
}

/// The choices by row, and all buckets.
fn rows(choices: &[Choice]) -> (BTreeMap<RowName, BTreeMap<Bucket, &Choice>>, BTreeSet<Bucket>) {
    let mut rows: BTreeMap<RowName, BTreeMap<Bucket, &Choice>> = BTreeMap::new();
    for choice in choices {
        let row = rows.entry(choice.row_name()).or_default();
        let known = row.entry(choice.meta.bucket).or_insert(choice);
        // One that was measured says more than one for the architecture.
        if choice.meta.record.is_settled(true) && !known.meta.record.is_settled(true) {
            *known = choice;
        }
    }
    (rows, choices.iter().map(|c| c.meta.bucket).collect())
}

fn index(choices: &[Choice]) -> Result<()> {
    let (rows, buckets) = rows(choices);
    let tokens: Vec<String> = buckets.iter().map(|b| b.tokens().to_string()).collect();
    let header: Vec<&str> = ["layout, device"].into_iter().chain(tokens.iter().map(String::as_str)).collect();
    // What many tokens cost shows most of a kernel.
    let drops: Vec<&str> = tokens.iter().map(String::as_str).collect();
    let cells = rows.iter().map(|((_, layout, device), row)| {
        let cells = buckets.iter().map(|b| row.get(b).map_or_else(String::new, |c| c.cell()));
        [format!("  {layout}, {device}")].into_iter().chain(cells).collect()
    });
    let table = Table {
        header: &header,
        rows: cells.collect(),
        numbers: buckets.len(),
        gives: &["layout, device"],
        drops: &drops,
    };
    let lines = table.lines(0);
    let mut lines = lines.iter();
    lines.next().map_or(Ok(()), |header| output::line(header))?;
    let mut last = "";
    for ((spec, ..), line) in rows.keys().zip(lines) {
        if spec != last {
            output::line(spec)?;
            last = spec;
        }
        output::line(line)?;
    }
    Ok(())
}

/// The page.
fn page(cache: &str, choices: &[Choice]) -> String {
    let (rows, buckets) = rows(choices);
    let tuned = choices.iter().filter(|c| c.meta.record.tuned).count();
    let mut html = format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width\">\n\
         <title>ropejit: what was chosen, and why</title>\n<style>\n{}</style>\n<h1>What was chosen, and why</h1>\n\
         <p class=\"faint\">{}: {}</p>\n",
        include_str!("report.css"),
        escape(cache),
        match choices.len() {
            0 => "no choices".into(),
            n => format!("choices {n}, tuned {tuned}"),
        }
    );
    if choices.is_empty() {
        html.push_str(
            "<p>Nothing was chosen on this machine yet. Fill the cache, and make this page again:</p>\n\
             <pre>ropejit prewarm --model llama-3.1-8b\nropejit inspect report --html tuning.html</pre>\n</html>\n",
        );
        return html;
    }
    html.push_str(
        "<h2>Speed by spec and number of tokens</h2>\n<p class=\"faint\">The time of a device-to-device copy of the same \
         bytes over the chosen kernel's: 1.000 is as fast as the copy. A number of tokens leads to its choice.</p>\n",
    );
    // Writing to a String cannot fail.
    for ((spec, layout, device), row) in &rows {
        let (spec, layout, device) = (escape(spec), escape(layout), escape(device));
        let _ = write!(
            html,
            "<p><code>{spec}</code><br><span class=\"faint\">{layout}, {device}</span></p>\n<div class=\"cells\">"
        );
        for bucket in &buckets {
            let tokens = bucket.tokens();
            let Some(choice) = row.get(bucket) else {
                let _ = write!(html, "<span><small>{tokens}</small></span>");
                continue;
            };
            let class = match choice.of_copy {
                Some(ratio) if ratio >= 0.95 => "high",
                Some(ratio) if ratio >= 0.85 => "mid",
                Some(_) => "low",
                None => "unknown",
            };
            let (key, cell) = (choice.key, choice.cell());
            let _ = write!(html, "<a class=\"{class}\" href=\"#{key}\"><small>{tokens}</small> {cell}</a>");
        }
        html.push_str("</div>\n");
    }
    let drawn: Vec<(&Choice, Option<String>)> = choices.iter().map(|c| (c, draw(&c.meta.record))).collect();
    if drawn.iter().any(|(_, picture)| picture.is_some()) {
        html.push_str(
            "<h2>Every candidate, every sample</h2>\n<p class=\"legend faint\">\
             <span><i class=\"chosen\"></i>chosen</span><span><i class=\"tie\"></i>tied with it</span>\
             <span><i class=\"other\"></i>slower</span><span><i class=\"copy\"></i>the copy</span></p>\n\
             <p class=\"faint\">Dot: a sample. Bar: from the fastest to the slowest. Tick: the median, whose share of the copy's \
             speed stands beside it. +2: two samples lie beyond the axis.</p>\n",
        );
    }
    for (choice, picture) in &drawn {
        if let Some(picture) = picture {
            section(&mut html, choice, picture);
        }
    }
    let unmeasured: Vec<&Choice> = drawn.iter().filter(|(_, p)| p.is_none()).map(|(choice, _)| *choice).collect();
    if !unmeasured.is_empty() {
        list_unmeasured(&mut html, &unmeasured);
    }
    html.push_str("</html>\n");
    html
}

/// A choice that was measured.
fn section(html: &mut String, choice: &Choice, picture: &str) {
    let (spec, layout, device) = choice.row_name();
    let r = &choice.meta.record;
    let variant = r.chosen().map_or_else(String::new, |c| c.config.to_string());
    let how = told_how(r);
    let copy = r.copy_ns.map_or_else(String::new, |ns| format!(", copy of {} bytes {}", r.bytes, output::us(ns / 1e3)));
    let _ = write!(
        html,
        "<section id=\"{}\">\n<h3>{}: <code>{}</code></h3>\n<p><code>{}</code></p>\n\
         <p class=\"faint\">{}, {}; {how}{copy}; made {}, {} <code>{}</code></p>\n{picture}",
        choice.key,
        tokens(choice),
        escape(&variant),
        escape(&spec),
        escape(&layout),
        escape(&device),
        output::date(r.created),
        escape(&r.compiler),
        short(&choice.key.to_string())
    );
    let dropped: Vec<String> = r
        .candidates
        .iter()
        .filter(|c| c.median_ns().is_none())
        .filter_map(|c| Some(format!("{}: {}", c.config, c.dropped.as_ref()?)))
        .collect();
    if !dropped.is_empty() {
        let _ = writeln!(html, "<p class=\"faint\">Not measured: {}</p>", escape(&dropped.join("; ")));
    }
    html.push_str("</section>\n");
}

/// The choices behind which there is no measurement: a line each.
fn list_unmeasured(html: &mut String, choices: &[&Choice]) {
    html.push_str("<h2>Chosen without measuring here</h2>\n");
    let mut last = None;
    for choice in choices {
        let name = choice.row_name();
        if last.as_ref() != Some(&name) {
            let (spec, layout, device) = &name;
            let _ = writeln!(
                html,
                "<p><code>{}</code><br><span class=\"faint\">{}, {}</span></p>",
                escape(spec),
                escape(layout),
                escape(device)
            );
            last = Some(name);
        }
        let r = &choice.meta.record;
        let _ = writeln!(
            html,
            "<p class=\"line\" id=\"{}\">{}: <code>{}</code> <span class=\"faint\">{}</span></p>",
            choice.key,
            tokens(choice),
            escape(&r.chosen().map_or_else(String::new, |c| c.config.to_string())),
            escape(&told_how(r))
        );
    }
}

fn tokens(choice: &Choice) -> String {
    match choice.meta.bucket.tokens() {
        1 => "1 token".into(),
        n => format!("{n} tokens"),
    }
}
