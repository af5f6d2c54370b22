//! `ropejit inspect`

use clap::{Args, Subcommand};
use ropejit::engine::{ArtifactMeta, ChoiceMeta};
use ropejit::store::disk::Disk;
use ropejit::store::{Entry, Kind, Listed, Store, default_root};
use ropejit::{Error, ErrorKind, Result};
use serde::Serialize;
use serde_json::json;

use crate::output;

/// Show what is in the cache: chosen configurations, all candidates' times, integrity.
#[derive(Args)]
pub struct Inspect {
    #[command(subcommand)]
    what: Option<What>,
    /// Print one JSON document.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum What {
    /// All entries (the default).
    List,
    /// One entry: every candidate with its median, and whether it was bit-equal.
    Show {
        /// A key, or the beginning of one.
        key: String,
        /// Print the PTX of an artifact instead.
        #[arg(long)]
        ptx: bool,
    },
    /// Check every entry's digest and contents; fails if one is damaged.
    Verify,
    /// The cache folder.
    Path,
}

#[derive(Serialize)]
struct Row {
    key: String,
    kind: &'static str,
    device: Option<String>,
    arch: Option<String>,
    spec: Option<String>,
    tokens: Option<u64>,
    layout: Option<String>,
    variant: Option<String>,
    tuned: Option<bool>,
    bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
    #[serde(skip)]
    path: std::path::PathBuf,
}

/// What an entry's metadata says.
enum Meta {
    Artifact(Box<ArtifactMeta>),
    Choice(Box<ChoiceMeta>),
}

fn meta(entry: &Entry) -> std::result::Result<Meta, String> {
    let failed = |e: serde_json::Error| format!("its metadata cannot be read: {e}");
    match entry.kind {
        Kind::Artifact => serde_json::from_slice(&entry.meta).map(|m| Meta::Artifact(Box::new(m))).map_err(failed),
        Kind::Choice => serde_json::from_slice(&entry.meta).map(|m| Meta::Choice(Box::new(m))).map_err(failed),
    }
}

/// Beyond the digest: the key must be that of the fields it claims to hash.
fn check(entry: &Entry) -> std::result::Result<Meta, String> {
    let meta = meta(entry)?;
    let fields = match &meta {
        Meta::Artifact(m) => &m.fields,
        Meta::Choice(m) => &m.fields,
    };
    if fields.key() == entry.key { Ok(meta) } else { Err("its key is not that of its fields".into()) }
}

fn row(listed: &Listed) -> Row {
    let mut row = Row {
        key: listed.path.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
        kind: listed.kind.name(),
        device: None,
        arch: None,
        spec: None,
        tokens: None,
        layout: None,
        variant: None,
        tuned: None,
        bytes: listed.bytes,
        problem: None,
        path: listed.path.clone(),
    };
    match listed.entry.as_ref().map_err(Clone::clone).and_then(check) {
        Ok(Meta::Artifact(m)) => {
            row.arch = m.fields.get("arch").map(String::from);
            row.spec = Some(m.spec.to_string());
            row.layout = Some(m.class.to_string());
            row.variant = Some(m.variant.to_string());
        }
        Ok(Meta::Choice(m)) => {
            row.device = Some(m.record.device.clone());
            row.arch = Some(m.arch);
            row.spec = Some(m.spec.to_string());
            row.tokens = Some(m.bucket.tokens());
            row.layout = Some(m.class.to_string());
            row.variant = m.record.chosen().map(|c| c.variant.to_string());
            row.tuned = Some(m.record.tuned);
        }
        Err(problem) => row.problem = Some(problem),
    }
    row
}

