//! The host device: the same templates, compiled by the system's C++ compiler. Needs a C++ compiler.

use ropejit::rope::scaling::Mrope;
use ropejit::{
    DType, DeviceChoice, Direction, Engine, PairStyle, PositionForm, RopeSpec, Rounding, TableWidth, Tuning,
};

use ropejit::engine::ChoiceMeta;
use ropejit::families::Stated;
use ropejit::families::rope::choice_fields;
use ropejit::jit::render::Dialect;
use ropejit::jit::{Abilities, Bucket, Candidate, Class, Record, Variant, variant};
use ropejit::store::Entry;

use crate::cases::{Case, Data, Order, assert_bits, assert_near, assert_right, run};

pub fn engine(tuning: Tuning) -> Engine {
    Engine::builder().device(DeviceChoice::Host).in_memory().tuning(tuning).build().expect("the host is always there")
}

/// The forms that are tested on every device.
pub fn grid() -> Vec<Case> {
    let mut cases = Vec::new();
    let orders = [Order::Bshd, Order::Bhsd, Order::Packed, Order::Odd];
    let dims = [2, 64, 80, 96, 112, 128, 192, 256, 512];
    let mut n = 0;
    for dtype in DType::ALL {
        for rounding in [Rounding::Once, Rounding::PerOp] {
            for head_dim in dims {
                // Every dimension meets every order, table and position form somewhere on the grid.
                let mut spec = RopeSpec::new(dtype, head_dim, 4, [4, 1, 2][n % 3]).with_rounding(rounding);
                let width = [TableWidth::Half, TableWidth::Full][n / 2 % 2];
                spec = spec.with_table([DType::F32, dtype][n % 2], width);
                spec = spec.with_positions([PositionForm::Implicit, PositionForm::Ids32, PositionForm::Ids64][n % 3]);
                let mut case = Case::new(spec, 1 + n % 2, [1, 7, 33][n / 3 % 3]);
                case.order = orders[n % 4];
                case.in_place = n % 5 < 2;
                case.table_per_sequence = n % 7 == 0;
                cases.push(case);
                n += 1;
            }
        }
    }
    cases
}

/// Everything that a spec can say: styles, partial rotary, both directions, k absent, every position form, three axes.
pub fn forms() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut n = 0;
    for style in [PairStyle::HalfSplit, PairStyle::Interleaved] {
        for direction in [Direction::Forward, Direction::Backward] {
            for (head_dim, rotary_dim) in [(128, 128), (128, 32), (80, 80), (96, 24), (64, 64), (6, 4), (576, 64)] {
                let dtype = DType::ALL[n % 3];
                // A slice of a wider head, as multi-head latent attention stores it, is a head of its own with strides.
                let slice = head_dim > 512;
                let mut spec = RopeSpec::new(dtype, if slice { 64 } else { head_dim }, 3, [1, 0, 3][n % 3]);
                spec.rotary_dim = rotary_dim;
                (spec.style, spec.direction) = (style, direction);
                spec = spec.with_rounding([Rounding::Once, Rounding::PerOp][n / 2 % 2]);
                spec = spec.with_table([dtype, DType::F32][n % 2], [TableWidth::Full, TableWidth::Half][n / 3 % 2]);
                spec = spec.with_positions(POSITIONS[n % POSITIONS.len()]);
                let batch = if spec.positions.is_packed() { 1 } else { 2 };
                let mut case = Case::new(spec, batch, [9, 1, 23][n % 3]);
                case.order = if slice { Order::Slice } else { [Order::Bshd, Order::Bhsd, Order::Packed][n / 2 % 3] };
                case.in_place = n % 4 < 2;
                case.packed_offsets = [Some(false), None, Some(true), None][n % 4];
                cases.push(case);
                n += 1;
            }
        }
    }
    for (sections, interleaved) in [([16, 24, 24], false), ([24, 20, 20], true), ([3, 4, 5], false), ([4, 4, 4], true)]
    {
        for direction in [Direction::Forward, Direction::Backward] {
            let head_dim = 2 * sections.iter().sum::<u32>();
            let mut spec = RopeSpec::new(DType::BF16, head_dim, 4, 2).with_positions(PositionForm::Ids64);
            (spec.mrope, spec.direction) = (Some(Mrope { sections, interleaved }), direction);
            cases.push(Case { order: Order::Bhsd, ..Case::new(spec.clone(), 2, 11) });
            spec.positions = PositionForm::Ids32;
            cases.push(Case { in_place: true, outside: vec![4], ..Case::new(spec, 1, 11) });
        }
    }
    cases.extend(packed());
    cases
}

