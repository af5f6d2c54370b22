//! The `ropejit` command as people run it: a process, its arguments and environment, what it prints, how it ends. On the
//! host device; needs a C++ compiler, and NVRTC for what is compiled ahead for GPUs.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

/// A small RoPE in numbers.
pub const SMALL: [&str; 6] = ["--head-dim", "64", "--num-heads", "4", "--num-kv-heads", "2"];
/// `run` of it.
pub const RUN: [&str; 9] = ["run", SMALL[0], SMALL[1], SMALL[2], SMALL[3], SMALL[4], SMALL[5], "--tokens", "8"];

/// A cache folder that lives as long as a test, and commands that use it.
pub struct Shell {
    pub folder: TempDir,
}

/// How a process ended.
pub struct Ended {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Shell {
    pub fn new() -> Self {
        Self { folder: tempfile::tempdir().expect("a folder") }
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn cache(&self) -> PathBuf {
        self.at("cache")
    }

    /// A file of this text.
    pub fn file(&self, name: &str, text: &str) -> String {
        fs_err::write(self.at(name), text).expect("written");
        self.at(name).display().to_string()
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ropejit"));
        command
            .args(args)
            .env("ROPEJIT_CACHE_DIR", self.cache())
            .env("XDG_DATA_HOME", self.at("data"))
            .env("ROPEJIT_DEVICE", "host")
            .stdin(Stdio::null());
        command
    }

    pub fn run(&self, args: &[&str]) -> Ended {
        self.run_with(args, &[])
    }

    /// With these environment variables; those without a value are unset.
    pub fn run_with(&self, args: &[&str], environment: &[(&str, Option<&str>)]) -> Ended {
        let mut command = self.command(args);
        for (name, value) in environment {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        let Output { status, stdout, stderr } = command.output().expect("started");
        let text = |bytes| String::from_utf8(bytes).expect("text");
        let ended = Ended { code: status.code().expect("not killed"), stdout: text(stdout), stderr: text(stderr) };
        // Nothing here writes to a terminal: no colours, no progress bar, no panic.
        for odd in ["\x1b", "\r", "panicked"] {
            assert!(
                !ended.stderr.contains(odd) && !ended.stdout.contains(odd),
                "{args:?}: {odd:?} in {}",
                ended.stderr
            );
        }
        ended
    }

    /// Runs what must succeed.
    pub fn ok(&self, args: &[&str]) -> Ended {
        let ended = self.run(args);
        assert_eq!(ended.code, 0, "{args:?}: {}", ended.stderr);
        ended
    }

    /// Runs what must succeed, with `--json`.
    pub fn json(&self, args: &[&str]) -> Value {
        self.ok(&[args, &["--json"]].concat()).json()
    }

    /// All entries' files.
    pub fn entries(&self) -> Vec<PathBuf> {
        let listed = self.json(&["inspect", "list"]);
        listed["entries"].as_array().expect("an array").iter().map(|e| text(e, "path").into()).collect()
    }
}

impl Ended {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {}", self.stdout))
    }

    /// It failed with this code, printed no data, and its message holds all parts.
    #[track_caller]
    pub fn fails(&self, code: i32, parts: &[&str]) {
        assert_eq!((self.code, self.stdout.as_str()), (code, ""), "{}", self.stderr);
        assert!(self.stderr.starts_with("error: "), "{}", self.stderr);
        self.says(parts);
    }

    #[track_caller]
    pub fn says(&self, parts: &[&str]) {
        for part in parts {
            assert!(self.stderr.contains(part), "'{part}' is not in: {}", self.stderr);
        }
    }
}

pub fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or_else(|| panic!("{name} is no text in {value}"))
}

pub fn stat(document: &Value, name: &str) -> u64 {
    document["stats"][name].as_u64().unwrap_or_else(|| panic!("no {name} in {}", document["stats"]))
}

/// Compiles, tunings, hits in memory and on disk.
fn stats(document: &Value) -> [u64; 4] {
    ["compiles", "tunings", "memory_hits", "disk_hits"].map(|name| stat(document, name))
}

/// Whether there is an NVRTC to compile with; says so where there is none.
pub fn nvrtc(shell: &Shell, test: &str) -> bool {
    let there = shell.run(&["doctor", "--require", "nvrtc"]).code == 0;
    if !there {
        writeln!(std::io::stderr(), "SKIPPED {test}: no NVRTC on this machine").expect("written");
    }
    there
}

#[test]
fn the_second_process_neither_compiles_nor_tunes() {
    let shell = Shell::new();
    let first = shell.json(&[&RUN[..], &["--tuning", "blocking"]].concat());
    assert_eq!(text(&first, "origin"), "tuned");
    assert_eq!(first["tuned"], true);
    let [compiles, tunings, _, disk_hits] = stats(&first);
    assert!(compiles > 1, "a tuning compares candidates");
    assert_eq!((tunings, disk_hits), (1, 0));
    for tuning in ["background", "blocking", "never", "frozen"] {
        let second = shell.json(&[&RUN[..], &["--tuning", tuning]].concat());
        assert_eq!(text(&second, "origin"), "disk", "{tuning}");
        assert_eq!(second["variant"], first["variant"], "{tuning}");
        let [compiles, tunings, memory_hits, disk_hits] = stats(&second);
        assert_eq!((compiles, tunings, disk_hits), (0, 0, 1), "{tuning}");
        assert!(memory_hits > 0, "later calls are served from memory");
    }
    // The environment says the same as the option.
    let frozen = shell.run_with(&RUN, &[("ROPEJIT_TUNING", Some("frozen"))]);
    assert_eq!((frozen.code, frozen.stderr.as_str()), (0, ""));
    assert!(frozen.stdout.contains("first from disk") && frozen.stdout.contains("compiles 0, tunings 0"));
}

#[test]
fn run_reports_what_was_run_and_checks_it() {
    let shell = Shell::new();
    let options = ["--tuning", "never", "--batch", "2", "--bhsd", "--dtype", "f16", "--rotary-dim", "32", "--style"];
    let options = [&options[..], &["interleaved", "--positions", "ids64", "--table-width", "full"]].concat();
    let report = shell.json(&[&RUN[..], &options].concat());
    for name in ["device", "arch", "variant"] {
        assert_ne!(text(&report, name), "", "{name}");
    }
    assert_eq!(text(&report, "spec"), "f16 d64[..32] h4/2 interleaved once table=f32/full pos=ids64");
    assert_eq!((&report["batch"], &report["tokens"], &report["tuned"]), (&2.into(), &8.into(), &false.into()));
    for name in ["open_ms", "first_result_ms", "second_result_ms", "device_us", "copy_us", "of_copy", "max_error"] {
        let number = report[name].as_f64().unwrap_or_else(|| panic!("{name} is no number"));
        assert!(number > 0.0 && number.is_finite(), "{name} is {number}");
    }
    assert!(report["max_error"].as_f64() <= report["allowed_error"].as_f64(), "{report}");
    let backward = shell.json(&[&RUN[..], &["--tuning", "never", "--backward", "--rounding", "per-op"]].concat());
    assert!(text(&backward, "spec").contains("per_op backward"), "{backward}");
    assert!(backward["max_error"].as_f64() <= backward["allowed_error"].as_f64(), "{backward}");
}

#[test]
fn a_second_prewarm_does_nothing_and_says_so() {
    let shell = Shell::new();
    let prewarm = [&["prewarm"][..], &SMALL, &["--tokens", "8,5,1"]].concat();
    let first = shell.ok(&prewarm);
    first.says(&["done: ", "tunings 2", &shell.cache().display().to_string()]);
    let second = shell.ok(&prewarm);
    second.says(&["nothing to do", "compiles 0, tunings 0, choices written 0 ("]);
    let third = shell.json(&prewarm);
    let [compiles, tunings, _, disk_hits] = stats(&third);
    assert_eq!((compiles, tunings), (0, 0));
    assert!(disk_hits > 0);
    let prepared = third["prepared"].as_array().expect("an array");
    // 5 and 8 tokens are one bucket.
    let tokens: Vec<_> = prepared.iter().map(|p| p["tokens"].as_u64().expect("a number")).collect();
    assert_eq!(tokens, [1, 8]);
    assert!(prepared.iter().all(|p| p["tuned"] == true), "{third}");
    // What was prepared is what a call finds.
    shell.ok(&[&RUN[..], &["--tuning", "frozen"]].concat());
    let other = [&RUN[..], &["--tuning", "frozen", "--dtype", "f32"]].concat();
    shell.run(&other).fails(1, &["f32 d64 h4/2", "not in the cache"]);
}

#[test]
fn prewarm_reads_models_and_does_not_tune_where_it_must_not() {
    let shell = Shell::new();
    let config = r#"{"model_type": "llama", "hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 2048, "rope_theta": 10000.0, "torch_dtype": "bfloat16"}"#;
    shell.file("config.json", config);
    let folder = shell.folder.path().display().to_string();
    let done = shell.json(&["prewarm", "--model", &folder, "llama-3.1-8b", "--tokens", "8", "--no-tune"]);
    let specs: Vec<_> = done["prepared"].as_array().expect("an array").iter().map(|p| text(p, "spec")).collect();
    assert!(specs[0].starts_with("bf16 d64 h4/2 ") && specs[1].starts_with("bf16 d128 h32/8 "), "{specs:?}");
    assert_eq!(stat(&done, "tunings"), 0);
    let run = shell.json(&["run", "--model", &folder, "--tokens", "8", "--tuning", "frozen"]);
    assert_eq!((text(&run, "origin"), run["tuned"].as_bool()), ("disk", Some(false)));

    // What decides a kernel is prepared with the options that a call is run with.
    let form = ["--dtype", "f16", "--rotary-dim", "32", "--style", "interleaved", "--rounding", "per-op", "--table"];
    let form = [&SMALL[..], &form, &["same", "--positions", "ids32", "--backward", "--bhsd", "--tokens", "8"]].concat();
    shell.ok(&[&["prewarm", "--no-tune"], &form[..]].concat());
    let run = shell.json(&[&["run", "--tuning", "frozen"], &form[..]].concat());
    assert_eq!(text(&run, "origin"), "disk");
}

#[test]
fn packed_sequences_are_prewarmed_tuned_and_run() {
    let shell = Shell::new();
    for positions in ["cu-seqlens", "cu-seqlens64"] {
        let form = [&SMALL[..], &["--positions", positions, "--tokens", "8"]].concat();
        shell.ok(&[&["prewarm"], &form[..]].concat());
        let report = shell.json(&[&["run", "--tuning", "frozen"], &form[..]].concat());
        assert_eq!((text(&report, "origin"), report["tuned"].as_bool()), ("disk", Some(true)));
        assert!(text(&report, "spec").ends_with(&format!("pos={}", positions.replace('-', "_"))), "{report}");
        assert!(report["max_error"].as_f64() <= report["allowed_error"].as_f64(), "{report}");
    }
}

#[test]
fn prewarm_compiles_for_gpus_that_are_not_there() {
    let shell = Shell::new();
    if !nvrtc(&shell, "prewarm_compiles_for_gpus_that_are_not_there") {
        return;
    }
    let manifest = shell.at("manifest.json").display().to_string();
    let prewarm = [
        "prewarm",
        "--model",
        "llama-3.1-8b",
        "--dtype",
        "f32",
        "--arch",
        "sm_90",
        "--no-tune",
        "--manifest",
        &manifest,
    ];
    let first = shell.ok(&prewarm);
    first.says(&["done: compiles ", "tunings 0"]);
    let second = shell.ok(&prewarm);
    second.says(&["nothing to do", "compiles 0, tunings 0"]);
    let third = shell.json(&prewarm);
    assert_eq!((stat(&third, "compiles"), stat(&third, "tunings")), (0, 0));
    let manifest: Value = serde_json::from_str(&fs_err::read_to_string(&manifest).expect("written")).expect("JSON");
    assert_eq!(manifest, third["prepared"]);
    let tokens: Vec<_> = manifest.as_array().expect("an array").iter().map(|p| p["tokens"].as_u64()).collect();
    assert_eq!(tokens, [1, 64, 512, 8192].map(Some));
    assert_eq!(text(&manifest[0], "arch"), "sm_90");

    let listed = shell.json(&["inspect", "list"]);
    let artifact =
        listed["entries"].as_array().expect("an array").iter().find(|e| e["kind"] == "artifact").expect("one");
    let ptx = shell.ok(&["inspect", "show", text(artifact, "key"), "--ptx"]).stdout;
    assert!(ptx.contains(".target sm_90"), "{ptx}");
    let document = shell.json(&["inspect", "show", text(artifact, "key"), "--ptx"]);
    assert_eq!(text(&document, "ptx").trim_end(), ptx.trim_end());
}

#[test]
fn inspect_lists_and_shows_what_was_chosen() {
    let shell = Shell::new();
    shell.ok(&["inspect"]).says(&["the cache is empty", "ropejit prewarm"]);
    assert_eq!(shell.json(&["inspect", "list"])["entries"], Value::Array(Vec::new()));
    shell.ok(&[&RUN[..], &["--tuning", "blocking"]].concat());

    let listed = shell.json(&["inspect", "list"]);
    let entries = listed["entries"].as_array().expect("an array");
    for entry in entries {
        for name in ["key", "kind", "device", "arch", "spec", "tokens", "variant", "bytes"] {
            assert!(entry.get(name).is_some(), "no {name} in {entry}");
        }
        let bytes = fs_err::metadata(text(entry, "path")).expect("there").len();
        assert_eq!(entry["bytes"].as_u64(), Some(bytes));
    }
    let of = |kind: &'static str| entries.iter().filter(move |e| e["kind"] == kind);
    assert_eq!(of("choice").count(), 1);
    assert!(of("artifact").count() > 1);
    let choice = of("choice").next().expect("one");
    assert_eq!((choice["tokens"].as_u64(), choice["tuned"].as_bool()), (Some(8), Some(true)));
    let key = text(choice, "key");

    let table = shell.run_with(&["inspect"], &[("COLUMNS", Some("80"))]).stdout;
    assert!(table.contains("bf16 d64 h4/2") && table.contains(&key[..12]) && table.contains("tuned"), "{table}");
    assert!(table.lines().all(|line| line.chars().count() <= 80), "{table}");

    let shown = shell.json(&["inspect", "show", &key[..16]]);
    assert_eq!((text(&shown, "key"), text(&shown, "spec")), (key, text(choice, "spec")));
    let candidates = shown["candidates"].as_array().expect("an array");
    assert_eq!(candidates.len(), of("artifact").count());
    for candidate in candidates {
        assert!(candidate["median_ns"].as_f64().is_some_and(|ns| ns > 0.0), "{candidate}");
        assert_eq!(candidate["bit_equal"], true, "{candidate}");
    }
    let winners: Vec<_> = candidates.iter().filter(|c| c["winner"] == true).collect();
    assert_eq!(winners.len(), 1);
    assert_eq!(winners[0]["variant"], choice["variant"]);
    let page = shell.ok(&["inspect", "show", key]).stdout;
    for candidate in candidates {
        assert!(page.contains(text(candidate, "variant")), "{page}");
    }
    assert_eq!(page.matches(" equal ").count(), candidates.len(), "{page}");
    assert_eq!(page.matches(" chosen ").count(), 1, "{page}");

    let artifact = text(of("artifact").next().expect("one"), "key");
    assert_eq!(text(&shell.json(&["inspect", "show", artifact]), "kind"), "artifact");
    assert!(shell.ok(&["inspect", "show", artifact]).stdout.contains("made by     ropejit"));
    shell.run(&["inspect", "show", artifact, "--ptx"]).fails(2, &["--ptx", "no PTX"]);
    shell.run(&["inspect", "show", "not-a-key"]).fails(2, &["KEY", "not-a-key", "ropejit inspect list"]);
    shell.run(&["inspect", "show", ""]).fails(2, &["KEY", "entries' keys begin with", &key[..12]]);
}

#[test]
fn inspect_path_and_verify() {
    let shell = Shell::new();
    let path = shell.cache().display().to_string();
    assert_eq!(shell.ok(&["inspect", "path"]).stdout, format!("{path}\n"));
    assert_eq!(text(&shell.json(&["inspect", "path"]), "path"), path);
    assert!(!shell.cache().exists(), "looking makes no folder");
    let relative = shell.run_with(&["inspect", "path"], &[("ROPEJIT_CACHE_DIR", Some("here"))]).stdout;
    let here = std::env::current_dir().expect("one").join("here");
    assert_eq!(relative.trim_end(), here.display().to_string());
    assert_eq!(shell.ok(&["inspect", "verify"]).stdout, "entries 0, damaged 0\n");
    shell.ok(&[&RUN[..], &["--tuning", "never"]].concat());
    assert_eq!(shell.ok(&["inspect", "verify"]).stdout, "entries 2, damaged 0\n");
    let verified = shell.json(&["inspect", "verify"]);
    assert_eq!((verified["entries"].as_u64(), verified["damaged"].as_array().map(Vec::len)), (Some(2), Some(0)));

    let entry = shell.entries().remove(0);
    flip(&entry, 40);
    let found = shell.run(&["inspect", "verify"]);
    assert_eq!(found.code, 1);
    assert!(
        found.stdout.contains(&entry.display().to_string()) && found.stdout.contains("damaged 1"),
        "{}",
        found.stdout
    );
    let found = shell.run(&["inspect", "verify", "--json"]);
    assert_eq!(found.code, 1);
    assert_eq!(text(&found.json()["damaged"][0], "path"), entry.display().to_string());
    assert!(shell.ok(&["inspect"]).stdout.contains(&format!("unusable {}", entry.display())));
}

/// Flips the bits of one byte.
fn flip(file: &Path, at: usize) {
    let mut bytes = fs_err::read(file).expect("read");
    let at = at.min(bytes.len() - 1);
    bytes[at] ^= 0xff;
    fs_err::write(file, bytes).expect("written");
}

#[test]
fn a_flipped_byte_costs_a_warning_and_is_healed() {
    let shell = Shell::new();
    let run = [&RUN[..], &["--tuning", "never", "--json"]].concat();
    shell.ok(&run);
    for entry in shell.entries() {
        for at in [0, 9, 60, usize::MAX] {
            flip(&entry, at);
            shell.run(&["inspect", "verify"]).says(&["damaged"]);
            let next = shell.ok(&run);
            next.says(&["WARN", &entry.display().to_string()]);
            let report = next.json();
            assert!(report["max_error"].as_f64() <= report["allowed_error"].as_f64(), "{report}");
            assert_eq!(stat(&report, "unusable_entries"), 1);
            shell.ok(&["inspect", "verify"]);
            let healed = shell.ok(&run);
            assert_eq!((stats(&healed.json())[0], healed.stderr.as_str()), (0, ""), "byte {at} of {}", entry.display());
        }
    }
}

#[test]
fn frozen_names_the_missing_entry() {
    let shell = Shell::new();
    let cache = shell.cache().display().to_string();
    let parts = ["bf16 d64 h4/2 half_split", "not in the cache", &cache, "8 tokens", "ropejit prewarm --dtype bf16"];
    shell.run(&[&RUN[..], &["--tuning", "frozen"]].concat()).fails(1, &parts);
    shell.run_with(&RUN, &[("ROPEJIT_TUNING", Some("frozen"))]).fails(1, &parts);
    assert_eq!(shell.entries(), Vec::<PathBuf>::new());
}

#[test]
fn wrong_arguments_are_named() {
    let shell = Shell::new();
    let run = |args: &[&str]| shell.run(&[&["run"], args].concat());
    run(&["--head-dim", "63", "--num-heads", "4"]).fails(2, &["--head-dim", "63", "even"]);
    run(&["--head-dim", "1024", "--num-heads", "4"]).fails(2, &["--head-dim", "1024", "512"]);
    run(&["--head-dim", "64", "--num-heads", "0"]).fails(2, &["--num-heads", "0"]);
    run(&["--head-dim", "64", "--num-heads", "4", "--rotary-dim", "96"]).fails(2, &["--rotary-dim", "96", "64"]);
    run(&["--head-dim", "64"]).fails(2, &["--num-heads"]);
    run(&["--num-heads", "4"]).fails(2, &["--head-dim"]);
    run(&[]).fails(2, &["--model", "--head-dim", "--num-heads", "llama-3.1-8b"]);
    run(&["--model", "llama-3.1-8b", "--num-heads", "4"]).fails(2, &["--model", "--num-heads"]);
    let run = |args: &[&str]| shell.run(&[&RUN[..7], args].concat());
    run(&["--tokens", "0"]).fails(2, &["--tokens", "'0'"]);
    run(&["--tokens", "1073741824", "--batch", "65536", "--num-heads", "65536"]).fails(2, &["--num-heads"]);
    run(&["--batch", "0"]).fails(2, &["--batch", "0"]);
    run(&["--dtype", "fp8"]).fails(2, &["--dtype", "fp8", "f32, f16 and bf16"]);
    run(&["--tuning", "later"]).fails(2, &["--tuning", "later", "background"]);
    run(&["--positions", "ids8"]).fails(2, &["--positions", "ids8", "ids32"]);
    let prewarm = |args: &[&str]| shell.run(&[&["prewarm"], &SMALL[..], args].concat());
    prewarm(&["--tokens", "1,0"]).fails(2, &["--tokens", "'0'"]);
    prewarm(&["--arch", "sm_1"]).fails(2, &["--arch", "sm_1", "sm_90"]);
    prewarm(&["--arch", "gfx90a"]).fails(2, &["--arch", "gfx90a"]);
    prewarm(&["--arch", "sm_90", "--measure"]).fails(2, &["--arch", "--measure"]);
    shell.run(&["bench", "--only", "3x3"]).fails(2, &["--only", "1×512 32/8/128"]);
    shell.run(&["prewarm"]).fails(2, &["--model", "--head-dim"]);
    shell.run(&["doctor", "--require", "coffee"]).fails(2, &["--require", "coffee", "nvrtc"]);
    shell.run(&["inspect", "lits"]).fails(2, &["lits", "list"]);
    let addressed = ["run", "--head-dim", "512", "--num-heads", "65536", "--num-kv-heads", "0", "--batch", "65536"];
    shell.run(&[&addressed[..], &["--tokens", "1073741824"]].concat()).fails(2, &["--tokens", "too many"]);
    assert!(!shell.cache().join("v1").exists(), "bad usage leaves nothing behind");
}

#[test]
fn models_that_cannot_be_read_are_named() {
    let shell = Shell::new();
    let files = [
        ("no.json", "RoPE, please", "not valid JSON"),
        ("empty.json", "", "not valid JSON"),
        ("gpt2.json", r#"{"model_type": "gpt2", "n_head": 12, "n_embd": 768}"#, "no rotary position embedding"),
        (
            "wide.json",
            r#"{"model_type": "llama", "hidden_size": 256, "num_attention_heads": 4, "partial_rotary_factor": 1.5,
                "max_position_embeddings": 128, "rope_theta": 10000.0}"#,
            "partial_rotary_factor",
        ),
    ];
    for (name, content, why) in files {
        let file = shell.file(name, content);
        shell.run(&["run", "--model", &file, "--tokens", "8"]).fails(2, &["--model", &file, why]);
        shell.run(&["prewarm", "--model", &file, "--tokens", "8"]).fails(2, &["--model", &file, why]);
        shell.run(&["model", &file]).fails(2, &["CONFIG.json", &file, why]);
    }
    for args in [&["run", "--model", "lama"][..], &["prewarm", "--model", "lama"], &["demo", "--model", "lama"]] {
        shell.run(args).fails(2, &["--model", "'lama'", "llama-3.1-8b"]);
    }
    shell.run(&["model", "lama"]).fails(2, &["CONFIG.json", "'lama'", "llama-3.1-8b"]);
    let folder = shell.folder.path().display().to_string();
    shell.run(&["model", &folder]).fails(2, &["CONFIG.json", &folder, "cannot be read"]);
}

#[test]
fn model_prints_what_was_understood() {
    let shell = Shell::new();
    let page = shell.ok(&["model", "llama-3.1-8b"]).stdout;
    assert!(page.contains("32 q, 8 kv") && page.contains("128, of which 128 turn") && page.contains("llama"), "{page}");
    let document = shell.json(&["model", "llama-3.1-8b"]);
    assert_eq!(document["layers"]["default"]["inv_freq"].as_array().map(Vec::len), Some(64));
    assert_eq!((document["num_heads"].as_u64(), document["num_kv_heads"].as_u64()), (Some(32), Some(8)));
}

#[test]
fn the_dtype_that_is_asked_for_wins_over_the_models() {
    let shell = Shell::new();
    let config = r#"{"model_type": "llama", "hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2,
                     "torch_dtype": "bfloat16", "rope_theta": 10000.0}"#;
    let file = shell.file("config.json", config);
    let starts = |text: &str, dtype: &str| assert!(text.starts_with(&format!("{dtype} d64 h4/2 ")), "{text}");
    for dtype in ["bf16", "f16", "f32"] {
        let flag = ["--dtype", dtype];
        assert_eq!(text(&shell.json(&[&["model", &*file], &flag[..]].concat()), "dtype"), dtype);
        let run = shell.json(&[&["run", "--model", &*file, "--tokens", "8"], &flag[..]].concat());
        starts(text(&run, "spec"), dtype);
        let tokens = ["prewarm", "--model", &*file, "--tokens", "8", "--no-tune"];
        let prepared = shell.json(&[&tokens[..], &flag].concat());
        starts(text(&prepared["prepared"][0], "spec"), dtype);
    }
    starts(text(&shell.json(&["run", "--model", &file, "--tokens", "8"]), "spec"), "bf16");
}

