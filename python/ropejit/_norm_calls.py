"""Whether the norms of q and k and the rotation of one call are computed by one launch, with the bits of the model's own text.

Decided with every call: the modules and functions are those whose texts were read, nothing watches them, and types, shapes and
tables are what kernels take. Whether PyTorch adds up the squares of a row in the kernels' order is a fact about the installed
PyTorch and the GPU. It is measured, once for each combination of what a sum may depend on, by computing random tokens both ways.
"""

import logging
from dataclasses import dataclass
from operator import index
from typing import Any

import torch
from torch.nn.modules.module import _has_any_global_hook

import ropejit

from . import _ropejit
from ._form_texts import Form
from ._norm_forms import Norm
from ._ops import _ORDERS

_log = logging.getLogger("ropejit")
_Tensor, _Parameter = torch.Tensor, torch.nn.Parameter
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
#: As many tokens has each of the two ways to compute when they are compared: decoding, and sums of few and of many rows.
_TOKENS = (1, 13, 700)
#: Beyond this PyTorch's order changes with the number of rows.
_WIDEST = 256
#: With fewer rows of heads PyTorch gives a row more than 32 lanes, where it is long enough for them.
_FEW_ROWS = 16

_SWAPPED = {"bhsd": "bshd", "bshd": "bhsd"}

#: Whether weights of norms may get the kernels' own gradient, whose sum has another order: what `patch` was told.
own_gradients = False
#: For tests without a GPU: the processor counts as one.
_on_cpu = False


@dataclass(frozen=True)
class Rule:
    """One sequence of one class."""

    #: Of the method, for the log.
    label: str
    #: What the text names, what it is on the inside, and a ``forward`` that one of Hugging Face's layers has been given.
    rotate: Any
    original: Any
    layer_forward: Any
    form: Form
    norm_class: Any
    norm: Norm
    unsqueeze_dim: int
    swapped: bool
    after_rope: bool


def _rounding(form, dtype, table, recorded):
    """The contract that equals the function's own operations, or None."""
    same = table == dtype
    if form.rounding == "per_op" or (form.rounding == "promoted" and same):
        return "per_op" if same else None
    if form.rounding in ("promoted", "once_each") and recorded and dtype != torch.float32:
        return None  # eager rounds some steps of the gradient by themselves
    return "once" if same or table == torch.float32 else None


def _is_watched(norm, forward):
    """Whether a call of the module does more, or something else, than `forward`."""
    if type(norm).forward is not forward or "forward" in norm.__dict__ or norm._compiled_call_impl is not None:
        return True
    return bool(norm._forward_hooks or norm._forward_pre_hooks or norm._backward_hooks or norm._backward_pre_hooks)


def _flavour(kind, norm):
    return kind.flavour if kind.scaled is None or getattr(norm, kind.scaled) else "no_weight"


def _weight(norm, dtype, device, head_dim):
    """The weight as kernels take it; None where they do not."""
    weight = norm._parameters.get("weight")  # ten times as fast as the attribute
    if type(weight) is not _Parameter or weight.dtype is not dtype or weight.device != device:
        return None
    return weight if weight.shape == (head_dim,) and weight.is_contiguous() else None


def _is_transformed():
    """By `torch.func`, forward-mode differentiation or a tracer: what does not see a launch."""
    if torch.compiler.is_compiling():
        return False
    level = torch.autograd.forward_ad._current_level
    return level >= 0 or torch._C._functorch.maybe_current_level() is not None or torch._C._get_tracing_state() is not None


def _width(form, q, k, cos, sin, layout):
    """How many elements of a head turn; None where kernels do not compute the call."""
    shape, device, table, row = q.shape, q.device, cos.shape, cos.dtype
    tokens, heads = (-2, -3) if layout == "bhsd" else (-3, -2)
    if not 1 <= shape[heads] <= 65536 or not shape[tokens] or not shape[0] or q.stride(-1) != 1:
        return None
    if k is not None:
        other = k.shape
        if type(k) is not _Tensor or k.dtype is not q.dtype or k.device != device or k.stride(-1) != 1:
            return None
        if len(other) != len(shape) or other[0] != shape[0] or other[tokens] != shape[tokens] or other[-1] != shape[-1]:
            return None
        if not 1 <= other[heads] <= 65536:
            return None
    if cos.requires_grad or sin.requires_grad or sin.shape != table or sin.dtype is not row:
        return None
    if cos.device != device or sin.device != device:
        return None
    rows, width = table[-2], table[-1]
    if rows != shape[tokens] or (len(table) == 3 and table[0] != 1 and table[0] != shape[0]):
        return None
    # A part of a wider row need not have equal halves.
    if form.tables == "full" and rows > 1 and not cos.stride(-2) == sin.stride(-2) == width:
        return None
    width = 2 * width if form.tables == "half" else width
    head_dim = shape[-1]
    fits = width % 2 == 0 and head_dim % 2 == 0 and 2 <= width <= head_dim <= _WIDEST
    return width if fits and (form.partial or width == head_dim) else None


