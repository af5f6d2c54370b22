//! `ropejit inspect`

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use clap::{Args, Subcommand};
use ropejit::engine::{ArtifactMeta, ChoiceMeta};
use ropejit::store::disk::Disk;
use ropejit::store::layers::Layers;
use ropejit::store::memory::Memory;
use ropejit::store::sweep::Bytes;
use ropejit::store::{Entry, Head, Kind, Listed, Store, default_read_only, default_root};
use ropejit::{Error, ErrorKind, Result};
use serde::Serialize;
use serde_json::json;

use super::{output, upkeep};

/// Show what is in the cache: chosen configurations, all candidates' times, integrity.
///
/// There are two kinds of entries. A choice says which variant serves one spec, layout and token count on one device, and
/// keeps all measurements that led to it; it names an artifact, which is a compiled kernel.
#[derive(Args)]
#[command(after_help = "\
Examples:
  ropejit inspect                 all entries
  ropejit inspect show 3f09       one entry, whose key begins with 3f09
  ropejit inspect verify          exit status 1 if an entry is damaged
  ropejit inspect gc              remove what nobody needs

How to read a spec: bf16 d128[..64] h32/8 half_split once table=f32/half pos=implicit
  bf16, d128[..64], h32/8         dtype, head_dim (and rotary_dim), heads of q/k
  half_split, once                which elements turn together, where it is rounded
  table, pos                      form of the cos/sin tables, source of positions
How to read a layout: bshd/16B/t8B
  bshd, 16B, t8B                  order in memory, alignment of heads, of tables
How to read a variant: t128 v8 h2 cs/wb keep pdl pf
  t128, v8, h2                    threads per block, elements moved at once, heads
                                  per thread
  cs/wb                           cache hints of loads/stores
  keep, pdl, pf                   tables stay in the L2; overlaps the kernel ahead;
                                  prefetches before it waits for that")]
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
    ///
    /// Grouped by spec and layout; an entry that is damaged is shown with what is wrong with it.
    #[command(after_help = "\
Examples:
  ropejit inspect list
  ropejit inspect list --json | jq '.[] | select(.kind == \"choice\") | .variant'")]
    List,
    /// One entry: every candidate with its median, and whether it was bit-equal.
    ///
    /// The chosen variant comes first, then the others from fast to slow. `bits` says whether a candidate computed what
    /// the reference kernel does, to the bit; one that did not is never chosen. `of copy` is the time of a copy of the
    /// same bytes over the candidate's (1.000: as fast as a copy).
    #[command(after_help = "\
Examples:
  ropejit inspect show 3f09
  ropejit inspect show 3f09 --ptx > kernel.ptx")]
    Show {
        /// A key, or the beginning of one.
        key: String,
        /// Print an artifact's PTX, the code that the driver can translate for its GPU.
        #[arg(long)]
        ptx: bool,
    },
    /// Check every entry's digest and contents; fails if one is damaged.
    ///
    /// A damaged entry is never used: the next process that needs it warns and makes it again.
    #[command(after_help = "\
Example:
  ropejit inspect verify || ropejit prewarm --model config.json")]
    Verify,
    /// Remove what nobody needs from the cache folder.
    ///
    /// That is: temporary files and locks of dead processes, damaged entries, folders of older format versions, and beyond
    /// the size that the folder may have, the entries that were not used for longest. What a living process uses stays.
    /// Every process that writes does so now and then, but for damaged entries and older versions.
    #[command(after_help = "\
Examples:
  ropejit inspect gc
  ropejit inspect gc --max-bytes 100M")]
    Gc {
        /// Bytes that may stay, such as 500000, 512K, 100M or 2G (default: `ROPEJIT_CACHE_MAX_BYTES`, else 1G).
        #[arg(long, value_name = "BYTES")]
        max_bytes: Option<Bytes>,
    },
    /// The cache folder.
    ///
    /// The one that the environment names, else the user's. Everything in it may be deleted at any time.
    #[command(after_help = "\
Example:
  du -sh \"$(ropejit inspect path)\"")]
    Path,
}

#[derive(Serialize)]
pub struct Row {
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
    pub problem: Option<String>,
    pub path: std::path::PathBuf,
}

