//! `ropejit inspect why`

use clap::Args;
use ropejit::families::rope::prepared_classes;
use ropejit::families::{Config, Problem, Stated, rope};
use ropejit::jit::{Bucket, Candidate, Class, Key, KeyFields, Record};
use ropejit::rope::library::Library;
use ropejit::store::{Kind, Lookup, Miss, Store as _};
use ropejit::{Engine, Result, RopeSpec};
use serde::Serialize;
use serde_json::json;

use super::super::library::{self, Calls, LibraryArgs};
use super::super::output;
use super::super::prewarm_command::prewarm_command;
use super::super::prewarm_template::TemplateArgs;
use super::super::spec::{self, Chosen, SpecArgs};
use super::super::table::{Table, wrapped};
use super::difference::{Difference, differences, distance};
use super::entries::{Cache, Meta, check, short};
use super::verdict::sureness;

/// Whether a call finds its choice and its kernel in the cache, and if not, why: the fields of the key that differ.
///
/// A call looks for the choice made for its device, then for the one for its architecture, then for the kernel that the
/// choice names. On a miss, the entry that is nearest is named, with what was expected of each field and what was found.
/// Exit status 0 for a hit and a miss; --json says which in `hit`.
#[derive(Args)]
#[command(
    override_usage = "ropejit inspect why --model <CONFIG.json> [OPTIONS]\n       \
                      ropejit inspect why --head-dim <D> --num-heads <H> [--num-kv-heads <K>]\n           \
                          [OPTIONS]\n       \
                      ropejit inspect why --template <FILE.toml> [--spec <K=V,...>]\n           \
                          [--size <NAME=N,...>] [OPTIONS]",
    after_help = "\
Examples:
  ropejit inspect why --model llama-3.1-8b --tokens 8192
  ropejit inspect why --for transformers --model config.json --arch sm_90
                                     what ropejit.patch(...) calls
  ropejit inspect why --head-dim 128 --num-heads 32 --num-kv-heads 8 \\
      --arch sm_90
  ropejit inspect why --model config.json --fused qk-norm --rounding per-op \\
      --table same
  ropejit inspect why --template add_rmsnorm.toml \\
      --spec hidden=4096,dtype=bf16 --size rows=64
  ropejit inspect why --model config.json --json | jq -e .hit"
)]
pub struct Why {
    #[command(flatten)]
    spec: SpecArgs,
    #[command(flatten)]
    calls: LibraryArgs,
    #[command(flatten)]
    templates: TemplateArgs,
    /// Tokens of the call, over the whole batch.
    #[arg(long, value_name = "N", value_parser = spec::tokens, default_value = "8192")]
    tokens: u64,
    /// q and k stored as [B,H,S,D] instead of [B,S,H,D].
    #[arg(long)]
    bhsd: bool,
    /// This layout class instead of those of contiguous tensors, as errors name it, such as bshd/16B/t16B.
    #[arg(long, value_name = "CLASS", value_parser = spec::parse::<Class>, conflicts_with = "bhsd")]
    layout: Option<Class>,
    /// For this architecture instead of this machine's device.
    #[arg(long, value_name = "sm_NN")]
    arch: Option<String>,
}

/// What a call finds.
#[derive(Serialize)]
struct Answer {
    spec: String,
    tokens: u64,
    layout: String,
    device: String,
    arch: String,
    hit: bool,
    /// The lock file's line that decides, if one does.
    #[serde(skip_serializing_if = "Option::is_none")]
    lock: Option<String>,
    choice: Looked,
    artifact: Looked,
    /// The libraries whose calls of the model are in the cache, where what was asked for is not.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    cached_for: Vec<&'static str>,
    /// What fills the cache.
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
}

/// What a look-up finds.
#[derive(Serialize)]
struct Looked {
    hit: bool,
    /// The keys that are looked for, in order; none where no compiler is there to tell its version.
    keys: Vec<Key>,
    /// What was found, or why it was not.
    what: String,
    nearest: Option<Nearest>,
}

