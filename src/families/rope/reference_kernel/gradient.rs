//! The gradient of a norm: that of each head, and that of the weights.

#![allow(unsafe_code)]

use super::memory::{Target, read_element, read_elements, write_element};
use super::token::{Launch, Stand, Token, dot};
use crate::families::rope::params::TensorParams;
use crate::rope::{DType, Norm, reference};

/// q or k.
struct Heads<'a> {
    count: u32,
    gradient: &'a TensorParams,
    x: (u64, &'a [i64; 3]),
    rsqrt: u64,
    weight: u64,
    weight_gradient: u64,
}

/// Works off a launch, whose tokens are all of the call's.
///
/// # Safety
/// As [`Kernel::launch`](crate::service::device::Kernel::launch).
pub unsafe fn run(launch: &Launch<'_>, norm: Norm) {
    let (spec, p, f) = (launch.spec, launch.p, &launch.f);
    let q = Heads {
        count: spec.num_heads,
        gradient: &p.q,
        x: (f.q_x, &f.q_x_stride),
        rsqrt: f.q_rsqrt,
        weight: f.q_weight,
        weight_gradient: f.q_weight_gradient,
    };
    let k = Heads {
        count: spec.num_kv_heads,
        gradient: &p.k,
        x: (f.k_x, &f.k_x_stride),
        rsqrt: f.k_rsqrt,
        weight: f.k_weight,
        weight_gradient: f.k_weight_gradient,
    };
    for heads in [q, k] {
        if heads.count > 0 {
            // SAFETY: this function's contract.
            unsafe { of_heads(launch, norm, &heads) };
        }
    }
}

/// # Safety
/// As [`run`].
unsafe fn of_heads(launch: &Launch<'_>, norm: Norm, heads: &Heads<'_>) {
    let (p, dtype, dim) = (launch.p, launch.spec.dtype, launch.spec.head_dim as usize);
    // SAFETY: this function's contract: an element for each of a head.
    let weight = unsafe { read_elements(dtype, heads.weight, 0, dim) };
    let tokens = (0..p.sequences).flat_map(|batch| (0..p.tokens.divisor()).map(move |token| (batch, token)));
    let terms = tokens.flat_map(|(batch, token)| {
        // SAFETY: as above.
        let token = unsafe { launch.token(batch.into(), token.into()) };
        // SAFETY: as above.
        let of_head = |head| unsafe { of_head(launch, norm, heads, &weight, &token, head) };
        (0..i64::from(heads.count)).map(of_head).collect::<Vec<_>>()
    });
    let sums = reference::weight_gradient(dtype, weight.len(), terms);
    for (i, sum) in sums.into_iter().enumerate() {
        // SAFETY: as above: where there is a weight, its gradient is wanted.
        unsafe { write_element(dtype, heads.weight_gradient, i as i64, sum) };
    }
}

/// What a head gives to the gradient of the weight; `None` where its token stays as it is.
///
/// # Safety
/// As [`run`].
unsafe fn of_head(
    launch: &Launch<'_>,
    norm: Norm,
    heads: &Heads<'_>,
    weight: &[f32],
    token: &Token,
    head: i64,
) -> Option<Vec<f32>> {
    let (spec, t, at) = (launch.spec, heads.gradient, [token.batch, token.number, head]);
    let (dtype, dim) = (spec.dtype, spec.head_dim as usize);
    let from = dot(&t.in_stride, at);
    let to = Target { address: t.output, first: dot(&t.out_stride, at), fp8: None };
    if token.stand == Stand::Nowhere {
        for i in 0..if t.input == t.output { 0 } else { dim } {
            // SAFETY: this function's contract.
            unsafe { to.copy(dtype, (t.input, from + i as i64), i) };
        }
        return None;
    }
    // SAFETY: as above.
    let dy = unsafe { read_elements(dtype, t.input, from, dim) };
    // SAFETY: as above.
    let x = unsafe { read_elements(dtype, heads.x.0, dot(heads.x.1, at), dim) };
    let row = (token.batch * launch.p.tokens_total as i64 + token.number) * i64::from(heads.count) + head;
    // SAFETY: as above.
    let r = unsafe { read_element(DType::F32, heads.rsqrt, row) };
    let made = reference::backward(spec, norm, &dy, &x, weight, r, &token.angles);
    for (i, &dx) in made.dx.iter().enumerate() {
        // SAFETY: as above.
        unsafe { to.put(dtype, i, dx) };
    }
    Some(made.weight_terms)
}
