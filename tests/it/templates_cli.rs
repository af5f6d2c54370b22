//! `ropejit template`, `ropejit test` and what other commands know of kernels of the user's own.

use std::path::Path;

use serde_json::Value;

use crate::cli::{Ended, Shell};
use crate::templates::data;

fn file(name: &str) -> String {
    data().join(name).display().to_string()
}

/// `scale` with other texts in its files, in the shell's folder.
fn scale(shell: &Shell, toml: &[(&str, &str)], cu: &[(&str, &str)]) -> String {
    let edited = |name: &str, edits: &[(&str, &str)]| {
        let text = fs_err::read_to_string(data().join(name)).expect("text");
        edits.iter().fold(text, |text, (from, to)| {
            assert!(text.contains(from), "{from}");
            text.replace(from, to)
        })
    };
    shell.file("scale.cu", &edited("scale.cu", cu));
    shell.file("scale.toml", &edited("scale.toml", toml))
}

fn json(ended: &Ended) -> Value {
    serde_json::from_str(&ended.stdout).unwrap_or_else(|e| panic!("{e}: {}", ended.stdout))
}

#[test]
fn check_runs_every_candidate() {
    let shell = Shell::new();
    let done = shell.run(&["template", "check", &file("scale.toml"), "--json"]);
    assert_eq!((done.code, done.stderr.as_str()), (0, ""), "{}", done.stdout);
    let found = json(&done)["checked"].as_array().expect("a list").clone();
    let specs: Vec<_> = found.iter().map(|f| f["spec"].as_str().expect("text")).collect();
    assert_eq!(specs, ["scale dtype=f32", "scale dtype=bf16"]);
    assert!(found.iter().all(|f| f["same"] == 4 && f["candidates"] == 4));
    assert!(!shell.cache().exists(), "nothing is kept");
}

#[test]
fn check_says_what_is_wrong_and_fails() {
    let shell = Shell::new();
    let path =
        scale(&shell, &[("n = [1, 1000]", "n = 1000")], &[("j < n", "j < n + 1"), ("i + VEC <= n", "i + VEC < n")]);
    let done = shell.run(&["template", "check", &path, "--spec", "dtype=f32"]);
    assert_eq!(done.code, 1);
    assert!(done.stdout.contains("scale dtype=f32") && done.stdout.contains("wrong: 4"), "{}", done.stdout);
    let what = "threads=256 vec=1: writes outside of 'y': byte 0 past its end, with factor = 1.5, n = 1000";
    assert!(done.stderr.contains(what), "{}", done.stderr);
    assert!(
        done.stderr.contains("not compared: the default has no output")
            || done.stderr.matches("outside of").count() == 4
    );
    assert!(done.stderr.contains("error: candidates that must not serve: 4\nhint: "), "{}", done.stderr);
}

#[test]
fn descriptions_specs_and_sizes_that_are_wrong_are_named() {
    let shell = Shell::new();
    let path = scale(&shell, &[("bucket = \"n\"", "buckets = \"n\"")], &[]);
    let done = shell.run(&["template", "check", &path]);
    assert_eq!(
        (done.code, done.stderr),
        (
            1,
            format!(
                "error: {path}:23: [launch] buckets: unknown key\nhint: known here: grid, block, shared, bucket, options\n"
            )
        )
    );
    let scale = file("scale.toml");
    for (args, error) in [
        (&["--spec", "dtype=f8"][..], "error: --spec dtype: 'f8' is not one of f32, bf16\n"),
        (&["--spec", "type=f32"], "error: --spec type: scale has no such spec\nhint: [spec] has dtype\n"),
        (
            &["--size", "m=1"],
            "error: --size m: is not what scale's bucket is made of\nhint: the size of a call is that of 'n'\n",
        ),
    ] {
        let all = [&["template", "check", &scale][..], args].concat();
        let done = shell.run(&all);
        assert_eq!((done.code, done.stderr.as_str()), (2, error), "{args:?}");
    }
    for args in [&["--spec", "dtype"][..], &["--size", "n"], &["--size", "n=0"], &["--size", "n=x"]] {
        let done = shell.run(&[&["template", "check", &scale][..], args].concat());
        assert_eq!(done.code, 2, "{args:?}: {}", done.stderr);
    }
    let done = shell.run(&["prewarm", "--spec", "dtype=f32", "--model", "llama-3.1-8b"]);
    assert_eq!(done.stderr, "error: --spec: is of a kernel of your own\nhint: name its .toml with --template\n");
}