/// The entry that is nearest to what was looked for.
#[derive(Serialize)]
struct Nearest {
    key: Key,
    what: String,
    differences: Vec<Difference>,
}

/// One problem to look up.
struct LookUp<'a> {
    engine: &'a Engine,
    cache: &'a Cache,
    problem: &'a dyn Problem,
    /// The command that fills the cache for it.
    fill: String,
}

impl Why {
    pub fn run(&self, cache: &Cache, as_json: bool) -> Result<()> {
        // Nothing is run here and nothing is kept: the engine tells of its device, and reads the lock file.
        let mut builder = Engine::builder().in_memory();
        if let Some(arch) = &self.arch {
            builder = builder.arch(arch);
        }
        let engine = builder.build().map_err(spec::as_typed)?;
        self.templates.check()?;
        let mut answers = Vec::new();
        for (problem, fill) in self.templates.problems(&engine)? {
            answers.push(LookUp { engine: &engine, cache, problem: problem.as_ref(), fill }.answer()?);
        }
        let chosen = if self.templates.is_empty() { self.spec.choose(self.tokens)? } else { Vec::new() };
        for chosen in chosen {
            let chosen = chosen.on(&engine)?;
            answers.extend(self.answers(&engine, cache, &chosen)?);
        }
        if as_json {
            let hit = answers.iter().all(|a| a.hit);
            let document = json!({ "hit": hit, "cache": cache.root, "answers": answers });
            return output::json(&output::without_engine(document));
        }
        answers.iter().try_for_each(|answer| answer.print(cache))
    }

    /// What the calls of one RoPE find.
    fn answers(&self, engine: &Engine, cache: &Cache, chosen: &Chosen) -> Result<Vec<Answer>> {
        let bucket = Bucket::of(self.tokens);
        let arch = self.arch.as_ref().map_or_else(String::new, |arch| format!(" --arch {arch}"));
        let mut answers = Vec::new();
        let (specs, orders) = match self.calls.library {
            None => (vec![chosen.spec.clone()], [self.bhsd].to_vec()),
            Some(library) => {
                let specs = Calls::of(library, engine, chosen, self.spec.form.backward).all();
                (specs, if self.bhsd { vec![true] } else { library.head_major().to_vec() })
            }
        };
        for spec in &specs {
            for class in self.classes(spec, &orders) {
                let prepares = |library: &Library| {
                    library.head_major().iter().any(|&order| prepared_classes(spec, order).contains(&class))
                };
                let fill = match self.calls.library.filter(prepares) {
                    Some(library) => {
                        let (model, form) = (self.spec.model.as_deref(), &self.spec.form);
                        library::prewarm_for(library, model, chosen, form, bucket)
                    }
                    None => prewarm_command(spec, bucket, class),
                };
                let problem = rope::problem(spec, class, bucket);
                let look_up = LookUp { engine, cache, problem: problem.as_ref(), fill: fill + &arch };
                let mut answer = look_up.answer()?;
                if !answer.choice.hit && self.calls.library.is_none() {
                    answer.cached_for = self.cached_for(engine, cache, chosen);
                }
                answers.push(answer);
            }
        }
        Ok(answers)
    }

    /// The libraries that have a call of this RoPE in the cache, for as many tokens.
    fn cached_for(&self, engine: &Engine, cache: &Cache, chosen: &Chosen) -> Vec<&'static str> {
        let is_kept = |spec: &RopeSpec, class: Class| {
            let problem = rope::problem(spec, class, Bucket::of(self.tokens));
            let keys = engine.choice_keys(problem.as_ref());
            keys.iter().any(|fields| matches!(cache.store.get(Kind::Choice, fields.key()), Lookup::Hit(_)))
        };
        let has = |library: Library| {
            let calls = Calls::of(library, engine, chosen, self.spec.form.backward).all();
            calls.iter().any(|spec| {
                let orders = library.head_major().iter();
                let is_another = *spec != chosen.spec && spec.validate().is_ok();
                is_another && orders.flat_map(|&order| prepared_classes(spec, order)).any(|class| is_kept(spec, class))
            })
        };
        Library::ALL.into_iter().filter(|(library, _)| has(*library)).map(|(_, name)| name).collect()
    }

    /// The classes that a prewarm prepares: of partial rotary, both out of place and in place.
    fn classes(&self, spec: &RopeSpec, orders: &[bool]) -> Vec<Class> {
        if let Some(class) = self.layout {
            return vec![class];
        }
        orders.iter().flat_map(|&order| prepared_classes(spec, order)).collect()
    }
}

