//! Engines that follow choices which come with the crate, on the host device with choices of their own.

use std::path::Path;

use ropejit::engine::{Builder, ChoiceMeta};
use ropejit::jit::lock::{Lock, Locked, Section};
use ropejit::jit::prior::Priors;
use ropejit::jit::{Bucket, Class, Prior, Record, Variant, variant};
use ropejit::store::Kind;
use ropejit::{DType, DeviceChoice, Direction, Engine, Origin, RopeSpec, Tuning};

use crate::cases::Case;
use crate::engine::{small, works};

/// The variants for `small()`, the default first.
fn space(engine: &Engine) -> Vec<Variant> {
    let spec = small().spec;
    variant::space(&spec, Class::contiguous(&spec, false, true), Bucket::of(5), engine.device().abilities())
}

/// A lock file's text that names the last variant of `small()` on a device like this host, or on one with another name.
fn text(name: Option<&str>) -> (String, Variant) {
    let host = crate::host::engine(Tuning::Never);
    let (spec, mut facts) = (small().spec, host.facts().clone());
    let (class, variant) = (Class::contiguous(&spec, false, true), space(&host)[space(&host).len() - 1]);
    if let Some(name) = name {
        name.clone_into(&mut facts.name);
    }
    let mut lock = Lock::new(ropejit::jit::render::templates_digest());
    let place = Section::new(&facts.arch, Some(&facts.identity()));
    lock.set(place, Locked::of(&spec, class, Bucket::of(5), variant));
    (lock.to_string(), variant)
}

fn on(folder: &Path, tuning: Tuning) -> Builder {
    Engine::builder().device(DeviceChoice::Host).cache_dir(folder).tuning(tuning)
}

/// An engine whose priors name a variant for `small()`: of this host, or of another.
fn with_priors(folder: &Path, tuning: Tuning, name: Option<&str>) -> (Engine, Variant) {
    let (text, variant) = text(name);
    let priors = Priors::parse([("test", &*text)]).expect("a lock file");
    (on(folder, tuning).given_priors(priors).build().expect("opens"), variant)
}

/// Compiles, tunings and priors.
fn work(engine: &Engine) -> [u64; 3] {
    let stats = engine.stats();
    [stats.compiles, stats.tunings, stats.priors]
}

/// The device's choice for `small()`.
fn record(engine: &Engine) -> Record {
    let records = engine.store().list(Kind::Choice).expect("listed").into_iter().map(|listed| {
        let meta: ChoiceMeta = serde_json::from_slice(&listed.entry.expect("sound").meta).expect("readable");
        (meta.fields.get("device") == Some(&engine.facts().identity().to_string()), meta.record)
    });
    records.filter(|(own, _)| *own).map(|(_, record)| record).next().expect("a choice of the device")
}

#[test]
fn a_known_device_compiles_one_kernel_and_measures_nothing() {
    for tuning in [Tuning::Background, Tuning::BLOCKING, Tuning::Never] {
        let folder = tempfile::tempdir().expect("a folder");
        let (engine, variant) = with_priors(folder.path(), tuning, None);
        assert_eq!(works(&engine, &small()), Origin::Compiled, "{tuning:?}");
        engine.wait_tuned();
        let serving = engine.rope(&small().spec).expect("valid").serving(5, false).expect("loaded");
        assert_eq!((serving.variant, serving.tuned, serving.prior), (variant, false, true), "{tuning:?}");
        assert_eq!(work(&engine), [1, 0, 1], "{tuning:?}");
        let record = record(&engine);
        assert_eq!((record.how(), record.candidates.len()), ("prior", 1));
        assert_eq!(record.prior, Some(Prior::Chose(engine.facts().name.clone())));
        // A later process finds it, whatever its policy, and has nothing left to do.
        for tuning in [Tuning::Background, Tuning::BLOCKING, Tuning::Frozen] {
            let later = on(folder.path(), tuning).build().expect("opens");
            assert_eq!(works(&later, &small()), Origin::Disk, "{tuning:?}");
            later.wait_tuned();
            assert_eq!(work(&later), [0, 0, 0], "{tuning:?}");
        }
    }
}

