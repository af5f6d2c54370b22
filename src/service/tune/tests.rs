//! The search against a fake device with a fake clock.

use super::*;

/// Candidates with true times, a repeatable noise, and failures on demand.
struct Fake {
    ns: Vec<f64>,
    noise: f64,
    /// Noise that is a factor, up to e to this power both ways.
    wild: f64,
    state: u64,
    clock: Duration,
    fails: Option<usize>,
    stop_after: usize,
    rounds: usize,
    calls: Vec<usize>,
}

impl Fake {
    fn new(ns: &[f64], noise: f64, seed: u64) -> Self {
        Self {
            ns: ns.to_vec(),
            noise,
            wild: 0.0,
            state: seed,
            clock: Duration::ZERO,
            fails: None,
            stop_after: usize::MAX,
            rounds: 0,
            calls: vec![0; ns.len()],
        }
    }

    fn run(&mut self, policy: &Policy) -> Option<Outcome> {
        let n = self.ns.len();
        search(self, vec![Vec::new(); n], &vec![true; n], policy)
    }
}

impl Measure for Fake {
    fn sample(&mut self, index: usize) -> Result<f64, String> {
        if self.fails == Some(index) {
            return Err("launch failed".into());
        }
        self.calls[index] += 1;
        self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let unit = (self.state >> 11) as f64 / (1u64 << 53) as f64 - 0.5;
        let ns = self.ns[index] * (1.0 + unit * self.noise) * (2.0 * unit * self.wild).exp();
        self.clock += Duration::from_nanos(ns as u64);
        Ok(ns)
    }

    fn now(&self) -> Duration {
        self.clock
    }

    fn round_done(&mut self, _: &[Vec<f64>]) -> bool {
        self.rounds += 1;
        self.rounds < self.stop_after
    }
}

#[test]
fn the_fastest_wins_and_the_slow_drop_out_early() {
    let mut fake = Fake::new(&[100e3, 90e3, 150e3, 200e3], 0.01, 1);
    let outcome = fake.run(&Policy::default()).expect("measured");
    assert_eq!((outcome.winner, outcome.complete), (1, true));
    assert_eq!(fake.calls[3], 3, "a candidate twice as slow is dropped after the first rounds");
    assert_eq!(outcome.dropped[3].as_deref().map(|why| why.ends_with(" % behind, 3 of 3 rounds")), Some(true));
}

/// Quiet, so that three rounds tell: then no sample is spent on what lost.
#[test]
fn a_quiet_device_measures_what_is_behind_three_times() {
    let times = [100e3, 97e3, 99.5e3, 104e3, 108e3, 112e3, 130e3, 150e3, 97.2e3, 101e3, 180e3, 210e3];
    for seed in 0..50 {
        let mut fake = Fake::new(&times, 0.01, seed);
        fake.run(&Policy::default()).expect("measured");
        assert_eq!(fake.calls.iter().sum::<usize>(), 7 * 3 + 5 * 15, "seed {seed}: {:?}", fake.calls);
        assert!(fake.calls.iter().zip(times).all(|(&calls, ns)| (calls == 3) == (ns > 1.06 * 97e3)), "seed {seed}");
    }
}

/// Six of one speed, with noise up to a factor of e both ways: medians alone would drop four of five after three rounds.
#[test]
fn noise_alone_rarely_drops_a_candidate() {
    let dropped = |seed| {
        let mut fake = Fake { wild: 1.0, ..Fake::new(&[100e3; 6], 0.0, seed) };
        let outcome = fake.run(&Policy::default()).expect("measured");
        outcome.dropped.iter().flatten().filter(|why| why.starts_with(CLEARLY_BEHIND)).count()
    };
    let dropped: usize = (0..200).map(dropped).sum();
    println!("{dropped} of 1200 candidates dropped");
    assert!(dropped < 1200 / 10, "{dropped} of 1200 candidates");
}

#[test]
fn near_ties_go_to_the_default_whatever_the_noise() {
    for seed in 0..200 {
        let mut fake = Fake::new(&[100e3, 99.9e3, 100.05e3, 140e3], 0.004, seed);
        let outcome = fake.run(&Policy::default()).expect("measured");
        assert_eq!(outcome.winner, 0, "seed {seed}: {outcome:?}");
        assert!(outcome.near_ties.len() > 1);
    }
}

