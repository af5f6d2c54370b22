//! `ropejit template check`

use std::path::PathBuf;

use clap::Args;
use ropejit::families::template::{Checked, Template};
use ropejit::{Engine, Error, ErrorKind, Result};
use serde::Serialize;

use super::super::table::Table;
use super::super::{output, spec};
use super::specs::{TemplateSizeArgs, TemplateSpecArgs};

/// Check kernels of your own before they serve: read both files, compile every candidate, and compare what each writes
/// with what the default does, where a device is.
///
/// A candidate fails that does not compile, writes outside of its arguments, writes what is in, leaves elements unwritten,
/// is not the same twice, hangs, or differs from the default. Without --spec, the words of [spec] are tried, and numbers as
/// [test] says (else 4096).
#[derive(Args)]
#[command(after_help = "\
Examples:
  ropejit template check my_kernel.toml
  ropejit template check examples/*/*.toml --arch sm_80,sm_90,sm_100
          compile for these; no GPU is needed
  ropejit template check my_kernel.toml --spec hidden=4096,dtype=bf16 \\
      --size rows=8192")]
pub struct Check {
    /// Descriptions, each with its source beside it.
    #[arg(value_name = "FILE.toml", required = true)]
    files: Vec<PathBuf>,
    #[command(flatten)]
    specs: TemplateSpecArgs,
    #[command(flatten)]
    sizes: TemplateSizeArgs,
    /// Also compile for these architectures.
    #[arg(long, value_delimiter = ',', value_name = "sm_NN,...")]
    arch: Vec<String>,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

/// What was found of one spec on one device.
#[derive(Serialize)]
struct Found {
    file: PathBuf,
    spec: String,
    device: String,
    candidates: usize,
    /// Candidates that were run, and whose output is the default's.
    same: usize,
    /// Candidates that were only compiled.
    compiled: usize,
    wrong: Vec<Wrong>,
}

#[derive(Serialize)]
struct Wrong {
    candidate: String,
    why: String,
    /// It does not compile, as one before it does not, with the same log.
    #[serde(skip)]
    repeats: bool,
}

impl Check {
    pub fn run(self) -> Result<()> {
        let bar = output::spinner();
        // All are read before anything is compiled.
        let templates = self.files.iter().map(Template::load).collect::<Result<Vec<_>>>()?;
        let mut engines = vec![Engine::builder().in_memory().build()?];
        for arch in &self.arch {
            engines.push(Engine::builder().in_memory().arch(arch).build().map_err(spec::as_typed)?);
        }
        let (mut all, mut notes) = (Vec::new(), Vec::new());
        for (file, template) in self.files.iter().zip(&templates) {
            for engine in &engines {
                let on = match engine.template(template) {
                    Ok(on) => on,
                    Err(e) if e.kind() == ErrorKind::Unsupported => {
                        notes.push(format!("{}: not run here: {}", file.display(), e.message()));
                        continue;
                    }
                    Err(e) => return Err(e),
                };
                for kernel in self.specs.kernels(template, &on)? {
                    for size in self.sizes.sizes(&kernel)? {
                        let at = format!("{}, {}", kernel.spec(), engine.facts().arch);
                        let told = |done, of| bar.set_message(format!("{at}: compiled {done} of {of} candidates"));
                        let checked = kernel.check_candidates(size, told)?;
                        all.push(Found::new(file.clone(), kernel.spec(), &engine.facts().arch, checked));
                    }
                }
            }
        }
        drop(bar);
        for note in &notes {
            eprintln!("{note}");
        }
        if self.json {
            output::json(&serde_json::json!({ "checked": all }))?;
        } else {
            print(&all)?;
        }
        let wrong: usize = all.iter().map(|f| f.wrong.len()).sum();
        if wrong == 0 {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Template, format!("candidates that must not serve: {wrong}"))
            .hint("they are left out when a call tunes; a default that is wrong cannot serve at all"))
    }
}

impl Found {
    fn new(file: PathBuf, spec: &str, device: &str, checked: Vec<Checked>) -> Self {
        let candidates = checked.len();
        let (mut same, mut compiled, mut wrong) = (0, 0, Vec::new());
        for Checked { config, result, repeats } in checked {
            match result {
                Ok(true) => same += 1,
                Ok(false) => compiled += 1,
                Err(e) => wrong.push(Wrong { candidate: config, why: e.to_string(), repeats }),
            }
        }
        Self { file, spec: spec.to_owned(), device: device.to_owned(), candidates, same, compiled, wrong }
    }
}

fn print(all: &[Found]) -> Result<()> {
    let row = |f: &Found| {
        let verdict = match (f.same, f.compiled, f.wrong.len()) {
            (0, _, 0) => "compiles".into(),
            (_, _, 0) => "same output".into(),
            (_, _, wrong) => format!("wrong: {wrong}"),
        };
        vec![f.spec.clone(), f.device.clone(), verdict, f.candidates.to_string()]
    };
    let header = ["kernel", "device", "verdict", "candidates"];
    Table { header: &header, rows: all.iter().map(row).collect(), numbers: 1, gives: &["kernel"], drops: &[] }
        .print()?;
    for found in all {
        for Wrong { candidate, why, .. } in found.wrong.iter().filter(|w| !w.repeats) {
            eprintln!("{} on {}, {candidate}: {why}", found.spec, found.device);
        }
        let repeats = found.wrong.iter().filter(|w| w.repeats).count();
        if repeats > 0 {
            eprintln!(
                "{} on {}: {repeats} more candidates do not compile, with a log that is above",
                found.spec, found.device
            );
        }
    }
    Ok(())
}
