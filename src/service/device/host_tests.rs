use std::os::unix::fs::PermissionsExt as _;

use super::*;

fn executable(path: &Path, text: &str) {
    fs_err::write(path, text).expect("written");
    fs_err::set_permissions(path, std::fs::Permissions::from_mode(0o755)).expect("set");
}

fn private() -> tempfile::TempDir {
    private::folder_in(&std::env::temp_dir(), "ropejit-test-").expect("a folder")
}

#[test]
fn a_compiler_is_searched_for_where_only_the_user_and_root_can_put_one() {
    let (mine, open) = (private(), private());
    executable(&mine.path().join("c++"), "");
    executable(&open.path().join("c++"), "");
    fs_err::set_permissions(open.path(), std::fs::Permissions::from_mode(0o777)).expect("set");
    let find = |named: &str, path: &str| compiler_in(OsStr::new(named), OsStr::new(path)).map_err(|e| e.to_string());
    let (mine, open) = (mine.path().display().to_string(), open.path().display().to_string());
    let found = Ok(PathBuf::from(format!("{mine}/c++")));
    assert_eq!(find("", &mine), found);
    assert_eq!(find("c++", &mine), found);
    assert_eq!(find(&format!("{mine}/c++"), ""), found);
    // The current folder, by an empty part of the path and by relative ones.
    let here = std::env::current_dir().expect("there is one");
    let up: PathBuf = here.components().skip(1).map(|_| "..").collect();
    let relative = format!("{}{mine}", up.display());
    assert!(Path::new(&relative).join("c++").is_file(), "it would be found");
    for path in ["", ":", ".", &relative] {
        assert!(find("", path).expect_err("not searched").starts_with("no C++ compiler"), "{path}");
    }
    let refused = find(&format!("{relative}/c++"), "").expect_err("relative");
    assert!(refused.contains("CXX") && refused.contains("relative to the current folder"), "{refused}");
    let refused = find("", &open).expect_err("others can write there");
    assert!(refused.contains(&open) && refused.contains("anybody can write to it"), "{refused}");
    assert!(refused.contains(&format!("chmod o-w '{open}'")) && refused.contains("hint:"), "{refused}");
}

/// The body of the test below, in a process of its own: the umask and the environment are the process's.
#[test]
fn compiles_for_the_user_alone() {
    if std::env::var_os("ROPEJIT_TEST_SEEN").is_none() {
        return;
    }
    rustix::process::umask(rustix::fs::Mode::empty());
    let text =
        "extern \"C\" void nothing_blocks(const void* const*, const unsigned*, unsigned, unsigned) {}\n".to_owned();
    let source = Source { text, entry: "nothing".into(), options: Vec::new() };
    let binary = Host::open().compile(&source).expect("compiled");
    crate::service::device::load(&Host::open(), &binary, "nothing", &LaunchAttrs::default()).expect("loaded");
    println!("compiled and loaded");
}

#[test]
fn what_is_compiled_is_for_the_user_alone_at_umask_0() {
    let (work, temporary) = (private(), private());
    let (compiler, seen) = (work.path().join("c++"), work.path().join("seen"));
    // Looks at what lies there after every step of the compiler, which is the only one to write there.
    let real = find_compiler().expect("a compiler");
    let text = format!(
        "#!/bin/sh\n'{}' \"$@\" -save-temps=obj; status=$?\nls -lR '{1}' >'{2}'\nfind '{1}' -mindepth 1 -perm /077 >'{2}.open'\nexit $status\n",
        real.display(),
        temporary.path().display(),
        seen.display()
    );
    executable(&compiler, &text);
    let mut command = Command::new(std::env::current_exe().expect("has a path"));
    command.args(["--exact", "service::device::host::tests::compiles_for_the_user_alone", "--nocapture"]);
    let output = command
        .env("CXX", &compiler)
        .env("TMPDIR", temporary.path())
        .env("ROPEJIT_TEST_SEEN", "1")
        .output()
        .expect("runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("compiled and loaded"), "{text}");
    let listing = fs_err::read_to_string(&seen).expect("listed");
    for name in [leftovers::SOURCE, leftovers::LIBRARY, ".o"] {
        assert!(listing.contains(name), "{name} was not there to be looked at: {listing}");
    }
    assert_eq!(fs_err::read_to_string(work.path().join("seen.open")).expect("listed"), "", "{listing}");
}
