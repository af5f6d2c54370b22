//! `ropejit inspect show`

use std::io::Write as _;
use std::path::PathBuf;
use std::process::Command;

use clap::Args;
use ropejit::engine::{ArtifactMeta, ChoiceMeta};
use ropejit::jit::{Candidate, Identity, KeyFields};
use ropejit::store::{Entry, Head, Kind, Listed, Lookup, Store as _};
use ropejit::{Error, ErrorKind, Result};
use serde_json::json;

use super::super::output;
use super::super::table::{Table, one_line, wrapped};
use super::entries::{Cache, Meta, check, short};
use super::verdict::{behind, order, told_how, verdict};

/// One entry: every candidate with all samples, and whether it was bit-equal.
///
/// The chosen variant comes first, then the others from fast to slow. The verdict says by how much of the chosen one's time
/// another is behind, or ahead (the median of the rounds that both were measured in), and in how many of these rounds it was slower. A
/// near-tie is as fast as can be told: of those the default is chosen, else the first in the order of the list. `bits` says whether a candidate computed what
/// the reference kernel does, to the bit; one that did not is never chosen. `of copy` is the time of a copy of the
/// same bytes over the candidate's (1.000: as fast as a copy).
#[derive(Args)]
#[command(after_help = "\
Examples:
  ropejit inspect show 3f09
  ropejit inspect show 3f09 --ptx > kernel.ptx  of an artifact, or of a choice's
                                                winner
  ropejit inspect show 3f09 --sass | less       needs nvdisasm or cuobjdump")]
pub struct Show {
    /// A key, or the beginning of one.
    key: String,
    /// Print the kernel's PTX, the code that the driver can translate for its GPU.
    #[arg(long, conflicts_with = "sass")]
    ptx: bool,
    /// Print the kernel's machine code, disassembled by nvdisasm or cuobjdump.
    #[arg(long)]
    sass: bool,
}

impl Show {
    pub fn run(&self, cache: &Cache, as_json: bool) -> Result<()> {
        let listed = self.find(cache)?;
        let head = listed.entry.as_ref().map_err(|why| damaged(&listed, why))?;
        // A listing reads heads alone; here the whole entry is read, and its digest checked.
        let entry = match cache.store.get(head.kind, head.key) {
            Lookup::Hit(entry) => entry,
            Lookup::Miss(miss) => return Err(damaged(&listed, &miss.to_string())),
        };
        let meta = check(head).map_err(|why| damaged(&listed, &why))?;
        if self.ptx || self.sass {
            let artifact = self.artifact(cache, entry, &meta)?;
            let (name, text) = if self.ptx { ("ptx", ptx(&artifact)?) } else { ("sass", disassembled(&artifact)?) };
            if as_json {
                return output::json(&output::without_engine(json!({ "key": artifact.key, name: text })));
            }
            return output::line(&text);
        }
        match meta {
            Meta::Artifact(m) => show_artifact(&listed, head, &m, as_json),
            Meta::Choice(m) => show_choice(&listed, head, &m, as_json),
        }
    }

    /// The entry whose key begins so.
    fn find(&self, cache: &Cache) -> Result<Listed<Head>> {
        let name = |l: &Listed<Head>| l.path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let mut matches: Vec<_> = cache.heads()?.into_iter().filter(|l| name(l).starts_with(&self.key)).collect();
        // One entry may lie in several layers.
        matches.dedup_by_key(|l| name(l));
        if matches.len() > 1 {
            let mut names: Vec<String> = matches.iter().take(5).map(|l| short(&name(l)).to_owned()).collect();
            names.extend((matches.len() > 5).then(|| "…".to_owned()));
            return Err(Error::argument("KEY", format!("{} entries' keys begin with '{}'", matches.len(), self.key))
                .hint(format!("give more of it: {}", names.join(", "))));
        }
        matches.pop().ok_or_else(|| {
            Error::argument("KEY", format!("no entry's key begins with '{}'", self.key))
                .hint("ropejit inspect list shows the keys")
        })
    }

