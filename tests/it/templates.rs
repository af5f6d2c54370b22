//! Kernels of users on the host device: the whole way of a description and a text through the service.

use std::path::{Path, PathBuf};

use ropejit::engine::ChoiceMeta;
use ropejit::families::template::{Arg, Template, TemplateKernel};
use ropejit::store::Kind;
use ropejit::{DeviceChoice, Engine, ErrorKind, Origin, Stats, Stream, Tuning};

pub fn data() -> PathBuf {
    // A GPU host has the tests without their sources.
    let beside = std::env::current_exe().expect("has a path").parent().expect("in a folder").join("data/templates");
    if beside.is_dir() { beside } else { Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/templates") }
}

/// The description on the page that says what to write is right, for the text of the same kernel; and its Rust is the one that
/// the library's documentation compiles.
#[test]
fn what_the_page_shows_is_right() {
    let page = include_str!("../../docs/your-own-kernels.md");
    let block = |language: &str| {
        let start = page.find(&format!("```{language}\n")).expect("has one") + language.len() + 4;
        &page[start..start + page[start..].find("```").expect("ends")]
    };
    let folder = tempfile::tempdir().expect("a folder");
    fs_err::write(folder.path().join("page.toml"), block("toml")).expect("written");
    fs_err::copy(data().join("add_rmsnorm.cu"), folder.path().join("add_rmsnorm.cu")).expect("copied");
    let template = Template::load(folder.path().join("page.toml")).expect("is right");
    assert_eq!((template.family(), template.gpu_only()), ("add_rmsnorm", None));
    let compiled = include_str!("../../src/families/template/mod.rs");
    for line in block("rust,no_run").lines() {
        assert!(compiled.contains(&format!("//! {line}").trim_end().to_owned()), "{line}");
    }
}

fn on(folder: &Path, tuning: Tuning) -> Engine {
    Engine::builder().device(DeviceChoice::Host).cache_dir(folder).tuning(tuning).build().expect("opens")
}

/// `scale` with other texts in its files.
pub fn scale(toml: &[(&str, &str)], cu: &[(&str, &str)]) -> Template {
    let edited = |name: &str, edits: &[(&str, &str)]| {
        let text = fs_err::read_to_string(data().join(name)).expect("text");
        edits.iter().fold(text, |text, (from, to)| {
            assert!(text.contains(from), "{from}");
            text.replace(from, to)
        })
    };
    let folder = tempfile::tempdir().expect("a folder");
    fs_err::write(folder.path().join("scale.toml"), edited("scale.toml", toml)).expect("written");
    fs_err::write(folder.path().join("scale.cu"), edited("scale.cu", cu)).expect("written");
    Template::load(folder.path().join("scale.toml")).expect("is right")
}

pub fn kernel(engine: &Engine, template: &Template) -> TemplateKernel {
    engine.template(template).expect("runs here").spec([("dtype", "f32")]).expect("is right")
}

/// Calls `scale` with 1000 numbers and checks what comes out.
pub fn works(kernel: &TemplateKernel) -> Origin {
    let x: Vec<f32> = (0..1000u16).map(f32::from).collect();
    let mut y = vec![f32::NAN; 1000];
    let args = [
        Arg::host(&x, &[1000]).expect("fits"),
        Arg::host_mut(&mut y, &[1000]).expect("fits"),
        0.5f32.into(),
        1000u32.into(),
    ];
    let origin = kernel.launch(Stream::DEFAULT, &args).unwrap_or_else(|e| panic!("{e}"));
    drop(args);
    assert!(x.iter().zip(&y).all(|(x, y)| x * 0.5 == *y));
    origin
}

/// Whether a kernel for such a call is loaded.
pub fn serves(kernel: &TemplateKernel) -> bool {
    // As `works` has them: where an array lies on the stack may be of another class.
    let (x, mut y) = (vec![0f32; 1000], vec![0f32; 1000]);
    let args = [
        Arg::host(&x, &[1000]).expect("fits"),
        Arg::host_mut(&mut y, &[1000]).expect("fits"),
        0.5f32.into(),
        1000u32.into(),
    ];
    kernel.serving(Stream::DEFAULT, &args).expect("fits").is_some()
}

/// The record of the one choice in a store that was measured.
fn record(engine: &Engine) -> ropejit::jit::Record {
    let mut all = engine.store().list(Kind::Choice).expect("is listed").into_iter().filter_map(|listed| {
        let entry = listed.entry.ok()?;
        let meta: ChoiceMeta = serde_json::from_slice(&entry.meta).expect("reads");
        (meta.record.candidates.len() > 1).then_some(meta.record)
    });
    all.next().expect("a record")
}

#[test]
fn a_second_process_neither_compiles_nor_tunes() {
    let folder = tempfile::tempdir().expect("a folder");
    let template = Template::load(data().join("scale.toml")).expect("is right");
    let first = on(folder.path(), Tuning::BLOCKING);
    assert_eq!(works(&kernel(&first, &template)), Origin::Tuned);
    assert_eq!(works(&kernel(&first, &template)), Origin::Memory, "handles share what is loaded");
    assert_eq!((first.stats().compiles, first.stats().tunings, first.stats().memory_hits), (4, 1, 1));
    for tuning in [Tuning::Background, Tuning::BLOCKING, Tuning::Never, Tuning::Frozen] {
        let second = on(folder.path(), tuning);
        assert_eq!(works(&kernel(&second, &template)), Origin::Disk, "{tuning:?}");
        second.wait_tuned();
        let Stats { compiles, tunings, disk_hits, .. } = second.stats();
        assert_eq!((compiles, tunings, disk_hits), (0, 0, 1), "{tuning:?}");
    }
}

#[test]
fn background_answers_with_the_default_and_swaps_the_winner_in() {
    let folder = tempfile::tempdir().expect("a folder");
    let engine = on(folder.path(), Tuning::Background);
    let kernel = kernel(&engine, &Template::load(data().join("scale.toml")).expect("is right"));
    assert_eq!(works(&kernel), Origin::Compiled, "one compile is waited for, since nothing is shipped");
    engine.wait_tuned();
    assert_eq!(works(&kernel), Origin::Memory);
    let record = record(&engine);
    assert!(record.tuned && record.candidates.iter().all(|c| c.bit_equal == Some(true)), "{record:?}");
    assert_eq!(record.candidates[0].config.to_string(), "threads=256 vec=1");
    assert_eq!(engine.stats().compiles, 4);
}

#[test]
fn never_compiles_the_default_and_frozen_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let template = Template::load(data().join("scale.toml")).expect("is right");
    let frozen = on(folder.path(), Tuning::Frozen);
    let (x, mut y) = ([1f32; 4], [0f32; 4]);
    let args =
        [Arg::host(&x, &[4]).expect("fits"), Arg::host_mut(&mut y, &[4]).expect("fits"), 1f32.into(), 4u32.into()];
    let error = kernel(&frozen, &template).launch(Stream::DEFAULT, &args).expect_err("is not cached");
    assert_eq!((error.kind(), error.subject()), (ErrorKind::NotCached, Some("scale dtype=f32")));
    let never = on(folder.path(), Tuning::Never);
    assert_eq!(works(&kernel(&never, &template)), Origin::Compiled);
    never.wait_tuned();
    assert_eq!((never.stats().compiles, never.stats().tunings), (1, 0));
    assert_eq!(works(&kernel(&on(folder.path(), Tuning::Frozen), &template)), Origin::Disk);
}