impl LookUp<'_> {
    fn answer(&self) -> Result<Answer> {
        let (facts, problem) = (self.engine.facts(), self.problem);
        let space = problem.space(self.engine.device().abilities());
        let (choice, records) = self.choice(&self.engine.choice_keys(problem))?;
        let chosen = records.first().and_then(Record::chosen).filter(|c| self.is_legal(&c.config));
        let locked = self.engine.locked_config(problem);
        let artifact = if let Some((config, _)) = &locked {
            let candidates = records.iter().flat_map(|r| &r.candidates);
            let named = candidates.filter(|c| c.config == *config).find_map(|c| c.artifact);
            self.artifact(config, named)?
        } else {
            self.artifact(chosen.map_or(&space[0], |c| &c.config), chosen.and_then(|c| c.artifact))?
        };
        // What a lock file decides needs no choice, but the choice says which artifact it is.
        let hit = choice.hit && artifact.hit;
        Ok(Answer {
            spec: problem.spec().to_string(),
            tokens: problem.bucket().tokens(),
            layout: problem.class().to_string(),
            device: facts.name.clone(),
            arch: facts.arch.clone(),
            hit,
            lock: locked.map(|(config, at)| format!("{at} names {config}")),
            choice,
            artifact,
            cached_for: Vec::new(),
            hint: (!hit).then(|| self.fill.clone()),
        })
    }

    fn is_legal(&self, config: &Config) -> bool {
        self.problem.check(config, self.engine.device().abilities()).is_ok()
    }

    /// Looks the choice up, for the device and then its architecture; also what was found in that order.
    fn choice(&self, wanted: &[KeyFields]) -> Result<(Looked, Vec<Record>)> {
        let keys: Vec<Key> = wanted.iter().map(KeyFields::key).collect();
        let (mut records, mut found, mut problems) = (Vec::new(), None, Vec::new());
        for &key in &keys {
            match self.cache.store.get(Kind::Choice, key) {
                Lookup::Hit(entry) => match check(&entry.into()) {
                    Ok(Meta::Choice(meta)) => {
                        let usable = meta.record.chosen().filter(|c| self.is_legal(&c.config));
                        match usable {
                            // A call takes the first that can be read, and no other where that is not legal.
                            Some(c) if records.is_empty() => found = Some(told(key, &meta.record, c)),
                            Some(_) => {}
                            None => problems
                                .push(format!("{}: names no variant that is legal here", short(&key.to_string()))),
                        }
                        records.push(meta.record);
                    }
                    Ok(Meta::Artifact(_)) => problems.push(format!("{key}: it is no choice")),
                    Err(why) => problems.push(format!("{key}: {why}")),
                },
                Lookup::Miss(Miss::Absent) => {}
                Lookup::Miss(miss) => problems.push(miss.to_string()),
            }
        }
        if let Some(what) = found {
            return Ok((Looked { hit: true, keys, what, nearest: None }, records));
        }
        let mut nearest: Option<(usize, u32, Nearest)> = None;
        for (listed, meta) in self.cache.choices()? {
            let Ok(head) = &listed.entry else { continue };
            for wanted in wanted {
                let differences = differences(wanted, &meta.fields);
                // Of two as near, the one with more nearly as many tokens.
                let near = (distance(&differences), self.problem.bucket().index().abs_diff(meta.bucket.index()) as u32);
                if !differences.is_empty() && nearest.as_ref().is_none_or(|(d, b, _)| near < (*d, *b)) {
                    let what = meta.record.chosen().map_or_else(String::new, |c| told(head.key, &meta.record, c));
                    nearest = Some((near.0, near.1, Nearest { key: head.key, what, differences }));
                }
            }
        }
        let what = if problems.is_empty() { "not in the cache".to_owned() } else { problems.join("; ") };
        Ok((Looked { hit: false, keys, what, nearest: nearest.map(|(_, _, nearest)| nearest) }, records))
    }

    /// Looks the kernel of a config up: the one that a choice names, else the one that this compiler would make.
    fn artifact(&self, config: &Config, named: Option<Key>) -> Result<Looked> {
        if self.problem.is_shipped(config) {
            let what = format!("{config}, comes with ropejit");
            return Ok(Looked { hit: true, keys: Vec::new(), what, nearest: None });
        }
        let device = self.engine.device();
        let source = self.problem.source(device.dialect(), config);
        let compiler = device.compiler();
        let known = compiler.is_ok();
        let fields = KeyFields::artifact(
            &source,
            &device.options_for(&source),
            &compiler.unwrap_or_default(),
            &device.facts().arch,
        );
        let keys: Vec<Key> = named.into_iter().chain(known.then(|| fields.key())).collect();
        let mut problems = Vec::new();
        for &key in &keys {
            match self.cache.store.get(Kind::Artifact, key) {
                Lookup::Hit(entry) => match check(&entry.into()) {
                    Ok(Meta::Artifact(meta)) => {
                        let same = |name: &&str| meta.fields.get(name) == fields.get(name);
                        if let Some(other) = ["source", "options", "arch", "entry"].iter().find(|name| !same(name)) {
                            problems.push(format!("{} has another {other}", short(&key.to_string())));
                            continue;
                        }
                        let by = meta.fields.get("compiler").unwrap_or_default();
                        let what = format!("{config}, compiled by {by}");
                        return Ok(Looked { hit: true, keys: vec![key], what, nearest: None });
                    }
                    Ok(Meta::Choice(_)) => problems.push(format!("{key}: it is no artifact")),
                    Err(why) => problems.push(format!("{key}: {why}")),
                },
                Lookup::Miss(Miss::Absent) => {}
                Lookup::Miss(miss) => problems.push(miss.to_string()),
            }
        }
        let wanted = with_meta(&fields, self.problem.spec(), self.problem.class(), config);
        let mut nearest: Option<Nearest> = None;
        for (listed, meta) in self.cache.artifacts()? {
            let Ok(head) = &listed.entry else { continue };
            let mut differences = differences(&wanted, &with_meta(&meta.fields, &meta.spec, &meta.class, &meta.config));
            // Without a compiler its version is not known, and does not count.
            differences.retain(|d| known || d.field != "compiler");
            if nearest.as_ref().is_none_or(|n| distance(&differences) < distance(&n.differences)) {
                nearest = Some(Nearest { key: head.key, what: meta.config.to_string(), differences });
            }
        }
        let mut what =
            format!("{config}: {}", if problems.is_empty() { "not in the cache".into() } else { problems.join("; ") });
        if !known {
            what.push_str(" (no compiler is here, so its key is not known)");
        }
        Ok(Looked { hit: false, keys, what, nearest })
    }
}