def _tables(form):
    return {"first": "full"}.get(form.tables, form.tables)


def of(rule):
    """The function that a sequence asks: q and k as the sequence leaves them, or None where its own text has to compute them.

    q and k are as they were before the norms and before dimensions are swapped. k is None where the text rotates one tensor,
    and then the result is one tensor.
    """
    form, kind, norm_class, forward = rule.form, rule.norm, rule.norm_class, rule.norm_class.forward
    rotate_is, layer_forward, eps_of = rule.rotate, rule.layer_forward, rule.norm.eps
    dim, swapped, after_rope = rule.unsqueeze_dim, rule.swapped, rule.after_rope
    is_layer = isinstance(rotate_is, torch.nn.Module)
    style, tables = form.style, _tables(form)
    #: What has been measured.
    agreed = {}

    def agrees(flavour, device, heads, kv_heads, head_dim, width, dtype, table, recorded):
        key = (flavour, device, head_dim, width, dtype, table, recorded)
        if key not in agreed:
            if device >= 0 and torch.cuda.is_current_stream_capturing():
                return False
            agreed[key] = _measured(rule, flavour, device, (heads, kv_heads, head_dim, width, dtype, table), recorded)
        return agreed[key]

    # A compiler asks while it traces, and keeps the answer. The mark is all that its decorator sets, which is slow to import.
    agrees._dynamo_marked_constant = True

    def fused(rotate, q_norm, k_norm, q, k, cos, sin):
        if type(q) is not _Tensor or not (q.is_cuda or _on_cpu):
            return None
        if type(q_norm) is not norm_class or _is_watched(q_norm, forward):
            return None
        if k is not None and (type(k_norm) is not norm_class or _is_watched(k_norm, forward)):
            return None
        if rotate is not rotate_is or _has_any_global_hook() or _is_transformed():
            return None
        if is_layer and vars(rotate).get("forward") is not layer_forward:
            return None
        if type(cos) is not _Tensor or type(sin) is not _Tensor or q.dtype not in _FLOATS:
            return None
        # The dimensions as the rotation finds them, then as they are.
        order = _ORDERS.get((q.ndim, cos.ndim, -dim - 1 if dim < 0 else cos.ndim - dim))
        if order is None or (swapped and q.ndim != 4):
            return None
        layout = _SWAPPED[order[0]] if swapped else order[0]
        width = _width(form, q, k, cos, sin, layout)
        if width is None:
            return None
        flavour, eps = _flavour(kind, q_norm), getattr(q_norm, eps_of)
        if type(eps) is not float or (k is not None and (getattr(k_norm, eps_of) != eps or _flavour(kind, k_norm) != flavour)):
            return None
        q_weight = k_weight = None
        has_weight = flavour != "no_weight"
        if has_weight:
            q_weight = _weight(q_norm, q.dtype, q.device, q.shape[-1])
            k_weight = None if k is None else _weight(k_norm, q.dtype, q.device, q.shape[-1])
            if q_weight is None or (k_weight is None and k is not None):
                return None
        is_recorded = torch.is_grad_enabled()
        trained = is_recorded and has_weight and (q_weight.requires_grad or (k is not None and k_weight.requires_grad))
        recorded = trained or (is_recorded and (q.requires_grad or (k is not None and k.requires_grad)))
        if (trained and not own_gradients) or (recorded and not kind.differentiable):
            return None
        rounding = _rounding(form, q.dtype, cos.dtype, recorded)
        if rounding is None:
            return None
        device, heads = q.device.index if q.is_cuda else -1, 1 if layout == "bhsd" else -2
        # A compiler takes sizes for unknown, where it is told so: `index` has it make these constants.
        head_dim, width, *counts = map(index, (q.shape[-1], width, q.shape[heads], 0 if k is None else k.shape[heads]))
        fewest = q if k is None or q.numel() <= k.numel() else k
        if fewest.numel() < _FEW_ROWS * head_dim and not _adds_alike(head_dim):
            return None
        if not agrees(flavour, device, *counts, head_dim, width, q.dtype, cos.dtype, recorded):
            return None
        packed = layout == "thd"
        if packed:
            q, k, layout = q[None], k if k is None else k[None], "bshd"
        out = ropejit.qk_norm_rope(
            q, k, q_weight, k_weight, cos, sin, eps=eps, flavour=flavour, order="torch",
            after_rope=after_rope, style=style, rotary_dim=width, tables=tables, layout=layout, rounding=rounding,
        )  # fmt: skip
        if packed:
            out = [x if x is None else x[0] for x in out]
        elif swapped:
            out = [x if x is None else x.transpose(1, 2) for x in out]
        return out[0] if k is None else out

    return fused