    /// The entry itself, or the kernel that the choice names.
    fn artifact(&self, cache: &Cache, entry: Entry, meta: &Meta) -> Result<Entry> {
        let Meta::Choice(m) = meta else { return Ok(entry) };
        let option = if self.ptx { "--ptx" } else { "--sass" };
        let Some(key) = m.record.chosen().and_then(|c| c.artifact) else {
            return Err(Error::argument(
                option,
                "the choice's kernel is in no cache: it comes with ropejit, or was never made",
            )
            .hint("name a kernel instead: ropejit inspect list --kind artifact shows those that are there"));
        };
        match cache.store.get(Kind::Artifact, key) {
            Lookup::Hit(entry) => Ok(entry),
            Lookup::Miss(miss) => Err(Error::new(ErrorKind::NotCached, format!("the choice's kernel: {miss}"))
                .subject_is(key.to_string())
                .hint("ropejit prewarm makes it again")),
        }
    }
}

fn damaged(listed: &Listed<Head>, why: &str) -> Error {
    let path = listed.path.display().to_string();
    // What is missed names the file as well.
    let why = why.strip_prefix(&format!("{path}: ")).unwrap_or(why);
    Error::new(ErrorKind::Io, format!("the entry is damaged: {why}"))
        .subject_is(path)
        .hint("it is never used, and made again at the next use; ropejit inspect gc removes it")
}

fn ptx(entry: &Entry) -> Result<String> {
    if entry.ptx().is_empty() {
        return Err(Error::argument("--ptx", "the entry holds no PTX").hint("only artifacts for GPUs do"));
    }
    Ok(String::from_utf8_lossy(entry.ptx()).trim_end_matches('\0').trim_end().to_owned())
}

/// The machine code of a cubin, by the first disassembler that is there.
fn disassembled(entry: &Entry) -> Result<String> {
    if entry.ptx().is_empty() || entry.image().is_empty() {
        return Err(Error::argument("--sass", "the entry holds no code for a GPU").hint("only artifacts for GPUs do"));
    }
    let failed =
        |e: std::io::Error| Error::new(ErrorKind::Io, "the cubin cannot be written for the disassembler").caused_by(e);
    let mut cubin = tempfile::Builder::new().prefix("ropejit-").suffix(".cubin").tempfile().map_err(failed)?;
    cubin.write_all(entry.image()).map_err(failed)?;
    // A bare name is looked for in PATH.
    let mut tools = vec![PathBuf::new()];
    let folders =
        ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(ropejit::system::environment::raw).map(PathBuf::from);
    tools.extend(folders.chain([PathBuf::from("/usr/local/cuda")]).map(|folder| folder.join("bin")));
    for folder in &tools {
        for (name, options) in [("nvdisasm", &["--print-code"][..]), ("cuobjdump", &["-sass"])] {
            let tool = folder.join(name);
            match Command::new(&tool).args(options).arg(cubin.path()).output() {
                Ok(done) if done.status.success() => {
                    return Ok(String::from_utf8_lossy(&done.stdout).trim_end().to_owned());
                }
                Ok(done) => {
                    let said = String::from_utf8_lossy(&done.stderr).trim().to_owned();
                    return Err(Error::new(ErrorKind::Unsupported, format!("cannot read the cubin: {said}"))
                        .subject_is(tool.display().to_string())
                        .hint("a CUDA toolkit as new as the kernel's architecture can; --ptx needs none"));
                }
                Err(_) => {} // not there, or not to be run: the next
            }
        }
    }
    Err(Error::new(
        ErrorKind::Unsupported,
        "neither nvdisasm nor cuobjdump is in PATH, CUDA_HOME, CUDA_PATH or /usr/local/cuda",
    )
    .subject_is("--sass")
    .hint("both come with the CUDA toolkit; --ptx prints the PTX without them"))
}

