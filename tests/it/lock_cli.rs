//! Lock files as people use them: written, committed, tested, deployed.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use ropejit::jit::lock::{Lock, Locked, Section};
use ropejit::jit::{Bucket, Class, Identity};
use ropejit::{DType, RopeSpec};

use crate::cli::{RUN, SMALL, Shell, nvrtc, stat, text};

/// Copies a folder as an image does: read-only, under another home.
fn copy(from: &Path, to: &Path) {
    fs_err::create_dir_all(to).expect("made");
    for entry in fs_err::read_dir(from).expect("read") {
        let from = entry.expect("an entry").path();
        let to = to.join(from.file_name().expect("named"));
        if from.is_dir() {
            copy(&from, &to);
        } else {
            fs_err::copy(&from, &to).expect("copied");
            fs_err::set_permissions(&to, std::fs::Permissions::from_mode(0o400)).expect("set");
        }
    }
    fs_err::set_permissions(to, std::fs::Permissions::from_mode(0o500)).expect("set");
}

/// A folder that can be deleted again.
fn writable(folder: &Path) {
    fs_err::set_permissions(folder, std::fs::Permissions::from_mode(0o700)).expect("set");
    for entry in fs_err::read_dir(folder).expect("read") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            writable(&path);
        }
    }
}

fn prewarm<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&["prewarm"], &SMALL[..], more].concat()
}

#[test]
fn a_lock_file_is_written_kept_and_tested() {
    let shell = Shell::new();
    let path = shell.at("rope.lock").display().to_string();
    shell.ok(&prewarm(&["--tokens", "8,1", "--lock", &path])).says(&["choices in [", "] 2"]);
    let first = fs_err::read_to_string(&path).expect("written");
    let choices = |text: &str| text.lines().filter(|l| l.contains(" | ")).count();
    assert_eq!(
        (choices(&first), Lock::parse("f", &first, ropejit::families::families()).expect("reads").to_string()),
        (2, first.clone())
    );
    // The same choices are the same bytes, and others are added.
    shell.ok(&prewarm(&["--tokens", "1,8", "--lock", &path]));
    assert_eq!(fs_err::read_to_string(&path).expect("written"), first);
    shell.ok(&prewarm(&["--tokens", "64", "--no-tune", "--lock", &path]));
    let more = fs_err::read_to_string(&path).expect("written");
    assert!(choices(&more) == 3 && first.lines().all(|line| more.contains(line)), "{more}");

    shell.run(&prewarm(&["--no-tune", "--measure"])).fails(2, &["--no-tune", "--measure"]);

    assert!(shell.ok(&["prewarm", "--check", &path]).stdout.contains("holds for"));
    let document = shell.json(&["prewarm", "--check", &path]);
    assert_eq!((document["holds"].as_bool(), document["choices"].as_u64()), (Some(true), Some(3)));
    assert!(document["stats"].is_object() && !shell.cache().join("v2").exists());

    // Other templates, a variant that is not legal, a device that it has nothing for.
    let digest = ropejit::jit::render::templates_digest();
    let line = more.lines().position(|l| l.ends_with("h2 wb/wb") || l.ends_with("h1 wb/wb")).expect("one") + 1;
    let bad = more.replace(digest, &"a".repeat(64)).replace(" h1 ", " h4 ").replace(" h2 ", " h4 ");
    fs_err::write(&path, bad).expect("written");
    let found = shell.run(&["prewarm", "--check", &path]);
    assert_eq!(found.code, 1, "{}", found.stdout);
    for part in [
        &format!("{path}:4: made with templates aaaaaaaaaaaa"),
        &format!("{path}:{line}: not legal here: variant.heads"),
    ] {
        assert!(found.stdout.contains(part.as_str()), "{part} is not in: {}", found.stdout);
    }
    found.says(&["no longer holds", "hint: ", "--lock"]);
    let found = shell.run(&["prewarm", "--check", &path, "--arch", "sm_90", "--json"]);
    assert_eq!((found.code, found.json()["problems"].as_array().map(Vec::len)), (1, Some(2)));
    assert!(found.stdout.contains("no choices for sm_90"), "{}", found.stdout);
    // What was made with other templates is not carried on.
    shell.ok(&prewarm(&["--tokens", "8", "--lock", &path])).says(&["left out 3 choices made with other templates"]);
    assert_eq!(choices(&fs_err::read_to_string(&path).expect("written")), 1);

    fs_err::write(&path, "version = 1\nhello").expect("written");
    shell.run(&["prewarm", "--check", &path]).fails(1, &[&format!("{path}:2: "), "templates", "hint: "]);
    shell.run(&prewarm(&["--lock", &path])).fails(1, &[&format!("{path}:2: ")]);
    shell.run(&["prewarm", "--check", "nowhere.lock"]).fails(1, &["nowhere.lock", "cannot be read", "hint: "]);
    shell.run(&prewarm(&["--check", &path])).fails(2, &["--check", "--head-dim"]);
    let used = shell.run_with(&prewarm(&["--lock", &path]), &[("ROPEJIT_LOCK", Some("other.lock"))]);
    used.fails(2, &["--lock", "ROPEJIT_LOCK (other.lock)", "hint: "]);
    shell.run_with(&RUN, &[("ROPEJIT_LOCK", Some("other.lock"))]).fails(1, &["other.lock", "cannot be read"]);
}

