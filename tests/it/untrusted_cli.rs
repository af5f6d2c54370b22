//! What the command meets from places and in files that nobody has vouched for: libraries to load, configurations to read and
//! to print. Needs a C compiler for the libraries.

use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cli::{Ended, RUN, SMALL, Shell};

/// Of a kernel that has to be compiled.
fn prewarm() -> Vec<&'static str> {
    [&["prewarm"], &SMALL[..], &["--dtype", "f32", "--tokens", "1", "--arch", "sm_90", "--no-tune"]].concat()
}

fn mode(path: &Path, mode: u32) {
    fs_err::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("set");
}

/// A folder below the shell's that nobody else can change.
fn folder(shell: &Shell, name: &str) -> PathBuf {
    mode(shell.folder.path(), 0o700);
    let mut at = shell.folder.path().to_owned();
    for part in Path::new(name) {
        at.push(part);
        if !at.is_dir() {
            fs_err::create_dir(&at).expect("made");
        }
        mode(&at, 0o755);
    }
    at
}

/// A library of this file that leaves the file `ran` when it is loaded.
fn plant(shell: &Shell, library: &Path) {
    let ran = shell.at("ran").display().to_string();
    let text = format!(
        "#include <stdio.h>\n__attribute__((constructor)) static void f(void) {{ FILE* o = fopen(\"{ran}\", \"w\"); if (o) fclose(o); }}\n"
    );
    let source = shell.file("planted.c", &text);
    let compiled = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(library).arg(source).status();
    assert!(compiled.expect("a C compiler").success());
    mode(library, 0o755);
}

/// Whether the planted library was loaded since the last time this was asked.
fn ran(shell: &Shell) -> bool {
    fs_err::remove_file(shell.at("ran")).is_ok()
}

/// Runs the command in a folder, with nothing of the tester's environment that names where NVRTC is.
fn run_in(shell: &Shell, at: &Path, args: &[&str], environment: &[(&str, &str)]) -> Ended {
    let mut command = shell.command(args);
    for name in
        ["VIRTUAL_ENV", "CONDA_PREFIX", "CUDA_HOME", "CUDA_PATH", "CUDA_ROOT", "ROPEJIT_NVRTC", "LD_LIBRARY_PATH"]
    {
        command.env_remove(name);
    }
    let output = command.current_dir(at).envs(environment.iter().copied()).output().expect("started");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    Ended { code: output.status.code().expect("not killed"), stdout: text(output.stdout), stderr: text(output.stderr) }
}

#[test]
fn nothing_is_loaded_from_the_current_folder_or_above_it() {
    let shell = Shell::new();
    let here = folder(&shell, "a/b");
    for place in [
        ".venv/lib/python3.11/site-packages/nvidia/cu13/lib",
        "a/b/.venv/lib/python3/site-packages/nvidia/cuda_nvrtc/lib",
    ] {
        plant(&shell, &folder(&shell, place).join("libnvrtc.so.13"));
    }
    for place in ["a/b", "a/b/lib64", "a/b/lib", "a/b/lib/python3.11/site-packages/nvidia/cu13/lib"] {
        plant(&shell, &folder(&shell, place).join("libnvrtc.so.13"));
    }
    let nowhere: &[&[(&str, &str)]] = &[
        &[],
        &[("VIRTUAL_ENV", "")],
        &[("VIRTUAL_ENV", ".")],
        &[("VIRTUAL_ENV", "../../.venv")],
        &[("CONDA_PREFIX", ".")],
        &[("CUDA_HOME", "")],
        &[("CUDA_HOME", "."), ("CUDA_PATH", ".."), ("CUDA_ROOT", "../b")],
        &[("ROPEJIT_NVRTC", "")],
        &[("ROPEJIT_NVRTC", "libnvrtc.so.13")],
        &[("ROPEJIT_NVRTC", "./libnvrtc.so.13")],
    ];
    for environment in nowhere {
        for args in [vec!["doctor"], prewarm()] {
            let ended = run_in(&shell, &here, &args, environment);
            assert!(!ran(&shell), "{environment:?}: {}{}", ended.stdout, ended.stderr);
        }
    }
    let relative = run_in(&shell, &here, &prewarm(), &[("ROPEJIT_NVRTC", "./libnvrtc.so.13")]);
    relative.fails(1, &["ROPEJIT_NVRTC: ./libnvrtc.so.13", "its path is not absolute (name it from / on)"]);
    // The same file is loaded where somebody says that it should be: the trap is sharp.
    let file = shell.at("a/b/libnvrtc.so.13").display().to_string();
    let _ = run_in(&shell, &here, &prewarm(), &[("ROPEJIT_NVRTC", &file)]);
    assert!(ran(&shell));
}

