//! `ropejit run`

use std::sync::Arc;
use std::time::Instant;

use clap::Args;
use ropejit::families::rope::Serving;
use ropejit::{Direction, Engine, Error, ErrorKind, Result, RopeSpec, Stats, Stream, Tuning};
use serde::Serialize;

use super::library::{self, Calls, LibraryArgs};
use super::output;
use super::spec::SpecArgs;
use super::table::wrapped;
use super::workload::{self, Workload};

/// Apply RoPE once to random data: checked against f64, timed, with the origin of the kernel.
///
/// Says where the first call's kernel came from (memory, disk, embedded: shipped with ropejit, compiled, tuned, or the
/// slow reference where nothing can be had), what the call waited for, and what a call costs in the steady state. Fails
/// if the result is wrong.
#[derive(Args)]
#[command(
    override_usage = "ropejit run --model <CONFIG.json> [OPTIONS]\n       \
                      ropejit run --head-dim <D> --num-heads <H> [--num-kv-heads <K>] [OPTIONS]",
    after_help = "\
Examples:
  ropejit run --model llama-3.1-8b --tokens 8192
  ropejit run --model llama-3.1-8b --tuning frozen  proves that a prewarm was
                                                    complete
  ropejit run --for transformers --model config.json --tuning frozen
                                                    the same for a call of
                                                    ropejit.patch(...)
  ropejit run --head-dim 128 --num-heads 32 --num-kv-heads 8 \\
      --fused qk-norm --rounding per-op
                                                    norm and RoPE in one launch,
                                                    with eager's bits
  ropejit run --head-dim 128 --num-heads 32 --num-kv-heads 8 --fused append \\
      --cache fp8 --q-fp8
                                                    RoPE, k and v to an fp8
                                                    cache, q as fp8
  ropejit run --head-dim 64 --num-heads 4 --num-kv-heads 2 --tokens 32 \\
      --tuning blocking"
)]
pub struct Run {
    #[command(flatten)]
    spec: SpecArgs,
    #[command(flatten)]
    calls: LibraryArgs,
    /// Tokens per sequence.
    #[arg(long, value_name = "N", value_parser = super::spec::tokens, default_value = "8192")]
    tokens: u64,
    /// Sequences.
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u64).range(1..=65_536))]
    batch: u64,
    /// q and k stored as [B,H,S,D] instead of [B,S,H,D].
    #[arg(long)]
    bhsd: bool,
    /// When to compile and tune: background (answer at once, tune on the side), blocking (the first call waits), never
    /// (do not tune), frozen (what is not cached is an error) [default: the environment's, else background].
    #[arg(long, value_name = "WHEN", value_parser = super::spec::parse::<Tuning>)]
    tuning: Option<Tuning>,
    /// Wait for background tuning before the steady state is timed.
    #[arg(long)]
    wait_tuned: bool,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

/// What `run --json` prints.
#[derive(Serialize, serde::Deserialize)]
pub struct Report {
    pub device: String,
    pub arch: String,
    pub spec: String,
    pub batch: u64,
    pub tokens: u64,
    /// Where the first call's kernel came from.
    pub origin: String,
    /// What serves now.
    pub variant: String,
    pub tuned: bool,
    pub prior: bool,
    /// Opening device and cache, milliseconds.
    pub open_ms: f64,
    /// From asking for the kernel to the first result, milliseconds.
    pub first_result_ms: f64,
    pub second_result_ms: f64,
    /// One call in the steady state, device time in microseconds.
    pub device_us: f64,
    /// A device-to-device copy of the same bytes.
    pub copy_us: f64,
    /// `copy_us / device_us`.
    pub of_copy: f64,
    pub max_error: f64,
    pub allowed_error: f64,
    pub stats: serde_json::Value,
}