#[test]
fn a_cache_that_cannot_be_trusted_or_used_is_refused() {
    let shell = Shell::new();
    let on = |folder: &Path, args: &[&str]| {
        shell.run_with(args, &[("ROPEJIT_CACHE_DIR", Some(folder.to_str().expect("text")))])
    };
    let strict = |folder: &Path, args: &[&str]| {
        let folder = folder.to_str().expect("text");
        shell.run_with(args, &[("ROPEJIT_CACHE_DIR", Some(folder)), ("ROPEJIT_STRICT", Some("1"))])
    };
    let open = shell.at("open");
    assert_eq!(on(&open, &RUN).code, 0);
    fs_err::set_permissions(&open, std::fs::Permissions::from_mode(0o777)).expect("set");
    let repair = format!("chmod -R go-w '{}'", open.display());
    strict(&open, &RUN).fails(1, &["refused", "others can write", &repair]);
    // Otherwise a program runs on without it, and says so once.
    let run = on(&open, &[&RUN[..], &["--json"]].concat());
    assert_eq!((run.code, stat(&run.json(), "compiles")), (0, 1), "{}", run.stderr);
    assert_eq!(run.stderr.matches("WARN").count(), 1, "{}", run.stderr);
    run.says(&["refused", "others can write", &repair]);
    on(&open, &[&["prewarm"], &SMALL[..]].concat()).says(&["could not be kept", &repair]);
    let frozen = on(&open, &[&RUN[..], &["--tuning", "frozen"]].concat());
    frozen.fails(1, &["not in the cache", "refused: others can write", &repair]);
    on(&open, &["inspect"]).fails(1, &[&repair]);
    let doctor = on(&open, &["doctor"]);
    assert!(doctor.stdout.contains(&repair), "{}", doctor.stdout);
    assert_eq!(on(&open, &["doctor", "--require", "cache"]).code, 1);
    fs_err::set_permissions(&open, std::fs::Permissions::from_mode(0o700)).expect("set");
    assert_eq!(on(&open, &["doctor", "--require", "cache"]).code, 0);
    assert_eq!(on(&open, &RUN).code, 0);

    let file = PathBuf::from(shell.file("file", "not a folder"));
    let refused = strict(&file, &RUN);
    refused.fails(1, &[file.to_str().expect("text"), "not a folder", "set ROPEJIT_CACHE_DIR to a folder"]);
    assert!(!refused.stderr.contains("remove"), "it may be anything: {}", refused.stderr);
    assert_eq!(on(&file, &RUN).code, 0);
    shell.run_with(&RUN, &[("ROPEJIT_STRICT", Some("yes"))]).fails(2, &["ROPEJIT_STRICT", "'yes'", "hint: "]);
    // It says whose compilers are run as well: one error, also where no cache folder is used.
    let template = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/templates/scale.toml");
    for args in [&RUN[..], &["template", "check", template]] {
        let refused = shell.run_with(args, &[("ROPEJIT_TRUST_GROUP", Some("wheel"))]);
        refused.fails(2, &["ROPEJIT_TRUST_GROUP: 'wheel' is not the number of a group", "hint: give the number"]);
        assert!(!refused.stderr.contains("is not run"), "{}", refused.stderr);
    }
    assert_eq!(fs_err::read_to_string(&file).expect("there"), "not a folder");
    assert_eq!(on(&file, &["doctor", "--require", "cache"]).code, 1);
}