#[test]
fn a_call_that_is_near_enough_takes_the_choice_and_others_do_not() {
    let folder = tempfile::tempdir().expect("a folder");
    let (engine, variant) = with_priors(folder.path(), Tuning::Never, None);
    let mut near = small();
    near.spec.direction = Direction::Backward;
    works(&engine, &near);
    assert_eq!(engine.rope(&near.spec).expect("valid").serving(5, false).expect("loaded").variant, variant);
    works(&engine, &Case::new(RopeSpec::new(DType::BF16, 128, 4, 2), 1, 5));
    assert_eq!(work(&engine), [2, 0, 1]);
}

#[test]
fn a_prewarm_takes_the_choice_unless_it_is_to_measure() {
    for tune in [true, false] {
        let folder = tempfile::tempdir().expect("a folder");
        let (engine, variant) = with_priors(folder.path(), Tuning::Background, None);
        let done = engine.prewarm(&[small().spec], &[5], false, tune).expect("made");
        assert_eq!((done.len(), done[0].variant, done[0].tuned, done[0].prior), (1, variant, false, true));
        assert_eq!(work(&engine), [1, 0, 1]);
        // Found by the next, and made anew where priors do not count.
        let (engine, _) = with_priors(folder.path(), Tuning::Background, None);
        let again = engine.prewarm(&[small().spec], &[5], false, tune).expect("found");
        assert_eq!((again[0].origin, again[0].prior, work(&engine)), (Origin::Disk, true, [0, 0, 0]));
        let engine = on(folder.path(), Tuning::Background).priors(false).build().expect("opens");
        let measured = engine.prewarm(&[small().spec], &[5], false, true).expect("made");
        assert_eq!((measured[0].tuned, engine.stats().tunings, record(&engine).prior), (true, 1, None));
        assert_eq!(record(&engine).candidates.len(), space(&engine).len());
    }
}

/// As an image leaves it that was filled without the device.
#[test]
fn a_cached_default_answers_and_the_choice_is_swapped_in_unmeasured() {
    let folder = tempfile::tempdir().expect("a folder");
    let image = on(folder.path(), Tuning::Never).priors(false).build().expect("opens");
    works(&image, &small());
    let (engine, variant) = with_priors(folder.path(), Tuning::Background, None);
    assert_eq!(works(&engine, &small()), Origin::Disk);
    engine.wait_tuned();
    let serving = engine.rope(&small().spec).expect("valid").serving(5, false).expect("loaded");
    assert_eq!((serving.variant, serving.prior, work(&engine)), (variant, true, [1, 0, 1]));
}

#[test]
fn on_an_unknown_device_few_candidates_are_measured() {
    let folder = tempfile::tempdir().expect("a folder");
    let (engine, variant) = with_priors(folder.path(), Tuning::BLOCKING, Some("Another"));
    assert!(space(&engine).len() > 2);
    assert_eq!(works(&engine, &small()), Origin::Tuned);
    assert_eq!(work(&engine), [2, 1, 0]);
    let few = record(&engine);
    let variants: Vec<Variant> = few.candidates.iter().map(|c| c.config.to().expect("a variant")).collect();
    assert_eq!((variants, few.tuned), (vec![space(&engine)[0], variant], true));
    assert_eq!(few.prior, Some(Prior::Ordered("Another".into())));
    // It stands, but for those who want all measured.
    let later = on(folder.path(), Tuning::BLOCKING).build().expect("opens");
    assert_eq!((works(&later, &small()), work(&later)), (Origin::Disk, [0, 0, 0]));
    let all = on(folder.path(), Tuning::BLOCKING).priors(false).build().expect("opens");
    assert_eq!(works(&all, &small()), Origin::Tuned);
    let record = record(&all);
    assert_eq!((record.candidates.len(), record.tuned, record.prior), (space(&all).len(), true, None));
}

#[test]
fn a_lock_file_wins() {
    let folder = tempfile::tempdir().expect("a folder");
    let (text, variant) = text(None);
    let default = space(&crate::host::engine(Tuning::Never))[0];
    let lock = folder.path().join("rope.lock");
    fs_err::write(&lock, text.replace(&format!(" = {variant}\n"), &format!(" = {default}\n"))).expect("written");
    let priors = Priors::parse([("test", &*text)]).expect("a lock file");
    let builder = on(&folder.path().join("cache"), Tuning::BLOCKING).given_priors(priors).lock_file(&lock);
    let engine = builder.build().expect("opens");
    works(&engine, &small());
    let serving = engine.rope(&small().spec).expect("valid").serving(5, false).expect("loaded");
    assert_eq!((serving.variant, serving.prior, work(&engine)), (default, false, [1, 0, 0]));
}
