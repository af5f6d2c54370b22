//! cos and sin that the engine makes: the bits of `cos_sin_table`, read from a table or computed, near and far.

use ropejit::engine::ChoiceMeta;
use ropejit::rope::scaling::{Mrope, RopeParameters, Scaling, TableMode};
use ropejit::store::Kind;
use ropejit::{DType, DeviceChoice, Direction, Engine, ErrorKind, PairStyle, PositionForm, RopeSpec, Rounding, Tuning};

use crate::cases::{Case, Data, Order, assert_bits, run};

const MODES: [TableMode; 2] = [TableMode::F32, TableMode::Accurate];

/// Parameters and a length for which there is a table.
pub fn plain(rotary_dim: u32) -> (RopeParameters, u64) {
    (RopeParameters::new(5e5, rotary_dim), 4000)
}

/// Parameters and a length for which angles can only be computed.
pub fn beyond_dynamic(rotary_dim: u32) -> (RopeParameters, u64) {
    let scaling = Scaling::Dynamic { factor: 2.0, max_position_embeddings: 64 };
    (RopeParameters::new(1e4, rotary_dim).with_scaling(scaling), 777)
}

fn longrope(rotary_dim: u32, seq_len: u64) -> (RopeParameters, u64) {
    let pairs = rotary_dim as usize / 2;
    let scaling = Scaling::LongRope {
        short_factor: (0..pairs).map(|i| 1.0 + 0.01 * i as f64).collect(),
        long_factor: (0..pairs).map(|i| 1.0 + 0.5 * i as f64).collect(),
        original_max_position_embeddings: 300,
        factor: 8.0,
        attention_factor: None,
    };
    (RopeParameters::new(1e4, rotary_dim).with_scaling(scaling), seq_len)
}

/// Every form of call, with tables and without, in both modes.
pub fn every_form(engine: &Engine) {
    let base = RopeSpec::new(DType::BF16, 64, 4, 2);
    let mut partial = base.clone();
    partial.rotary_dim = 24;
    let mut interleaved = base.clone();
    interleaved.style = PairStyle::Interleaved;
    let mut backward = base.clone();
    backward.direction = Direction::Backward;
    let mut axes = base.clone().with_positions(PositionForm::Ids64);
    axes.mrope = Some(Mrope { sections: [8, 12, 12], interleaved: true });
    let mut f32 = base.clone();
    f32.dtype = DType::F32;
    let specs = [
        f32,
        partial,
        interleaved,
        backward,
        axes,
        base.clone().with_positions(PositionForm::Ids32),
        base.clone().with_positions(PositionForm::Offsets64),
        base.clone().with_positions(PositionForm::CuSeqlens),
        base.with_rounding(Rounding::PerOp),
    ];
    for (i, spec) in specs.into_iter().enumerate() {
        let (d, batch) = (spec.rotary_dim, if spec.positions.is_packed() { 1 } else { 2 });
        for (parameters, seq_len) in [plain(d), beyond_dynamic(d), longrope(d, 200), longrope(d, 400)] {
            for mode in MODES {
                let case = Case {
                    angles: Some((parameters.clone(), seq_len)),
                    order: if i % 2 == 0 { Order::Bshd } else { Order::Bhsd },
                    ..Case::new(spec.clone().with_angles(mode), batch, 61)
                };
                let data = Data::new(&case, i as u64);
                let (_, got) = run(engine, &case, &data).unwrap_or_else(|e| panic!("{e}\n{case:?}"));
                assert_bits(&case, &got, &data.expected);
            }
        }
    }
}

/// Positions up to 2^12, 2^17 and 2^20 in both modes, from a table and computed; pair 0 turns by a radian a position.
pub fn far_positions(engine: &Engine) {
    for end in [1usize << 12, 1 << 17, 1 << 20] {
        for mode in MODES {
            for (parameters, _) in [plain(16), beyond_dynamic(16)] {
                let spec = RopeSpec::new(DType::F32, 16, 1, 1).with_angles(mode);
                let angles = Some((parameters, end as u64));
                let case = Case { offset: end - 256, angles, ..Case::new(spec, 1, 256) };
                let data = Data::new(&case, 5);
                let (_, got) = run(engine, &case, &data).unwrap_or_else(|e| panic!("{e}\n{case:?}"));
                assert_bits(&case, &got, &data.expected);
            }
        }
    }
}

fn host() -> Engine {
    let builder = Engine::builder().device(DeviceChoice::Host).in_memory().tuning(Tuning::Never);
    builder.build().expect("the host device")
}

