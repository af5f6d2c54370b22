//! All but the gradient of a norm: heads of q, k and v of each token.

#![allow(unsafe_code)]

use super::cache;
use super::memory::{Target, read_elements, write_element};
use super::token::{Launch, Stand, Token, dot};
use crate::families::rope::params::TensorParams;
use crate::rope::{DType, reference};

/// A head of q or k that is read.
struct Head<'a> {
    tensor: &'a TensorParams,
    number: i64,
    dim: usize,
    weight: &'a [f32],
    /// Where its reciprocal root goes; 0: nowhere.
    rsqrt: u64,
    heads: u32,
}

/// Works off a launch.
///
/// # Safety
/// As [`Kernel::launch`](crate::service::device::Kernel::launch).
pub unsafe fn run(launch: &Launch<'_>) {
    let (spec, p, f) = (launch.spec, launch.p, &launch.f);
    let weight = |address: u64| {
        // SAFETY: this function's contract: a weight has an element for each of a head.
        unsafe { read_elements(spec.dtype, address, 0, spec.head_dim as usize) }
    };
    let (q_weight, k_weight) = (weight(f.q_weight), weight(f.k_weight));
    for batch in i64::from(p.batch_begin)..i64::from(p.batch_begin) + i64::from(p.sequences) {
        for token in i64::from(p.token_begin)..i64::from(p.token_begin) + i64::from(p.tokens.divisor()) {
            // SAFETY: this function's contract.
            let token = unsafe { launch.token(batch, token) };
            for number in 0..i64::from(spec.num_heads) {
                let dim = spec.head_dim as usize;
                let (weight, rsqrt, heads) = (&q_weight[..], f.q_rsqrt, spec.num_heads);
                let from = Head { tensor: &p.q, number, dim, weight, rsqrt, heads };
                let first = dot(&p.q.out_stride, [token.batch, token.number, number]);
                let fp8 = spec.append.and_then(|append| append.q).map(|how| {
                    // SAFETY: this function's contract: there are as many scales as the spec says.
                    (how, unsafe { cache::scale(how, f.q_scale, number) })
                });
                // SAFETY: this function's contract.
                unsafe { head(launch, &token, &from, Some(Target { address: p.q.output, first, fp8 })) };
            }
            // SAFETY: as above.
            let place = unsafe { cache::place(launch, &token) };
            for number in 0..i64::from(spec.num_kv_heads) {
                let dim = spec.k_dim() as usize;
                let (weight, rsqrt, heads) = (&k_weight[..], f.k_rsqrt, spec.num_kv_heads);
                let from = Head { tensor: &p.k, number, dim, weight, rsqrt, heads };
                let to = if spec.append.is_some() {
                    // SAFETY: as above.
                    unsafe { cache::k_target(launch, place, number) }
                } else {
                    let first = dot(&p.k.out_stride, [token.batch, token.number, number]);
                    Some(Target { address: p.k.output, first, fp8: None })
                };
                // SAFETY: as above.
                unsafe { head(launch, &token, &from, to) };
                // SAFETY: as above.
                unsafe { cache::append_v(launch, &token, place, number) };
            }
        }
    }
}

/// Normalises and turns one head, or copies it. `to` is `None` where it is stored nowhere: its root is saved all the same.
///
/// # Safety
/// As [`Kernel::launch`](crate::service::device::Kernel::launch).
unsafe fn head(launch: &Launch<'_>, token: &Token, head: &Head<'_>, to: Option<Target>) {
    let (spec, t) = (launch.spec, head.tensor);
    let from = dot(&t.in_stride, [token.batch, token.number, head.number]);
    let stays = token.stand == Stand::Nowhere;
    // SAFETY: this function's contract.
    let x = unsafe { read_elements(spec.dtype, t.input, from, head.dim) };
    let y = if stays {
        x
    } else {
        let made = reference::forward(spec, &x, head.weight, launch.f.eps, reference::root, &token.angles);
        if let (Some(r), true) = (made.rsqrt, head.rsqrt != 0) {
            let row = (token.batch * launch.p.tokens_total as i64 + token.number) * i64::from(head.heads) + head.number;
            // SAFETY: this function's contract: a root for each head.
            unsafe { write_element(DType::F32, head.rsqrt, row, r) };
        }
        made.y
    };
    let Some(to) = to else { return };
    let first = reference::first_turning(spec, head.dim);
    let turning = first..first + spec.rotary_dim as usize;
    for (i, &y) in y.iter().enumerate() {
        if !stays && (spec.norm.is_some() || turning.contains(&i)) {
            // SAFETY: this function's contract.
            unsafe { to.put(spec.dtype, i, y) };
        } else if to.address != t.input {
            // SAFETY: as above.
            unsafe { to.copy(spec.dtype, (t.input, from + i as i64), i) };
        }
    }
}
