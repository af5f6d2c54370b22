"""Gradients of `qk_norm_rope` in eager mode."""

import torch

from . import _ropejit, _tensors

_transform = torch._C._functorch.maybe_current_level
_unwrapped = torch._C._functorch.unwrap_if_dead


class NormRotate(torch.autograd.Function):
    """q and k, normalised and rotated. What is kept is q, k and a reciprocal root a head."""

    @staticmethod
    def forward(ctx, q, k, q_weight, k_weight, rest):
        saved = room(q, k)
        out = _ropejit.norm_plain(q, k, q_weight, k_weight, *rest, False, saved)
        if out is None:
            from . import _norm_ops

            *out, saved = _norm_ops.dispatched(q, k, q_weight, k_weight, *rest)
        *tables, eps, flavour, order, rsqrt, after_rope, style, rotary_dim, layout, rounding = rest
        ctx.save_for_backward(q, k, q_weight, k_weight, *tables, saved)
        ctx.form = (eps, flavour, order, rsqrt, after_rope, style, rotary_dim, layout, rounding)
        ctx.set_materialize_grads(False)
        wanted = wants(ctx.needs_input_grad)
        if k is not None and not all(wanted):
            # What is made of a k that wants no gradient wants none: a cache that keeps it would keep the graph.
            ctx.mark_non_differentiable(out[1] if wanted[0] else out[0])
        return tuple(out)

    @staticmethod
    def backward(ctx, grad_q, grad_k):
        of_q, of_k = wants(ctx.needs_input_grad)
        arguments = (grad_q if of_q else None, grad_k if of_k else None, *ctx.saved_tensors, ctx.form)
        grads = Gradients.apply(*arguments) if torch.is_grad_enabled() else gradients(*arguments)
        return *grads, None


#: As `_rotate` of `_autograd`.
_norm_rotate = super(torch.autograd.Function, NormRotate).apply


class Gradients(torch.autograd.Function):
    """The gradients where somebody may ask for a gradient of them, which there is not."""

    @staticmethod
    def forward(ctx, *arguments):
        return gradients(*arguments)

    @staticmethod
    def backward(ctx, *_):
        raise NotImplementedError(
            "qk_norm_rope has no second derivative; hint: differentiate the norm in PyTorch and rotate with ropejit.apply"
        )


def wants(needs):
    """Whether q or its weight, and whether k or its weight, want a gradient."""
    return needs[0] or needs[2], needs[1] or needs[3]


def room(q, k):
    """Where the reciprocal roots go: those of q, then those of k."""
    return q.new_empty(heads(q) + (0 if k is None else heads(k)), dtype=torch.float32)


def heads(x):
    return x.numel() // max(x.shape[-1], 1)


def gradients(grad_q, grad_k, q, k, q_weight, k_weight, cos, sin, position_ids, cu_seqlens, saved, form):
    """Of q, k and their weights. What nobody asks for costs nothing."""
    rest = (cos, sin, position_ids, cu_seqlens)
    if grad_q is not None and (k is None or grad_k is not None):
        return _launched(grad_q, grad_k, q, k, q_weight, k_weight, *rest, saved, *form)
    if grad_q is not None:
        grad, _, of_weight, _ = _launched(grad_q, None, q, None, q_weight, None, *rest, saved[: heads(q)], *form)
        return grad, None, of_weight, None
    if grad_k is not None:
        grad, _, of_weight, _ = _launched(grad_k, None, k, None, k_weight, None, *rest, saved[heads(q) :], *form)
        return None, grad, None, of_weight
    return None, None, None, None


def _launched(*arguments):
    out = _ropejit.norm_backward(*arguments)
    if out is None:  # gradients come as they like: zero tensors, negated views
        from . import _norm_ops

        return _norm_ops.dispatched_backward(*arguments)
    return out


def qk_norm_rope(q, k, q_weight, k_weight, *rest):
    """The native function calls this where autograd has to know."""
    *rest, inplace = rest
    refuse_in_place(inplace, q=q, k=k, q_weight=q_weight, k_weight=k_weight)
    if _transform() is not None:
        _tensors.refuse_transforms("qk_norm_rope")
    q, k, q_weight, k_weight = (x if x is None else _unwrapped(x) for x in (q, k, q_weight, k_weight))
    return _norm_rotate(q, k, q_weight, k_weight, rest)


def refuse_in_place(inplace, **tensors):
    """Raises, by name, for what wants a gradient and would be written in place."""
    for name, x in tensors.items() if inplace else ():
        if x is not None and x.requires_grad:
            raise ValueError(
                f"{name}: requires a gradient, and inplace=True would overwrite what the backward pass needs; hint: leave"
                " inplace out, or call it under torch.no_grad()"
            )
