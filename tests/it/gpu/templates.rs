//! Kernels of users on a GPU: tuned, checked, captured, and what misbehaves.

use cudarc::driver::CudaContext;
use half::bf16;
use ropejit::families::template::{Arg, Template, TemplateKernel};
use ropejit::{Engine, Origin, Stream, Tuning};

use crate::templates::{data, scale};

fn kernel(engine: &Engine, template: &Template, spec: &[(&str, &str)]) -> TemplateKernel {
    engine.template(template).expect("runs here").spec(spec.iter().copied()).expect("is right")
}

#[test]
fn a_kernel_is_tuned_and_serves() {
    let _beside = super::beside();
    let Some(engine) = super::engine("templates::a_kernel_is_tuned_and_serves", Tuning::BLOCKING) else { return };
    let template = Template::load(data().join("add_rmsnorm.toml")).expect("is right");
    let kernel = kernel(&engine, &template, &[("dtype", "bf16"), ("hidden", "4096")]);
    let stream = CudaContext::new(0).expect("the device is there").new_stream().expect("made");
    let (rows, hidden) = (64, 4096);
    let number = |i: usize| bf16::from_f32(((i * 7919) % 1009) as f32 / 500.0 - 1.0);
    let host: [Vec<bf16>; 3] = [0, 5, 11].map(|off| (off..off + rows * hidden).map(number).collect());
    let x = stream.clone_htod(&host[0]).expect("copied");
    let mut residual = stream.clone_htod(&host[1]).expect("copied");
    let weight = stream.clone_htod(&host[2][..hidden]).expect("copied");
    let mut y = stream.clone_htod(&vec![bf16::NAN; rows * hidden]).expect("copied");
    let shape = [rows as u64, hidden as u64];
    let args = [
        Arg::cuda(&x, &shape, &stream).expect("fits"),
        Arg::cuda_mut(&mut residual, &shape, &stream).expect("fits"),
        Arg::cuda(&weight, &shape[1..], &stream).expect("fits"),
        Arg::cuda_mut(&mut y, &shape, &stream).expect("fits"),
        rows.into(),
        1e-6f32.into(),
    ];
    assert_eq!(kernel.launch(Stream::from(stream.as_ref()), &args).expect("runs"), Origin::Tuned);
    drop(args);
    let (got, sums) = (stream.clone_dtoh(&y).expect("copied"), stream.clone_dtoh(&residual).expect("copied"));
    for row in 0..rows {
        let at = row * hidden..(row + 1) * hidden;
        let wanted: Vec<f32> = host[0][at.clone()]
            .iter()
            .zip(&host[1][at.clone()])
            .map(|(x, r)| bf16::from_f32(x.to_f32() + r.to_f32()).to_f32())
            .collect();
        assert!(sums[at.clone()].iter().zip(&wanted).all(|(got, wanted)| got.to_f32() == *wanted), "row {row}");
        let scale = 1.0 / (wanted.iter().map(|r| r * r).sum::<f32>() / hidden as f32 + 1e-6).sqrt();
        for (i, got) in got[at].iter().enumerate() {
            let wanted = wanted[i] * scale * host[2][i].to_f32();
            assert!((got.to_f32() - wanted).abs() <= 0.01 * wanted.abs() + 1e-3, "row {row}, {i}: {got} and {wanted}");
        }
    }
    let stats = engine.stats();
    assert_eq!((stats.compiles, stats.tunings), (9, 1));
}

#[test]
fn what_misbehaves_is_left_out_by_name() {
    let _beside = super::beside();
    for (cu, why) in [
        (("* factor", "* (factor + 0.25f * (VEC > 1))"), "'y' differs from the default's"),
        (("else {", "else if (VEC == 1) {"), "elements of 'y' unwritten"),
        (("j < n", "j < n + (VEC > 1)"), "writes outside of 'y': byte "),
    ] {
        let Some(engine) = super::engine("templates::what_misbehaves_is_left_out_by_name", Tuning::BLOCKING) else {
            return;
        };
        let kernel = kernel(&engine, &scale(&[("n = [1, 1000]", "n = [1, 1001]")], &[cu]), &[("dtype", "f32")]);
        let checked = kernel.check_candidates(1 << 16, |_, _| {}).expect("is checked");
        for candidate in checked {
            let wrong = candidate.result.err().map(|e| e.to_string()).unwrap_or_default();
            assert_eq!(wrong.contains(why), candidate.config.ends_with("vec=4"), "{}: {wrong}", candidate.config);
        }
        assert!(kernel.prewarm(&[1 << 16], true).expect("is tuned")[0].config.ends_with("vec=1"));
    }
}

/// It spins for some seconds more than a check waits, and ends at last, so that the GPU is free again.
#[test]
fn a_kernel_that_hangs_is_given_up() {
    let _alone = super::CAPTURES.write().unwrap_or_else(std::sync::PoisonError::into_inner);
    let Some(engine) = super::engine("templates::a_kernel_that_hangs_is_given_up", Tuning::BLOCKING) else { return };
    let spin = "if (VEC > 1 && blockIdx.x + threadIdx.x == 0) {\n        const long long start = clock64();\n        \
                while (clock64() - start < 30000000000ll) {}\n    }\n    const u32 i";
    let template = scale(&[("n = [1, 1000]", "n = 1000")], &[("const u32 i", spin)]);
    assert_eq!(template.gpu_only(), None, "clock64 is told by the compiler");
    let started = std::time::Instant::now();
    let checked =
        kernel(&engine, &template, &[("dtype", "f32")]).check_candidates(1000, |_, _| {}).expect("is checked");
    assert!(started.elapsed() < std::time::Duration::from_secs(60));
    let wrong: Vec<_> = checked.iter().filter_map(|c| c.result.as_ref().err()).map(ToString::to_string).collect();
    assert!(wrong.iter().any(|w| w.starts_with("hangs: it has not ended in 10 s, with ")), "{wrong:?}");
    assert!(wrong.iter().all(|w| w.starts_with("hangs") || w.starts_with("was not run")), "{wrong:?}");
    engine.device().synchronize().expect("it has ended at last");
}
