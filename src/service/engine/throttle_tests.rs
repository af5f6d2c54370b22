//! Pacing against a fake clock.

use super::*;

/// A clock that only work and waiting move on, a capture that lasts until `captured`, a cancellation at `ends`.
struct Fake {
    clock: Cell<Duration>,
    captured: Duration,
    ends: Duration,
}

impl Fake {
    fn new() -> Self {
        Self { clock: Cell::default(), captured: Duration::ZERO, ends: Duration::MAX }
    }

    fn work(&self, time: Duration) -> Duration {
        self.clock.set(self.clock.get() + time);
        time
    }
}

impl Beside for Fake {
    fn now(&self) -> Duration {
        self.clock.get()
    }

    fn wait(&self, time: Duration) {
        self.clock.set((self.clock.get() + time).min(self.ends.max(self.clock.get())));
    }

    fn cancelled(&self) -> bool {
        self.clock.get() >= self.ends
    }

    fn capturing(&self) -> bool {
        self.clock.get() < self.captured
    }
}

const MS: Duration = Duration::from_millis(1);
/// As a GPU has it.
const MEASURING: Measuring = Measuring { launches: (8, 128), sample_ns: 400e3, scratch_bytes: 1 << 30, slice_ns: 2e6 };

#[test]
fn the_device_is_given_back_for_as_long_as_it_was_taken() {
    let fake = Fake::new();
    let throttle = Throttle::slices(&fake);
    for time in [2 * MS, MS / 2, 5 * MS] {
        throttle.slice(|| Ok(fake.work(time))).expect("worked");
    }
    assert_eq!((fake.now(), throttle.rested(), throttle.longest()), (15 * MS, 15 * MS / 2, 5 * MS));
    // What fails is rested from as well.
    let failed = throttle.slice(|| Err::<(), _>(Error::argument(format!("{:?}", fake.work(MS)), "is wrong")));
    assert_eq!((failed.expect_err("fails").subject(), fake.now()), (Some("1ms"), 17 * MS));
}

#[test]
fn who_is_waited_for_does_not_rest() {
    let fake = Fake { captured: MS, ..Fake::new() };
    let throttle = Throttle::full();
    throttle.slice(|| Ok(fake.work(2 * MS))).expect("worked");
    assert_eq!((fake.now(), throttle.rested(), throttle.cancelled()), (2 * MS, Duration::ZERO, false));
}

#[test]
fn nothing_runs_while_a_graph_is_captured() {
    let fake = Fake { captured: 90 * MS, ..Fake::new() };
    let throttle = Throttle::slices(&fake);
    throttle
        .slice(|| {
            assert_eq!(fake.now(), 100 * MS, "the first time that it looks after the capture");
            Ok(fake.work(MS))
        })
        .expect("worked");
    assert_eq!(throttle.rested(), 101 * MS);
}

#[test]
fn a_cancelled_run_does_nothing_more() {
    // During the rest after the second slice.
    let fake = Fake { ends: 7 * MS, ..Fake::new() };
    let throttle = Throttle::slices(&fake);
    throttle.slice(|| Ok(fake.work(2 * MS))).expect("worked");
    throttle.slice(|| Ok(fake.work(2 * MS))).expect("what was begun counts");
    assert!(throttle.cancelled() && fake.now() == 7 * MS);
    assert!(throttle.slice(|| -> Result<()> { panic!("after the end") }).is_err());
    // While it holds off.
    let fake = Fake { captured: Duration::MAX, ends: 30 * MS, ..Fake::new() };
    assert!(Throttle::slices(&fake).slice(|| -> Result<()> { panic!("beside a capture") }).is_err());
    assert_eq!(fake.now(), 30 * MS);
}

/// Whatever a launch takes: a sample of the default has half a slice at most, that of a candidate twice as slow a slice.
#[test]
fn samples_fit_a_slice() {
    let fake = Fake::new();
    let (slices, full) = (Throttle::slices(&fake), Throttle::full());
    for exponent in 0..60 {
        let ns = 500.0 * 1.3f64.powi(exponent);
        let all = 1u64 << 24;
        let tokens = slices.tokens(&MEASURING, all, ns);
        let ns_of_fewer = ns * tokens as f64 / all as f64;
        let launches = slices.launches(&MEASURING, ns_of_fewer);
        assert!(tokens.is_power_of_two() && ns_of_fewer <= 0.25e6, "{ns} ns, {tokens} tokens");
        assert!(launches as f64 * ns_of_fewer <= 1e6, "{launches} of {ns_of_fewer} ns");
        assert!((4..=128).contains(&launches), "{launches} of {ns_of_fewer} ns");
        // As long as who is waited for measures, where that fits.
        assert_eq!((full.tokens(&MEASURING, all, ns), tokens == all), (all, ns <= 0.25e6));
        if ns < 0.1e6 {
            assert_eq!(launches, full.launches(&MEASURING, ns));
        }
    }
    assert_eq!(slices.tokens(&MEASURING, 3, 1e9), 1);
    assert_eq!(slices.tokens(&MEASURING, 1000, 0.2e6), 1000);
}

#[test]
fn a_launch_that_was_never_timed_moves_no_more_than_the_memory_can() {
    let fake = Fake::new();
    let facts = |bits: u32| Facts {
        name: String::new(),
        arch: "sm_90".into(),
        compute_capability: (9, 0),
        multiprocessors: 132,
        l2_bytes: 50 << 20,
        memory_bus_bits: bits,
        memory_bytes: 1 << 36,
        driver: String::new(),
        overlap: true,
    };
    // 4.9 TB/s and 320 GB/s.
    let [h200, t4] = [(facts(6144), 3_201_000), (facts(256), 5_001_000)];
    let slices = Throttle::slices(&fake);
    let bytes = |(facts, khz): &(Facts, u32)| slices.launch_bytes(facts, *khz, &MEASURING);
    assert!((1_200_000_000..1_250_000_000).contains(&bytes(&h200)), "{}", bytes(&h200));
    assert!((79_000_000..81_000_000).contains(&bytes(&t4)), "{}", bytes(&t4));
    assert_eq!(bytes(&(facts(0), 0)), 50_000_000);
    assert_eq!(Throttle::full().launch_bytes(&t4.0, t4.1, &MEASURING), u64::MAX);
}
