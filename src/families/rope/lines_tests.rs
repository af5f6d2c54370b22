use proptest::prelude::*;

use super::*;
use crate::error::ErrorKind;
use crate::families::families;
use crate::families::rope::render::{Dialect, templates_digest};
use crate::families::rope::text::tests::{classes, variants};
use crate::rope::DType;
use crate::rope::text::tests::specs;
use crate::service::device::Identity;
use crate::service::device::identity::tests::identities;
use crate::service::lock::{Lock, Section};

const GPU: &str = "NVIDIA H200; cc 9.0; 132 multiprocessors; L2 62914560 B; bus 6144 bit";
const HOST: &str = "a host; cc 0.0; 2 multiprocessors; L2 33554432 B; bus 0 bit";
const ANOTHER: &str = "NVIDIA H100; cc 9.0; 132 multiprocessors; L2 52428800 B; bus 5120 bit";
const CAN: Abilities = Abilities { dialect: Dialect::Cuda, overlap: true, cubins: None };

fn of(device: &str) -> Identity {
    device.parse().expect("an identity")
}

fn spec() -> RopeSpec {
    RopeSpec::new(DType::BF16, 128, 32, 8)
}

fn class() -> Class {
    Class::contiguous(&spec(), false, true)
}

fn locked(tokens: u64, variant: &str) -> Locked {
    Locked::of(&spec(), class(), Bucket::of(tokens), variant.parse().expect("a variant"))
}

fn parse(name: &str, text: &str) -> Result<Lock> {
    Lock::parse(name, text, families())
}

fn threads(locked: &Locked) -> u16 {
    locked.config.parse::<Variant>().expect("a variant").threads
}

/// Choices for the GPU, for its architecture and for a host.
fn sample() -> Lock {
    let mut lock = Lock::new(templates_digest());
    lock.set(Section::new("x86_64", Some(&of(HOST))), locked(8, "t128 v8 h1 wb/wb"));
    lock.set(Section::new("sm_90", None), locked(8192, "t128 v8 h1 wb/cs keep pdl"));
    lock.set(Section::new("sm_90", Some(&of(GPU))), locked(8192, "t256 v8 h1 wb/cs keep pdl"));
    lock.set(Section::new("sm_90", Some(&of(GPU))), locked(16, "t64 v8 h1 wb/wb pdl pf"));
    lock
}

fn body(text: &str) -> String {
    format!("version = 1\ntemplates = {}\n{text}", templates_digest())
}

#[test]
fn the_text_is_sorted_and_reads_back() {
    let text = sample().to_string();
    let lines: Vec<_> = text.lines().skip(4).filter(|l| !l.is_empty()).collect();
    let spec = "bf16 d128 h32/8 half_split once table=f32/half pos=implicit | bshd/16B/t16B";
    assert_eq!(
        lines,
        [
            "[sm_90]",
            &format!("{spec} | 8192 = t128 v8 h1 wb/cs keep pdl"),
            &format!("[sm_90: {GPU}]"),
            &format!("{spec} | 16 = t64 v8 h1 wb/wb pdl pf"),
            &format!("{spec} | 8192 = t256 v8 h1 wb/cs keep pdl"),
            &format!("[x86_64: {HOST}]"),
            &format!("{spec} | 8 = t128 v8 h1 wb/wb"),
        ]
    );
    let back = parse("rope.lock", &text).expect("reads back");
    assert_eq!(back.to_string(), text);
    assert_eq!(parse("f", &text.replace('\n', "\r\n")).expect("an editor's line ends").to_string(), text);
}

#[test]
fn the_device_comes_before_its_architecture() {
    let lock = sample();
    let (spec, class) = (spec().to_string(), class().to_string());
    let find =
        |arch, device, tokens| lock.find(arch, &of(device), &spec, &class, Bucket::of(tokens)).map(|(_, l)| threads(l));
    assert_eq!([find("sm_90", GPU, 8192), find("sm_90", ANOTHER, 8192)], [Some(256), Some(128)]);
    assert_eq!([find("sm_90", GPU, 16), find("sm_90", ANOTHER, 16), find("sm_80", GPU, 16)], [Some(64), None, None]);
    let of_arch: Vec<_> = lock.of_arch("sm_90", &spec, &class, Bucket::of(8192));
    assert_eq!(of_arch.iter().map(|l| threads(l)).collect::<Vec<_>>(), [128, 256]);
}

