//! The arguments of a call.

#![allow(unsafe_code)]

use ropejit::args::{AppendArgs, NormArgs, NormGradient, SavedRsqrt, Slots, Vector, VectorInput};
use ropejit::rope::SlotForm;
use ropejit::{
    CuSeqlens, Direction, Error, ErrorKind, Input, Offsets, Operand, PositionForm, PositionIds, Positions, Result,
    RopeSpec, Tables, Tensor,
};

use crate::dlpack::DLTensor;
use crate::pointers::optional;
use crate::status::wrong;
use crate::view::{Order, Place, View};

/// The tensors and numbers of a call. Set all of it to 0 first: `ropejit_args args = {sizeof args};`. What the spec
/// does not ask for stays null. All tensors are the caller's: on a GPU they must live until the stream has passed the
/// call.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Args {
    /// `sizeof(ropejit_args)`: tells the library which header the program was compiled with.
    pub size: usize,
    /// 0: q and k are `[batch, tokens, heads, head_dim]` or `[tokens, heads, head_dim]`.
    /// 1: `[batch, heads, tokens, head_dim]`.
    pub heads_first: i32,
    /// The position of each sequence's first token, where the spec says `pos=implicit`.
    pub offset: i64,
    /// What turns: of a backward spec the gradient of the result.
    pub q: *const DLTensor,
    /// As q; null where the spec has no k.
    pub k: *const DLTensor,
    /// Where q goes, of the same shape, apart from q; null: it turns where it is.
    pub q_out: *const DLTensor,
    /// As `q_out`, for k.
    pub k_out: *const DLTensor,
    /// `[rows, width]` or `[batch, rows, width]`, contiguous rows.
    pub cos: *const DLTensor,
    /// As cos, with the same strides.
    pub sin: *const DLTensor,
    /// i32 or i64, `[tokens]` or `[batch, tokens]`, with three axes `[3, batch, tokens]`: for `pos=ids32`
    /// and `pos=ids64`.
    pub position_ids: *const DLTensor,
    /// i32 or i64, one a sequence: for `pos=offsets32`, `pos=offsets64`, and beside `cu_seqlens`.
    pub seqlen_offsets: *const DLTensor,
    /// i32 or i64, one more than there are sequences: for `pos=cu_seqlens` and `pos=cu_seqlens64`.
    pub cu_seqlens: *const DLTensor,
    /// With a norm: added to the mean of the squares.
    pub eps: f32,
    /// With a norm that has weights: `[head_dim]` of q's type.
    pub q_weight: *const DLTensor,
    /// As `q_weight`, for k.
    pub k_weight: *const DLTensor,
    /// With a norm: f32 `[batch, tokens, heads]`. A forward call writes the reciprocal roots where it is given, a
    /// backward call needs them.
    pub q_rsqrt: *const DLTensor,
    /// As `q_rsqrt`, for k.
    pub k_rsqrt: *const DLTensor,
    /// Backward through a norm: q as the forward call took it.
    pub q_input: *const DLTensor,
    /// As `q_input`, for k.
    pub k_input: *const DLTensor,
    /// Backward through a norm: where the gradient of q's weight goes, `[head_dim]` of q's type.
    pub q_weight_gradient: *const DLTensor,
    /// As `q_weight_gradient`, for k.
    pub k_weight_gradient: *const DLTensor,
    /// Backward through a norm that has weights: f32, as many as `ropejit_workspace` says.
    pub workspace: *const DLTensor,
    /// With a cache: the values, of the tokens of k.
    pub v: *const DLTensor,
    /// `[blocks, block_size, heads of k, k's head_dim]`: written.
    pub k_cache: *const DLTensor,
    /// `[blocks, block_size, heads of k, v's head_dim]`: written.
    pub v_cache: *const DLTensor,
    /// i64, one a token: for a cache of `slot_mapping`.
    pub slot_mapping: *const DLTensor,
    /// i32: for a cache of `pages`.
    pub kv_indices: *const DLTensor,
    /// i32: for a cache of `pages`.
    pub kv_indptr: *const DLTensor,
    /// i32, one a token: for a cache of `pages`.
    pub batch_indices: *const DLTensor,
    /// i32, one a token: for a cache of `pages`.
    pub positions: *const DLTensor,
    /// f32: where q is written as fp8.
    pub q_scale: *const DLTensor,
    /// f32: where the cache is of fp8.
    pub k_scale: *const DLTensor,
    /// f32: where the cache is of fp8, and there is v.
    pub v_scale: *const DLTensor,
}

