//! `ropejit inspect list`

use std::cmp::Reverse;
use std::path::Path;

use clap::{Args, ValueEnum};
use rayon::prelude::*;
use ropejit::jit::Bucket;
use ropejit::store::{Head, Listed};
use ropejit::{DType, Result};
use serde_json::json;

use super::super::table::{Table, heading};
use super::super::{output, spec};
use super::entries::{Row, row, short};

/// All entries, or those that the filters let through (the default).
///
/// Grouped by spec and layout; an entry that is damaged is shown with what is wrong with it. All filters must hold. The
/// table fits the terminal, or the width that COLUMNS states; names that are too long are cut. With --tsv each entry is one line of tab-separated fields, whole in itself, for other programs.
#[derive(Args, Default)]
#[command(after_help = "\
Examples:
  ropejit inspect list
  ropejit inspect list --kind choice --dtype bf16 --tokens 8192 --tuned
  ropejit inspect list h32/8 --sort of-copy  choices and kernels of 32/8 heads
  ropejit inspect list --tsv | cut -f1,6
  ropejit inspect list --json | jq '.entries[] | select(.tuned) | .variant'")]
pub struct List {
    /// Only entries with this text in their spec, layout, variant, device, arch or key.
    #[arg(value_name = "TEXT")]
    text: Vec<String>,
    /// Only choices, or only artifacts (compiled kernels).
    #[arg(long, value_enum)]
    kind: Option<KindArg>,
    /// Only this element type of q and k.
    #[arg(long, value_parser = spec::parse::<DType>)]
    dtype: Option<DType>,
    /// Only this many elements per head.
    #[arg(long, value_name = "D")]
    head_dim: Option<u32>,
    /// Only what was compiled for this architecture, such as `sm_90`.
    #[arg(long, value_name = "sm_NN")]
    arch: Option<String>,
    /// Only choices for devices with this text in their name.
    #[arg(long, value_name = "NAME")]
    device: Option<String>,
    /// Only choices that serve this many tokens.
    #[arg(long, visible_alias = "bucket", value_name = "N", value_parser = spec::tokens)]
    tokens: Option<u64>,
    /// Only choices that were measured to the end.
    #[arg(long, conflicts_with = "untuned")]
    tuned: bool,
    /// Only choices that were not.
    #[arg(long)]
    untuned: bool,
    /// In this order instead.
    #[arg(long, value_enum)]
    sort: Option<Sort>,
    /// Tab-separated fields: key, kind, device, arch, layout, variant, choice, tokens, of copy, bytes, spec.
    #[arg(long, conflicts_with = "json")]
    tsv: bool,
}

#[derive(ValueEnum, Clone, Copy, PartialEq)]
enum KindArg {
    Choice,
    Artifact,
}

#[derive(ValueEnum, Clone, Copy)]
enum Sort {
    /// Few tokens first.
    Tokens,
    /// The slowest against the copy first.
    OfCopy,
    /// The newest choice first.
    Created,
    /// The largest first.
    Bytes,
    /// By variant.
    Variant,
    /// By key.
    Key,
}

impl List {
    pub fn run(&self, all: &[Listed<Head>], root: &Path, as_json: bool) -> Result<()> {
        let mut rows: Vec<Row> = all.par_iter().map(row).filter(|row| self.lets_through(row)).collect();
        self.sort(&mut rows);
        if as_json {
            return output::json(&output::without_engine(json!({ "entries": rows })));
        }
        if rows.is_empty() {
            let root = root.display();
            if all.is_empty() {
                output::note(&format!(
                    "the cache is empty ({root}); fill it with: ropejit prewarm --model llama-3.1-8b"
                ));
            } else {
                output::note(&format!("none of the {} entries passes the filters ({root})", all.len()));
            }
            return Ok(());
        }
        let lines: Vec<String> = if self.tsv {
            rows.iter().map(Row::tsv).collect()
        } else {
            let (sound, unusable): (Vec<&Row>, Vec<&Row>) = rows.iter().partition(|r| r.problem.is_none());
            let problem =
                |r: &&Row| format!("unusable {}: {}", r.path.display(), r.problem.as_deref().unwrap_or_default());
            Self::grouped(&sound).into_iter().chain(unusable.iter().map(problem)).collect()
        };
        // At once: there may be a hundred thousand.
        output::line(&lines.join("\n"))
    }