#[test]
fn what_is_wrong_is_named_by_file_and_line() {
    let good = "bf16 d128 h32/8 half_split once table=f32/half pos=implicit | bshd/16B/t16B | 8 = t128 v8 h1 wb/wb";
    for (text, line, part) in [
        (String::new(), 1, "ends before its header"),
        ("hello".into(), 1, "not a lock file"),
        ("# c\nversion = 2".into(), 2, "version 2, this program reads 1"),
        ("version = 1\ntemplates = 12".into(), 2, "64 hexadecimal digits"),
        (body(good), 3, "must stand in a section"),
        (body("[sm_90\n"), 3, "ends with ']'"),
        (body("[sm 90]\n"), 3, "named like [sm_90]"),
        (body("[sm_90: some device]\n"), 3, "identity of a device"),
        (body("[sm_90]\n[sm_90]"), 4, "a second time"),
        (body(&format!("[sm_90]\n{good}\n\n{good}")), 6, "line 4 has made this choice"),
        (body("[sm_90]\n<<<<<<< ours"), 4, "not of the form"),
        (body(&format!("[sm_90]\n{}", good.replace("bf16", "bf17"))), 4, "is not a spec"),
        (body(&format!("[sm_90]\n{}", good.replace("d128", "d127"))), 4, "head_dim: must be even"),
        (body(&format!("[sm_90]\n{}", good.replace("t16B", "t17B"))), 4, "is not a layout class"),
        (body(&format!("[sm_90]\n{}", good.replace("8 =", "9 ="))), 4, "is not a bucket"),
        (body(&format!("[sm_90]\n{}", good.replace("wb/wb", "wb/xx"))), 4, "is not a variant"),
    ] {
        let e = parse("rope.lock", &text).expect_err(part);
        assert_eq!((e.kind(), e.subject()), (ErrorKind::LockFile, Some(&*format!("rope.lock:{line}"))), "{e}");
        assert!(e.message().contains(part) && e.advice().is_some_and(|h| h.contains("correct the line")), "{e}");
    }
}

#[test]
fn what_no_longer_holds_is_told() {
    let read = |text: &str| parse("f", text).expect("reads");
    let lock = read(&sample().to_string());
    assert_eq!(lock.problems("sm_90", Some(&of(GPU)), CAN, families()), []);
    assert_eq!(lock.problems("sm_90", None, CAN, families()), []);
    assert_eq!(
        lock.problems("sm_90", Some(&of(ANOTHER)), CAN, families()),
        [],
        "the architecture's choices hold for it"
    );

    let other = lock.problems("sm_80", None, CAN, families());
    assert_eq!((other.len(), other[0].line), (1, 0));
    assert!(other[0].what.starts_with("no choices for sm_80; there are [sm_90], [sm_90: NVIDIA"), "{other:?}");

    let old = lock.problems("sm_90", Some(&of(GPU)), Abilities { overlap: false, ..CAN }, families());
    assert_eq!(old.iter().map(|p| p.line).collect::<Vec<_>>(), [7, 10, 11], "{old:?}");
    assert!(old.iter().all(|p| p.what.contains("not legal here: variant.overlap: needs compute capability")));

    let stale = read(&sample().to_string().replace(templates_digest(), &"0".repeat(64)));
    assert!(!stale.is_of(templates_digest()));
    let problems = stale.problems("x86_64", Some(&of(HOST)), CAN, families());
    assert_eq!((problems.len(), problems[0].line), (1, 4), "{problems:?}");
}

#[test]
fn sections_with_a_memory_clock_are_the_devices() {
    let line = |tokens: u64, threads: u32| {
        let spec = "bf16 d128 h32/8 half_split once table=f32/half pos=implicit | bshd/16B/t16B";
        format!("{spec} | {tokens} = t{threads} v8 h1 wb/wb\n")
    };
    let old = [
        format!("[sm_90: {GPU}; memory 0 kHz]\n{}", line(8, 64)),
        format!("# the other driver\n[sm_90: {GPU}; memory 3201000 kHz]\n{}{}", line(8, 128), line(16, 256)),
    ];
    let lock = parse("f", &body(&old.concat())).expect("reads");
    let (spec, class) = (spec().to_string(), class().to_string());
    let find = |tokens| lock.find("sm_90", &of(GPU), &spec, &class, Bucket::of(tokens)).map(|(_, l)| threads(l));
    assert_eq!([find(8), find(16)], [Some(64), Some(256)], "the first of two lines holds");
    let new = format!("# the other driver\n[sm_90: {GPU}]\n{}{}", line(8, 64), line(16, 256));
    assert_eq!(lock.to_string(), body(&new), "and it is written without the clock");
    // One text twice is a mistake as before.
    let e = parse("f", &body(&[&*old[1], &old[1]].concat())).expect_err("twice");
    assert!(e.message().contains("begins a second time"), "{e}");
}