fn told(key: Key, record: &Record, chosen: &Candidate) -> String {
    let how = match record.how() {
        "default" => "default, not tuned",
        how => how,
    };
    let sure = sureness(record).map_or_else(String::new, |sure| format!(" ({sure})"));
    format!("{}: {}, {how}{sure}", short(&key.to_string()), chosen.config)
}

/// An artifact's fields, and what its source is rendered from: that explains why a source differs.
fn with_meta(fields: &KeyFields, spec: &Stated, class: &Stated, config: &Config) -> KeyFields {
    let mut all = fields.clone();
    all.0.push(("spec".into(), spec.compact().to_owned()));
    all.0.push(("class".into(), class.to_string()));
    all.0.push(("variant".into(), config.to_string()));
    all
}

impl Answer {
    fn print(&self, cache: &Cache) -> Result<()> {
        output::line(&self.spec)?;
        words(&format!("{} tokens, layout {}, {} ({})", self.tokens, self.layout, self.device, self.arch), 1)?;
        if let Some(lock) = &self.lock {
            words(&format!("{:<10}{lock}", "lock"), 10)?;
        }
        for (name, looked) in [("choice", &self.choice), ("artifact", &self.artifact)] {
            looked.print(name, cache)?;
        }
        let call = match (self.choice.hit, self.artifact.hit) {
            _ if self.lock.is_some() && self.hit => "launches what the lock file names, and tunes nothing",
            (true, true) => "loads the kernel, and compiles nothing",
            _ if self.lock.is_some() => "compiles what the lock file names; where tuning is frozen it fails",
            (true, false) => {
                "compiles the kernel again (a shipped one may answer first); where tuning is frozen it fails, \
                 because the kernel is not in the cache"
            }
            (false, true) => {
                "loads the default variant (a shipped kernel may answer first); where tuning is frozen it fails, \
                 because there is no choice"
            }
            (false, false) => "compiles (a shipped kernel may answer first); where tuning is frozen it fails",
        };
        words(&format!("{:<10}{call}", "a call"), 10)?;
        if let [library, ..] = self.cached_for[..] {
            let what =
                format!("calls of {} are in the cache: ask for them with --for {library}", self.cached_for.join(", "));
            words(&format!("{:<10}{what}", "but"), 10)?;
        }
        match &self.hint {
            Some(hint) => output::line(&format!("{:<10}{hint}", "to fill")),
            None => Ok(()),
        }
    }
}

