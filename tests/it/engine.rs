//! The service, on the host device unless a function takes an engine.

#![allow(unsafe_code)]

use std::path::Path;
use std::sync::Barrier;
use std::time::Duration;

use ropejit::args::{Args, Operand, PositionIds, Positions, Tables, Tensor};
use ropejit::engine::ChoiceMeta;
use ropejit::jit::variant;
use ropejit::store::Kind;
use ropejit::{DType, DeviceChoice, Engine, ErrorKind, Layout, Origin, PositionForm, RopeSpec, Stats, Stream, Tuning};

use crate::cases::{Case, Data, assert_bits, run};

/// An engine of the host on a folder.
fn on(folder: &Path, tuning: Tuning) -> Engine {
    Engine::builder().device(DeviceChoice::Host).cache_dir(folder).tuning(tuning).build().expect("opens")
}

pub fn small() -> Case {
    Case::new(RopeSpec::new(DType::BF16, 64, 4, 2), 1, 5)
}

pub fn works(engine: &Engine, case: &Case) -> Origin {
    let data = Data::new(case, 1);
    let (origin, got) = run(engine, case, &data).unwrap_or_else(|e| panic!("{e}"));
    assert_bits(case, &got, &data.expected);
    origin
}

#[test]
fn a_second_process_neither_compiles_nor_tunes() {
    let folder = tempfile::tempdir().expect("a folder");
    let first = on(folder.path(), Tuning::BLOCKING);
    assert_eq!(works(&first, &small()), Origin::Tuned);
    assert_eq!(works(&first, &small()), Origin::Memory);
    let space = candidates(&first);
    assert_eq!((first.stats().compiles, first.stats().tunings, first.stats().memory_hits), (space, 1, 1));
    for tuning in [Tuning::Background, Tuning::BLOCKING, Tuning::Never, Tuning::Frozen] {
        let second = on(folder.path(), tuning);
        assert_eq!(works(&second, &small()), Origin::Disk, "{tuning:?}");
        second.wait_tuned();
        let Stats { compiles, tunings, disk_hits, .. } = second.stats();
        assert_eq!((compiles, tunings, disk_hits), (0, 0, 1), "{tuning:?}");
    }
}

/// The first call may compile. One that does so later, when a program has warmed up, is counted and warned of.
#[test]
fn a_late_compile_is_counted() {
    let builder = || Engine::builder().device(DeviceChoice::Host).in_memory().tuning(Tuning::Never);
    let other = Case::new(RopeSpec::new(DType::F16, 64, 4, 2), 1, 5);
    let engine = builder().late_after(Duration::ZERO).build().expect("opens");
    assert_eq!(works(&engine, &small()), Origin::Compiled);
    assert_eq!(engine.stats().late_compiles, 0, "the first call is in time");
    assert_eq!((works(&engine, &small()), engine.stats().late_compiles), (Origin::Memory, 0));
    assert_eq!((works(&engine, &other), engine.stats().late_compiles), (Origin::Compiled, 1));
    let patient = builder().late_after(Duration::MAX).build().expect("opens");
    for case in [small(), other] {
        assert_eq!((works(&patient, &case), patient.stats().late_compiles), (Origin::Compiled, 0));
    }
}

/// Candidates in the space of `small()` on the engine's device that have to be compiled.
fn candidates(engine: &Engine) -> u64 {
    use ropejit::jit::{Bucket, Class};
    let spec = small().spec;
    let class = Class::contiguous(&spec, false, true);
    let space = variant::space(&spec, class, Bucket::of(5), engine.device().abilities());
    space.iter().filter(|v| !v.shipped).count() as u64
}

#[test]
fn background_answers_at_once_and_swaps_the_winner_in() {
    let folder = tempfile::tempdir().expect("a folder");
    let engine = on(folder.path(), Tuning::Background);
    assert_eq!(works(&engine, &small()), Origin::Compiled);
    engine.wait_tuned();
    let serving = engine.rope(&small().spec).expect("valid").serving(5, false).expect("loaded");
    assert!(serving.tuned && serving.origin == Origin::Tuned);
    assert_eq!(works(&engine, &small()), Origin::Memory);
    assert_eq!(engine.stats().tunings, 1);
}

