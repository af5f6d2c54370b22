//! `ropejit bench`

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use clap::Args;
use ropejit::families::read_choice;
use ropejit::store::Kind;
use ropejit::tune::median;
use ropejit::{Engine, Error, Origin, Result, Rope, RopeSpec, Stream, Tuning};
use serde::Serialize;

use super::bench_case::{Candidate, Case};
use super::bench_shapes::{Asked, ShapeArgs, Table};
use super::spec::Chosen;
use super::table;
use super::workload::{self, Workload};
use super::{bench_picture, output};

/// Measure the shapes of common models against a device-to-device copy of the same bytes.
///
/// Every shape is tuned among all candidates if it is not in the cache, then timed: launches recorded into a graph and replayed, over buffers
/// that are rotated past the last-level cache (one table serves all of them, as it serves all layers of a model), kernel
/// and copy in turn, medians. 1.00 is the speed of the copy.
///
/// --fused measures launches that do more than turn q and k, for one attention (Qwen3-8B's 32/8/128, or the one that --head-dim and
/// others say) over five numbers of tokens. Their bytes are those of all tensors and caches that they read and write.
#[derive(Args)]
#[command(after_help = "\
Examples:
  ropejit bench --dtype bf16 --only 1x512           one element type and shape:
                                                    both layouts, in and out of
                                                    place
  ropejit bench --fused qk-norm                     norm and RoPE of q and k,
                                                    with eager's bits
  ropejit bench --fused qk-norm --backward          their gradient
  ropejit bench --fused append --cache fp8 --q-fp8  RoPE, k and v to an fp8
                                                    cache, q as fp8
  ropejit bench --json --picture bench.svg          everything, as JSON and as a
                                                    picture")]
pub struct Bench {
    #[command(flatten)]
    shapes: ShapeArgs,
    /// Samples of each measurement.
    #[arg(long, default_value = "15", value_parser = clap::value_parser!(u64).range(3..=1000))]
    samples: u64,
    /// Also draw `of copy` and the tuning landscapes into this file, as SVG.
    #[arg(long, value_name = "FILE.svg")]
    picture: Option<PathBuf>,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    device: String,
    driver: String,
    table: String,
    /// When it was measured.
    made: String,
    cases: Vec<Case>,
    stats: ropejit::Stats,
}

impl Bench {
    pub fn run(self) -> Result<()> {
        let bar = output::spinner();
        let engine =
            Engine::builder().tuning(Tuning::BLOCKING).priors(false).on_progress(output::show_on(&bar)).build()?;
        // What serves until a tuning has ended.
        let at_first = Engine::builder().in_memory().tuning(Tuning::Never).build()?;
        let engines = [&engine, &at_first];
        let mut cases = Vec::new();
        for Asked { chosen, size, forms } in self.shapes.asked(&engine)? {
            for (head_major, in_place) in forms {
                bar.set_message(format!("{} {}", chosen.name, chosen.spec.dtype));
                cases.push(self.measure(engines, &chosen, size, head_major, in_place)?);
            }
        }
        drop(bar);
        let now = std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs());
        let report = Report {
            device: engine.facts().name.clone(),
            driver: engine.facts().driver.clone(),
            table: match self.shapes.table {
                Table::Same => "the dtype of q and k".into(),
                Table::F32 => "f32".into(),
                Table::Made => "f32, made by the engine".into(),
            },
            made: output::date(now),
            cases,
            stats: engine.stats(),
        };
        if self.json {
            output::json(&report)?;
        } else {
            print(&report)?;
        }
        let Some(path) = &self.picture else { return Ok(()) };
        let svg = bench_picture::draw(&report.device, &report.made, &report.cases);
        fs_err::write(path, svg).map_err(|e| Error::io(path, "the picture cannot be written", e))
    }

    fn measure(
        &self,
        [engine, at_first]: [&Engine; 2],
        chosen: &Chosen,
        [batch, tokens]: [u32; 2],
        head_major: bool,
        in_place: bool,
    ) -> Result<Case> {
        let device = engine.device();
        let first = Workload::new(engine, chosen, batch as usize, tokens as usize, head_major)?;
        let bytes = first.bytes();
        // As many sets of tensors as exceed the last-level cache, within reason for the smallest.
        let wanted = (3 * engine.facts().l2_bytes).div_ceil(bytes as u64).clamp(2, 128) as usize;
        let limit = (device.measuring().scratch_bytes / bytes as u64).max(1) as usize;
        let mut works = vec![first];
        while works.len() < wanted.min(limit) {
            works.push(works[0].another(engine)?);
        }
        let works = Arc::new(works);
        let rope = engine.rope(&chosen.spec)?;
        works[0].apply_to(&rope, Stream::DEFAULT, in_place)?;
        let shipped = at_first.rope(&chosen.spec)?;
        let comes_with =
            |origin| matches!(origin, Origin::Embedded | Origin::Memory) && at_first.stats().embedded_hits > 0;
        let shipped = comes_with(works[0].apply_to(&shipped, Stream::DEFAULT, in_place)?).then_some(shipped);
        device.synchronize()?;

        let guess = bytes as f64 / 4000.0 + 1000.0; // ns at 4 TB/s
        let (least, most) = device.measuring().launches;
        let launches = ((device.measuring().sample_ns / guess) as usize).clamp(least, most);
        let timed = |rope: &Rope| {
            let (works, rope) = (Arc::clone(&works), rope.clone());
            let call = move |i: usize, stream: Stream<'_>| {
                works[i % works.len()].apply_to(&rope, stream, in_place).map(|_| ())
            };
            workload::timer(engine, launches, Box::new(call))
        };
        let copy = {
            let (works, engine) = (Arc::clone(&works), engine.clone());
            move |i: usize, stream: Stream<'_>| works[i % works.len()].copy(&engine, stream)
        };
        let mut kernel = timed(&rope)?;
        let mut shipped = shipped.map(|rope| timed(&rope)).transpose()?;
        let mut copy = workload::timer(engine, launches, Box::new(copy))?;
        let (mut kernel_ns, mut shipped_ns, mut copy_ns) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..self.samples {
            kernel_ns.push(kernel.sample()?);
            copy_ns.push(copy.sample()?);
            if let Some(shipped) = &mut shipped {
                shipped_ns.push(shipped.sample()?);
            }
        }
        let (kernel_ns, copy_ns) = (median(&kernel_ns).unwrap_or(0.0), median(&copy_ns).unwrap_or(0.0));
        let host_us = host_time(engine, || works[0].apply_to(&rope, Stream::DEFAULT, in_place).map(|_| ()))?;
        let bare = works[0].bare_launch(&rope, head_major && tokens > 1)?;
        let bare_us = bare.map(|bare| host_time(engine, bare)).transpose()?;
        let serving = rope.serving(u64::from(batch) * u64::from(tokens), head_major && tokens > 1);
        let (landscape, tuning_ms) = landscape(engine, &chosen.spec, batch * tokens, head_major && tokens > 1)?;
        Ok(Case {
            shape: chosen.name.clone(),
            dtype: chosen.spec.dtype,
            spec: chosen.spec.to_string(),
            layout: if head_major { "bhsd" } else { "bshd" }.into(),
            in_place,
            bytes,
            copy_us: copy_ns / 1e3,
            device_us: kernel_ns / 1e3,
            of_copy: copy_ns / kernel_ns,
            shipped_of_copy: median(&shipped_ns).map(|ns| copy_ns / ns),
            variant: serving.map_or_else(String::new, |s| s.variant.to_string()),
            host_us,
            bare_us,
            landscape,
            tuning_ms,
        })
    }
}

