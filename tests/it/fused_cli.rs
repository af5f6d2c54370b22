//! The command with what is fused: norms, caches, latent attention. On the host device; NVRTC for what is compiled ahead for GPUs.

use ropejit::jit::lock::Lock;
use ropejit::rope::{Append, Flavour, Norm, Rsqrt};
use ropejit::{DType, RopeSpec};
use serde_json::{Value, json};

use crate::cli::{SMALL, Shell, nvrtc, stat, text};

/// Options of a launch, and what its spec's line then holds.
const FORMS: [(&str, &str); 10] = [
    ("--fused qk-norm", " norm=weight_after/torch/ieee"),
    ("--fused qk-norm --norm one_plus_weight/tree --rounding per-op --batch 2", " norm=one_plus_weight/tree/ieee"),
    ("--fused qk-norm --norm no_weight --after-rope --rotary-dim 32 --bhsd", " norm=no_weight/torch/ieee/after_rope"),
    ("--fused qk-norm --backward --batch 2", " backward table=f32/half pos=implicit norm=weight_after/torch/ieee"),
    ("--fused qk-norm --backward --norm weight_f32 --after-rope", " backward "),
    ("--fused append", " append=slot_mapping,v=64"),
    ("--fused append --cache fp8 --q-fp8 --v-head-dim 32", " append=slot_mapping,v=32,cache=e4m3/divide,q=e4m3/divide"),
    (
        "--fused append --norm weight_after --cache fp8 --scale multiply --per-head --slots pages --batch 3",
        " norm=weight_after/torch/ieee append=pages,v=64,cache=e4m3/multiply/head",
    ),
    ("--style deinterleave --dtype f16", " deinterleave once "),
    ("--fused mla --rotary-dim 32 --num-kv-heads 1", " part=last k_dim=32 append=slot_mapping,v=512"),
];

fn words(text: &str) -> Vec<&str> {
    text.split(' ').collect()
}

#[test]
fn every_fused_form_runs_and_is_right() {
    let shell = Shell::new();
    for (options, part) in FORMS {
        // What is repeated is said once.
        let heads = if options.contains("--num-kv-heads") { &SMALL[..4] } else { &SMALL[..] };
        let run = [&["run"], heads, &["--tokens", "37", "--tuning", "never"], &words(options)].concat();
        let report = shell.json(&run);
        assert!(format!("{} ", text(&report, "spec")).contains(part), "{options}: {report}");
        let [error, allowed] = ["max_error", "allowed_error"].map(|name| report[name].as_f64().expect("a number"));
        assert!(0.0 < error && error <= allowed, "{options}: {report}");
    }
}

#[test]
fn what_cannot_be_fused_is_named_by_its_option() {
    let shell = Shell::new();
    for (options, parts) in [
        ("--norm weight_after", &["--fused"][..]),
        ("--fused qk-norm --norm rms", &["--norm", "'rms'", "weight_after/torch/approx"]),
        ("--fused qk-norm --norm weight_after/torch/ieee/after_rope", &["--norm", "--after-rope"]),
        ("--fused qk-norm --norm weight_after/approx", &["--norm", "approx", "ieee"]),
        ("--fused qk-norm --cache fp8", &["--cache", "--fused append"]),
        ("--fused qk-norm --slots pages", &["--slots", "--fused append"]),
        ("--fused append --after-rope", &["--after-rope", "--norm"]),
        ("--fused append --scale divide", &["--scale", "--cache fp8"]),
        ("--fused append --q-scale divide", &["--q-fp8"]),
        ("--fused append --backward", &["--fused append", "gradient"]),
        ("--fused append --v-head-dim 3", &["--v-head-dim", "3"]),
        ("--fused append --cache fp8 --dtype f32", &["--fused append", "f32"]),
        ("--part last --rotary-dim 64", &["--part"]),
        ("--k-head-dim 16 --rotary-dim 32", &["--k-head-dim", "32"]),
        ("--fused mla --norm weight_after --rotary-dim 32", &["--norm", "k_head_dim"]),
    ] {
        shell.run(&[&["run"], &SMALL[..], &words(options)].concat()).fails(2, parts);
    }
    shell.run(&["run", "--model", "llama-3.1-8b", "--fused", "mla"]).fails(2, &["--fused", "latent", "--head-dim"]);
    shell.run(&["bench", "--backward"]).fails(2, &["--backward", "--fused"]);
    shell
        .run(&["prewarm", "--for", "transformers", "--model", "m", "--fused", "qk-norm"])
        .fails(2, &["--for", "--fused"]);
    assert!(shell.entries().is_empty(), "nothing was compiled");
}