impl Inspect {
    pub fn run(self) -> Result<()> {
        let root = default_root().ok_or_else(|| {
            Error::new(ErrorKind::Io, "no cache folder: neither ROPEJIT_CACHE_DIR nor HOME is set")
                .hint("set ROPEJIT_CACHE_DIR")
        })?;
        let what = self.what.unwrap_or(What::List);
        if matches!(what, What::Path) {
            let path = root.display().to_string();
            return if self.json { output::json(&json!({ "path": path })) } else { output::line(&path) };
        }
        let disk = if root.exists() { Some(Disk::open(&root)?) } else { None };
        let all = match &disk {
            Some(disk) => [disk.list(Kind::Choice)?, disk.list(Kind::Artifact)?].into_iter().flatten().collect(),
            None => Vec::new(),
        };
        match what {
            What::List => list(&all, self.json, &root),
            What::Verify => verify(&all, self.json),
            What::Show { key, ptx } => show(&all, &key, ptx, self.json),
            What::Path => Ok(()),
        }
    }
}

fn list(all: &[Listed], as_json: bool, root: &std::path::Path) -> Result<()> {
    let rows: Vec<Row> = all.iter().map(row).collect();
    if as_json {
        return output::json(&rows);
    }
    if rows.is_empty() {
        eprintln!("the cache is empty ({}); fill it with: ropejit prewarm --model llama-3.1-8b", root.display());
        return Ok(());
    }
    let text = |v: &Option<String>| v.clone().unwrap_or_else(|| "–".into());
    let cells = rows.iter().map(|r| {
        let choice = match r.tuned {
            Some(true) => "tuned",
            Some(false) => "default",
            None => "–",
        };
        vec![
            r.key[..r.key.len().min(12)].to_owned(),
            r.kind.to_owned(),
            r.device.clone().or_else(|| r.arch.clone()).unwrap_or_else(|| "–".into()),
            r.problem.clone().map_or_else(|| text(&r.spec), |p| format!("UNUSABLE: {p}")),
            text(&r.layout),
            text(&r.variant),
            choice.to_owned(),
            r.tokens.map_or_else(|| "–".into(), |t| t.to_string()),
            r.bytes.to_string(),
        ]
    });
    output::table(
        &["key", "kind", "device", "spec", "layout", "variant", "choice", "tokens", "bytes"],
        cells.collect(),
        2,
    )
}

fn verify(all: &[Listed], as_json: bool) -> Result<()> {
    let bad: Vec<Row> = all.iter().map(row).filter(|r| r.problem.is_some()).collect();
    if as_json {
        output::json(&json!({ "entries": all.len(), "damaged": bad }))?;
    } else {
        for r in &bad {
            output::line(&format!("{}: {}", r.path.display(), r.problem.clone().unwrap_or_default()))?;
        }
        output::line(&format!("{} entries, {} damaged", all.len(), bad.len()))?;
    }
    if bad.is_empty() {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Io, format!("{} entries are damaged", bad.len()))
        .hint("they are never used, and replaced at the next use; or remove the files"))
}

fn show(all: &[Listed], key: &str, ptx: bool, as_json: bool) -> Result<()> {
    let matches: Vec<&Listed> =
        all.iter().filter(|l| l.path.file_stem().is_some_and(|s| s.to_string_lossy().starts_with(key))).collect();
    let listed = match matches[..] {
        [one] => one,
        [] => {
            return Err(Error::argument("KEY", format!("no entry's key begins with '{key}'"))
                .hint("ropejit inspect list shows the keys"));
        }
        _ => return Err(Error::argument("KEY", format!("{} entries' keys begin with '{key}'", matches.len()))),
    };
    let damaged = |why: String| {
        Error::new(ErrorKind::Io, format!("the entry is damaged: {why}")).subject_is(listed.path.display().to_string())
    };
    let entry = listed.entry.as_ref().map_err(|why| damaged(why.clone()))?;
    if ptx {
        if entry.ptx.is_empty() {
            return Err(Error::argument("--ptx", "the entry holds no PTX"));
        }
        return output::line(String::from_utf8_lossy(&entry.ptx).trim_end_matches('\0'));
    }
    match check(entry).map_err(damaged)? {
        Meta::Artifact(m) if as_json => output::json(&json!({
            "key": entry.key, "kind": "artifact", "path": listed.path, "ptx_bytes": entry.ptx.len(),
            "image_bytes": entry.image.len(), "meta": m,
        })),
        Meta::Artifact(m) => {
            for (name, value) in [
                ("key", entry.key.to_string()),
                ("file", listed.path.display().to_string()),
                ("spec", m.spec.to_string()),
                ("layout", m.class.to_string()),
                ("variant", m.variant.to_string()),
                ("made by", m.made_by.clone()),
                ("PTX", format!("{} bytes", entry.ptx.len())),
                ("image", format!("{} bytes", entry.image.len())),
            ] {
                output::line(&format!("{name:<12}{value}"))?;
            }
            m.fields.0.iter().try_for_each(|(n, v)| output::line(&format!("  {n:<12}{}", v.replace('\n', " "))))
        }
        Meta::Choice(m) => show_choice(listed, entry, &m, as_json),
    }
}