/// Reads arguments for a spec on a device.
pub struct Reader<'a> {
    pub args: &'a Args,
    pub spec: &'a RopeSpec,
    pub place: Place,
}

impl Reader<'_> {
    /// # Safety
    /// Every tensor is what its `DLTensor` says: valid memory of the device for as long as the call needs it, written
    /// by no other meanwhile, and where it is written also not read. Those that are written do not meet others.
    pub unsafe fn read(&self) -> Result<ropejit::Args<'static>> {
        let Self { args, spec, .. } = self;
        if args.size != size_of::<Args>() {
            let what = format!("is {}, {} is sizeof(ropejit_args)", args.size, size_of::<Args>());
            return Err(wrong("size", what));
        }
        if spec.angles.is_some() {
            let what = "specs whose angles are the engine's own have no call in C: pass cos and sin";
            return Err(Error::new(ErrorKind::Unsupported, what).subject_is("spec"));
        }
        let order = match args.heads_first {
            0 => Order::TokensFirst,
            1 => Order::HeadsFirst,
            other => return Err(wrong("heads_first", format!("is {other}, 0 or 1 is needed"))),
        };
        let read_only = spec.append.is_some();
        // SAFETY: this function's contract, here and below.
        unsafe {
            let Some(q) = self.operand(["q", "q_out"], [args.q, args.q_out], order, false)? else {
                return Err(wrong("q", "is null"));
            };
            let k = self.operand(["k", "k_out"], [args.k, args.k_out], order, read_only)?;
            let q_shape = self.needed("q", args.q)?.layout(order)?.shape;
            Ok(ropejit::Args {
                q,
                k,
                tables: self.tables(q_shape[0])?,
                positions: self.positions(q_shape)?,
                norm: if spec.norm.is_some() { Some(self.norm(order)?) } else { None },
                append: if read_only { Some(self.append(order)?) } else { None },
            })
        }
    }

    /// # Safety
    /// As [`Reader::read`].
    unsafe fn view<'v>(&self, name: &'v str, tensor: *const DLTensor) -> Result<Option<View<'v>>> {
        // SAFETY: this function's contract.
        unsafe {
            let tensor = optional(name, tensor)?;
            tensor.map(|tensor| View::of(name, tensor, self.place)).transpose()
        }
    }

    /// # Safety
    /// As [`Reader::read`].
    unsafe fn needed<'v>(&self, name: &'v str, tensor: *const DLTensor) -> Result<View<'v>> {
        // SAFETY: this function's contract.
        unsafe { self.view(name, tensor) }?.ok_or_else(|| wrong(name, "is null, and the spec needs it"))
    }

    /// # Safety
    /// As [`Reader::read`].
    unsafe fn vector(&self, name: &str, tensor: *const DLTensor) -> Result<Option<Vector<'static>>> {
        // SAFETY: this function's contract.
        unsafe { self.view(name, tensor)?.map(|view| view.vector()).transpose() }
    }

    /// # Safety
    /// As [`Reader::read`].
    unsafe fn vector_input(&self, name: &str, tensor: *const DLTensor) -> Result<Option<VectorInput<'static>>> {
        // SAFETY: this function's contract.
        Ok(unsafe { self.vector(name, tensor) }?.map(Into::into))
    }

    /// # Safety
    /// As [`Reader::read`].
    unsafe fn needed_vector(&self, name: &str, tensor: *const DLTensor) -> Result<VectorInput<'static>> {
        // SAFETY: this function's contract.
        unsafe { self.needed(name, tensor)?.vector() }.map(Into::into)
    }

    /// # Safety
    /// As [`Reader::read`].
    unsafe fn tensor(&self, name: &str, tensor: *const DLTensor, order: Order) -> Result<Option<Tensor<'static>>> {
        // SAFETY: this function's contract.
        unsafe {
            let Some(view) = self.view(name, tensor)? else { return Ok(None) };
            Ok(Some(Tensor::from_raw(view.address, view.element()?, view.layout(order)?)))
        }
    }

    /// # Safety
    /// As [`Reader::read`].
    unsafe fn operand(
        &self,
        [name, out_name]: [&str; 2],
        [input, output]: [*const DLTensor; 2],
        order: Order,
        read_only: bool,
    ) -> Result<Option<Operand<'static>>> {
        // SAFETY: this function's contract.
        let (input, output) = unsafe { (self.tensor(name, input, order)?, self.tensor(out_name, output, order)?) };
        match (input, output) {
            (None, None) => Ok(None),
            (None, Some(_)) => Err(wrong(name, "is null, and its output is not")),
            (Some(input), None) if read_only => Ok(Some(Operand::read_only(input))),
            (Some(input), None) => Ok(Some(Operand::in_place(input))),
            (Some(input), Some(output)) => Ok(Some(Operand::out_of_place(input, output))),
        }
    }

    /// # Safety
    /// As [`Reader::read`].
    unsafe fn tables(&self, batch: usize) -> Result<Tables<'static>> {
        // SAFETY: this function's contract.
        let (cos, sin) = unsafe { (self.needed("cos", self.args.cos)?, self.needed("sin", self.args.sin)?) };
        if cos.dims() != sin.dims() || cos.number != sin.number {
            return Err(wrong("sin", "has another type, shape or other strides than cos"));
        }
        let (rows, width, strides) = match cos.dims() {
            (&[rows, width], &[row, last]) if width < 2 || last == 1 => (rows, width, [0, row]),
            (&[1, rows, width], &[_, row, last]) if width < 2 || last == 1 => (rows, width, [0, row]),
            (&[b, rows, width], &[sequence, row, last]) if b as usize == batch && (width < 2 || last == 1) => {
                (rows, width, [sequence, row])
            }
            _ => return Err(cos.wrong("[rows, width] or [batch, rows, width] with contiguous rows")),
        };
        let (dtype, width) = (cos.element()?, width as usize);
        // SAFETY: as above; both have these rows and strides.
        Ok(unsafe { Tables::from_raw(cos.address, sin.address, dtype, rows as usize, width, strides) })
    }

    /// # Safety
    /// As [`Reader::read`].
    unsafe fn positions(&self, [batch, tokens, ..]: [usize; 4]) -> Result<Positions<'static>> {
        let args = self.args;
        let numbers = |name, tensor, len: Option<usize>| {
            // SAFETY: this function's contract.
            let view = unsafe { self.needed(name, tensor) }?;
            // SAFETY: as above.
            unsafe { view.vector() }?;
            let count = view.dims().0.iter().product::<i64>() as usize;
            if len.is_some_and(|len| len != count) {
                return Err(view.wrong(&format!("[{}]", len.unwrap_or_default())));
            }
            Ok((view.wide()?, view.address, count))
        };
        match self.spec.positions {
            PositionForm::Implicit => Ok(Positions::Offset(args.offset)),
            PositionForm::Ids32 | PositionForm::Ids64 => {
                // SAFETY: this function's contract.
                let ids = unsafe { self.needed("position_ids", args.position_ids) }?;
                let own = |b: i64| b == 1 || b as usize == batch;
                let repeats = |b: i64, stride: i64| if b == 1 { 0 } else { stride };
                let strides = match (ids.dims(), self.spec.mrope.is_some()) {
                    ((&[t], &[token]), false) if t as usize == tokens => [0, 0, token],
                    ((&[b, t], &[sequence, token]), false) if t as usize == tokens && own(b) => {
                        [0, repeats(b, sequence), token]
                    }
                    ((&[3, b, t], &[axis, sequence, token]), true) if t as usize == tokens && own(b) => {
                        [axis, repeats(b, sequence), token]
                    }
                    (_, true) => return Err(ids.wrong(&format!("[3, {batch}, {tokens}]"))),
                    (_, false) => return Err(ids.wrong(&format!("[{tokens}] or [{batch}, {tokens}]"))),
                };
                // SAFETY: as above; its shape is that of the tokens, or repeats.
                Ok(Positions::Ids(unsafe { PositionIds::from_raw(ids.address, ids.wide()?, strides) }))
            }
            PositionForm::Offsets32 | PositionForm::Offsets64 => {
                let (wide, address, _) = numbers("seqlen_offsets", args.seqlen_offsets, Some(batch))?;
                // SAFETY: as above; there is one a sequence.
                Ok(Positions::Offsets(unsafe { Offsets::from_raw(address, wide) }))
            }
            PositionForm::CuSeqlens | PositionForm::CuSeqlens64 => {
                let (wide, address, count) = numbers("cu_seqlens", args.cu_seqlens, None)?;
                let Some(sequences) = count.checked_sub(1) else { return Err(wrong("cu_seqlens", "is empty")) };
                let mut offsets = None;
                if !args.seqlen_offsets.is_null() {
                    let (wide, address, _) = numbers("seqlen_offsets", args.seqlen_offsets, Some(sequences))?;
                    // SAFETY: as above; there is one a sequence.
                    offsets = Some(unsafe { Offsets::from_raw(address, wide) });
                }
                // SAFETY: as above.
                let cu_seqlens = unsafe { CuSeqlens::from_raw(address, wide, sequences) };
                Ok(Positions::Packed { cu_seqlens, offsets })
            }
        }
    }

    /// # Safety
    /// As [`Reader::read`].
    unsafe fn norm(&self, order: Order) -> Result<NormArgs<'static>> {
        let args = self.args;
        // SAFETY: this function's contract.
        unsafe {
            let rsqrt = self.vector("q_rsqrt", args.q_rsqrt)?;
            let k_rsqrt = self.vector("k_rsqrt", args.k_rsqrt)?;
            let mut gradient = None;
            if self.spec.direction == Direction::Backward {
                let Some(q) = self.tensor("q_input", args.q_input, order)? else {
                    return Err(wrong("q_input", "is null, and a backward norm needs it"));
                };
                gradient = Some(NormGradient {
                    q: Input::from(q),
                    k: self.tensor("k_input", args.k_input, order)?.map(Input::from),
                    q_weight: self.vector("q_weight_gradient", args.q_weight_gradient)?,
                    k_weight: self.vector("k_weight_gradient", args.k_weight_gradient)?,
                    workspace: self.vector("workspace", args.workspace)?,
                });
            }
            Ok(NormArgs {
                eps: args.eps,
                q_weight: self.vector_input("q_weight", args.q_weight)?,
                k_weight: self.vector_input("k_weight", args.k_weight)?,
                rsqrt: rsqrt.map(|q| SavedRsqrt { q, k: k_rsqrt }),
                gradient,
            })
        }
    }

    /// # Safety
    /// As [`Reader::read`].
    unsafe fn append(&self, order: Order) -> Result<AppendArgs<'static>> {
        let args = self.args;
        // SAFETY: this function's contract.
        unsafe {
            let Some(k_cache) = self.tensor("k_cache", args.k_cache, Order::TokensFirst)? else {
                return Err(wrong("k_cache", "is null, and the spec appends to it"));
            };
            let slots = match self.spec.append.map(|append| append.slots) {
                Some(SlotForm::Pages) => Slots::Pages {
                    kv_indices: self.needed_vector("kv_indices", args.kv_indices)?,
                    kv_indptr: self.needed_vector("kv_indptr", args.kv_indptr)?,
                    batch_indices: self.needed_vector("batch_indices", args.batch_indices)?,
                    positions: self.needed_vector("positions", args.positions)?,
                },
                _ => Slots::Mapping(self.needed_vector("slot_mapping", args.slot_mapping)?),
            };
            Ok(AppendArgs {
                v: self.tensor("v", args.v, order)?.map(Input::from),
                k_cache,
                v_cache: self.tensor("v_cache", args.v_cache, Order::TokensFirst)?,
                slots,
                q_scale: self.vector_input("q_scale", args.q_scale)?,
                k_scale: self.vector_input("k_scale", args.k_scale)?,
                v_scale: self.vector_input("v_scale", args.v_scale)?,
            })
        }
    }
}
