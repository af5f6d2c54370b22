//! What is missing, superfluous, of another length, type or place is refused, and named.

use ropejit::args::NumberType;
use ropejit::rope::{Append, Flavour, Fp8, Norm, Rsqrt, ScaleUse, SlotForm};
use ropejit::{DType, DeviceChoice, Direction, Engine, ErrorKind, RopeSpec, Tuning};

use super::data::View;
use super::run::{run, run_as};
use super::{Case, Data};

fn normed(flavour: Flavour, direction: Direction) -> RopeSpec {
    let mut spec = RopeSpec::new(DType::F16, 8, 2, 1).with_norm(Norm::new(flavour).with_rsqrt(Rsqrt::Ieee));
    spec.direction = direction;
    spec
}

fn appending(append: Append) -> RopeSpec {
    RopeSpec::new(DType::F16, 8, 2, 1).with_append(append)
}

/// A change to what is right.
type Change = fn(&mut Data);
type SpecChange = fn(&mut RopeSpec);

/// What a call is refused for whose arguments have been changed; empty where it is not.
fn subject(engine: &Engine, spec: &RopeSpec, change: impl Fn(&mut Data)) -> String {
    let case = Case::new(spec.clone(), 2, 3);
    let mut data = Data::new(&case, 1);
    change(&mut data);
    subject_of(run(engine, &case, &data).err())
}

fn subject_of(error: Option<ropejit::Error>) -> String {
    let Some(error) = error else { return String::new() };
    assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    error.subject().unwrap_or("no subject").to_owned()
}

/// One number less than there were.
fn shorten(data: &mut Data, base: Option<usize>) {
    let base = &mut data.bases[base.expect("there")];
    let len = base.bytes.len() - base.number.size();
    base.bytes.truncate(len);
}

/// As many numbers of another type.
fn retype(data: &mut Data, base: Option<usize>) {
    let base = &mut data.bases[base.expect("there")];
    let len = base.bytes.len() / base.number.size();
    base.number = match base.number {
        NumberType::I64 => NumberType::I32,
        NumberType::I32 => NumberType::I64,
        NumberType::Element(DType::F32) => NumberType::Element(DType::BF16),
        NumberType::Element(_) => NumberType::Element(DType::F32),
    };
    base.bytes.resize(len * base.number.size(), 0);
}

fn extra(data: &mut Data) -> usize {
    data.add_elements("extra", DType::F16, 8, |_| 1.0)
}

fn extra_scale(data: &mut Data) -> usize {
    data.add_elements("extra", DType::F32, 1, |_| 1.0)
}

fn refused(engine: &Engine, spec: &RopeSpec, changes: &[(&str, Change)]) {
    assert_eq!(subject(engine, spec, |_| ()), "", "{spec} is right as it is");
    for (n, (name, change)) in changes.iter().enumerate() {
        assert_eq!(subject(engine, spec, change), *name, "change {n} of {spec}");
    }
}

