//! Candidates that do what none may, on the host device: each is told apart, by the name of the argument.

use std::time::Duration;

use super::*;
use crate::device::host::Host;
use crate::families::template::loaded::Template;
use crate::service::family::{Bucket, Dialect, Geometry, Kernel, Origin, Problem as _, Provenance, Trial as _};

const TOML: &str = include_str!("../../../../tests/data/templates/scale.toml");
const CU: &str = include_str!("../../../../tests/data/templates/scale.cu");

/// A problem of `scale`, with other texts in its two files.
pub(super) fn problem(toml: &[(&str, &str)], cu: &[(&str, &str)]) -> Problem {
    let edited = |text: &str, edits: &[(&str, &str)]| {
        edits.iter().fold(text.to_owned(), |text, (from, to)| {
            assert!(text.contains(from), "{from}");
            text.replace(from, to)
        })
    };
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("scale.toml"), edited(TOML, toml)).expect("written");
    std::fs::write(folder.path().join("scale.cu"), edited(CU, cu)).expect("written");
    of_spec(&Template::load(folder.path().join("scale.toml")).expect("is right"), &[("dtype", "f32")], 1 << 12)
}

fn of_spec(template: &Template, spec: &[(&str, &str)], size: u64) -> Problem {
    let d = template.description();
    let spec = d.spec(spec.iter().copied()).expect("is right");
    let mut values = spec.values;
    for name in template.aligned() {
        values[usize::from(*name)] = 32;
    }
    Problem::new(template, &spec, &values, Bucket::of(size)).expect("is legal")
}

#[allow(unsafe_code)]
pub(super) fn plan(p: &Problem, device: &dyn Device, config: &crate::service::family::Config) -> Plan {
    let source = p.source(Dialect::Host, config);
    let binary = device.compile(&source).expect("compiles");
    // SAFETY: it was compiled here just now, from the family's own text.
    let kernel = unsafe { device.load(&binary, &source.entry, &p.attrs(config)) }.expect("is loaded");
    Plan::new(p, Some(kernel), config.clone(), Origin::Compiled, Provenance::Default).expect("runs")
}

/// What is wrong with the default, or with the first candidate that differs from it.
fn wrong(p: &Problem) -> Option<String> {
    let device: Arc<dyn Device> = Arc::new(Host::open());
    let throttle = Throttle::full();
    let mut trial = Trial::new(p, &device, 64 << 20, &throttle).expect("has memory");
    let mut expected = None;
    for config in p.space(device.abilities()) {
        let plan = plan(p, device.as_ref(), &config);
        let outputs = match trial.outputs(&plan, &throttle) {
            Ok(outputs) => outputs,
            Err(e) => return Some(e.to_string()),
        };
        let expected = expected.get_or_insert_with(|| outputs.clone());
        if let Err(why) = trial.compare(expected, &outputs) {
            return Some(format!("{config}: {why}"));
        }
        for set in 0..3 {
            trial.launch(&plan, Stream::DEFAULT, set, trial.size()).expect("is launched");
            trial.copy(Stream::DEFAULT, set, trial.size()).expect("is copied");
        }
    }
    None
}

#[test]
fn what_is_right_passes() {
    assert_eq!(wrong(&problem(&[], &[])), None);
}

#[test]
fn a_kernel_with_barriers_and_an_inout_passes() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/templates");
    let template = Template::load(folder.join("add_rmsnorm.toml")).expect("is right");
    for (dtype, hidden) in [("bf16", "64"), ("f16", "200"), ("f32", "1")] {
        assert_eq!(wrong(&of_spec(&template, &[("dtype", dtype), ("hidden", hidden)], 16)), None, "{dtype} {hidden}");
    }
}

