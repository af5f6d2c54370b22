//! The rotation forward: every layout, partial, positions, tables.

use candle_core::{D, DType, Tensor};
use ropejit::rope::PairStyle;
use ropejit::{RopeSpec, Rounding};
use ropejit_candle::{Rope, rope, rope_i, rope_thd};

use crate::data::{assert_bits, floats, numbers, on_cpu, tables, turned};

const TYPES: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

pub fn spec(dtype: DType, head_dim: usize, style: PairStyle) -> RopeSpec {
    let dtype = match dtype {
        DType::F32 => ropejit::DType::F32,
        DType::F16 => ropejit::DType::F16,
        _ => ropejit::DType::BF16,
    };
    let mut spec = RopeSpec::new(dtype, head_dim as u32, 1, 1).with_rounding(Rounding::PerOp);
    if dtype == ropejit::DType::F32 {
        spec.rounding = Rounding::Once;
    }
    spec.style = style;
    spec
}

#[test]
fn equals_candles_own_and_the_reference_in_every_layout_and_type() {
    for dtype in TYPES {
        let tables = tables(&[9, 16], dtype);
        let (cos, sin) = &tables;
        let q = numbers(1, &[2, 4, 7, 32], dtype);
        let k = numbers(2, &[2, 2, 7, 32], dtype);
        let half = spec(dtype, 32, PairStyle::HalfSplit);
        let (q_out, k_out) = rope(&q, &k, cos, sin).expect("rope");
        assert_bits(&q_out, &floats(&candle_nn::rotary_emb::rope(&q, cos, sin).expect("candle's")), "candle's rope");
        assert_bits(&q_out, &turned(&half, &q, false, &tables, |_, t| t), "q");
        assert_bits(&k_out, &turned(&half, &k, false, &tables, |_, t| t), "k");
        assert!(q_out.is_contiguous() && q_out.dtype() == dtype);

        let pairs = spec(dtype, 32, PairStyle::Interleaved);
        let (q_out, k_out) = rope_i(&q, &k, cos, sin).expect("rope_i");
        assert_bits(
            &q_out,
            &floats(&candle_nn::rotary_emb::rope_i(&q, cos, sin).expect("candle's")),
            "candle's rope_i",
        );
        assert_bits(&q_out, &turned(&pairs, &q, false, &tables, |_, t| t), "q of pairs");
        assert_bits(&k_out, &turned(&pairs, &k, false, &tables, |_, t| t), "k of pairs");

        let (q, k) = (numbers(3, &[2, 7, 4, 32], dtype), numbers(4, &[2, 7, 2, 32], dtype));
        let (q_out, k_out) = rope_thd(&q, &k, cos, sin).expect("rope_thd");
        let own = candle_nn::rotary_emb::rope_thd(&q, cos, sin).expect("candle's");
        assert_bits(&q_out, &floats(&own), "candle's rope_thd");
        assert_bits(&k_out, &turned(&half, &k, true, &tables, |_, t| t), "k of thd");
    }
}

#[test]
fn rounding_once_is_the_references() {
    for dtype in [DType::F16, DType::BF16] {
        let (tables, q) = (tables(&[7, 16], DType::F32), numbers(5, &[1, 3, 7, 32], dtype));
        let once = spec(dtype, 32, PairStyle::HalfSplit).with_rounding(Rounding::Once);
        let got = Rope::new().rounding(Rounding::Once).apply_one(&q, &tables.0, &tables.1).expect("rope");
        assert_bits(&got, &turned(&once, &q, false, &tables, |_, t| t), "once");
        let per_op = Rope::new().apply_one(&q, &tables.0, &tables.1).expect("rope");
        assert_ne!(floats(&got), floats(&per_op), "the two roundings differ somewhere");
    }
}