#[test]
fn arguments_of_a_norm_are_named() {
    let engine = crate::host::engine(Tuning::Never);
    let weights: [(&str, Change); 8] = [
        ("q_weight", |d| d.weight[0] = None),
        ("k_weight", |d| d.weight[1] = None),
        ("q_weight", |d| shorten(d, d.weight[0])),
        ("k_weight", |d| shorten(d, d.weight[1])),
        ("q_weight", |d| retype(d, d.weight[0])),
        ("rsqrt.k", |d| d.rsqrt[1] = None),
        ("rsqrt.q", |d| shorten(d, d.rsqrt[0])),
        ("rsqrt.k", |d| retype(d, d.rsqrt[1])),
    ];
    let gradients: [(&str, Change); 12] = [
        ("rsqrt", |d| d.rsqrt = [None; 2]),
        ("norm.gradient.k", |d| d.x[1] = None),
        ("norm.gradient.q", |d| d.x[0] = d.x[1]),
        ("norm.gradient.k", |d| d.x[1] = d.x[0]),
        ("norm.gradient.q", |d| d.x[0].as_mut().expect("there").dtype = DType::BF16),
        ("norm.gradient.q_weight", |d| d.weight_gradient[0] = None),
        ("norm.gradient.k_weight", |d| d.weight_gradient[1] = None),
        ("norm.gradient.q_weight", |d| shorten(d, d.weight_gradient[0])),
        ("norm.gradient.k_weight", |d| retype(d, d.weight_gradient[1])),
        ("norm.gradient.workspace", |d| d.workspace = None),
        ("norm.gradient.workspace", |d| shorten(d, d.workspace)),
        ("norm.gradient.workspace", |d| retype(d, d.workspace)),
    ];
    refused(&engine, &normed(Flavour::WeightAfter, Direction::Forward), &weights);
    refused(&engine, &normed(Flavour::OnePlusWeight, Direction::Backward), &weights);
    refused(&engine, &normed(Flavour::WeightF32, Direction::Backward), &gradients);
    // Roots are saved where they are given, and not otherwise.
    assert_eq!(subject(&engine, &normed(Flavour::WeightAfter, Direction::Forward), |d| d.rsqrt = [None; 2]), "");
    // Without a weight, one is superfluous, and so is all that is for its gradient.
    refused(
        &engine,
        &normed(Flavour::NoWeight, Direction::Backward),
        &[
            ("q_weight", |d| d.weight[0] = Some(extra(d))),
            ("k_weight", |d| d.weight[1] = Some(extra(d))),
            ("norm.gradient.q_weight", |d| d.weight_gradient[0] = Some(extra(d))),
            ("norm.gradient.k_weight", |d| d.weight_gradient[1] = Some(extra(d))),
            ("norm.gradient.workspace", |d| d.workspace = Some(extra(d))),
        ],
    );
    // Without k, so is what is for k.
    let mut alone = normed(Flavour::WeightAfter, Direction::Backward);
    alone.num_kv_heads = 0;
    refused(
        &engine,
        &alone,
        &[
            ("k_weight", |d| d.weight[1] = Some(extra(d))),
            ("rsqrt.k", |d| d.rsqrt[1] = Some(extra(d))),
            ("norm.gradient.k", |d| d.x[1] = d.x[0]),
            ("norm.gradient.k_weight", |d| d.weight_gradient[1] = Some(extra(d))),
        ],
    );
}

#[test]
fn an_eps_is_a_number_from_zero_on() {
    let engine = crate::host::engine(Tuning::Never);
    for eps in [-1e-6, f32::NAN, -f32::INFINITY] {
        let case = Case { eps, ..Case::new(normed(Flavour::NoWeight, Direction::Forward), 1, 2) };
        assert_eq!(subject_of(run(&engine, &case, &Data::new(&case, 1)).err()), "eps", "{eps}");
    }
}

#[test]
fn what_a_spec_has_or_has_not_is_given_or_not() {
    let engine = crate::host::engine(Tuning::Never);
    let plain = RopeSpec::new(DType::F16, 8, 2, 1);
    let mut read_back = plain.clone();
    read_back.direction = Direction::Backward;
    let forward = normed(Flavour::WeightAfter, Direction::Forward);
    let backward = normed(Flavour::WeightAfter, Direction::Backward);
    let append = appending(Append::new(8));
    // Arguments of the second spec for the first.
    for (of, given, name) in [
        (&plain, &forward, "norm"),
        (&forward, &plain, "norm"),
        (&forward, &backward, "norm.gradient"),
        (&backward, &forward, "norm.gradient"),
        (&read_back, &backward, "norm"),
        (&append, &plain, "append"),
        (&plain, &append, "append"),
    ] {
        let case = Case::new(given.clone(), 2, 3);
        let data = Data::new(&case, 1);
        assert_eq!(subject_of(run_as(&engine, of, &case, &data).err()), name, "{given} for {of}");
    }
    let pages = appending(Append { slots: SlotForm::Pages, ..Append::new(8) });
    for (of, given) in [(&append, &pages), (&pages, &append)] {
        let case = Case::new(given.clone(), 2, 3);
        assert_eq!(subject_of(run_as(&engine, of, &case, &Data::new(&case, 1)).err()), "slots");
    }
}

