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
    offsets: _Maybe, offset: int | None, interleaved: bool, rotary_dim: int | None, layout: str, rounding: str,
    backward: bool,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """q and k, rotated."""
    return _launched(
        q, k, cos, sin, position_ids, cu_seqlens, offsets, offset, interleaved, rotary_dim, layout, rounding, backward, False
    )


@torch.library.custom_op("ropejit::rotate_one", mutates_args=())
def rotate_one(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, position_ids: _Maybe, cu_seqlens: _Maybe,
    offsets: _Maybe, offset: int | None, interleaved: bool, rotary_dim: int | None, layout: str, rounding: str,
    backward: bool,
) -> torch.Tensor:  # fmt: skip
    """x, rotated."""
    return _launched(
        x, None, cos, sin, position_ids, cu_seqlens, offsets, offset, interleaved, rotary_dim, layout, rounding, backward, False
    )[0]


@torch.library.custom_op("ropejit::rotate_", mutates_args=("q", "k"))
def rotate_(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, position_ids: _Maybe, cu_seqlens: _Maybe,
    offsets: _Maybe, offset: int | None, interleaved: bool, rotary_dim: int | None, layout: str, rounding: str,
) -> None:  # fmt: skip
    """Rotates q and k where they are."""
    _launched(
        q, k, cos, sin, position_ids, cu_seqlens, offsets, offset, interleaved, rotary_dim, layout, rounding, False, True
    )


@torch.library.custom_op("ropejit::rotate_one_", mutates_args=("x",))
def rotate_one_(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, position_ids: _Maybe, cu_seqlens: _Maybe,
    offsets: _Maybe, offset: int | None, interleaved: bool, rotary_dim: int | None, layout: str, rounding: str,
) -> None:  # fmt: skip
    """Rotates x where it is."""
    _launched(
        x, None, cos, sin, position_ids, cu_seqlens, offsets, offset, interleaved, rotary_dim, layout, rounding, False, True
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
    q, k, cos, sin, position_ids, cu_seqlens, offset, interleaved, rotary_dim, layout, rounding, inplace, lenient=False
):  # fmt: skip
    """The call as operators. `lenient`: as in `_autograd.apply`."""
    offsets, offset = (offset, None) if isinstance(offset, torch.Tensor) else (None, offset)
    rest = (cos, sin, position_ids, cu_seqlens, offsets, offset, interleaved, rotary_dim, layout, rounding)
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
    q, k, cos, sin, position_ids, cu_seqlens, offset, interleaved, rotary_dim, layout, rounding, inplace, lenient=False
):  # fmt: skip
    """The native function hands over subclasses of tensors, and tensors whose numbers do not lie in memory as they are: PyTorch's
    dispatcher resolves negated views and zero tensors, and takes those of `torch.func` apart."""
    tensors = (cos, sin, position_ids, cu_seqlens, offset)
    _tensors.refuse(q, k, *tensors)
    form = (interleaved, rotary_dim, layout, rounding)
    if type(q) is not torch.Tensor or not inplace and not _tensors.is_transformed(q, k, *tensors):
        return apply(q, k, *tensors, *form, inplace, lenient)
    _tables_are_constant(cos, sin)
    if inplace:
        _tensors.refuse_constant(q, k)
        if q is k:
            raise ValueError("k: is q, and in place it would be turned twice: pass a copy")
    if _tensors.is_transformed(q, k, *tensors):
        out = turned(q, k, *tensors, form, False)
    else:
        out = apply(q, k, *tensors, *form, False)
    # Operators that write have no rule for what these are; a copy has.
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