#[test]
fn a_prewarm_leaves_nothing_to_do() {
    let folder = tempfile::tempdir().expect("a folder");
    let template = Template::load(data().join("scale.toml")).expect("is right");
    let engine = on(folder.path(), Tuning::Background);
    let done = kernel(&engine, &template).prewarm(&[1000, 1024, 1], true).expect("is prepared");
    assert_eq!(done.iter().map(|d| d.bucket.tokens()).collect::<Vec<_>>(), [1, 1024]);
    assert!(done.iter().all(|d| d.spec == "scale dtype=f32" && d.provenance.is_tuned()), "{done:?}");
    assert_eq!(done[0].class, "x:16 y:16");
    let engine = on(folder.path(), Tuning::Never);
    let again = kernel(&engine, &template).prewarm(&[1000, 1], true).expect("is there");
    // Both buckets may have chosen one kernel, which is then read once.
    assert_eq!(again[0].origin, Origin::Disk);
    assert!(again.iter().all(|d| matches!(d.origin, Origin::Disk | Origin::Memory)), "{again:?}");
    assert_eq!((engine.stats().compiles, engine.stats().tunings), (0, 0));
    let frozen = on(folder.path(), Tuning::Frozen);
    assert_eq!(works(&kernel(&frozen, &template)), Origin::Disk);
}