/// People's comments stay, nothing is left beside the file, and its mode is theirs to choose; a link stays a link.
#[test]
fn a_lock_file_is_replaced_and_keeps_what_people_wrote() {
    let shell = Shell::new();
    let folder = shell.at("locks");
    fs_err::create_dir(&folder).expect("made");
    let (file, link) = (folder.join("rope.lock"), folder.join("link.lock"));
    let [path, by_link] = [&file, &link].map(|path| path.display().to_string());
    shell.ok(&prewarm(&["--tokens", "8", "--lock", &path]));
    let mode = |path: &Path| fs_err::metadata(path).expect("there").permissions().mode() & 0o777;
    assert_eq!(mode(&file) & 0o022, 0, "others cannot write to a new file, whatever the umask is");
    let first = fs_err::read_to_string(&file).expect("written");
    let annotated =
        first.replace("\n[", "\n# measured on the bench\n\n[").replace("\nbf16", "\n# decoding\nbf16") + "\n# end\n";
    fs_err::write(&file, &annotated).expect("written");
    fs_err::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).expect("set");
    std::os::unix::fs::symlink("rope.lock", &link).expect("made");
    shell.ok(&prewarm(&["--tokens", "8,64", "--lock", &by_link]));
    let second = fs_err::read_to_string(&file).expect("written");
    let kept = |line: &str| second.lines().any(|l| l == line);
    assert!(annotated.lines().all(kept) && second.lines().count() == annotated.lines().count() + 1, "{second}");
    assert!(second.contains("# decoding\nbf16") && second.ends_with("\n# end\n"), "{second}");
    assert_eq!(mode(&file), 0o640);
    assert!(fs_err::symlink_metadata(&link).expect("there").is_symlink());
    assert_eq!(fs_err::read_dir(&folder).expect("read").count(), 2, "nothing is left beside it");
    // What is no file cannot be replaced, and is not read for ever.
    for no_file in ["/dev/zero", &folder.display().to_string()] {
        shell.run(&prewarm(&["--tokens", "8", "--lock", no_file])).fails(1, &[no_file, "no file", "hint: "]);
    }
}

#[test]
fn a_prewarm_with_a_lock_that_is_silent_about_the_device_says_so() {
    let shell = Shell::new();
    let path = shell.at("rope.lock").display().to_string();
    shell.ok(&prewarm(&["--tokens", "8", "--lock", &path]));
    let own = fs_err::read_to_string(&path).expect("written");
    let used = [("ROPEJIT_LOCK", Some(&*path))];
    let quiet = shell.run_with(&prewarm(&["--tokens", "8"]), &used);
    assert!(quiet.code == 0 && !quiet.stderr.contains("decides nothing"), "{}", quiet.stderr);
    let other = own.replace("multiprocessors", "0 multiprocessors").replace(" 0 multi", "0 multi");
    fs_err::write(&path, other).expect("written");
    let told = shell.run_with(&prewarm(&["--tokens", "8,64"]), &used);
    assert_eq!(told.code, 0, "{}", told.stderr);
    assert_eq!(told.stderr.matches("decides nothing here").count(), 1, "once: {}", told.stderr);
    told.says(&[&path, "has no choices for ", "there are ["]);
}

