//! NVRTC without a GPU: every variant of the space really compiles, to what it should. Needs NVRTC (`make nvrtc`).

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use ropejit::device::Device as _;
use ropejit::device::Target;
use ropejit::jit::render::{Dialect, render};
use ropejit::jit::{Abilities, Bucket, Class, variant};
use ropejit::{DType, Direction, PairStyle, PositionForm, RopeSpec, Rounding};

/// Sources of all variants for a spread of specs, layouts and buckets.
fn sources(can: Abilities) -> BTreeSet<String> {
    let mut specs = Vec::new();
    for dtype in DType::ALL {
        specs.push(RopeSpec::new(dtype, 128, 32, 8));
    }
    specs.push(RopeSpec::new(DType::BF16, 80, 32, 32).with_rounding(Rounding::PerOp));
    specs.push(RopeSpec::new(DType::BF16, 256, 16, 8).with_positions(PositionForm::Ids64));
    specs.push(RopeSpec::new(DType::F16, 64, 32, 8).with_positions(PositionForm::Ids32));
    specs.push(RopeSpec::new(DType::BF16, 128, 32, 8).with_positions(PositionForm::CuSeqlens));
    specs.push(RopeSpec::new(DType::F32, 64, 8, 0).with_positions(PositionForm::CuSeqlens64));
    let mut all = BTreeSet::new();
    for spec in specs {
        for head_major in [false, true] {
            let class = Class::contiguous(&spec, head_major, true);
            for tokens in [1, 8192] {
                for v in variant::space(&spec, class, Bucket::of(tokens), can) {
                    all.insert(render(Dialect::Cuda, &spec, class, v));
                }
            }
        }
    }
    all
}

/// Two nodes with the same NVRTC say the same, wherever it lies.
#[test]
fn the_compiler_is_known_by_its_version_alone() {
    let compiler = Target::new("sm_90").expect("a known architecture").compiler().unwrap_or_else(|e| panic!("{e}"));
    let build = compiler.strip_prefix("nvrtc ").expect("nvrtc").split('.').map(str::parse::<u32>);
    assert!(build.clone().count() == 3 && build.clone().all(|n| n.is_ok()), "{compiler}");
    let (path, version) = ropejit::device::nvrtc_version().expect("found");
    assert!(version == compiler && path.is_absolute() && !path.to_string_lossy().contains("builtins"), "{path:?}");
}

/// Of the four products of a pair two are rounded, and two are fused with what these gave: nothing else is added or multiplied.
#[test]
fn contracted_products_are_fused_one_of_two() {
    for arch in ["sm_80", "sm_90", "sm_100"] {
        let target = Target::new(arch).expect("a known architecture");
        for dtype in DType::ALL {
            for direction in [Direction::Forward, Direction::Backward] {
                let mut spec = RopeSpec::new(dtype, 128, 32, 8).with_rounding(Rounding::Contracted);
                (spec.style, spec.direction) = (PairStyle::Interleaved, direction);
                let class = Class::contiguous(&spec, false, true);
                let v = variant::space(&spec, class, Bucket::of(8192), target.abilities())[0];
                let source = ropejit::jit::render::source(render(Dialect::Cuda, &spec, class, v));
                let (binary, _) = target.compile_with(&source, &[]).unwrap_or_else(|e| panic!("{arch}: {e}"));
                let ptx = String::from_utf8_lossy(binary.ptx());
                let count = |operation: &str| ptx.matches(operation).count();
                assert!(count("fma.rn.f32") > 0, "{arch} {spec}\n{ptx}");
                assert_eq!(count("fma.rn.f32"), count("mul.rn.f32"), "{arch} {spec}\n{ptx}");
                assert_eq!(count("fma."), count("fma.rn.f32"), "{arch} {spec}\n{ptx}");
                assert_eq!(count("add.rn.f32") + count("sub.rn.f32") + count("mad.f"), 0, "{arch} {spec}\n{ptx}");
            }
        }
    }
}

#[test]
fn every_variant_compiles_without_fma_or_spill() {
    let (next, mut total) = (AtomicUsize::new(0), 0);
    for arch in ["sm_80", "sm_90", "sm_100"] {
        let target = Target::new(arch).expect("a known architecture");
        let sources: Vec<String> = sources(target.abilities()).into_iter().collect();
        total += sources.len();
        next.store(0, Relaxed);
        std::thread::scope(|scope| {
            for _ in 0..std::thread::available_parallelism().map_or(1, std::num::NonZero::get) {
                scope.spawn(|| {
                    while let Some(source) = sources.get(next.fetch_add(1, Relaxed)) {
                        let (binary, log) = target
                            .compile_with(&ropejit::jit::render::source(source.clone()), &["--ptxas-options=-v"])
                            .unwrap_or_else(|e| panic!("{arch}: {e}"));
                        let ptx = String::from_utf8_lossy(binary.ptx());
                        assert!(!ptx.contains("fma.") && !ptx.contains("mad.f"), "{arch}: fused operations\n{source}");
                        // What the kernel ahead may still write is read after the wait for it.
                        assert!(!ptx.contains(".nc."), "{arch}: a load that may move\n{source}");
                        if let Some(wait) = ptx.find("griddepcontrol.wait") {
                            let early = ptx[..wait].contains("ld.global") || ptx[..wait].contains("st.global");
                            assert!(!early, "{arch}: an access in front of the wait\n{source}");
                        }
                        assert!(ptx.contains("griddepcontrol.wait") == target.abilities().overlap, "{arch}\n{source}");
                        assert!(!ptx.contains(".approx"), "{arch}: an approximation\n{source}");
                        assert!(!ptx.contains(".local"), "{arch}: local memory\n{source}");
                        assert!(log.contains("0 bytes spill stores, 0 bytes spill loads"), "{arch}: {log}\n{source}");
                        assert!(binary.image().starts_with(b"\x7fELF"), "{arch}: no cubin");
                    }
                });
            }
        });
    }
    println!("{total} kernels for three architectures");
    assert!(total > 100);
}