fn show_artifact(listed: &Listed<Head>, head: &Head, m: &ArtifactMeta, as_json: bool) -> Result<()> {
    if as_json {
        return output::json(&output::without_engine(json!({
            "key": head.key, "kind": "artifact", "path": listed.path, "spec": m.spec.to_string(),
            "arch": m.fields.get("arch"), "layout": m.class.to_string(), "variant": m.config.to_string(),
            "ptx_bytes": head.ptx_bytes, "image_bytes": head.image_bytes, "made_by": m.made_by, "fields": m.fields,
        })));
    }
    properties(&[
        ("key", head.key.to_string()),
        ("file", listed.path.display().to_string()),
        ("spec", m.spec.to_string()),
        ("layout", m.class.to_string()),
        ("variant", m.config.to_string()),
        ("made by", m.made_by.clone()),
        ("PTX", format!("{} bytes", head.ptx_bytes)),
        ("image", format!("{} bytes", head.image_bytes)),
    ])?;
    hashed(&m.fields)
}

fn properties(all: &[(&str, String)]) -> Result<()> {
    let all = all.iter().filter(|(_, value)| !value.is_empty());
    let mut lines = all.flat_map(|(name, value)| wrapped(&format!("{name:<12}{value}"), 12));
    lines.try_for_each(|line| output::line(&line))
}

fn hashed(fields: &KeyFields) -> Result<()> {
    output::line("what its key hashes:")?;
    let mut lines = fields.0.iter().flat_map(|(n, v)| wrapped(&format!("  {n:<10}{}", v.replace('\n', " ")), 12));
    lines.try_for_each(|line| output::line(&line))
}

/// Bytes per second of the memory: a bus moves its width twice a clock. `None` where that is not known, as of a host.
pub fn peak(m: &ChoiceMeta) -> Option<f64> {
    let device = m.fields.get("device")?;
    let bus = device.parse::<Identity>().ok()?.memory_bus_bits;
    // The first versions had the clock in the identity.
    let in_identity = || device.rsplit_once("; memory ")?.1.strip_suffix(" kHz")?.parse::<u32>().ok();
    let clock = if m.record.memory_clock_khz > 0 { m.record.memory_clock_khz } else { in_identity()? };
    let peak = f64::from(bus) / 8.0 * f64::from(clock) * 1e3 * 2.0;
    (peak > 0.0).then_some(peak)
}

