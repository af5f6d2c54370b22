//! `ropejit inspect`: what is asked of a cache, on the host device; NVRTC for what only GPUs' kernels have.

use std::os::unix::fs::PermissionsExt as _;

use ropejit::engine::ChoiceMeta;
use ropejit::jit::Candidate;
use ropejit::store::{Entry, Head};
use serde_json::Value;

use crate::cli::{RUN, SMALL, Shell, nvrtc, text};

fn why<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&["inspect", "why"], &SMALL[..], more].concat()
}

/// A cache with a tuned choice for 8 tokens.
fn tuned() -> Shell {
    let shell = Shell::new();
    shell.ok(&[&RUN[..], &["--tuning", "blocking"]].concat());
    shell
}

fn choice_at(path: &std::path::Path) -> Head {
    let bytes = fs_err::read(path).expect("read");
    Head::read(&bytes[..], bytes.len() as u64).expect("sound")
}

/// Rewrites the only choice with another value of a field of its key.
fn with_field(shell: &Shell, name: &str, value: &str) {
    rewrite(shell, |meta| {
        let field = meta.fields.0.iter_mut().find(|(n, _)| n == name).expect("a field");
        value.clone_into(&mut field.1);
    });
}

/// Rewrites the only choice, under the key that this makes.
fn rewrite(shell: &Shell, change: impl FnOnce(&mut ChoiceMeta)) {
    let choice = shell.json(&["inspect", "list", "--kind", "choice"])["entries"][0].clone();
    let path = std::path::PathBuf::from(text(&choice, "path"));
    let mut meta: ChoiceMeta = serde_json::from_slice(&choice_at(&path).meta).expect("a choice");
    change(&mut meta);
    let entry = Entry::choice(meta.fields.key(), serde_json::to_vec(&meta).expect("JSON"));
    fs_err::remove_file(&path).expect("removed");
    let key = entry.key.to_string();
    let folder = path.parent().and_then(|p| p.parent()).expect("two folders").join(&key[..2]);
    fs_err::create_dir_all(&folder).expect("made");
    fs_err::set_permissions(&folder, std::fs::Permissions::from_mode(0o700)).expect("set");
    let file = folder.join(format!("{key}.rope"));
    fs_err::write(&file, entry.encode()).expect("written");
    fs_err::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).expect("set");
}

fn differences(looked: &Value) -> Vec<(String, String)> {
    let all = looked["nearest"]["differences"].as_array().unwrap_or_else(|| panic!("nothing is near: {looked}"));
    all.iter().map(|d| (text(d, "field").to_owned(), text(d, "meaning").to_owned())).collect()
}

#[test]
fn why_says_hit_or_which_fields_differ() {
    let shell = Shell::new();
    let empty = shell.ok(&why(&["--tokens", "8"])).stdout;
    assert!(empty.contains("choice    miss: not in the cache") && empty.contains("there is no artifact in"), "{empty}");
    assert!(empty.contains("ropejit prewarm --dtype bf16 --head-dim 64") && !shell.cache().exists(), "{empty}");

    let shell = tuned();
    let hit = shell.ok(&why(&["--tokens", "5"])).stdout;
    assert!(hit.contains("choice    hit: ") && hit.contains(", tuned") && hit.contains("artifact  hit: "), "{hit}");
    let document = shell.json(&why(&["--tokens", "8"]));
    assert_eq!((document["hit"].as_bool(), document["answers"].as_array().map(Vec::len)), (Some(true), Some(1)));

    let miss = shell.json(&why(&["--tokens", "512"]));
    assert_eq!(miss["hit"], false);
    let answer = &miss["answers"][0];
    assert_eq!(differences(&answer["choice"]), [("bucket".to_owned(), "another number of tokens".to_owned())]);
    assert_eq!(answer["artifact"]["hit"], true, "the default variant is one of the candidates");
    let fields = |more: &[&str], what: &str| -> Vec<String> {
        let answer = shell.json(&why(more))["answers"][0].clone();
        differences(&answer[what]).into_iter().map(|(field, _)| field).collect()
    };
    assert_eq!(fields(&["--tokens", "8", "--dtype", "f16"], "choice"), ["spec.dtype"]);
    assert_eq!(fields(&["--tokens", "8", "--dtype", "f16"], "artifact"), ["spec.dtype", "source"]);
    assert_eq!(fields(&["--tokens", "8", "--bhsd", "--table", "same"], "choice"), ["spec.table.dtype", "class"]);
    // For a GPU that is not there; without a compiler its version is not held against an entry.
    let nowhere = [("ROPEJIT_NVRTC", Some("/nowhere/libnvrtc.so"))];
    let there = shell.run_with(&why(&["--tokens", "8", "--dtype", "f32", "--arch", "sm_90", "--json"]), &nowhere);
    assert_eq!(there.code, 0, "{}", there.stderr);
    let answer = there.json()["answers"][0].clone();
    let names: Vec<String> = differences(&answer["choice"]).into_iter().map(|(field, _)| field).collect();
    assert_eq!(names, ["spec.dtype", "device", "space"]);
    assert!(differences(&answer["artifact"]).iter().all(|(field, _)| field != "compiler"), "{answer}");
    assert!(text(&answer["artifact"], "what").contains("no compiler is here"), "{answer}");
    assert!(text(&answer, "hint").ends_with("--arch sm_90"), "{answer}");

    shell.run(&why(&["--layout", "bshd/16B"])).fails(2, &["--layout", "bshd/16B/t16B"]);
    for arch in ["sm_1", "sm_900"] {
        shell.run(&why(&["--arch", arch])).fails(2, &["--arch", arch]);
    }
    let other = shell.json(&why(&["--tokens", "8", "--layout", "bshd/8B/t16B"]));
    assert_eq!(differences(&other["answers"][0]["choice"])[0].0, "class");
    // Partial rotary has a kernel in place and one out of place.
    let partial = shell.json(&why(&["--tokens", "8", "--rotary-dim", "32"]));
    assert_eq!(partial["answers"].as_array().map(Vec::len), Some(2));
}

