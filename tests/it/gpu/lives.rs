//! What outlives what on a GPU: graphs their engines, processes their parents' driver.

use std::process::Command;

use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use ropejit::args::{Args, Operand, Positions, Tables, Tensor};
use ropejit::{DType, DeviceChoice, Engine, ErrorKind, Layout, Origin, RopeSpec, Stream, Tuning};

use super::{CAPTURES, beside, engine};

/// Captured with a shipped kernel and with a compiled one; the engine and all its handles are gone when the graph is launched.
#[test]
fn a_graph_outlives_its_engine() {
    let _alone = CAPTURES.write().unwrap_or_else(std::sync::PoisonError::into_inner);
    for tuning in [Tuning::Background, Tuning::Never, Tuning::BLOCKING] {
        let Some(engine) = engine("lives::a_graph_outlives_its_engine", tuning) else { return };
        let context = cudarc::driver::CudaContext::new(0).expect("the device is there");
        // SAFETY: all is done on one stream.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().expect("made");
        let (tokens, heads, dim) = (512, 8, 128);
        let layout = Layout::thd(tokens, heads, dim);
        let values: Vec<f32> = (0..layout.len()).map(|i| (i % 251) as f32 / 50.0 - 2.5).collect();
        let (cos, sin): (Vec<f32>, Vec<f32>) =
            (0..tokens * dim / 2).map(|i| ((i as f32 * 0.37).cos(), (i as f32 * 0.37).sin())).unzip();
        let mut input = stream.clone_htod(&values).expect("copied");
        let mut output = stream.alloc_zeros::<f32>(values.len()).expect("allocated");
        let (cos, sin) = (stream.clone_htod(&cos).expect("copied"), stream.clone_htod(&sin).expect("copied"));
        stream.synchronize().expect("done");
        let rope = engine.rope(&RopeSpec::new(DType::F32, dim as u32, heads as u32, 0)).expect("valid");
        let mut apply = || {
            let args = Args {
                q: Operand::out_of_place(
                    Tensor::cuda(&mut input, layout, &stream).expect("fits"),
                    Tensor::cuda(&mut output, layout, &stream).expect("fits"),
                ),
                k: None,
                tables: Tables::cuda(&cos, &sin, 1, dim / 2, &stream).expect("fits"),
                positions: Positions::Offset(0),
                norm: None,
                append: None,
            };
            rope.apply(Stream::from(stream.as_ref()), &args).expect("applied")
        };
        assert_ne!(apply(), Origin::Memory);
        stream.synchronize().expect("done");
        stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED).expect("begun");
        assert_eq!(apply(), Origin::Memory);
        let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
        let graph = stream.end_capture(flags).expect("the capture is sound").expect("a graph");
        let want = stream.clone_dtoh(&output).expect("copied");
        engine.wait_tuned();
        drop((rope, engine));
        for _ in 0..20 {
            stream.memset_zeros(&mut output).expect("zeroed");
            // What was unloaded is likely to be written over by what is loaded next.
            let other = super::engine("lives::a_graph_outlives_its_engine", Tuning::Never).expect("it was there");
            let spec = RopeSpec::new(DType::BF16, 64, 4, 4);
            other.prewarm(&[spec], &[64], false, false).expect("compiled");
            graph.launch().expect("launched");
            stream.synchronize().expect("done");
            assert!(stream.clone_dtoh(&output).expect("copied") == want, "{tuning:?}: the graph's result differs");
        }
    }
}

/// In a process of its own: a child of one that has opened the GPU gets a clear error at once, and ends like any other.
#[test]
fn a_child_of_fork_is_told_that_the_gpu_is_its_parents() {
    const TEST: &str = "gpu::lives::a_child_of_fork_is_told_that_the_gpu_is_its_parents";
    if std::env::var_os("ROPEJIT_TEST_FORK_GPU").is_none() {
        let _beside = beside();
        if engine("lives::a_child_of_fork_is_told_that_the_gpu_is_its_parents", Tuning::Never).is_none() {
            return;
        }
        let mut command = Command::new(std::env::current_exe().expect("has a path"));
        command.args(["--exact", TEST, "--nocapture", "--test-threads=1"]).env("ROPEJIT_TEST_FORK_GPU", "1");
        let output = command.output().expect("runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && text.contains("4 children"), "{text}");
        return;
    }
    let engine = engine("lives", Tuning::Background).expect("it was there");
    let spec = RopeSpec::new(DType::BF16, 128, 32, 8);
    let case = crate::cases::Case::new(spec.clone(), 1, 64);
    let data = crate::cases::Data::new(&case, 1);
    crate::cases::run(&engine, &case, &data).expect("applied");
    let told = |e: &ropejit::Error| {
        assert!(matches!(e.kind(), ErrorKind::DeviceUnavailable | ErrorKind::Device), "{e}");
        let text = e.to_string();
        assert!(text.contains("a child of fork()") && text.contains("hint: start processes with spawn"), "{text}");
    };
    for end in [crate::fork::End::AtOnce, crate::fork::End::Exit] {
        crate::fork::child("calls", end, || {
            told(&engine.rope(&spec).err().expect("no kernel can be had"));
            told(&crate::cases::run(&engine, &case, &data).expect_err("nothing can be allocated"));
            told(&engine.device().alloc(64).err().expect("nothing can be allocated"));
            told(
                &Engine::builder().device(DeviceChoice::Cuda(0)).in_memory().build().err().expect("it is the parent's"),
            );
            engine.wait_tuned();
        });
        let engine = engine.clone();
        crate::fork::child("drops", end, move || drop(engine));
    }
    engine.wait_tuned();
    crate::cases::run(&engine, &case, &data).expect("the parent goes on");
    println!("4 children");
}
