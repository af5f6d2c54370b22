"""Gradients of functions that cast q once for each of their two products, as ESM's do."""

import torch

from ._ropejit import rotate_plain


def _rowwise(gradient):
    return gradient if gradient is None or gradient.stride(-1) == 1 else gradient.contiguous()


class RotateEach(torch.autograd.Function):
    """Computes in float32 and rounds once. Autograd undoes each cast by itself: it rounds both parts of the gradient and their
    sum, which is ``per_op``. The gradient of that gradient comes to one cast again, so the contract changes with the direction.
    """

    @staticmethod
    def forward(ctx, q, k, cos, sin, form, backward):
        ctx.save_for_backward(cos, sin)
        ctx.form, ctx.backward = form, backward
        ctx.set_materialize_grads(False)
        rounding = "per_op" if backward else "once"
        out = rotate_plain(q, k, cos, sin, None, None, None, *form, rounding, backward, False)
        still = [x for x, needed in zip(out, ctx.needs_input_grad) if x is not None and not needed]
        ctx.mark_non_differentiable(*still)
        return out

    @staticmethod
    def backward(ctx, grad_q, grad_k):
        rest = (*ctx.saved_tensors, ctx.form, not ctx.backward)
        grad_q, grad_k = _rowwise(grad_q), _rowwise(grad_k)
        if grad_q is not None:
            grad_q, grad_k = RotateEach.apply(grad_q, grad_k, *rest)
        elif grad_k is not None:
            grad_k, _ = RotateEach.apply(grad_k, None, *rest)
        return grad_q, grad_k, None, None, None, None


def apply(q, k, cos, sin, interleaved, rotary_dim, layout):
    """The native function calls this where autograd has to know."""
    return RotateEach.apply(q, k, cos, sin, (interleaved, rotary_dim, layout), False)