#[test]
fn bench_measures_all_candidates() {
    let shell = Shell::new();
    let done =
        shell.run(&["template", "bench", &file("scale.toml"), "--spec", "dtype=f32", "--size", "n=5000", "--json"]);
    assert_eq!(done.code, 0, "{}", done.stderr);
    let measured = &json(&done)["measured"][0];
    assert_eq!((&measured["size"], &measured["bytes"]), (&8192.into(), &(8192 * 8).into()));
    let candidates = measured["candidates"].as_array().expect("a list");
    assert_eq!(candidates.len(), 4);
    assert!(candidates.iter().all(|c| c["us"].as_f64().is_some_and(|us| us > 0.0)), "{candidates:?}");
    assert_eq!(candidates.iter().filter(|c| c["note"].as_str().is_some_and(|n| n.contains("chosen"))).count(), 1);
}

#[test]
fn a_prewarm_fills_the_cache_and_a_lock_file_decides() {
    let shell = Shell::new();
    let prewarm = ["prewarm", "--template", &file("scale.toml"), "--spec", "dtype=f32", "--size", "n=1,1000"];
    let lock = shell.at("scale.lock").display().to_string();
    let done = shell.run(&[&prewarm[..], &["--lock", &lock, "--json"]].concat());
    assert_eq!(done.code, 0, "{}", done.stderr);
    let prepared = json(&done)["prepared"].as_array().expect("a list").clone();
    assert_eq!(prepared.iter().map(|p| p["tokens"].as_u64()).collect::<Vec<_>>(), [Some(1), Some(1024)]);
    assert!(prepared.iter().all(|p| p["model"] == "scale dtype=f32" && p["tuned"] == true));
    let again = shell.run(&prewarm);
    assert!(again.stderr.contains("nothing to do"), "{}", again.stderr);
    // Another choice in the file, and another cache: what the file says is compiled, not tuned.
    let text = fs_err::read_to_string(&lock).expect("text");
    let lines: Vec<_> = text.lines().filter(|l| l.starts_with("scale dtype=f32 | x:16 y:16 | ")).collect();
    assert_eq!(lines.len(), 2, "{text}");
    let text = text.replace(lines[1], "scale dtype=f32 | x:16 y:16 | 1024 = threads=64 vec=4");
    fs_err::write(&lock, text).expect("written");
    let other = shell.at("other").display().to_string();
    let environment = [("ROPEJIT_LOCK", Some(lock.as_str())), ("ROPEJIT_CACHE_DIR", Some(other.as_str()))];
    let done = shell.run_with(&[&prewarm[..], &["--json"]].concat(), &environment);
    let document = json(&done);
    assert_eq!(
        (&document["prepared"][1]["variant"], &document["stats"]["tunings"]),
        (&"threads=64 vec=4".into(), &0.into())
    );
    assert_eq!(shell.run(&["prewarm", "--check", &lock]).code, 0);
    // The templates of the crate's own kernels do not bear on it: what was chosen stays when other calls are added.
    let text = fs_err::read_to_string(&lock).expect("text");
    let stale = text.replace(ropejit::jit::render::templates_digest(), &"0".repeat(64));
    assert_ne!(stale, text);
    fs_err::write(&lock, stale).expect("written");
    assert_eq!(shell.run(&["prewarm", "--check", &lock]).code, 0);
    let other =
        ["prewarm", "--template", &file("scale.toml"), "--spec", "dtype=f32", "--size", "n=64", "--lock", &lock];
    let added = shell.run(&other);
    assert!(added.code == 0 && !added.stderr.contains("left out"), "{}", added.stderr);
    let more = fs_err::read_to_string(&lock).expect("text");
    assert!(text.lines().all(|line| more.contains(line)) && more.contains(" | 64 = "), "{more}");
}

