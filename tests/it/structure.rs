//! The house's rules: no circles, dependencies point down only, the service knows no family, unsafe has one home.

use crate::imports::Sources;

/// The crates beside the library: their folder, how they call themselves, and the files that may have unsafe blocks.
const BESIDE: [(&str, &str, &[&str]); 2] = [
    ("candle/src", "ropejit_candle", &["launch.rs"]),
    ("capi/src", "ropejit_c", &["args.rs", "calls.rs", "pointers.rs", "view.rs"]),
];

fn library() -> Sources {
    Sources::read("src", "ropejit")
}

#[test]
fn no_files_name_each_other_in_a_circle() {
    assert_eq!(library().circles(), Vec::<Vec<String>>::new(), "src");
    assert_eq!(Sources::read("python/src", "_ropejit").circles(), Vec::<Vec<String>>::new(), "python/src");
    for (folder, name, _) in BESIDE {
        assert_eq!(Sources::read(folder, name).circles(), Vec::<Vec<String>>::new(), "{folder}");
    }
}

#[test]
fn dependencies_point_down() {
    // For each part of the house, what it may name beside itself. The longest name of a part that fits counts.
    let allowed: &[(&str, &[&str])] = &[
        ("error", &[]),
        ("system", &["error"]),
        ("rope", &["error"]),
        ("service", &["error", "system"]),
        ("service/tune", &[]),
        ("service/digest", &[]),
        ("service/stated", &[]),
        ("service/bucket", &["error"]),
        ("service/key", &["error", "service"]),
        ("service/device", &["error", "service/digest", "system"]),
        ("service/store", &["error", "service/key", "service/digest", "system"]),
        ("families", &["error", "service", "system"]),
        ("families/rope", &["error", "service", "rope"]),
        // The facade of names that others use.
        ("jit", &["service", "families"]),
        // What carries a cache to other machines knows what is in it; no engine knows that.
        ("remote", &["error", "service", "families", "system"]),
        // The command sees what everybody sees, and none of it sees the command.
        ("cli", &["error", "families", "jit", "remote", "rope", "service", "system"]),
    ];
    let part = |name: &str| {
        let inside =
            |part: &&str| name.strip_prefix(*part).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        allowed.iter().map(|(part, _)| *part).filter(inside).max_by_key(|part| part.len())
    };
    let sources = library();
    for (from, named) in sources.edges() {
        let from = from.join("/");
        let own = part(&from).unwrap_or_else(|| panic!("{from} has no rule"));
        let (_, may) = allowed.iter().find(|(part, _)| *part == own).expect("found above");
        for to in named {
            let to = to.join("/");
            let there = part(&to).unwrap_or_else(|| panic!("{to} has no rule"));
            let whole = there.split('/').next().unwrap_or_default();
            // The list of families names them, and the service as a whole all of its parts.
            let listed = own == whole && !own.contains('/');
            let below = may.contains(&there) || may.contains(&whole);
            assert!(own == there || below || listed, "src/{from} names {to}, which is not below it");
        }
    }
    for (name, code) in sources.files.values() {
        if name.starts_with("cli/") {
            assert!(!code.contains("crate::") && !code.contains("#[path"), "{name} reaches into the library");
        }
    }
}

/// A family is added without a word about it anywhere below: the service names none.
#[test]
fn the_service_names_no_family() {
    for (module, (name, code)) in &library().files {
        if module.first().is_none_or(|part| part != "service") {
            continue;
        }
        // The project's own name has the family's in it, and so has the extension of its entries' files.
        let rest = code.to_lowercase().replace("ropejit", "").replace("\"rope\"", "\"\"").replace(".rope\"", "\"");
        for line in rest.lines() {
            assert!(!line.contains("rope"), "src/{name} names a family: {line}");
        }
    }
}

/// So that an empty variable is an unset one everywhere, and one page lists them all.
#[test]
fn the_environment_is_read_in_one_place() {
    let beside = BESIDE.map(|(folder, name, _)| (folder, name));
    for (folder, name) in [("src", "ropejit"), ("python/src", "_ropejit")].into_iter().chain(beside) {
        for (file, code) in Sources::read(folder, name).files.values() {
            let reads = code.contains("env::var") || code.contains("env::vars");
            let home = folder == "src" && file == "system/environment.rs";
            assert_eq!(reads, home, "{folder}/{file} reads the environment");
        }
    }
}

#[test]
fn what_is_pure_touches_nothing() {
    let pure =
        ["rope", "service/tune", "service/stated", "service/bucket", "service/digest", "service/key", "service/lock"];
    for (module, (name, code)) in &library().files {
        let module = module.join("/");
        if pure.iter().any(|part| module == *part || module.starts_with(&format!("{part}/"))) {
            for outside in ["cudarc", "libloading", "std::fs", "fs_err", "std::env", "std::process", "std::thread"] {
                assert!(!code.contains(outside), "src/{name} is pure, but names {outside}");
            }
        }
    }
}

/// In the devices, and where a family hands a launch what it promises.
#[test]
fn unsafe_has_one_home() {
    let homes = [
        "service/device/",
        "families/rope/launch.rs",
        "families/rope/reference_kernel/",
        "families/rope/ahead_of_time.rs",
        "families/template/call.rs",
    ];
    let all = [("src", "ropejit", &homes[..])].into_iter().chain(BESIDE);
    for (folder, name, homes) in all {
        for (file, code) in Sources::read(folder, name).files.values() {
            let blocks = code.lines().filter(|l| l.contains("unsafe {")).count();
            if blocks == 0 || file.starts_with("cli/workload/") {
                continue;
            }
            assert!(homes.iter().any(|home| file.starts_with(home)), "{folder}/{file} has unsafe blocks");
            let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(folder).join(file);
            let text = fs_err::read_to_string(path).expect("text");
            let reasons = text.lines().filter(|l| l.trim_start().starts_with("// SAFETY:")).count();
            assert!(reasons >= blocks, "{folder}/{file}: {blocks} unsafe blocks, {reasons} reasons");
        }
    }
}