/// A configuration of a small model.
fn config(shell: &Shell, model_type: &str, more: &Value) -> String {
    let mut config = json!({
        "model_type": model_type, "hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64,
        "rope_theta": 10_000.0, "max_position_embeddings": 2048, "torch_dtype": "bfloat16",
    });
    let fields = more.as_object().expect("an object").clone();
    config.as_object_mut().expect("an object").extend(fields);
    shell.file(&format!("{model_type}.json"), &config.to_string())
}

/// Every call of `ropejit.patch("transformers")` is found by a process that may compile nothing: those of the program, and those
/// by which PyTorch's order is made sure of.
#[test]
fn a_prewarm_for_transformers_prepares_the_norms_of_a_model() {
    let shell = Shell::new();
    for (model_type, norm) in [("qwen3", "weight_after"), ("gemma3_text", "one_plus_weight"), ("lfm2", "weight_after")]
    {
        let model = config(&shell, model_type, &json!({}));
        let prewarm =
            ["prewarm", "--for", "transformers", "--model", &model, "--tokens", "64", "--no-tune", "--backward"];
        let done = shell.json(&prewarm);
        let prepared = done["prepared"].as_array().expect("an array");
        assert!(prepared.iter().any(|one| text(one, "spec").contains(norm)), "{model_type}: {done}");
        assert!(
            prepared.iter().any(|one| !text(one, "spec").contains("norm=")),
            "{model_type}: the rotation alone too"
        );
        assert!(prepared.iter().all(|one| !text(one, "layout").contains("+rest")), "{done}");
        let again = shell.json(&prewarm);
        assert_eq!((stat(&again, "compiles"), stat(&again, "tunings")), (0, 0), "{model_type}");
        let call = ["--fused", "qk-norm", "--table", "same", "--table-width", "full", "--rounding", "per-op"];
        for direction in [&[][..], &["--bhsd"], &["--backward"], &["--backward", "--bhsd"]] {
            for tokens in ["64", "1", "13", "700"] {
                let run = ["run", "--model", &model, "--tokens", tokens, "--tuning", "frozen"];
                let report = shell.json(&[&run[..], &call, direction].concat());
                assert!(text(&report, "spec").contains(&format!("norm={norm}/torch/ieee")), "{report}");
                assert_eq!((text(&report, "origin"), stat(&report, "compiles")), ("disk", 0), "{report}");
            }
        }
        let other = ["run", "--model", &model, "--tokens", "64", "--tuning", "frozen", "--fused", "qk-norm"];
        let missing = shell.run(&other);
        assert_eq!(missing.code, 1, "{}", missing.stdout);
        missing.says(&["not in the cache", "--fused qk-norm", &format!("--norm {norm}/torch/ieee")]);
    }
    let page = shell.ok(&["model", &config(&shell, "qwen3", &json!({}))]).stdout;
    assert!(page.contains("weight_after of q and k"), "{page}");
    // Where it is an option, and where pairs leave as halves.
    let prepares = |model: &str| {
        let done = shell.json(&["prewarm", "--for", "transformers", "--model", model, "--tokens", "8", "--no-tune"]);
        let specs = done["prepared"].as_array().expect("an array").iter();
        specs.map(|one| text(one, "spec").to_owned()).collect::<Vec<String>>()
    };
    let with = config(&shell, "glm4_moe", &json!({"use_qk_norm": true}));
    assert!(prepares(&with).iter().any(|spec| spec.contains("d64[..32]") && spec.contains("norm=weight_after")));
    let without = config(&shell, "glm4_moe", &json!({}));
    assert!(prepares(&without).iter().all(|spec| !spec.contains("norm=")));
    let latent =
        config(&shell, "deepseek_v3", &json!({"qk_rope_head_dim": 32, "qk_nope_head_dim": 64, "kv_lora_rank": 96}));
    assert!(prepares(&latent).iter().all(|spec| spec.contains(" d32 h4/1 deinterleave ")));
    let mla = shell.json(&["run", "--model", &latent, "--fused", "mla", "--tokens", "9", "--tuning", "never"]);
    let line =
        "bf16 d96[..32] h4/1 deinterleave once table=f32/half pos=implicit part=last k_dim=32 append=slot_mapping,v=96";
    assert_eq!(text(&mla, "spec"), line);
}

