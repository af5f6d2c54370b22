//! What stands beside the rotation of a call, checked and turned into what a launch is told: a norm, its gradient, a cache.

use super::args::borrowed::Location;
use super::args::{AppendArgs, Args, NormArgs, NumberType, Operand, Slots, Tensor, UNREACHABLE, VectorInput};
use super::params::{Divider, FusedParams};
use crate::error::{Error, ErrorKind, Result};
use crate::rope::{Append, DType, Direction, Fp8, Norm, RopeSpec, SlotForm};

/// Slots of a cache at most: they are divided by a multiplication.
const MOST_SLOTS: u64 = 1 << 31;

/// What a launch of a fused spec is told beside; `None` for all others. What is written to `mix` is or-ed together to tell how
/// far heads are aligned.
pub(super) fn beside(
    spec: &RopeSpec,
    args: &Args<'_>,
    [batch, tokens]: [usize; 2],
    place: Location,
    mix: &mut u64,
) -> Result<Option<FusedParams>> {
    match (&spec.norm, &args.norm) {
        (None, Some(_)) => return Err(Error::argument("norm", "is given, the spec has none")),
        (Some(_), None) => return Err(Error::argument("norm", "is missing: the spec has one")),
        _ => {}
    }
    match (&spec.append, &args.append) {
        (None, Some(_)) => return Err(Error::argument("append", "is given, the spec appends nothing")),
        (Some(_), None) => return Err(Error::argument("append", "is missing: the spec appends to a cache")),
        _ => {}
    }
    if !spec.is_fused() {
        return Ok(None);
    }
    let mut params = FusedParams::default();
    let call = Shape { spec, batch, tokens, place };
    if let (Some(norm), Some(given)) = (&spec.norm, &args.norm) {
        call.norm(*norm, given, args, &mut params, mix)?;
    }
    if let (Some(append), Some(given)) = (&spec.append, &args.append) {
        call.append(append, given, args, &mut params, mix)?;
    }
    Ok(Some(params))
}

/// The call that arguments have to fit.
struct Shape<'a> {
    spec: &'a RopeSpec,
    batch: usize,
    tokens: usize,
    place: Location,
}

