//! Children of `fork()`: what they call is served or a clear error, and none hangs, aborts or runs its parent's work. Each
//! scene runs in a process of its own, whose other threads hold what threads hold at such a moment. Needs a C++ compiler.

#![allow(unsafe_code)] // fork itself

use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use crate::templates;
use ropejit::families::template::{Template, TemplateKernel};
use ropejit::rope::scaling::{RopeParameters, TableMode};
use ropejit::{
    Args, DType, DeviceChoice, Engine, ErrorKind, Layout, Operand, Positions, Rope, RopeSpec, Stats, Stream, Tables,
    Tensor, Tuning,
};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

unsafe extern "C" {
    fn fork() -> i32;
    fn _exit(status: i32) -> !;
    fn atexit(f: extern "C" fn()) -> i32;
}

/// Only what hangs meets it.
const HANGS: Duration = Duration::from_secs(120);

/// How a child ends.
#[derive(Clone, Copy, PartialEq)]
pub enum End {
    /// At once, as multiprocessing does.
    AtOnce,
    /// With all that `exit` runs.
    Exit,
}

/// Runs `work` in a child, and waits for its end.
pub fn child(name: &str, end: End, work: impl FnOnce()) {
    // SAFETY: the child calls what a program would call, which is what is tried here.
    let pid = unsafe { fork() };
    assert!(pid >= 0, "no child");
    if pid == 0 {
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).is_ok();
        let status = if done { 0 } else { 3 };
        if end == End::Exit {
            std::process::exit(status);
        }
        // SAFETY: ends the process.
        unsafe { _exit(status) }
    }
    let (pid, since) = (Pid::from_raw(pid).expect("a child"), Instant::now());
    let status = loop {
        if let Some((_, status)) = waitpid(Some(pid), WaitOptions::NOHANG).expect("ours") {
            break status;
        }
        if since.elapsed() > HANGS {
            let _ = kill_process(pid, Signal::KILL);
            panic!("{name}: the child hangs");
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    assert_eq!((status.exit_status(), status.terminating_signal()), (Some(0), None), "{name}");
    println!("{name}: ok");
}

const DIM: usize = 64;

fn spec(heads: u32) -> RopeSpec {
    RopeSpec::new(DType::F32, DIM as u32, heads, 0)
}

/// Rotates q by a quarter turn, so that what comes out is known.
fn turn(rope: &Rope, tokens: usize) {
    try_turn(rope, tokens).unwrap_or_else(|e| panic!("{e}"));
}

fn try_turn(rope: &Rope, tokens: usize) -> ropejit::Result<()> {
    let layout = Layout::bshd(1, tokens, rope.spec().num_heads as usize, DIM);
    let q: Vec<f32> = (0..layout.len()).map(|i| (i % 1013) as f32).collect();
    let mut out = vec![f32::NAN; q.len()];
    let (cos, sin) = (vec![0.0; tokens * DIM / 2], vec![1.0; tokens * DIM / 2]);
    let args = Args {
        q: Operand::out_of_place(
            Tensor::host_input(&q, layout).expect("fits"),
            Tensor::host(&mut out, layout).expect("fits"),
        ),
        k: None,
        tables: Tables::host(&cos, &sin, 1, DIM / 2).expect("rows"),
        positions: Positions::Offset(0),
        norm: None,
        append: None,
    };
    rope.apply(Stream::DEFAULT, &args)?;
    drop(args);
    for (out, q) in out.chunks(DIM).zip(q.chunks(DIM)) {
        let turned = (0..DIM).map(|i| if i < DIM / 2 { -q[i + DIM / 2] } else { q[i - DIM / 2] });
        assert!(out.iter().copied().eq(turned), "wrong values");
    }
    Ok(())
}

fn engine(root: &Path, tuning: Tuning) -> Engine {
    Engine::builder()
        .device(DeviceChoice::Host)
        .cache_dir(root)
        .cache_path([""; 0])
        .tuning(tuning)
        .build()
        .expect("opened")
}

fn handle(engine: &Engine, heads: u32) -> Rope {
    engine.rope(&spec(heads)).expect("valid")
}

/// All that a program may ask of an engine that it has inherited.
fn everything(engine: &Engine, rope: &Rope) {
    turn(rope, 3);
    turn(rope, 5000); // enough for many threads
    turn(&handle(engine, 2), 3);
    turn(&handle(engine, 7), 700);
    engine.wait_tuned();
    let prewarmed = engine.prewarm(&[spec(6)], &[4], false, false).expect("prepared");
    assert_eq!(prewarmed.len(), 1);
    assert!(engine.stats().compiles + engine.stats().disk_hits > 0);
    assert!(engine.store().root().is_none_or(Path::exists));
    assert!(engine.store().list(ropejit::store::Kind::Artifact).expect("listed").len() > 1);
    assert_eq!(engine.device().facts(), engine.facts());
    let angles = engine.angles(&RopeParameters::new(1e4, DIM as u32), TableMode::F32).expect("made");
    angles.tables(100).expect("made");
    rope.check().expect("no position was outside");
    engine.freeze();
    assert!(engine.prewarm(&[spec(6)], &[4], false, false).is_ok());
    let frozen = engine.rope(&spec(11)).expect("valid");
    assert_eq!(try_turn(&frozen, 3).expect_err("frozen").kind(), ErrorKind::NotCached);
    engine.close();
}

/// Nothing goes on in the parent.
fn at_rest(root: &Path) {
    let engine = engine(root, Tuning::Never);
    let rope = handle(&engine, 2);
    turn(&rope, 3);
    turn(&rope, 5000);
    let before = engine.stats();
    for end in [End::AtOnce, End::Exit] {
        child("everything", end, || everything(&engine, &rope));
        child("nothing", end, || {});
        child("a child's child", end, || {
            turn(&handle(&engine, 9), 5000);
            child("which calls", end, || everything(&engine, &rope));
            turn(&rope, 5000);
        });
        let (engine, rope) = (engine.clone(), rope.clone());
        child("drops", end, move || drop((engine, rope)));
    }
    assert_eq!(engine.stats(), before, "what a child does is its own");
}

/// A thread of the parent tunes, in the middle of it.
fn while_tuning(root: &Path) {
    let engine = engine(root, Tuning::Background);
    let rope = handle(&engine, 2);
    turn(&rope, 3);
    turn(&rope, 5000);
    for end in [End::AtOnce, End::Exit] {
        child("calls that are tuned", end, || {
            turn(&rope, 3);
            turn(&rope, 5000);
        });
        child("waits", end, || engine.wait_tuned());
        child("nothing", end, || {});
        child("everything", end, || everything(&engine, &rope));
    }
    engine.wait_tuned();
    assert_eq!(engine.stats().tunings, 2, "children do not disturb it");
}

/// A thread of the parent stands still with the locks of a first call in its hands, and waits for a signal of no child.
fn with_locks_held(_: &Path) {
    let (inside, is_inside) = channel();
    let (go_on, may_go_on) = channel::<()>();
    let (inside, may_go_on) = (Mutex::new(Some(inside)), Mutex::new(may_go_on));
    let engine = Engine::builder()
        .device(DeviceChoice::Host)
        // On a folder a child would wait for the parent's tuning, for a while.
        .in_memory()
        .tuning(Tuning::Blocking { budget: Duration::from_millis(1) })
        .on_progress(move |_| {
            if let Some(inside) = inside.lock().expect("sound").take() {
                inside.send(()).expect("waited for");
                may_go_on.lock().expect("sound").recv().expect("sent");
            }
        })
        .build()
        .expect("opened");
    let rope = handle(&engine, 2);
    std::thread::scope(|scope| {
        scope.spawn(|| turn(&rope, 3));
        is_inside.recv().expect("a tuning began");
        for end in [End::AtOnce, End::Exit] {
            child("the call whose locks are held", end, || turn(&rope, 3));
            child("everything", end, || everything(&engine, &rope));
        }
        go_on.send(()).expect("waited for");
    });
}

/// All that a program may ask of a kernel of its own that it has inherited.
fn everything_of_users(engine: &Engine, template: &Template, kernel: &TemplateKernel) {
    templates::works(kernel);
    templates::works(kernel);
    templates::works(&templates::kernel(engine, template));
    let bf16 = engine.template(template).expect("runs here").spec([("dtype", "bf16")]).expect("is right");
    assert_eq!(bf16.prewarm(&[64, 5000], false).expect("is prepared").len(), 2);
    assert_eq!(kernel.prewarm(&[64], true).expect("is prepared").len(), 1);
    let checked = kernel.check_candidates(64, |_, _| {}).expect("is checked");
    assert!(checked.iter().all(|c| matches!(c.result, Ok(true))), "{checked:?}");
    assert_eq!(kernel.run_test_input(0).expect("runs").tensors.len(), 2);
    assert!(templates::serves(kernel), "what was called is loaded");
}

/// Kernels of users: at rest, and while a thread of the parent stands still in a first call of one.
fn kernels_of_users(root: &Path) {
    let template = Template::load(templates::data().join("scale.toml")).expect("is right");
    let at_rest = engine(root, Tuning::Never);
    let kernel = templates::kernel(&at_rest, &template);
    templates::works(&kernel);
    let checked = kernel.check_candidates(64, |_, _| {}).expect("is checked");
    assert_eq!(checked.len(), 4, "threads of a pool have started");
    for end in [End::AtOnce, End::Exit] {
        child("a user's kernel", end, || everything_of_users(&at_rest, &template, &kernel));
    }
    let (inside, is_inside) = channel();
    let (go_on, may_go_on) = channel::<()>();
    let (inside, may_go_on) = (Mutex::new(Some(inside)), Mutex::new(may_go_on));
    let busy = Engine::builder()
        .device(DeviceChoice::Host)
        .in_memory()
        .tuning(Tuning::Blocking { budget: Duration::from_millis(1) })
        .on_progress(move |_| {
            if let Some(inside) = inside.lock().expect("sound").take() {
                inside.send(()).expect("waited for");
                may_go_on.lock().expect("sound").recv().expect("sent");
            }
        })
        .build()
        .expect("opened");
    let kernel = templates::kernel(&busy, &template);
    std::thread::scope(|scope| {
        scope.spawn(|| templates::works(&kernel));
        is_inside.recv().expect("a tuning began");
        for end in [End::AtOnce, End::Exit] {
            child("a user's kernel whose locks are held", end, || everything_of_users(&busy, &template, &kernel));
        }
        go_on.send(()).expect("waited for");
    });
}

/// The process's own engine, in the child of a process that tunes, and in one whose parent has none yet.
fn global(root: &Path) {
    // SAFETY: no other thread runs.
    unsafe {
        std::env::set_var("ROPEJIT_CACHE_DIR", root);
        std::env::set_var("ROPEJIT_DEVICE", "host");
    }
    child("its first use", End::Exit, || turn(&handle(Engine::global().expect("opened"), 2), 3));
    turn(&handle(Engine::global().expect("opened"), 2), 3);
    for end in [End::AtOnce, End::Exit] {
        child("calls", end, || turn(&handle(Engine::global().expect("opened"), 3), 3));
        child("nothing", end, || {});
        child("waits", end, || Engine::global().expect("opened").wait_tuned());
        child("counts", end, || assert_eq!(Engine::global().expect("opened").stats(), Stats::default()));
    }
}

/// An engine that is never dropped: what runs in the background has ended when what was there before it ends, such as a
/// driver.
fn exit_while_tuning(root: &Path) {
    static PROGRESS: AtomicU64 = AtomicU64::new(0);
    extern "C" fn as_a_driver_ends() {
        let (before, since) = (PROGRESS.load(Relaxed), Instant::now());
        assert!(before > 0);
        while since.elapsed() < Duration::from_secs(2) {
            if PROGRESS.load(Relaxed) > before {
                // SAFETY: ends the process.
                unsafe { _exit(4) }
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    child("exits", End::Exit, || {
        // SAFETY: a function of the C library, which keeps the pointer.
        assert_eq!(unsafe { atexit(as_a_driver_ends) }, 0);
        let builder = Engine::builder().device(DeviceChoice::Host).cache_dir(root).cache_path([""; 0]);
        let builder = builder.tuning(Tuning::Background).on_progress(|_| _ = PROGRESS.fetch_add(1, Relaxed));
        let engine = builder.build().expect("opened");
        turn(&handle(&engine, 2), 3);
        std::mem::forget(engine);
        while PROGRESS.load(Relaxed) == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
    });
}

type Scene = (&'static str, fn(&Path));

fn scenes() -> [Scene; 6] {
    [
        ("at_rest", at_rest),
        ("while_tuning", while_tuning),
        ("with_locks_held", with_locks_held),
        ("kernels_of_users", kernels_of_users),
        ("global", global),
        ("exit_while_tuning", exit_while_tuning),
    ]
}

/// Runs the scene that the environment names; otherwise all of them, each in a process of its own.
#[test]
fn children_are_served_and_end() {
    if let Ok(name) = std::env::var("ROPEJIT_TEST_SCENE") {
        let (_, scene) = scenes().into_iter().find(|(known, _)| *known == name).expect("a scene");
        let folder = tempfile::tempdir().expect("a folder");
        scene(&folder.path().join("cache"));
        println!("the scene is over");
        return;
    }
    for (name, _) in scenes() {
        let mut command = Command::new(std::env::current_exe().expect("has a path"));
        command.args(["--exact", "fork::children_are_served_and_end", "--nocapture", "--test-threads=1"]);
        command.env("ROPEJIT_TEST_SCENE", name).env_remove("ROPEJIT_LOCK").env_remove("ROPEJIT_TUNING");
        let output = command.output().expect("runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && text.contains("the scene is over"), "{name}: {text}");
        println!("{name}: {} children", text.matches(": ok").count());
    }
}