#[test]
fn a_library_that_others_can_change_is_not_loaded_and_named_with_the_cure() {
    let shell = Shell::new();
    let environment = folder(&shell, "env");
    let libraries = folder(&shell, "env/lib/python3.12/site-packages/nvidia/cu13/lib");
    let library = libraries.join("libnvrtc.so.13");
    plant(&shell, &library);
    let at = folder(&shell, "elsewhere");
    let named = environment.display().to_string();
    let run = || run_in(&shell, &at, &prewarm(), &[("VIRTUAL_ENV", &named)]);
    // Whether the machine has an NVRTC of its own, which then serves, decides how a refusal is told.
    for (path, bad, good) in [(&library, 0o757, 0o755), (&libraries, 0o777, 0o755), (&environment, 0o757, 0o755)] {
        mode(path, bad);
        let refused = run();
        assert!(!ran(&shell), "{}", path.display());
        refused.says(&[
            &format!("{}: {}: anybody can write to it (mode {bad:o})", library.display(), path.display()),
            &format!("chmod o-w '{}'", path.display()),
        ]);
        let named = run_in(&shell, &at, &prewarm(), &[("ROPEJIT_NVRTC", &library.display().to_string())]);
        assert!(!ran(&shell), "{}", path.display());
        named.fails(1, &["ROPEJIT_NVRTC: ", "cannot be used as NVRTC", &format!("chmod o-w '{}'", path.display())]);
        mode(path, good);
    }
    // Through a link into such a folder.
    let open = folder(&shell, "open");
    fs_err::rename(&library, open.join("libnvrtc.so.13")).expect("moved");
    symlink(open.join("libnvrtc.so.13"), &library).expect("linked");
    mode(&open, 0o777);
    assert!(!run().stderr.is_empty() && !ran(&shell));
    mode(&open, 0o755);
    let _ = run();
    assert!(ran(&shell), "with good modes it is loaded: the trap is sharp");
}

#[test]
fn nothing_of_a_configuration_is_obeyed_by_a_terminal() {
    let shell = Shell::new();
    let bad = "\\u001b]0;owned\\u0007\\u009b2J\\u202e\\r";
    let good = format!(
        r#"{{"model_type": "llama{bad}", "hidden_size": 256, "num_attention_heads": 4, "rope_theta": 1e4,
            "max_position_embeddings": 64, "layer_types": ["full{bad}"]}}"#
    );
    let wrong = [
        good.clone(),
        good.replace("256", &format!("\"{bad}\"")),
        good.replace("1e4", &format!("{{\"{bad}\": \"{bad}\"}}")),
        format!(
            r#"{{"model_type": "{bad}", "rope_scaling": {{"rope_type": "{bad}"}}, "hidden_size": 8, "num_attention_heads": 1}}"#
        ),
        format!("\u{1b}[31m{bad}"),
        "\u{1b}]0;x\u{7}".into(),
    ];
    let name = "\u{1b}[31mred\u{9b}0m.json";
    let mut printed = String::new();
    for text in wrong {
        let config = shell.file(name, &text);
        for args in
            [&["model", &config][..], &["model", &config, "--json"], &["run", "--model", &config, "--tokens", "1"]]
        {
            let output = shell.command(args).output().expect("started");
            for stream in [output.stdout, output.stderr] {
                let stream = String::from_utf8(stream).expect("text");
                let obeyed = |c: char| c.is_control() && c != '\n';
                assert!(!stream.contains(obeyed) && !stream.contains('\u{202e}'), "{args:?}: {stream:?}");
                printed += &stream;
            }
        }
    }
    // Data, for people and as JSON, which gives it back as it was.
    let cache = shell.at("\u{9b}2J\u{202e}\u{1b}[31m").display().to_string();
    let path = |more: &[&str]| {
        let output = shell.command(&[&["inspect", "path"], more].concat()).env("ROPEJIT_CACHE_DIR", &cache).output();
        String::from_utf8(output.expect("started").stdout).expect("text")
    };
    let (plain, json) = (path(&[]), path(&["--json"]));
    assert!(!(plain.clone() + &json).contains(['\u{1b}', '\u{9b}', '\u{202e}']), "{plain:?} {json:?}");
    assert!(json.contains("\\u009b2J\\u202e\\u001b"), "{json}");
    let document: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert!(document.to_string().contains(&serde_json::json!(cache).to_string()), "{json}");
    assert!(printed.contains("\\u{1b}") && printed.contains("\\u{9b}"), "{printed}");
}