/// What an entry's metadata says.
enum Meta {
    Artifact(Box<ArtifactMeta>),
    Choice(Box<ChoiceMeta>),
}

fn meta(entry: &Head) -> std::result::Result<Meta, String> {
    let failed = |e: serde_json::Error| format!("its metadata cannot be read: {e}");
    match entry.kind {
        Kind::Artifact => serde_json::from_slice(&entry.meta).map(|m| Meta::Artifact(Box::new(m))).map_err(failed),
        Kind::Choice => serde_json::from_slice(&entry.meta).map(|m| Meta::Choice(Box::new(m))).map_err(failed),
    }
}

/// Beyond the digest: the key must be that of the fields it claims to hash.
fn check(entry: &Head) -> std::result::Result<Meta, String> {
    let meta = meta(entry)?;
    let fields = match &meta {
        Meta::Artifact(m) => &m.fields,
        Meta::Choice(m) => &m.fields,
    };
    if fields.key() == entry.key { Ok(meta) } else { Err("its key is not that of its fields".into()) }
}

pub fn row(listed: &Listed<Head>) -> Row {
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
        let root = std::path::absolute(&root).unwrap_or(root);
        let what = self.what.unwrap_or(What::List);
        if matches!(what, What::Path) {
            let path = root.display().to_string();
            if self.json {
                return output::json(&output::without_engine(json!({ "path": path, "exists": root.exists() })));
            }
            return output::line(&path);
        }
        if let What::Gc { max_bytes } = what {
            return upkeep::gc(&root, max_bytes, self.json);
        }
        let store = open(&root)?;
        let all = || -> Result<Vec<Listed>> {
            Ok([store.list(Kind::Choice)?, store.list(Kind::Artifact)?].into_iter().flatten().collect())
        };
        match what {
            What::List => {
                let heads = [store.heads(Kind::Choice)?, store.heads(Kind::Artifact)?].into_iter().flatten();
                list(&heads.collect::<Vec<_>>(), self.json, &root)
            }
            What::Verify => upkeep::verify(all()?, self.json, &root),
            What::Show { key, ptx } => show(&all()?, &key, ptx, self.json),
            What::Gc { .. } | What::Path => Ok(()),
        }
    }
}

/// The cache folder, if it is there, and those that are only read.
fn open(root: &Path) -> Result<Layers> {
    let top: Arc<dyn Store> = if root.exists() { Arc::new(Disk::open(root)?) } else { Arc::new(Memory::default()) };
    let mut below: Vec<Arc<dyn Store>> = Vec::new();
    for folder in default_read_only().into_iter().filter(|folder| folder.exists()) {
        below.push(Arc::new(Disk::read_only(folder)?));
    }
    Ok(Layers::new(top, below))
}

fn list(all: &[Listed<Head>], as_json: bool, root: &Path) -> Result<()> {
    let rows: Vec<Row> = all.iter().map(row).collect();
    if as_json {
        return output::json(&rows);
    }
    if rows.is_empty() {
        eprintln!("the cache is empty ({}); fill it with: ropejit prewarm --model llama-3.1-8b", root.display());
        return Ok(());
    }
    // The spec is wide and shared by many entries: it stands above them.
    let mut groups: BTreeMap<String, Vec<&Row>> = BTreeMap::new();
    let sound = rows.iter().filter(|r| r.problem.is_none());
    for (r, spec) in sound.clone().filter_map(|r| Some((r, r.spec.as_ref()?))) {
        let layout = r.layout.as_deref().unwrap_or_default();
        groups.entry(format!("{spec}, layout {layout}")).or_default().push(r);
    }
    let cells = groups.values().flatten().map(|r| r.cells()).collect();
    let lines = output::lines(&[" key", "kind", "for", "variant", "choice", "tokens", "bytes"], cells, 2);
    let mut lines = lines.iter();
    for header in lines.next().into_iter().filter(|_| !groups.is_empty()) {
        output::line(header)?;
    }
    for (heading, rows) in &groups {
        output::line(heading)?;
        lines.by_ref().take(rows.len()).try_for_each(|line| output::line(line))?;
    }
    for r in rows.iter().filter(|r| r.problem.is_some()) {
        output::line(&format!("unusable {}: {}", r.path.display(), r.problem.as_deref().unwrap_or_default()))?;
    }
    Ok(())
}

