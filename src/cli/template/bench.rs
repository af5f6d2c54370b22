//! `ropejit template bench`

use std::path::PathBuf;

use clap::Args;
use ropejit::families::read_choice;
use ropejit::families::template::Template;
use ropejit::jit::Record;
use ropejit::store::Kind;
use ropejit::{Engine, Error, ErrorKind, Result, Tuning};
use serde::Serialize;

use super::super::output;
use super::super::table::Table;
use super::specs::{self, TemplateSizeArgs, TemplateSpecArgs};

/// Measure all candidates of a kernel of your own, beside a device-to-device copy of the same bytes.
///
/// Nothing is read from or kept in the cache. 1.00 is the speed of the copy.
#[derive(Args)]
#[command(after_help = "\
Examples:
  ropejit template bench add_rmsnorm.toml --spec hidden=4096,dtype=bf16 \\
      --size rows=8192")]
pub struct Bench {
    /// A description, with its source beside it.
    #[arg(value_name = "FILE.toml")]
    file: PathBuf,
    #[command(flatten)]
    specs: TemplateSpecArgs,
    #[command(flatten)]
    sizes: TemplateSizeArgs,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

/// One spec and size.
#[derive(Serialize)]
struct Measured {
    spec: String,
    /// The size that was measured, as buckets count it.
    size: u64,
    bytes: u64,
    copy_us: Option<f64>,
    candidates: Vec<Candidate>,
}

#[derive(Serialize)]
struct Candidate {
    config: String,
    us: Option<f64>,
    /// The copy's time over its own.
    of_copy: Option<f64>,
    note: String,
}

impl Bench {
    pub fn run(self) -> Result<()> {
        let template = Template::load(&self.file)?;
        let bar = output::spinner();
        let engine = || {
            Engine::builder()
                .in_memory()
                .tuning(Tuning::BLOCKING)
                .priors(false)
                .on_progress(output::show_on(&bar))
                .build()
        };
        let mut all = Vec::new();
        for spec in self.specs.specs(&template) {
            let first = specs::kernel(&engine()?.template(&template)?, &spec)?;
            let sizes = self.sizes.sizes(&first)?;
            for size in sizes {
                // One engine each: its store holds one choice.
                let engine = engine()?;
                let kernel = specs::kernel(&engine.template(&template)?, &spec)?;
                kernel.prewarm(&[size], true)?;
                all.push(Measured::new(kernel.spec(), &choice(&engine)?));
            }
        }
        drop(bar);
        if self.json {
            return output::json(&serde_json::json!({ "measured": all }));
        }
        all.iter().try_for_each(Measured::print)
    }
}

/// The record of the choice that an engine has made.
fn choice(engine: &Engine) -> Result<Record> {
    let measured = engine.store().list(Kind::Choice)?.into_iter().filter_map(|listed| listed.entry.ok());
    measured
        .filter_map(|entry| read_choice(&entry.meta).ok())
        .map(|meta| meta.record)
        .max_by_key(|record| record.candidates.len())
        .ok_or_else(|| Error::new(ErrorKind::Device, "nothing was measured"))
}

impl Measured {
    fn new(spec: &str, record: &Record) -> Self {
        let candidate = |(i, c): (usize, &ropejit::jit::Candidate)| {
            let ns = c.median_ns();
            let first_line = |text: &String| text.lines().next().unwrap_or_default().to_owned();
            let note = match (&c.dropped, i == record.winner, i) {
                (Some(why), ..) => first_line(why),
                (None, true, 0) => "the default, chosen".into(),
                (None, true, _) => "chosen".into(),
                (None, false, 0) => "the default".into(),
                (None, false, _) => String::new(),
            };
            let of_copy = ns.zip(record.copy_ns).map(|(ns, copy)| copy / ns);
            Candidate { config: c.config.to_string(), us: ns.map(|ns| ns / 1e3), of_copy, note }
        };
        Self {
            spec: spec.to_owned(),
            size: record.tokens,
            bytes: record.bytes,
            copy_us: record.copy_ns.map(|ns| ns / 1e3),
            candidates: record.candidates.iter().enumerate().map(candidate).collect(),
        }
    }

    fn print(&self) -> Result<()> {
        let copy = self.copy_us.map_or_else(|| "not measured".into(), output::us);
        output::line(&format!("{}, size {}, {} bytes, copy {copy}", self.spec, self.size, self.bytes))?;
        let mut rows: Vec<_> = self.candidates.iter().collect();
        rows.sort_by(|a, b| a.us.unwrap_or(f64::INFINITY).total_cmp(&b.us.unwrap_or(f64::INFINITY)));
        let number = |n: Option<f64>, text: fn(f64) -> String| n.map_or_else(|| "–".into(), text);
        let row = |c: &&Candidate| {
            vec![c.config.clone(), c.note.clone(), number(c.us, output::us), number(c.of_copy, |r| format!("{r:.3}"))]
        };
        let header = ["candidate", "note", "time", "of copy"];
        Table { header: &header, rows: rows.iter().map(row).collect(), numbers: 2, gives: &["note"], drops: &[] }
            .print()
    }
}
