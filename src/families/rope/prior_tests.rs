use super::*;
use crate::families::rope::render::Dialect;
use crate::rope::scaling::TableMode;
use crate::rope::{DType, Direction, PositionForm, Rounding, TableWidth};
use crate::service::lock::{Locked, Section};

const H200: &str = "NVIDIA H200; cc 9.0; 132 multiprocessors; L2 62914560 B; bus 6144 bit; memory 3201000 kHz";
const GPU: Abilities = Abilities { dialect: Dialect::Cuda, overlap: true, cubins: None };

fn llama(dtype: DType) -> RopeSpec {
    RopeSpec::new(dtype, 128, 32, 8)
}

fn class(spec: &RopeSpec) -> Class {
    Class::contiguous(spec, false, true)
}

fn candidates(spec: &RopeSpec, tokens: u64) -> Vec<Variant> {
    space(spec, class(spec), Bucket::of(tokens), GPU)
}

fn of(device: &str) -> Identity {
    device.parse().expect("an identity")
}

/// A lock file's text: for each spec and token count, which of its candidates was chosen on a device.
fn text(device: &str, choices: &[(&RopeSpec, u64, usize)]) -> String {
    let mut lock = Lock::new(templates_digest());
    for &(spec, tokens, index) in choices {
        let (class, bucket, variant) = (class(spec), Bucket::of(tokens), candidates(spec, tokens)[index]);
        lock.set(Section::new("sm_90", Some(&of(device))), Locked::of(spec, class, bucket, variant));
    }
    lock.to_string()
}

fn priors(device: &str, choices: &[(&RopeSpec, u64, usize)]) -> Priors {
    Priors::parse([("test", &*text(device, choices))]).expect("a lock file")
}

fn exact(priors: &Priors, device: &str, spec: &RopeSpec, tokens: u64) -> Option<Variant> {
    priors.exact(&of(device), spec, class(spec), Bucket::of(tokens), GPU).map(|(_, v)| v)
}

fn few(priors: &Priors, device: &str, spec: &RopeSpec, tokens: u64) -> Option<Vec<Variant>> {
    priors.few(&of(device), spec, class(spec), Bucket::of(tokens), GPU).map(|(_, v)| v)
}

#[test]
fn what_does_not_bear_on_timing_is_not_compared() {
    let spec = llama(DType::BF16);
    let priors = priors(H200, &[(&spec, 8192, 2)]);
    let want = Some(candidates(&spec, 8192)[2]);
    assert_eq!(exact(&priors, H200, &spec, 8000), want);
    assert_eq!(exact(&priors, &H200.replace("3201000", "0"), &spec, 8192), want, "clocks do not tell models apart");
    let mut backward = llama(DType::BF16);
    backward.direction = Direction::Backward;
    for same in [
        backward,
        llama(DType::F16),
        llama(DType::BF16).with_table(DType::F32, TableWidth::Full),
        llama(DType::BF16).with_angles(TableMode::Accurate),
        RopeSpec::new(DType::BF16, 128, 28, 4),
    ] {
        assert_eq!(exact(&priors, H200, &same, 8192), want, "{same}");
    }
    for other in [
        llama(DType::F32),
        llama(DType::BF16).with_rounding(Rounding::PerOp),
        llama(DType::BF16).with_positions(PositionForm::Ids64),
        llama(DType::BF16).with_table(DType::BF16, TableWidth::Half),
        RopeSpec::new(DType::BF16, 64, 32, 8),
        RopeSpec::new(DType::BF16, 128, 4, 1),
    ] {
        assert_eq!(exact(&priors, H200, &other, 8192), None, "{other}");
    }
    let head_major = Class::contiguous(&spec, true, true);
    assert_eq!(priors.exact(&of(H200), &spec, head_major, Bucket::of(8192), GPU), None);
    for device in [
        H200.replace("H200", "H100"),
        H200.replace("132", "66"),
        H200.replace("6144", "5120"),
        "AMD EPYC; cc 0.0; 2 multiprocessors; L2 1 B; bus 0 bit; memory 0 kHz".into(),
    ] {
        assert_eq!(exact(&priors, &device, &spec, 8192), None, "{device}");
    }
}

