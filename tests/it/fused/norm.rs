//! A norm before or after the rotation, forward.

use ropejit::rope::scaling::{Mrope, RopeParameters, TableMode};
use ropejit::rope::{Flavour, Norm, RotaryPart, Rsqrt, SumOrder};
use ropejit::{DType, Direction, Engine, Origin, PairStyle, PositionForm, RopeSpec, Rounding, TableWidth, Tuning};

use super::{Case, Data, assert_right};
use crate::cases::Order;

pub const FLAVOURS: [Flavour; 4] =
    [Flavour::WeightAfter, Flavour::OnePlusWeight, Flavour::WeightF32, Flavour::NoWeight];
const STYLES: [PairStyle; 3] = [PairStyle::HalfSplit, PairStyle::Interleaved, PairStyle::Deinterleave];
const ORDERS: [SumOrder; 2] = [SumOrder::Torch, SumOrder::Tree];
const ROUNDINGS: [Rounding; 3] = [Rounding::PerOp, Rounding::Once, Rounding::Contracted];

/// Flavour, dtype and rounding each with each other, and every `head_dim` with every flavour, dtype, order and style.
pub fn grid(direction: Direction, rsqrt: Rsqrt) -> Vec<Case> {
    let dims = [128, 64, 256, 80, 96, 34, 192, 2, 512];
    let mut cases = Vec::new();
    for n in 0..36 {
        let (flavour, dtype) = (FLAVOURS[n % 4], DType::ALL[n / 4 % 3]);
        let head_dim = dims[(n + n / 12) % 9];
        let norm = Norm { flavour, order: ORDERS[(n + n / 9) % 2], rsqrt, after_rope: n % 5 == 4 };
        let mut spec = RopeSpec::new(dtype, head_dim, [3, 4, 1][n % 3], [1, 2, 0, 1][n / 2 % 4]).with_norm(norm);
        spec = spec.with_rounding(ROUNDINGS[n / 12]);
        spec = spec.with_table([DType::F32, dtype][n / 3 % 2], [TableWidth::Half, TableWidth::Full][n / 5 % 2]);
        (spec.style, spec.direction) = (STYLES[n / 3 % 3], direction);
        spec.positions = [PositionForm::Implicit, PositionForm::Ids32, PositionForm::Ids64][n % 3];
        let mut case = Case::new(spec, 1 + n % 2, [7, 1, 19][n / 2 % 3]);
        case.order = [Order::Bshd, Order::Bhsd, Order::Packed, Order::Odd][n / 2 % 4];
        case.in_place = n % 3 == 1;
        // A GPU's own root is known by what it saves.
        case.saves = n % 4 < 3 || rsqrt == Rsqrt::Approx;
        case.eps = [1e-6, 1e-5, 0.0][n % 3];
        cases.push(case);
    }
    cases
}

/// Parts of a head that turn, every form of positions, three axes, angles of the engine, tokens of no sequence and outside.
pub fn forms(direction: Direction, rsqrt: Rsqrt) -> Vec<Case> {
    use PositionForm::{CuSeqlens, CuSeqlens64, Ids32, Ids64, Implicit, Offsets32, Offsets64};
    let mut cases = Vec::new();
    let forms = [CuSeqlens, Offsets64, Ids32, CuSeqlens64, Offsets32, Ids64, Implicit];
    let parts = [(96, 24), (128, 64), (192, 64), (80, 20), (8, 2), (256, 64), (34, 32)];
    for n in 0..21 {
        let (head_dim, rotary_dim) = parts[n % 7];
        let dtype = DType::ALL[n % 3];
        let norm = Norm { flavour: FLAVOURS[n % 4], order: ORDERS[n / 2 % 2], rsqrt, after_rope: n % 3 == 2 };
        let mut spec = RopeSpec::new(dtype, head_dim, 3, [2, 0, 1][n / 3 % 3]).with_norm(norm);
        spec.rotary_dim = rotary_dim;
        spec.part = [RotaryPart::First, RotaryPart::Last][n / 2 % 2];
        (spec.style, spec.direction) = (STYLES[(n + n / 7) % 3], direction);
        spec = spec.with_rounding(ROUNDINGS[n / 3 % 3]);
        spec.positions = forms[(n + n / 7) % 7];
        let packed = spec.positions.is_packed();
        let mut case = Case::new(spec, if packed { 1 } else { 2 }, 9);
        if packed {
            // In front of the first sequence, an empty one, and behind the last.
            case.cu_seqlens = vec![1, 4, 4, 7];
            case.packed_offsets = [None, Some(false), Some(true)][n % 3];
        }
        case.order = [Order::Bhsd, Order::Bshd, Order::Odd, Order::Slice][n % 4];
        case.in_place = n % 2 == 0;
        if matches!(case.spec.positions, Ids32 | Ids64) {
            case.outside = vec![2, 5];
        }
        cases.push(case);
    }
    for (n, (sections, interleaved)) in [([16, 24, 24], false), ([11, 11, 10], true)].into_iter().enumerate() {
        let norm = Norm { flavour: FLAVOURS[n], order: ORDERS[n], rsqrt, after_rope: n == 1 };
        let head_dim = 2 * sections.iter().sum::<u32>();
        let mut spec = RopeSpec::new(DType::BF16, head_dim, 4, 2).with_norm(norm).with_rounding(ROUNDINGS[n]);
        spec = spec.with_positions([Ids64, Ids32][n]);
        (spec.mrope, spec.direction) = (Some(Mrope { sections, interleaved }), direction);
        cases.push(Case { order: Order::Bhsd, outside: vec![3], ..Case::new(spec, 2, 5) });
    }
    for (n, mode) in [TableMode::F32, TableMode::Accurate].into_iter().enumerate() {
        let norm = Norm { flavour: FLAVOURS[n], order: ORDERS[n], rsqrt, after_rope: false };
        let mut spec = RopeSpec::new(DType::ALL[n], 64, 2, 1).with_norm(norm).with_angles(mode);
        spec.direction = direction;
        cases.push(Case { angles: Some((RopeParameters::new(5e5, 64), 40)), ..Case::new(spec, 2, 5) });
    }
    cases
}