/// Packed sequences among tokens that are in none, which stay as they are.
fn packed() -> Vec<Case> {
    let mut cases = Vec::new();
    let ends: [&[i64]; 8] =
        [&[0, 3, 6], &[2, 5, 8], &[1, 1, 4, 4, 4, 6, 6], &[0, 3, 20], &[9, 12], &[0], &[0, 0], &[0, 1, 2, 3, 5, 7]];
    for (n, ends) in ends.iter().cycle().take(48).enumerate() {
        let dtype = DType::ALL[n % 3];
        let mut spec = RopeSpec::new(dtype, [64, 96, 6][n / 8 % 3], 3, [3, 0, 1][n / 2 % 3]);
        spec.rotary_dim = [spec.head_dim, 4][n / 16 % 2];
        spec.style = [PairStyle::HalfSplit, PairStyle::Interleaved][n / 8 % 2];
        spec.direction = [Direction::Forward, Direction::Backward][n / 4 % 2];
        spec = spec.with_rounding([Rounding::Once, Rounding::PerOp][n / 3 % 2]);
        spec = spec.with_table([DType::F32, dtype][n % 2], [TableWidth::Half, TableWidth::Full][n / 2 % 2]);
        spec = spec.with_positions([PositionForm::CuSeqlens, PositionForm::CuSeqlens64][(n + n / 8) % 2]);
        let mut case = Case::new(spec, 1, 8);
        case.cu_seqlens = ends.to_vec();
        if case.spec.positions.is_wide() && ends.last() == Some(&20) {
            case.cu_seqlens[2] = (1 << 32) + 4; // its lower half ends among the tokens
        }
        case.order = [Order::Bshd, Order::Bhsd, Order::Odd][n % 3];
        case.in_place = (n / 8 + n / 3) % 2 == 0;
        case.packed_offsets = [None, Some(false), Some(true)][n / 5 % 3];
        if case.packed_offsets.is_some() && ends.len() > 2 && n % 3 == 0 {
            case.outside = vec![1]; // a table that is too short for the second sequence
        }
        cases.push(case);
    }
    cases
}

/// Products that are contracted: each type, table, style and direction with each other.
pub fn contracted() -> Vec<Case> {
    let mut cases = Vec::new();
    for n in 0..24 {
        let dtype = DType::ALL[n % 3];
        let mut spec = RopeSpec::new(dtype, [128, 64, 6, 80][n / 3 % 4], 4, [2, 0, 4][n / 4 % 3]);
        spec = spec.with_rounding(Rounding::Contracted);
        spec.style = [PairStyle::Interleaved, PairStyle::HalfSplit][n / 3 % 2];
        spec.direction = [Direction::Forward, Direction::Backward][n / 6 % 2];
        spec = spec.with_table([DType::F32, dtype][n / 12], [TableWidth::Half, TableWidth::Full][n / 2 % 2]);
        spec = spec.with_positions([PositionForm::Implicit, PositionForm::Ids64][n / 5 % 2]);
        let mut case = Case::new(spec, 1 + n % 2, [7, 1, 33][n / 3 % 3]);
        case.order = [Order::Bshd, Order::Bhsd, Order::Packed, Order::Odd][n / 2 % 4];
        case.in_place = n % 5 < 2;
        case.table_per_sequence = n % 7 == 0;
        cases.push(case);
    }
    cases
}

const POSITIONS: [PositionForm; 7] = [
    PositionForm::Implicit,
    PositionForm::Ids32,
    PositionForm::CuSeqlens,
    PositionForm::Offsets32,
    PositionForm::Ids64,
    PositionForm::Offsets64,
    PositionForm::CuSeqlens64,
];

#[test]
fn every_form_is_bit_exact_and_near_f64() {
    every_form(&engine(Tuning::Never));
}