/// Host time of one call in microseconds: the median over batches of calls that the device keeps up with.
fn host_time(engine: &Engine, call: impl Fn() -> Result<()>) -> Result<f64> {
    let calls = if engine.device().measuring().launches.0 > 1 { 100 } else { 1 };
    let mut samples = Vec::new();
    for _ in 0..7 {
        engine.device().synchronize()?;
        let start = Instant::now();
        for _ in 0..calls {
            call()?;
        }
        samples.push(start.elapsed().as_secs_f64() * 1e6 / f64::from(calls));
    }
    engine.device().synchronize()?;
    Ok(median(&samples).unwrap_or(0.0))
}

/// The candidates of the tuning run behind a case.
fn landscape(engine: &Engine, spec: &RopeSpec, tokens: u32, head_major: bool) -> Result<(Vec<Candidate>, f64)> {
    let class = ropejit::jit::Class::contiguous(spec, head_major, true);
    let bucket = ropejit::jit::Bucket::of(u64::from(tokens));
    for listed in engine.store().list(Kind::Choice)? {
        let Some(meta) = listed.entry.ok().and_then(|e| read_choice(&e.meta).ok()) else {
            continue;
        };
        let ours = meta.record.device == engine.facts().name && meta.record.tuned;
        if ours
            && meta.spec.text() == spec.to_string()
            && meta.class.text() == class.to_string()
            && meta.bucket == bucket
        {
            let copy = meta.record.copy_ns.unwrap_or(0.0);
            let one = |c: &ropejit::jit::Candidate| {
                Some(Candidate { variant: c.config.to_string(), of_copy: copy / c.median_ns()? })
            };
            return Ok((meta.record.candidates.iter().filter_map(one).collect(), meta.record.took_ms));
        }
    }
    Ok((Vec::new(), 0.0))
}

fn print(report: &Report) -> Result<()> {
    let driver = if report.driver.is_empty() { String::new() } else { format!(" ({})", report.driver) };
    output::line(&format!("{}{driver}, tables in {}", report.device, report.table))?;
    let rows = report.cases.iter().map(|c| {
        let worst = c.landscape.iter().map(|l| l.of_copy).fold(f64::INFINITY, f64::min);
        vec![
            c.shape.clone(),
            c.dtype.to_string(),
            format!("{} {}", c.layout, if c.in_place { "in" } else { "out" }),
            c.variant.clone(),
            format!("{:.1}", c.bytes as f64 / 1e6),
            format!("{:.2}", c.device_us),
            format!("{:.3}", c.of_copy),
            c.shipped_of_copy.map_or_else(|| "–".into(), |of| format!("{of:.3}")),
            if worst.is_finite() { format!("{worst:.3}") } else { "–".into() },
            format!("{:.2}", c.host_us),
            c.bare_us.map_or_else(|| "–".into(), |us| format!("{us:.2}")),
        ]
    });
    let header = ["shape", "dtype", "form", "variant", "MB", "µs", "of copy", "shipped", "worst", "host µs", "bare µs"];
    // In a narrow terminal, what a person can do without goes first.
    let drops = &["bare µs", "MB", "worst", "host µs", "dtype", "variant"];
    table::Table { header: &header, rows: rows.collect(), numbers: 7, gives: &["variant"], drops }.print()
}
