use super::*;

fn mode(path: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt as _;
    fs_err::metadata(path).expect("there").permissions().mode() & 0o7777
}

/// The body of the test below, in a process of its own: the umask is the process's.
#[test]
fn under_a_umask() {
    let Ok(umask) = std::env::var("ROPEJIT_TEST_UMASK") else { return };
    rustix::process::umask(rustix::fs::Mode::from_bits_truncate(u32::from_str_radix(&umask, 8).expect("octal")));
    let folder = folder_in(&std::env::temp_dir(), "ropejit-test-").expect("a folder");
    assert_eq!(mode(folder.path()), 0o700);
    let named = folder.path().join("named");
    new_folder(&named).expect("a folder");
    assert_eq!(mode(&named), 0o700);
    let file = file_in(folder.path(), "a-", ".so").expect("a file");
    assert_eq!(mode(file.path()), 0o600);
    let path = folder.path().join("new");
    write_new(&path, b"text").expect("written");
    assert_eq!((mode(&path), fs_err::read(&path).expect("read")), (0o600, b"text".to_vec()));
    assert!(write_new(&path, b"again").is_err(), "what is there is not written to");
    println!("under umask {umask}");
}

#[test]
fn what_is_made_is_for_the_user_alone_whatever_the_umask_is() {
    for umask in ["0", "022", "077", "0277", "0777"] {
        let mut command = std::process::Command::new(std::env::current_exe().expect("has a path"));
        command
            .args(["--exact", "system::private::tests::under_a_umask", "--nocapture"])
            .env("ROPEJIT_TEST_UMASK", umask);
        let output = command.output().expect("runs");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains(&format!("under umask {umask}")), "{text}");
    }
}

#[test]
fn folders_that_code_is_not_loaded_from_are_named() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = folder_in(&std::env::temp_dir(), "ropejit-test-").expect("a folder");
    assert_eq!(unfit_for_code(folder.path()), None);
    assert_eq!(unfit_for_code(&folder.path().join("none")).as_deref(), Some("there is no such folder"));
    let set = |mode| fs_err::set_permissions(folder.path(), std::fs::Permissions::from_mode(mode)).expect("set");
    set(0o777);
    assert!(unfit_for_code(folder.path()).expect("refused").contains("anybody can write to it"));
    set(0o1777);
    assert_eq!(unfit_for_code(folder.path()), None);
    if cfg!(target_os = "linux") {
        // The system's own file systems are mounted so, but in some containers.
        let noexec = runs_nothing(Path::new("/proc"));
        let unfit = unfit_for_code(Path::new("/proc"));
        assert_eq!(unfit.is_some_and(|why| why.contains("noexec")), noexec);
    }
}
