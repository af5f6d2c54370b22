//! Where the tensors of one application lie in its memory.

use ropejit::rope::Layout;
use ropejit::{DType, RopeSpec};

/// Slots in a block of a cache, as in vLLM.
pub const BLOCK: usize = 16;

/// One tensor: where it starts, in bytes, its shape and type. Without heads where the spec has none such.
#[derive(Clone, Copy)]
pub struct Part {
    pub start: usize,
    pub layout: Layout,
    pub dtype: DType,
}

impl Part {
    pub fn bytes(&self) -> usize {
        self.layout.len() * self.dtype.size()
    }

    pub fn is_there(&self) -> bool {
        !self.layout.is_empty()
    }

    /// The number of an element.
    pub fn at(&self, [batch, token, head]: [usize; 3]) -> usize {
        let [b, t, h, _] = self.layout.strides.map(|stride| stride as usize);
        self.start / self.dtype.size() + batch * b + token * t + head * h
    }
}

/// All tensors of an application.
#[derive(Clone, Copy)]
pub struct Parts {
    /// q and k (for a gradient: their gradients), q and k as the forward call took them, v.
    pub inputs: [Part; 5],
    /// q, k or its cache, the cache of v.
    pub outputs: [Part; 3],
}

impl Parts {
    pub fn of(spec: &RopeSpec, batch: usize, tokens: usize, head_major: bool) -> Self {
        let (q, kv) = (spec.num_heads as usize, spec.num_kv_heads as usize);
        let v_dim = spec.append.map_or(0, |append| append.v_head_dim as usize);
        let saved = spec.is_norm_gradient();
        let dims = [spec.head_dim as usize, spec.k_dim() as usize];
        let tensor = |heads: usize, dim: usize, dtype: DType| {
            let layout = if head_major {
                Layout::bhsd(batch, heads, tokens, dim)
            } else {
                Layout::bshd(batch, tokens, heads, dim)
            };
            Part { start: 0, layout, dtype }
        };
        let mut inputs = [(q, dims[0]), (kv, dims[1]), (q, dims[0]), (kv, dims[1]), (kv, v_dim)]
            .map(|(heads, dim)| tensor(heads, dim, spec.dtype));
        if !saved {
            (inputs[2].layout, inputs[3].layout) = (Layout::thd(0, 0, 0), Layout::thd(0, 0, 0));
        }
        let mut outputs =
            [tensor(q, dims[0], spec.q_out_dtype()), tensor(kv, dims[1], spec.dtype), tensor(0, 0, spec.dtype)];
        if spec.append.is_some() {
            let blocks = (batch * tokens).div_ceil(BLOCK);
            let dtype = spec.cache_dtype();
            for (output, dim) in outputs[1..].iter_mut().zip([dims[1], v_dim]) {
                *output = Part { start: 0, layout: Layout::bshd(blocks, BLOCK, kv, dim), dtype };
            }
        }
        place(&mut inputs);
        place(&mut outputs);
        Self { inputs, outputs }
    }

    /// Bytes that one application reads and writes: of a cache, as many as there are tokens.
    pub fn moved(&self, tokens: usize) -> usize {
        let inputs: usize = self.inputs.iter().map(Part::bytes).sum();
        let outputs = self.outputs.iter().map(|part| {
            let [_, _, heads, dim] = part.layout.shape;
            tokens * heads * dim * part.dtype.size()
        });
        inputs + outputs.sum::<usize>()
    }
}

/// One after the other, each where an allocator would place it.
fn place(parts: &mut [Part]) {
    let mut end = 0;
    for part in parts {
        part.start = end;
        let bytes = part.bytes();
        end += bytes.next_multiple_of(if bytes < 1 << 20 { 512 } else { 2 << 20 });
    }
}

/// Bytes up to the end of the last.
pub fn end(parts: &[Part]) -> usize {
    parts.iter().map(|part| part.start + part.bytes()).max().unwrap_or(0)
}
