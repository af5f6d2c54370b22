//! Where the tensors of one call lie in the memory of a trial.

use crate::rope::RopeSpec;

/// Small tensors start at multiples of this, large ones at multiples of that: so PyTorch's allocator places them. Where a
/// tensor starts decides which memory channels are read and written at one time (benches/NOTES.md, 4).
const SMALL_STARTS: usize = 512;
const LARGE_STARTS: usize = 2 << 20;
/// Slots in a block of a cache, as in vLLM.
pub const BLOCK: usize = 16;

/// Bytes of each tensor for one token.
struct PerToken {
    /// q, k, what backward reads beside (q and k as the forward call took them), v.
    inputs: [u64; 5],
    /// q, k or its cache, the cache of v.
    outputs: [u64; 3],
}

impl PerToken {
    fn of(spec: &RopeSpec) -> Self {
        let (heads, kv_heads) = (u64::from(spec.num_heads), u64::from(spec.num_kv_heads));
        let size = spec.dtype.size() as u64;
        let (q, k) = (heads * u64::from(spec.head_dim), kv_heads * u64::from(spec.k_dim()));
        let saved = spec.is_norm_gradient();
        let [q_x, k_x] = if saved { [q, k] } else { [0, 0] };
        let v = spec.append.map_or(0, |append| kv_heads * u64::from(append.v_head_dim));
        // What is stored as fp8 has a byte an element.
        let [q_out, cache] = [spec.q_out_dtype(), spec.cache_dtype()].map(|dtype| dtype.size() as u64);
        Self { inputs: [q, k, q_x, k_x, v].map(|elements| elements * size), outputs: [q * q_out, k * cache, v * cache] }
    }
}

/// Bytes of tensors and caches that a launch reads and writes for one token: q and k in and out, beside them v, and for the
/// gradient of a norm what the forward call took. Tables, positions, weights and slots are not counted.
pub fn bytes_per_token(spec: &RopeSpec) -> u64 {
    let PerToken { inputs, outputs } = PerToken::of(spec);
    inputs.iter().sum::<u64>() + outputs.iter().sum::<u64>()
}

/// Bytes that a set takes for one token: its copy writes as much as it reads, beside the inputs.
pub fn set_per_token(spec: &RopeSpec) -> u64 {
    let inputs: u64 = PerToken::of(spec).inputs.iter().sum();
    inputs + bytes_per_token(spec).div_ceil(2)
}

/// Slots of the cache that so many tokens go to: some are left over.
pub fn slots(tokens: usize) -> usize {
    (tokens / BLOCK + 1) * BLOCK
}

/// Where the tensors of a set start, in bytes from its start.
pub struct Set {
    /// q, k, and for the gradient of a norm what the forward call took; v.
    pub inputs: [usize; 5],
    /// q, k or its cache, the cache of v.
    pub outputs: [usize; 3],
    /// Bytes in all.
    pub len: usize,
}

impl Set {
    /// Tensors of so many tokens.
    pub fn of(spec: &RopeSpec, tokens: usize) -> Self {
        let per_token = PerToken::of(spec);
        let mut end = 0;
        let mut place = |bytes: usize| {
            let start = end;
            end += aligned(bytes);
            start
        };
        let inputs = per_token.inputs.map(|bytes| place(bytes as usize * tokens));
        let [q, k, v] = output_bytes(spec, tokens);
        let outputs = [q, k, v].map(place);
        let copied = outputs[0] + (bytes_per_token(spec) as usize * tokens).div_ceil(2);
        Self { inputs, outputs, len: end.max(aligned(copied)) }
    }
}

/// Bytes of each output that calls of so many tokens write or leave as it is: caches are whole.
pub fn output_bytes(spec: &RopeSpec, tokens: usize) -> [usize; 3] {
    let [q, k, v] = PerToken::of(spec).outputs.map(|bytes| bytes as usize);
    let rows = if spec.append.is_some() { slots(tokens) } else { tokens };
    [q * tokens, k * rows, v * rows]
}

fn aligned(bytes: usize) -> usize {
    bytes.next_multiple_of(if bytes < 1 << 20 { SMALL_STARTS } else { LARGE_STARTS })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rope::{Append, DType, Direction, Flavour, Fp8, Norm, ScaleUse};

    #[test]
    fn bytes_are_those_that_a_launch_moves() {
        let plain = RopeSpec::new(DType::BF16, 128, 32, 8);
        assert_eq!(bytes_per_token(&plain), 2 * 40 * 128 * 2);
        let normed = plain.clone().with_norm(Norm::new(Flavour::WeightAfter));
        assert_eq!(bytes_per_token(&normed), bytes_per_token(&plain));
        let mut back = normed;
        back.direction = Direction::Backward;
        assert_eq!(bytes_per_token(&back), 3 * 40 * 128 * 2);
        let fp8 = Some(Fp8::new(ScaleUse::Divide));
        let append = Append { cache: fp8, q: fp8, ..Append::new(128) };
        // q, k and v are read, and written with a byte an element.
        assert_eq!(bytes_per_token(&plain.clone().with_append(append)), 48 * 128 * 3);
        assert_eq!(bytes_per_token(&plain.with_append(Append::new(0))), 2 * 40 * 128 * 2);
    }

    #[test]
    fn nothing_in_a_set_overlaps() {
        let fp8 = Some(Fp8::new(ScaleUse::Divide));
        let plain = RopeSpec::new(DType::BF16, 128, 32, 8);
        let mut back = plain.clone().with_norm(Norm::new(Flavour::NoWeight));
        back.direction = Direction::Backward;
        let appends = [Append::new(128), Append { cache: fp8, q: fp8, ..Append::new(64) }];
        for spec in [plain.clone(), back].into_iter().chain(appends.map(|append| plain.clone().with_append(append))) {
            for tokens in [1, 7, 100, 5000] {
                let set = Set::of(&spec, tokens);
                let lengths = PerToken::of(&spec).inputs.map(|bytes| bytes as usize * tokens);
                let inputs = set.inputs.into_iter().zip(lengths);
                let outputs = set.outputs.into_iter().zip(output_bytes(&spec, tokens));
                let mut parts: Vec<_> = inputs.chain(outputs).filter(|(_, len)| *len > 0).collect();
                parts.push((set.len, 0));
                assert!(parts.windows(2).all(|w| w[0].0 + w[0].1 <= w[1].0), "{spec}: {parts:?}");
                let copied = bytes_per_token(&spec) as usize * tokens / 2;
                assert!(copied <= set.outputs[0] && set.outputs[0] + copied <= set.len, "{spec}: the copy fits");
            }
        }
    }
}