#[test]
fn a_frozen_process_makes_no_folder() {
    let shell = Shell::new();
    let frozen = [&RUN[..], &["--tuning", "frozen"]].concat();
    let there = format!("{}, which is not there", shell.cache().display());
    shell.run(&frozen).fails(1, &["not in the cache", &there, "hint: ropejit prewarm "]);
    assert!(!shell.cache().exists());
    // A prewarm is told to keep something, whatever its environment says of programs.
    let prewarm = [&["prewarm"], &SMALL[..], &["--tokens", "8", "--no-tune"]].concat();
    let ended = shell.run_with(&prewarm, &[("ROPEJIT_TUNING", Some("frozen"))]);
    ended.says(&["done: compiles 1, tunings 0, choices written 1"]);
    assert!(shell.cache().join("CACHEDIR.TAG").exists());
    shell.ok(&frozen);
}

/// What a frozen call lacks is most often not a prewarm: the hint begins with what is wrong.
#[test]
fn a_frozen_error_begins_with_its_cause() {
    let shell = Shell::new();
    let frozen = [&RUN[..], &["--tuning", "frozen"]].concat();
    let layer = shell.at("layer").display().to_string();
    let [own, path] = [("ROPEJIT_CACHE_DIR", Some(&*layer)), ("ROPEJIT_CACHE_PATH", Some(&*layer))];
    // Warnings come before the error.
    let fails = |parts: &[&str]| {
        let ended = shell.run_with(&frozen, &[path]);
        assert_eq!((ended.code, ended.stdout.as_str()), (1, ""), "{}", ended.stderr);
        ended.says(parts);
        ended.stderr
    };
    fails(&[&format!("hint: ROPEJIT_CACHE_PATH names '{layer}', which is not there"), "then: ropejit prewarm "]);
    assert_eq!(shell.run_with(&[&["prewarm"], &SMALL[..], &["--tokens", "8", "--no-tune"]].concat(), &[own]).code, 0);
    assert_eq!(shell.run_with(&frozen, &[path]).code, 0);

    // A folder in it, or the folder itself, that others can write to.
    let open =
        |folder: &str, mode| fs_err::set_permissions(folder, std::fs::Permissions::from_mode(mode)).expect("set");
    for folder in [layer.clone(), format!("{layer}/v1/choice")] {
        open(&folder, 0o757);
        let repair = format!("hint: chmod -R go-w '{layer}'");
        fails(&["others can write to it (mode 757)", &repair]);
        open(&folder, 0o700);
    }

    // The choice is whole, and its kernel is damaged.
    let list = shell.run_with(&["inspect", "list", "--kind", "artifact", "--json"], &[own]).json();
    let kernel = text(&list["entries"][0], "path");
    let mut bytes = fs_err::read(kernel).expect("read");
    *bytes.last_mut().expect("not empty") ^= 1;
    fs_err::write(kernel, bytes).expect("written");
    let damaged = fails(&["then for its kernel", kernel, "hint: ropejit inspect verify lists what is damaged"]);
    assert!(!damaged.contains("will be replaced"), "{damaged}");
    let doctor = shell.run_with(&["doctor"], &[path]).stdout.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(doctor.contains("entries 2; ropejit inspect verify looks for damage"), "{doctor}");
    fs_err::write(kernel, "").expect("written");
    let doctor = shell.run_with(&["doctor"], &[path]).stdout.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(doctor.contains("entries 2, damaged 1 or more: ropejit inspect verify"), "{doctor}");
}