#[test]
fn why_says_in_words_what_a_digest_means() {
    for (field, value, meaning) in [
        ("templates", "0123456789abcdef", "the program's templates changed"),
        ("space", "t128 v8 h1 wb/wb", "the program offers other candidates"),
        ("policy", "0", "another way of measuring"),
        ("device", "AMD EPYC; cc 0.0; 1 multiprocessors", "another device"),
    ] {
        let shell = tuned();
        with_field(&shell, field, value);
        let answer = shell.json(&why(&["--tokens", "8"]))["answers"][0].clone();
        assert_eq!(differences(&answer["choice"]), [(field.to_owned(), meaning.to_owned())]);
        let page = shell.ok(&why(&["--tokens", "8"])).stdout;
        assert!(page.contains(meaning) && page.contains("choice    miss"), "{page}");
    }
}

#[test]
fn why_finds_a_kernel_that_is_gone_or_damaged() {
    let shell = tuned();
    let chosen = shell.json(&["inspect", "list", "--kind", "choice"])["entries"][0]["variant"].clone();
    let list = shell.json(&["inspect", "list", "--kind", "artifact", chosen.as_str().expect("text")]);
    let path = text(&list["entries"][0], "path").to_owned();
    let mut bytes = fs_err::read(&path).expect("read");
    bytes[200] ^= 1;
    fs_err::write(&path, &bytes).expect("written");
    let answer = shell.json(&why(&["--tokens", "8"]))["answers"][0].clone();
    assert_eq!((answer["choice"]["hit"].as_bool(), answer["artifact"]["hit"].as_bool()), (Some(true), Some(false)));
    assert!(text(&answer["artifact"], "what").contains(&path), "{answer}");
    fs_err::remove_file(&path).expect("removed");
    let page = shell.ok(&why(&["--tokens", "8"])).stdout;
    assert!(page.contains("choice    hit") && page.contains("artifact  miss"), "{page}");
    let told = page.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(told.contains("compiles the kernel again") && told.contains("because the kernel is not in"), "{page}");
}