fn show_choice(listed: &Listed, entry: &Entry, m: &ChoiceMeta, as_json: bool) -> Result<()> {
    let r = &m.record;
    if as_json {
        let candidates: Vec<_> = r
            .candidates
            .iter()
            .enumerate()
            .map(|(i, c)| {
                json!({
                    "variant": c.variant.to_string(), "median_ns": c.median_ns(), "bit_equal": c.bit_equal,
                    "samples_ns": c.samples_ns, "artifact": c.artifact, "dropped": c.dropped,
                    "winner": i == r.winner, "near_tie": r.near_ties.contains(&i),
                })
            })
            .collect();
        return output::json(&json!({
            "key": entry.key, "kind": "choice", "path": listed.path, "spec": m.spec.to_string(), "arch": m.arch,
            "device": r.device, "driver": r.driver, "compiler": r.compiler, "tokens": m.bucket.tokens(),
            "measured_tokens": r.tokens, "layout": m.class.to_string(), "tuned": r.tuned, "bytes": r.bytes,
            "copy_ns": r.copy_ns, "took_ms": r.took_ms, "created": r.created, "candidates": candidates,
            "fields": m.fields,
        }));
    }
    let head = [
        ("key", entry.key.to_string()),
        ("file", listed.path.display().to_string()),
        ("spec", m.spec.to_string()),
        ("device", format!("{} ({}) {}", r.device, m.arch, r.driver)),
        ("compiler", r.compiler.clone()),
        ("tokens", format!("{} (measured with {})", m.bucket.tokens(), r.tokens)),
        ("layout", m.class.to_string()),
        ("choice", if r.tuned { format!("tuned in {}", output::ms(r.took_ms)) } else { "default, not tuned".into() }),
    ];
    head.iter().try_for_each(|(name, value)| output::line(&format!("{name:<12}{value}")))?;
    if let Some(ns) = r.copy_ns {
        output::line(&format!("{:<12}{} for a copy of the same {} bytes", "copy", output::us(ns / 1e3), r.bytes))?;
    }
    let mut order: Vec<usize> = (0..r.candidates.len()).collect();
    let median = |i: usize| r.candidates[i].median_ns().unwrap_or(f64::INFINITY);
    order.sort_by(|&a, &b| (a != r.winner, median(a)).partial_cmp(&(b != r.winner, median(b))).unwrap_or(a.cmp(&b)));
    let rows = order.into_iter().map(|i| {
        let c = &r.candidates[i];
        let note = if i == r.winner {
            "chosen".into()
        } else if r.near_ties.contains(&i) {
            "near-tie".into()
        } else {
            c.dropped.clone().unwrap_or_default()
        };
        let equal = match c.bit_equal {
            Some(true) => "equal",
            Some(false) => "DIFFERENT",
            None => "–",
        };
        let time = c.median_ns().map_or_else(|| "–".into(), |ns| output::us(ns / 1e3));
        let ratio = c.median_ns().zip(r.copy_ns).map_or_else(|| "–".into(), |(ns, copy)| format!("{:.3}", copy / ns));
        vec![c.variant.to_string(), note, equal.into(), c.samples_ns.len().to_string(), time, ratio]
    });
    output::table(&["variant", "", "bits", "samples", "median", "of copy"], rows.collect(), 3)
}