/// A container that was not given the GPU: nothing is to be prepared for its processor.
#[test]
fn a_frozen_error_says_that_no_gpu_was_found() {
    let shell = Shell::new();
    if shell.run(&["doctor", "--require", "gpu"]).code == 0 {
        return eprintln!("skipped: there is a GPU");
    }
    let model = ["--model", "llama-3.1-8b", "--tokens", "8"];
    // This variant is shipped: nothing is compiled, and what frozen needs is written all the same.
    let prewarm = [&["prewarm"], &model[..], &["--arch", "sm_90", "--no-tune"]].concat();
    shell.ok(&prewarm).says(&["done: compiles 0, tunings 0, choices written 1 ("]);
    shell.ok(&prewarm).says(&["nothing to do: compiles 0, tunings 0, choices written 0 ("]);
    let frozen = [&["run"], &model[..], &["--tuning", "frozen"]].concat();
    let error = shell.run_with(&frozen, &[("ROPEJIT_DEVICE", None)]);
    error.fails(1, &["hint: no GPU was found, and the cache is for sm_90: ", "--gpus all", "driver"]);
    assert!(!error.stderr.contains("ropejit prewarm"), "{}", error.stderr);
    // Who chooses the processor, or has prepared it, is not told of GPUs.
    shell.run(&frozen).fails(1, &["hint: ropejit prewarm "]);
    shell.ok(&[&["prewarm"], &SMALL[..], &["--tokens", "8", "--no-tune"]].concat());
    shell.run_with(&frozen, &[("ROPEJIT_DEVICE", None)]).fails(1, &["hint: ropejit prewarm "]);
}

