//! Numbers that are no numbers, rows of zeros, and calls without tokens: what the formulas say, and nothing else.

use ropejit::args::{
    AppendArgs, Args, NormArgs, NormGradient, Operand, Positions, SavedRsqrt, Slots, Tables, Tensor, Vector,
};
use ropejit::rope::{Append, Norm, Rsqrt, SumOrder};
use ropejit::{DType, Direction, Layout, Result, RopeSpec, Rounding, Stream, Tuning};

use super::norm::FLAVOURS;
use super::{Case, Data, assert_right};

/// Not a number, infinite, zero and too large elements in one head each, in rows of zeros, with weights of zero, and an eps of 0.
#[test]
fn numbers_that_are_none_do_as_the_formulas_say() {
    let engine = crate::host::engine(Tuning::Never);
    let wild = [f32::NAN, f32::INFINITY, -f32::INFINITY, 0.0, -0.0, 3e38, 6e4, 1e-40, 6e-8, 1e-22];
    for (n, flavour) in FLAVOURS.into_iter().cycle().take(16).enumerate() {
        let direction = [Direction::Forward, Direction::Backward][n / 4 % 2];
        let order = [SumOrder::Torch, SumOrder::Tree][n / 8];
        let norm = Norm { flavour, order, rsqrt: Rsqrt::Ieee, after_rope: n % 3 == 0 };
        let mut spec = RopeSpec::new(DType::ALL[n % 3], [64, 128, 6][(n + n / 4) % 3], 2, 1).with_norm(norm);
        spec = spec.with_rounding([Rounding::PerOp, Rounding::Once][(n + n / 4 + n / 8) % 2]);
        spec.direction = direction;
        for eps in [1e-6, 0.0, f32::INFINITY] {
            let case = Case { eps, ..Case::new(spec.clone(), 1, wild.len() + 3) };
            let mut data = Data::new(&case, n as u64);
            let read = [data.input[0], data.input[1], data.x[0], data.x[1]];
            for (which, view) in read.into_iter().enumerate() {
                let Some(view) = view else { continue };
                let heads = view.layout.shape[2];
                for (token, &value) in wild.iter().enumerate() {
                    // One such element; and a whole head of them.
                    data.set(view, [0, token, 0], (token + which) % 6, value);
                    (0..spec.head_dim as usize).for_each(|i| data.set(view, [0, token, heads - 1], i, value));
                }
                // Zeros of both signs.
                let zero = |i: usize| if i.is_multiple_of(2) { 0.0 } else { -0.0 };
                (0..spec.head_dim as usize).for_each(|i| data.set(view, [0, wild.len(), 0], i, zero(i)));
            }
            if let (Direction::Backward, Some(base)) = (direction, data.rsqrt[0]) {
                let roots = [f32::INFINITY, f32::NAN, 0.0, 1.0, 1e15, 1e-20];
                data.set_all(base, |row| roots[row % roots.len()]);
            }
            assert_right(&engine, &case, &data);
            if let Some(base) = data.weight[0] {
                for weight in [0.0, -0.0, f32::NAN, f32::INFINITY] {
                    data.set_all(base, |i| if i.is_multiple_of(2) { weight } else { 1.0 });
                    assert_right(&engine, &case, &data);
                }
            }
        }
    }
}

/// No tokens, in every form: nothing is read or written, and nothing is wrong.
#[test]
fn calls_without_tokens_do_nothing() {
    let engine = crate::host::engine(Tuning::Never);
    let call = |spec: &RopeSpec, batch: usize, tokens: usize| -> Result<()> {
        let (q_layout, k_layout) = (Layout::bshd(batch, tokens, 2, 8), Layout::bshd(batch, tokens, 1, 8));
        let (mut q, mut k, x) = ([0f32; 0], [0f32; 0], [0f32; 0]);
        let (weight, mut dq, mut dk) = ([1f32; 8], [9f32; 8], [9f32; 8]);
        let (mut q_root, mut k_root, mut space) = ([0f32; 0], [0f32; 0], [0f32; 0]);
        let (mut k_cache, mut v_cache) = ([5f32; 32], [5f32; 32]);
        let cache = Layout::bshd(2, 2, 1, 8);
        let table = [1f32; 16];
        let backward = spec.direction == Direction::Backward;
        let read = |layout| Tensor::host_input(&x, layout);
        let q = Operand::in_place(Tensor::host(&mut q, q_layout)?);
        let k = if spec.append.is_some() {
            Operand::read_only(read(k_layout)?)
        } else {
            Operand::in_place(Tensor::host(&mut k, k_layout)?)
        };
        let mut args = Args::new(q, Some(k), Tables::host(&table, &table, 1, 4)?, Positions::Offset(0));
        if spec.norm.is_some() {
            args.norm = Some(NormArgs {
                eps: 1e-6,
                q_weight: Some(Vector::host_input(&weight)),
                k_weight: Some(Vector::host_input(&weight)),
                rsqrt: Some(SavedRsqrt { q: Vector::host(&mut q_root), k: Some(Vector::host(&mut k_root)) }),
                gradient: if backward {
                    Some(NormGradient {
                        q: read(q_layout)?,
                        k: Some(read(k_layout)?),
                        q_weight: Some(Vector::host(&mut dq)),
                        k_weight: Some(Vector::host(&mut dk)),
                        workspace: Some(Vector::host(&mut space)),
                    })
                } else {
                    None
                },
            });
        }
        if spec.append.is_some() {
            let slots: &[i64] = &[];
            args.append = Some(AppendArgs {
                v: Some(read(k_layout)?),
                k_cache: Tensor::host(&mut k_cache, cache)?,
                v_cache: Some(Tensor::host(&mut v_cache, cache)?),
                slots: Slots::Mapping(Vector::host_input(slots)),
                q_scale: None,
                k_scale: None,
                v_scale: None,
            });
        }
        let rope = engine.rope(spec)?;
        rope.apply(Stream::DEFAULT, &args)?;
        rope.check()?;
        drop(args);
        assert_eq!((k_cache, v_cache), ([5f32; 32], [5f32; 32]));
        Ok(())
    };
    let plain = RopeSpec::new(DType::F32, 8, 2, 1);
    let normed = plain.clone().with_norm(Norm::new(FLAVOURS[0]).with_rsqrt(Rsqrt::Ieee));
    let mut backward = normed.clone();
    backward.direction = Direction::Backward;
    for spec in [normed.clone(), backward, plain.with_append(Append::new(8)), normed.with_append(Append::new(8))] {
        for (batch, tokens) in [(0, 0), (0, 3), (2, 0)] {
            call(&spec, batch, tokens).unwrap_or_else(|e| panic!("{spec}: {e}"));
        }
    }
    assert_eq!(engine.stats().compiles, 0);
}