pub fn every_form(engine: &Engine) {
    for (i, case) in forms().iter().enumerate() {
        let data = Data::new(case, 100 + i as u64);
        let (_, got) = assert_right(engine, case, &data);
        assert_near(case, &got, &data);
    }
}

#[test]
fn the_grid_is_bit_exact_and_near_f64() {
    let engine = engine(Tuning::Never);
    for (i, case) in grid().iter().enumerate() {
        let data = Data::new(case, i as u64);
        let (_, got) = assert_right(&engine, case, &data);
        assert_near(case, &got, &data);
    }
}

#[test]
fn contracted_products_are_bit_exact_and_are_another_contract() {
    every_contracted(&engine(Tuning::Never));
}

pub fn every_contracted(engine: &Engine) {
    let mut differ = 0;
    for (i, case) in contracted().iter().enumerate() {
        let data = Data::new(case, 300 + i as u64);
        let (_, got) = assert_right(engine, case, &data);
        assert_near(case, &got, &data);
        let once = Case { spec: case.spec.clone().with_rounding(Rounding::Once), ..case.clone() };
        differ += usize::from(Data::new(&once, 300 + i as u64).expected != data.expected);
    }
    // In f32. A product of two numbers of 16 bits is exact, and one with a f32 table rarely decides a bit of 16.
    assert!(differ >= 6, "{differ} of them differ from `once`");
}

/// Where there is no compiler, in a process of its own.
#[test]
fn the_reference_gives_the_same_bits() {
    const IN_CHILD: &str = "ROPEJIT_TEST_NO_COMPILER";
    if std::env::var_os(IN_CHILD).is_none() {
        let mut child = std::process::Command::new(std::env::current_exe().expect("has a path"));
        child.args(["--exact", "host::the_reference_gives_the_same_bits"]);
        let output = child.env(IN_CHILD, "1").env("PATH", "").env_remove("CXX").output().expect("runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && text.contains("1 passed"), "{text}");
        return;
    }
    let engine = engine(Tuning::Never);
    for (i, case) in grid().iter().chain(&forms()).chain(&contracted()).enumerate() {
        let (origin, _) = assert_right(&engine, case, &Data::new(case, 900 + i as u64));
        assert_eq!(origin, ropejit::Origin::Reference);
    }
}

/// Makes the engine serve a variant: a choice that names it, as a tuning run would leave behind.
fn choose(engine: &Engine, spec: &RopeSpec, bucket: Bucket, class: Class, v: Variant) {
    let space = variant::space(spec, class, bucket, engine.device().abilities());
    let fields = choice_fields(spec, bucket, class, &space, &engine.facts().identity().to_string());
    let record = Record { tuned: true, ..Record::new(bucket.tokens(), vec![Candidate::new(Stated::of(&v))]) };
    let meta =
        ChoiceMeta { fields, spec: Stated::of(spec), bucket, class: Stated::of(&class), arch: String::new(), record };
    let key = meta.fields.key();
    let meta = serde_json::to_vec(&meta).expect("JSON");
    let entry = Entry::choice(key, meta);
    engine.store().put(&entry).expect("kept in memory");
}

/// Every variant that any device may choose: against the f64 reference, and bit for bit against the default's output.
#[test]
fn every_variant_gives_the_bits_of_the_default() {
    let mut contracted = RopeSpec::new(DType::F32, 32, 2, 1).with_rounding(Rounding::Contracted);
    contracted.style = PairStyle::Interleaved;
    let specs = [
        RopeSpec::new(DType::BF16, 128, 6, 2),
        RopeSpec::new(DType::F16, 80, 4, 4).with_rounding(Rounding::PerOp).with_positions(PositionForm::Ids64),
        RopeSpec::new(DType::F32, 64, 3, 1).with_table(DType::F32, TableWidth::Full),
        contracted,
    ];
    let mut variants = 0;
    for (spec, order) in specs.iter().zip([Order::Bshd, Order::Bhsd, Order::Bshd, Order::Bhsd]) {
        let mut case = Case::new(spec.clone(), 2, 15);
        case.order = order;
        let data = Data::new(&case, 5);
        let class = Class::contiguous(spec, order == Order::Bhsd, true);
        let bucket = Bucket::of(30);
        let can = Abilities { dialect: Dialect::Cuda, overlap: false, cubins: None };
        let all: std::collections::BTreeSet<Variant> =
            [1, 1 << 20].into_iter().flat_map(|tokens| variant::space(spec, class, Bucket::of(tokens), can)).collect();
        variants += all.len();
        let outputs = std::sync::Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for part in [0, 1] {
                let (all, case, data, outputs) = (&all, &case, &data, &outputs);
                scope.spawn(move || {
                    for &v in all.iter().skip(part).step_by(2) {
                        let engine = engine(Tuning::Never);
                        choose(&engine, spec, bucket, class, v);
                        let (origin, got) = run(&engine, case, data).unwrap_or_else(|e| panic!("{v}: {e}"));
                        assert_eq!(origin, ropejit::Origin::Compiled);
                        let serving = engine.rope(spec).expect("valid").serving(30, order == Order::Bhsd);
                        assert_eq!(serving.expect("loaded").variant, v);
                        assert_near(case, &got, data);
                        outputs.lock().expect("not poisoned").push((v, got));
                    }
                });
            }
        });
        let outputs = outputs.into_inner().expect("not poisoned");
        for (v, got) in &outputs {
            assert_bits(&case, got, &data.expected);
            assert!(got == &outputs[0].1, "{v} differs from {} for {spec}", outputs[0].0);
        }
    }
    println!("{variants} variants, all bit-equal");
    assert!(variants >= 20);
}