/// The calls that a prewarm for a library has prepared are found as that library makes them, by `why` and by `run`.
#[test]
fn why_and_run_ask_for_a_librarys_calls() {
    let shell = Shell::new();
    let model = shell.file(
        "config.json",
        r#"{"model_type": "qwen3", "hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64,
            "rope_theta": 10000.0, "max_position_embeddings": 2048, "torch_dtype": "bfloat16"}"#,
    );
    let why = |more: &[&str]| shell.json(&[&["inspect", "why", "--model", &model, "--tokens", "8"], more].concat());
    let library = ["--for", "transformers"];
    let empty = why(&library);
    let answers = empty["answers"].as_array().expect("an array");
    let specs: Vec<&str> = answers.iter().map(|answer| text(answer, "spec")).collect();
    let plain = "bf16 d64 h4/2 half_split per_op table=bf16/full pos=implicit";
    let fused = format!("{plain} norm=weight_after/torch/ieee");
    assert_eq!(specs, [plain, plain, &fused, &fused], "rotation and norm, in both orders of memory");
    assert_eq!(why(&["--for", "transformers", "--bhsd"])["answers"].as_array().map(Vec::len), Some(2));

    // The command of each answer, as it stands, fills all of them.
    let fill = format!("ropejit prewarm --for transformers --model {model} --tokens 8");
    assert!(answers.iter().all(|answer| text(answer, "hint") == fill), "{empty}");
    let words: Vec<&str> = fill.split(' ').skip(1).chain(["--no-tune"]).collect();
    shell.ok(&words);
    assert_eq!(why(&library)["hit"], true);
    let report =
        shell.json(&["run", "--model", &model, "--tokens", "8", "--tuning", "frozen", "--for", "transformers"]);
    assert_eq!((text(&report, "spec"), text(&report, "origin")), (plain, "disk"));

    // Asked for without the library, the miss says whose calls are there.
    let miss = why(&[]);
    assert_eq!(
        (&miss["hit"], &miss["answers"][0]["cached_for"]),
        (&Value::Bool(false), &serde_json::json!(["transformers"]))
    );
    let page = shell.ok(&["inspect", "why", "--model", &model, "--tokens", "8"]).stdout;
    assert!(
        page.contains("but       calls of transformers are in the cache") && page.contains("--for transformers"),
        "{page}"
    );
    let other = shell.json(&["inspect", "why", "--model", &model, "--tokens", "512"]);
    assert!(other["answers"][0].get("cached_for").is_none(), "{other}");

    // By numbers, and for what a prewarm for the library does not prepare.
    let numbers = shell.json(&[&["inspect", "why"], &SMALL[..], &["--for", "flash-attn", "--tokens", "1"]].concat());
    assert!(text(&numbers["answers"][0], "hint").ends_with("--tokens 1 --for flash-attn"), "{numbers}");
    let odd = why(&["--for", "transformers", "--layout", "bshd/8B/t8B"]);
    assert!(text(&odd["answers"][0], "hint").ends_with("--table-width full --layout bshd/8B/t8B"), "{odd}");
    for command in [&["inspect", "why"][..], &["run"]] {
        let both = [command, &["--model", &model, "--for", "transformers", "--table", "same"]].concat();
        shell.run(&both).fails(2, &["--for", "--table"]);
    }
}

#[test]
fn why_names_the_lock_files_line() {
    let shell = tuned();
    let lock = shell.at("rope.lock").display().to_string();
    shell.ok(&[&["prewarm"], &SMALL[..], &["--tokens", "8", "--lock", &lock]].concat());
    let there = [("ROPEJIT_LOCK", Some(&*lock))];
    let page = shell.run_with(&why(&["--tokens", "8"]), &there).stdout;
    assert!(page.contains(&format!("lock      {lock}:7 names t")) && page.contains("tunes nothing"), "{page}");
}

#[test]
fn tables_fit_the_page_whatever_the_processor_is_called() {
    let shell = tuned();
    for name in ["x", "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz with a very long suffix", "Zhaoxin™ KX‑U6780A®"]
    {
        rewrite(&shell, |meta| name.clone_into(&mut meta.record.device));
        let key = text(&shell.json(&["inspect", "list", "--kind", "choice"])["entries"][0], "key").to_owned();
        for columns in [80, 70] {
            let page = |args: &[&str]| {
                let ended = shell.run_with(args, &[("COLUMNS", Some(&columns.to_string()))]);
                assert_eq!(ended.code, 0, "{}", ended.stderr);
                ended.stdout
            };
            let fits = |text: &str| {
                assert!(text.lines().all(|line| line.chars().count() <= columns), "{columns} columns:\n{text}");
            };
            let list = page(&["inspect"]);
            fits(&list);
            assert!(list.contains(&key[..12]) && list.contains(&name[..1]) && list.contains("tuned"), "{list}");
            fits(&page(&["inspect", "report"]));
            let show = page(&["inspect", "show", &key]);
            let table: Vec<&str> = show.split('─').collect();
            fits(table[table.len() / 2]);
            let properties = show.replace("\n            ", " ");
            assert!(properties.contains(&format!("device      {name} (")), "properties are whole:\n{show}");
        }
        // What goes to a pipe or to a program is whole.
        for args in [&["inspect"][..], &["inspect", "list", "--tsv"], &["inspect", "list", "--json"]] {
            let whole = shell.ok(args).stdout;
            assert!(whole.contains(name), "{whole}");
        }
    }
}

