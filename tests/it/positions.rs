//! Positions through the safe interface, on the host device: what is counted and typed is compared, and tokens of no sequence stay
//! as they are. The grid in `host` has the rest.

use ropejit::args::{Args, CuSeqlens, Offsets, Operand, PositionIds, Positions, Tables, Tensor};
use ropejit::rope::{Layout, reference};
use ropejit::{DType, Engine, PositionForm, Result, RopeSpec, Stream, Tuning};

const TOKENS: usize = 8;

/// Turns `x`, one pair a token, by tables of four rows, in place or into a second tensor.
fn turn(engine: &Engine, form: PositionForm, x: &mut [f32], out: Option<&mut [f32]>, at: Positions<'_>) -> Result<()> {
    let rope = engine.rope(&spec(form))?;
    let (cos, sin) = tables();
    let batch = x.len() / (2 * TOKENS);
    let layout = Layout::bshd(batch, TOKENS, 1, 2);
    let q = match out {
        None => Operand::in_place(Tensor::host(x, layout)?),
        Some(out) => Operand::out_of_place(Tensor::host_input(x, layout)?, Tensor::host(out, layout)?),
    };
    let args = Args { q, k: None, tables: Tables::host(&cos, &sin, 1, 1)?, positions: at, norm: None, append: None };
    rope.apply(Stream::DEFAULT, &args)?;
    rope.check()
}

fn spec(form: PositionForm) -> RopeSpec {
    RopeSpec::new(DType::F32, 2, 1, 0).with_positions(form)
}

fn tables() -> ([f32; 4], [f32; 4]) {
    let rows = [0.0f32, 0.5, 1.0, 1.5];
    (rows.map(f32::cos), rows.map(f32::sin))
}

/// `x` with token `t` turned to `rows[t]`, or left as it is.
fn turned(x: &[f32], rows: &[Option<usize>]) -> Vec<u32> {
    let (cos, sin) = tables();
    let tokens = x.chunks(2).zip(rows).flat_map(|(x, row)| {
        let (a, b) = row.map_or((x[0], x[1]), |row| {
            reference::rotate(&spec(PositionForm::Implicit), (x[0], x[1]), (cos[row], sin[row]))
        });
        [a, b]
    });
    tokens.map(f32::to_bits).collect()
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn a_length_that_differs_is_named() {
    let engine = crate::host::engine(Tuning::Never);
    let named = |form, batch: usize, at: Positions<'_>| {
        let error = turn(&engine, form, &mut vec![0f32; batch * 2 * TOKENS], None, at).expect_err("refused");
        (error.subject().unwrap_or_default().to_owned(), error.to_string())
    };
    let (narrow, wide) = ([0i32; 8], [0i64; 8]);
    for count in [1, 4, 6] {
        let (subject, text) =
            named(PositionForm::Offsets32, 5, Positions::Offsets(Offsets::host_i32(&narrow[..count])));
        assert_eq!(subject, "offsets");
        assert!(text.contains(&format!("{count} numbers for 5 sequences")), "{text}");
        let (subject, _) = named(PositionForm::Offsets64, 5, Positions::Offsets(Offsets::host_i64(&wide[..count])));
        assert_eq!(subject, "offsets");
        for offsets in [Offsets::host_i32(&narrow[..count]), Offsets::host_i64(&wide[..count])] {
            let cu_seqlens = CuSeqlens::host_i32(&[0, 1, 2, 3, 4, 8]).expect("ascends");
            let at = Positions::Packed { cu_seqlens, offsets: Some(offsets) };
            assert_eq!(named(PositionForm::CuSeqlens, 1, at).0, "offsets");
        }
    }
    for [axes, batch, tokens] in [[1, 1, 7], [1, 2, 8], [3, 1, 8], [1, 0, 8]] {
        let ids = vec![0i32; axes * batch * tokens];
        let ids = PositionIds::host_i32(&ids, axes, batch, tokens).expect("as many");
        assert_eq!(named(PositionForm::Ids32, 3, Positions::Ids(ids)).0, "position_ids");
    }
    assert_eq!(PositionIds::host_i64(&wide, 1, 2, 8).err().expect("too few").subject(), Some("position_ids"));
    let packed = Positions::Packed { cu_seqlens: CuSeqlens::host_i64(&[0, 8]).expect("ascends"), offsets: None };
    assert_eq!(named(PositionForm::CuSeqlens64, 2, packed).0, "q");
}

