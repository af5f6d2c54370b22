"""Gradients in eager mode. The gradient of a rotation is the rotation back, so a backward pass is one more launch."""

import torch

from ._ropejit import rotate_plain

_transform = torch._C._functorch.maybe_current_level
_unwrapped = torch._C._functorch.unwrap_if_dead
_view_of_one = torch._C._autograd.CreationMeta.DEFAULT
#: Stands for an operand that autograd keeps.
_SAVED = object()


def _dispatched(*arguments):
    # Gradients come as they like: zero tensors, negated views, many at once.
    from . import _ops

    return _ops.dispatched(*arguments)


def _rowwise(gradient):
    # Gradients of sums are expanded: all elements in one place.
    return gradient if gradient is None or gradient.stride(-1) == 1 else gradient.contiguous()


def _keep(ctx, rest):
    """Keeps what the rotation back needs."""
    *operands, ctx.form, ctx.backward = rest
    is_tensor = [isinstance(x, torch.Tensor) for x in operands]
    ctx.save_for_backward(*(x for x, kept in zip(operands, is_tensor, strict=True) if kept))
    ctx.operands = [_SAVED if kept else x for x, kept in zip(operands, is_tensor, strict=True)]
    ctx.set_materialize_grads(False)


def _turn_back(ctx, grad_q, grad_k):
    saved = iter(ctx.saved_tensors)
    operands = [next(saved) if x is _SAVED else x for x in ctx.operands]
    if _transform() is not None:  # a Function does not see through the transforms of `torch.func`
        from . import _ops

        return _ops.turned(grad_q, grad_k, *operands, _now(ctx.form, not ctx.backward), not ctx.backward)
    rest = (*operands, ctx.form, not ctx.backward)
    grad_q, grad_k = _rowwise(grad_q), _rowwise(grad_k)
    # Through `Rotate` again: it records itself where a gradient of the gradient is wanted.
    if grad_q is not None:
        return _rotate(grad_q, grad_k, rest)
    return None, None if grad_k is None else _rotate(grad_k, None, rest)[0]


def _now(form, backward):
    """The form in this direction. A function that casts x for each of its products rounds once; autograd undoes each cast by
    itself, so both parts of the gradient are rounded, and their sum. The gradient of that gradient comes to one cast again."""
    *shape, rounding = form
    return (*shape, "per_op" if backward else "once") if rounding == "once_each" else form


class Rotate(torch.autograd.Function):
    """q and k, rotated. Neither they nor gradients are written to. What wants no gradient comes as one tuple: PyTorch looks at each
    argument, and makes each tensor among them an input of the graph."""

    @staticmethod
    def forward(ctx, q, k, rest):
        _keep(ctx, rest)
        *tensors, form, backward = rest
        form = _now(form, backward)
        out = rotate_plain(q, k, *tensors, *form, backward, False) or _dispatched(q, k, *tensors, *form, backward)
        if k is not None and q.requires_grad is not k.requires_grad:
            # What is made of a k that wants no gradient wants none: a cache that keeps it would keep the graph.
            ctx.mark_non_differentiable(out[1] if q.requires_grad else out[0])
        return out

    @staticmethod
    def backward(ctx, grad_q, grad_k):
        return *_turn_back(ctx, grad_q, grad_k), None


#: `Rotate.apply` without its preparation for the transforms of `torch.func`, which takes a fifth of a call: whoever calls this has
#: asked whether one is at work.
_rotate = super(torch.autograd.Function, Rotate).apply


class Rotated(torch.autograd.Function):
    """Tells autograd that x was rotated where it is. For one tensor: of a Function that writes to views, PyTorch takes no more."""

    @staticmethod
    def forward(ctx, x, rest):
        _keep(ctx, rest)
        ctx.mark_dirty(x)
        return x

    @staticmethod
    def backward(ctx, grad):
        return _turn_back(ctx, grad, None)[0], None


class RotateUnmarked(torch.autograd.Function):
    """As flash-attn's own function in place: autograd is told of the result, and not that x was written."""

    @staticmethod
    def forward(ctx, x, rest):
        _keep(ctx, rest)
        *tensors, form, backward = rest
        alias = x.data  # of its own version: views of x stay as they are
        if rotate_plain(alias, None, *tensors, *form, backward, True) is None:
            alias.copy_(_dispatched(alias, None, *tensors, *form, backward)[0])
        return x

    backward = Rotated.backward


def _is_refused(x):
    """Whether PyTorch refuses to write x in place: a leaf, a view of one, one of the views of `unbind` or `split`."""
    if x.is_leaf or not x._is_view():
        return x.is_leaf
    return x._base.is_leaf and x._base.requires_grad or torch._C._autograd._get_creation_meta(x) != _view_of_one


def apply(
    q, k, cos, sin, position_ids, cu_seqlens, offset, style, rotary_dim, layout, rounding, inplace, lenient=False
):  # fmt: skip
    """The native function calls this where autograd has to know. In place it is as PyTorch's operations in place are; `lenient`:
    where PyTorch would refuse q, alone, it is as flash-attn's own function, which works."""
    form = (style, rotary_dim, layout, rounding)
    tensors = (cos, sin, position_ids, cu_seqlens, offset)
    if _transform() is not None:
        from . import _ops

        return _ops.of_any_tensors(q, k, *tensors, *form, inplace, lenient)
    if not inplace:
        # Tensors of a transform that has ended are what they wrapped.
        return _rotate(_unwrapped(q), k if k is None else _unwrapped(k), (*tensors, form, False))
    recorded = [x for x in (q, k) if x is not None and x.requires_grad]
    for x in recorded:
        if _is_refused(x):
            if lenient:
                return RotateUnmarked.apply(x, (*tensors, form, False)), None
            x.mul_(1)  # raises, and says why, as all operations in place do; nothing has been written
    with torch.no_grad():
        if rotate_plain(q, k, *tensors, *form, False, True) is None:  # negated views, tensors without data
            out = _dispatched(q, k, *tensors, *form, False)
            for x, turned in zip((q, k), out, strict=True):
                if x is not None:
                    x.copy_(turned)
    for x in recorded:
        Rotated.apply(x, (*tensors, form, False))
    return q, k
