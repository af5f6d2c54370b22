//! On a real GPU. Without one, every test here says that it was skipped.

#![allow(unsafe_code)]

#[cfg(unix)]
mod lives;
mod steady;
mod templates;

use std::io::Write as _;
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use ropejit::engine::{Builder, ChoiceMeta};
use ropejit::jit::Bucket;
use ropejit::rope::Rsqrt;
use ropejit::rope::scaling::TableMode;
use ropejit::store::Kind;
use ropejit::{
    DType, DeviceChoice, Engine, ErrorKind, Layout, Origin, PairStyle, PositionForm, RopeSpec, Rounding, Tuning,
};

use crate::cases::{Case, Data, Order, assert_bits, assert_near, assert_right, run};

/// Held for writing by the test that captures a graph in the strictest mode, in which no other thread of the process may
/// synchronise.
static CAPTURES: RwLock<()> = RwLock::new(());

/// A test that may run beside others.
fn beside() -> RwLockReadGuard<'static, ()> {
    CAPTURES.read().unwrap_or_else(PoisonError::into_inner)
}

/// An engine on the first GPU, which measures for itself; one that never tunes compiles its kernels. `None`, and a line that no test harness hides,
/// where there is no GPU.
fn engine(test: &str, tuning: Tuning) -> Option<Engine> {
    let builder = Engine::builder().tuning(tuning);
    opened(test, builder.portable(tuning != Tuning::Never))
}

fn opened(test: &str, builder: Builder) -> Option<Engine> {
    opened_on(0, test, builder)
}

/// Whether there is such a GPU, choices come with the crate for it or not: a test that tunes measures. `ROPEJIT_REQUIRE_GPU` is the
/// number of GPUs without which a test fails.
fn opened_on(gpu: u32, test: &str, builder: Builder) -> Option<Engine> {
    let required = std::env::var("ROPEJIT_REQUIRE_GPU").map_or(0, |text| text.parse::<u32>().unwrap_or(1));
    match builder.device(DeviceChoice::Cuda(gpu)).in_memory().priors(false).build() {
        Ok(engine) => Some(engine),
        Err(e) if e.kind() == ErrorKind::DeviceUnavailable && required <= gpu => {
            let which = if gpu == 0 { "no GPU".to_owned() } else { format!("no GPU {gpu}") };
            let _ = writeln!(std::io::stderr(), "SKIPPED gpu::{test}: {which} on this machine");
            None
        }
        Err(e) => panic!("{e}"),
    }
}

/// Of two GPUs in one process, the second serves as the first does: shipped kernels, and compiled and tuned ones.
#[test]
fn a_second_gpu_serves_beside_the_first() {
    let _beside = beside();
    let name = "a_second_gpu_serves_beside_the_first";
    for tuning in [Tuning::Never, Tuning::BLOCKING] {
        let Some(second) = opened_on(1, name, Engine::builder().tuning(tuning)) else { return };
        let Some(first) = opened(name, Engine::builder().tuning(tuning)) else { return };
        for tokens in [1, 300] {
            let case = Case::new(RopeSpec::new(DType::BF16, 128, 32, 8), 1, tokens);
            let data = Data::new(&case, 7);
            for engine in [&first, &second, &first] {
                let (_, got) = run(engine, &case, &data).unwrap_or_else(|e| panic!("{e}\n{case:?}"));
                assert_bits(&case, &got, &data.expected);
            }
        }
        assert_eq!(first.stats().tunings, second.stats().tunings);
    }
}

#[test]
fn the_grid_is_bit_exact_and_near_f64() {
    let _beside = beside();
    let Some(engine) = engine("the_grid_is_bit_exact_and_near_f64", Tuning::Never) else { return };
    for (i, case) in crate::host::grid().iter().enumerate() {
        let data = Data::new(case, i as u64);
        let (_, got) = assert_right(&engine, case, &data);
        assert_near(case, &got, &data);
    }
}

#[test]
fn every_form_is_bit_exact_and_near_f64() {
    let _beside = beside();
    let Some(engine) = engine("every_form_is_bit_exact_and_near_f64", Tuning::Never) else { return };
    crate::host::every_form(&engine);
}

/// What the crate ships for this GPU.
#[test]
fn shipped_kernels_are_bit_exact() {
    let _beside = beside();
    let builder = Engine::builder().tuning(Tuning::Never);
    let Some(engine) = opened("shipped_kernels_are_bit_exact", builder) else { return };
    crate::portable::all_are_portable(&engine);
    crate::angles::every_form(&engine);
    crate::angles::far_positions(&engine);
    crate::eager::check_all(&engine);
    assert_eq!(engine.stats().compiles, 0);
}