#[test]
fn what_streams_is_alike_and_nothing_else() {
    let spec = llama(DType::BF16);
    let priors = priors(H200, &[(&spec, 512, 1), (&spec, 1024, 2), (&spec, 16384, 3), (&spec, 32768, 4)]);
    let at = |tokens| exact(&priors, H200, &spec, tokens);
    assert_eq!(at(512), Some(candidates(&spec, 512)[1]));
    assert_eq!(at(256), None);
    assert_eq!(at(4096), None, "84 MB are not yet twice the L2");
    assert_eq!(at(8192), Some(candidates(&spec, 16384)[3]));
    assert_eq!(at(16384), Some(candidates(&spec, 16384)[3]));
    assert_eq!(at(1 << 20), Some(candidates(&spec, 32768)[4]));
    // 32 heads instead of 40.
    let narrow = RopeSpec::new(DType::BF16, 128, 28, 4);
    assert_eq!(exact(&priors, H200, &narrow, 512), None);
    assert_eq!(exact(&priors, H200, &narrow, 16384), Some(candidates(&spec, 16384)[3]));
}

#[test]
fn a_choice_outside_of_the_space_serves_nobody() {
    let spec = llama(DType::BF16);
    let text = text(H200, &[(&spec, 8192, 1)]).replace(" = t256 ", " = t1024 ").replace(" = t128 ", " = t1024 ");
    let priors = Priors::parse([("test", &*text)]).expect("a lock file");
    assert_eq!(exact(&priors, H200, &spec, 8192), None);
    assert_eq!(few(&priors, H200, &spec, 8192), None, "all are measured");
    // Made for a GPU that can overlap launches, on a driver that cannot.
    let priors = self::priors(H200, &[(&spec, 8192, 1)]);
    let can = Abilities { overlap: false, ..GPU };
    assert_eq!(priors.exact(&of(H200), &spec, class(&spec), Bucket::of(8192), can), None);
    let (_, few) = priors.few(&of(H200), &spec, class(&spec), Bucket::of(8192), can).expect("the same idea");
    assert_eq!(few[1], Variant { overlap: false, ..candidates(&spec, 8192)[1] });
}

#[test]
fn other_templates_only_order() {
    let spec = llama(DType::BF16);
    let digest = crate::families::rope::render::templates_digest();
    let text = text(H200, &[(&spec, 8192, 2)]).replace(digest, &"0".repeat(64));
    let priors = Priors::parse([("test", &*text)]).expect("a lock file");
    assert_eq!(exact(&priors, H200, &spec, 8192), None);
    let all = candidates(&spec, 8192);
    assert_eq!(few(&priors, H200, &spec, 8192), Some(vec![all[0], all[2]]));
}

#[test]
fn on_another_gpu_the_nearest_choices_come_first_and_few() {
    let (spec, f32) = (llama(DType::BF16), llama(DType::F32));
    let choices = [(&spec, 8192, 4), (&spec, 16384, 0), (&spec, 4096, 2), (&f32, 8192, 1), (&f32, 16384, 3)];
    let priors = priors(H200, &choices);
    let b200 = "NVIDIA B200; cc 10.0; 148 multiprocessors; L2 132644864 B; bus 8192 bit; memory 3996000 kHz";
    let all = candidates(&spec, 8192);
    assert!(all.len() > FEW + 1);
    let (device, few) = priors.few(&of(b200), &spec, class(&spec), Bucket::of(8192), GPU).expect("ordered");
    assert_eq!((device, few), ("NVIDIA H200", vec![all[0], all[4], all[2], all[1]]));
    // A host learns nothing from a GPU, and nobody from nothing.
    let host = "AMD EPYC; cc 0.0; 2 multiprocessors; L2 33554432 B; bus 0 bit; memory 0 kHz";
    assert_eq!(self::few(&priors, host, &spec, 8192), None);
    assert_eq!(self::few(&Priors::default(), b200, &spec, 8192), None);
}

#[test]
fn the_most_similar_gpu_orders() {
    let spec = llama(DType::BF16);
    let l4 = "NVIDIA L4; cc 8.9; 58 multiprocessors; L2 50331648 B; bus 192 bit; memory 6251000 kHz";
    let texts = [text(H200, &[(&spec, 8192, 1)]), text(l4, &[(&spec, 8192, 2)])];
    let priors = Priors::parse(texts.iter().map(|t| ("test", &**t))).expect("lock files");
    let of =
        |device: &str| priors.few(&self::of(device), &spec, class(&spec), Bucket::of(8192), GPU).map(|(name, _)| name);
    let h100 = "NVIDIA H100 80GB HBM3; cc 9.0; 132 multiprocessors; L2 52428800 B; bus 5120 bit; memory 2619000 kHz";
    let ada = "NVIDIA GeForce RTX 4070; cc 8.9; 46 multiprocessors; L2 37748736 B; bus 192 bit; memory 10501000 kHz";
    assert_eq!((of(h100), of(ada)), (Some("NVIDIA H200"), Some("NVIDIA L4")));
}

