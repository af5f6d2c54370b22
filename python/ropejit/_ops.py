"""Operators of ``torch.library``: what a tracer, a compiler or a subclass of tensors sees. Eager calls do not come here."""

import torch

from ._ropejit import rotate_plain

_Maybe = torch.Tensor | None  # the types below are the operators' schemas


def _pick(offsets, offset):
    return offset if offsets is None else offsets


@torch.library.custom_op("ropejit::rotate", mutates_args=())
def rotate(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, position_ids: _Maybe, cu_seqlens: _Maybe,
    offsets: _Maybe, offset: int | None, interleaved: bool, rotary_dim: int | None, layout: str, rounding: str,
    backward: bool,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """q and k, rotated."""
    return rotate_plain(
        q, k, cos, sin, position_ids, cu_seqlens, _pick(offsets, offset), interleaved, rotary_dim, layout, rounding,
        backward, False,
    )  # fmt: skip


@torch.library.custom_op("ropejit::rotate_one", mutates_args=())
def rotate_one(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, position_ids: _Maybe, cu_seqlens: _Maybe,
    offsets: _Maybe, offset: int | None, interleaved: bool, rotary_dim: int | None, layout: str, rounding: str,
    backward: bool,
) -> torch.Tensor:  # fmt: skip
    """x, rotated."""
    return rotate_plain(
        x, None, cos, sin, position_ids, cu_seqlens, _pick(offsets, offset), interleaved, rotary_dim, layout, rounding,
        backward, False,
    )[0]  # fmt: skip


@torch.library.custom_op("ropejit::rotate_", mutates_args=("q", "k"))
def rotate_(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, position_ids: _Maybe, cu_seqlens: _Maybe,
    offsets: _Maybe, offset: int | None, interleaved: bool, rotary_dim: int | None, layout: str, rounding: str,
) -> None:  # fmt: skip
    """Rotates q and k where they are."""
    rotate_plain(
        q, k, cos, sin, position_ids, cu_seqlens, _pick(offsets, offset), interleaved, rotary_dim, layout, rounding,
        False, True,
    )  # fmt: skip


@torch.library.custom_op("ropejit::rotate_one_", mutates_args=("x",))
def rotate_one_(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, position_ids: _Maybe, cu_seqlens: _Maybe,
    offsets: _Maybe, offset: int | None, interleaved: bool, rotary_dim: int | None, layout: str, rounding: str,
) -> None:  # fmt: skip
    """Rotates x where it is."""
    rotate_plain(
        x, None, cos, sin, position_ids, cu_seqlens, _pick(offsets, offset), interleaved, rotary_dim, layout, rounding,
        False, True,
    )  # fmt: skip


def _like(x):
    # As the kernel's output: where the last dimension is not contiguous, the kernel gets a copy.
    return torch.empty_like(x if x.stride(-1) == 1 else x.contiguous())


@rotate.register_fake
def _(q, k, *_):
    return _like(q), _like(k)


@rotate_one.register_fake
def _(x, *_):
    return _like(x)


@rotate_.register_fake
def _(q, k, *_):
    return None


@rotate_one_.register_fake
def _(x, *_):
    return None


def _setup(ctx, inputs, output):
    at = len(inputs) - 11  # where the tables begin: behind q and k, or behind x
    ctx.save_for_backward(*inputs[at : at + 5])
    ctx.rest = inputs[at + 5 : -1]
    ctx.turned_back = inputs[-1]


def _backward(ctx, grad_q, grad_k):
    grads = torch.ops.ropejit.rotate(grad_q, grad_k, *ctx.saved_tensors, *ctx.rest, not ctx.turned_back)
    return *grads, *(None,) * 11


def _backward_one(ctx, grad):
    grad = torch.ops.ropejit.rotate_one(grad, *ctx.saved_tensors, *ctx.rest, not ctx.turned_back)
    return grad, *(None,) * 11


rotate.register_autograd(_backward, setup_context=_setup)
rotate_one.register_autograd(_backward_one, setup_context=_setup)


def apply(q, k, cos, sin, position_ids, cu_seqlens, offset, interleaved, rotary_dim, layout, rounding, inplace):
    """The call as operators."""
    offsets, offset = (offset, None) if isinstance(offset, torch.Tensor) else (None, offset)
    rest = (cos, sin, position_ids, cu_seqlens, offsets, offset, interleaved, rotary_dim, layout, rounding)
    recorded = torch.is_grad_enabled() and (q.requires_grad or (k is not None and k.requires_grad))
    if inplace and not recorded:
        if k is None:
            torch.ops.ropejit.rotate_one_(q, *rest)
        else:
            torch.ops.ropejit.rotate_(q, k, *rest)
        return q, k
    if k is None:
        out = (torch.ops.ropejit.rotate_one(q, *rest, False), None)
    else:
        out = torch.ops.ropejit.rotate(q, k, *rest, False)
    if inplace:
        # Operators that write have no gradient; a copy has.
        return q.copy_(out[0]), k if k is None else k.copy_(out[1])
    return out


_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def drop_in(q, k, cos, sin, unsqueeze_dim, interleaved, half, rounding):
    """As the native function of this name: None where the kernels do not compute what the model's function would."""
    if unsqueeze_dim not in (1, 2) or q.ndim != 4 or cos.ndim != 3 or q.dtype not in _FLOATS:
        return None
    if cos.requires_grad or sin.requires_grad or cos.shape != sin.shape or cos.dtype != sin.dtype:
        return None
    tokens, heads = (2, 1) if unsqueeze_dim == 1 else (1, 2)
    batch, rows, width = cos.shape
    width = 2 * width if half else width
    for x in (q,) if k is None else (q, k):
        if x.ndim != 4 or x.dtype != q.dtype or x.device != cos.device or x.shape[-1] != q.shape[-1]:
            return None
        if batch not in (1, x.shape[0]) or rows != x.shape[tokens] or not 1 <= x.shape[heads] <= 65536:
            return None
    head_dim = q.shape[-1]
    if width % 2 or head_dim % 2 or not 2 <= width <= head_dim <= 512 or q.device.type not in ("cpu", "cuda"):
        return None
    if k is not None and k.shape[0] != q.shape[0]:
        return None
    same = cos.dtype == q.dtype
    if rounding == "promoted" and not same and torch.is_grad_enabled() and (q.requires_grad or k is not None and k.requires_grad):
        return None  # eager rounds each product of the gradient, and only those
    if rounding in ("per_op", "promoted") and same:
        rounding = "per_op"
    elif rounding in ("promoted", "once") and (same or cos.dtype == torch.float32):
        rounding = "once"
    else:
        return None
    layout = "bhsd" if unsqueeze_dim == 1 else "bshd"
    return apply(q, k, cos, sin, None, None, None, interleaved, width, layout, rounding, False)
