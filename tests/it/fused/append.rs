//! k and v to a paged cache: the whole cache is compared, with what no token is stored in.

use ropejit::rope::{Append, Fp8, Norm, RotaryPart, Rsqrt, ScaleUse, SlotForm};
use ropejit::{DType, PairStyle, PositionForm, RopeSpec, Rounding, Tuning};

use super::data::{Form, Slotting};
use super::norm::check;
use super::{Case, Data, assert_right};
use crate::cases::Order;

const FORMS: [Form; 4] = [Form::Nhd, Form::Hnd, Form::Two, Form::Odd];
const SLOTTINGS: [Slotting; 3] = [Slotting::Scattered, Slotting::Holes, Slotting::Outside];
const SIZES: [usize; 4] = [16, 4, 1, 5];

/// What can be stored as fp8, with each use of a scale: nothing, the cache, q, both.
fn fp8s() -> Vec<[Option<Fp8>; 2]> {
    let mut all = vec![[None, None]];
    for scale in [ScaleUse::Divide, ScaleUse::Multiply] {
        for per_head in [false, true] {
            let fp8 = Some(Fp8 { scale, per_head });
            all.extend([[fp8, None], [None, fp8], [fp8, fp8]]);
        }
    }
    all
}

/// The cache of a case; one that is full to the last slot where the blocks are of one slot.
fn with_cache(mut case: Case, block_size: usize, form: Form, slotting: Slotting) -> Case {
    let tokens = case.batch * case.tokens;
    case.cache.blocks = match case.spec.append.expect("appends").slots {
        SlotForm::SlotMapping => tokens.div_ceil(block_size),
        SlotForm::Pages => case.batch * (case.tokens + 2).div_ceil(block_size) + 1,
    };
    (case.cache.block_size, case.cache.form, case.cache.slotting) = (block_size, form, slotting);
    case
}

/// Every way to store with every dtype, form of the cache and of slots, with and without a norm.
pub fn grid(rsqrt: Rsqrt) -> Vec<Case> {
    let mut cases = Vec::new();
    for (n, [cache, q]) in fp8s().into_iter().cycle().take(39).enumerate() {
        let dtype = if cache.is_none() && q.is_none() { DType::ALL[n / 13] } else { [DType::BF16, DType::F16][n % 2] };
        let head_dim = [128, 64, 80, 256, 34][n % 5];
        let mut spec = RopeSpec::new(dtype, head_dim, [4, 3][n % 2], [2, 1][n / 2 % 2]);
        if n % 2 == 1 {
            let flavour = super::norm::FLAVOURS[n / 2 % 4];
            spec = spec.with_norm(Norm { rsqrt, after_rope: n % 7 == 0, ..Norm::new(flavour) });
        }
        spec = spec.with_rounding([Rounding::PerOp, Rounding::Once][n / 3 % 2]);
        spec.style = [PairStyle::HalfSplit, PairStyle::Interleaved, PairStyle::Deinterleave][n / 2 % 3];
        spec.positions = [PositionForm::Ids64, PositionForm::Implicit, PositionForm::CuSeqlens][n % 3];
        let form = FORMS[(n + n / 4) % 4];
        let slots = [SlotForm::SlotMapping, SlotForm::Pages][n / 5 % 2];
        // Heads of v are as wide as those of k, or not, or there are none.
        let v_head_dim = if form == Form::Two || n % 4 < 2 { head_dim } else { [0, 24][n / 4 % 2] };
        spec = spec.with_append(Append { slots, v_head_dim, cache, q });
        let packed = spec.positions.is_packed();
        let mut case = Case::new(spec, if packed { 1 } else { 2 }, [7, 1, 12][n / 3 % 3]);
        if packed {
            // Tokens in front of the first sequence and behind the last are stored as they are.
            let tokens = case.tokens as i64;
            case.cu_seqlens = vec![1, 1, (tokens - 1).max(1)];
        } else if case.spec.positions == PositionForm::Ids64 {
            case.outside = vec![0];
        }
        case.order = [Order::Bshd, Order::Bhsd, Order::Odd][n / 2 % 3];
        if v_head_dim == head_dim && n % 3 == 0 {
            case.order = Order::Packed;
        }
        case.in_place = n % 3 < 2;
        cases.push(with_cache(case, SIZES[n / 2 % 4], form, SLOTTINGS[n / 3 % 3]));
    }
    cases
}

/// MLA: one latent row `[ckv | k_pe]` a token, q `[nope | rope]`; of 512 + 64 elements, as models have it, and smaller.
pub fn latent() -> Vec<Case> {
    let mut cases = Vec::new();
    for (n, [cache, q]) in fp8s().into_iter().enumerate() {
        let (nope, rope, latent) = [(128, 64, 512), (16, 8, 24)][n % 2];
        let dtype = [DType::BF16, DType::F16][n / 2 % 2];
        let mut spec = RopeSpec::new(dtype, nope + rope, 3, 1).with_rounding(Rounding::PerOp);
        (spec.rotary_dim, spec.part, spec.k_head_dim) = (rope, RotaryPart::Last, Some(rope));
        spec.style = [PairStyle::Deinterleave, PairStyle::Interleaved, PairStyle::HalfSplit][n % 3];
        let slots = [SlotForm::SlotMapping, SlotForm::Pages][n / 2 % 2];
        spec = spec.with_append(Append { slots, v_head_dim: latent, cache, q });
        spec.positions = [PositionForm::Implicit, PositionForm::Ids32][n / 3 % 2];
        let mut case = Case::new(spec, 2, 5);
        case.order = [Order::Bshd, Order::Odd, Order::Slice][n % 3];
        case.in_place = n % 2 == 0;
        cases.push(with_cache(case, SIZES[n % 4], [Form::Row, Form::Nhd][n / 4 % 2], SLOTTINGS[n % 3]));
    }
    cases
}

