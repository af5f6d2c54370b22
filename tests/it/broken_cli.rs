//! What every command does where the cache is empty, broken, or cannot be read or written to: no panic, and an error says which
//! file it is and what to do. Needs a C++ compiler.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use crate::cli::{RUN, SMALL, Shell};

/// A cache with a choice and its kernel.
fn filled() -> Shell {
    let shell = Shell::new();
    shell.ok(&[&["prewarm"], &SMALL[..], &["--tokens", "8", "--no-tune"]].concat());
    assert_eq!(shell.entries().len(), 2);
    shell
}

fn replace(path: &Path, by: &[u8]) {
    match path.metadata() {
        Ok(meta) if meta.is_dir() => fs_err::remove_dir_all(path).expect("removed"),
        Ok(_) => fs_err::remove_file(path).expect("removed"),
        Err(_) => {}
    }
    fs_err::write(path, by).expect("written");
}

/// Damages a cache, of which these are the entries.
type Break<'a> = Box<dyn Fn(&Path, &[PathBuf]) + 'a>;

/// Runs every command that reads or writes the cache. What fails names what it is about, and the way out; returns what was run
/// and its exit status.
fn all(what: &str, shell: &Shell, key: &str) -> Vec<(String, i32)> {
    let at = |name: &str| shell.at(name).display().to_string();
    let (page, pack, store) = (at("page.html"), at("out.pack"), format!("file://{}", at("store")));
    let why = [&["inspect", "why"], &SMALL[..], &["--tokens", "8"]].concat();
    let prewarm = [&["prewarm"], &SMALL[..], &["--tokens", "8", "--no-tune"]].concat();
    let commands: [&[&str]; 16] = [
        &["inspect"],
        &["inspect", "list", "--tsv"],
        &["inspect", "show", key],
        &["inspect", "show", key, "--ptx"],
        &why,
        &["inspect", "report"],
        &["inspect", "report", "--html", &page],
        &["inspect", "verify"],
        &["inspect", "path"],
        &["pack", &pack],
        &["push", &store, "--unsigned"],
        &["doctor"],
        &["doctor", "--require", "cache"],
        &RUN,
        &prewarm,
        &["inspect", "gc"],
    ];
    let run = |args: &&[&str]| {
        let ended = shell.run(args);
        let told = format!("{what}, {args:?}, status {}:\n{}", ended.code, ended.stderr);
        assert!((0..=2).contains(&ended.code), "{told}");
        if ended.code != 0 {
            let error = ended.stderr.find("error: ").map_or("", |from| &ended.stderr[from..]);
            let names = [&at("cache"), key, "the cache", "--ptx"].iter().any(|name| error.contains(*name));
            assert!(names && error.contains("hint: "), "{told}");
        }
        (args.join(" "), ended.code)
    };
    commands.iter().map(run).collect()
}

#[test]
fn a_broken_cache_is_told_and_no_command_panics() {
    let source = filled();
    let paths = source.entries();
    let name = |path: &PathBuf| path.strip_prefix(source.cache()).expect("in the cache").to_owned();
    let key = paths[0].file_stem().expect("a key").to_string_lossy()[..12].to_owned();
    let each = |change: fn(usize, Vec<u8>) -> Vec<u8>| -> Break<'_> {
        Box::new(move |_, files| {
            for (i, file) in files.iter().enumerate() {
                replace(file, &change(i, fs_err::read(file).expect("read")));
            }
        })
    };
    let one = |name: &'static str| -> Break<'_> {
        Box::new(move |cache, _| replace(&if name.is_empty() { cache.to_owned() } else { cache.join(name) }, b"x"))
    };
    let cases: [(&str, Break<'_>, &str, i32); 10] = [
        ("cut short", each(|i, data| data[..[40, 0][i]].to_vec()), "inspect verify", 1),
        ("a byte less", each(|_, data| data[..data.len() - 1].to_vec()), "inspect verify", 1),
        ("not an entry", each(|_, data| data.iter().map(|byte| byte ^ 0xa5).collect()), "inspect verify", 1),
        ("a file for the cache", one(""), "inspect", 1),
        ("a file for the version", one("v1"), "inspect", 1),
        ("a file for the choices", one("v1/choice"), "inspect gc", 0),
        ("a file for what is being written", one("v1/tmp"), "inspect verify", 0),
        ("the same, asked", one("v1/tmp"), "doctor --require cache", 1),
        (
            "a folder for each entry",
            Box::new(|_, files| {
                for file in files {
                    fs_err::remove_file(file).expect("removed");
                    fs_err::create_dir(file).expect("made");
                }
            }),
            "inspect verify",
            1,
        ),
        ("no cache", Box::new(|cache, _| fs_err::remove_dir_all(cache).expect("removed")), "inspect", 0),
    ];
    for (what, damage, command, code) in &cases {
        let shell = Shell::new();
        let copied = std::process::Command::new("cp").arg("-a").arg(source.cache()).arg(shell.cache()).status();
        assert!(copied.expect("cp").success());
        let files: Vec<PathBuf> = paths.iter().map(|path| shell.cache().join(name(path))).collect();
        damage(&shell.cache(), &files);
        let ended = all(what, &shell, &key);
        let found = ended.iter().find(|(args, _)| args == command).expect("was run");
        assert_eq!(found.1, *code, "{what}: {command}");
    }
}