#[test]
fn a_type_that_differs_is_named_and_nothing_is_narrowed() {
    let engine = crate::host::engine(Tuning::Never);
    let mut x = [0f32; 2 * TOKENS];
    let packed = |cu_seqlens| Positions::Packed { cu_seqlens, offsets: None };
    for (form, at) in [
        (PositionForm::CuSeqlens, packed(CuSeqlens::host_i64(&[0, 4]).expect("ascends"))),
        (PositionForm::CuSeqlens64, packed(CuSeqlens::host_i32(&[0, 4]).expect("ascends"))),
    ] {
        let error = turn(&engine, form, &mut x, None, at).expect_err("another type");
        assert_eq!(error.subject(), Some("cu_seqlens"));
    }
    // An offset whose lower half is a row of the tables.
    let cu_seqlens = CuSeqlens::host_i32(&[0, 2, 4]).expect("ascends");
    let at = Positions::Packed { cu_seqlens, offsets: Some(Offsets::host_i64(&[1 << 32, 1])) };
    let error = turn(&engine, PositionForm::CuSeqlens, &mut x, None, at).expect_err("outside of the tables");
    assert_eq!(error.kind(), ropejit::ErrorKind::PositionOutOfRange);
    assert_eq!(x.map(f32::is_nan)[..10], [true, true, true, true, false, false, false, false, false, false]);
}

#[test]
fn tokens_of_no_sequence_stay_as_they_are() {
    let engine = crate::host::engine(Tuning::Never);
    let mut x: Vec<f32> = (0..2 * TOKENS).map(|i| i as f32 + 0.25).collect();
    // A NaN with a payload, which arithmetic would not keep, in front of the first and behind the last.
    (x[1], x[15]) = (f32::from_bits(0x7fa1_2345), f32::from_bits(0xffb0_0001));
    let rows = [None, Some(1), Some(2), Some(3), Some(0), Some(1), None, None];
    let want = turned(&x, &rows);
    let offsets = [1i32, 3, 0];
    for form in [PositionForm::CuSeqlens, PositionForm::CuSeqlens64] {
        for in_place in [true, false] {
            let cu_seqlens = match form {
                PositionForm::CuSeqlens => CuSeqlens::host_i32(&[1, 4, 4, 6]),
                _ => CuSeqlens::host_i64(&[1, 4, 4, 6]),
            };
            let cu_seqlens = cu_seqlens.expect("ascends");
            let at = Positions::Packed { cu_seqlens, offsets: Some(Offsets::host_i32(&offsets)) };
            let (mut given, mut out) = (x.clone(), vec![9f32; 2 * TOKENS]);
            turn(&engine, form, &mut given, (!in_place).then_some(&mut out[..]), at).expect("no token is outside");
            assert_eq!(bits(if in_place { &given } else { &out }), want, "{form:?} {in_place}");
        }
    }
}

#[test]
fn cu_seqlens_ascend_from_zero_or_above() {
    for wrong in [&[][..], &[-1, 4], &[0, 4, 3]] {
        assert_eq!(CuSeqlens::host_i32(wrong).err().expect("refused").subject(), Some("cu_seqlens"));
        let wide: Vec<i64> = wrong.iter().map(|&n| n.into()).collect();
        assert_eq!(CuSeqlens::host_i64(&wide).err().expect("refused").subject(), Some("cu_seqlens"));
    }
}