def _adds_alike(head_dim):
    """Whether a row is added up in one order for any number of rows: by 32 lanes, or by 64 whose halves meet first."""
    return head_dim <= 64 or (128 <= head_dim < 256 and head_dim % 4 == 0)


def _angles(form, shape, dtype, generator, device):
    """cos and sin of random angles, as the form's tables repeat them."""
    angles = torch.rand(shape, generator=generator, device=device) * 6
    if form.tables in ("full", "first"):
        angles = torch.cat((angles, angles), -1)
    elif form.tables == "twice":
        angles = angles.repeat_interleave(2, -1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def _eager(rule, norms, tensors, cos, sin):
    """The model's own functions, on `[batch, tokens, heads, head_dim]`."""

    def rotated(xs):
        more = {} if rule.form.call == "vision" else {"unsqueeze_dim": 2}
        out = rule.original(*xs, cos, sin, **more)
        return [out] if rule.form.call == "single" else list(out)

    def normed(xs):
        return [norm(x) for norm, x in zip(norms, xs)]

    return normed(rotated(tensors)) if rule.after_rope else rotated(normed(tensors))


def _measured(rule, flavour, device, sizes, recorded):
    """Whether both ways give the same bits for random tokens, results and gradients of q and k. `sizes`: as of `_same`."""
    place = torch.device("cpu") if device < 0 else torch.device("cuda", device)
    with torch.inference_mode(False), torch.set_grad_enabled(recorded), torch.autocast(place.type, enabled=False):
        try:
            heads, kv_heads, head_dim = sizes[:3]
            fewest = 1 if _adds_alike(head_dim) else -(-_FEW_ROWS // (min(heads, kv_heads) or heads))
            counts = [n for n in _TOKENS if n >= fewest]
            same, why = all(_same(rule, flavour, place, n, *sizes, recorded) for n in counts), "PyTorch computes other bits"
        except (_ropejit.RopejitError, NotImplementedError) as error:  # frozen without such a kernel, say
            same, why = False, error
    if not same:
        _log.warning("%s: norms stay as they are for heads of %d in %s on %s: %s", rule.label, sizes[2], sizes[4], place, why)
    return same


def _same(rule, flavour, place, tokens, heads, kv_heads, head_dim, width, dtype, table, recorded):
    generator = torch.Generator(place).manual_seed(tokens)

    def random(*shape):
        return torch.randn(shape, generator=generator, device=place)

    norms = []
    for _ in range(2):
        norm = rule.norm_class.__new__(rule.norm_class)  # all that its text reads is set here
        torch.nn.Module.__init__(norm)
        setattr(norm, rule.norm.eps, 1e-6)
        if flavour != "no_weight":
            norm.weight = torch.nn.Parameter((random(head_dim) / 4 + 1).to(dtype), requires_grad=False)
        if rule.norm.scaled is not None:
            setattr(norm, rule.norm.scaled, flavour != "no_weight")
        norms.append(norm)
    tensors = [random(1, tokens, n, head_dim).to(dtype).requires_grad_(recorded) for n in (heads, kv_heads) if n]
    cos, sin = _angles(rule.form, (1, tokens, width // 2), table, generator, place)
    theirs = _eager(rule, norms, tensors, cos, sin)
    weights = [getattr(norm, "weight", None) for norm in norms]
    ours = ropejit.qk_norm_rope(
        tensors[0], tensors[1] if kv_heads else None, weights[0], weights[1] if kv_heads else None, cos, sin, eps=1e-6,
        flavour=flavour, order="torch", after_rope=rule.after_rope,
        style=rule.form.style, rotary_dim=width, tables=_tables(rule.form),
        layout="bshd", rounding=_rounding(rule.form, dtype, table, recorded),
    )  # fmt: skip
    ours = [x for x in ours if x is not None]
    pairs = list(zip(ours, theirs, strict=True))
    if recorded:
        given = [random(*x.shape).to(dtype) for x in theirs]
        pairs += zip(torch.autograd.grad(ours, tensors, given), torch.autograd.grad(theirs, tensors, given), strict=True)
    return all(x.dtype == y.dtype and torch.equal(x, y) for x, y in pairs)
