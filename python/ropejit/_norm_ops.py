"""Operators of ``torch.library`` for `qk_norm_rope`: what a tracer, a compiler or a subclass of tensors sees."""

import torch

from . import _ropejit, _tensors
from ._norm_autograd import Gradients, refuse_in_place, room, wants
from ._ops import _like, _tables_are_constant

_Maybe = torch.Tensor | None  # the types below are the operators' schemas
_NAMES = ("q", "k", "q_weight", "k_weight", "cos", "sin", "position_ids", "cu_seqlens")


def _read(out, names, tensors):
    if out is None:
        _tensors.refuse(*tensors, names=names)
        raise ValueError(f"{names[0]}: PyTorch gave a tensor to the operator whose memory cannot be read, or such another one")
    return out


def _or_nothing(x, like):
    """An operator returns tensors: what is absent has no element."""
    return like.new_empty(0) if x is None else x


@torch.library.custom_op("ropejit::qk_norm_rope", mutates_args=())
def norm_op(
    q: torch.Tensor, k: _Maybe, q_weight: _Maybe, k_weight: _Maybe, cos: torch.Tensor, sin: torch.Tensor,
    position_ids: _Maybe, cu_seqlens: _Maybe, eps: float, flavour: str, order: str, rsqrt: str | None, after_rope: bool,
    style: str, rotary_dim: int | None, layout: str, rounding: str, saves: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """q and k, normalised and rotated, and the reciprocal roots where ``saves``."""
    tensors = (q, k, q_weight, k_weight, cos, sin, position_ids, cu_seqlens)
    saved = room(q, k) if saves else None
    out = _ropejit.norm_plain(
        *tensors, eps, flavour, order, rsqrt, after_rope, style, rotary_dim, layout, rounding, False, saved
    )
    out_q, out_k = _read(out, _NAMES, tensors)
    return out_q, _or_nothing(out_k, q), cos.new_empty(0, dtype=torch.float32) if saved is None else saved


@torch.library.custom_op("ropejit::qk_norm_rope_", mutates_args=("q", "k"))
def norm_op_(
    q: torch.Tensor, k: _Maybe, q_weight: _Maybe, k_weight: _Maybe, cos: torch.Tensor, sin: torch.Tensor,
    position_ids: _Maybe, cu_seqlens: _Maybe, eps: float, flavour: str, order: str, rsqrt: str | None, after_rope: bool,
    style: str, rotary_dim: int | None, layout: str, rounding: str,
) -> None:  # fmt: skip
    """Normalises and rotates q and k where they are."""
    tensors = (q, k, q_weight, k_weight, cos, sin, position_ids, cu_seqlens)
    out = _ropejit.norm_plain(
        *tensors, eps, flavour, order, rsqrt, after_rope, style, rotary_dim, layout, rounding, True, None
    )
    _read(out, _NAMES, tensors)


@torch.library.custom_op("ropejit::qk_norm_rope_backward", mutates_args=())
def norm_backward_op(
    grad_q: torch.Tensor, grad_k: _Maybe, q: torch.Tensor, k: _Maybe, q_weight: _Maybe, k_weight: _Maybe,
    cos: torch.Tensor, sin: torch.Tensor, position_ids: _Maybe, cu_seqlens: _Maybe, saved: torch.Tensor, eps: float,
    flavour: str, order: str, rsqrt: str | None, after_rope: bool, style: str, rotary_dim: int | None, layout: str,
    rounding: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """The gradients of q, k and their weights."""
    tensors = (grad_q, grad_k, q, k, q_weight, k_weight, cos, sin, position_ids, cu_seqlens, saved)
    out = _ropejit.norm_backward(
        *tensors, eps, flavour, order, rsqrt, after_rope, style, rotary_dim, layout, rounding
    )
    names = ("the gradient of q", "the gradient of k", *_NAMES, "saved")
    return tuple(_or_nothing(x, q) for x in _read(out, names, tensors))


@norm_op.register_fake
def _(q, k, q_weight, k_weight, cos, *rest):
    saved = room(q, k) if rest[-1] else cos.new_empty(0, dtype=torch.float32)
    return _like(q), _or_nothing(None if k is None else _like(k), q), saved


@norm_op_.register_fake
def _(*_):
    return None


@norm_backward_op.register_fake
def _(grad_q, grad_k, q, k, q_weight, k_weight, *_):
    out = (_like(grad_q), *(None if x is None else _like(x) for x in (grad_k, q_weight, k_weight)))
    return tuple(_or_nothing(x, q) for x in out)


def _setup(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:8], output[2])
    ctx.form = inputs[8:-1]
    ctx.mark_non_differentiable(output[2])


def _backward(ctx, grad_q, grad_k, _):
    q, k, q_weight, k_weight, *rest = ctx.saved_tensors
    grads = torch.ops.ropejit.qk_norm_rope_backward(
        grad_q, None if k is None else grad_k, q, k, q_weight, k_weight, *rest, *ctx.form
    )
    present = (None if x is None else grad for x, grad in zip((q, k, q_weight, k_weight), grads, strict=True))
    return *present, *(None,) * 14


norm_op.register_autograd(_backward, setup_context=_setup)
norm_backward_op.register_autograd(Gradients.backward)


def dispatched(q, k, *rest):
    """The call for tensors that the dispatcher has to resolve, without autograd; with the reciprocal roots."""
    _tensors.refuse(q, k, *rest[:6], names=_NAMES)
    out_q, out_k, saved = torch.ops.ropejit.qk_norm_rope(q, k, *rest, True)
    return out_q, None if k is None else out_k, saved


def dispatched_backward(grad_q, grad_k, q, k, q_weight, k_weight, *rest):
    """The same for the gradients."""
    grads = torch.ops.ropejit.qk_norm_rope_backward(grad_q, grad_k, q, k, q_weight, k_weight, *rest)
    return tuple(None if x is None else grad for x, grad in zip((q, k, q_weight, k_weight), grads, strict=True))


def qk_norm_rope(q, k, q_weight, k_weight, cos, sin, *rest):
    """The call as operators."""
    *rest, inplace = rest
    _tables_are_constant(cos, sin)
    recorded = torch.is_grad_enabled()
    needs = [recorded and x is not None and x.requires_grad for x in (q, k, q_weight, k_weight)]
    recorded = any(needs)
    if inplace:
        if q is k:
            raise ValueError("k: is q, and in place it would be turned twice: pass a copy")
        refuse_in_place(recorded, q=q, k=k, q_weight=q_weight, k_weight=k_weight)
        torch.ops.ropejit.qk_norm_rope_(q, k, q_weight, k_weight, cos, sin, *rest)
        return q, k
    out_q, out_k, _ = torch.ops.ropejit.qk_norm_rope(q, k, q_weight, k_weight, cos, sin, *rest, recorded)
    of_q, of_k = wants(needs)
    if recorded and not of_q:  # an operator's outputs require a gradient all or none
        out_q = out_q.detach()
    if k is None:
        return out_q, None
    return out_q, out_k.detach() if recorded and not of_k else out_k


def norm_of_any_tensors(*arguments):
    """The same where the native function may not launch: somebody watches, or tensors are of a subclass, or do not lie in memory
    as they are."""
    tensors = arguments[:8]
    _tensors.refuse(*tensors, names=_NAMES)
    if _tensors.is_transformed(*tensors):
        _tensors.refuse_transforms("qk_norm_rope")
    if not arguments[-1]:
        return qk_norm_rope(*arguments)
    _tensors.refuse_constant(*tensors[:2])
    if not _tensors.is_copied_back(*tensors[:2]):
        return qk_norm_rope(*arguments)
    # Operators that write have no rule for functional tensors and negated views; a copy has.
    out = qk_norm_rope(*arguments[:-1], False)
    return tuple(x if x is None else x.copy_(y) for x, y in zip(tensors[:2], out, strict=True))