#[test]
fn what_is_no_regular_file_is_never_waited_for() {
    let shell = Shell::new();
    let pipe = shell.at("pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).expect("a pipe");
    let linked = folder(&shell, "model").join("config.json");
    symlink("/dev/zero", &linked).expect("linked");
    let (pipe, model) = (pipe.display().to_string(), shell.at("model").display().to_string());
    let refused = "not a regular file";
    for endless in [&pipe, &model, "/dev/zero"] {
        shell.run(&["model", endless]).fails(2, &["CONFIG.json", refused]);
        shell.run(&["run", "--model", endless, "--tokens", "1"]).fails(2, &["--model", refused]);
    }
    for endless in [&pipe, "/dev/zero"] {
        shell.run_with(&RUN, &[("ROPEJIT_LOCK", Some(endless))]).fails(1, &[endless, refused]);
        shell.run(&["template", "check", endless]).fails(1, &[endless, refused]);
        let nvrtc = shell.run_with(&prewarm(), &[("ROPEJIT_NVRTC", Some(endless))]);
        nvrtc.fails(1, &["ROPEJIT_NVRTC", endless]);
        shell.run_with(&["doctor", "--require", "host-compiler"], &[("CXX", Some(endless))]).says(&["CXX", endless]);
    }
    // A kernel's source is named by its description.
    let scale = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/templates/scale.toml");
    let description = fs_err::read_to_string(scale).expect("text").replace("\"scale.cu\"", "\"pipe\"");
    let description = shell.file("scale.toml", &description);
    shell.run(&["template", "check", &description]).fails(1, &[&pipe, refused, "names it as its source"]);
    let large = shell.at("large.json");
    fs_err::File::create(&large).and_then(|file| file.set_len(1 << 40)).expect("made");
    shell.run(&["model", &large.display().to_string()]).fails(2, &["it has more than 16777216 bytes"]);
}

/// Where programs may not be run from `TMPDIR`, another folder is taken. Only where the tester's system has such a folder.
#[cfg(target_os = "linux")]
#[test]
fn a_folder_for_temporary_files_that_runs_nothing_is_passed_over() {
    use std::io::Write as _;
    let mounts = fs_err::read_to_string("/proc/self/mounts").expect("mounted");
    let mut noexec = mounts.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split(' ').collect();
        let there = fields.get(3)?.split(',').any(|option| option == "noexec");
        there.then_some((*fields.get(1)?).to_owned())
    });
    let usable = |folder: &String| tempfile::tempdir_in(folder).is_ok();
    let Some(folder) = noexec.find(usable) else {
        writeln!(std::io::stderr(), "SKIPPED: no file system here is mounted noexec and can be written to")
            .expect("written");
        return;
    };
    let shell = Shell::new();
    let run = shell.run_with(
        &[&RUN[..], &["--tuning", "never"]].concat(),
        &[("TMPDIR", Some(&folder)), ("ROPEJIT_LOG", Some("debug"))],
    );
    assert_eq!(run.code, 0, "{}", run.stderr);
    run.says(&[&format!("is used in place of {folder}: its file system is mounted noexec")]);
    assert!(run.stdout.contains("compiled"), "{}", run.stdout);
}
