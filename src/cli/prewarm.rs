//! `ropejit prewarm`

use std::collections::BTreeSet;

use clap::Args;
use ropejit::families::rope::Prewarmed;
use ropejit::jit::{Bucket, Class};
use ropejit::rope::library::Library;
use ropejit::system::environment;
use ropejit::{Engine, Error, Result};

use super::library::{Calls, LibraryArgs};
use super::lock::{self, Writer};
use super::output;
use super::prewarm_remote::RemoteArgs;
use super::prewarm_template::TemplateArgs;
use super::prewarmed::{Done, Report};
use super::spec::{self, Chosen, FormArgs, NumberArgs};

/// Fill the cache at deploy time: compile and tune for models and token counts, so that no call ever does.
///
/// A second run finds everything and does nothing. With --arch no GPU is needed: kernels are compiled for that
/// architecture (image build time) and not tuned. Fails if what was made cannot be kept.
///
/// --lock also writes the choices to a text file to commit. Programs that are given it (`ROPEJIT_LOCK`) launch exactly those
/// variants and never tune what it names; a prewarm that is given it compiles them.
#[derive(Args)]
#[command(
    override_usage = "ropejit prewarm --model <CONFIG.json>... [OPTIONS]\n       \
                      ropejit prewarm --head-dim <D> --num-heads <H> [--num-kv-heads <K>]\n           \
                          [OPTIONS]\n       \
                      ropejit prewarm --template <FILE.toml>... [--spec <K=V,...>]\n           \
                          [--size <NAME=N,...>] [OPTIONS]\n       \
                      ropejit prewarm --check <FILE> [--arch <sm_NN,...>] [--json]",
    after_help = "\
Examples:
  ropejit prewarm --model config.json --tokens 1,64,512,8192
  ropejit prewarm --model llama-3.1-8b --arch sm_80,sm_90 --no-tune
  ropejit prewarm --for transformers --model config.json
                                     what ropejit.patch(...) serves
  ropejit prewarm --head-dim 128 --num-heads 32 --num-kv-heads 8 \\
      --tokens 8192 --dtype f16
  ropejit prewarm --model config.json --fused append --cache fp8 --q-fp8 \\
      --positions ids64
                                     RoPE, and k and v to a paged cache
  ropejit prewarm --model config.json --lock rope.lock
                                     tune here, commit the file
  ROPEJIT_LOCK=rope.lock ropejit prewarm --model config.json --arch sm_90
                                     compile what it names where there is no GPU
  ropejit prewarm --template add_rmsnorm.toml --spec hidden=4096,dtype=bf16 \\
      --size rows=1,64,8192
                                     a kernel of your own
  ropejit prewarm --model config.json --arch sm_90 --pull s3://bucket/packs \\
      --pubkey RW… --push s3://bucket/packs --key ropejit.key
                                     what CI runs: get the pack, make what it
                                     lacks, push the new one
  ropejit prewarm --check rope.lock  exit status 1 if it no longer holds

A call finds what was prepared for its dtype, tables, positions, rounding,
direction and layout: give the options that say how the program calls it. Where a
program runs with ROPEJIT_TUNING=frozen, what was forgotten is an error that
names it."
)]
#[allow(clippy::struct_excessive_bools)] // independent switches
pub struct Prewarm {
    /// Hugging Face config.json files (or folders that hold one), or names of configurations shipped with ropejit.
    #[arg(long, value_name = "CONFIG.json", num_args = 1.., conflicts_with_all = NumberArgs::NAMES)]
    model: Vec<String>,
    #[command(flatten)]
    numbers: NumberArgs,
    #[command(flatten)]
    form: FormArgs,
    #[command(flatten)]
    calls: LibraryArgs,
    /// Token counts (over the whole batch), each rounded up to a power of two.
    #[arg(long, value_name = "N,...", value_delimiter = ',', value_parser = spec::tokens, default_value = "1,64,512,8192")]
    tokens: Vec<u64>,
    /// Prepare for q and k stored as [B,H,S,D] instead of [B,S,H,D].
    #[arg(long, conflicts_with = "library")]
    bhsd: bool,
    /// Prepare for these layout classes instead, as errors and `inspect` name them, such as bshd/8B/t16B: tensors that are not
    /// contiguous, or not aligned as far as their sizes allow.
    #[arg(long, value_name = "CLASS,...", value_delimiter = ',', value_parser = spec::parse::<Class>, conflicts_with_all = ["bhsd", "library"])]
    layout: Vec<Class>,
    #[command(flatten)]
    templates: TemplateArgs,
    /// Compile for these architectures instead of this machine's GPU.
    #[arg(long, value_delimiter = ',', value_name = "sm_NN,...")]
    arch: Vec<String>,
    /// Measure nothing: compile the choice that comes with ropejit for this GPU, else the default variant.
    #[arg(long)]
    no_tune: bool,
    /// Measure all candidates here, also where choices that come with ropejit say which is best on this GPU.
    #[arg(long, conflicts_with_all = ["no_tune", "arch"])]
    measure: bool,
    /// Also write what was prepared to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    manifest: Option<std::path::PathBuf>,
    /// Also write the choices to this lock file. Choices of a file that is there are kept, but for those made again and
    /// those of other templates; comments stay.
    #[arg(long, value_name = "FILE")]
    lock: Option<std::path::PathBuf>,
    /// Only say whether this lock file still fits: the templates, this device (or --arch), the variants that are legal.
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with_all = ["model", "lock", "manifest", "no_tune", "measure", "bhsd", "layout", "head_dim", "num_heads"]
    )]
    check: Option<std::path::PathBuf>,
    #[command(flatten)]
    remote: RemoteArgs,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