#[test]
fn comments_and_empty_lines_stay_where_they_are() {
    let digest = templates_digest();
    let text = format!(
        "# ours\n\n#   indented\nversion = 1\n# which kernels\ntemplates = {digest}\n\n# everywhere\n[sm_90]\n\
         # best on the test bench\n{0} | 8192 = t128 v8 h1 wb/cs keep pdl\n\n# rack 4\n\n[sm_90: {GPU}]\n{0} | 16 = t64 v8 h1 wb/wb pdl pf\n\
         \n# the end\n",
        "bf16 d128 h32/8 half_split once table=f32/half pos=implicit | bshd/16B/t16B"
    );
    let mut lock = parse("f", &text).expect("reads");
    assert_eq!(lock.to_string(), text);
    // Another choice of the section, and a new section, stand where they belong.
    lock.set(Section::new("sm_90", Some(&of(GPU))), locked(8, "t64 v8 h1 wb/wb pdl pf"));
    lock.set(Section::new("sm_80", None), locked(8, "t64 v8 h1 wb/wb"));
    lock.set(Section::new("sm_90", None), locked(8192, "t256 v8 h1 wb/wb"));
    let more = lock.to_string();
    for line in text.lines().filter(|line| !line.contains("t128")) {
        assert!(more.contains(line), "{line} is not in\n{more}");
    }
    assert!(more.contains(&format!("templates = {digest}\n\n[sm_80]\n")), "{more}");
    assert!(more.contains("# best on the test bench\nbf16 d128 h32/8 half_split once table=f32/half pos=implicit | bshd/16B/t16B | 8192 = t256 "), "{more}");
    assert_eq!(parse("f", &more).expect("reads").to_string(), more);
    // Comments of lines that are no more come last.
    let stale = parse("f", &more.replace(digest, &"0".repeat(64))).expect("reads");
    let emptied = stale.renewed(families()).to_string();
    assert!(
        emptied.ends_with(&format!(
            "templates = {digest}\n# everywhere\n# rack 4\n# best on the test bench\n\n# the end\n"
        )),
        "{emptied}"
    );
    assert_eq!(parse("f", &emptied).expect("reads").to_string(), emptied);
}

/// Users' kernels are made of no templates of the crate's.
#[test]
fn other_templates_take_only_their_own_choices_away() {
    let own = |tokens: u64| format!("add_rmsnorm dtype=bf16,hidden=64 | x:16 | {tokens} = threads=64\n");
    let rope = "bf16 d128 h32/8 half_split once table=f32/half pos=implicit | bshd/16B/t16B | 8 = t64 v8 h1 wb/wb\n";
    let made_with =
        |digest: &str, lines: &str| parse("f", &body(lines).replace(templates_digest(), digest)).expect("reads");
    let old = "0".repeat(64);
    let both = format!("[sm_80]\n{rope}\n[sm_90]\n# ours\n{}{}{rope}", own(8), own(16));
    let stale = made_with(&old, &both);
    assert_eq!(stale.outdated(families()), 2);
    let left = format!("\n[sm_90]\n# ours\n{}{}", own(8), own(16));
    assert_eq!(stale.renewed(families()).to_string(), body(&left));
    let templates = |lock: &Lock| {
        let problems = lock.problems("sm_90", None, CAN, families());
        problems.iter().filter(|p| p.what.contains("templates")).count()
    };
    assert_eq!(templates(&stale), 1);
    // Where nothing depends on them, their digest says nothing.
    let only_own = made_with(&old, &left);
    assert_eq!((only_own.outdated(families()), templates(&only_own)), (0, 0));
    assert_eq!(only_own.renewed(families()).to_string(), body(&left));
    let current = parse("f", &body(&both)).expect("reads");
    assert_eq!((current.outdated(families()), current.renewed(families()).to_string()), (0, body(&both)));
}

proptest! {
    #[test]
    fn a_lock_reads_back(
        lines in prop::collection::vec((variants(), classes(), 0u32..30, 0usize..3, specs()), 0..20),
        device in identities(),
    ) {
        let (mut lock, host) = (Lock::new(templates_digest()), of(HOST));
        for (variant, class, bucket, place, spec) in lines {
            let place = [None, Some(&host), Some(&device)][place];
            let bucket = Bucket::of(1 << bucket);
            lock.set(Section::new("sm_90", place), Locked::of(&spec, class, bucket, variant));
        }
        let text = lock.to_string();
        prop_assert_eq!(parse("f", &text).expect("reads back").to_string(), text);
    }

    #[test]
    fn any_text_is_read_or_refused(text in "\\PC{0,200}", at in any::<prop::sample::Index>(), cut in any::<prop::sample::Index>()) {
        let _ = parse("f", &text);
        let mut near = sample().to_string(); // ASCII
        near.truncate(cut.index(near.len() + 1));
        near.insert_str(at.index(near.len() + 1), &text);
        for text in [near.clone(), body(&near), near.replace(' ', "\n"), near.replace('=', "|")] {
            if let Ok(lock) = parse("f", &text) {
                let _ = lock.problems("sm_90", Some(&of(GPU)), CAN, families());
                let again = lock.to_string();
                prop_assert_eq!(parse("f", &again).expect("what is written is read").to_string(), again);
            }
        }
    }
}