#[test]
fn a_cache_that_can_only_be_read_or_not_even_that_is_told() {
    if rustix::process::geteuid().is_root() {
        writeln!(std::io::stderr(), "SKIPPED a_cache_that_can_only_be_read_or_not_even_that_is_told: root may all")
            .expect("written");
        return;
    }
    for (mode, listed) in [(0o500, 0), (0o000, 1)] {
        let shell = filled();
        let key = shell.entries()[0].file_stem().expect("a key").to_string_lossy()[..12].to_owned();
        let version = shell.cache().join("v1");
        let set = |mode| {
            for name in
                ["choice", "artifact", "tmp", "lock"].map(|name| version.join(name)).iter().filter(|f| f.exists())
            {
                fs_err::set_permissions(name, std::fs::Permissions::from_mode(mode)).expect("set");
            }
        };
        set(mode);
        let ended = all(&format!("mode {mode:o}"), &shell, &key);
        set(0o700);
        assert!(ended.contains(&("inspect".into(), listed)), "{mode:o}: {ended:?}");
    }
}

/// A damaged entry: which file, why, once, and what becomes of it.
#[test]
fn what_shows_a_damaged_entry_says_what_becomes_of_it() {
    let shell = filled();
    for path in shell.entries() {
        let mut data = fs_err::read(&path).expect("read");
        *data.last_mut().expect("not empty") ^= 1;
        fs_err::write(&path, data).expect("written");
        let (key, file) = (path.file_stem().expect("a key").to_string_lossy().into_owned(), path.display().to_string());
        let ended = shell.run(&["inspect", "show", &key]);
        ended.fails(1, &[&file, "its digest does not match", "hint: it is never used", "inspect gc"]);
        assert_eq!(ended.stderr.matches(&file).count(), 1, "{}", ended.stderr);
    }
    for path in shell.entries() {
        fs_err::write(&path, b"").expect("written");
    }
    shell.ok(&["inspect", "report"]).says(&["there are no choices", "damaged entries: 2", "inspect gc", "prewarm"]);
}

/// What is wrong is named, and so is the way out.
#[test]
fn what_cannot_be_had_has_a_way_out() {
    let shell = Shell::new();
    let broken = shell.file("config.json", "{\"a\":");
    shell.run(&["model", &broken]).fails(2, &[&broken, "not valid JSON", "hint: ", "config.json"]);
    let missing = shell.at("missing").display().to_string();
    for command in [&["pack", "verify", &missing, "--trust-unsigned"][..], &["inspect", "--pack", &missing]] {
        shell.run(command).fails(1, &[&missing, "cannot be read", "hint: ", "ropejit pack"]);
    }
    for command in [["template", "check"], ["template", "bench"]] {
        shell.run(&[command[0], command[1], &missing]).fails(1, &[&missing, "cannot be read", "hint: ", ".toml"]);
    }
    let ended = shell.run(&["bench", "--only", "nonsense"]);
    ended.fails(2, &["--only", "hint: the shapes are", "1×512 32/8/128"]);
    assert_eq!(ended.stderr.matches("1×512 32/8/128").count(), 1, "{}", ended.stderr);
    let huge = [&["run"], &SMALL[..], &["--tokens", "1073741824"]].concat();
    shell.run(&huge).fails(1, &["out of memory", "hint: ", "--tokens"]);
    // No network: a port that nobody listens on.
    let key = shell.at("ropejit.key").display().to_string();
    let public = shell.ok(&["pack", "keygen", "--key", &key]).stdout;
    let pull = ["pull", "https://127.0.0.1:9/packs", "--pubkey", public.trim()];
    shell.ok(&pull).says(&["WARN no pack was pulled", "127.0.0.1:9", "hint: "]);
    shell.run(&[&pull[..], &["--required"]].concat()).fails(1, &["127.0.0.1:9", "cannot be read", "hint: ", "network"]);
}