fn show_choice(listed: &Listed<Head>, head: &Head, m: &ChoiceMeta, as_json: bool) -> Result<()> {
    let r = &m.record;
    let winner = r.chosen().and_then(Candidate::median_ns);
    // Bytes over nanoseconds are gigabytes per second.
    let rate = winner.filter(|_| r.bytes > 0).map(|ns| r.bytes as f64 / ns * 1e9);
    let peak = peak(m);
    if as_json {
        let candidates: Vec<_> = r
            .candidates
            .iter()
            .enumerate()
            .map(|(i, c)| {
                json!({
                    "variant": c.config.to_string(), "median_ns": c.median_ns(), "bit_equal": c.bit_equal,
                    "samples_ns": c.samples_ns, "artifact": c.artifact, "dropped": c.dropped,
                    "winner": i == r.winner, "behind": behind(r, i), "near_tie": r.near_ties.contains(&i),
                    "of_copy": c.median_ns().zip(r.copy_ns).map(|(ns, copy)| copy / ns),
                })
            })
            .collect();
        return output::json(&output::without_engine(json!({
            "key": head.key, "kind": "choice", "path": listed.path, "spec": m.spec.to_string(), "arch": m.arch,
            "device": r.device, "driver": r.driver, "memory_clock_khz": r.memory_clock_khz, "compiler": r.compiler, "tokens": m.bucket.tokens(),
            "measured_tokens": r.tokens, "layout": m.class.to_string(), "tuned": r.tuned, "prior": r.prior, "bytes": r.bytes,
            "copy_ns": r.copy_ns, "bytes_per_second": rate, "peak_bytes_per_second": peak, "took_ms": r.took_ms,
            "created": r.created, "candidates": candidates, "fields": m.fields,
        })));
    }
    let of_copy = winner.zip(r.copy_ns).map_or_else(String::new, |(ns, copy)| format!(", {:.3} of copy", copy / ns));
    let of_peak = rate.zip(peak).map_or_else(String::new, |(rate, peak)| {
        format!(", {:.2} of the memory's peak of {:.2} TB/s", rate / peak, peak / 1e12)
    });
    properties(&[
        ("key", head.key.to_string()),
        ("file", listed.path.display().to_string()),
        ("spec", m.spec.to_string()),
        ("device", format!("{} ({})", r.device, m.arch)),
        ("driver", r.driver.clone()),
        ("memory", if r.memory_clock_khz > 0 { format!("{} kHz", r.memory_clock_khz) } else { String::new() }),
        ("compiler", r.compiler.clone()),
        (
            "tokens",
            match r.bytes {
                0 => m.bucket.tokens().to_string(), // not measured
                _ => format!("{} (measured with {})", m.bucket.tokens(), r.tokens),
            },
        ),
        ("layout", m.class.to_string()),
        ("choice", told_how(r)),
        ("made", output::date(r.created)),
        ("kernel", r.chosen().and_then(|c| c.artifact).map_or_else(String::new, |key| key.to_string())),
        (
            "copy",
            r.copy_ns.map_or_else(String::new, |ns| {
                format!("{} for a copy of the same {} bytes", output::us(ns / 1e3), r.bytes)
            }),
        ),
        ("rate", rate.map_or_else(String::new, |rate| format!("{:.1} GB/s{of_copy}{of_peak}", rate / 1e9))),
    ])?;
    let order = order(r);
    let rows = order.iter().map(|&i| {
        let c = &r.candidates[i];
        let equal = match c.bit_equal {
            Some(true) => "equal",
            Some(false) => "DIFFERENT",
            None => "–",
        };
        let time = c.median_ns().map_or_else(|| "–".into(), |ns| output::us(ns / 1e3));
        let of_copy = c.median_ns().zip(r.copy_ns).map_or_else(|| "–".into(), |(ns, copy)| format!("{:.3}", copy / ns));
        vec![c.config.to_string(), verdict(r, i), equal.into(), time, of_copy]
    });
    let header = ["variant", "verdict", "bits", "median", "of copy"];
    Table { header: &header, rows: rows.collect(), numbers: 2, gives: &["verdict"], drops: &["bits"] }.print()?;
    if r.candidates.iter().any(|c| !c.samples_ns.is_empty()) {
        output::line("samples in µs, one a round:")?;
    }
    for c in order.iter().map(|&i| &r.candidates[i]).filter(|c| !c.samples_ns.is_empty()) {
        let samples: Vec<String> = c.samples_ns.iter().map(|ns| format!("{:.2}", ns / 1e3)).collect();
        output::line(&one_line(&format!("  {}: {}", c.config, samples.join(" "))))?;
    }
    hashed(&m.fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_of_a_memory_is_of_its_bus_and_clock() {
        let spec = ropejit::RopeSpec::new(ropejit::DType::BF16, 128, 32, 8);
        let of = |device: &str, memory_clock_khz: u32| {
            peak(&ChoiceMeta {
                fields: KeyFields(vec![("device".into(), device.into())]),
                spec: ropejit::families::Stated::of(&spec),
                bucket: ropejit::jit::Bucket::of(1),
                class: ropejit::families::Stated::of(&ropejit::jit::Class::contiguous(&spec, false, true)),
                arch: String::new(),
                record: ropejit::jit::Record { memory_clock_khz, ..ropejit::jit::Record::new(1, Vec::new()) },
            })
        };
        let h200 = "NVIDIA H200; cc 9.0; 132 multiprocessors; L2 62914560 B; bus 6144 bit";
        let expected = Some(6144.0 / 8.0 * 3_201_000.0 * 1e3 * 2.0);
        assert_eq!(of(h200, 3_201_000), expected);
        assert_eq!(of(&format!("{h200}; memory 3201000 kHz"), 0), expected, "as the first versions kept it");
        assert_eq!(of(h200, 0), None);
        assert_eq!(of("AMD EPYC; cc 0.0; 2 multiprocessors; L2 1 B; bus 0 bit; memory 0 kHz", 0), None);
        assert_eq!(of("sm_90", 1), None);
    }
}