#[test]
fn noise_does_not_hide_a_real_difference() {
    for seed in 0..200 {
        let mut fake = Fake::new(&[100e3, 92e3, 101e3], 0.03, seed);
        assert_eq!(fake.run(&Policy::default()).expect("measured").winner, 1, "seed {seed}");
    }
}

#[test]
fn one_burst_does_not_cost_the_winner_its_place() {
    struct Burst(Fake, usize);
    impl Measure for Burst {
        fn sample(&mut self, index: usize) -> Result<f64, String> {
            self.1 += 1;
            let ns = self.0.sample(index)?;
            Ok(if self.1 == 2 { ns * 5.0 } else { ns })
        }
        fn now(&self) -> Duration {
            self.0.now()
        }
    }
    let mut burst = Burst(Fake::new(&[100e3, 80e3], 0.01, 7), 0);
    let outcome = search(&mut burst, vec![Vec::new(); 2], &[true; 2], &Policy::default()).expect("measured");
    assert_eq!(outcome.winner, 1);
}

#[test]
fn failures_and_illegal_candidates_never_win() {
    let mut fake = Fake::new(&[100e3, 10e3, 20e3], 0.01, 3);
    fake.fails = Some(1);
    let outcome = search(&mut fake, vec![Vec::new(); 3], &[true, true, false], &Policy::default()).expect("measured");
    assert_eq!(outcome.winner, 0);
    assert_eq!(outcome.dropped[1].as_deref(), Some("launch failed"));
    assert_eq!(fake.calls[2], 0);
    let mut none = Fake::new(&[1.0], 0.0, 3);
    none.fails = Some(0);
    assert_eq!(none.run(&Policy::default()), None);
}

#[test]
fn a_budget_and_a_stop_end_the_search_with_what_is_known() {
    let policy = Policy { budget: Duration::from_micros(1), ..Policy::default() };
    let mut fake = Fake::new(&[100e3, 50e3], 0.0, 1);
    let outcome = fake.run(&policy).expect("one round is always finished");
    assert_eq!((outcome.winner, outcome.complete, outcome.samples[0].len()), (1, false, 1));
    let mut fake = Fake::new(&[100e3, 50e3], 0.0, 1);
    fake.stop_after = 2;
    let outcome = fake.run(&Policy::default()).expect("measured");
    assert_eq!((outcome.winner, outcome.complete, outcome.samples[1].len()), (1, false, 2));
}

#[test]
fn an_interrupted_search_goes_on_where_it_was() {
    let mut fake = Fake::new(&[100e3, 50e3, 51e3], 0.001, 1);
    fake.stop_after = 2;
    let half = fake.run(&Policy::default()).expect("measured").samples;
    let calls = fake.calls.clone();
    fake.stop_after = usize::MAX;
    let whole = search(&mut fake, half, &[true; 3], &Policy::default()).expect("measured");
    assert_eq!(whole.winner, 1);
    assert!(fake.calls[1] <= Policy::default().max_rounds, "{:?} then {:?}", calls, fake.calls);
}

/// Between two samples, not only between rounds.
#[test]
fn a_stop_is_seen_before_the_next_sample() {
    struct Stops(Fake, usize);
    impl Measure for Stops {
        fn sample(&mut self, index: usize) -> Result<f64, String> {
            self.1 -= 1;
            self.0.sample(index)
        }
        fn now(&self) -> Duration {
            self.0.now()
        }
        fn stopped(&self) -> bool {
            self.1 == 0
        }
    }
    let mut stops = Stops(Fake::new(&[100e3, 50e3, 70e3], 0.0, 1), 5);
    let outcome = search(&mut stops, vec![Vec::new(); 3], &[true; 3], &Policy::default()).expect("measured");
    let counts: Vec<usize> = outcome.samples.iter().map(Vec::len).collect();
    assert_eq!((outcome.complete, counts, outcome.dropped), (false, vec![2, 2, 1], vec![None; 3]));
}