/// What the crate ships for GPUs that are newer than all it was compiled for, which the driver translates here as there.
#[test]
fn shipped_ptx_is_bit_exact() {
    let _beside = beside();
    let builder = Engine::builder().tuning(Tuning::Never);
    if opened("shipped_ptx_is_bit_exact", builder).is_none() {
        return;
    }
    let device = std::sync::Arc::new(ropejit::device::cuda::Cuda::open(0).expect("there").with_portable_ptx());
    let builder = Engine::builder().with_device(device).in_memory().tuning(Tuning::Never);
    crate::portable::all_are_portable(&builder.build().expect("opened"));
}

#[test]
fn engine_angles_are_bit_exact_and_follow_the_length() {
    let _beside = beside();
    let Some(engine) = engine("engine_angles_are_bit_exact_and_follow_the_length", Tuning::Never) else { return };
    crate::angles::every_form(&engine);
    crate::angles::far_positions(&engine);
}

#[test]
fn contracted_products_are_bit_exact() {
    let _beside = beside();
    let Some(engine) = engine("contracted_products_are_bit_exact", Tuning::Never) else { return };
    crate::host::every_contracted(&engine);
}

#[test]
fn equals_transformers_eager() {
    let _beside = beside();
    let Some(engine) = engine("equals_transformers_eager", Tuning::Never) else { return };
    crate::eager::check_all(&engine);
}

#[test]
fn every_candidate_of_every_tuning_is_bit_equal_and_the_winner_is_right() {
    let _beside = beside();
    let Some(engine) = engine("every_candidate_of_every_tuning_is_bit_equal", Tuning::BLOCKING) else { return };
    let mut cases = Vec::new();
    for dtype in DType::ALL {
        for tokens in [1, 300] {
            cases.push(Case::new(RopeSpec::new(dtype, 128, 32, 8), 1, tokens));
        }
    }
    cases.push(Case { order: Order::Bhsd, ..Case::new(RopeSpec::new(DType::BF16, 96, 8, 2), 2, 129) });
    cases.push(Case { order: Order::Packed, ..Case::new(RopeSpec::new(DType::F16, 64, 12, 4), 3, 77) });
    cases.push(Case { order: Order::Odd, in_place: true, ..Case::new(RopeSpec::new(DType::BF16, 80, 5, 5), 2, 19) });
    let mut contracted = RopeSpec::new(DType::F32, 128, 8, 2).with_rounding(Rounding::Contracted);
    contracted.style = PairStyle::Interleaved;
    cases.push(Case::new(contracted, 1, 300));
    // Of specs whose angles are the engine's, candidates that compute and candidates that read.
    for mode in [TableMode::F32, TableMode::Accurate] {
        for (parameters, seq_len) in [crate::angles::plain(128), crate::angles::beyond_dynamic(128)] {
            for tokens in [1, 300, 2048] {
                let case = Case::new(RopeSpec::new(DType::BF16, 128, 32, 8).with_angles(mode), 1, tokens);
                cases.push(Case { angles: Some((parameters.clone(), seq_len)), ..case });
            }
        }
    }
    for (i, case) in cases.iter().enumerate() {
        let data = Data::new(case, i as u64);
        let (origin, got) = run(&engine, case, &data).unwrap_or_else(|e| panic!("{e}\n{case:?}"));
        assert_eq!(origin, Origin::Tuned);
        assert_bits(case, &got, &data.expected);
    }
    let records = engine.store().list(Kind::Choice).expect("listed");
    assert_eq!(records.len(), cases.len());
    for listed in records {
        let meta: ChoiceMeta = serde_json::from_slice(&listed.entry.expect("sound").meta).expect("readable");
        assert!(meta.record.tuned && meta.record.copy_ns.is_some());
        for c in &meta.record.candidates {
            assert_eq!(c.bit_equal, Some(true), "{} for {}: {:?}", c.config, meta.spec, c.dropped);
            assert!(!c.samples_ns.is_empty(), "{} was not measured", c.config);
        }
    }
}

#[test]
fn fused_calls_are_bit_exact() {
    let _beside = beside();
    let Some(engine) = engine("fused_calls_are_bit_exact", Tuning::Never) else { return };
    crate::fused::every_grid(&engine, Rsqrt::Approx, false);
}

#[test]
fn fused_specs_are_tuned() {
    let _beside = beside();
    for root in [Rsqrt::Approx, Rsqrt::Ieee] {
        let Some(engine) = engine("fused_specs_are_tuned", Tuning::BLOCKING) else { return };
        crate::fused_tuning::tunes(&engine, root);
    }
}

#[test]
fn a_position_outside_the_table_becomes_nan_and_is_reported_once() {
    let _beside = beside();
    let Some(engine) = engine("a_position_outside_the_table_becomes_nan", Tuning::Never) else { return };
    crate::engine::positions_outside(&engine);
}

#[test]
fn sixty_four_threads_compile_once() {
    let _beside = beside();
    let Some(engine) = engine("sixty_four_threads_compile_once", Tuning::BLOCKING) else { return };
    crate::engine::sixty_four_threads(&engine);
}

