//! What a call tells its launch of a norm or a cache, after all of it has been checked. Plain numbers, so that they can go where
//! the GIL is not held.

#![allow(unsafe_code)]

use std::ffi::c_void;

use ropejit::args::{AppendArgs, NormArgs, NormGradient, NumberType, SavedRsqrt, Slots, Vector, VectorInput};
use ropejit::{DType, Input, Layout, RopeSpec, Tensor};

/// A norm.
pub struct Norm {
    pub eps: f32,
    /// Of q and of k.
    pub weights: [Option<u64>; 2],
    /// Where the reciprocal roots are written to, or read from.
    pub saved: Option<u64>,
    pub gradient: Option<Gradient>,
}

pub struct Gradient {
    pub q: (u64, Layout),
    pub k: Option<(u64, Layout)>,
    pub weights: [Option<u64>; 2],
    pub workspace: u64,
}

impl Norm {
    pub fn args(&self, spec: &RopeSpec, [batch, tokens, ..]: [usize; 4]) -> NormArgs<'static> {
        let element = NumberType::Element(spec.dtype);
        let f32s = |address: u64, len: usize| {
            // SAFETY: as in `Call::args`; `saved` has checked how many there are, or they were allocated as many.
            unsafe { Vector::from_raw(address as *mut c_void, NumberType::Element(DType::F32), len) }
        };
        let dim = spec.head_dim as usize;
        let weight = |address: Option<u64>| {
            // SAFETY: as in `Call::args`; `weights` has checked their number and type.
            address.map(|address| unsafe { VectorInput::from_raw(address as *const c_void, element, dim) })
        };
        let tokens = batch * tokens;
        let saved = self.saved.map(|address| {
            let q = tokens * spec.num_heads as usize;
            let k = tokens * spec.num_kv_heads as usize;
            SavedRsqrt { q: f32s(address, q), k: (spec.num_kv_heads > 0).then(|| f32s(address + 4 * q as u64, k)) }
        });
        let gradient = self.gradient.as_ref().map(|gradient| {
            // SAFETY: as in `Call::args`.
            let x = |(address, layout)| unsafe { Input::from_raw(address as *const c_void, spec.dtype, layout) };
            let written = |address: Option<u64>| {
                // SAFETY: as in `Call::args`; they were made like the weights.
                address.map(|address| unsafe { Vector::from_raw(address as *mut c_void, element, dim) })
            };
            let workspace = spec.weight_workspace(tokens as u64) as usize;
            NormGradient {
                q: x(gradient.q),
                k: gradient.k.map(x),
                q_weight: written(gradient.weights[0]),
                k_weight: written(gradient.weights[1]),
                workspace: spec
                    .norm
                    .is_some_and(ropejit::Norm::has_weight)
                    .then(|| f32s(gradient.workspace, workspace)),
            }
        });
        let [q_weight, k_weight] = self.weights.map(weight);
        NormArgs { eps: self.eps, q_weight, k_weight, rsqrt: saved, gradient }
    }
}

/// A cache that is appended to.
pub struct Append {
    pub v: Option<(u64, Layout)>,
    pub k_cache: (u64, Layout),
    pub v_cache: Option<(u64, Layout)>,
    pub slots: Where,
    /// Of q, k and v: where they are, and how many.
    pub scales: [Option<(u64, usize)>; 3],
}

pub enum Where {
    Mapping(u64),
    /// `kv_indices`, `kv_indptr`, `batch_indices`, `positions`: where they are, and how many.
    Pages([(u64, usize); 4]),
}

impl Append {
    pub fn args(&self, spec: &RopeSpec, [batch, tokens, ..]: [usize; 4]) -> AppendArgs<'static> {
        let cached = spec.cache_dtype();
        // SAFETY: as in `Call::args`.
        let cache = |(address, layout)| unsafe { Tensor::from_raw(address as *mut c_void, cached, layout) };
        let numbers = |(address, len): (u64, usize), number| {
            // SAFETY: as in `Call::args`; `dense_numbers` has checked their number and type.
            unsafe { VectorInput::from_raw(address as *const c_void, number, len) }
        };
        let [q_scale, k_scale, v_scale] =
            self.scales.map(|scale| scale.map(|scale| numbers(scale, NumberType::Element(DType::F32))));
        AppendArgs {
            // SAFETY: as in `Call::args`.
            v: self.v.map(|(at, layout)| unsafe { Input::from_raw(at as *const c_void, spec.dtype, layout) }),
            k_cache: cache(self.k_cache),
            v_cache: self.v_cache.map(cache),
            slots: match self.slots {
                Where::Mapping(slots) => Slots::Mapping(numbers((slots, batch * tokens), NumberType::I64)),
                Where::Pages(pages) => {
                    let [kv_indices, kv_indptr, batch_indices, positions] =
                        pages.map(|page| numbers(page, NumberType::I32));
                    Slots::Pages { kv_indices, kv_indptr, batch_indices, positions }
                }
            },
            q_scale,
            k_scale,
            v_scale,
        }
    }
}