#[test]
fn what_a_call_computes_is_what_the_text_says() {
    let engine = crate::host::engine(Tuning::Never);
    let template = Template::load(data().join("add_rmsnorm.toml")).expect("is right");
    let (rows, hidden) = (3, 300);
    let kernel = engine.template(&template).expect("runs here");
    let kernel = kernel.spec([("dtype", "f32"), ("hidden", "300")]).expect("is right");
    let number = |i: usize| ((i * 7919) % 1009) as f32 / 500.0 - 1.0;
    let x: Vec<f32> = (0..rows * hidden).map(number).collect();
    let mut residual: Vec<f32> = (0..rows * hidden).map(|i| number(i + 5)).collect();
    let weight: Vec<f32> = (0..hidden).map(|i| number(i + 11)).collect();
    let (before, mut y) = (residual.clone(), vec![0f32; rows * hidden]);
    let shape = [rows as u64, hidden as u64];
    let args = [
        Arg::host(&x, &shape).expect("fits"),
        Arg::host_mut(&mut residual, &shape).expect("fits"),
        Arg::host(&weight, &shape[1..]).expect("fits"),
        Arg::host_mut(&mut y, &shape).expect("fits"),
        rows.into(),
        1e-6f32.into(),
    ];
    kernel.launch(Stream::DEFAULT, &args).expect("runs");
    drop(args);
    for row in 0..rows {
        let at = row * hidden..(row + 1) * hidden;
        let sums: Vec<f32> = x[at.clone()].iter().zip(&before[at.clone()]).map(|(x, r)| x + r).collect();
        assert_eq!(residual[at.clone()], sums);
        let mut parts = [0f32; 128];
        sums.iter().enumerate().for_each(|(i, r)| parts[i % 128] += r * r);
        for half in [64, 32, 16, 8, 4, 2, 1] {
            (0..half).for_each(|i| parts[i] += parts[i + half]);
        }
        let scale = 1.0 / (parts[0] / 300.0 + 1e-6f32).sqrt();
        let wanted: Vec<f32> = sums.iter().zip(&weight).map(|(r, w)| r * scale * w).collect();
        assert_eq!(y[at], wanted, "row {row}");
    }
}

#[test]
fn what_misbehaves_is_never_chosen_and_the_record_says_why() {
    for (cu, why) in [
        (("* factor", "* (factor + 0.25f * (VEC > 1))"), "'y' differs from the default's in 1 of 1 elements"),
        (("extern", "#if VEC > 1\n#error not for this one\n#endif\nextern"), "the kernel does not compile"),
        (("else {", "else if (VEC == 1) {"), "leaves 1 of 1 elements of 'y' unwritten, the first number 0"),
        (("j < n", "j < n + (VEC > 1)"), "writes outside of 'y': byte 0 past its end, with factor = 1.5, n = 1"),
    ] {
        let folder = tempfile::tempdir().expect("a folder");
        let template = scale(&[("n = [1, 1000]", "n = 1")], &[cu]);
        let engine = on(folder.path(), Tuning::BLOCKING);
        let done = kernel(&engine, &template).prewarm(&[64], true).expect("is tuned");
        assert!(done[0].config.ends_with("vec=1"), "{done:?}");
        let record = record(&engine);
        for candidate in record.candidates.iter().filter(|c| c.config.to_string().ends_with("vec=4")) {
            let dropped = candidate.dropped.as_deref().expect("is left out");
            assert!(dropped.contains(why), "{dropped}");
        }
    }
}

