//! Calls as they are checked, turned into launches and run by the reference kernel, against the plain reference. What is
//! unsafe on that way is small enough for Miri (`make miri`).

use super::*;
use crate::families::rope::args::{CuSeqlens, Offsets, PositionIds, Tensor};
use crate::families::rope::problem::problem;
use crate::families::rope::variant;
use crate::rope::{DType, Layout, PairStyle, TableWidth, reference};
use crate::service::device::Device as _;
use crate::service::device::host::Host;
use crate::service::family::{Bucket, Origin, Provenance, Stated};

const BATCH: usize = 2;
const TOKENS: usize = 3;
const ROWS: usize = 8;
const DIM: usize = 8;

fn plan(spec: &RopeSpec, class: Class) -> Plan {
    let host = Host::open();
    let problem = problem(spec, class, Bucket::of(1));
    let kernel = problem.fallback(&host);
    let variant = variant::space(spec, class, Bucket::of(1), host.abilities())[0];
    Plan::new(problem.as_ref(), kernel, Stated::of(&variant), Origin::Reference, Provenance::Reference).expect("runs")
}

/// Numbers that are not alike.
fn values(n: usize, seed: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 37 + seed * 11) % 101) as f32 / 16.0 - 3.0).collect()
}

/// What a launch should leave: `position(batch, token)` is the row of the tables, or outside of them.
fn expected(
    spec: &RopeSpec,
    layout: &Layout,
    q: &[f32],
    cos: &[f32],
    sin: &[f32],
    position: impl Fn(usize, usize) -> i64,
) -> Vec<f32> {
    let mut out = q.to_vec();
    let width = spec.table_width() as usize;
    let [batches, tokens, heads, _] = layout.shape;
    for (b, t, h) in (0..batches).flat_map(|b| (0..tokens).flat_map(move |t| (0..heads).map(move |h| (b, t, h)))) {
        let at = |i: usize| {
            let [sb, st, sh, _] = layout.strides;
            (b as i64 * sb + t as i64 * st + h as i64 * sh) as usize + i
        };
        let row = usize::try_from(position(b, t)).ok().filter(|&row| row < ROWS);
        for pair in 0..spec.rotary_dim as usize / 2 {
            let (first, second) = reference::pair(spec, spec.head_dim, pair).input;
            let turned = row.map_or((f32::NAN, f32::NAN), |row| {
                let angle = (cos[row * width + pair], sin[row * width + pair]);
                reference::rotate(spec, (q[at(first)], q[at(second)]), angle)
            });
            (out[at(first)], out[at(second)]) = turned;
        }
    }
    out
}

fn assert_same(got: &[f32], want: &[f32]) {
    let bits = |all: &[f32]| all.iter().map(|x| if x.is_nan() { 0 } else { x.to_bits() }).collect::<Vec<_>>();
    assert_eq!(bits(got), bits(want));
}

/// Runs a call in place and out of place, and compares.
fn check(
    spec: &RopeSpec,
    layout: Layout,
    positions: &dyn Fn() -> Positions<'static>,
    position: &dyn Fn(usize, usize) -> i64,
) {
    let width = spec.table_width() as usize;
    let (cos, sin) = (values(ROWS * width, 1), values(ROWS * width, 2));
    let k_layout = layout.with_heads(spec.num_kv_heads as usize);
    let fault = Host::open().fault_word().expect("made");
    let (q, k) = (values(layout.len(), 3), values(layout.len(), 4));
    let want = [&q, &k].map(|x| expected(spec, &layout, x, &cos, &sin, position));
    for in_place in [true, false] {
        let (mut q_out, mut k_out) =
            if in_place { (q.clone(), k.clone()) } else { (vec![0.0; q.len()], vec![0.0; k.len()]) };
        let tensor = |x, layout| Tensor::host(x, layout).expect("fits");
        let operand = |input, output, layout| {
            if in_place {
                return Operand::in_place(tensor(output, layout));
            }
            Operand::out_of_place(Tensor::host_input(input, layout).expect("fits"), tensor(output, layout))
        };
        let args = Args {
            q: operand(&q, &mut q_out, layout),
            k: (spec.num_kv_heads > 0).then(|| operand(&k, &mut k_out, k_layout)),
            tables: Tables::host(&cos, &sin, 1, width).expect("rows"),
            positions: positions(),
            norm: None,
            append: None,
        };
        let call = Call::new(spec, &args, Location::Host, fault.address()).expect("fits").expect("there are tokens");
        launch(&plan(spec, call.class), Stream::DEFAULT, &call).expect("launched");
        drop(args);
        assert_same(&q_out, &want[0]);
        if spec.num_kv_heads > 0 {
            let heads = |x: &[f32]| {
                x.chunks(layout.strides[2].unsigned_abs() as usize).map(<[f32]>::to_vec).collect::<Vec<_>>()
            };
            let (got, want, plain) =
                (heads(&k_out), heads(&want[1]), heads(&if in_place { k.clone() } else { vec![0.0; k.len()] }));
            for i in 0..got.len() {
                let turned = i % (spec.num_heads as usize) < spec.num_kv_heads as usize;
                assert_same(&got[i], if turned { &want[i] } else { &plain[i] });
            }
        }
        let outside = (0..BATCH).any(|b| (0..TOKENS).any(|t| !(0..ROWS as i64).contains(&position(b, t))));
        assert_eq!(fault.take() != 0, outside);
    }
}

