//! `ropejit demo`

use std::process::{Command, Stdio};

use clap::Args;
use ropejit::{Error, ErrorKind, Result};
use serde_json::json;

use crate::output;
use crate::run::Report;

/// The whole idea in one table: first processes that compile and tune, and a second one that does neither.
#[derive(Args)]
pub struct Demo {
    /// A Hugging Face config.json, or the name of a configuration shipped with ropejit.
    #[arg(long, value_name = "CONFIG.json", default_value = "llama-3.1-8b")]
    model: String,
    /// Tokens of the one sequence.
    #[arg(long, value_parser = crate::spec::tokens, default_value = "8192")]
    tokens: u64,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

impl Demo {
    pub fn run(self) -> Result<()> {
        // Folders of their own, so that first processes really start with nothing.
        let folder = || {
            tempfile::Builder::new()
                .prefix("ropejit-demo-")
                .tempdir()
                .map_err(|e| Error::io(&std::env::temp_dir(), "a cache folder for the demo cannot be made", e))
        };
        let (waiting, answering) = (folder()?, folder()?);
        let bar = output::spinner();
        bar.set_message("a first process: nothing is cached, its first call waits until all candidates are measured");
        let cold = self.process(waiting.path(), &["--tuning", "blocking"])?;
        bar.set_message("another first process: its first call waits for one kernel, tuning goes on beside it");
        let aside = self.process(answering.path(), &["--tuning", "background", "--wait-tuned"])?;
        bar.set_message("a second process: everything is cached");
        let warm = self.process(waiting.path(), &["--tuning", "background"])?;
        bar.finish_and_clear();
        let sooner = cold.first_result_ms / warm.first_result_ms;
        if self.json {
            return output::json(&json!({
                "cold": cold, "cold_background": aside, "warm": warm, "first_result_sooner": sooner, "stats": warm.stats,
            }));
        }
        output::line(&format!("{} on {} ({})", self.model, cold.device, cold.arch))?;
        output::line(&format!("{}, {} × {} tokens", cold.spec, cold.batch, cold.tokens))?;
        let row = |name: &str, r: &Report| {
            let stat = |name: &str| r.stats.get(name).map_or_else(String::new, ToString::to_string);
            vec![
                name.to_owned(),
                r.origin.clone(),
                format!("compiles {}, tunings {}", stat("compiles"), stat("tunings")),
                r.variant.clone(),
                output::ms(r.first_result_ms),
                output::ms(r.second_result_ms),
                output::us(r.device_us),
                format!("{:.2}", r.ratio),
            ]
        };
        output::table(
            &["process", "from", "work", "serves in the end", "first result", "second", "steady", "of copy"],
            vec![
                row("first, tunes, then answers", &cold),
                row("first, answers, then tunes", &aside),
                row("second", &warm),
            ],
            4,
        )?;
        output::line(&format!(
            "The second process has its first result {sooner:.0}× sooner than a process that tunes first."
        ))
    }

    /// Runs `ropejit run` in a process of its own.
    fn process(&self, cache: &std::path::Path, extra: &[&str]) -> Result<Report> {
        let failed = |what: String| Error::new(ErrorKind::Io, what).subject_is("ropejit run");
        let program = std::env::current_exe().map_err(|e| failed(format!("this program cannot be found: {e}")))?;
        let output = Command::new(program)
            .args(["run", "--json", "--model", &self.model])
            .args(["--tokens", &self.tokens.to_string()])
            .args(extra)
            .env("ROPEJIT_CACHE_DIR", cache)
            .stderr(Stdio::inherit())
            .output()
            .map_err(|e| failed(format!("cannot be started: {e}")))?;
        if !output.status.success() {
            return Err(failed(format!("ended with {}", output.status)));
        }
        serde_json::from_slice(&output.stdout).map_err(|e| failed(format!("its output cannot be read: {e}")))
    }
}