#[test]
fn every_form_is_bit_exact_on_the_host() {
    every_form(&host());
}

#[test]
fn far_positions_are_bit_exact_on_the_host() {
    far_positions(&host());
}

#[test]
fn a_table_is_made_once_and_shared_and_compiles_nothing_more() {
    let engine = host();
    let (parameters, seq_len) = plain(64);
    let angles = engine.angles(&parameters, TableMode::Accurate).expect("angles");
    angles.tables(seq_len).expect("made");
    let compiles = engine.stats().compiles;
    assert_eq!(compiles, 1);
    // The same parameters, other handles, shorter and longer: no kernel more.
    for length in [1, seq_len, 4096, 10_000] {
        let again = engine.angles(&parameters.clone(), TableMode::Accurate).expect("angles");
        again.tables(length).expect("tables");
    }
    assert_eq!(engine.stats().compiles, compiles);
}

#[test]
fn candidates_that_compute_and_that_read_are_bit_equal() {
    let builder = Engine::builder().device(DeviceChoice::Host).in_memory().tuning(Tuning::BLOCKING);
    let engine = builder.build().expect("the host device");
    for (parameters, seq_len) in [plain(32), beyond_dynamic(32)] {
        let spec = RopeSpec::new(DType::F32, 32, 4, 4).with_angles(TableMode::Accurate);
        let case = Case { angles: Some((parameters, seq_len)), ..Case::new(spec, 1, 60) };
        let data = Data::new(&case, 9);
        let (_, got) = run(&engine, &case, &data).unwrap_or_else(|e| panic!("{e}"));
        assert_bits(&case, &got, &data.expected);
    }
    let mut tableless = 0;
    for listed in engine.store().list(Kind::Choice).expect("listed") {
        let meta: ChoiceMeta = serde_json::from_slice(&listed.entry.expect("sound").meta).expect("readable");
        for candidate in meta.record.candidates.iter().filter(|_| meta.record.tuned) {
            assert_eq!(candidate.bit_equal, Some(true), "{}: {:?}", candidate.config, candidate.dropped);
            tableless += usize::from(candidate.config.to::<ropejit::jit::Variant>().expect("a variant").tableless);
        }
    }
    assert_eq!(engine.stats().tunings, 2);
    assert!(tableless > 0);
}

#[test]
fn tables_of_another_mode_are_refused() {
    let engine = host();
    let (parameters, seq_len) = plain(64);
    let case = Case {
        angles: Some((parameters.clone(), seq_len)),
        ..Case::new(RopeSpec::new(DType::F32, 64, 1, 0).with_angles(TableMode::F32), 1, 3)
    };
    let data = Data::new(&case, 1);
    run(&engine, &case, &data).expect("its own mode");
    let given = Case { angles: None, ..case };
    let error = run(&engine, &given, &data).expect_err("tables of the caller");
    assert_eq!((error.kind(), error.subject()), (ErrorKind::InvalidArgument, Some("cos, sin")));
}

#[test]
fn a_frozen_engine_makes_tables_with_what_a_prewarm_left() {
    let folder = tempfile::tempdir().expect("a folder");
    let engine = |tuning| {
        let builder =
            Engine::builder().device(DeviceChoice::Host).cache_dir(folder.path().join("cache")).tuning(tuning);
        builder.build().expect("the host device")
    };
    let spec = RopeSpec::new(DType::F32, 32, 2, 1).with_angles(TableMode::Accurate);
    let (parameters, seq_len) = plain(32);
    let error = engine(Tuning::Frozen).angles(&parameters, TableMode::Accurate).expect("angles");
    let error = error.tables(seq_len).err().expect("not cached");
    assert_eq!(error.kind(), ErrorKind::NotCached);
    let missing = error.detail::<ropejit::engine::Missing>().expect("what is missing");
    assert_eq!(missing.spec.to::<RopeSpec>().and_then(|spec| spec.angles), Some(TableMode::Accurate), "{error}");
    engine(Tuning::Never).prewarm(std::slice::from_ref(&spec), &[64], false, false).expect("prewarmed");
    for (parameters, seq_len) in [(parameters, seq_len), beyond_dynamic(32)] {
        let frozen = engine(Tuning::Frozen);
        let case = Case { angles: Some((parameters, seq_len)), ..Case::new(spec.clone(), 1, 64) };
        let data = Data::new(&case, 3);
        let (_, got) = run(&frozen, &case, &data).expect("cached");
        assert_bits(&case, &got, &data.expected);
        assert_eq!(frozen.stats().compiles, 0);
    }
}