impl Prewarm {
    pub fn run(self) -> Result<()> {
        if let Some(path) = &self.check {
            return lock::check(path, &self.engines(None)?, self.json);
        }
        self.templates.check()?;
        let chosen = if self.templates.is_empty() { self.chosen()? } else { Vec::new() };
        if let (Some(path), Some(used)) = (&self.lock, environment::raw("ROPEJIT_LOCK")) {
            let what = format!("ROPEJIT_LOCK ({}) has chosen already", used.display());
            return Err(Error::argument("--lock", what)
                .hint(format!("to choose anew: ROPEJIT_LOCK= ropejit prewarm … --lock {}", path.display())));
        }
        // Before any work: a file that cannot be read ends it.
        let mut writer = self.lock.as_deref().map(Writer::open).transpose()?;
        let remote = self.remote.open()?;
        remote.pull(&self.architectures()?)?;
        let bar = output::spinner();
        let engines = self.engines(Some(&bar))?;
        let report = if self.templates.is_empty() {
            self.fill(&engines, &chosen, &bar, writer.as_mut())
        } else {
            self.templates.fill(&engines, !self.no_tune, &bar, writer.as_mut())
        };
        drop(bar);
        let report = report?;
        if let Some((path, writer)) = self.lock.as_deref().zip(writer) {
            writer.write(path)?;
        }
        if let Some(path) = &self.manifest {
            let text = serde_json::to_string_pretty(&report.prepared).unwrap_or_default();
            std::fs::write(path, text + "\n").map_err(|e| Error::io(path, "the manifest cannot be written", e))?;
        }
        if self.json {
            output::json(&report)?;
        } else {
            report.print()?;
        }
        report.kept()?;
        remote.push(&engines)
    }

    /// What to prepare.
    fn chosen(&self) -> Result<Vec<Chosen>> {
        let longest = self.tokens.iter().copied().max().unwrap_or(1);
        if self.model.is_empty() {
            return Ok(vec![self.numbers.choose(&self.form, longest)?]);
        }
        let models = self.model.iter().map(|model| spec::of_model(model, &self.form, longest));
        Ok(models.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
    }

    /// Of this machine's device, or of the architectures; without a bar to show progress on, only to look at.
    fn engines(&self, bar: Option<&indicatif::ProgressBar>) -> Result<Vec<Engine>> {
        let builder = || match bar {
            Some(bar) => Engine::builder().priors(!self.measure).on_progress(output::show_on(bar)),
            None => Engine::builder().in_memory(),
        };
        if self.arch.is_empty() {
            return Ok(vec![builder().build()?]);
        }
        self.arch.iter().map(|arch| builder().arch(arch).build().map_err(spec::as_typed)).collect()
    }

    /// What is prepared for, where packs are pulled.
    fn architectures(&self) -> Result<Vec<String>> {
        let looks = self.remote.pulls() && self.arch.is_empty();
        Ok(if looks { vec![Engine::builder().in_memory().build()?.facts().arch.clone()] } else { self.arch.clone() })
    }

    fn fill(
        &self,
        engines: &[Engine],
        chosen: &[Chosen],
        bar: &indicatif::ProgressBar,
        mut writer: Option<&mut Writer>,
    ) -> Result<Report> {
        let mut report = Report::new(engines);
        for engine in engines {
            for one in chosen {
                let one = one.clone().on(engine)?;
                for tokens in self.buckets(&one).into_iter().map(Bucket::tokens) {
                    bar.set_message(format!("{}, {tokens} tokens, {}", one.name, engine.facts().arch));
                    let done = self.one(engine, &one, tokens)?;
                    if let Some(writer) = &mut writer {
                        for done in &done {
                            writer.add(engine, done);
                        }
                    }
                    report.prepared.extend(done.into_iter().map(|done| Done {
                        model: one.name.clone(),
                        spec: done.spec.to_string(),
                        arch: engine.facts().arch.clone(),
                        device: engine.facts().name.clone(),
                        tokens: done.bucket.tokens(),
                        layout: done.class.to_string(),
                        variant: done.variant.to_string(),
                        tuned: done.tuned,
                        prior: done.prior,
                        origin: done.origin,
                    }));
                }
            }
            report.add_stats(engine);
        }
        Ok(report)
    }
}

impl Prewarm {
    /// Counts that are rounded to the same power of two are one.
    fn asked(&self) -> BTreeSet<Bucket> {
        self.tokens.iter().map(|&tokens| Bucket::of(tokens)).collect()
    }