/// Shapes where a kernel would most easily reach past its tensors.
#[test]
fn edge_shapes() {
    let engine = engine(Tuning::Never);
    let mut n = 0;
    for head_dim in [2, 80, 96, 256] {
        for (batch, tokens) in [(1, 1), (1, 13), (3, 7)] {
            let dtype = DType::ALL[n % 3];
            let positions = [PositionForm::Implicit, PositionForm::Ids32, PositionForm::Ids64][n % 3];
            let mut case = Case::new(RopeSpec::new(dtype, head_dim, 3, 1).with_positions(positions), batch, tokens);
            case.order = [Order::Bshd, Order::Odd, Order::Packed, Order::Bhsd][n % 4];
            case.in_place = n % 2 == 0;
            assert_right(&engine, &case, &Data::new(&case, n as u64));
            n += 1;
        }
    }
    for (n, case) in packed().iter().step_by(5).enumerate() {
        assert_right(&engine, case, &Data::new(case, n as u64));
    }
}

/// One token more than there is memory for: only for the sanitizer to find.
#[test]
fn planted_overflow() {
    if std::env::var_os("ROPEJIT_TEST_PLANTED_OVERFLOW").is_none() {
        return;
    }
    let engine = engine(Tuning::Never);
    let mut case = Case::new(RopeSpec::new(DType::BF16, 80, 3, 1), 1, 5);
    case.in_place = true;
    let data = Data::new(&case, 1);
    case.tokens += 1;
    let _ = run(&engine, &case, &data);
}

/// The host device's kernels under AddressSanitizer, in a process of their own.
#[test]
fn address_sanitizer_finds_nothing_and_would_find_something() {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    let library = std::process::Command::new(compiler).arg("-print-file-name=libasan.so").output().expect("a compiler");
    let library = String::from_utf8(library.stdout).expect("a path");
    let run = |test: &str, planted: bool| {
        let mut command = std::process::Command::new(std::env::current_exe().expect("has a path"));
        command.args(["--exact", test, "--nocapture", "--test-threads=1"]);
        command.env("LD_PRELOAD", library.trim()).env("ASAN_OPTIONS", "detect_leaks=0");
        command.env("ROPEJIT_HOST_CXXFLAGS", "-fsanitize=address -fno-omit-frame-pointer");
        if planted {
            command.env("ROPEJIT_TEST_PLANTED_OVERFLOW", "1");
        }
        let output = command.output().expect("runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        (output.status.success(), text)
    };
    let (clean, text) = run("host::edge_shapes", false);
    assert!(clean && text.contains("1 passed"), "{text}");
    let (clean, text) = run("host::planted_overflow", true);
    assert!(!clean && text.contains("AddressSanitizer: heap-buffer-overflow"), "the sanitizer is blind: {text}");
}