impl Looked {
    fn print(&self, name: &str, cache: &Cache) -> Result<()> {
        let verdict = if self.hit { "hit" } else { "miss" };
        words(&format!("{name:<10}{verdict}: {}", self.what), 10)?;
        if self.hit {
            return Ok(());
        }
        for key in &self.keys {
            output::line(&format!("  looked for {key}"))?;
        }
        let Some(nearest) = &self.nearest else {
            return words(&format!("{:<10}there is no {name} in {}", "", cache.root.display()), 10);
        };
        words(&format!("{:<10}nearest is {}", "", nearest.what_with_key()), 10)?;
        nearest.print()
    }
}

/// Prints words, in lines that fit the page.
fn words(text: &str, indent: usize) -> Result<()> {
    wrapped(text, indent).iter().try_for_each(|line| output::line(line))
}

/// Values that are longer than this do not stand beside each other.
const NARROW: usize = 16;

impl Nearest {
    fn print(&self) -> Result<()> {
        let narrow = |d: &Difference| [&d.expected, &d.found].iter().all(|text| text.chars().count() <= NARROW);
        let (narrow, wide): (Vec<_>, Vec<_>) = self.differences.iter().partition(|d| narrow(d));
        let row = |d: &&Difference| vec![d.field.clone(), d.expected.clone(), d.found.clone(), d.meaning.clone()];
        let rows: Vec<_> = narrow.iter().map(row).collect();
        if !rows.is_empty() {
            let header = ["differs in", "expected", "found", "which says"];
            let lines = Table { header: &header, rows, numbers: 0, gives: &["which says"], drops: &[] }.lines(10);
            lines.iter().try_for_each(|line| output::line(&format!("{:<10}{line}", "")))?;
        }
        for d in wide {
            words(&format!("{:<11}{}: {}", "", d.field, d.meaning), 13)?;
            output::line(&format!("{:<13}expected  {}", "", d.expected))?;
            output::line(&format!("{:<13}found     {}", "", d.found))?;
        }
        Ok(())
    }

    fn what_with_key(&self) -> String {
        let key = self.key.to_string();
        if self.what.starts_with(short(&key)) { self.what.clone() } else { format!("{}: {}", short(&key), self.what) }
    }
}