#[test]
fn the_grid_is_bit_exact() {
    check(&crate::host::engine(Tuning::Never), &grid(Direction::Forward, Rsqrt::Ieee), 0);
}

#[test]
fn every_form_is_bit_exact() {
    check(&crate::host::engine(Tuning::Never), &forms(Direction::Forward, Rsqrt::Ieee), 100);
}

pub fn check(engine: &Engine, cases: &[Case], seed: u64) {
    serve(engine, cases, seed, false);
}

/// As `check`; whether it is the plain reference that serves is known.
pub fn serve(engine: &Engine, cases: &[Case], seed: u64, reference: bool) {
    for (n, case) in cases.iter().enumerate() {
        let origin = assert_right(engine, case, &Data::new(case, seed + n as u64));
        assert_eq!(origin == Origin::Reference, reference, "{}", case.spec);
    }
}

/// Pairs that move, and a part of the head that is not the first: without a norm, in both directions.
pub fn moved() -> Vec<Case> {
    let mut cases = Vec::new();
    for n in 0..12 {
        let (head_dim, rotary_dim) = [(64, 64), (96, 24), (192, 64), (6, 2)][n % 4];
        let mut spec = RopeSpec::new(DType::ALL[n % 3], head_dim, 3, [2, 0, 3][n / 4]);
        spec.rotary_dim = rotary_dim;
        spec.style = if rotary_dim == head_dim { PairStyle::Deinterleave } else { STYLES[n % 3] };
        spec.part = if rotary_dim == head_dim { RotaryPart::First } else { RotaryPart::Last };
        spec.direction = [Direction::Forward, Direction::Backward][n / 2 % 2];
        spec = spec.with_rounding(ROUNDINGS[n % 2]);
        spec.positions = [PositionForm::CuSeqlens, PositionForm::Ids32, PositionForm::Implicit][n / 3 % 3];
        let mut case = Case::new(spec, 1, 8);
        case.cu_seqlens = vec![1, 4, 6];
        case.order = [Order::Bshd, Order::Bhsd, Order::Packed, Order::Odd][n / 2 % 4];
        case.in_place = n % 2 == 1;
        cases.push(case);
    }
    cases
}

/// k of another size than q, of which all turns: q is `[nope | rope]`, k is `k_pe`.
pub fn narrow() -> Vec<Case> {
    let mut cases = Vec::new();
    for (n, style) in STYLES.into_iter().enumerate() {
        for direction in [Direction::Forward, Direction::Backward] {
            let mut spec = RopeSpec::new(DType::ALL[2 - n], 192, 4, 1).with_rounding(ROUNDINGS[n % 2]);
            (spec.rotary_dim, spec.k_head_dim, spec.part) = (64, Some(64), RotaryPart::Last);
            (spec.style, spec.direction) = (style, direction);
            cases.push(Case { in_place: n == 1, ..Case::new(spec, 2, 5) });
        }
    }
    cases
}

#[test]
fn what_moves_without_a_norm_is_bit_exact() {
    check(&crate::host::engine(Tuning::Never), &moved(), 700);
}

#[test]
fn a_narrow_k_is_bit_exact() {
    check(&crate::host::engine(Tuning::Never), &narrow(), 800);
}