impl Row {
    fn cells(&self) -> Vec<String> {
        let choice = match self.tuned {
            Some(true) => "tuned",
            Some(false) => "default",
            None => "",
        };
        vec![
            format!(" {}", short(&self.key)),
            self.kind.to_owned(),
            self.device.clone().or_else(|| self.arch.clone()).unwrap_or_default(),
            self.variant.clone().unwrap_or_default(),
            choice.to_owned(),
            self.tokens.map(|t| t.to_string()).unwrap_or_default(),
            self.bytes.to_string(),
        ]
    }
}

/// Enough of a key to tell entries apart.
fn short(key: &str) -> &str {
    key.get(..12).unwrap_or(key)
}

fn show(all: &[Listed], key: &str, ptx: bool, as_json: bool) -> Result<()> {
    let name = |l: &Listed| l.path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let matches: Vec<&Listed> = all.iter().filter(|l| name(l).starts_with(key)).collect();
    let listed = match matches[..] {
        [one] => one,
        [] => {
            return Err(Error::argument("KEY", format!("no entry's key begins with '{key}'"))
                .hint("ropejit inspect list shows the keys"));
        }
        _ => {
            let mut names: Vec<String> = matches.iter().take(5).map(|l| short(&name(l)).to_owned()).collect();
            names.extend((matches.len() > 5).then(|| "…".to_owned()));
            return Err(Error::argument("KEY", format!("{} entries' keys begin with '{key}'", matches.len()))
                .hint(format!("give more of it: {}", names.join(", "))));
        }
    };
    let damaged = |why: String| {
        Error::new(ErrorKind::Io, format!("the entry is damaged: {why}")).subject_is(listed.path.display().to_string())
    };
    let entry = listed.entry.as_ref().map_err(|why| damaged(why.clone()))?;
    if ptx {
        if entry.ptx.is_empty() {
            return Err(Error::argument("--ptx", "the entry holds no PTX").hint("only artifacts for GPUs do"));
        }
        let ptx = String::from_utf8_lossy(&entry.ptx);
        let ptx = ptx.trim_end_matches('\0');
        if as_json {
            return output::json(&output::without_engine(json!({ "key": entry.key, "ptx": ptx })));
        }
        return output::line(ptx);
    }
    match check(&Head::from(entry.clone())).map_err(damaged)? {
        Meta::Artifact(m) if as_json => output::json(&output::without_engine(json!({
            "key": entry.key, "kind": "artifact", "path": listed.path, "spec": m.spec.to_string(),
            "arch": m.fields.get("arch"), "layout": m.class.to_string(), "variant": m.variant.to_string(),
            "ptx_bytes": entry.ptx.len(), "image_bytes": entry.image.len(), "made_by": m.made_by, "fields": m.fields,
        }))),
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
            output::line("what its key hashes:")?;
            m.fields.0.iter().try_for_each(|(n, v)| output::line(&format!("  {n:<10}{}", v.replace('\n', " "))))
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
        return output::json(&output::without_engine(json!({
            "key": entry.key, "kind": "choice", "path": listed.path, "spec": m.spec.to_string(), "arch": m.arch,
            "device": r.device, "driver": r.driver, "compiler": r.compiler, "tokens": m.bucket.tokens(),
            "measured_tokens": r.tokens, "layout": m.class.to_string(), "tuned": r.tuned, "bytes": r.bytes,
            "copy_ns": r.copy_ns, "took_ms": r.took_ms, "created": r.created, "candidates": candidates,
            "fields": m.fields,
        })));
    }
    let head = [
        ("key", entry.key.to_string()),
        ("file", listed.path.display().to_string()),
        ("spec", m.spec.to_string()),
        ("device", format!("{} ({}) {}", r.device, m.arch, r.driver).trim_end().to_owned()),
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
    output::table(&["variant", "verdict", "bits", "samples", "median", "of copy"], rows.collect(), 3)
}