#[test]
fn what_is_written_outside_is_named() {
    let past = wrong(&problem(&[], &[("j < n", "j < n + 1")]));
    assert_eq!(past.as_deref(), Some("writes outside of 'y': byte 0 past its end, with factor = 1.5, n = 1"));
    let before = wrong(&problem(&[], &[("y[j] =", "y[(i64)j - 1] =")]));
    assert_eq!(before.as_deref(), Some("writes outside of 'y': byte 4 before its start, with factor = 1.5, n = 1"));
    let input = wrong(&problem(&[], &[("const DTYPE* x", "DTYPE* x"), ("y[j] =", "x[j] = y[j] =")]));
    assert_eq!(input.as_deref(), Some("writes to 'x', which is in: element 0, with factor = 1.5, n = 1"));
}

#[test]
fn what_is_not_written_is_counted() {
    let p = problem(
        &[("n = [1, 1000]", "n = 1000"), ("vec = [1, 4]", "vec = [1]"), (", vec = 1", "")],
        &[("store_pack(y + i, p)", "if (i % 100 != 7) store_pack(y + i, p)")],
    );
    let what = "leaves 10 of 1000 elements of 'y' unwritten, the first number 7, with factor = 1.5, n = 1000";
    assert_eq!(wrong(&p).as_deref(), Some(what));
}

#[test]
fn bits_that_depend_on_a_tunable_have_three_ways_out() {
    let p = problem(&[("n = [1, 1000]", "n = 1000")], &[("* factor", "* (factor + 0.25f * (VEC > 1))")]);
    let why = wrong(&p).expect("differs");
    assert!(
        why.starts_with(
            "threads=64 vec=4: 'y' differs from the default's in 1000 of 1000 elements, the first number 0: "
        ),
        "{why}"
    );
    assert!(
        why.ends_with(
            "with factor = 1.5, n = 1000; three ways out: move the tunable to [spec], give sums one order whatever the \
             tunables are, or say in [test] how near is near enough, such as same = { ulp = 2 }"
        ),
        "{why}"
    );
    let near = [("n = [1, 1000]", "n = 1000\nsame = { rtol = 0.2 }")];
    assert_eq!(wrong(&problem(&near, &[("* factor", "* (factor + 0.25f * (VEC > 1))")])), None);
}

#[test]
fn what_reads_outside_is_not_the_same_twice() {
    let p = problem(
        &[("n = [1, 1000]", "n = 8")],
        &[("p.at[v] = from_f32<DTYPE>(to_f32(p.at[v])", "p.at[v] = from_f32<DTYPE>(to_f32(x[i + v + 3])")],
    );
    let why = wrong(&p).expect("differs");
    assert!(
        why.starts_with("writes to 'y' what is not the same twice, in 3 of 8 elements, the first number 5: NaN, then "),
        "{why}"
    );
    assert!(why.contains("it reads outside of its arguments, or what nobody has written"), "{why}");
}

#[test]
fn scratch_is_anybodys_and_inout_is_restored() {
    let toml = [
        ("y = \"out dtype[n]\"", "y = \"inout dtype[n]\"\nspare = \"scratch f32[ceil_div(n, 2)]\""),
        ("vec = [1, 4]", "vec = [1]"),
        (", vec = 1", ""),
    ];
    let cu = [
        ("DTYPE* y,", "DTYPE* y, f32* spare,"),
        ("p.at[v]) * factor", "p.at[v]) * factor + to_f32(y[i])"),
        ("store_pack(y", "if (i % 3 == 0) spare[i / 2] = 1.0f; store_pack(y"),
    ];
    assert_eq!(wrong(&problem(&toml, &cu)), None);
}

#[test]
fn what_hangs_is_given_up() {
    // It waits until the folder is gone, which the test removes, so that its process can end.
    let folder = tempfile::tempdir().expect("a folder");
    let spin =
        format!("if (threadIdx.x == 0) while (access(\"{}\", 0) == 0) {{}}\n    if (i + VEC", folder.path().display());
    let access = "extern \"C\" int access(const char*, int);\nextern";
    let p = problem(&[("n = [1, 1000]", "n = 1")], &[("extern", access), ("if (i + VEC", &spin)]);
    let device: Arc<dyn Device> = Arc::new(Host::open());
    let mut trial = Trial::new(&p, &device, 64 << 20, &Throttle::full()).expect("has memory");
    trial.checks.patience = Duration::from_millis(200);
    let plan = plan(&p, device.as_ref(), &p.space(device.abilities())[0]);
    let error = trial.outputs(&plan, &Throttle::full()).expect_err("hangs").to_string();
    assert_eq!(error, "hangs: it has not ended in 0.2 s, with factor = 1.5, n = 1");
}

