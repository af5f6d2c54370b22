//! Engines with a lock file, on the host device.

use std::path::{Path, PathBuf};

use ropejit::jit::lock::{Lock, Locked, Section};
use ropejit::jit::{Bucket, Class, Variant, variant};
use ropejit::{DType, DeviceChoice, Engine, ErrorKind, Origin, RopeSpec, Tuning};

use crate::cases::{Case, Data, assert_bits, run};

fn small(tokens: usize) -> Case {
    Case::new(RopeSpec::new(DType::BF16, 64, 4, 2), 1, tokens)
}

fn on(folder: &Path, tuning: Tuning, lock: &Path) -> Engine {
    let builder = Engine::builder().device(DeviceChoice::Host).cache_dir(folder.join("cache"));
    builder.tuning(tuning).lock_file(lock).build().expect("opens")
}

fn works(engine: &Engine, case: &Case) -> Origin {
    let data = Data::new(case, 1);
    let (origin, got) = run(engine, case, &data).unwrap_or_else(|e| panic!("{e}"));
    assert_bits(case, &got, &data.expected);
    origin
}

/// The variants for `small(5)`, the default first.
fn space(engine: &Engine) -> Vec<Variant> {
    let spec = small(5).spec;
    variant::space(&spec, Class::contiguous(&spec, false, true), Bucket::of(5), engine.device().abilities())
}

/// A lock file that names a variant for `small(5)`.
fn file(folder: &Path, device: bool, variant: Variant) -> PathBuf {
    let host = Engine::builder().device(DeviceChoice::Host).in_memory().build().expect("opens");
    let (spec, identity) = (small(5).spec, host.facts().identity());
    let class = Class::contiguous(&spec, false, true);
    let mut lock = Lock::new(ropejit::jit::render::templates_digest());
    let place = Section::new(&host.facts().arch, device.then_some(&identity));
    lock.set(place, Locked::of(&spec, class, Bucket::of(5), variant));
    let path = folder.join("rope.lock");
    fs_err::write(&path, lock.to_string()).expect("written");
    path
}

#[test]
fn what_the_file_names_serves_and_is_never_tuned() {
    for (device, tuning) in [(true, Tuning::Background), (false, Tuning::Background), (true, Tuning::BLOCKING)] {
        let folder = tempfile::tempdir().expect("a folder");
        let host = crate::host::engine(Tuning::Never);
        for variant in space(&host).into_iter().skip(1) {
            let lock = file(folder.path(), device, variant);
            let engine = on(folder.path(), tuning, &lock);
            assert_eq!(works(&engine, &small(5)), Origin::Compiled);
            engine.wait_tuned();
            let serving = engine.rope(&small(5).spec).expect("valid").serving(5, false).expect("loaded");
            assert_eq!((serving.variant, serving.tuned), (variant, device), "{tuning:?}");
            assert_eq!((engine.stats().compiles, engine.stats().tunings), (1, 0), "{tuning:?}");

            let frozen = on(folder.path(), Tuning::Frozen, &lock);
            assert_eq!(works(&frozen, &small(5)), Origin::Disk);
            assert_eq!(frozen.rope(&small(5).spec).expect("valid").serving(5, false).expect("loaded").variant, variant);
            assert_eq!((frozen.stats().compiles, frozen.stats().disk_hits), (0, 1));
        }
    }
}

#[test]
fn what_was_measured_here_gives_way_to_the_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let free =
        Engine::builder().device(DeviceChoice::Host).cache_dir(folder.path().join("cache")).tuning(Tuning::BLOCKING);
    let free = free.build().expect("opens");
    assert_eq!(works(&free, &small(5)), Origin::Tuned);
    let won = free.rope(&small(5).spec).expect("valid").serving(5, false).expect("loaded").variant;
    let other = space(&free).into_iter().find(|v| *v != won).expect("more than one");
    let lock = file(folder.path(), true, other);
    // All candidates were compiled, and the record of the tuning says where they are.
    let engine = on(folder.path(), Tuning::Frozen, &lock);
    assert_eq!(works(&engine, &small(5)), Origin::Disk);
    assert_eq!(engine.rope(&small(5).spec).expect("valid").serving(5, false).expect("loaded").variant, other);
}

#[test]
fn what_the_file_does_not_name_is_the_policys_and_an_error_where_that_is_frozen() {
    let folder = tempfile::tempdir().expect("a folder");
    let variant = space(&crate::host::engine(Tuning::Never))[1];
    let lock = file(folder.path(), true, variant);
    let engine = on(folder.path(), Tuning::BLOCKING, &lock);
    assert_eq!(works(&engine, &small(9)), Origin::Tuned);
    // Even what the cache has: another process's cache may have another choice.
    let frozen = on(folder.path(), Tuning::Frozen, &lock);
    let e = run(&frozen, &small(9), &Data::new(&small(9), 1)).expect_err("not in the file");
    assert_eq!(e.kind(), ErrorKind::NotCached);
    let text = e.to_string();
    for part in [&*lock.display().to_string(), "no choice for 16 tokens", "bshd/16B/t16B", "write the file again"] {
        assert!(text.contains(part), "{part} is not in: {text}");
    }
    let e = run(&frozen, &small(5), &Data::new(&small(5), 1)).expect_err("in the file, not in the cache");
    assert_eq!(e.kind(), ErrorKind::NotCached);
    let text = e.to_string();
    for part in [&format!("{}:7", lock.display()), &variant.to_string(), "not in the cache", "has this lock file"] {
        assert!(text.contains(part), "{part} is not in: {text}");
    }
}

#[test]
fn a_file_that_cannot_be_used_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let build = |path: &Path| Engine::builder().device(DeviceChoice::Host).in_memory().lock_file(path).build();
    let e = build(&folder.path().join("none")).err().expect("not there");
    assert_eq!((e.kind(), e.subject().map(|s| s.ends_with("/none"))), (ErrorKind::Io, Some(true)));
    for (bytes, part) in [(&b"hello"[..], "not a lock file"), (b"\xff\xfe", "not a text"), (b"", "ends before")] {
        let path = folder.path().join("bad");
        fs_err::write(&path, bytes).expect("written");
        let e = build(&path).err().expect("refused");
        assert_eq!(e.kind(), ErrorKind::LockFile);
        assert!(e.to_string().contains("/bad") && e.message().contains(part) && e.advice().is_some(), "{e}");
    }
    // Legal on a GPU of compute capability 9.0, not here.
    let variant = Variant { overlap: true, ..space(&crate::host::engine(Tuning::Never))[0] };
    let lock = file(folder.path(), true, variant);
    let engine = on(folder.path(), Tuning::Background, &lock);
    let e = run(&engine, &small(5), &Data::new(&small(5), 1)).expect_err("not legal");
    assert_eq!((e.kind(), e.subject()), (ErrorKind::LockFile, Some(&*format!("{}:7", lock.display()))));
    assert!(e.advice().is_some_and(|hint| hint.contains("correct the line")), "{e}");
}

#[test]
fn other_templates_cost_a_warning_not_the_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let variant = space(&crate::host::engine(Tuning::Never))[1];
    let lock = file(folder.path(), true, variant);
    let text = fs_err::read_to_string(&lock).expect("read");
    let digest = ropejit::jit::render::templates_digest();
    fs_err::write(&lock, text.replace(digest, &"0".repeat(64))).expect("written");
    let engine = on(folder.path(), Tuning::Never, &lock);
    assert_eq!(works(&engine, &small(5)), Origin::Compiled);
    assert_eq!(engine.rope(&small(5).spec).expect("valid").serving(5, false).expect("loaded").variant, variant);
}