/// All that is behind says by how much and in how many rounds.
#[test]
fn show_and_why_say_how_sure_a_choice_is() {
    let shell = tuned();
    rewrite(&shell, |meta| {
        let samples = [[100.0, 101.0, 100.0], [100.2, 101.1, 100.4], [150.0, 90.0, 130.0], [200.0, 210.0, 205.0]];
        let variants: Vec<_> = meta.record.candidates.iter().map(|c| c.config.clone()).collect();
        let of = |(i, samples): (usize, &[f64; 3])| {
            let mut candidate = Candidate::new(variants[i % variants.len()].clone());
            candidate.samples_ns = samples.to_vec();
            candidate
        };
        meta.record.candidates = samples.iter().enumerate().map(of).collect();
        meta.record.candidates[3].dropped = Some("clearly behind after 3 rounds".into());
        (meta.record.winner, meta.record.near_ties) = (0, vec![0, 1]);
    });
    let key = text(&shell.json(&["inspect", "list", "--kind", "choice"])["entries"][0], "key").to_owned();
    let page = shell.ok(&["inspect", "show", &key]).stdout;
    for part in [" chosen ", " near-tie ", " 30 % behind, 2 of 3 ", " 105 % behind, 3 of 3 "] {
        assert!(page.contains(part), "'{part}' is not in:\n{page}");
    }
    assert!(page.contains("; near-ties 1, the next is 30 % behind, 2 of 3 rounds\n"), "{page}");
    let why_args = why(&["--tokens", "8"]);
    let told = shell.ok(&why_args).stdout;
    assert!(told.contains(", tuned (near-ties 1, the next is 30 % behind, 2 of 3 rounds)"), "{told}");
    let shown = shell.json(&["inspect", "show", &key]);
    assert_eq!(shown["candidates"][3]["behind"]["lost"], 3, "{shown}");
    // Ahead in the median round.
    rewrite(&shell, |meta| meta.record.candidates[2].samples_ns = vec![99.0, 150.0, 99.5]);
    rewrite(&shell, |meta| meta.record.candidates[0].samples_ns = vec![100.0, 98.0, 99.9]);
    let told = shell.ok(&why_args).stdout;
    assert!(told.contains("the next is as fast as can be told: 0.4 % ahead, slower in 1 of 3 rounds)"), "{told}");
    assert!(shell.ok(&["inspect", "show", &key]).stdout.contains(" 0.4 % ahead, slower in 1 of 3 "));
}

#[test]
fn list_filters_and_sorts() {
    let shell = tuned();
    shell.ok(&[&["prewarm"], &SMALL[..], &["--tokens", "64", "--dtype", "f16", "--no-tune"]].concat());
    let keys = |more: &[&str]| -> Vec<Value> {
        let list = shell.json(&[&["inspect", "list"], more].concat());
        list["entries"].as_array().expect("an array").clone()
    };
    let all = keys(&[]).len();
    let of = |more: &[&str]| keys(more).len();
    assert_eq!((of(&["--kind", "choice"]), of(&["--kind", "choice"]) + of(&["--kind", "artifact"])), (2, all));
    assert_eq!((of(&["--tuned"]), of(&["--untuned"]), of(&["--tokens", "60"]), of(&["--bucket", "8"])), (1, 1, 1, 1));
    assert_eq!((of(&["--dtype", "f16"]), of(&["--dtype", "f32"]), of(&["--head-dim", "64"])), (2, 0, all));
    assert_eq!(
        (of(&["--arch", "sm_90"]), of(&["--arch", std::env::consts::ARCH]), of(&["--device", "no such"])),
        (0, all, 0)
    );
    assert_eq!((of(&["D64 H4/2", "once"]), of(&["bf16", "--kind", "choice"]), of(&["no such text"])), (all, 1, 0));
    let tokens: Vec<_> = keys(&["--kind", "choice", "--sort", "tokens"]).iter().map(|e| e["tokens"].as_u64()).collect();
    assert_eq!(tokens, [Some(8), Some(64)]);
    let bytes: Vec<_> = keys(&["--sort", "bytes"]).iter().map(|e| e["bytes"].as_u64()).collect();
    assert!(bytes.is_sorted_by(|a, b| a >= b), "{bytes:?}");
    let names: Vec<_> = keys(&["--sort", "key"]).iter().map(|e| text(e, "key").to_owned()).collect();
    assert!(names.is_sorted());
    // Lines for other programs: as many fields in each.
    let lines = shell.ok(&["inspect", "list", "--tsv"]).stdout;
    assert_eq!(lines.lines().count(), all);
    assert!(lines.lines().all(|line| line.split('\t').count() == 11), "{lines}");
    shell.ok(&["inspect", "list", "--arch", "sm_90"]).says(&["none of the"]);
    shell.run(&["inspect", "list", "--sort", "colour"]).fails(2, &["--sort", "colour", "tokens"]);
    shell.run(&["inspect", "list", "--tuned", "--untuned"]).fails(2, &["--tuned", "--untuned"]);
}

