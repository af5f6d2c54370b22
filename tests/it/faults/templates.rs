//! The same for kernels of users: a template family has nothing of its own that could break, and this shows it.

use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Instant;

use ropejit::families::template::{Arg, Template};
use ropejit::store::disk::Disk;
use ropejit::store::{Kind, Lookup, Miss, Store};
use ropejit::{Engine, Origin, Stream, Tuning};
use serde_json::Value;

use super::{on, scratch, sound};
use crate::templates::data;

const PROCESSES: usize = 64;
const KILLS: u32 = 8;

/// Calls the kernel and checks what it wrote.
fn scales(engine: &Engine) -> Origin {
    let template = Template::load(data().join("scale.toml")).expect("is right");
    let kernel = engine.template(&template).expect("runs here").spec([("dtype", "f32")]).expect("is right");
    let (x, mut y) = ([3f32; 100], [0f32; 100]);
    let args = [
        Arg::host(&x, &[100]).expect("fits"),
        Arg::host_mut(&mut y, &[100]).expect("fits"),
        0.5f32.into(),
        100u32.into(),
    ];
    let origin = kernel.launch(Stream::DEFAULT, &args).unwrap_or_else(|e| panic!("{e}"));
    drop(args);
    assert_eq!(y, [1.5; 100]);
    origin
}

fn prewarm(root: &Path) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ropejit"));
    let file = data().join("scale.toml");
    command.args(["prewarm", "--spec", "dtype=f32", "--size", "n=100", "--json", "--template"]).arg(file);
    command.env("ROPEJIT_CACHE_DIR", root).env("ROPEJIT_DEVICE", "host").env_remove("ROPEJIT_CACHE_PATH");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().expect("started")
}

#[test]
fn sixty_four_processes_tune_a_kernel_of_a_users_once() {
    let folder = scratch();
    let children: Vec<Child> = (0..PROCESSES).map(|_| prewarm(folder.path())).collect();
    let outputs: Vec<Output> = children.into_iter().map(|c| c.wait_with_output().expect("ended")).collect();
    let count = |counter: &str| {
        let one = |output: &Output| {
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
            report["stats"][counter].as_u64().expect("a count")
        };
        outputs.iter().map(one).sum::<u64>()
    };
    say!(
        "{PROCESSES} processes, a template: compiles {}, tunings {}, waits {}",
        count("compiles"),
        count("tunings"),
        count("waited")
    );
    assert_eq!((count("compiles"), count("tunings")), (4, 1));
    sound(folder.path(), "after many processes");
    assert_eq!(scales(&on(folder.path(), Tuning::Frozen)), Origin::Disk);
}

#[test]
fn entries_of_a_template_that_are_cut_or_flipped_are_misses() {
    let folder = scratch();
    scales(&on(folder.path(), Tuning::Never));
    let disk = Disk::open(folder.path()).expect("opens");
    let all = Kind::ALL.into_iter().flat_map(|kind| disk.list(kind).expect("listed"));
    let entries: Vec<_> = all.map(|l| l.entry.expect("sound")).collect();
    assert_eq!(entries.len(), 2);
    let mut tried = 0;
    for e in &entries {
        let (path, good) = (disk.path(e.kind, e.key), e.encode());
        let file = std::fs::File::options().write(true).open(&path).expect("there");
        let unusable = || matches!(disk.get(e.kind, e.key), Lookup::Miss(Miss::Unusable { .. }));
        for at in (0..good.len()).step_by(7) {
            file.write_all_at(&[good[at] ^ (1 << (at % 8))], at as u64).expect("written");
            assert!(unusable(), "byte {at}");
            file.write_all_at(&good[at..=at], at as u64).expect("written");
        }
        for at in (0..good.len()).rev().step_by(7) {
            file.set_len(at as u64).expect("cut");
            assert!(unusable(), "cut at {at}");
        }
        tried += 2 * good.len().div_ceil(7);
        scales(&on(folder.path(), Tuning::Never));
        assert!(matches!(disk.get(e.kind, e.key), Lookup::Hit(_)), "it is healed");
    }
    say!("{tried} cuts and flips of two entries of a template, each a miss");
    sound(folder.path(), "after cuts and flips");
}

#[test]
fn a_prewarm_of_a_template_that_is_killed_costs_work_done_again() {
    let whole = |root: &Path| {
        let started = Instant::now();
        let output = prewarm(root).wait_with_output().expect("ended");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        started.elapsed()
    };
    let (mut killed, mut tries, mut span) = (0, 0, whole(scratch().path()));
    while killed < KILLS {
        let folder = scratch();
        // Moments spread over the life of a process, which is shorter when the machine is less busy.
        let delay = span.mul_f64((f64::from(tries) * 0.618_034).fract());
        let mut child = prewarm(folder.path());
        std::thread::sleep(delay);
        let alive = child.try_wait().expect("asked").is_none();
        child.kill().expect("killed");
        child.wait().expect("waited");
        killed += u32::from(alive);
        span = if alive { span.mul_f64(1.02) } else { span.mul_f64(0.8) };
        tries += 1;
        assert!(tries < 20 * KILLS, "{killed} kills in {tries} tries");
        whole(folder.path());
        sound(folder.path(), &format!("killed after {delay:?}"));
        assert_eq!(scales(&on(folder.path(), Tuning::Frozen)), Origin::Disk);
    }
    say!("{killed} prewarms of a template killed, each done again by the next");
}
