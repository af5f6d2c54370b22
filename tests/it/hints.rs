//! What an error tells people to run, run as it stands in a shell, and the call that failed: it must succeed then.

use std::path::Path;
use std::process::{Command, Output};

use ropejit::engine::Builder;
use ropejit::rope::scaling::{Mrope, RopeParameters, TableMode};
use ropejit::{
    DType, DeviceChoice, Direction, Engine, ErrorKind, Origin, PairStyle, PositionForm, RopeSpec, Rounding, TableWidth,
    Tuning,
};

use crate::cases::{Case, Data, Order, assert_bits, run};

/// Calls that differ from what a plain prewarm prepares, each in another way.
fn cases() -> Vec<Case> {
    let spec = || RopeSpec::new(DType::BF16, 64, 4, 2);
    let mut all: Vec<Case> = [Order::Bshd, Order::Bhsd, Order::Odd, Order::Packed]
        .map(|order| Case { order, ..Case::new(spec(), 1, 5) })
        .into();
    // 8 bytes off: slices of heads of 36 elements.
    all.push(Case { order: Order::Slice, ..Case::new(RopeSpec::new(DType::BF16, 36, 2, 2), 1, 5) });
    let mut partial = spec().with_rounding(Rounding::PerOp).with_table(DType::BF16, TableWidth::Full);
    partial.rotary_dim = 32;
    for in_place in [false, true] {
        all.push(Case { in_place, order: Order::Odd, ..Case::new(partial.clone(), 1, 5) });
    }
    let mut gradient = RopeSpec::new(DType::F16, 64, 2, 0).with_positions(PositionForm::Ids64);
    (gradient.direction, gradient.style) = (Direction::Backward, PairStyle::Interleaved);
    all.push(Case::new(gradient, 2, 3));
    let mut product = RopeSpec::new(DType::F32, 64, 2, 2).with_rounding(Rounding::Contracted);
    product.style = PairStyle::Interleaved;
    all.push(Case::new(product, 1, 5));
    let mut multimodal = spec().with_positions(PositionForm::Ids32);
    multimodal.mrope = Some(Mrope { sections: [12, 10, 10], interleaved: true });
    all.push(Case::new(multimodal, 1, 5));
    let angles = Some((RopeParameters::new(10_000.0, 64), 64));
    all.push(Case { angles, ..Case::new(RopeSpec::new(DType::F32, 64, 2, 1).with_angles(TableMode::F32), 1, 5) });
    all
}

/// Runs what stands in a hint, with nothing of the tester's environment that the program reads.
fn follow(hint: &str, folder: &Path) -> Output {
    let binary = Path::new(env!("CARGO_BIN_EXE_ropejit")).parent().expect("a folder");
    let mut command = Command::new("sh");
    let path = std::env::var("PATH").unwrap_or_default();
    command.args(["-c", hint]).env("PATH", format!("{}:{path}", binary.display())).env("HOME", folder);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("ROPEJIT_")) {
        command.env_remove(name);
    }
    command.output().expect("started")
}

fn frozen(folder: &Path) -> Builder {
    Engine::builder().device(DeviceChoice::Host).cache_dir(folder).cache_path([""; 0]).tuning(Tuning::Frozen)
}

/// Fails with an error whose hint, followed, makes `again` succeed.
#[track_caller]
fn follows(first: &Engine, again: impl Fn() -> Engine, case: &Case, folder: &Path) {
    let data = Data::new(case, 1);
    let mut engine = first.clone();
    // Angles of the engine are two calls: the one that makes their table, and the one that reads it.
    for _ in 0..2 {
        let e = match run(&engine, case, &data) {
            Ok((origin, got)) => {
                assert_eq!(origin, Origin::Disk, "{case:?}");
                return assert_bits(case, &got, &data.expected);
            }
            Err(e) => e,
        };
        assert_eq!(e.kind(), ErrorKind::NotCached, "{e}");
        let e = ropejit::cli::advice::advised(e);
        let output = follow(e.advice().expect("a hint"), folder);
        assert!(output.status.success(), "{e}\n{}", String::from_utf8_lossy(&output.stderr));
        engine = again();
    }
    let (origin, got) = run(&engine, case, &data).unwrap_or_else(|e| panic!("what it said was done: {e}"));
    assert_eq!(origin, Origin::Disk, "{case:?}");
    assert_bits(case, &got, &data.expected);
}

#[test]
fn a_frozen_call_succeeds_once_its_hint_is_followed() {
    for case in cases() {
        let home = tempfile::tempdir().expect("a folder");
        // The command must name it as a shell reads it.
        let folder = home.path().join("a folder's name");
        let engine = frozen(&folder).build().expect("opens");
        follows(&engine, || engine.clone(), &case, home.path());
    }
}

#[test]
fn so_does_one_whose_lock_file_names_nothing_or_what_is_not_cached() {
    let home = tempfile::tempdir().expect("a folder");
    let (folder, lock) = (home.path().join("cache"), home.path().join("my rope.lock"));
    let template = ropejit::jit::lock::Lock::new(ropejit::jit::render::templates_digest()).to_string();
    fs_err::write(&lock, template).expect("written");
    let open = || frozen(&folder).lock_file(&lock).build().expect("opens");
    let case = Case { order: Order::Odd, ..Case::new(RopeSpec::new(DType::BF16, 64, 4, 2), 1, 5) };
    follows(&open(), open, &case, home.path());
    fs_err::remove_dir_all(folder.join("v1/artifact")).expect("removed");
    follows(&open(), open, &case, home.path());
}

/// Nothing that a command makes is found in memory: what is missing comes first.
#[test]
fn without_a_folder_the_hint_says_what_is_missing_first() {
    let case = Case::new(RopeSpec::new(DType::BF16, 64, 4, 2), 1, 5);
    let file = tempfile::NamedTempFile::new().expect("a file");
    let told = |engine: &Engine| {
        ropejit::cli::advice::advised(run(engine, &case, &Data::new(&case, 1)).expect_err("not cached"))
    };
    let in_memory =
        Engine::builder().device(DeviceChoice::Host).in_memory().tuning(Tuning::Frozen).build().expect("opens");
    let e = told(&in_memory);
    let hint = e.advice().expect("a hint");
    assert!(
        e.message().contains("(memory)") && hint.starts_with("give the engine a cache folder (ROPEJIT_CACHE_DIR"),
        "{e}"
    );
    assert!(hint.contains("; then: ") && hint.contains("ropejit prewarm "), "{e}");
    let e = told(&frozen(file.path()).build().expect("opens"));
    assert!(e.message().contains("not a folder") && e.message().contains(&file.path().display().to_string()), "{e}");
    assert!(e.advice().is_some_and(|hint| hint.starts_with("set ROPEJIT_CACHE_DIR to a folder; then: ")), "{e}");
}