#[test]
fn show_prints_all_samples_and_the_rate() {
    let shell = tuned();
    let key = text(&shell.json(&["inspect", "list", "--kind", "choice"])["entries"][0], "key").to_owned();
    let document = shell.json(&["inspect", "show", &key]);
    let page = shell.ok(&["inspect", "show", &key]).stdout;
    let candidates = document["candidates"].as_array().expect("an array");
    for candidate in candidates {
        let samples = candidate["samples_ns"].as_array().expect("an array");
        let variant = text(candidate, "variant");
        let line = page.lines().find(|l| l.trim_start().starts_with(&format!("{variant}: "))).expect("its samples");
        assert_eq!(line.rsplit(": ").next().map(|l| l.split(' ').count()), Some(samples.len()), "{line}");
    }
    let winner = candidates.iter().find(|c| c["winner"] == true).expect("one");
    let rate = document["bytes"].as_f64().expect("bytes") / winner["median_ns"].as_f64().expect("a median") * 1e9;
    assert!((document["bytes_per_second"].as_f64().expect("a rate") - rate).abs() < 1.0, "{document}");
    assert_eq!(document["peak_bytes_per_second"], Value::Null, "a host does not tell");
    for part in ["rate        ", " GB/s, ", " of copy", "made        2", "what its key hashes:", "compiler    "] {
        assert!(page.contains(part), "'{part}' is not in: {page}");
    }
    shell.run(&["inspect", "show", &key, "--sass"]).fails(2, &["--sass", "no code for a GPU"]);
}

#[test]
fn show_disassembles_where_it_can_and_says_where_it_cannot() {
    let shell = Shell::new();
    if !nvrtc(&shell, "show_disassembles_where_it_can_and_says_where_it_cannot") {
        return;
    }
    // What comes with the crate is in no cache.
    let shipped = Shell::new();
    let prewarm = [&["prewarm"], &SMALL[..], &["--tokens", "8", "--arch", "sm_90"]].concat();
    shipped.ok(&prewarm).says(&["compiles 0"]);
    let key = text(&shipped.json(&["inspect", "list"])["entries"][0], "key").to_owned();
    shipped.run(&["inspect", "show", &key, "--ptx"]).fails(2, &["--ptx", "comes with ropejit"]);
    let why = shipped.json(&[&["inspect", "why"], &SMALL[..], &["--tokens", "8", "--arch", "sm_90"]].concat());
    assert_eq!(why["hit"], true, "{why}");

    shell.ok(&[&prewarm[..], &["--dtype", "f32"]].concat());
    let key = text(&shell.json(&["inspect", "list", "--kind", "choice"])["entries"][0], "key").to_owned();
    let ptx = shell.ok(&["inspect", "show", &key, "--ptx"]).stdout;
    assert!(ptx.contains(".target sm_90"), "of the kernel that the choice names");

    // A stand-in that says what it was given: the cubin, whole, and the option to print code.
    let tools = shell.at("tools/bin");
    fs_err::create_dir_all(&tools).expect("made");
    let tool = tools.join("nvdisasm");
    let with = |script: &str, args: &[&str]| {
        fs_err::write(&tool, script).expect("written");
        fs_err::set_permissions(&tool, std::fs::Permissions::from_mode(0o755)).expect("set");
        let home = shell.at("tools").display().to_string();
        shell.run_with(args, &[("CUDA_HOME", Some(&home)), ("PATH", Some("")), ("CUDA_PATH", None)])
    };
    let sass = ["inspect", "show", &key, "--sass"];
    let shown = with("#!/bin/sh\necho \"$1\"\n/usr/bin/head -c 4 \"$2\" | /usr/bin/tail -c 3\n", &sass);
    assert_eq!((shown.code, shown.stdout.as_str()), (0, "--print-code\nELF\n"), "{}", shown.stderr);
    let shown = with("#!/bin/sh\necho code\n", &[&sass[..], &["--json"]].concat());
    assert_eq!((shown.code, text(&shown.json(), "sass")), (0, "code"));
    with("#!/bin/sh\necho too new >&2\nexit 1\n", &sass).fails(1, &["nvdisasm", "too new", "hint: ", "--ptx"]);
    if !std::path::Path::new("/usr/local/cuda/bin").exists() {
        let bare = shell.run_with(&sass, &[("PATH", Some("")), ("CUDA_HOME", None), ("CUDA_PATH", None)]);
        bare.fails(1, &["--sass", "neither nvdisasm nor cuobjdump", "hint: ", "--ptx"]);
    }
}