#[test]
fn frozen_and_a_lock_file_prove_a_prewarm_complete() {
    let shell = Shell::new();
    let lock = shell.at("rope.lock").display().to_string();
    shell.ok(&prewarm(&["--tokens", "8,64", "--lock", &lock]));
    // Where images are built: nothing is tuned, what the file names is compiled.
    let image = shell.at("image").display().to_string();
    let build = [("ROPEJIT_LOCK", Some(&*lock)), ("ROPEJIT_CACHE_DIR", Some(&*image))];
    let built = shell.run_with(&prewarm(&["--tokens", "8", "--json"]), &build);
    assert_eq!((built.code, stat(&built.json(), "compiles"), stat(&built.json(), "tunings")), (0, 1, 0));
    assert!(fs_err::read_to_string(&lock).expect("read").contains(text(&built.json()["prepared"][0], "variant")));
    // Where they run: another home, nothing can be written, there is no compiler.
    let home = shell.at("home/.cache/ropejit");
    copy(Path::new(&image), &home);
    let home_folder = shell.at("home").display().to_string();
    let there = [
        ("ROPEJIT_LOCK", Some(&*lock)),
        ("ROPEJIT_CACHE_DIR", None),
        ("XDG_CACHE_HOME", None),
        ("HOME", Some(&*home_folder)),
        ("PATH", Some("")),
        ("CXX", None),
        ("ROPEJIT_TUNING", Some("frozen")),
    ];
    let run = shell.run_with(&[&RUN[..], &["--json"]].concat(), &there);
    assert_eq!((run.code, run.stderr.as_str()), (0, ""));
    assert_eq!((text(&run.json(), "origin"), stat(&run.json(), "compiles")), ("disk", 0));
    assert_eq!(run.json()["variant"], built.json()["prepared"][0]["variant"]);
    // In the file, but forgotten by the prewarm; and not in the file.
    let other = |tokens| shell.run_with(&[&RUN[..7], &["--tokens", tokens]].concat(), &there);
    other("64").fails(1, &[&lock, "not in the cache", "tuning is frozen"]);
    other("512").fails(1, &[&lock, "no choice for 512 tokens"]);
    writable(&home);
}

#[test]
fn a_lock_file_of_a_gpu_is_compiled_where_there_is_none() {
    let shell = Shell::new();
    if !nvrtc(&shell, "a_lock_file_of_a_gpu_is_compiled_where_there_is_none") {
        return;
    }
    let spec = RopeSpec::new(DType::BF16, 64, 4, 2);
    let class = Class::contiguous(&spec, false, true);
    let mut lock = Lock::new(ropejit::jit::render::templates_digest());
    for (device, variant) in [("NVIDIA H200", "t256 v8 h1 wb/cs pdl"), ("NVIDIA H100", "t64 v4 h2 cs/cs pdl pf")] {
        let variant = variant.parse().expect("a variant");
        let device = Identity::new(device, (9, 0), 132, 50 << 20, 5120);
        for bucket in [1, 8].map(Bucket::of) {
            let locked = Locked::of(&spec, class, bucket, variant);
            lock.set(Section::new("sm_90", Some(&device)), locked);
        }
    }
    let path = shell.at("rope.lock").display().to_string();
    fs_err::write(&path, lock.to_string()).expect("written");
    shell.ok(&["prewarm", "--check", &path, "--arch", "sm_90"]);

    let prewarm = prewarm(&["--tokens", "1,8", "--arch", "sm_90", "--json"]);
    let built = shell.run_with(&prewarm, &[("ROPEJIT_LOCK", Some(&path))]);
    assert_eq!((built.code, stat(&built.json(), "compiles")), (0, 2), "{}", built.stderr);
    let variants: Vec<_> =
        built.json()["prepared"].as_array().expect("an array").iter().map(|p| text(p, "variant").to_owned()).collect();
    assert_eq!(variants.len(), 4, "both GPUs' variants, for both token counts");
    // On the machine it is copied to, what the file names is found under its key, and no compiler is asked.
    let copied = shell.at("copied");
    copy(&shell.cache(), &copied);
    let copied_folder = copied.display().to_string();
    let there = [
        ("ROPEJIT_LOCK", Some(&*path)),
        ("ROPEJIT_CACHE_DIR", Some(&*copied_folder)),
        ("ROPEJIT_NVRTC", Some("/nowhere/libnvrtc.so")),
        ("HOME", Some("/nowhere")),
    ];
    let again = shell.run_with(&prewarm, &there);
    assert_eq!((again.code, again.stderr.as_str()), (0, ""));
    assert_eq!((stat(&again.json(), "compiles"), stat(&again.json(), "disk_hits")), (0, 2));
    let found: Vec<_> =
        again.json()["prepared"].as_array().expect("an array").iter().map(|p| text(p, "variant").to_owned()).collect();
    assert_eq!(found, variants);
    writable(&copied);
}