#[test]
fn the_grid_is_bit_exact() {
    check(&crate::host::engine(Tuning::Never), &grid(Rsqrt::Ieee), 400);
}

#[test]
fn latent_rows_are_bit_exact() {
    check(&crate::host::engine(Tuning::Never), &latent(), 500);
}

/// Every value of a 16-bit type as fp8, by scales that are no power of two, tiny, huge, and no numbers at all: the bits of a
/// division and of a multiplication.
#[test]
fn every_value_is_stored_as_it_is_divided() {
    let engine = crate::host::engine(Tuning::Never);
    for dtype in [DType::BF16, DType::F16] {
        for scale in [ScaleUse::Divide, ScaleUse::Multiply] {
            let append = Append { cache: Some(Fp8 { scale, per_head: true }), ..Append::new(128) };
            let spec = RopeSpec::new(dtype, 128, 1, 16).with_append(append);
            let mut case = Case::new(spec, 1, 32);
            case.cache.form = Form::Hnd;
            let mut data = Data::new(&case, 1);
            // v holds all 65536 values, in a row of each of 32 tokens and 16 heads.
            let v = data.input[2].expect("there is v");
            for (n, two) in data.bases[v.base].bytes.chunks_exact_mut(2).enumerate() {
                two.copy_from_slice(&(n as u16).to_ne_bytes());
            }
            let least = f32::from_bits(1);
            let scales = [
                [
                    1.0,
                    0.3,
                    3.0e-5,
                    448.0,
                    1e-19,
                    1e19,
                    9e-19,
                    1.1e18,
                    0.0,
                    -0.7,
                    least,
                    1e38,
                    -0.0,
                    1.0 / 3.0,
                    0.1,
                    7e-3,
                ],
                [
                    f32::INFINITY,
                    f32::NAN,
                    -f32::INFINITY,
                    0.99,
                    1.01,
                    2.5,
                    1e-3,
                    6.1e-5,
                    1e-38,
                    3e-39,
                    -1e30,
                    1e5,
                    4e2,
                    7.0,
                    1e-8,
                    1e-10,
                ],
            ];
            for (turn, scales) in scales.iter().enumerate() {
                // The values move on by a head, so that each meets several scales.
                let base = data.scale[2].expect("a scale of v");
                for shift in [0, 5, 11] {
                    data.set_all(base, |head| scales[(head + shift) % 16]);
                    case.cache.blocks = 8 + turn;
                    let mut fresh = Data::new(&case, 2);
                    for (to, from) in [(v.base, v.base), (base, base)] {
                        fresh.bases[to].bytes.clone_from(&data.bases[from].bytes);
                    }
                    assert_right(&engine, &case, &fresh);
                }
            }
        }
    }
}

/// Scales of k and q that are no scales.
#[test]
fn scales_that_are_no_scales_do_as_the_formula_says() {
    let engine = crate::host::engine(Tuning::Never);
    for scale in [ScaleUse::Divide, ScaleUse::Multiply] {
        let fp8 = Some(Fp8::new(scale));
        let spec = RopeSpec::new(DType::F16, 64, 2, 1).with_append(Append { cache: fp8, q: fp8, ..Append::new(64) });
        let case = Case::new(spec, 1, 4);
        for value in [0.0, -0.0, f32::INFINITY, f32::NAN, f32::MIN_POSITIVE, f32::MAX, -1.0] {
            let mut data = Data::new(&case, 3);
            for base in data.scale.map(|base| base.expect("three scales")) {
                data.set_all(base, |_| value);
            }
            let q = data.input[0].expect("there is q");
            data.set(q, [0, 1, 0], 3, 0.0);
            data.set(q, [0, 1, 0], 35, -0.0);
            assert_right(&engine, &case, &data);
        }
    }
}

/// A cache that is smaller than what its page tables say, and one without blocks: nothing is stored there, and that is reported.
pub fn too_small() -> Vec<(Case, Data)> {
    let mut all = Vec::new();
    for slots in [SlotForm::SlotMapping, SlotForm::Pages] {
        let spec = RopeSpec::new(DType::BF16, 64, 2, 1).with_append(Append { slots, ..Append::new(64) });
        for (blocks, block_size) in [(1, 3), (0, 4), (3, 0), (0, 0), (1, 1)] {
            let mut case = Case::new(spec.clone(), 1, 7);
            (case.cache.blocks, case.cache.block_size) = (8, 4);
            let mut data = Data::new(&case, 9);
            // The tables of a larger cache.
            (case.cache.blocks, case.cache.block_size) = (blocks, block_size);
            for cache in data.cache.iter_mut().flatten() {
                (cache.layout.shape[0], cache.layout.shape[1]) = (blocks, block_size);
            }
            all.push((case, data));
        }
    }
    all
}

#[test]
fn a_cache_that_is_too_small_is_reported() {
    let engine = crate::host::engine(Tuning::Never);
    for (case, data) in too_small() {
        assert_right(&engine, &case, &data);
    }
}