#[test]
fn doctor_says_which_variables_are_wrong() {
    let shell = Shell::new();
    let doctor = |variables: &[(&str, Option<&str>)]| {
        let ended = shell.run_with(&["doctor"], &[variables, &[("COLUMNS", Some("80"))]].concat());
        assert_eq!(ended.code, 0, "{}", ended.stderr);
        // A path is one word.
        let fits = |line: &str| line.contains('/') || line.chars().count() <= 80;
        assert!(ended.stdout.lines().all(fits), "{}", ended.stdout);
        ended.stdout.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    let wrong = [("ROPEJIT_TUNING", Some("froze")), ("ROPEJIT_DEVICE", Some("foo"))];
    let page = doctor(&wrong);
    for part in
        ["no environment ROPEJIT_TUNING: unknown policy 'froze'", "no environment ROPEJIT_DEVICE: unknown device 'foo'"]
    {
        assert!(page.contains(part), "{page}");
    }
    shell
        .run_with(&["doctor", "--require", "environment"], &wrong[..1])
        .says(&["ROPEJIT_TUNING", "hint: use background"]);
    let document = shell.run_with(&["doctor", "--json"], &[("ROPEJIT_TUNING", Some("frozen"))]).json();
    let told: Vec<_> =
        document["environment"].as_array().expect("an array").iter().map(|one| text(one, "what")).collect();
    assert_eq!(told, ["ROPEJIT_DEVICE=host", "ROPEJIT_TUNING=frozen"]);
    if document["gpu"]["ok"] == true {
        return eprintln!("skipped: there is a GPU");
    }
    for (device, part) in [
        (Some("host"), "hint: none is needed: ROPEJIT_DEVICE=host"),
        (None, "hint: the processor serves in its place"),
        (Some("cuda:7"), "no gpu cuda:7: "),
    ] {
        let page = doctor(&[("ROPEJIT_DEVICE", device)]);
        assert!(page.contains(part), "{page}");
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_cache_that_cannot_be_written_to_costs_a_warning() {
    // Nobody can make files in /proc, not even root, but it is a folder of root's own.
    let shell = Shell::new();
    let on = |folder: &str, args: &[&str]| shell.run_with(args, &[("ROPEJIT_CACHE_DIR", Some(folder))]);
    let run = on("/proc", &[&RUN[..], &["--json"]].concat());
    if fs_err::metadata("/proc").expect("there").uid() == fs_err::metadata(shell.folder.path()).expect("there").uid() {
        assert_eq!(run.code, 0, "{}", run.stderr);
        run.says(&["WARN", "cannot be written to", "/proc/v1"]);
        assert!(stat(&run.json(), "failed_writes") > 0);
    } else {
        assert_eq!(run.code, 0, "{}", run.stderr);
        run.says(&["WARN", "/proc", "belongs to another user"]);
    }
    let doctor = on("/proc/ropejit", &["doctor"]);
    assert!(doctor.stdout.contains("/proc/ropejit: the cache folder cannot be written to"), "{}", doctor.stdout);
    assert_eq!(on("/proc/ropejit", &["doctor", "--require", "cache"]).code, 1);
    // Either it answers without a cache and warns, or it says how to get one; it names the folder in both cases.
    let run = on("/proc/ropejit", &RUN);
    run.says(&["/proc/ropejit", "cannot be made"]);
    assert!(run.code == 0 || run.stderr.contains("hint: set ROPEJIT_CACHE_DIR"), "{}", run.stderr);
}

#[test]
fn without_a_named_cache_folder_the_users_is_used() {
    let shell = Shell::new();
    let users = shell.at("users").display().to_string();
    let environment = [("ROPEJIT_CACHE_DIR", None), ("HOME", None), ("XDG_CACHE_HOME", Some(users.as_str()))];
    let run = shell.run_with(&RUN, &environment);
    assert_eq!(run.code, 0, "{}", run.stderr);
    // A user without a home folder has no cache folder either, and is told.
    let kept = shell.at("users/ropejit/v1").exists();
    assert_ne!(kept, run.stderr.contains("nothing is kept"), "{}", run.stderr);
}

#[test]
fn without_a_compiler_the_reference_answers() {
    let shell = Shell::new();
    let bare = [("PATH", Some("")), ("CXX", None)];
    let run = shell.run_with(&[&RUN[..], &["--json"]].concat(), &bare);
    assert_eq!(run.code, 0, "{}", run.stderr);
    run.says(&["WARN", "no C++ compiler", "c++, g++, clang++", "slow reference", "hint: "]);
    let report = run.json();
    assert_eq!(text(&report, "origin"), "reference");
    assert!(report["max_error"].as_f64() <= report["allowed_error"].as_f64(), "{report}");
    assert_eq!(shell.entries(), Vec::<PathBuf>::new(), "the reference is no entry");
    assert_eq!(shell.run_with(&["doctor", "--require", "host-compiler"], &bare).code, 1);
    let prewarm = shell.run_with(&[&["prewarm"], &SMALL[..]].concat(), &bare);
    assert_eq!(prewarm.code, 1, "nothing was prepared");
    prewarm.says(&["no C++ compiler"]);
    // What is cached needs no compiler.
    shell.ok(&[&RUN[..], &["--tuning", "never"]].concat());
    let run = shell.run_with(&[&RUN[..], &["--tuning", "never", "--json"]].concat(), &bare);
    assert_eq!((run.code, run.stderr.as_str(), text(&run.json(), "origin")), (0, "", "disk"));
}

#[test]
fn wrong_environment_variables_are_named() {
    let shell = Shell::new();
    let with = |name: &str, value: &str, args: &[&str]| shell.run_with(args, &[(name, Some(value))]);
    with("ROPEJIT_TUNING", "nonsense", &RUN).fails(2, &["ROPEJIT_TUNING", "nonsense", "background, blocking"]);
    with("ROPEJIT_DEVICE", "tpu", &RUN).fails(2, &["ROPEJIT_DEVICE", "tpu", "host"]);
    with("ROPEJIT_LOG", "a=b=c", &["inspect", "path"]).says(&["WARN ROPEJIT_LOG"]);
    let nowhere = shell.at("libnvrtc.so").display().to_string();
    let prewarm = [&["prewarm"], &SMALL[..], &["--dtype", "f32", "--arch", "sm_90", "--no-tune"]].concat();
    let parts = ["ROPEJIT_NVRTC", nowhere.as_str(), "hint: set it to the file of a libnvrtc.so, or unset it"];
    with("ROPEJIT_NVRTC", &nowhere, &prewarm).fails(1, &parts);
    let doctor = with("ROPEJIT_NVRTC", &nowhere, &["doctor", "--require", "nvrtc"]);
    assert_eq!(doctor.code, 1);
    doctor.says(&parts);
    assert!(doctor.stdout.contains(&nowhere), "{}", doctor.stdout);
}

#[test]
fn every_json_document_has_stats() {
    let shell = Shell::new();
    let counted = ["compiles", "tunings", "memory_hits", "disk_hits"];
    let demo = shell.json(&["demo", "--tokens", "1"]);
    let [compiles, tunings, _, disk_hits] = stats(&demo);
    assert_eq!((compiles, tunings, disk_hits), (0, 0, 1), "the second process");
    assert!(stat(&demo["cold"], "compiles") > 1 && stat(&demo["cold_background"], "tunings") == 1);
    assert!(demo["first_result_sooner"].as_f64() > Some(1.0));
    let run = [&RUN[..], &["--tuning", "never"]].concat();
    let prewarm = [&["prewarm"], &SMALL[..], &["--tokens", "8", "--no-tune"]].concat();
    for args in [&run[..], &prewarm] {
        stats(&shell.json(args));
    }
    let key = text(&shell.json(&["inspect", "list"])["entries"][0], "key").to_owned();
    for args in [
        &["doctor"][..],
        &["model", "llama-3.1-8b"],
        &["inspect", "path"],
        &["inspect", "verify"],
        &["inspect", "list"],
        &["inspect", "report"],
        &["inspect", "why", "--model", "llama-3.1-8b"],
        &["inspect", "show", &key],
    ] {
        let document = shell.json(args);
        let object = document["stats"].as_object().unwrap_or_else(|| panic!("{args:?}: no stats"));
        assert!(counted.iter().all(|name| !object.contains_key(*name)), "{args:?} runs no engine");
    }
    for part in ["gpu", "nvrtc", "host_compiler", "cache"] {
        let found = &shell.json(&["doctor"])[part];
        assert!(found["ok"].is_boolean() && !text(found, "what").is_empty(), "{part}: {found}");
    }
}

#[test]
fn what_cannot_be_kept_or_removed_is_a_failure() {
    let shell = Shell::new();
    let prewarm = [&["prewarm"], &SMALL[..], &["--tokens", "8", "--no-tune"]].concat();
    // No folder can be made there, not even by root.
    let nowhere = [("ROPEJIT_CACHE_DIR", Some("/proc/nothing/cache"))];
    let ended = shell.run_with(&prewarm, &nowhere);
    assert_eq!(ended.code, 1, "nothing is kept");
    ended.says(&["could not be kept", "ROPEJIT_CACHE_DIR"]);
    assert!(!ended.stderr.contains("nothing to do"), "{}", ended.stderr);
    let document = shell.run_with(&[&prewarm[..], &["--json"]].concat(), &nowhere);
    let document: Value = serde_json::from_str(&document.stdout).expect("one document, also of a failure");
    assert!(stat(&document, "failed_writes") > 0);
    // A folder with something in it, where an entry should be, is not removed.
    shell.ok(&prewarm);
    let entry = shell.json(&["inspect", "list"])["entries"][0]["path"].as_str().map(PathBuf::from).expect("a path");
    fs_err::remove_file(&entry).expect("removed");
    fs_err::create_dir_all(entry.join("mine")).expect("made");
    let swept = shell.run(&["inspect", "gc"]);
    assert_eq!(swept.code, 1, "a folder with something in it");
    swept.says(&["could not be removed: 1"]);
}

#[test]
fn the_demo_starts_with_nothing_whatever_was_prepared() {
    let shell = Shell::new();
    shell.ok(&["prewarm", "--model", "llama-3.1-8b", "--tokens", "1", "--no-tune"]);
    let prepared = shell.cache().display().to_string();
    let demo = shell.run_with(&["demo", "--tokens", "1", "--json"], &[("ROPEJIT_CACHE_PATH", Some(&prepared))]);
    let demo: Value = serde_json::from_str(&demo.stdout).expect("JSON");
    assert!(stat(&demo["cold"], "compiles") > 1, "{demo}");
}

#[test]
fn demo_shows_all_three_processes() {
    let shell = Shell::new();
    let eighty = [("COLUMNS", Some("80"))];
    let demo = shell.run_with(&["demo", "--tokens", "1", "--model", "llama-3.1-8b"], &eighty);
    assert_eq!(demo.stderr, "");
    for part in ["tunes first", "answers first", "finds all ", "sooner"] {
        assert!(demo.stdout.contains(part), "{}", demo.stdout);
    }
    // Its first line is no table: it names the processor.
    assert!(demo.stdout.lines().skip(1).all(|line| line.chars().count() <= 80), "{}", demo.stdout);
    assert!(!shell.cache().exists(), "the demo leaves the user's cache alone");
}

/// Its folders are the user's alone, also where all that a program makes is for everybody.
#[test]
fn the_demo_follows_no_umask() {
    let shell = Shell::new();
    let ropejit = env!("CARGO_BIN_EXE_ropejit");
    let demo = Command::new("sh")
        .args(["-c", "umask 0 && exec \"$0\" demo --tokens 1 --json", ropejit])
        .env("ROPEJIT_DEVICE", "host")
        .env("ROPEJIT_CACHE_DIR", shell.cache())
        .output()
        .expect("started");
    assert!(demo.status.success(), "{}", String::from_utf8_lossy(&demo.stderr));
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let shell = Shell::new();
    // Longer than a pipe holds, so that the writer meets the closed end.
    let long = ["prewarm", "--model", "llama-3.1-8b", "--no-tune", "--json", "--tokens"];
    let counts: Vec<String> = (0..25).map(|n| (1u64 << n).to_string()).collect();
    let models = ["llama-3.1-8b"; 12];
    let counts = counts.join(",");
    let args = [&long[..2], &models, &long[2..], &[&counts]].concat();
    let whole = shell.ok(&args).stdout;
    assert!(whole.len() > 1 << 16, "{} bytes fit into a pipe", whole.len());
    let mut child = shell.command(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("started");
    let mut first = [0; 1];
    child.stdout.take().expect("piped").read_exact(&mut first).expect("a byte");
    let output = child.wait_with_output().expect("ends");
    assert_eq!((first, output.status.code()), (*b"{", Some(0)));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[test]
fn every_command_has_help_with_an_example_or_explanation() {
    let shell = Shell::new();
    let top = shell.ok(&["--help"]).stdout;
    for part in ["Examples:", "ROPEJIT_CACHE_DIR", "ROPEJIT_TUNING", "ROPEJIT_DEVICE", "ROPEJIT_NVRTC", "ROPEJIT_LOG"] {
        assert!(top.contains(part), "{part} is not in:\n{top}");
    }
    assert!(top.contains("Exit status: 0 done, 1 failed, 2 bad usage"), "{top}");
    let mut pages = 0;
    let mut under = vec![Vec::<String>::new()];
    while let Some(command) = under.pop() {
        let args = [command.clone(), vec!["--help".into()]].concat();
        let page = shell.ok(&args.iter().map(String::as_str).collect::<Vec<_>>()).stdout;
        let after = page.split_once("\nExample").map_or("", |(_, after)| after);
        let example = format!("ropejit {}", command.join(" "));
        assert!(after.contains(example.trim_end()), "no example of '{example}' in:\n{page}");
        assert!(page.lines().all(|line| line.chars().count() <= 100), "{page}");
        // The first line says what it is for, and options are described.
        assert!(page.lines().next().is_some_and(|l| l.len() > 15), "{page}");
        pages += 1;
        let Some((_, listed)) = page.split_once("Commands:\n") else { continue };
        for name in
            listed.lines().take_while(|l| !l.is_empty()).filter(|l| l.starts_with("  ") && !l.starts_with("   "))
        {
            let name = name.split_whitespace().next().expect("a name");
            if name != "help" {
                under.push([command.clone(), vec![name.to_owned()]].concat());
            }
        }
    }
    assert_eq!(pages, 1 + 14 + 7 + 2 + 5, "the program, its commands, and those of inspect, pack and template");
    shell.ok(&["--version"]);
    let bare = shell.run(&[]);
    assert_eq!((bare.code, bare.stdout.as_str()), (2, ""));
    bare.says(&["Usage: ropejit"]);
}

#[test]
fn bench_measures_tunes_and_draws() {
    let shell = Shell::new();
    let picture = shell.at("bench.svg").display().to_string();
    let report = shell.json(&["bench", "--only", "1×1 ", "--dtype", "f32", "--samples", "3", "--picture", &picture]);
    let cases = report["cases"].as_array().expect("cases");
    assert_eq!(cases.len(), 4, "two layouts, in and out of place");
    for case in cases {
        let number = |name: &str| case[name].as_f64().expect("a number");
        assert!((number("of_copy") - number("copy_us") / number("device_us")).abs() < 1e-9);
        assert!(case["landscape"].as_array().is_some_and(|l| l.len() > 1), "{case}");
    }
    assert!(report["stats"]["tunings"].as_u64().is_some_and(|n| n >= 1));
    assert!(fs_err::read_to_string(&picture).expect("drawn").ends_with("</svg>\n"));
    let none = shell.run(&["bench", "--only", "no such shape"]);
    assert_eq!(none.code, 2);
}
