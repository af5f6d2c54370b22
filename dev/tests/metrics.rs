//! What the feature `metrics` tells a recorder, on the host device.

use std::collections::BTreeMap;

use metrics_util::debugging::{DebugValue, DebuggingRecorder};
use ropejit::{DeviceChoice, Engine, Origin, Tuning};
use ropejit_dev::{apply, smallest};

/// Where the kernel of a small call came from.
fn applied(engine: &Engine) -> Origin {
    apply(&engine.rope(&smallest()).expect("valid"), &mut [1.0; 2], &mut [1.0; 2])
}

/// All that a recorder has seen: counts, and of histograms the number and the sum of their samples.
fn seen(recorder: &DebuggingRecorder) -> BTreeMap<String, (u64, f64)> {
    let snapshot = recorder.snapshotter().snapshot().into_vec();
    let value = |value: DebugValue| match value {
        DebugValue::Counter(n) => (n, 0.0),
        DebugValue::Histogram(samples) => (samples.len() as u64, samples.iter().map(|s| s.into_inner()).sum()),
        DebugValue::Gauge(_) => panic!("there are no gauges"),
    };
    snapshot.into_iter().map(|(key, _, _, v)| (key.key().name().to_owned(), value(v))).collect()
}

#[test]
fn counters_and_seconds_reach_the_recorder() {
    let folder = tempfile::tempdir().expect("a folder");
    let builder = || Engine::builder().device(DeviceChoice::Host).cache_dir(folder.path()).tuning(Tuning::Never);
    let engine = builder().build().expect("opens");
    let recorder = DebuggingRecorder::new();
    metrics::with_local_recorder(&recorder, || assert_eq!(applied(&engine), Origin::Compiled));
    let first = seen(&recorder);
    assert_eq!(first["ropejit_compiles_total"].0, engine.stats().compiles);
    let (compiles, seconds) = first["ropejit_compile_seconds"];
    assert_eq!(compiles, 1);
    assert!(seconds > 1e-3 && seconds < 600.0, "a compiler takes {seconds} s");
    assert_eq!(first["ropejit_load_seconds"].0, 1);
    assert!(!first.contains_key("ropejit_tune_seconds"), "nothing was tuned");

    // The call after the first tells nobody.
    let recorder = DebuggingRecorder::new();
    metrics::with_local_recorder(&recorder, || assert_eq!(applied(&engine), Origin::Memory));
    assert!(seen(&recorder).is_empty());

    let second = builder().build().expect("opens");
    let recorder = DebuggingRecorder::new();
    metrics::with_local_recorder(&recorder, || assert_eq!(applied(&second), Origin::Disk));
    let found = seen(&recorder);
    assert_eq!(found["ropejit_disk_hits_total"].0, 1);
    assert!(!found.contains_key("ropejit_compile_seconds"));
}
