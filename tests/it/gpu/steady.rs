//! What calls of a service take while the engine tunes in the background.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use half::bf16;
use ropejit::args::{Args, Operand, Positions, Tables, Tensor};
use ropejit::engine::Progress;
use ropejit::{DType, Engine, Layout, Origin, Rope, RopeSpec, Stream, Tuning};

/// What calls may take: a slice of 2 ms, and what the driver needs to load, allocate and free. A host that is busy delays a few.
const SLOWEST: Duration = Duration::from_millis(3);
/// One of so many calls may be one of those few. A tuning has hundreds of slices.
const DELAYED: usize = 5000;
const TOKENS: [usize; 2] = [512, 8192];
const HEADS: [usize; 2] = [32, 8];
const DIM: usize = 128;

/// When a call began, and what it took until its result was there.
type Took = (Instant, Duration);

#[test]
fn no_call_waits_for_background_tuning() {
    let _alone = super::CAPTURES.write().unwrap_or_else(PoisonError::into_inner);
    let log = Arc::<Mutex<Vec<(Instant, String)>>>::default();
    let told = Arc::clone(&log);
    let builder = Engine::builder().tuning(Tuning::Background).on_progress(move |progress| {
        let what = match progress {
            Progress::Compiled { bucket, done, total, .. } => {
                format!("{} tokens: {done} of {total} compiled", bucket.tokens())
            }
            Progress::Measured { bucket, rounds, .. } => format!("{} tokens: {rounds} rounds", bucket.tokens()),
            _ => return,
        };
        told.lock().expect("sound").push((Instant::now(), what));
    });
    let Some(engine) = super::opened("steady::no_call_waits_for_background_tuning", builder) else { return };
    let context = cudarc::driver::CudaContext::new(0).expect("the device is there");
    // SAFETY: all is done on one stream.
    unsafe { context.disable_event_tracking() };
    let stream = context.new_stream().expect("made");
    let rope = engine.rope(&RopeSpec::new(DType::BF16, DIM as u32, HEADS[0] as u32, HEADS[1] as u32)).expect("valid");
    let rows = TOKENS[1];
    let cos = stream.clone_htod(&vec![0.6f32; rows * DIM / 2]).expect("copied");
    let sin = stream.clone_htod(&vec![0.8f32; rows * DIM / 2]).expect("copied");
    // q in, q out, k in, k out, for each number of tokens.
    let mut tensors = TOKENS.map(|tokens| {
        [HEADS[0], HEADS[0], HEADS[1], HEADS[1]]
            .map(|heads| stream.clone_htod(&vec![bf16::from_f32(0.5); tokens * heads * DIM]).expect("copied"))
    });
    let calls: Vec<Args<'_>> = tensors
        .iter_mut()
        .zip(TOKENS)
        .map(|([q, q_out, k, k_out], tokens)| {
            let [q_layout, k_layout] = HEADS.map(|heads| Layout::thd(tokens, heads, DIM));
            let q = Tensor::cuda(q, q_layout, &stream).expect("fits");
            let k = Tensor::cuda(k, k_layout, &stream).expect("fits");
            Args {
                q: Operand::out_of_place(q, Tensor::cuda(q_out, q_layout, &stream).expect("fits")),
                k: Some(Operand::out_of_place(k, Tensor::cuda(k_out, k_layout, &stream).expect("fits"))),
                tables: Tables::cuda(&cos, &sin, 1, DIM / 2, &stream).expect("fits"),
                positions: Positions::Offset(0),
                norm: None,
                append: None,
            }
        })
        .collect();
    stream.synchronize().expect("done");

    // The first of each finds a kernel, and queues its tuning.
    let started = Instant::now();
    for args in &calls {
        rope.apply(Stream::from(stream.as_ref()), args).expect("applied");
        stream.synchronize().expect("done");
    }
    println!("the first calls: {:?}", started.elapsed());
    let started = Instant::now();
    let over = AtomicBool::new(false);
    let beside = std::thread::scope(|scope| {
        scope.spawn(|| {
            engine.wait_tuned();
            over.store(true, Relaxed);
        });
        let tuning = |_| !over.load(Relaxed) && started.elapsed() < Duration::from_secs(120);
        steady(&rope, &stream, &calls, tuning)
    });
    let tuned_in = started.elapsed();
    let n = beside.len();
    let quiet = steady(&rope, &stream, &calls, |i| i < n.min(200_000));

    println!("tuned in {tuned_in:?} beside {n} calls");
    let [slow, slow_in_quiet] = [report("beside tuning", &beside), report("quiet", &quiet)];
    let log = log.lock().expect("sound");
    for (at, took) in slowest_first(&beside).into_iter().take(8) {
        let before = log.iter().rev().find(|(when, _)| *when <= at).map_or("nothing", |(_, what)| what);
        println!("  {took:?}, {:?} after the first calls, after: {before}", at - started);
    }
    for tokens in TOKENS {
        let serving = rope.serving(tokens as u64, false).expect("loaded");
        println!("{tokens} tokens: '{}'", serving.variant);
        assert!(serving.tuned && serving.origin == Origin::Tuned, "{tokens} tokens: the winner was not swapped in");
    }
    assert_eq!(engine.stats().tunings, TOKENS.len() as u64);
    assert!(n > 1000, "{n} calls are no steady stream");
    let delayed = n.div_ceil(DELAYED) + slow_in_quiet;
    assert!(slow <= delayed, "{slow} of {n} calls took more than {SLOWEST:?}, {slow_in_quiet} without tuning");
}

/// Calls of all kinds in turn, each waited for, while `more` says so of their number.
fn steady(
    rope: &Rope,
    stream: &cudarc::driver::CudaStream,
    calls: &[Args<'_>],
    more: impl Fn(usize) -> bool,
) -> Vec<Took> {
    let mut all = Vec::with_capacity(1 << 20);
    while more(all.len()) {
        let args = &calls[all.len() % calls.len()];
        let began = Instant::now();
        let origin = rope.apply(Stream::from(stream), args).expect("applied");
        stream.synchronize().expect("done");
        all.push((began, began.elapsed()));
        assert_eq!(origin, Origin::Memory);
    }
    all
}

fn slowest_first(all: &[Took]) -> Vec<Took> {
    let mut sorted = all.to_vec();
    sorted.sort_by_key(|&(_, took)| std::cmp::Reverse(took));
    sorted
}

/// Prints what calls took, for each number of tokens; returns how many took too long.
fn report(what: &str, all: &[Took]) -> usize {
    for (kind, tokens) in TOKENS.iter().enumerate() {
        let of_kind: Vec<Took> = all.iter().skip(kind).step_by(TOKENS.len()).copied().collect();
        let sorted = slowest_first(&of_kind);
        let at =
            |part: f64| sorted.get((sorted.len() as f64 * part) as usize).map_or(Duration::ZERO, |&(_, took)| took);
        println!(
            "{what}, 1×{tokens}: {} calls, max {:?}, p99.9 {:?}, p99 {:?}, median {:?}",
            sorted.len(),
            at(0.0),
            at(0.001),
            at(0.01),
            at(0.5)
        );
    }
    all.iter().filter(|&&(_, took)| took > SLOWEST).count()
}
