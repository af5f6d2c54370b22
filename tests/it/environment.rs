//! Takes out of the tester's environment what the library, the command and its tables read, before any test runs: a test sets what
//! it needs, for a child. What says where compilers are stays. The tester's umask goes as well: folders that tests make for caches
//! must be ones that the library trusts.

#![allow(unsafe_code)] // an environment is changed before there are threads

/// Set once it is done: a child gets what its test gave it.
const DONE: &str = "ROPEJIT_TEST_ENVIRONMENT";
/// Where compilers are, and what a tester asks of the tests.
const KEPT: [&str; 4] = ["ROPEJIT_NVRTC", "ROPEJIT_REQUIRE_GPU", "ROPEJIT_TEST_EAGER", "ROPEJIT_TEST_BLESS"];
/// What others read: the width of a page, colours, and who writes more than asked for.
const OTHERS: [&str; 8] =
    ["COLUMNS", "LINES", "NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "FORCE_COLOR", "RUST_LOG", "GLIBC_TUNABLES"];

#[used]
#[cfg_attr(target_os = "linux", unsafe(link_section = ".init_array"))]
static BEFORE_MAIN: extern "C" fn() = clean;

extern "C" fn clean() {
    if std::env::var_os(DONE).is_some() {
        return;
    }
    let all: Vec<_> = std::env::vars_os().map(|(name, _)| name).collect();
    for name in all {
        let text = name.to_string_lossy();
        let ours = text.starts_with("ROPEJIT_") && !KEPT.contains(&&*text);
        if ours || OTHERS.contains(&&*text) {
            // SAFETY: the loader runs this before `main`, in the only thread.
            unsafe { std::env::remove_var(&name) };
        }
    }
    // SAFETY: as above. Packs that the tester has installed are not read: there is no such folder.
    unsafe { std::env::set_var("XDG_DATA_HOME", "/nonexistent/data") };
    // SAFETY: as above.
    unsafe { std::env::set_var(DONE, "1") };
    #[cfg(unix)]
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
}

#[test]
#[cfg(target_os = "linux")]
fn nothing_of_the_testers_environment_is_left() {
    let left: Vec<_> = std::env::vars().map(|(name, _)| name).filter(|name| name.starts_with("ROPEJIT_")).collect();
    assert!(left.iter().all(|name| name == DONE || KEPT.contains(&name.as_str())), "{left:?}");
    assert!(std::env::var_os(DONE).is_some());
}