#[test]
fn views_are_turned_where_they_lie() {
    let device = on_cpu();
    let tables = tables(&[5, 16], DType::BF16);
    let half = spec(DType::BF16, 32, PairStyle::HalfSplit);
    // What a linear layer gives: [batch, tokens, (q, k and v's heads) · head_dim].
    let qkv = numbers(6, &[2, 5, 8 * 32], DType::BF16).reshape((2, 5, 8, 32)).expect("heads");
    let view = |first, heads| qkv.narrow(2, first, heads).and_then(|x| x.transpose(1, 2)).expect("a view");
    let (q, k) = (view(0, 4), view(4, 2));
    assert!(!q.is_contiguous() && !k.is_contiguous());
    let (q_out, k_out) = rope(&q, &k, &tables.0, &tables.1).expect("rope");
    assert_bits(&q_out, &turned(&half, &q, false, &tables, |_, t| t), "q of packed qkv");
    assert_bits(&k_out, &turned(&half, &k, false, &tables, |_, t| t), "k of packed qkv");
    assert!(q_out.is_contiguous() && k_out.is_contiguous());
    // A part of tables that are longer and wider, and one head for all.
    let (long, wide) = (crate::data::tables(&[9, 24], DType::BF16), numbers(7, &[1, 1, 5, 32], DType::BF16));
    let part = |t: &Tensor| t.narrow(0, 3, 6).and_then(|t| t.narrow(D::Minus1, 4, 16)).expect("a view");
    let repeated = wide.broadcast_as((2, 3, 5, 32)).expect("a view");
    let part = (part(&long.0), part(&long.1));
    let got = Rope::new().apply_one(&repeated, &part.0, &part.1).expect("rope");
    assert_bits(&got, &turned(&half, &repeated, false, &part, |_, t| t), "views of tables");
    // No token at all.
    let none = Tensor::zeros((2, 4, 0, 32), DType::BF16, &device).expect("empty");
    assert_eq!(Rope::new().apply_one(&none, &tables.0, &tables.1).expect("rope").dims(), [2, 4, 0, 32]);
}

#[test]
fn partial_rotary_leaves_the_rest() {
    for (style, rope) in [(PairStyle::HalfSplit, Rope::new()), (PairStyle::Interleaved, Rope::new().interleaved())] {
        for thd in [false, true] {
            let mut partial = spec(DType::F16, 40, style);
            partial.rotary_dim = 24;
            let (q, k) = (numbers(8, &[2, 3, 4, 40], DType::F16), numbers(9, &[2, 3, 4, 40], DType::F16));
            let tables = tables(&[4, 12], DType::F16);
            let rope = if thd { rope.clone().thd() } else { rope.clone() }.rotary_dim(24);
            let (q_out, k_out) = rope.apply(&q, &k, &tables.0, &tables.1).expect("rope");
            assert_bits(&q_out, &turned(&partial, &q, thd, &tables, |_, t| t), "q");
            assert_bits(&k_out, &turned(&partial, &k, thd, &tables, |_, t| t), "k");
        }
    }
}

#[test]
fn positions_of_every_kind() {
    let device = on_cpu();
    let half = spec(DType::F32, 16, PairStyle::HalfSplit);
    let (q, k) = (numbers(10, &[2, 4, 3, 16], DType::F32), numbers(11, &[2, 1, 3, 16], DType::F32));
    let tables = tables(&[8, 8], DType::F32);
    let check = |rope: &Rope, tables: &(Tensor, Tensor), row: &dyn Fn(usize, usize) -> usize| {
        let (q_out, k_out) = rope.apply(&q, &k, &tables.0, &tables.1).expect("rope");
        assert_bits(&q_out, &turned(&half, &q, false, tables, row), "q");
        assert_bits(&k_out, &turned(&half, &k, false, tables, row), "k");
    };
    check(&Rope::new().offset(5), &tables, &|_, t| 5 + t);
    let rows = [[7u32, 0, 3], [2, 2, 6]];
    let ids = Tensor::new(&rows, &device).expect("ids");
    for dtype in [DType::U32, DType::I64, DType::I32] {
        let ids = ids.to_dtype(dtype).expect("ids");
        check(&Rope::new().position_ids(&ids), &tables, &|b, t| rows[b][t] as usize);
        // A row for all sequences, as a matrix and as a vector; and every second number of a longer one.
        let one = ids.narrow(0, 1, 1).expect("a row");
        check(&Rope::new().position_ids(&one), &tables, &|_, t| rows[1][t] as usize);
        check(&Rope::new().position_ids(&one.squeeze(0).expect("a vector")), &tables, &|_, t| rows[1][t] as usize);
        let strided = Tensor::stack(&[&ids, &ids.zeros_like().expect("zeros")], 2).expect("pairs").narrow(2, 0, 1);
        let strided = strided.and_then(|ids| ids.squeeze(2)).expect("a view");
        assert!(!strided.is_contiguous());
        check(&Rope::new().position_ids(&strided), &tables, &|b, t| rows[b][t] as usize);
    }
    // Rows of each sequence's own, and the same values twice.
    let own = crate::data::tables(&[2, 4, 8], DType::F32);
    check(&Rope::new().offset(1), &own, &|_, t| 1 + t);
    let twice = |t: &Tensor| Tensor::cat(&[t, t], D::Minus1).expect("a table");
    let full = (twice(&tables.0), twice(&tables.1));
    check(&Rope::new(), &full, &|_, t| t);
}
