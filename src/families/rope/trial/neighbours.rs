//! What stands beside q and k in a trial of a fused spec: weights, scales, reciprocal roots, slots of a cache.

use std::sync::Arc;

use super::noise::{Noise, upload};
use super::set::{BLOCK, slots};
use crate::error::Result;
use crate::families::rope::args::{Input, NormArgs, NormGradient, NumberType, SavedRsqrt, Slots, Vector, VectorInput};
use crate::rope::{DType, Direction, Fp8, RopeSpec, SlotForm};
use crate::service::family::{Device, Memory, Throttle};

/// Where a vector starts.
const STARTS: usize = 256;
const F32: NumberType = NumberType::Element(DType::F32);

/// Vectors that all sets share.
pub struct Neighbours {
    pub memory: Box<dyn Memory>,
    /// Of q, then of k.
    weights: [usize; 2],
    /// Of q, k and v.
    scales: [usize; 3],
    /// Of q, then of k, for each head of each token.
    roots: [usize; 2],
    /// For the tokens that are timed, and for those whose bits are compared.
    slots: [Where; 2],
    /// The gradients of the weights of q and k.
    gradients: [usize; 2],
    workspace: usize,
}

/// What says where tokens are stored.
struct Where {
    tokens: usize,
    mapping: usize,
    kv_indices: usize,
    kv_indptr: usize,
    batch_indices: usize,
    positions: usize,
}

/// Bytes that are laid out one array after the other.
#[derive(Default)]
struct Bytes(Vec<u8>);

impl Bytes {
    fn place(&mut self, bytes: impl IntoIterator<Item = u8>) -> usize {
        let start = self.0.len();
        self.0.extend(bytes);
        self.0.resize(self.0.len().next_multiple_of(STARTS), 0);
        start
    }
}

impl Neighbours {
    /// For at most `tokens` tokens, and for comparisons of `compared`.
    pub fn new(
        device: &Arc<dyn Device>,
        spec: &RopeSpec,
        [tokens, compared]: [usize; 2],
        throttle: &Throttle<'_>,
    ) -> Result<Self> {
        let mut noise = Noise::new(0x2545_f491_4f6c_dd1d);
        let mut bytes = Bytes::default();
        let weight = spec.head_dim as usize * spec.dtype.size();
        let weights = [(); 2].map(|()| {
            let mut weight = vec![0; weight];
            noise.fill(spec.dtype, &mut weight);
            bytes.place(weight)
        });
        let heads = [spec.num_heads, spec.num_kv_heads, spec.num_kv_heads].map(|heads| heads as usize);
        let scales = heads.map(|heads| bytes.place(noise.positive(heads)));
        // Backward reads them; forward keeps them where bits are compared.
        let rooted = match spec.direction {
            _ if spec.norm.is_none() => 0,
            Direction::Forward => compared,
            Direction::Backward => tokens,
        };
        let roots = [heads[0], heads[1]].map(|heads| bytes.place(noise.positive(heads * rooted)));
        let slots = [tokens, compared].map(|tokens| Where::of(spec, tokens, &mut bytes));
        // What is only written.
        let start = bytes.0.len();
        let room = weight.next_multiple_of(STARTS);
        let workspace = start + 2 * room;
        let end = workspace
            + if spec.direction == Direction::Backward { 4 * spec.weight_workspace(tokens as u64) as usize } else { 0 };
        let mut memory = throttle.slice(|| device.alloc(end))?;
        upload(memory.as_mut(), 0, &bytes.0, throttle)?;
        Ok(Self { memory, weights, scales, roots, slots, gradients: [start, start + room], workspace })
    }