#[test]
fn a_prewarm_for_a_gpu_has_its_reciprocal_root() {
    let shell = Shell::new();
    if !nvrtc(&shell, "a_prewarm_for_a_gpu_has_its_reciprocal_root") {
        return;
    }
    let model = config(&shell, "qwen3", &json!({}));
    let done = shell.json(&[
        "prewarm",
        "--for",
        "transformers",
        "--model",
        &model,
        "--tokens",
        "1",
        "--no-tune",
        "--arch",
        "sm_90",
    ]);
    let specs: Vec<&str> = done["prepared"].as_array().expect("an array").iter().map(|one| text(one, "spec")).collect();
    assert!(specs.iter().any(|spec| spec.ends_with(" norm=weight_after/torch/approx")), "{specs:?}");
    assert!(specs.iter().all(|spec| !spec.contains("ieee")), "{specs:?}");
}

#[test]
fn a_lock_file_holds_what_is_fused() {
    let shell = Shell::new();
    let path = shell.at("rope.lock").display().to_string();
    let lock = ["--tokens", "8", "--lock", &path];
    let append = words("--fused append --norm weight_after --cache fp8 --q-fp8 --per-head q");
    let norm = words("--fused qk-norm --norm no_weight/tree/ieee --after-rope");
    for options in [&append, &norm] {
        shell.ok(&[&["prewarm"], &SMALL[..], &lock, options].concat());
    }
    let written = fs_err::read_to_string(&path).expect("written");
    for spec in [
        "norm=weight_after/torch/ieee append=slot_mapping,v=64,cache=e4m3/divide,q=e4m3/divide/head | ",
        "norm=no_weight/tree/ieee/after_rope | ",
    ] {
        assert_eq!(written.lines().filter(|line| line.contains(spec) && line.contains(" l1 ")).count(), 1, "{written}");
    }
    let read = Lock::parse("f", &written, ropejit::families::families()).expect("reads");
    assert_eq!(read.to_string(), written);
    assert!(shell.ok(&["prewarm", "--check", &path]).stdout.contains("holds for"));
    let there = [("ROPEJIT_LOCK", Some(&*path)), ("ROPEJIT_TUNING", Some("frozen"))];
    for options in [&append, &norm] {
        let run = shell.run_with(&[&["run"], &SMALL[..], &["--tokens", "8"], options].concat(), &there);
        assert_eq!(run.code, 0, "{}", run.stderr);
        let why = [&["inspect", "why"], &SMALL[..], &["--tokens", "8"], options].concat();
        let page = shell.run_with(&why, &there).stdout;
        assert!(page.contains("lock      ") && page.contains(&format!("{path}:")), "{page}");
    }
}