/// The kernel waits until a folder is gone, which the test removes, so that its process can end.
#[test]
fn where_a_candidate_hangs_the_default_serves_from_then_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let held = tempfile::tempdir().expect("a folder");
    let access = "extern \"C\" int access(const char*, int);\nextern";
    let wait = format!(
        "if (VEC > 1 && blockIdx.x + threadIdx.x == 0) while (access(\"{}\", 0) == 0) {{}}\n    const u32 i",
        held.path().display()
    );
    let template = scale(&[("n = [1, 1000]", "n = 1")], &[("extern", access), ("const u32 i", &wait)]);
    let engine = on(folder.path(), Tuning::BLOCKING);
    let done = kernel(&engine, &template).prewarm(&[64], true).expect("is settled");
    assert_eq!(done[0].config, "threads=256 vec=1");
    let record = record(&engine);
    assert!(record.tuned && record.winner == 0);
    let why: Vec<_> = record.candidates.iter().map(|c| c.dropped.as_deref().unwrap_or("")).collect();
    assert!(why.contains(&"hangs: it has not ended in 10 s, with factor = 1.5, n = 1"), "{why:?}");
    let next = on(folder.path(), Tuning::Background);
    kernel(&next, &template).prewarm(&[64], true).expect("is there");
    assert_eq!((next.stats().tunings, next.stats().compiles), (0, 0), "nothing hangs again");
}

#[test]
fn a_default_that_misbehaves_is_an_error_that_says_why() {
    let folder = tempfile::tempdir().expect("a folder");
    let template = scale(
        &[],
        &[("const DTYPE* x", "DTYPE* x"), ("store_pack(y + i, p);", "store_pack(y + i, p), x[i] = p.at[0];")],
    );
    let engine = on(folder.path(), Tuning::BLOCKING);
    let error = kernel(&engine, &template).prewarm(&[64], true).expect_err("has no default").to_string();
    assert!(error.contains("writes to 'x', which is in: element 0, with factor = 1.5, n = 1"), "{error}");
}

#[test]
fn within_a_tolerance_nothing_is_swapped_in_a_process() {
    let folder = tempfile::tempdir().expect("a folder");
    let template = scale(
        &[("n = [1, 1000]", "n = 1000\nsame = { rtol = 0.5 }")],
        &[(
            "i + VEC <= n) {",
            "i + VEC <= n) {\n        if (VEC == 1) for (volatile int turn = 0; turn < 2000; turn = turn + 1) {}",
        )],
    );
    let engine = on(folder.path(), Tuning::Background);
    let first = kernel(&engine, &template);
    assert_eq!(works(&first), Origin::Compiled);
    engine.wait_tuned();
    let record = record(&engine);
    assert!(record.tuned && record.winner != 0, "the default is slow: {record:?}");
    let x = [0f32; 1000];
    let mut y = [0f32; 1000];
    let args = [
        Arg::host(&x, &[1000]).expect("fits"),
        Arg::host_mut(&mut y, &[1000]).expect("fits"),
        1f32.into(),
        1000.into(),
    ];
    let serving = first.serving(Stream::DEFAULT, &args).expect("fits").expect("is loaded");
    assert_eq!(serving.config, "threads=256 vec=1", "the first choice stays");
    let next = kernel(&on(folder.path(), Tuning::Background), &template);
    assert_eq!(works(&next), Origin::Disk);
    let serving = next.serving(Stream::DEFAULT, &args).expect("fits").expect("is loaded");
    assert_eq!(serving.config, record.candidates[record.winner].config.to_string());
}

#[test]
fn what_only_gpus_have_is_not_served_here() {
    let template = scale(&[], &[("const u32 i", "asm volatile(\"\");\n    const u32 i")]);
    assert_eq!(template.gpu_only(), Some("line 2: asm holds instructions of GPUs"));
    let error = crate::host::engine(Tuning::Never).template(&template).err().expect("does not run");
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert_eq!(error.to_string(), "scale: the kernel runs on GPUs only: line 2: asm holds instructions of GPUs");
}

#[test]
fn calls_of_other_alignment_get_what_is_legal_for_them() {
    let engine = crate::host::engine(Tuning::Never);
    let kernel = kernel(&engine, &Template::load(data().join("scale.toml")).expect("is right"));
    let (x, mut y) = (vec![1f32; 1001], vec![0f32; 1001]);
    for offset in [0, 1] {
        let (x, y) = (&x[offset..offset + 1000], &mut y[offset..offset + 1000]);
        let args = [
            Arg::host(x, &[1000]).expect("fits"),
            Arg::host_mut(y, &[1000]).expect("fits"),
            0.5f32.into(),
            1000u32.into(),
        ];
        kernel.launch(Stream::DEFAULT, &args).expect("runs");
    }
    assert_eq!(engine.stats().compiles, 1, "one default for both");
    assert!(y.iter().all(|y| *y == 0.5));
}