/// A program may end while its process-wide engine still works in the background.
#[test]
fn a_process_ends_in_the_middle_of_background_work() {
    if std::env::var_os("ROPEJIT_TEST_GLOBAL").is_some() {
        let engine = Engine::global().expect("opened");
        works(engine, &small());
        std::process::exit(0);
    }
    let folder = tempfile::tempdir().expect("a folder");
    let mut command = std::process::Command::new(std::env::current_exe().expect("known"));
    let name = "engine::a_process_ends_in_the_middle_of_background_work";
    command.args([name, "--exact", "--nocapture"]).env("ROPEJIT_TEST_GLOBAL", "1").env("ROPEJIT_DEVICE", "host");
    command.env("ROPEJIT_CACHE_DIR", folder.path()).env_remove("ROPEJIT_CACHE_PATH").env_remove("ROPEJIT_TUNING");
    let ended = command.output().expect("started");
    assert!(ended.status.success(), "{:?}\n{}", ended.status, String::from_utf8_lossy(&ended.stderr));
    // It was cancelled: nobody has waited for a tuning.
    let engine = on(folder.path(), Tuning::Never);
    assert!(engine.store().list(Kind::Choice).expect("listed").iter().all(|listed| {
        let entry = listed.entry.as_ref().expect("sound");
        !serde_json::from_slice::<ChoiceMeta>(&entry.meta).expect("readable").record.tuned
    }));
}

#[test]
fn frozen_names_what_is_missing_and_how_to_get_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let engine = on(folder.path(), Tuning::Frozen);
    let case = small();
    let error = run(&engine, &case, &Data::new(&case, 1)).expect_err("nothing is cached");
    assert_eq!(error.kind(), ErrorKind::NotCached);
    let text = error.to_string();
    for part in ["bf16 d64 h4/2", "8 tokens", "hint: prewarm this spec", &folder.path().display().to_string()] {
        assert!(text.contains(part), "{part} is not in: {text}");
    }
    assert!(!text.contains("--"), "the library knows no command line: {text}");
    let missing = error.detail::<ropejit::engine::Missing>().expect("what is missing, as a value");
    assert_eq!((missing.spec.to(), missing.bucket.tokens()), (Some(case.spec.clone()), 8));
    assert_eq!(engine.stats(), Stats::default());
}

#[test]
fn a_frozen_engine_serves_what_is_loaded_and_makes_nothing() {
    let engine = crate::host::engine(Tuning::Never);
    works(&engine, &small());
    engine.freeze();
    assert_eq!(works(&engine, &small()), Origin::Memory);
    let other = Case::new(RopeSpec::new(DType::F16, 64, 4, 2), 1, 5);
    let error = run(&engine, &other, &Data::new(&other, 1)).expect_err("frozen");
    assert_eq!((error.kind(), engine.stats().compiles), (ErrorKind::NotCached, 1));
}

#[test]
fn what_is_not_loaded_is_left_to_the_caller() {
    let engine = crate::host::engine(Tuning::Never);
    let rope = engine.rope(&RopeSpec::new(DType::F32, 4, 1, 0)).expect("a rope");
    let layout = Layout::bshd(1, 1, 1, 4);
    let mut q = [1.0f32, 2.0, 3.0, 4.0];
    let (cos, sin) = ([0.0f32; 2], [1.0f32; 2]);
    let mut call = |loaded: bool| {
        let args = Args {
            q: Operand::in_place(Tensor::host(&mut q, layout).expect("fits")),
            k: None,
            tables: Tables::host(&cos, &sin, 1, 2).expect("fits"),
            positions: Positions::Offset(0),
            norm: None,
            append: None,
        };
        if loaded {
            return rope.apply_loaded(Stream::DEFAULT, &args).expect("launches");
        }
        rope.apply(Stream::DEFAULT, &args).is_ok()
    };
    assert!(!call(true));
    assert!(call(false));
    assert!(call(true));
    assert_eq!(q, [-1.0, -2.0, -3.0, -4.0], "turned twice by a quarter, and not a third time");
    assert_eq!((engine.stats().compiles, engine.stats().memory_hits), (1, 1));
}

#[test]
fn never_compiles_the_default_and_tunes_nothing() {
    let engine = crate::host::engine(Tuning::Never);
    assert_eq!(works(&engine, &small()), Origin::Compiled);
    engine.wait_tuned();
    assert_eq!((engine.stats().compiles, engine.stats().tunings), (1, 0));
}