#[test]
fn more_than_two_to_the_thirty_one_elements() {
    let _beside = beside();
    let Some(engine) = engine("more_than_two_to_the_thirty_one_elements", Tuning::Never) else { return };
    // 2^31 + 2^21 elements of q, in place; head 0 of the last tokens is checked.
    let (tokens, heads, dim) = ((1 << 19) + 512, 32, 128);
    let free = engine.device().free_memory().expect("known");
    if free < 6 << 30 {
        let _ =
            writeln!(std::io::stderr(), "SKIPPED gpu::more_than_two_to_the_thirty_one_elements: 6 GiB are not free");
        return;
    }
    let spec = RopeSpec::new(DType::BF16, dim as u32, heads as u32, 0).with_positions(PositionForm::Ids32);
    crate::engine::last_tokens(&engine, &spec, Layout::bshd(1, tokens, heads, dim));
    crate::engine::last_tokens(&engine, &spec, Layout::bhsd(1, heads, tokens, dim));
    assert_eq!(Bucket::of(tokens as u64).tokens(), 1 << 20);
}

/// While kernels are compiled, loaded and timed in the background, somebody captures a graph in the strictest mode.
#[test]
fn a_graph_captured_beside_tuning_is_sound() {
    use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
    use half::bf16;
    use ropejit::args::{Args, Operand, Positions, Tables, Tensor};

    let _alone = CAPTURES.write().unwrap_or_else(PoisonError::into_inner);
    let Some(engine) = engine("a_graph_captured_beside_tuning_is_sound", Tuning::Background) else { return };
    #[cfg(feature = "cli")]
    let _ = tracing_subscriber::fmt().with_writer(std::io::stderr).try_init();
    let context = cudarc::driver::CudaContext::new(0).expect("the device is there");
    // cudarc's own events would be waited for across the capture's border, which the driver forbids.
    // SAFETY: all is done on one stream.
    unsafe { context.disable_event_tracking() };
    let stream = context.new_stream().expect("made");
    let (tokens, heads, dim) = (2048, 32, 128);
    let spec = RopeSpec::new(DType::BF16, dim as u32, heads as u32, 0);
    let values: Vec<bf16> = (0..tokens * heads * dim).map(|i| bf16::from_f32((i % 251) as f32 / 50.0 - 2.5)).collect();
    let (cos, sin): (Vec<f32>, Vec<f32>) =
        (0..tokens * dim / 2).map(|i| ((i as f32 * 0.37).cos(), (i as f32 * 0.37).sin())).unzip();
    let mut input = stream.clone_htod(&values).expect("copied");
    let mut output = stream.alloc_zeros::<bf16>(values.len()).expect("allocated");
    let (cos_d, sin_d) = (stream.clone_htod(&cos).expect("copied"), stream.clone_htod(&sin).expect("copied"));
    stream.synchronize().expect("done");
    let rope = engine.rope(&spec).expect("valid");
    let layout = Layout::thd(tokens, heads, dim);
    let mut apply = |output: &mut cudarc::driver::CudaSlice<bf16>| {
        let args = Args {
            q: Operand::out_of_place(
                Tensor::cuda(&mut input, layout, &stream).expect("fits"),
                Tensor::cuda(output, layout, &stream).expect("fits"),
            ),
            k: None,
            tables: Tables::cuda(&cos_d, &sin_d, 1, dim / 2, &stream).expect("fits"),
            positions: Positions::Offset(0),
            norm: None,
            append: None,
        };
        rope.apply(ropejit::Stream::from(stream.as_ref()), &args).expect("applied")
    };
    assert_eq!(apply(&mut output), Origin::Embedded);
    let want = stream.clone_dtoh(&output).expect("copied");
    stream.memset_zeros(&mut output).expect("zeroed");
    stream.synchronize().expect("done");
    // The background thread is at work now; the capture outlasts its phases.
    stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_GLOBAL).expect("begun");
    for _ in 0..40 {
        assert_eq!(apply(&mut output), Origin::Memory);
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = stream.end_capture(flags).expect("the capture is sound").expect("a graph");
    engine.wait_tuned();
    assert_eq!(engine.stats().tunings, 1, "tuning went on beside the capture");
    graph.launch().expect("launched");
    assert!(stream.clone_dtoh(&output).expect("copied") == want, "the graph's result differs");
    assert_eq!(apply(&mut output), Origin::Memory);
    assert!(stream.clone_dtoh(&output).expect("copied") == want, "the tuned kernel's result differs");
}

/// Default variants first, then tuned ones.
#[test]
fn calls_back_to_back_see_what_the_one_ahead_wrote() {
    let _beside = beside();
    for tuning in [Tuning::Never, Tuning::BLOCKING] {
        let Some(engine) = engine("calls_back_to_back_see_what_the_one_ahead_wrote", tuning) else { return };
        crate::chains::turns_in_place(&engine);
        crate::chains::ids_from_the_kernel_ahead(&engine);
    }
}
