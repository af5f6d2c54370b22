//! The kernels for all shapes: their text on the host, and how an engine uses what is shipped. Needs a C++ compiler.

use std::sync::Arc;

use ropejit::device::host::Host;
use ropejit::store::memory::InMemory;
use ropejit::{DType, Engine, Origin, RopeSpec, Tuning};

use crate::cases::{Case, Data, assert_bits, assert_right, run};

/// An engine on a processor that has portable kernels, as a GPU has.
fn engine(tuning: Tuning, store: &Arc<InMemory>) -> Engine {
    let device = Arc::new(Host::open().with_portable());
    Engine::builder().with_device(device).store(Arc::clone(store) as _).tuning(tuning).build().expect("opened")
}

#[test]
fn one_text_computes_every_form_to_the_bit() {
    let engine = engine(Tuning::Never, &Arc::default());
    all_are_portable(&engine);
    crate::angles::every_form(&engine);
    crate::angles::far_positions(&engine);
    crate::eager::check_all(&engine);
    let stats = engine.stats();
    assert_eq!((stats.compiles, stats.tunings, stats.disk_hits), (0, 0, 0));
}

/// The grid and all forms, each served by a portable kernel.
pub fn all_are_portable(engine: &Engine) {
    let mut served = 0;
    for (i, case) in crate::host::grid().iter().chain(&crate::host::forms()).enumerate() {
        let data = Data::new(case, 500 + i as u64);
        let (origin, _) = assert_right(engine, case, &data);
        assert!(matches!(origin, Origin::Embedded | Origin::Memory), "{origin:?} for {case:?}");
        served += u32::from(origin == Origin::Embedded);
    }
    assert!(served > 50, "{served}");
}

#[test]
fn it_answers_first_and_what_is_tuned_takes_over() {
    let store = Arc::default();
    let case = Case::new(RopeSpec::new(DType::BF16, 72, 4, 2), 1, 7);
    let data = Data::new(&case, 1);
    let go = |engine: &Engine| {
        let (origin, got) = run(engine, &case, &data).expect("served");
        assert_bits(&case, &got, &data.expected);
        origin
    };
    let background = engine(Tuning::Background, &store);
    assert_eq!(go(&background), Origin::Embedded);
    background.wait_tuned();
    assert_eq!((background.stats().tunings, background.stats().embedded_hits), (1, 1));
    let serving = background.rope(&case.spec).expect("valid").serving(7, false).expect("loaded");
    assert!(serving.tuned && serving.origin == Origin::Tuned, "{serving:?}");
    assert_eq!(go(&background), Origin::Memory);
    // The next process finds it; one that is frozen too.
    for tuning in [Tuning::Background, Tuning::Never, Tuning::Frozen] {
        assert_eq!(go(&engine(tuning, &store)), Origin::Disk);
    }
    // Frozen, what is shipped does not count: it would hide a gap of the prewarm.
    let frozen = run(&engine(Tuning::Frozen, &Arc::default()), &case, &data);
    assert_eq!(frozen.expect_err("not cached").kind(), ropejit::ErrorKind::NotCached);
    // Blocking waits for the tuning, though something is shipped.
    assert_eq!(go(&engine(Tuning::BLOCKING, &Arc::default())), Origin::Tuned);
    // Never: nothing is done on the side.
    let never = engine(Tuning::Never, &Arc::default());
    assert_eq!(go(&never), Origin::Embedded);
    never.wait_tuned();
    assert_eq!((never.stats().compiles, never.stats().tunings), (0, 0));
}

/// A head that most models have: what is shipped for it is a candidate like others, and where it is chosen nothing is compiled.
#[test]
fn what_is_shipped_can_be_the_choice() {
    use ropejit::jit::{Bucket, Class, Variant, variant};
    let case = Case::new(RopeSpec::new(DType::BF16, 64, 4, 2), 1, 7);
    let data = Data::new(&case, 1);
    let device = Host::open().with_portable();
    let class = Class::contiguous(&case.spec, false, true);
    let space = variant::space(&case.spec, class, Bucket::of(7), ropejit::device::Device::abilities(&device));
    let shipped: Vec<&Variant> = space.iter().filter(|v| v.shipped).collect();
    assert!(!shipped.is_empty() && space[0].shipped && space.len() > shipped.len(), "{space:?}");
    let folder = tempfile::tempdir().expect("a folder");
    for chosen in shipped {
        let lock = folder.path().join("rope.lock");
        let facts = ropejit::device::Device::facts(&device);
        let text = format!(
            "version = 1\ntemplates = {}\n\n[{}]\n{} | {class} | 8 = {chosen}\n",
            ropejit::jit::render::templates_digest(),
            facts.arch,
            case.spec
        );
        fs_err::write(&lock, text).expect("written");
        let builder = Engine::builder().with_device(Arc::new(Host::open().with_portable())).in_memory();
        let engine = builder.lock_file(&lock).tuning(Tuning::Frozen).build().expect("opened");
        let (origin, got) = run(&engine, &case, &data).expect("served, though nothing is cached");
        assert_bits(&case, &got, &data.expected);
        let stats = engine.stats();
        assert_eq!((origin, stats.embedded_hits, stats.compiles), (Origin::Embedded, 1, 0), "{chosen}");
    }
    // Without what is shipped, such a variant is not legal.
    let builder = Engine::builder().with_device(Arc::new(device)).in_memory().portable(false);
    let engine = builder.lock_file(folder.path().join("rope.lock")).tuning(Tuning::Frozen).build().expect("opened");
    let refused = run(&engine, &case, &data).expect_err("refused").to_string();
    assert!(refused.contains("comes with this release"), "{refused}");
}

#[test]
fn a_choice_whose_kernel_is_gone_is_compiled_beside() {
    use ropejit::store::{Kind, Store as _};
    let store: Arc<InMemory> = Arc::default();
    let case = Case::new(RopeSpec::new(DType::F32, 64, 2, 1), 1, 3);
    let data = Data::new(&case, 2);
    let go = |engine: &Engine| run(engine, &case, &data).expect("served").0;
    assert_eq!(go(&engine(Tuning::BLOCKING, &store)), Origin::Tuned);
    for listed in store.list(Kind::Artifact).expect("listed") {
        store.remove(Kind::Artifact, listed.entry.expect("sound").key).expect("removed");
    }
    let background = engine(Tuning::Background, &store);
    assert_eq!(go(&background), Origin::Embedded);
    background.wait_tuned();
    let stats = background.stats();
    assert_eq!((stats.compiles, stats.tunings), (1, 0), "the choice's kernel alone is made again");
    assert_eq!(go(&engine(Tuning::Frozen, &store)), Origin::Disk);
}