    fn vector(&self, at: usize, number: NumberType, len: usize) -> Result<Vector<'_>> {
        Vector::in_memory(self.memory.as_ref(), at, number, len)
    }

    /// Bytes that a call of so many tokens writes: where each part starts, and its length.
    pub fn written(&self, spec: &RopeSpec, tokens: usize) -> Vec<(usize, usize)> {
        let Some(norm) = spec.norm else { return Vec::new() };
        let heads = [spec.num_heads, spec.num_kv_heads].map(|heads| heads as usize);
        match spec.direction {
            Direction::Forward => (0..2).map(|i| (self.roots[i], 4 * heads[i] * tokens)).collect(),
            Direction::Backward if norm.has_weight() => {
                let bytes = spec.head_dim as usize * spec.dtype.size();
                (0..2).filter(|&i| heads[i] > 0).map(|i| (self.gradients[i], bytes)).collect()
            }
            Direction::Backward => Vec::new(),
        }
    }

    /// Arguments of a norm. `x` is q and k as the forward call took them, for a backward call. `saved`: forward calls keep
    /// their roots.
    pub fn norm<'a>(
        &'a self,
        spec: &RopeSpec,
        tokens: usize,
        saved: bool,
        x: Option<[Input<'a>; 2]>,
    ) -> Result<Option<NormArgs<'a>>> {
        let Some(norm) = spec.norm else { return Ok(None) };
        let (dim, has_k) = (spec.head_dim as usize, spec.num_kv_heads > 0);
        let element = NumberType::Element(spec.dtype);
        let (of_q, of_k) = (norm.has_weight(), norm.has_weight() && has_k);
        let vector = |wanted: bool, at: usize| wanted.then(|| self.vector(at, element, dim)).transpose();
        let heads = [spec.num_heads, spec.num_kv_heads].map(|heads| heads as usize * tokens);
        let roots = |i: usize| self.vector(self.roots[i], F32, heads[i]);
        let rsqrt = (saved || x.is_some())
            .then(|| Ok::<_, crate::Error>(SavedRsqrt { q: roots(0)?, k: has_k.then(|| roots(1)).transpose()? }));
        let workspace = spec.weight_workspace(tokens as u64) as usize;
        let gradient = x.map(|[q, k]| {
            Ok::<_, crate::Error>(NormGradient {
                q,
                k: has_k.then_some(k),
                q_weight: vector(of_q, self.gradients[0])?,
                k_weight: vector(of_k, self.gradients[1])?,
                workspace: of_q.then(|| self.vector(self.workspace, F32, workspace)).transpose()?,
            })
        });
        Ok(Some(NormArgs {
            eps: 1e-6,
            q_weight: vector(of_q, self.weights[0])?.map(VectorInput::from),
            k_weight: vector(of_k, self.weights[1])?.map(VectorInput::from),
            rsqrt: rsqrt.transpose()?,
            gradient: gradient.transpose()?,
        }))
    }

    /// The scale of q (0), k (1) or v (2) where it is stored as fp8.
    pub fn scale(&self, which: usize, fp8: Option<Fp8>, heads: u32) -> Result<Option<VectorInput<'_>>> {
        let Some(fp8) = fp8 else { return Ok(None) };
        let len = if fp8.per_head { heads as usize } else { 1 };
        Ok(Some(self.vector(self.scales[which], F32, len)?.into()))
    }

    /// Where `tokens` tokens are stored; `compared`: those whose bits are compared.
    pub fn slots(&self, form: SlotForm, tokens: usize, compared: bool) -> Result<Slots<'_>> {
        let at = &self.slots[usize::from(compared)];
        let i32s = |at, len| Ok::<_, crate::Error>(VectorInput::from(self.vector(at, NumberType::I32, len)?));
        Ok(match form {
            SlotForm::SlotMapping => Slots::Mapping(self.vector(at.mapping, NumberType::I64, tokens)?.into()),
            SlotForm::Pages => Slots::Pages {
                kv_indices: i32s(at.kv_indices, slots(at.tokens) / BLOCK)?,
                kv_indptr: i32s(at.kv_indptr, 2)?,
                batch_indices: i32s(at.batch_indices, tokens)?,
                positions: i32s(at.positions, tokens)?,
            },
        })
    }
}

impl Where {
    /// Blocks in an order of their own, each filled token by token; one token is stored nowhere.
    fn of(spec: &RopeSpec, tokens: usize, bytes: &mut Bytes) -> Self {
        let mut found = Self { tokens, mapping: 0, kv_indices: 0, kv_indptr: 0, batch_indices: 0, positions: 0 };
        let Some(append) = spec.append else { return found };
        let blocks = slots(tokens) / BLOCK;
        let block = permutation(blocks);
        let nowhere = |token: usize| tokens > 1 && token == tokens / 2;
        let i32s = |numbers: Vec<i32>| numbers.into_iter().flat_map(i32::to_ne_bytes);
        match append.slots {
            SlotForm::SlotMapping => {
                let slot = |token: usize| (block[token / BLOCK] * BLOCK + token % BLOCK) as i64;
                let slot = |token| if nowhere(token) { -1 } else { slot(token) };
                found.mapping = bytes.place((0..tokens).flat_map(|token| slot(token).to_ne_bytes()));
            }
            SlotForm::Pages => {
                let position = |token| if nowhere(token) { -1 } else { token as i32 };
                found.kv_indices = bytes.place(i32s(block.iter().map(|&block| block as i32).collect()));
                found.kv_indptr = bytes.place(i32s(vec![0, blocks as i32]));
                found.batch_indices = bytes.place(i32s(vec![0; tokens]));
                found.positions = bytes.place(i32s((0..tokens).map(position).collect()));
            }
        }
        found
    }
}