    /// What is asked for, and what a library computes by itself to compare.
    fn buckets(&self, one: &Chosen) -> BTreeSet<Bucket> {
        let compares = self.calls.library == Some(Library::Transformers) && one.norm.is_some();
        let compared = Library::COMPARED.iter().filter(|_| compares).map(|&tokens| Bucket::of(tokens));
        self.asked().into_iter().chain(compared).collect()
    }

    /// What one model's calls with this many tokens need.
    fn one(&self, engine: &Engine, one: &Chosen, tokens: u64) -> Result<Vec<Prewarmed>> {
        let (specs, tune) = (std::slice::from_ref(&one.spec), !self.no_tune);
        if let Some(library) = self.calls.library {
            let Calls { mut plain, fused } = Calls::of(library, engine, one, self.form.backward);
            // What makes sure of an order only needs the norms.
            if !self.asked().contains(&Bucket::of(tokens)) {
                plain.clear();
            }
            let mut done = Vec::new();
            for &bhsd in library.head_major() {
                done.extend(engine.prewarm(&plain, &[tokens], bhsd, tune)?);
                done.extend(engine.prewarm(&fused, &[tokens], bhsd, tune)?);
            }
            return Ok(done);
        }
        if self.layout.is_empty() {
            return engine.prewarm(specs, &[tokens], self.bhsd, tune);
        }
        engine.prewarm_classes(specs, &[tokens], &self.layout, tune).map_err(spec::as_typed)
    }
}

#[cfg(test)]
mod tests {
    // The commands that errors print, through the parser that reads what people type.
    use clap::Parser as _;
    use proptest::prelude::*;
    use ropejit::RopeSpec;
    use ropejit::families::rope::prepared_classes;
    use ropejit::jit::{Bucket, Class};

    use super::super::prewarm_command::prewarm_command;
    use super::super::{Cli, Command};
    use crate::families::rope::text::tests::classes;
    use crate::rope::text::tests::specs;

    /// What a command prepares: specs, token counts, classes.
    fn prepares(command: &str) -> (Vec<RopeSpec>, Vec<Bucket>, Vec<Class>) {
        let cli = Cli::try_parse_from(command.split(' ')).unwrap_or_else(|e| panic!("{command}: {e}"));
        let Command::Prewarm(prewarm) = cli.command else { panic!("no prewarm: {command}") };
        let specs: Vec<RopeSpec> = prewarm
            .chosen()
            .unwrap_or_else(|e| panic!("{command}: {e}"))
            .into_iter()
            .map(|chosen| chosen.spec)
            .collect();
        let buckets = prewarm.tokens.iter().map(|&tokens| Bucket::of(tokens)).collect();
        let classes = match &prewarm.layout[..] {
            [] => prepared_classes(&specs[0], prewarm.bhsd),
            named => named.to_vec(),
        };
        (specs, buckets, classes)
    }

    /// A class that calls of a spec can be of, nearest to any.
    fn possible(spec: &RopeSpec, class: Class) -> Class {
        let least = |word: u8, size: usize| word.max(size as u8);
        Class {
            word: least(class.word, spec.dtype.size()),
            table_word: match class.table_word {
                0 if spec.angles.is_some() => 0,
                word => least(word.max(2), spec.table.dtype.size()),
            },
            copy_rest: class.copy_rest && spec.rotary_dim < spec.head_dim && !spec.is_fused(),
            ..class
        }
    }

    proptest! {
        /// Followed as it stands, a hint prepares the very call that failed.
        #[test]
        fn a_hint_prepares_the_call_that_failed(spec in specs(), class in classes(), bucket in 0u32..25) {
            let (class, bucket) = (possible(&spec, class), Bucket::of(1 << bucket));
            prop_assert!(class.check(&spec).is_ok(), "{class}");
            for class in [class, Class::contiguous(&spec, class.head_major, class.copy_rest)] {
                let command = prewarm_command(&spec, bucket, class);
                let (specs, buckets, classes) = prepares(&command);
                prop_assert_eq!((&specs[..], &buckets[..]), (&[spec.clone()][..], &[bucket][..]), "{}", command);
                prop_assert!(classes.contains(&class), "{} is not prepared by {}", class, command);
            }
        }

        #[test]
        fn only_classes_that_a_call_can_be_of_are_prepared(spec in specs(), class in classes()) {
            let fits = class == possible(&spec, class);
            prop_assert_eq!(class.check(&spec).is_ok(), fits, "{} of {}", class, spec);
        }
    }
}
