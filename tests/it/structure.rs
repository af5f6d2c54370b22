//! The house's rules: dependencies point down only, unsafe has one home, no file is two things.

use std::path::{Path, PathBuf};

fn sources() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut folders = vec![root.clone()];
    let mut all = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs_err::read_dir(&folder).expect("readable") {
            let path: PathBuf = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let name = path.strip_prefix(&root).expect("inside").display().to_string();
                all.push((name, fs_err::read_to_string(&path).expect("text")));
            }
        }
    }
    assert!(all.len() > 20, "the sources were not found");
    all
}

/// The text without comments and unit tests, which may name what they like.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or(text);
    text.lines().filter(|l| !l.trim_start().starts_with("//")).flat_map(|l| [l, "\n"]).collect()
}

#[test]
fn dependencies_point_down() {
    // For each part of the house, what it may name of the crate.
    let allowed: &[(&str, &[&str])] = &[
        ("error", &[]),
        ("system", &["error", "system"]),
        ("rope", &["error", "rope"]),
        ("tune", &["tune"]),
        ("jit", &["error", "rope", "jit", "tune"]),
        ("store", &["error", "jit", "store", "system"]),
        ("device", &["error", "rope", "jit", "device", "system"]),
        ("args", &["error", "rope", "device", "args"]),
        ("plan", &["error", "rope", "jit", "device", "args", "plan"]),
        ("engine", &["error", "rope", "jit", "device", "store", "tune", "args", "plan", "engine", "system"]),
    ];
    for (name, text) in sources() {
        let part = name.trim_end_matches(".rs").split('/').next().expect("a name").to_owned();
        let code = code(&text);
        let names = |prefix: &str| {
            let after = |(at, _): (usize, &str)| {
                let rest = &code[at + prefix.len()..];
                rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or("").to_owned()
            };
            code.match_indices(prefix).map(after).collect::<Vec<_>>()
        };
        match part.as_str() {
            "lib" | "bin" => {}
            // Others do not see the library's inside, and neither do they who use it by its name.
            "cli" => assert!(!code.contains("crate::") && !code.contains("#[path"), "{name} reaches into the library"),
            part => {
                let (_, may) = allowed.iter().find(|(p, _)| *p == part).unwrap_or_else(|| panic!("{name} has no rule"));
                for used in names("crate::") {
                    assert!(may.contains(&used.as_str()), "src/{name} uses crate::{used}, which is not below it");
                }
            }
        }
        if matches!(part.as_str(), "rope" | "jit" | "tune") {
            for outside in ["cudarc", "libloading", "std::fs", "fs_err", "std::env", "std::process", "std::thread"] {
                assert!(!code.contains(outside), "src/{name} is pure, but names {outside}");
            }
        }
    }
}

#[test]
fn unsafe_has_one_home() {
    // A unit test may do what a caller would.
    for (name, text) in sources().into_iter().filter(|(name, _)| !name.ends_with("tests.rs")) {
        let blocks = code(&text).lines().filter(|l| l.contains("unsafe {")).count();
        if name.starts_with("device/") {
            let reasons = text.lines().filter(|l| l.trim_start().starts_with("// SAFETY:")).count();
            assert!(reasons >= blocks, "src/{name}: {blocks} unsafe blocks, {reasons} reasons");
        } else {
            let launch = usize::from(name == "plan.rs");
            let workload = if name == "cli/workload.rs" { blocks } else { launch };
            assert_eq!(blocks, workload, "src/{name} has unsafe blocks");
        }
    }
}