#[test]
fn inspect_knows_them() {
    let shell = Shell::new();
    let which = ["--template", &file("scale.toml"), "--spec", "dtype=f32", "--size", "n=1000"];
    let why = [&["inspect", "why"][..], &which, &["--json"]].concat();
    let before = json(&shell.run(&why));
    let fill = format!("ropejit prewarm --template {} --spec dtype=f32 --size n=1000", file("scale.toml"));
    assert_eq!((&before["hit"], &before["answers"][0]["hint"]), (&false.into(), &fill.into()));
    assert_eq!(shell.run(&[&["prewarm"][..], &which].concat()).code, 0);
    assert_eq!(json(&shell.run(&why))["hit"], true);
    let list = shell.run(&["inspect", "list"]);
    assert!(list.stdout.contains("scale dtype=f32, layout x:16 y:16"), "{}", list.stdout);
    let key = list.stdout.lines().find(|l| l.contains(" tuned ")).and_then(|l| l.split_whitespace().next());
    let show = shell.run(&["inspect", "show", key.expect("a key")]);
    assert!(show.stdout.contains("family    scale") && show.stdout.contains("threads=64 vec=4"), "{}", show.stdout);
    assert_eq!(shell.run(&["inspect", "report"]).code, 0);
}

/// The Python that the tests of references run with, if there is one with NumPy.
fn python() -> Option<String> {
    let of_environment = std::env::var("VIRTUAL_ENV").ok().map(|folder| format!("{folder}/bin/python"));
    of_environment.into_iter().chain(["python3".to_owned()]).find(|python| {
        let asked = std::process::Command::new(python).args(["-c", "import numpy"]).output();
        asked.is_ok_and(|o| o.status.success())
    })
}

#[test]
fn a_kernel_is_tested_against_its_reference() {
    let Some(python) = python() else {
        eprintln!("SKIPPED: no Python with NumPy");
        return;
    };
    let shell = Shell::new();
    let done = shell.run(&["test", &file("scale.toml"), &file("add_rmsnorm.toml"), "--python", &python, "--json"]);
    assert_eq!(done.code, 0, "{}", done.stderr);
    let outputs = json(&done)["outputs"].as_array().expect("a list").clone();
    assert_eq!(outputs.len(), 2 * 2 + 6 * 3 * 2);
    assert!(outputs.iter().all(|o| o["wrong"] == 0));
    let path = scale(&shell, &[], &[]);
    for (reference, code, error) in [
        ("def scale(x, factor): return x * factor + 1", 1, "'y' number 0 is "),
        ("def scale(x, factor): return [x, x]", 1, "the reference returned 2 outputs, and should return 1: y"),
        ("def scale(x, factor): return {'z': x}", 1, "the reference returned no y"),
        ("def scale(x, factor): return x[:1, None]", 1, "y has the shape [1, 1], and should have [1]"),
        ("def other(): pass", 1, "it has no function scale"),
        ("def scale(x, factor): raise KeyError('a')", 1, "KeyError: 'a'"),
        ("import nothing_of_that_name", 1, "No module named 'nothing_of_that_name'"),
    ] {
        shell.file("reference.py", reference);
        let done = shell.run(&["test", &path, "--spec", "dtype=f32", "--python", &python]);
        assert_eq!(done.code, code, "{reference}");
        assert!(done.stderr.contains(error), "{reference}: {}", done.stderr);
    }
}

