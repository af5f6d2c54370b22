//! What one launch is told: `templates/params.h`, mirrored field by field and described there.

#![allow(missing_docs)]

use super::render::{mrope_code, positions_code};
use super::variant::{Class, Variant};
use crate::rope::scaling::{Frequencies, TableMode};
use crate::rope::{Direction, RopeSpec, Rounding};

/// Divides numbers below 2^31 by a constant with a multiplication: Granlund and Montgomery, "Division by invariant
/// integers using multiplication" (PLDI 1994), figure 4.1.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Divider {
    multiplier: u32,
    shift: u32,
    divisor: u32,
    reserved: u32,
}

impl Divider {
    const NONE: Self = Self { multiplier: 0, shift: 0, divisor: 0, reserved: 0 };

    /// What it divides by.
    pub fn divisor(self) -> u32 {
        self.divisor
    }

    /// A divider by `divisor`, which is 1 to 2^31.
    pub fn new(divisor: u32) -> Self {
        let divisor = divisor.max(1);
        let shift = 32 - (divisor - 1).leading_zeros();
        let multiplier = (((1u64 << 32) * ((1u64 << shift) - u64::from(divisor))) / u64::from(divisor) + 1) as u32;
        Self { multiplier, shift, divisor, reserved: 0 }
    }
}

/// One tensor of a launch. Strides count elements: batch, token, head.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct TensorParams {
    pub input: u64,
    pub output: u64,
    pub in_stride: [i64; 3],
    pub out_stride: [i64; 3],
}

/// The first argument of every kernel.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct Params {
    pub q: TensorParams,
    pub k: TensorParams,
    pub cos: u64,
    pub sin: u64,
    pub table_batch_stride: i64,
    pub table_row_stride: i64,
    pub table_rows: i64,
    pub position_ids: u64,
    pub cu_seqlens: u64,
    pub position_axis_stride: i64,
    pub position_batch_stride: i64,
    pub position_token_stride: i64,
    pub position_offset: i64,
    pub fault: u64,
    pub tokens_total: u64,
    pub packed_sequences: u32,
    pub wide_offsets: u32,
    pub batch_begin: u32,
    pub sequences: u32,
    pub token_begin: u32,
    pub units: u32,
    pub tokens: Divider,
}

/// Frequencies of at most 256 pairs and the factor on cos and sin, for kernels that compute their angles.
#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(C)]
pub struct AngleParams {
    pub factor: f32,
    pub inv_freq: [f32; 256],
}

impl AngleParams {
    /// For kernels that read their tables.
    pub const NONE: Self = Self { factor: 0.0, inv_freq: [0.0; 256] };
}

impl From<&Frequencies> for AngleParams {
    fn from(frequencies: &Frequencies) -> Self {
        let mut angles = Self { factor: frequencies.attention_factor, ..Self::NONE };
        for (to, from) in angles.inv_freq.iter_mut().zip(&frequencies.inv_freq) {
            *to = *from;
        }
        angles
    }
}

/// What a portable kernel is told of spec and layout; zero for all others, which look at none of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ShapeParams {
    pub rotary_dim: u32,
    pub rest: u32,
    pub num_heads: u32,
    pub num_kv_heads: u32,
    pub positions: u32,
    pub mrope: u32,
    pub mrope_sections: [u32; 3],
    pub backward: u32,
    pub per_op: u32,
    pub accurate: u32,
    pub head_major: u32,
    pub lanes: Divider,
    pub groups: Divider,
    pub threads: u32,
    pub prefetch: u32,
}

impl ShapeParams {
    /// For all other kernels.
    pub const NONE: Self = Self {
        rotary_dim: 0,
        rest: 0,
        num_heads: 0,
        num_kv_heads: 0,
        positions: 0,
        mrope: 0,
        mrope_sections: [0; 3],
        backward: 0,
        per_op: 0,
        accurate: 0,
        head_major: 0,
        lanes: Divider::NONE,
        groups: Divider::NONE,
        threads: 0,
        prefetch: 0,
    };

    /// The shape of a spec's calls in a layout class, for the portable kernel that runs as `v`.
    pub fn of(spec: &RopeSpec, class: Class, v: Variant) -> Self {
        let rest = if class.copy_rest { spec.head_dim - spec.rotary_dim } else { 0 };
        Self {
            rotary_dim: spec.rotary_dim,
            rest,
            num_heads: spec.num_heads,
            num_kv_heads: spec.num_kv_heads,
            positions: positions_code(spec.positions),
            mrope: mrope_code(spec.mrope.as_ref()),
            mrope_sections: spec.mrope.map_or([0; 3], |m| m.sections),
            backward: (spec.direction == Direction::Backward).into(),
            per_op: (spec.rounding == Rounding::PerOp).into(),
            accurate: (spec.angles == Some(TableMode::Accurate)).into(),
            head_major: class.head_major.into(),
            lanes: Divider::new(v.lanes(spec, class)),
            groups: Divider::new(spec.num_heads + spec.num_kv_heads),
            threads: v.threads.into(),
            prefetch: v.prefetch.into(),
        }
    }
}

/// What fused kernels are told beside: their second argument.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct FusedParams {
    pub q_weight: u64,
    pub k_weight: u64,
    pub q_rsqrt: u64,
    pub k_rsqrt: u64,
    pub q_x: u64,
    pub k_x: u64,
    pub q_x_stride: [i64; 3],
    pub k_x_stride: [i64; 3],
    pub q_weight_gradient: u64,
    pub k_weight_gradient: u64,
    pub nodes: u64,
    pub v: u64,
    pub v_stride: [i64; 3],
    pub k_cache: u64,
    pub v_cache: u64,
    pub k_cache_stride: [i64; 3],
    pub v_cache_stride: [i64; 3],
    pub slots: u64,
    pub kv_indices: u64,
    pub kv_indptr: u64,
    pub batch_indices: u64,
    pub q_scale: u64,
    pub k_scale: u64,
    pub v_scale: u64,
    pub block_size: Divider,
    pub slot_count: u32,
    pub requests: u32,
    pub pages: u32,
    pub eps: f32,
    pub q_nodes: u32,
    pub k_nodes: u32,
    pub stage: u32,
    pub reserved: u32,
}

// The same figure stands in templates/params.h, where the compilers check it.
const _: () = assert!(size_of::<Params>() == 272 && align_of::<Params>() == 8 && size_of::<AngleParams>() == 1028);
const _: () = assert!(size_of::<ShapeParams>() == 92);
const _: () = assert!(size_of::<FusedParams>() == 320);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dividers_divide() {
        let divide = |n: u32, d: Divider| {
            let high = ((u64::from(n) * u64::from(d.multiplier)) >> 32) as u32;
            (high + n) >> d.shift
        };
        for divisor in (1..2000).chain([1 << 16, (1 << 20) - 1, (1 << 30) + 1, (1 << 31) - 1, 1 << 31]) {
            let d = Divider::new(divisor);
            for base in [0u32, 1, 7, 12345, 1 << 20, 1 << 30, (1 << 31) - 1] {
                for n in [base, base / divisor * divisor, (base / divisor * divisor).saturating_sub(1)] {
                    assert_eq!(divide(n, d), n / divisor, "{n} / {divisor}");
                }
            }
        }
    }
}
