//! What a call costs on the host: the keys and the source of a first call, the path of every later one.

#![allow(missing_docs)] // what criterion_group! makes

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use ropejit::families::rope::choice_fields;
use ropejit::jit::lock::{Lock, Locked, Section};
use ropejit::jit::prior::Priors;
use ropejit::jit::render::{Dialect, render, source};
use ropejit::jit::{Abilities, Bucket, Class, Identity, KeyFields, variant};
use ropejit::{DType, DeviceChoice, Engine, RopeSpec, Tuning};
use ropejit_dev::{apply, smallest};

fn first_call(c: &mut Criterion) {
    let spec = RopeSpec::new(DType::BF16, 128, 32, 8);
    let class = Class::contiguous(&spec, false, true);
    let bucket = Bucket::of(8192);
    let can = Abilities { dialect: Dialect::Cuda, overlap: true, cubins: None };
    let space = variant::space(&spec, class, bucket, can);
    let v = space[0];
    c.bench_function("choice key", |b| {
        b.iter(|| choice_fields(black_box(&spec), bucket, class, &space, "device").key());
    });
    c.bench_function("render", |b| b.iter(|| render(Dialect::Cuda, black_box(&spec), class, v)));
    let source = source(render(Dialect::Cuda, &spec, class, v));
    c.bench_function("artifact key", |b| {
        b.iter(|| KeyFields::artifact(black_box(&source), &[], "compiler", "sm_90").key());
    });
}

/// A miss reads the priors once, then looks into them.
fn priors(c: &mut Criterion) {
    let of = |name| Identity::new(name, (9, 0), 132, 62_914_560, 6144);
    let (h200, b200) = (of("NVIDIA H200"), of("NVIDIA B200"));
    let can = Abilities { dialect: Dialect::Cuda, overlap: true, cubins: None };
    let mut lock = Lock::new(ropejit::jit::render::templates_digest());
    for i in 0..600 {
        let spec = RopeSpec::new(DType::BF16, 128, 1 + i / 15, 8);
        let (class, bucket) = (Class::contiguous(&spec, false, true), Bucket::of(1 << (i % 15)));
        let variant = variant::space(&spec, class, bucket, can)[0];
        lock.set(Section::new("sm_90", Some(&h200)), Locked::of(&spec, class, bucket, variant));
    }
    let text = lock.to_string();
    let read = || Priors::parse([("priors", black_box(&*text))]).expect("a lock file");
    c.bench_function("600 priors, read", |b| b.iter(read));
    let (priors, spec, bucket) = (read(), RopeSpec::new(DType::F16, 128, 32, 8), Bucket::of(4096));
    let class = Class::contiguous(&spec, false, true);
    c.bench_function("600 priors, exact", |b| b.iter(|| priors.exact(&h200, &spec, class, bucket, can)));
    c.bench_function("600 priors, few", |b| b.iter(|| priors.few(&b200, &spec, class, bucket, can)));
}

/// The smallest kernel there is, on the host device: what remains is the way to it.
fn later_calls(c: &mut Criterion) {
    let engine = Engine::builder().device(DeviceChoice::Host).in_memory().tuning(Tuning::Never).build().expect("opens");
    let rope = engine.rope(&smallest()).expect("valid");
    let (mut q, mut k) = ([1f32; 2], [1f32; 2]);
    c.bench_function("apply, 1 token, 1 head of 2", |b| b.iter(|| apply(&rope, &mut q, &mut k)));
}

criterion_group!(benches, first_call, priors, later_calls);
criterion_main!(benches);
