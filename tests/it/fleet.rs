//! Nodes of one fleet: what one has chosen and compiled, the others find; lock files of the first versions still hold.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use ropejit::device::host::Host;
use ropejit::device::{Device as _, Facts};
use ropejit::engine::Builder;
use ropejit::families::rope::problem;
use ropejit::jit::{Bucket, Class};
use ropejit::{DType, Engine, Origin, RopeSpec, Tuning};

use crate::cases::Case;
use crate::engine::works;

fn small() -> Case {
    Case::new(RopeSpec::new(DType::BF16, 64, 4, 2), 1, 5)
}

fn class() -> Class {
    Class::contiguous(&small().spec, false, true)
}

/// A node with the same device as all, of which its driver tells something else.
fn node(driver: &str, memory_bytes: u64) -> Host {
    let facts = Facts {
        name: "AMD EPYC".into(),
        multiprocessors: 2,
        l2_bytes: 33_554_432,
        memory_bus_bits: 384,
        memory_bytes,
        driver: driver.into(),
        ..Host::open().facts().clone()
    };
    Host::open().with_facts(facts)
}

fn nodes() -> [Host; 2] {
    [node("CUDA 12.4", 64 << 30), node("CUDA 13.0", 63 << 30)]
}

fn on(node: Host, folder: &Path, tuning: Tuning) -> Builder {
    Engine::builder().with_device(Arc::new(node)).cache_dir(folder).cache_path([""; 0]).tuning(tuning)
}

/// What a node of the test below does, in a process of its own.
#[test]
#[ignore = "run by other tests, in a process of its own"]
fn child() {
    let (Ok(job), Some(folder)) = (std::env::var("ROPEJIT_TEST_CHILD"), std::env::var_os("ROPEJIT_TEST_FOLDER")) else {
        return;
    };
    let folder = PathBuf::from(folder);
    let [first, second] = nodes();
    match &*job {
        "tune" => {
            let engine = on(first, &folder, Tuning::BLOCKING).build().expect("opens");
            assert_eq!(works(&engine, &small()), Origin::Tuned);
        }
        "choices" => {
            let engine = on(second, &folder, Tuning::Frozen).build().expect("opens");
            assert_eq!(works(&engine, &small()), Origin::Disk);
            assert!(engine.rope(&small().spec).expect("valid").serving(5, false).expect("loaded").tuned);
        }
        "kernels" => {
            let engine = on(second, &folder, Tuning::Never).build().expect("opens");
            assert_eq!((works(&engine, &small()), engine.stats().compiles), (Origin::Disk, 0));
        }
        other => panic!("no job {other}"),
    }
}

#[test]
fn nodes_with_other_drivers_clocks_paths_and_environments_find_each_others_work() {
    let home = tempfile::tempdir().expect("a folder");
    let run = |job: &str, cache: &str, environment: &[(&str, &Path)]| {
        let mut command = Command::new(std::env::current_exe().expect("known"));
        command.args(["fleet::child", "--exact", "--ignored"]).env("ROPEJIT_TEST_CHILD", job);
        command.env("ROPEJIT_TEST_FOLDER", home.path().join(cache)).envs(environment.iter().copied());
        let output = command.output().expect("started");
        let said = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "{job}: {}", String::from_utf8_lossy(&said));
    };
    run("tune", "here", &[]);
    // Elsewhere: another path, home and temporary folder, and the compiler in another place, of another size and time.
    let copied = Command::new("cp").arg("-r").args([home.path().join("here"), home.path().join("there")]).status();
    assert!(copied.expect("started").success());
    let elsewhere = home.path().join("elsewhere");
    fs_err::create_dir(&elsewhere).expect("made");
    let compiler = elsewhere.join("my-compiler");
    let named = std::env::var("CXX").ok().filter(|v| !v.is_empty()).unwrap_or_else(|| "c++".into());
    fs_err::write(&compiler, format!("#!/bin/sh\nexec {named} \"$@\"\n")).expect("written");
    fs_err::set_permissions(&compiler, std::fs::Permissions::from_mode(0o700)).expect("set");
    let other: [(&str, &Path); 4] =
        [("HOME", &elsewhere), ("TMPDIR", &elsewhere), ("XDG_CACHE_HOME", &elsewhere), ("CXX", &compiler)];
    run("choices", "there", &other);
    // Without the choice, the default's kernel is found by the key that this node's compiler gives it.
    fs_err::remove_dir_all(home.path().join("there/v1/choice")).expect("removed");
    run("kernels", "there", &other);
}

#[test]
fn lock_files_of_the_first_versions_still_hold() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/lock_with_memory_clock.lock");
    let lock = ropejit::families::read_lock(Path::new(file)).unwrap_or_else(|e| panic!("{e}"));
    for node in nodes() {
        let identity = node.facts().identity();
        let (place, locked) = lock
            .find("x86_64", &identity, &small().spec.to_string(), &class().to_string(), Bucket::of(5))
            .expect("the device's section");
        assert_eq!((place.device.as_ref(), locked.config.clone()), (Some(&identity), "t128 v8 h2 wb/wb".into()));
        assert!(!lock.is_silent("x86_64", Some(&identity)));
    }
}

#[test]
fn an_identity_has_no_clock_driver_or_memory_size() {
    let [first, second] = nodes();
    assert_eq!(first.facts().identity(), second.facts().identity());
    let keys = |node| {
        let engine = Engine::builder().with_device(Arc::new(node)).in_memory().build().expect("opens");
        engine.choice_keys(problem(&small().spec, class(), Bucket::of(5)).as_ref())
    };
    let [first, second] = [keys(first), keys(second)];
    assert_eq!(first, second);
    for fields in &first {
        let text = format!("{fields:?}");
        assert!(!text.contains("kHz") && !text.contains("CUDA"), "{text}");
    }
}