#[test]
fn inspect_tells_fused_entries_apart() {
    let shell = Shell::new();
    let small = |command: &[&'static str], options: &str| -> Value {
        let options: Vec<String> = options.split(' ').map(str::to_owned).collect();
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        shell.json(&[command, &SMALL[..], &["--tokens", "8"], &options].concat())
    };
    small(&["run"], "--tuning blocking --fused append --cache fp8");
    let listed = shell.json(&["inspect", "list", "--kind", "choice"]);
    let choice = &listed["entries"][0];
    assert!(text(choice, "spec").ends_with("append=slot_mapping,v=64,cache=e4m3/divide"), "{choice}");
    let shown = shell.json(&["inspect", "show", text(choice, "key")]);
    assert!(text(&shown, "spec").ends_with("cache=e4m3/divide"), "{shown}");
    let candidates = shown["candidates"].as_array().expect("an array");
    assert!(candidates.len() > 1 && candidates.iter().all(|c| c["bit_equal"] == true), "{shown}");
    assert_eq!(small(&["inspect", "why"], "--fused append --cache fp8")["hit"], true);
    let fields = |options: &str| -> Vec<String> {
        let answer = small(&["inspect", "why"], options)["answers"][0].clone();
        let all = answer["choice"]["nearest"]["differences"].as_array().cloned().unwrap_or_else(|| panic!("{answer}"));
        all.iter().map(|d| text(d, "field").to_owned()).collect()
    };
    assert_eq!(fields("--fused append --cache fp8 --scale multiply"), ["spec.append.cache.scale"]);
    let with_norm = fields("--fused append --cache fp8 --norm weight_after");
    assert_eq!(with_norm, ["spec.norm.flavour", "spec.norm.order", "spec.norm.rsqrt"]);
    let report = shell.ok(&["inspect", "report"]).stdout;
    assert!(report.contains("cache=e4m3/divide"), "{report}");
}

#[test]
fn bench_measures_what_is_fused_against_a_copy_of_all_its_bytes() {
    let shell = Shell::new();
    let picture = shell.at("bench.svg").display().to_string();
    let small = [&["bench"], &SMALL[..], &["--samples", "3", "--only", "128×1 "]].concat();
    let elements = 128 * 64;
    for (options, bytes, forms) in [
        ("--fused qk-norm --picture", 2 * 6 * elements * 2, 2),
        ("--fused qk-norm --backward --picture", 3 * 6 * elements * 2, 2),
        // q, k and v are read as bf16 and written as fp8; q has no place of its own to write that to.
        ("--fused append --cache fp8 --q-fp8 --picture", 8 * elements * 3, 1),
    ] {
        let report = shell.json(&[&small[..], &words(options), &[&*picture]].concat());
        let cases = report["cases"].as_array().expect("cases");
        assert_eq!(cases.len(), forms, "{options}");
        for case in cases {
            let number = |name: &str| case[name].as_f64().expect("a number");
            assert_eq!(case["bytes"].as_u64(), Some(bytes), "{options}");
            assert!((number("of_copy") - number("copy_us") / number("device_us")).abs() < 1e-9);
            assert!(case["landscape"].as_array().is_some_and(|l| l.len() > 1), "{case}");
            // The gradient is two launches, and none of them is bare.
            assert_eq!(case["bare_us"].is_null(), options.contains("--backward"), "{case}");
            let spec: RopeSpec = text(case, "spec").parse().expect("a spec");
            assert!(spec.is_fused() && spec.dtype == DType::BF16);
        }
        assert!(fs_err::read_to_string(&picture).expect("drawn").ends_with("</svg>\n"));
    }
    let norm = Norm::new(Flavour::WeightAfter).with_rsqrt(Rsqrt::Ieee);
    let usual = RopeSpec::new(DType::BF16, 128, 32, 8).with_norm(norm).with_append(Append::new(128));
    let one =
        ["bench", "--fused", "append", "--norm", "weight_after", "--only", "1x1 ", "--samples", "3", "--table", "f32"];
    assert_eq!(text(&shell.json(&one)["cases"][0], "spec"), usual.to_string(), "Qwen3-8B's attention");
}