    fn lets_through(&self, row: &Row) -> bool {
        let field = |name: &str| row.spec.as_ref()?.json().get(name);
        let filters = [
            self.kind.is_none_or(|kind| (kind == KindArg::Choice) == (row.kind == "choice")),
            self.dtype.is_none_or(|dtype| field("dtype") == Some(&json!(dtype))),
            self.head_dim.is_none_or(|dim| field("head_dim") == Some(&json!(dim))),
            self.arch.as_ref().is_none_or(|arch| row.arch.as_ref() == Some(arch)),
            self.device.as_ref().is_none_or(|name| row.device.as_ref().is_some_and(|d| contains(d, name))),
            self.tokens.is_none_or(|n| row.tokens == Some(Bucket::of(n).tokens())),
            !self.tuned || row.tuned == Some(true),
            !self.untuned || row.tuned == Some(false),
        ];
        filters.iter().all(|&passes| passes)
            && (self.text.is_empty() || {
                let text = row.tsv();
                self.text.iter().all(|part| contains(&text, part))
            })
    }

    fn sort(&self, rows: &mut [Row]) {
        match self.sort {
            None => rows.sort_by_cached_key(|r| (r.group(), Reverse(r.kind), r.tokens, r.key.clone())),
            Some(Sort::Tokens) => rows.sort_by_key(|r| r.tokens),
            Some(Sort::OfCopy) => {
                let of_copy = |r: &Row| r.of_copy.unwrap_or(f64::INFINITY);
                rows.sort_by(|a, b| of_copy(a).total_cmp(&of_copy(b)));
            }
            Some(Sort::Created) => rows.sort_by_key(|r| Reverse(r.created)),
            Some(Sort::Bytes) => rows.sort_by_key(|r| Reverse(r.bytes)),
            Some(Sort::Variant) => rows.sort_by(|a, b| a.variant.cmp(&b.variant)),
            Some(Sort::Key) => rows.sort_by(|a, b| a.key.cmp(&b.key)),
        }
    }

    /// The spec is wide and shared by many entries: it stands above them.
    fn grouped(rows: &[&Row]) -> Vec<String> {
        let cells = rows.iter().map(|r| r.cells()).collect();
        let header = [" key", "entry", "for", "variant", "tokens", "of copy", "bytes"];
        let mut lines =
            Table { header: &header, rows: cells, numbers: 3, gives: &["for"], drops: &["bytes"] }.lines(0).into_iter();
        let mut page: Vec<String> = lines.next().into_iter().filter(|_| !rows.is_empty()).collect();
        let mut last = None;
        for (row, line) in rows.iter().zip(lines) {
            let group = (&row.spec, &row.layout);
            if last.replace(group) != Some(group) {
                let (spec, layout) = row.group();
                page.extend(heading(&spec, &layout));
            }
            page.push(line);
        }
        page
    }
}

/// Whether a text holds another, capital or small.
fn contains(text: &str, part: &str) -> bool {
    text.to_lowercase().contains(&part.to_lowercase())
}

impl Row {
    /// Spec and layout.
    fn group(&self) -> (String, String) {
        let spec = self.spec.as_ref().map(ToString::to_string).unwrap_or_default();
        (spec, format!("layout {}", self.layout.as_deref().unwrap_or_default()))
    }

    fn of_copy(&self) -> String {
        self.of_copy.map(|r| format!("{r:.3}")).unwrap_or_default()
    }

    fn cells(&self) -> Vec<String> {
        vec![
            format!(" {}", short(&self.key)),
            // How a choice was made, or that it is none.
            self.choice.unwrap_or(self.kind).to_owned(),
            self.device.clone().or_else(|| self.arch.clone()).unwrap_or_default(),
            self.variant.clone().unwrap_or_default(),
            self.tokens.map(|t| t.to_string()).unwrap_or_default(),
            self.of_copy(),
            self.bytes.to_string(),
        ]
    }

    fn tsv(&self) -> String {
        let text = |t: &Option<String>| t.clone().unwrap_or_default();
        [
            self.key.clone(),
            self.kind.to_owned(),
            text(&self.device),
            text(&self.arch),
            text(&self.layout),
            self.variant.clone().or_else(|| self.problem.clone()).unwrap_or_default(),
            self.choice.unwrap_or_default().to_owned(),
            self.tokens.map(|t| t.to_string()).unwrap_or_default(),
            self.of_copy(),
            self.bytes.to_string(),
            self.spec.as_ref().map(ToString::to_string).unwrap_or_default(),
        ]
        .map(|field| field.replace(['\t', '\n', '\r'], " "))
        .join("\t")
    }
}
