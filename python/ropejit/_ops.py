"""Operators of ``torch.library``: what a tracer, a compiler or a subclass of tensors sees. Eager calls do not come here."""

import torch

from . import _tensors
from ._ropejit import rotate_plain

_Maybe = torch.Tensor | None  # the types below are the operators' schemas


def _launched(q, k, cos, sin, position_ids, cu_seqlens, offsets, offset, *rest):
    tensors = (q, k, cos, sin, position_ids, cu_seqlens, offset if offsets is None else offsets)
    out = rotate_plain(*tensors, *rest)
    if out is None:
        _tensors.refuse(*tensors)
        raise ValueError("q: PyTorch gave a tensor to the operator whose memory cannot be read, or such a k, table or position")
    return out


@torch.library.custom_op("ropejit::rotate", mutates_args=())
def rotate(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, position_ids: _Maybe, cu_seqlens: _Maybe,
    offsets: _Maybe, offset: int | None, style: str, rotary_dim: int | None, layout: str, rounding: str,
    backward: bool,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """q and k, rotated."""
    return _launched(
        q, k, cos, sin, position_ids, cu_seqlens, offsets, offset, style, rotary_dim, layout, rounding, backward, False
    )


@torch.library.custom_op("ropejit::rotate_one", mutates_args=())
def rotate_one(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, position_ids: _Maybe, cu_seqlens: _Maybe,
    offsets: _Maybe, offset: int | None, style: str, rotary_dim: int | None, layout: str, rounding: str,
    backward: bool,
) -> torch.Tensor:  # fmt: skip
    """x, rotated."""
    return _launched(
        x, None, cos, sin, position_ids, cu_seqlens, offsets, offset, style, rotary_dim, layout, rounding, backward, False
    )[0]


@torch.library.custom_op("ropejit::rotate_", mutates_args=("q", "k"))
def rotate_(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, position_ids: _Maybe, cu_seqlens: _Maybe,
    offsets: _Maybe, offset: int | None, style: str, rotary_dim: int | None, layout: str, rounding: str,
) -> None:  # fmt: skip
    """Rotates q and k where they are."""
    _launched(
        q, k, cos, sin, position_ids, cu_seqlens, offsets, offset, style, rotary_dim, layout, rounding, False, True
    )


@torch.library.custom_op("ropejit::rotate_one_", mutates_args=("x",))
def rotate_one_(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, position_ids: _Maybe, cu_seqlens: _Maybe,
    offsets: _Maybe, offset: int | None, style: str, rotary_dim: int | None, layout: str, rounding: str,
) -> None:  # fmt: skip
    """Rotates x where it is."""
    _launched(
        x, None, cos, sin, position_ids, cu_seqlens, offsets, offset, style, rotary_dim, layout, rounding, False, True
    )


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


@rotate_one.register_vmap
def _(info, in_dims, x, *rest):
    """One call where only x differs, by more sequences in the batch; else a call each."""
    n, (dim, *dims) = info.batch_size, in_dims
    cos, _, position_ids, _, offsets = rest[:5]
    of_each_sequence = any(t is not None and t.ndim == rank and t.shape[0] > 1 for t, rank in ((cos, 3), (position_ids, 2)))
    if x.ndim == 5 and offsets is None and not of_each_sequence and all(d is None for d in dims):
        return rotate_one(x.movedim(dim, 0).flatten(0, 1), *rest).unflatten(0, (n, -1)), 0
    each = ([t if d is None else t.select(d, i) for t, d in zip((x, *rest), in_dims, strict=True)] for i in range(n))
    return torch.stack([rotate_one(*arguments) for arguments in each]), 0


class Transformed(torch.autograd.Function):
    """x, rotated under the transforms of `torch.func`, which do not see through an operator's own gradient."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, *rest):
        return torch.ops.ropejit.rotate_one(x, *rest)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[1:6])
        ctx.rest = inputs[6:]

    @staticmethod
    def backward(ctx, grad):
        return Transformed.apply(grad, *ctx.saved_tensors, *ctx.rest[:-1], not ctx.rest[-1]), *(None,) * 11


def _tables_are_constant(cos, sin):
    if torch.is_grad_enabled():
        for name, table in (("cos", cos), ("sin", sin)):
            if table.requires_grad:
                raise ValueError(f"{name}: requires a gradient, and none is computed for tables: pass a detached one")


def _is_recorded(x):
    return isinstance(x, torch.Tensor) and x.requires_grad and torch.is_grad_enabled()  # a tracer's stand-in may be none


def _out_of_place(q, k, *rest):
    if k is None:
        return torch.ops.ropejit.rotate_one(q, *rest, False), None
    out = torch.ops.ropejit.rotate(q, k, *rest, False)
    if _is_recorded(q) != _is_recorded(k):
        # An operator's outputs require a gradient all or none.
        return (out[0], out[1].detach()) if _is_recorded(q) else (out[0].detach(), out[1])
    return out[0], out[1]


def apply(
    q, k, cos, sin, position_ids, cu_seqlens, offset, style, rotary_dim, layout, rounding, inplace, lenient=False
):  # fmt: skip
    """The call as operators. `lenient`: as in `_autograd.apply`."""
    offsets, offset = (offset, None) if isinstance(offset, torch.Tensor) else (None, offset)
    rest = (cos, sin, position_ids, cu_seqlens, offsets, offset, style, rotary_dim, layout, rounding)
    _tables_are_constant(cos, sin)
    if not inplace:
        return _out_of_place(q, k, *rest)
    if q is k:
        raise ValueError("k: is q, and in place it would be turned twice: pass a copy")
    if _is_recorded(q) or _is_recorded(k):
        out = _out_of_place(q, k, *rest)
        if lenient and q.is_leaf:
            q.detach().copy_(out[0].detach())
            return out
        # Operators that write have no gradient; a copy has.
        return q.copy_(out[0]), k if k is None else k.copy_(out[1])
    if k is None:
        torch.ops.ropejit.rotate_one_(q, *rest)
    else:
        torch.ops.ropejit.rotate_(q, k, *rest)
    return q, k


def of_any_tensors(
    q, k, cos, sin, position_ids, cu_seqlens, offset, style, rotary_dim, layout, rounding, inplace, lenient=False
):  # fmt: skip
    """The call as operators, where the native function may not launch: somebody watches, or tensors are of a subclass, or do not
    lie in memory as they are. PyTorch's dispatcher resolves negated views and zero tensors; those of `torch.func` are taken apart."""
    tensors = (cos, sin, position_ids, cu_seqlens, offset)
    _tensors.refuse(q, k, *tensors)
    form = (style, rotary_dim, layout, rounding)
    if inplace:
        _tensors.refuse_constant(q, k)
    transformed = _tensors.is_transformed(q, k, *tensors)
    if not transformed and not (inplace and _tensors.is_copied_back(q, k)):
        return apply(q, k, *tensors, *form, inplace, lenient)
    if inplace and q is k:
        raise ValueError("k: is q, and in place it would be turned twice: pass a copy")
    _tables_are_constant(cos, sin)
    out = turned(q, k, *tensors, form, False) if transformed else apply(q, k, *tensors, *form, False)
    return tuple(x if x is None else x.copy_(y) for x, y in zip((q, k), out, strict=True)) if inplace else out


def dispatched(q, k, cos, sin, position_ids, cu_seqlens, offset, *rest):
    """The rotation of tensors that the dispatcher has to resolve, without autograd."""
    tensors = (cos, sin, position_ids, cu_seqlens)
    _tensors.refuse(q, k, *tensors, offset)
    rest = (*tensors, *((offset, None) if isinstance(offset, torch.Tensor) else (None, offset)), *rest)
    return (torch.ops.ropejit.rotate_one(q, *rest), None) if k is None else torch.ops.ropejit.rotate(q, k, *rest)


def turned(q, k, cos, sin, position_ids, cu_seqlens, offset, form, backward):
    """q and k, each of which may be absent, rotated under the transforms of `torch.func`."""
    offsets, offset = (offset, None) if isinstance(offset, torch.Tensor) else (None, offset)
    rest = (cos, sin, position_ids, cu_seqlens, offsets, offset, *form, backward)
    return tuple(None if x is None else Transformed.apply(x, *rest) for x in (q, k))


_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


#: How q's dimensions are meant, by the ranks of q and cos and by how far from the right cos is unsqueezed: the layout, and
#: which dimensions are tokens and heads.
_ORDERS = {
    (4, 3, 2): ("bhsd", 2, 1), (4, 2, 2): ("bhsd", 2, 1), (4, 3, 1): ("bshd", 1, 2), (4, 2, 1): ("bshd", 1, 2),
    (3, 2, 1): ("thd", 0, 1),
}  # fmt: skip


def drop_in(q, k, cos, sin, unsqueeze_dim, style, tables, partial, rounding):
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
        rounding = "contracted" if rounding == "contracted" else "once"
    else:
        return None
    if tables == "twice":
        cos, sin = cos[..., ::2], sin[..., ::2]  # neighbours are equal
    return apply(q, k, cos, sin, None, None, None, style, width, layout, rounding, False)
