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


#: How q's dimensions are meant, by the ranks of q and cos and by how far from the right cos is unsqueezed: the layout, and
#: which dimensions are tokens and heads.
_ORDERS = {
    (4, 3, 2): ("bhsd", 2, 1), (4, 2, 2): ("bhsd", 2, 1), (4, 3, 1): ("bshd", 1, 2), (4, 2, 1): ("bshd", 1, 2),
    (3, 2, 1): ("thd", 0, 1),
}  # fmt: skip


def drop_in(q, k, cos, sin, unsqueeze_dim, interleaved, tables, partial, rounding):
    """As the native function of this name: None where the kernels do not compute what the model's function would."""
    both = (q,) if k is None else (q, k)
    if type(unsqueeze_dim) is not int or not all(isinstance(x, torch.Tensor) for x in (*both, cos, sin)):
        return None
    unsqueezed = unsqueeze_dim + cos.ndim + 1 if unsqueeze_dim < 0 else unsqueeze_dim
    order = _ORDERS.get((q.ndim, cos.ndim, cos.ndim - unsqueezed))
    if order is None or q.dtype not in _FLOATS or q.device.type not in ("cpu", "cuda"):
        return None
    if cos.requires_grad or sin.requires_grad or cos.shape != sin.shape or cos.dtype != sin.dtype:
        return None
    layout, tokens, heads = order
    rows, width = cos.shape[-2:]
    if cos.device != q.device or sin.device != q.device or rows != q.shape[tokens]:
        return None
    if cos.ndim == 3 and cos.shape[0] not in (1, q.shape[0]):
        return None
    # A part of a wider row need not have equal halves.
    if tables == "full" and rows > 1 and not cos.stride(-2) == sin.stride(-2) == width:
        return None
    width = 2 * width if tables == "half" else width
    head_dim = q.shape[-1]
    if width % 2 or head_dim % 2 or not 2 <= width <= head_dim <= 512 or not (partial or width == head_dim):
        return None
    for x in both:
        if x.ndim != q.ndim or x.dtype != q.dtype or x.device != q.device or not 1 <= x.shape[heads] <= 65536:
            return None
        if any(x.shape[i] != q.shape[i] for i in range(q.ndim) if i != heads):
            return None
    same = cos.dtype == q.dtype
    if rounding in ("promoted", "once_each") and q.dtype != torch.float32 and (not same or rounding == "once_each"):
        if torch.is_grad_enabled() and any(x.requires_grad for x in both):
            return None  # eager rounds some steps of the gradient, and the operators one way only
    if rounding in ("per_op", "promoted") and same:
        rounding = "per_op"
    elif rounding != "per_op" and (same or cos.dtype == torch.float32):
        rounding = "once"
    else:
        return None
    if tables == "twice":
        cos, sin = cos[..., ::2], sin[..., ::2]  # neighbours are equal
    return apply(q, k, cos, sin, None, None, None, interleaved, width, layout, rounding, False)