#[test]
fn a_stack_that_is_too_small_is_an_error() {
    let large = |bytes: u32| {
        let cu = format!(
            "__syncthreads();\n    volatile char large[{bytes}];\n    for (u32 at = 0; at < {bytes}; ++at) large[at] = 1;\n    \
             __syncthreads();\n    if (i + VEC"
        );
        wrong(&problem(&[("n = [1, 1000]", "n = 1000")], &[("if (i + VEC", &cu)]))
    };
    assert_eq!(large(40_000), None);
    let overflows = "a thread of the kernel uses more than the 64 KiB of its stack\n\
                     hint: let it have smaller arrays, or recurse less";
    assert_eq!(large(70_000).as_deref(), Some(overflows));
}

/// Large tensors start at addresses that memory of the processor does not start at.
#[test]
fn all_that_a_launch_is_given_lies_in_the_memory() {
    let device: Arc<dyn Device> = Arc::new(Host::open());
    for size in [1 << 12, 1 << 18, (1 << 18) + 1, 1 << 20] {
        let p = problem(&[], &[]).at(Bucket::of(size));
        let trial = Trial::new(&p, &device, 256 << 20, &Throttle::full()).expect("has memory");
        assert!(trial.sets > 1 && trial.size() >= size);
        assert_eq!((trial.data.address() + trial.base as u64) % LARGE_STARTS as u64, 0);
        for set in 0..trial.sets {
            let (start, end) = (trial.base + set * trial.set, trial.base + (set + 1) * trial.set);
            assert!(end <= trial.data.bytes());
            let mut free = start;
            for region in &trial.regions {
                let at = set * trial.set + region.at;
                assert!(free <= at && at + region.len <= start + trial.room, "{size}: {region:?} of set {set}");
                free = at + region.len;
            }
            let copied = regions::traffic(p.d(), &p.values_for(trial.size()).expect("has some")).expect("has one") / 2;
            assert!(start + trial.room + copied as usize <= end, "{size}: set {set}");
        }
    }
}

/// A kernel of a GPU that is not there.
struct Never;

impl Kernel for Never {
    #[allow(unsafe_code)]
    unsafe fn launch(&self, _: Stream<'_>, _: &Geometry, _: &[*const std::ffi::c_void]) -> Result<()> {
        Err(Error::new(ErrorKind::Device, "never"))
    }

    fn keep(&self) {}
}

#[test]
fn sizes_fit_the_memory_and_the_bucket() {
    let p = problem(&[], &[]);
    assert_eq!(p.argument_for(4096).expect("has one"), 4096);
    let device: Arc<dyn Device> = Arc::new(Host::open());
    let mut small = Trial::new(&p, &device, 8 << 20, &Throttle::full()).expect("has memory");
    assert_eq!(small.size(), 4096);
    assert_eq!(p.bytes(4096), 2 * 4 * 4096);
    let large = p.at(Bucket::of(1 << 24));
    let cut = Trial::new(&large, &device, 32 << 20, &Throttle::full()).expect("has memory").size();
    assert!((1 << 19..1 << 22).contains(&cut), "{cut}");
    let error = Trial::new(&large, &device, 1 << 10, &Throttle::full()).err().expect("no memory");
    assert_eq!(error.kind(), ErrorKind::OutOfMemory);
    let config = &p.space(device.abilities())[0];
    let plan = Arc::new(
        Plan::new(&p, Some(Arc::new(Never)), config.clone(), Origin::Disk, Provenance::Default).expect("a plan"),
    );
    assert_eq!(small.outputs(&plan, &Throttle::full()).expect_err("fails").to_string(), "never");
}