/// Whether they were measured with these templates is `make check-priors`' to say: older ones still order.
#[test]
fn the_shipped_ones_are_lock_files_of_devices() {
    let files = files().unwrap_or_else(|e| panic!("{e}"));
    for ((name, lock), (_, text)) in files.iter().zip(SHIPPED) {
        let known = Priors::parse([(*name, *text)]).expect("read above").known;
        let measured = lock.choices().filter(|(section, _)| section.device.is_some()).count();
        assert_eq!(known.iter().map(|k| k.choices.len()).sum::<usize>(), measured, "a device's identity is not read");
    }
    shipped();
}

#[test]
fn fused_choices_serve_fused_calls_that_cost_the_same() {
    use crate::rope::{Append, Flavour, Fp8, Norm, Rsqrt, ScaleUse, SumOrder};
    let norm = Norm::new(Flavour::WeightAfter);
    let spec = llama(DType::BF16).with_norm(norm);
    let known = priors(H200, &[(&spec, 8192, 2)]);
    let want = Some(candidates(&spec, 8192)[2]);
    for same in [
        Norm::new(Flavour::OnePlusWeight),
        Norm::new(Flavour::NoWeight),
        norm.with_order(SumOrder::Tree),
        norm.with_rsqrt(Rsqrt::Ieee),
    ] {
        assert_eq!(exact(&known, H200, &llama(DType::BF16).with_norm(same), 8192), want, "{same}");
    }
    let fp8 = Some(Fp8::new(ScaleUse::Divide));
    let appended = |append| llama(DType::BF16).with_append(append);
    let mut backward = spec.clone();
    backward.direction = Direction::Backward;
    let mut moved = spec.clone();
    moved.style = PairStyle::Deinterleave;
    for other in [
        llama(DType::BF16),
        backward,
        moved,
        RopeSpec::new(DType::BF16, 64, 32, 8).with_norm(norm),
        llama(DType::BF16).with_norm(Norm { after_rope: true, ..norm }),
        spec.clone().with_append(Append::new(128)),
        appended(Append::new(128)),
    ] {
        assert_eq!(exact(&known, H200, &other, 8192), None, "{other}");
    }
    let stored = appended(Append { cache: fp8, q: fp8, ..Append::new(128) });
    let known = priors(H200, &[(&stored, 16384, 1)]);
    let scaled = Some(Fp8 { scale: ScaleUse::Multiply, per_head: true });
    let same = appended(Append { cache: scaled, q: scaled, ..Append::new(128) });
    assert_eq!(exact(&known, H200, &same, 16384), Some(candidates(&stored, 16384)[1]));
    for other in [Append::new(128), Append { cache: fp8, ..Append::new(128) }, Append { q: fp8, ..Append::new(128) }] {
        assert_eq!(exact(&known, H200, &appended(other), 16384), None, "{other}");
    }
}

#[test]
fn fused_and_other_choices_do_not_order_each_other() {
    use crate::rope::{Flavour, Norm};
    let plain = llama(DType::BF16);
    let fused = llama(DType::BF16).with_norm(Norm::new(Flavour::WeightAfter));
    let b200 = "NVIDIA B200; cc 10.0; 148 multiprocessors; L2 132644864 B; bus 8192 bit; memory 3996000 kHz";
    let of_both = priors(H200, &[(&plain, 8192, 2), (&fused, 8192, 3)]);
    for (spec, index) in [(&plain, 2), (&fused, 3)] {
        let all = candidates(spec, 8192);
        assert_eq!(few(&of_both, b200, spec, 8192), Some(vec![all[0], all[index]]), "{spec}");
    }
    assert_eq!(few(&priors(H200, &[(&plain, 8192, 2)]), b200, &fused, 8192), None, "all are measured");
    assert_eq!(few(&priors(H200, &[(&fused, 8192, 3)]), b200, &plain, 8192), None, "all are measured");
}