#[test]
fn a_log_of_the_compiler_is_said_once() {
    let shell = Shell::new();
    let fault = "#if VEC > 1\n#error not for wide ones\n#else\n#error not for narrow ones\n#endif\nextern";
    let path = scale(&shell, &[], &[("extern", fault)]);
    let kept = shell.at("kept");
    std::fs::create_dir(&kept).expect("made");
    let ropejit = env!("CARGO_BIN_EXE_ropejit");
    let done = std::process::Command::new(ropejit)
        .args(["template", "check", &path, "--spec", "dtype=f32"])
        .env("ROPEJIT_DEVICE", "host")
        .env("TMPDIR", &kept)
        .output()
        .expect("started");
    let error = String::from_utf8_lossy(&done.stderr).into_owned();
    assert_eq!(error.matches("log:\n").count(), 2, "{error}");
    assert_eq!(error.matches("\nsource: ").count(), 2, "{error}");
    assert!(error.contains("2 more candidates do not compile, with a log that is above"), "{error}");
    assert!(error.contains("error: candidates that must not serve: 4\n"), "{error}");
    let sources = std::fs::read_dir(&kept)
        .expect("is there")
        .filter(|e| e.as_ref().is_ok_and(|e| e.path().extension().is_some_and(|extension| extension == "cu")));
    assert_eq!(sources.count(), 2, "one for each log");
}

/// What Python is to run is the user's alone, also where all that a program makes is for everybody.
#[test]
fn what_a_test_writes_follows_no_umask() {
    let shell = Shell::new();
    let modes = shell.at("modes").display().to_string();
    let python = format!(
        "#!/bin/sh\nfor f in \"$(dirname \"$1\")\" \"$1\" \"$4\" \"$4/call.json\" \"$4/x.in\"; do ls -ld \"$f\"; done | cut -c 1-10 > '{modes}'\nexit 3\n"
    );
    let python = shell.file("python.sh", &python);
    std::fs::set_permissions(Path::new(&python), std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("set");
    let ropejit = env!("CARGO_BIN_EXE_ropejit");
    for umask in ["0", "022"] {
        let line = format!("umask {umask} && exec \"$0\" test \"$1\" --spec dtype=f32 --python \"$2\"");
        let done = std::process::Command::new("sh")
            .args(["-c", &line, ropejit, &file("scale.toml"), &python])
            .env("ROPEJIT_DEVICE", "host")
            .output()
            .expect("started");
        let error = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(error.contains("the reference failed"), "{error}");
        let modes = std::fs::read_to_string(&modes).expect("written");
        assert_eq!(modes, "drwx------\n-rw-------\ndrwx------\n-rw-------\n-rw-------\n", "umask {umask}");
    }
}

#[test]
fn what_a_test_lacks_is_named() {
    let shell = Shell::new();
    let path = scale(&shell, &[("reference = \"reference.py:scale\"\n", "")], &[]);
    let done = shell.run(&["test", &path]);
    let hint = "hint: write reference = \"reference.py:function\" under [test], and that file beside it";
    assert_eq!((done.code, done.stderr), (1, format!("error: {path}: [test]: names no reference\n{hint}\n")));
    let missing = shell.at("python").display().to_string();
    let done = shell.run(&["test", &file("scale.toml"), "--spec", "dtype=f32", "--python", &missing]);
    assert_eq!(done.code, 1);
    assert!(done.stderr.starts_with(&format!("error: {missing}: cannot be run: ")), "{}", done.stderr);
    assert!(
        done.stderr.ends_with("hint: install Python 3 with NumPy, or name another with --python\n"),
        "{}",
        done.stderr
    );
    // A Python without NumPy.
    let python = shell.file("nonumpy.sh", "#!/bin/sh\nexec python3 -c 'import sys; sys.modules[\"numpy\"] = None; sys.argv = sys.argv[1:]; exec(open(sys.argv[0]).read())' \"$@\"\n");
    std::fs::set_permissions(Path::new(&python), std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("set");
    let done = shell.run(&["test", &file("scale.toml"), "--spec", "dtype=f32", "--python", &python]);
    assert!(
        done.stderr.contains("NumPy is missing: ") || done.stderr.contains("python3: not found"),
        "{}",
        done.stderr
    );
}