impl Run {
    pub fn run(self) -> Result<()> {
        let bar = output::spinner();
        let report = self.measure(&bar);
        drop(bar);
        let report = report?;
        let right = report.max_error <= report.allowed_error;
        if self.json {
            output::json(&report)?;
        } else {
            Self::print(&report)?;
        }
        if right {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Device,
            format!(
                "the result is wrong: off by {:.3e}, rounding explains {:.3e}",
                report.max_error, report.allowed_error
            ),
        )
        .subject_is(report.spec))
    }

    fn measure(&self, bar: &indicatif::ProgressBar) -> Result<Report> {
        let chosen = self.spec.choose(self.tokens)?;
        let others: Vec<String> = chosen.iter().skip(1).map(|c| c.name.clone()).collect();
        let Some(chosen) = chosen.into_iter().next() else {
            return Err(Error::argument("--model", "has no layer with RoPE"));
        };
        if !others.is_empty() {
            output::note(&format!("{} is run; the model also has {}", chosen.name, others.join(", ")));
        }
        let opened = Instant::now();
        let mut builder = Engine::builder().on_progress(output::show_on(bar));
        if let Some(tuning) = self.tuning {
            builder = builder.tuning(tuning);
        }
        let engine = builder.build()?;
        let open_ms = millis(opened);
        let mut chosen = chosen.on(&engine)?;
        if let Some(library) = self.calls.library {
            let backward = self.spec.form.backward;
            let calls = Calls::of(library, &engine, &chosen, backward).all();
            let number = calls.len();
            let asked = |spec: &RopeSpec| (spec.direction == Direction::Backward) == backward;
            chosen.spec = calls.into_iter().find(asked).unwrap_or(chosen.spec);
            if number > 1 {
                let library = library::name(library);
                output::note(&format!(
                    "one of {number} calls of {library} is run; inspect why --for {library} has all"
                ));
            }
        }
        let work = Arc::new(Workload::new(&engine, &chosen, self.batch as usize, self.tokens as usize, self.bhsd)?);
        engine.device().synchronize()?;

        let asked = Instant::now();
        let rope = engine.rope(&chosen.spec)?;
        let origin = work.apply(&rope, Stream::DEFAULT)?;
        engine.device().synchronize()?;
        let first_result_ms = millis(asked);
        let again = Instant::now();
        work.apply(&rope, Stream::DEFAULT)?;
        engine.device().synchronize()?;
        let second_result_ms = millis(again);
        let (max_error, allowed_error) = work.errors()?;
        rope.check()?;

        if self.wait_tuned {
            engine.wait_tuned();
        }
        let steady = {
            let (work, rope) = (Arc::clone(&work), rope.clone());
            time(&engine, move |stream| work.apply(&rope, stream).map(drop))?
        };
        let copy = {
            let (work, of) = (Arc::clone(&work), engine.clone());
            time(&engine, move |stream| work.copy(&of, stream))?
        };
        let serving = rope.serving(self.batch * self.tokens, self.bhsd);
        let stats: Stats = engine.stats();
        Ok(Report {
            device: engine.facts().name.clone(),
            arch: engine.facts().arch.clone(),
            spec: chosen.spec.to_string(),
            batch: self.batch,
            tokens: self.tokens,
            origin: output::word(&origin),
            variant: serving.map_or_else(String::new, |s: Serving| s.variant.to_string()),
            tuned: serving.is_some_and(|s| s.tuned),
            prior: serving.is_some_and(|s| s.prior),
            open_ms,
            first_result_ms,
            second_result_ms,
            device_us: steady / 1e3,
            copy_us: copy / 1e3,
            of_copy: copy / steady,
            max_error,
            allowed_error,
            stats: serde_json::to_value(stats).unwrap_or_default(),
        })
    }

    fn print(r: &Report) -> Result<()> {
        let tuned = output::how(r.tuned, r.prior);
        let stat = |name: &str| r.stats.get(name).cloned().unwrap_or_default();
        let rows = [
            ("device", format!("{} ({})", r.device, r.arch)),
            ("spec", r.spec.clone()),
            ("tokens", format!("{} × {}", r.batch, r.tokens)),
            ("kernel", format!("{} ({tuned}), first from {}", r.variant, r.origin)),
            ("first result", output::ms(r.first_result_ms)),
            ("second result", output::ms(r.second_result_ms)),
            ("steady call", format!("{} on the device", output::us(r.device_us))),
            ("copy", format!("{} for the same bytes, of copy {:.3}", output::us(r.copy_us), r.of_copy)),
            ("error", format!("{:.3e} (rounding explains {:.3e})", r.max_error, r.allowed_error)),
            (
                "stats",
                format!(
                    "compiles {}, tunings {}, memory hits {}, disk hits {}",
                    stat("compiles"),
                    stat("tunings"),
                    stat("memory_hits"),
                    stat("disk_hits")
                ),
            ),
        ];
        let mut lines = rows.iter().flat_map(|(name, value)| wrapped(&format!("{name:<15}{value}"), 15));
        lines.try_for_each(|line| output::line(&line))
    }
}

fn millis(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

/// The median device time of a launch, in nanoseconds.
fn time(engine: &Engine, launch: impl Fn(Stream<'_>) -> Result<()> + Send + 'static) -> Result<f64> {
    let launches = engine.device().measuring().launches.0;
    let mut timer = workload::timer(engine, launches, Box::new(move |_, stream| launch(stream)))?;
    let samples = (0..11).map(|_| timer.sample()).collect::<Result<Vec<_>>>()?;
    Ok(ropejit::tune::median(&samples).unwrap_or(0.0))
}
