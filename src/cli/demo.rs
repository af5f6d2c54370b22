//! `ropejit demo`

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::process::{Command, Stdio};

use clap::Args;
use ropejit::{Error, ErrorKind, Result};
use serde_json::json;

use super::output;
use super::run::Report;
use super::table::{self, Table};

/// The whole idea in one table: two first processes, which compile and tune, and a later one that does neither.
///
/// Three processes apply the RoPE of one model, in cache folders that are made for the demo and removed after it. The
/// first tunes and then answers, another answers and then tunes, the last finds all that the first left behind. `first` is
/// what the first call waits for; `of copy` compares the steady call with a copy of the same bytes (1.00: as fast).
#[derive(Args)]
#[command(after_help = "\
Examples:
  ropejit demo
  ropejit demo --model qwen3-8b --tokens 1024")]
pub struct Demo {
    /// A Hugging Face config.json, or the name of a configuration shipped with ropejit.
    #[arg(long, value_name = "CONFIG.json", default_value = "llama-3.1-8b")]
    model: String,
    /// Tokens of the one sequence.
    #[arg(long, value_name = "N", value_parser = super::spec::tokens, default_value = "8192")]
    tokens: u64,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

impl Demo {
    pub fn run(self) -> Result<()> {
        super::spec::load("--model", &self.model)?;
        // Folders of their own, so that first processes really start with nothing.
        let folder = || {
            let mut folder = tempfile::Builder::new();
            folder.prefix("ropejit-demo-");
            // Whatever the umask is: a cache that others can write to is not trusted.
            #[cfg(unix)]
            folder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o700));
            folder
                .tempdir()
                .map_err(|e| Error::io(&std::env::temp_dir(), "a cache folder for the demo cannot be made", e))
        };
        let (waiting, answering) = (folder()?, folder()?);
        let bar = output::spinner();
        // What all three warn of is said once.
        let told = RefCell::new(BTreeSet::new());
        let run = |doing: &'static str, cache: &tempfile::TempDir, extra: &[&str]| {
            bar.set_message(doing);
            let (report, beside) = self.process(cache.path(), extra)?;
            for line in beside.lines().filter(|line| told.borrow_mut().insert((*line).to_owned())) {
                output::note(line);
            }
            Ok::<_, Error>(report)
        };
        let cold = run(
            "a first process: nothing is cached, its first call waits until all candidates are measured",
            &waiting,
            &["--tuning", "blocking"],
        )?;
        let aside = run(
            "another first process: its first call waits for one kernel at most, tuning goes on beside it",
            &answering,
            &["--tuning", "background", "--wait-tuned"],
        )?;
        let warm = run("a second process: everything is cached", &waiting, &["--tuning", "background"])?;
        drop(bar);
        // On a GPU that choices come with, there is nothing to measure.
        let first = if cold.prior { "takes a shipped choice" } else { "tunes first" };
        let sooner = cold.first_result_ms / warm.first_result_ms;
        if self.json {
            return output::json(&json!({
                "cold": cold, "cold_background": aside, "warm": warm, "first_result_sooner": sooner, "stats": warm.stats,
            }));
        }
        output::line(&format!("{} on {} ({})", self.model, cold.device, cold.arch))?;
        output::line(&format!("{}, {} × {} tokens", cold.spec, cold.batch, cold.tokens))?;
        // One measure for all: each process has timed a copy, and on a busy machine these differ.
        let mut copies = [cold.copy_us, aside.copy_us, warm.copy_us];
        copies.sort_by(f64::total_cmp);
        let row = |name: &str, r: &Report| {
            let stat = |name: &str| r.stats.get(name).map_or_else(String::new, ToString::to_string);
            vec![
                name.to_owned(),
                r.origin.clone(),
                stat("compiles"),
                stat("tunings"),
                output::ms(r.first_result_ms),
                output::ms(r.second_result_ms),
                output::us(r.device_us),
                format!("{:.2}", copies[1] / r.device_us),
            ]
        };
        let header = ["process", "from", "compiles", "tunings", "first", "second", "steady", "of copy"];
        let rows = vec![row(first, &cold), row("answers first", &aside), row("finds all", &warm)];
        Table { header: &header, rows, numbers: 6, gives: &[], drops: &["tunings", "compiles"] }.print()?;
        let explained = if cold.prior {
            "nothing is cached; the choice for this GPU is compiled"
        } else {
            "nothing is cached; the call waits for measurements"
        };
        let rows = [
            (first, explained.to_owned()),
            ("answers first", "nothing is cached; one kernel answers, tuning goes on beside it".into()),
            ("finds all", "a later process, which finds what the first one kept".into()),
            ("from", meaning([&cold, &aside, &warm])),
            ("first, second", "time until the first and the second result".into()),
            ("steady", "time of one later call".into()),
            ("of copy", format!("its speed; a copy of the same bytes ({}) has 1.00", output::us(copies[1]))),
        ];
        let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0) + 1;
        for (name, meaning) in rows {
            output::line(&table::one_line(&format!(" {name:<width$}{meaning}")))?;
        }
        if warm.origin == REFERENCE {
            return output::line("No kernel could be had, so there is nothing to show: `ropejit doctor` says why.");
        }
        output::line(&format!(
            "Chosen: {}. The first result of `finds all` came {sooner:.0}× sooner than",
            cold.variant
        ))?;
        output::line(&format!("that of `{first}`."))
    }

    /// Runs `ropejit run` in a process of its own; returns what it found, and what it wrote beside that.
    fn process(&self, cache: &std::path::Path, extra: &[&str]) -> Result<(Report, String)> {
        let failed = |what: String| Error::new(ErrorKind::Io, what).subject_is("ropejit run");
        let (program, first) = super::program::get().ok_or_else(|| failed("this program cannot be found".into()))?;
        let output = Command::new(program)
            .args(first)
            .args(["run", "--json", "--model", &self.model])
            .args(["--tokens", &self.tokens.to_string()])
            .args(extra)
            .env("ROPEJIT_CACHE_DIR", cache)
            // What was prepared elsewhere would serve a process that is to start with nothing.
            .env_remove("ROPEJIT_CACHE_PATH")
            .env_remove("ROPEJIT_LOCK")
            .stderr(Stdio::piped())
            .output()
            .map_err(|e| failed(format!("cannot be started: {e}")))?;
        let beside = String::from_utf8_lossy(&output.stderr).into_owned();
        if !output.status.success() {
            return Err(failed(format!("ended with {}: {}", output.status, beside.trim_end())));
        }
        let report = serde_json::from_slice(&output.stdout);
        Ok((report.map_err(|e| failed(format!("its output cannot be read: {e}")))?, beside))
    }
}

/// The origin of what the slow reference has computed.
const REFERENCE: &str = "reference";

/// What the origins of these processes' kernels mean.
fn meaning(reports: [&Report; 3]) -> String {
    let mut seen = Vec::new();
    for report in reports {
        let meaning = match report.origin.as_str() {
            "tuned" => "tuned: the fastest of some",
            "compiled" => "compiled: made now",
            "disk" => "disk: from the cache",
            "embedded" => "embedded: comes with ropejit",
            REFERENCE => "reference: no kernel",
            other => other,
        };
        if !seen.contains(&meaning) {
            seen.push(meaning);
        }
    }
    seen.join("; ")
}