#[test]
fn arguments_of_an_append_are_named() {
    let engine = crate::host::engine(Tuning::Never);
    let fp8 = Some(Fp8::new(ScaleUse::Divide));
    let plain = appending(Append::new(6));
    refused(
        &engine,
        &plain,
        &[
            ("k", |d| d.input[1] = None),
            ("v", |d| d.input[2] = None),
            ("v", |d| d.cache[1] = None),
            ("v", |d| d.input[2] = d.input[1]),
            ("v", |d| d.input[2].as_mut().expect("there").dtype = DType::BF16),
            ("k output", |d| d.output[1] = d.input[1].map(|k| View { base: d.output[0].expect("q").base, ..k })),
            ("k_cache", |d| d.cache[0].as_mut().expect("there").dtype = DType::BF16),
            ("k_cache", |d| d.cache[0].as_mut().expect("there").layout.shape[2] = 2),
            ("k_cache", |d| d.cache[0].as_mut().expect("there").layout.shape[3] = 6),
            ("k_cache", |d| d.cache[0].as_mut().expect("there").layout.strides[1] = 0),
            ("k_cache", |d| d.cache[0].as_mut().expect("there").layout.strides[3] = 2),
            ("v_cache", |d| d.cache[1].as_mut().expect("there").layout.shape[0] -= 1),
            ("v_cache", |d| d.cache[1].as_mut().expect("there").layout.shape[1] -= 1),
            ("v_cache", |d| d.cache[1].as_mut().expect("there").layout.strides[0] = 1),
            ("v_cache", |d| d.cache[1] = d.cache[0]),
            ("slot_mapping", |d| shorten(d, Some(d.slots[0]))),
            ("slot_mapping", |d| retype(d, Some(d.slots[0]))),
            ("q_scale", |d| d.scale[0] = Some(extra_scale(d))),
            ("k_scale", |d| d.scale[1] = Some(extra_scale(d))),
            ("v_scale", |d| d.scale[2] = Some(extra_scale(d))),
        ],
    );
    refused(
        &engine,
        &appending(Append { slots: SlotForm::Pages, ..Append::new(8) }),
        &[
            ("positions", |d| shorten(d, Some(d.slots[0]))),
            ("positions", |d| retype(d, Some(d.slots[0]))),
            ("batch_indices", |d| shorten(d, Some(d.slots[1]))),
            ("batch_indices", |d| retype(d, Some(d.slots[1]))),
            ("kv_indptr", |d| retype(d, Some(d.slots[2]))),
            ("kv_indices", |d| retype(d, Some(d.slots[3]))),
        ],
    );
    refused(
        &engine,
        &appending(Append { cache: fp8, q: fp8, ..Append::new(8) }),
        &[
            ("q_scale", |d| d.scale[0] = None),
            ("k_scale", |d| d.scale[1] = None),
            ("v_scale", |d| d.scale[2] = None),
            ("q_scale", |d| retype(d, d.scale[0])),
            ("v_scale", |d| shorten(d, d.scale[2])),
            // In place, or as it is.
            ("q", |d| d.output[0] = d.input[0]),
            ("q", |d| d.output[0].as_mut().expect("there").dtype = DType::F16),
            ("v_cache", |d| d.cache[1].as_mut().expect("there").dtype = DType::F16),
        ],
    );
    let per_head = Some(Fp8 { scale: ScaleUse::Multiply, per_head: true });
    let mut spec = appending(Append { cache: per_head, q: per_head, ..Append::new(8) });
    spec.num_kv_heads = 2;
    refused(
        &engine,
        &spec,
        &[
            ("q_scale", |d| shorten(d, d.scale[0])),
            ("k_scale", |d| shorten(d, d.scale[1])),
            ("v_scale", |d| shorten(d, d.scale[2])),
        ],
    );
    // A latent row without v: heads of v, their cache and scale are superfluous.
    refused(
        &engine,
        &appending(Append { cache: fp8, ..Append::new(0) }),
        &[
            ("v", |d| d.input[2] = d.input[1]),
            ("v", |d| d.cache[1] = d.cache[0]),
            ("v_scale", |d| d.scale[2] = Some(extra_scale(d))),
        ],
    );
}