#[test]
fn report_is_one_page_that_needs_nothing_else() {
    let shell = tuned();
    let page = shell.at("tuning.html").display().to_string();
    shell.ok(&["inspect", "report", "--html", &page]).says(&["tuning.html", "choices 1"]);
    shell.run(&["inspect", "report", "--html", "-", "--json"]).fails(2, &["--html", "stdout"]);
    let html = fs_err::read_to_string(&page).expect("written");
    let choice = shell.json(&["inspect", "list", "--kind", "choice"])["entries"][0].clone();
    let shown = shell.json(&["inspect", "show", text(&choice, "key")]);
    let candidates = shown["candidates"].as_array().expect("an array");
    let samples: usize = candidates.iter().map(|c| c["samples_ns"].as_array().map_or(0, Vec::len)).sum();
    let beyond: usize = html.matches(" +").count();
    let dots = html.matches("<circle").count();
    assert!(dots <= samples && (beyond > 0 || dots == samples), "{dots} dots for {samples} samples");
    assert_eq!(html.matches("<div class=\"chosen\">").count(), 1);
    assert_eq!(html.matches("<div class=\"copied\">").count(), 1);
    for part in [
        text(&choice, "spec"),
        text(&choice, "variant"),
        text(&choice, "key"),
        "prefers-color-scheme: dark",
        "@media print",
        "; made 2",
        "</html>",
    ] {
        assert!(html.contains(part), "{part}");
    }
    for foreign in ["<script", "http:", "https:", "src=", "@import", "url(", "NaN", "inf"] {
        assert!(!html.contains(foreign), "{foreign} in the page");
    }
    for tag in ["svg", "section", "div", "span", "title", "p", "code", "b"] {
        let (open, close) = (
            html.matches(&format!("<{tag}>")).count() + html.matches(&format!("<{tag} ")).count(),
            html.matches(&format!("</{tag}>")).count(),
        );
        assert_eq!(open, close, "<{tag}>");
    }
    assert_eq!(shell.ok(&["inspect", "report", "--html", "-"]).stdout, html);
    let index = shell.ok(&["inspect", "report"]).stdout;
    assert!(index.contains(text(&choice, "spec")) && index.lines().count() == 3, "{index}");
    let document = shell.json(&["inspect", "report"]);
    assert_eq!(document["choices"][0]["key"], choice["key"]);
    shell
        .run(&["inspect", "report", "--html", "/nowhere/at/all.html"])
        .fails(1, &["/nowhere/at/all.html", "cannot be written", "hint"]);
    let empty = Shell::new();
    empty.ok(&["inspect", "report"]).says(&["there are no choices"]);
    let page = empty.ok(&["inspect", "report", "--html", "-"]).stdout;
    assert!(page.contains("ropejit prewarm --model") && page.ends_with("</html>\n"), "{page}");
    // What was not measured is a line, and no card.
    empty.ok(&[&["prewarm"], &SMALL[..], &["--tokens", "8", "--no-tune"]].concat());
    let page = empty.ok(&["inspect", "report", "--html", "-"]).stdout;
    assert!(page.contains("8 tokens: <code>t") && page.contains("default, not tuned"), "{page}");
    assert!(!page.contains("<section") && !page.contains("Every candidate"), "{page}");
}