impl Shape<'_> {
    fn norm(
        &self,
        norm: Norm,
        given: &NormArgs<'_>,
        args: &Args<'_>,
        params: &mut FusedParams,
        mix: &mut u64,
    ) -> Result<()> {
        let (spec, place) = (self.spec, self.place);
        if given.eps.is_nan() || given.eps < 0.0 {
            return Err(Error::argument("eps", format!("must be 0 or above, got {}", given.eps)));
        }
        params.eps = given.eps;
        let element = NumberType::Element(spec.dtype);
        let has_k = spec.num_kv_heads > 0;
        let weight = |name: &str, weight: Option<&VectorInput<'_>>, wanted: bool| {
            optional(name, weight.map(|w| &w.0), wanted, element, spec.head_dim as usize, place)
        };
        params.q_weight = weight("q_weight", given.q_weight.as_ref(), norm.has_weight())?;
        params.k_weight = weight("k_weight", given.k_weight.as_ref(), norm.has_weight() && has_k)?;
        *mix |= params.q_weight | params.k_weight;
        let heads = |heads: u32| self.batch * self.tokens * heads as usize;
        let f32s = NumberType::Element(DType::F32);
        if let Some(saved) = &given.rsqrt {
            params.q_rsqrt = saved.q.expect("rsqrt.q", f32s, heads(spec.num_heads), place)?;
            params.k_rsqrt = optional("rsqrt.k", saved.k.as_ref(), has_k, f32s, heads(spec.num_kv_heads), place)?;
        }
        let gradient = match (spec.direction, &given.gradient) {
            (Direction::Forward, None) => return Ok(()),
            (Direction::Forward, Some(_)) => {
                return Err(Error::argument("norm.gradient", "is given, the spec is forward"));
            }
            (Direction::Backward, None) => {
                return Err(Error::argument("norm.gradient", "is missing: the spec is backward"));
            }
            (Direction::Backward, Some(gradient)) => gradient,
        };
        if given.rsqrt.is_none() {
            return Err(Error::argument("rsqrt", "is missing: the backward call reads what the forward call wrote"));
        }
        (params.q_x, params.q_x_stride) = self.like("norm.gradient.q", &gradient.q.0, &args.q, mix)?;
        match (&gradient.k, &args.k) {
            (Some(x), Some(k)) => (params.k_x, params.k_x_stride) = self.like("norm.gradient.k", &x.0, k, mix)?,
            (None, None) => {}
            (Some(_), None) => return Err(Error::argument("norm.gradient.k", "is given, and there is no k")),
            (None, Some(_)) => return Err(Error::argument("norm.gradient.k", "is missing")),
        }
        let dim = spec.head_dim as usize;
        let wanted = norm.has_weight();
        params.q_weight_gradient =
            optional("norm.gradient.q_weight", gradient.q_weight.as_ref(), wanted, element, dim, place)?;
        params.k_weight_gradient =
            optional("norm.gradient.k_weight", gradient.k_weight.as_ref(), wanted && has_k, element, dim, place)?;
        let workspace = spec.weight_workspace((self.batch * self.tokens) as u64) as usize;
        params.nodes =
            optional("norm.gradient.workspace", gradient.workspace.as_ref(), wanted, f32s, workspace, place)?;
        Ok(())
    }

    /// Where a tensor lies that has the shape and type of an operand.
    fn like(&self, name: &str, tensor: &Tensor<'_>, of: &Operand<'_>, mix: &mut u64) -> Result<(u64, [i64; 3])> {
        if tensor.layout.shape != of.tensor.layout.shape || tensor.dtype != of.tensor.dtype {
            let what = format!(
                "is {:?} of {}, its gradient {:?} of {}",
                tensor.layout.shape, tensor.dtype, of.tensor.layout.shape, of.tensor.dtype
            );
            return Err(Error::argument(name, what));
        }
        self.tensor(name, tensor, mix)
    }

    /// The address and strides of a tensor.
    fn tensor(&self, name: &str, tensor: &Tensor<'_>, mix: &mut u64) -> Result<(u64, [i64; 3])> {
        if !tensor.place().serves(self.place) {
            return Err(Error::argument(name, UNREACHABLE));
        }
        tensor.layout.validate(name)?;
        let size = tensor.dtype.size();
        if !tensor.address().is_multiple_of(size as u64) {
            return Err(Error::argument(name, "is not aligned to its elements"));
        }
        // Words are counted in bytes of q's elements.
        let scale = (self.spec.dtype.size() / size) as u64;
        *mix |= (tensor.address() | tensor.layout.alignment_bytes(size)).wrapping_mul(scale);
        let strides = tensor.layout.strides;
        Ok((tensor.address(), [strides[0], strides[1], strides[2]]))
    }

    fn append(
        &self,
        append: &Append,
        given: &AppendArgs<'_>,
        args: &Args<'_>,
        params: &mut FusedParams,
        mix: &mut u64,
    ) -> Result<()> {
        let spec = self.spec;
        let cache_type = spec.cache_dtype();
        if args.k.as_ref().is_some_and(|k| k.output.is_some()) {
            return Err(
                Error::argument("k output", "is given, and k goes to the cache").hint("pass k as Operand::read_only")
            );
        }
        let [blocks, block_size, ..] = given.k_cache.layout.shape;
        let cache = |name: &str, cache: &Tensor<'_>, dim: u32, mix: &mut u64| {
            let shape = [blocks, block_size, spec.num_kv_heads as usize, dim as usize];
            if cache.layout.shape != shape || cache.dtype != cache_type {
                let what = format!(
                    "is {:?} of {}, [blocks, block_size, {}, {dim}] of {cache_type} is needed",
                    cache.layout.shape, cache.dtype, spec.num_kv_heads
                );
                return Err(Error::argument(name, what));
            }
            if cache.layout.overlaps() {
                let what = format!("its strides {:?} put several elements in one place", cache.layout.strides);
                return Err(Error::argument(name, what));
            }
            Self::apart(name, cache, args, given)?;
            self.tensor(name, cache, mix)
        };
        (params.k_cache, params.k_cache_stride) = cache("k_cache", &given.k_cache, spec.k_dim(), mix)?;
        match (append.v_head_dim, &given.v, &given.v_cache) {
            (0, None, None) => {}
            (0, ..) => return Err(Error::argument("v", "is given, the spec has none (v_head_dim is 0)")),
            (dim, Some(v), Some(v_cache)) => {
                let shape = [self.batch, self.tokens, spec.num_kv_heads as usize, dim as usize];
                if v.0.layout.shape != shape || v.0.dtype != spec.dtype {
                    let what =
                        format!("is {:?} of {}, {shape:?} of {} is needed", v.0.layout.shape, v.0.dtype, spec.dtype);
                    return Err(Error::argument("v", what));
                }
                (params.v, params.v_stride) = self.tensor("v", &v.0, mix)?;
                (params.v_cache, params.v_cache_stride) = cache("v_cache", v_cache, dim, mix)?;
            }
            (dim, ..) => {
                return Err(Error::argument("v", format!("or its cache is missing, the spec has heads of {dim}")));
            }
        }
        self.slots(append.slots, &given.slots, [blocks, block_size], params)?;
        let scale = |name: &str, given: Option<&VectorInput<'_>>, fp8: Option<Fp8>, heads: u32| {
            let len = if fp8.is_some_and(|fp8| fp8.per_head) { heads as usize } else { 1 };
            let f32s = NumberType::Element(DType::F32);
            optional(name, given.map(|s| &s.0), fp8.is_some(), f32s, len, self.place)
        };
        params.q_scale = scale("q_scale", given.q_scale.as_ref(), append.q, spec.num_heads)?;
        params.k_scale = scale("k_scale", given.k_scale.as_ref(), append.cache, spec.num_kv_heads)?;
        let v_fp8 = append.cache.filter(|_| append.v_head_dim > 0);
        params.v_scale = scale("v_scale", given.v_scale.as_ref(), v_fp8, spec.num_kv_heads)?;
        Ok(())
    }

    /// A cache must not lie where inputs are read from: which of them comes first is not said.
    fn apart(name: &str, cache: &Tensor<'_>, args: &Args<'_>, given: &AppendArgs<'_>) -> Result<()> {
        let inputs = [Some(&args.q.tensor), args.k.as_ref().map(|k| &k.tensor), given.v.as_ref().map(|v| &v.0)];
        let written = span(cache);
        for (input, what) in inputs.into_iter().zip(["q", "k", "v"]) {
            let Some(input) = input else { continue };
            let read = span(input);
            if written.0 < read.1 && read.0 < written.1 {
                return Err(Error::argument(name, format!("lies in the memory that {what} is read from")));
            }
        }
        Ok(())
    }

    fn slots(
        &self,
        form: SlotForm,
        given: &Slots<'_>,
        [blocks, block_size]: [usize; 2],
        params: &mut FusedParams,
    ) -> Result<()> {
        let slots = blocks as u64 * block_size as u64;
        if slots >= MOST_SLOTS {
            return Err(Error::new(ErrorKind::Unsupported, format!("a cache of {slots} slots: 2^31 is too many"))
                .subject_is("k_cache"));
        }
        params.slot_count = slots as u32;
        params.block_size = Divider::new(block_size as u32);
        let tokens = self.batch * self.tokens;
        match (form, given) {
            (SlotForm::SlotMapping, Slots::Mapping(slots)) => {
                params.slots = slots.0.expect("slot_mapping", NumberType::I64, tokens, self.place)?;
            }
            (SlotForm::Pages, Slots::Pages { kv_indices, kv_indptr, batch_indices, positions }) => {
                let i32s = |name: &str, vector: &VectorInput<'_>, len: usize| {
                    vector.0.expect(name, NumberType::I32, len, self.place)
                };
                params.kv_indices = i32s("kv_indices", kv_indices, kv_indices.0.len)?;
                params.kv_indptr = i32s("kv_indptr", kv_indptr, kv_indptr.0.len)?;
                params.batch_indices = i32s("batch_indices", batch_indices, tokens)?;
                params.slots = i32s("positions", positions, tokens)?;
                let few = |name: &str, n: usize| {
                    u32::try_from(n).ok().filter(|n| *n < 1 << 31).ok_or_else(|| {
                        Error::new(ErrorKind::Unsupported, format!("{n} numbers are too many")).subject_is(name)
                    })
                };
                params.requests = few("kv_indptr", kv_indptr.0.len)?.saturating_sub(1);
                params.pages = few("kv_indices", kv_indices.0.len)?;
            }
            _ => return Err(Error::argument("slots", format!("are of another form than the spec's ({form:?})"))),
        }
        Ok(())
    }
}

/// The first byte of a tensor and the one behind its last.
fn span(tensor: &Tensor<'_>) -> (i128, i128) {
    let (low, high) = tensor.layout.extent().unwrap_or_default();
    let at = |element: i64| i128::from(tensor.address()) + i128::from(element) * tensor.dtype.size() as i128;
    (at(low), at(high))
}

/// The address of a vector that must be there when it is wanted, and not otherwise.
fn optional(
    name: &str,
    vector: Option<&super::args::Vector<'_>>,
    wanted: bool,
    number: NumberType,
    len: usize,
    place: Location,
) -> Result<u64> {
    match vector {
        None if !wanted => Ok(0),
        None => Err(Error::argument(name, "is missing: the spec needs it")),
        Some(_) if !wanted => Err(Error::argument(name, "is given, and the spec has no use for it")),
        Some(vector) => vector.expect(name, number, len, place),
    }
}