/// A cache must not lie where the call reads from.
#[test]
fn caches_that_overlap_inputs_are_refused() {
    let engine = crate::host::engine(Tuning::Never);
    let spec = appending(Append::new(8));
    for input in 0..3 {
        for (which, name) in ["k_cache", "v_cache"].into_iter().enumerate() {
            // The cache begins at the last element of the input.
            let overlap = subject(&engine, &spec, |d| {
                let read = d.input[input].expect("there");
                let cache = d.cache[which].as_mut().expect("there");
                let end = d.bases[read.base].bytes.len();
                d.bases[read.base].bytes.resize(end + 2 * cache.layout.len(), 0);
                (cache.base, cache.offset) = (read.base, end / 2 - 1);
            });
            assert_eq!(overlap, name, "over input {input}");
            // And behind it.
            let behind = subject(&engine, &spec, |d| {
                let read = d.input[input].expect("there");
                let cache = d.cache[which].as_mut().expect("there");
                let end = d.bases[read.base].bytes.len();
                d.bases[read.base].bytes.resize(end + 2 * cache.layout.len(), 0);
                (cache.base, cache.offset) = (read.base, end / 2);
            });
            assert_eq!(behind, "", "behind input {input}");
        }
    }
}

/// Slots are counted in 31 bits: a cache of more is refused before anything is read.
#[test]
fn a_cache_of_too_many_slots_is_unsupported() {
    let engine = crate::host::engine(Tuning::Never);
    let spec = appending(Append::new(8));
    let case = Case::new(spec, 2, 3);
    let mut data = Data::new(&case, 1);
    for cache in data.cache.iter_mut().flatten() {
        (cache.layout.shape[0], cache.layout.shape[1]) = (1 << 20, 1 << 11);
        cache.layout.strides = [1 << 14, 8, 8, 1];
        // Nowhere near an input.
        cache.offset = 1 << 59;
    }
    let error = run(&engine, &case, &data).expect_err("too many");
    assert_eq!((error.kind(), error.subject()), (ErrorKind::Unsupported, Some("k_cache")), "{error}");
}

/// The approximate root is a GPU's own, and the host says so.
#[test]
fn an_approximate_root_is_refused_on_the_host() {
    let engine = Engine::builder().device(DeviceChoice::Host).in_memory().tuning(Tuning::Never).build().expect("host");
    let spec = RopeSpec::new(DType::BF16, 128, 2, 1).with_norm(Norm::new(Flavour::WeightAfter));
    let error = engine.rope(&spec).err().expect("refused");
    assert_eq!((error.kind(), error.subject()), (ErrorKind::Unsupported, Some("norm.rsqrt")), "{error}");
    assert!(error.advice().is_some_and(|hint| hint.contains("Ieee")), "{error}");
}

/// What no kernel computes is refused when a handle is asked for.
#[test]
fn specs_that_are_no_computation_are_refused() {
    let engine = crate::host::engine(Tuning::Never);
    let norm = Norm::new(Flavour::NoWeight).with_rsqrt(Rsqrt::Ieee);
    let base = RopeSpec::new(DType::F16, 64, 2, 1);
    let changes: [(&str, SpecChange); 9] = [
        ("k_head_dim", |s| s.k_head_dim = Some(32)),
        ("k_head_dim", |s| s.k_head_dim = Some(64)),
        ("part", |s| s.part = ropejit::rope::RotaryPart::Last),
        ("append", |s| s.direction = Direction::Backward),
        ("append", |s| s.num_kv_heads = 0),
        ("append.v_head_dim", |s| s.append.as_mut().expect("appends").v_head_dim = 3),
        ("append.v_head_dim", |s| s.append.as_mut().expect("appends").v_head_dim = 514),
        ("append", |s| {
            s.dtype = DType::F32;
            s.append.as_mut().expect("appends").cache = Some(Fp8::new(ScaleUse::Divide));
        }),
        ("dtype", |s| s.dtype = DType::E4M3),
    ];
    for (name, change) in changes {
        let mut spec = base.clone().with_append(Append::new(64));
        change(&mut spec);
        assert_eq!(subject_of(engine.rope(&spec).err()), name);
    }
    let mut spec = base.with_norm(norm);
    (spec.rotary_dim, spec.k_head_dim) = (16, Some(16));
    assert_eq!(subject_of(engine.rope(&spec).err()), "norm");
}