#[test]
fn every_form_of_positions() {
    // 8 is outside of the tables.
    static NARROW: [i32; BATCH * TOKENS] = [0, 6, 8, 5, 2, 7];
    static WIDE: [i64; BATCH * TOKENS] = [0, 6, 8, 5, 2, 7];
    let layout = Layout::bshd(BATCH, TOKENS, 2, DIM);
    let spec = RopeSpec::new(DType::F32, DIM as u32, 2, 1);
    check(&spec, layout, &|| Positions::Offset(2), &|_, t| 2 + t as i64);
    let token = |b: usize, t: usize| WIDE[b * TOKENS + t];
    let ids32 = || Positions::Ids(PositionIds::host_i32(&NARROW, 1, BATCH, TOKENS).expect("as many"));
    let ids64 = || Positions::Ids(PositionIds::host_i64(&WIDE, 1, BATCH, TOKENS).expect("as many"));
    check(&spec.clone().with_positions(PositionForm::Ids32), layout, &ids32, &token);
    check(&spec.clone().with_positions(PositionForm::Ids64), layout, &ids64, &token);
    let begins = |b: usize, t: usize| WIDE[b] + t as i64;
    check(
        &spec.clone().with_positions(PositionForm::Offsets32),
        layout,
        &|| Positions::Offsets(Offsets::host_i32(&NARROW[..BATCH])),
        &begins,
    );
    check(
        &spec.with_positions(PositionForm::Offsets64),
        layout,
        &|| Positions::Offsets(Offsets::host_i64(&WIDE[..BATCH])),
        &begins,
    );
}

#[test]
fn packed_sequences() {
    static BEGINS: [i32; 4] = [0, 1, 1, 3];
    static OFFSETS: [i32; 3] = [4, 0, 2];
    let spec = RopeSpec::new(DType::F32, DIM as u32, 2, 0).with_positions(PositionForm::CuSeqlens);
    let layout = Layout::thd(TOKENS, 2, DIM);
    let packed = || Positions::Packed { cu_seqlens: CuSeqlens::host_i32(&BEGINS).expect("ascend"), offsets: None };
    check(&spec, layout, &packed, &|_, t| [0, 0, 1][t]);
    let packed = || Positions::Packed {
        cu_seqlens: CuSeqlens::host_i32(&BEGINS).expect("ascend"),
        offsets: Some(Offsets::host_i32(&OFFSETS)),
    };
    check(&spec, layout, &packed, &|_, t| [4, 2, 3][t]);
}

#[test]
fn layouts_styles_and_widths() {
    let dim = DIM as u32;
    let positions: &dyn Fn() -> Positions<'static> = &|| Positions::Offset(1);
    let position: &dyn Fn(usize, usize) -> i64 = &|_, t| 1 + t as i64;
    let mut spec = RopeSpec::new(DType::F32, dim, 2, 0).with_table(DType::F32, TableWidth::Full);
    check(&spec, Layout::bhsd(BATCH, 2, TOKENS, DIM), positions, position);
    (spec.style, spec.rotary_dim) = (PairStyle::Interleaved, 4);
    check(&spec, Layout::bshd(BATCH, TOKENS, 2, DIM), positions, position);
    spec.direction = crate::rope::Direction::Backward;
    check(&spec, Layout::bhsd(BATCH, 2, TOKENS, DIM), positions, position);
    // Heads far apart: what lies between is not touched.
    let odd = Layout::bshd(BATCH, TOKENS, 2, DIM).with_strides([200, 48, 16, 1]);
    let len = odd.extent().expect("small").1 as usize;
    let width = spec.table_width() as usize;
    let (cos, sin) = (values(ROWS * width, 1), values(ROWS * width, 2));
    let mut q = values(len, 3);
    let want = expected(&spec, &odd, &q, &cos, &sin, position);
    let args = Args {
        q: Operand::in_place(Tensor::host(&mut q, odd).expect("fits")),
        k: None,
        tables: Tables::host(&cos, &sin, 1, width).expect("rows"),
        positions: positions(),
        norm: None,
        append: None,
    };
    let call = Call::new(&spec, &args, Location::Host, 0).expect("fits").expect("there are tokens");
    launch(&plan(&spec, call.class), Stream::DEFAULT, &call).expect("launched");
    drop(args);
    assert_same(&q, &want);
}

#[test]
fn half_types_and_work_that_ends() {
    let spec = RopeSpec::new(DType::BF16, DIM as u32, 1, 0);
    let layout = Layout::bshd(1, TOKENS, 1, DIM);
    let mut q: Vec<half::bf16> = values(layout.len(), 5).into_iter().map(half::bf16::from_f32).collect();
    let (cos, sin) = (vec![0.0; ROWS * DIM / 2], vec![1.0; ROWS * DIM / 2]);
    let before = q.clone();
    let args = Args {
        q: Operand::in_place(Tensor::host(&mut q, layout).expect("fits")),
        k: None,
        tables: Tables::host(&cos, &sin, 1, DIM / 2).expect("rows"),
        positions: Positions::Offset(0),
        norm: None,
        append: None,
    };
    let call = Call::new(&spec, &args, Location::Host, 0).expect("fits").expect("there are tokens");
    launch(&plan(&spec, call.class), Stream::DEFAULT, &call).expect("launched");
    drop(args);
    for (got, q) in q.chunks(DIM).zip(before.chunks(DIM)) {
        let turned = (0..DIM).map(|i| if i < DIM / 2 { -q[i + DIM / 2] } else { q[i - DIM / 2] });
        assert!(got.iter().copied().eq(turned));
    }
    let none = Layout::bshd(1, 0, 1, DIM);
    let args = Args {
        q: Operand::in_place(Tensor::host::<half::bf16>(&mut [], none).expect("fits")),
        k: None,
        tables: Tables::host(&cos, &sin, 1, DIM / 2).expect("rows"),
        positions: Positions::Offset(0),
        norm: None,
        append: None,
    };
    assert!(Call::new(&spec, &args, Location::Host, 0).expect("fits").is_none());
}