/// 64 threads ask for one spec at once: each candidate is compiled once, the spec is tuned once.
pub fn sixty_four_threads(engine: &Engine) {
    let barrier = Barrier::new(64);
    std::thread::scope(|scope| {
        for _ in 0..64 {
            scope.spawn(|| {
                barrier.wait();
                works(engine, &small());
            });
        }
    });
    let stats = engine.stats();
    assert_eq!((stats.compiles, stats.tunings), (candidates(engine), 1), "{stats:?}");
    assert_eq!(stats.memory_hits, 63);
}

#[test]
fn sixty_four_threads_compile_once() {
    sixty_four_threads(&crate::host::engine(Tuning::BLOCKING));
}

#[test]
fn several_engines_live_side_by_side() {
    let folders = [tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder")];
    let engines = [on(folders[0].path(), Tuning::Never), on(folders[1].path(), Tuning::Background)];
    std::thread::scope(|scope| {
        for engine in &engines {
            scope.spawn(|| (0..20).for_each(|_| assert_ne!(works(engine, &small()), Origin::Reference)));
        }
    });
    assert!(engines.iter().all(|e| e.stats().compiles >= 1));
    // Dropping one cancels its background work and leaves the other alone.
    let [first, second] = engines;
    drop(second);
    assert_eq!(works(&first, &small()), Origin::Memory);
}

/// Positions outside the table: NaN there, right bits elsewhere, an error at the next check and none after it.
pub fn positions_outside(engine: &Engine) {
    for form in [PositionForm::Ids32, PositionForm::Ids64] {
        let mut case = Case::new(RopeSpec::new(DType::BF16, 64, 4, 2).with_positions(form), 1, 9);
        let rope = engine.rope(&case.spec).expect("valid");
        works(engine, &case);
        rope.check().expect("all inside");
        case.outside = vec![2, 7];
        works(engine, &case);
        let error = rope.check().expect_err("two tokens are outside");
        assert_eq!(error.kind(), ErrorKind::PositionOutOfRange);
        assert!(error.to_string().contains("token 2") || error.to_string().contains("token 7"), "{error}");
        rope.check().expect("reported once");
    }
}

#[test]
fn a_position_outside_the_table_becomes_nan_and_is_reported_once() {
    positions_outside(&crate::host::engine(Tuning::Never));
}

/// Turns all of a large q in place by one position and checks the last token's heads.
pub fn last_tokens(engine: &Engine, spec: &RopeSpec, layout: Layout) {
    let device = engine.device();
    let [_, tokens, heads, dim] = layout.shape;
    let size = spec.dtype.size();
    let mut data = device.alloc(layout.len() * size).expect("allocated");
    let rows = 4;
    let half = dim / 2;
    let mut cos = vec![0u8; rows * half * 4];
    let mut sin = cos.clone();
    for i in 0..rows * half {
        DType::F32.write(&mut cos, i, (i as f32).cos());
        DType::F32.write(&mut sin, i, (i as f32).sin());
    }
    let ids: Vec<u8> = (0..tokens).flat_map(|t| ((t % rows) as i32).to_ne_bytes()).collect();
    let upload = |bytes: &[u8]| {
        let mut memory = device.alloc(bytes.len()).expect("allocated");
        memory.upload(0, bytes).expect("copied");
        memory
    };
    let (cos_m, sin_m, ids_m) = (upload(&cos), upload(&sin), upload(&ids));
    let head_at = |token: usize, head: usize| {
        (token as i64 * layout.strides[1] + head as i64 * layout.strides[2]) as usize * size
    };
    let mut head = vec![0u8; dim * size];
    for i in 0..dim {
        spec.dtype.write(&mut head, i, i as f32 / 8.0 - 7.0);
    }
    let probes: Vec<_> = [0, tokens / 2, tokens - 1].into_iter().flat_map(|t| [(t, 0), (t, heads - 1)]).collect();
    for &(t, h) in &probes {
        data.upload(head_at(t, h), &head).expect("copied");
    }
    // SAFETY: the memories hold what the layout and the counts say and outlive the call.
    let args = unsafe {
        let at = |m: &dyn ropejit::device::Memory| m.address() as *mut std::ffi::c_void;
        Args {
            q: Operand::in_place(Tensor::from_raw(at(data.as_ref()), spec.dtype, layout)),
            k: None,
            tables: Tables::from_raw(at(cos_m.as_ref()), at(sin_m.as_ref()), DType::F32, rows, half, [0, half as i64]),
            positions: Positions::Ids(PositionIds::from_raw(at(ids_m.as_ref()), false, [0, 0, 1])),
            norm: None,
            append: None,
        }
    };
    let rope = engine.rope(spec).expect("valid");
    rope.apply(Stream::DEFAULT, &args).expect("applied");
    device.synchronize().expect("ran");
    rope.check().expect("all inside");
    for &(t, h) in &probes {
        let mut got = head.clone();
        data.download(head_at(t, h), &mut got).expect("copied");
        for pair in 0..half {
            let (i, j) = ropejit::rope::reference::pair(spec, spec.head_dim, pair).input;
            let entry = t % rows * half + pair;
            let cs = (DType::F32.read(&cos, entry), DType::F32.read(&sin, entry));
            let ab = (spec.dtype.read(&head, i), spec.dtype.read(&head, j));
            let want = ropejit::rope::reference::rotate(spec, ab, cs);
            let got = (spec.dtype.read(&got, i), spec.dtype.read(&got, j));
            assert_eq!(got, want, "token {t} head {h} pair {pair}");
        }
    }
}

#[test]
fn large_layouts_in_small() {
    let spec = RopeSpec::new(DType::BF16, 64, 2, 0).with_positions(PositionForm::Ids32);
    let engine = crate::host::engine(Tuning::Never);
    last_tokens(&engine, &spec, Layout::bshd(1, 1000, 2, 64));
    last_tokens(&engine, &spec, Layout::bhsd(1, 2, 1000, 64));
}

#[test]
fn wrong_arguments_are_named() {
    let engine = crate::host::engine(Tuning::Never);
    let spec = RopeSpec::new(DType::F32, 8, 2, 1);
    let rope = engine.rope(&spec).expect("valid");
    let (mut q, mut k, table) = ([0f32; 48], [0f32; 24], [1f32; 12]);
    let mut subject = |q_layout: Layout, k_layout: Layout, with_k: bool, offset: i64, width: usize| {
        let q = Tensor::host(&mut q, q_layout)?;
        let k = Tensor::host(&mut k, k_layout)?;
        let args = Args {
            q: Operand::in_place(q),
            k: with_k.then(|| Operand::in_place(k)),
            tables: Tables::host(&table, &table, 1, width)?,
            positions: Positions::Offset(offset),
            norm: None,
            append: None,
        };
        rope.apply(Stream::DEFAULT, &args)
    };
    let (good_q, good_k) = (Layout::thd(3, 2, 8), Layout::thd(3, 1, 8));
    subject(good_q, good_k, true, 0, 4).expect("all fits");
    let mut named = |a, b, with_k, offset, width| {
        subject(a, b, with_k, offset, width).expect_err("refused").subject().unwrap_or_default().to_owned()
    };
    assert_eq!(named(good_q, good_k, false, 0, 4), "k");
    assert_eq!(named(Layout::thd(2, 2, 8), good_k, true, 0, 4), "k");
    assert_eq!(named(Layout::thd(6, 1, 8), good_k, true, 0, 4), "q");
    assert_eq!(named(Layout::thd(6, 2, 4), good_k, true, 0, 4), "q");
    assert_eq!(named(Layout::thd(7, 2, 8), good_k, true, 0, 4), "layout");
    assert_eq!(named(good_q.with_strides([0, 16, 1, 2]), good_k, true, 0, 4), "q");
    assert_eq!(named(good_q.with_strides([0, 0, 8, 1]), good_k, true, 0, 4), "q");
    assert_eq!(named(good_q, good_k, true, 1, 4), "offset");
    assert_eq!(named(good_q, good_k, true, -1, 4), "offset");
    assert_eq!(named(good_q, good_k, true, 0, 6), "cos, sin");
    assert_eq!(named(good_q, good_k, true, 0, 5), "cos");
    let mut bad = spec.clone();
    bad.head_dim = 7;
    assert_eq!(engine.rope(&bad).err().expect("refused").subject(), Some("head_dim"));
}

#[test]
fn no_token_is_no_work() {
    let engine = crate::host::engine(Tuning::Frozen);
    let rope = engine.rope(&RopeSpec::new(DType::F32, 8, 2, 0)).expect("valid");
    let (mut none, table) = ([0f32; 0], [1f32; 4]);
    let args = Args {
        q: Operand::in_place(Tensor::host(&mut none, Layout::thd(0, 2, 8)).expect("fits")),
        k: None,
        tables: Tables::host(&table, &table, 1, 4).expect("one row"),
        positions: Positions::Offset(0),
        norm: None,
        append: None,
    };
    rope.apply(Stream::DEFAULT, &args).expect("nothing to do, even when frozen");
}

/// Any byte of any entry flipped: the next process answers right, and heals the entry.
#[test]
fn a_flipped_byte_costs_a_recompile_and_is_healed() {
    let folder = tempfile::tempdir().expect("a folder");
    works(&on(folder.path(), Tuning::BLOCKING), &small());
    let engine = on(folder.path(), Tuning::BLOCKING);
    let listed: Vec<_> = Kind::ALL.into_iter().flat_map(|kind| engine.store().list(kind).expect("listed")).collect();
    let winner = listed
        .iter()
        .find_map(|l| serde_json::from_slice::<ChoiceMeta>(&l.entry.as_ref().expect("sound").meta).ok())
        .and_then(|m| m.record.chosen()?.artifact)
        .expect("has a winner");
    let used = listed.iter().filter(|l| {
        let entry = l.entry.as_ref().expect("sound");
        entry.kind == Kind::Choice || entry.key == winner
    });
    let mut flips = 0;
    for file in used.map(|l| l.path.clone()) {
        let good = fs_err::read(&file).expect("readable");
        // Every byte of the header and the digest, and a spread over what lies between.
        let spread = (0..good.len()).filter(|&i| i < 72 || i + 32 >= good.len() || i % 997 == 0);
        for at in spread {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            fs_err::write(&file, &bad).expect("written");
            let engine = on(folder.path(), Tuning::Never);
            works(&engine, &small());
            assert_eq!(engine.stats().unusable_entries, 1, "byte {at} of {}", file.display());
            if flips % 50 == 0 {
                let healing = on(folder.path(), Tuning::BLOCKING);
                works(&healing, &small());
                drop(healing);
                let after = on(folder.path(), Tuning::Frozen);
                works(&after, &small());
                assert_eq!((after.stats().unusable_entries, after.stats().compiles), (0, 0));
            }
            fs_err::write(&file, &good).expect("written");
            flips += 1;
        }
    }
    println!("{flips} flipped bytes, no wrong result");
}

#[test]
fn partial_rotary_is_prewarmed_for_both_placements() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut spec = RopeSpec::new(DType::BF16, 64, 4, 2);
    spec.rotary_dim = 32;
    let prewarmed = on(folder.path(), Tuning::Never).prewarm(&[spec.clone()], &[5, 8], false, false).expect("compiles");
    assert_eq!(prewarmed.len(), 2);
    let frozen = on(folder.path(), Tuning::Frozen);
    for in_place in [false, true] {
        works(&frozen, &Case { in_place, ..Case::new(spec.clone(), 1, 5) });
    }
    assert_eq!(frozen.stats().compiles, 0);
}

#[cfg(feature = "cli")]
#[test]
fn the_command_names_all_that_makes_a_missing_entry() {
    let engine = crate::host::engine(Tuning::Frozen);
    let mut spec = RopeSpec::new(DType::F16, 64, 4, 4).with_rounding(ropejit::Rounding::PerOp);
    spec = spec.with_table(DType::F16, ropejit::TableWidth::Full).with_positions(PositionForm::Ids64);
    let case = Case { order: crate::cases::Order::Bhsd, ..Case::new(spec, 1, 5) };
    let error = run(&engine, &case, &Data::new(&case, 1)).expect_err("nothing is cached");
    let hint = ropejit::cli::advice::advised(error).advice().expect("has a hint").to_owned();
    for flag in [
        "ropejit prewarm --dtype f16",
        "--rounding per-op",
        "--table same",
        "--table-width full",
        "--positions ids64",
        "--bhsd",
    ] {
        assert!(hint.contains(flag), "{flag} is not in: {hint}");
    }
}
