"""Gradients in eager mode. The gradient of a rotation is the rotation back, so a backward pass is one more launch."""

import torch

from ._ropejit import rotate_plain


def _rowwise(gradient):
    # Gradients of sums are expanded: all elements in one place.
    return gradient if gradient is None or gradient.stride(-1) == 1 else gradient.contiguous()


class Rotate(torch.autograd.Function):
    """Rotates q and k. Only an in-place call writes to them, and gradients are never written to."""

    @staticmethod
    def forward(ctx, q, k, cos, sin, position_ids, cu_seqlens, offset, form, backward, inplace):
        tensors = (cos, sin, position_ids, cu_seqlens)
        offset_is_tensor = isinstance(offset, torch.Tensor)
        ctx.save_for_backward(*tensors, offset if offset_is_tensor else None)
        ctx.offset = None if offset_is_tensor else offset
        ctx.form, ctx.backward = form, backward
        ctx.set_materialize_grads(False)
        if inplace:
            ctx.mark_dirty(*(x for x in (q, k) if x is not None))
        return rotate_plain(q, k, *tensors, offset, *form, backward, inplace)

    @staticmethod
    def backward(ctx, grad_q, grad_k):
        *tensors, offset = ctx.saved_tensors
        rest = (*tensors, ctx.offset if offset is None else offset, ctx.form, not ctx.backward, False)
        grad_q, grad_k = _rowwise(grad_q), _rowwise(grad_k)
        # Through `Rotate` again: it records itself where a gradient of the gradient is wanted.
        if grad_q is not None:
            grad_q, grad_k = Rotate.apply(grad_q, grad_k, *rest)
        elif grad_k is not None:
            grad_k, _ = Rotate.apply(grad_k, None, *rest)
        return (grad_q, grad_k) + (None,) * 8


def apply(q, k, cos, sin, position_ids, cu_seqlens, offset, interleaved, rotary_dim, layout, rounding, inplace):
    """The native function calls this where autograd has to know."""
    form = (interleaved, rotary_dim, layout, rounding)
    return Rotate.apply(q, k, cos, sin, position_ids, cu_seqlens, offset, form, False, inplace)