/// Each number below `n` once, scattered: steps of a number that shares no divisor with `n`, by the golden ratio.
fn permutation(n: usize) -> Vec<usize> {
    let divides = |a: usize, b: usize| (2..=a.min(b)).any(|d| a.is_multiple_of(d) && b.is_multiple_of(d));
    let step = ((n as f64 * 0.618) as usize..=n).find(|&step| step > 0 && !divides(step, n)).unwrap_or(1);
    (0..n).map(|i| i * step % n).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::{Scratch, Shot};
    use super::*;
    use crate::families::rope::variant::{Bucket, Class};
    use crate::rope::{Append, DType};
    use crate::service::device::host::Host;

    #[test]
    fn permutations_have_each_number_once() {
        for n in 1..200 {
            let mut all = permutation(n);
            all.sort_unstable();
            assert_eq!(all, (0..n).collect::<Vec<_>>());
        }
    }

    /// Of any number of tokens, each has a slot of its own in the cache that the launch gets, but for one that has none: else a
    /// measurement would report a slot outside to whoever asks the engine.
    #[test]
    fn every_token_has_a_slot_of_the_cache() {
        let device: Arc<dyn Device> = Arc::new(Host::open());
        for form in [SlotForm::SlotMapping, SlotForm::Pages] {
            let spec = RopeSpec::new(DType::BF16, 16, 2, 1).with_append(Append { slots: form, ..Append::new(16) });
            let (class, throttle) = (Class::contiguous(&spec, false, true), Throttle::full());
            let scratch = Scratch::new(&device, &spec, class, Bucket::of(500), 0, 1 << 24, &throttle).expect("made");
            let neighbours = scratch.neighbours.as_ref().expect("fused");
            let read = |at: usize, size: usize, len: usize| -> Vec<i64> {
                let mut bytes = vec![0; size * len];
                neighbours.memory.download(at, &mut bytes).expect("read");
                let number = |b: &[u8]| match size {
                    8 => i64::from_ne_bytes(b.try_into().expect("eight")),
                    _ => i32::from_ne_bytes(b.try_into().expect("four")).into(),
                };
                bytes.chunks(size).map(number).collect()
            };
            for (tokens, compared) in [(512, false), (100, false), (1, false), (194, true)] {
                let shot = Shot { set: 1, batch: 1, tokens, compared };
                let args = scratch.append(neighbours, shot).expect("made").expect("an append");
                let [blocks, size, ..] = args.k_cache.layout.shape;
                let at = &neighbours.slots[usize::from(compared)];
                let slots: Vec<i64> = match form {
                    SlotForm::SlotMapping => read(at.mapping, 8, tokens),
                    SlotForm::Pages => {
                        let Slots::Pages { kv_indices, .. } = &args.slots else { panic!("of another form") };
                        let pages = read(at.kv_indices, 4, kv_indices.0.len);
                        assert_eq!(read(at.kv_indptr, 4, 2), [0, kv_indices.0.len as i64]);
                        assert!(read(at.batch_indices, 4, tokens).iter().all(|request| *request == 0));
                        let slot = |p: i64| if p < 0 { -1 } else { pages[p as usize / BLOCK] * 16 + p % 16 };
                        read(at.positions, 4, tokens).into_iter().map(slot).collect()
                    }
                };
                let stored: BTreeSet<i64> = slots.iter().copied().filter(|slot| *slot >= 0).collect();
                let nowhere = slots.iter().filter(|slot| **slot < 0).count();
                assert_eq!(stored.len() + nowhere, tokens, "{form:?}, {tokens}");
                assert!(nowhere == 1 || tokens <= 100, "{form:?}, {tokens}: one is stored nowhere");
                assert!(stored.last().is_none_or(|slot| *slot < (blocks * size) as i64), "{form:?}, {tokens}");
            }
        }
    }
}
