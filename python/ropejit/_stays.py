"""What the log is told of a call that a replaced function leaves to the model's own: at the level INFO, once for each reason.

Nothing is said while a compiler or a tracer looks, which would see the reading of shapes as part of the program.
"""

import logging

import torch
import torch.fx

from . import _patch

_log = logging.getLogger("ropejit")
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
#: Names of arguments that hold angles, in all functions that are replaced.
_TABLES = frozenset((
    "cos", "sin", "cos_k", "sin_k", "freqs", "freqs_cis", "freqs_ci", "freqs_cos", "freqs_sin", "sinusoidal_pos",
    "relative_position_embeddings",
))  # fmt: skip


def told(original, whole, rounding):
    """``original``, which tells the log why it is called. ``whole``: its name; ``rounding``: as `_form_texts.Form` has it."""

    def function(*args, **kwargs):
        if not torch.compiler.is_compiling():
            _tell(original, whole, rounding, args, kwargs)
        return original(*args, **kwargs)

    return function


def _tell(original, whole, rounding, args, kwargs):
    if not _log.isEnabledFor(logging.INFO) or torch._C._get_tracing_state() is not None or torch._C._len_torch_dispatch_stack():
        return
    if any(isinstance(x, torch.fx.Proxy) for x in (*args, *kwargs.values())):
        return
    names = getattr(getattr(original, "__code__", None), "co_varnames", ())
    tensors = dict(_tensors({**dict(zip(names, args)), **kwargs}))
    if _TABLES.issuperset(tensors):
        return  # what turns is no tensor: the original says so
    reason = _reason(tensors, rounding)
    if reason is not None:
        _patch._say_once(logging.INFO, f"{whole}: {reason}", "%s; the model's own function computes such calls")
        return
    shapes = ", ".join(f"{name} {list(x.shape)}" for name, x in tensors.items())
    text = "%s (the first: %s); the model's own function computes such calls"
    _patch._say_once(logging.INFO, f"{whole}: arguments that kernels do not cover", text, shapes)


def _tensors(arguments):
    for name, x in arguments.items():
        if isinstance(x, torch.Tensor):
            if not x.dtype.is_floating_point and name.endswith("_ids"):
                continue
            yield name, x
        elif isinstance(x, tuple) and len(x) == 2:  # cos and sin, as diffusers has them
            yield from ((table, part) for table, part in zip(("cos", "sin"), x) if isinstance(part, torch.Tensor))


def _reason(tensors, rounding):
    """Why kernels do not compute the call, as far as types and devices tell; None where they do not."""
    if torch._C._functorch.maybe_current_level() is not None:
        return "torch.func transforms the call"
    if torch.autograd.forward_ad._current_level >= 0:
        return "differentiation in forward mode"
    first, q = next((name, x) for name, x in tensors.items() if name not in _TABLES)
    is_recorded = torch.is_grad_enabled() and any(x.requires_grad for name, x in tensors.items() if name not in _TABLES)
    for name, x in tensors.items():
        is_table = name in _TABLES
        if type(x) not in (torch.Tensor, torch.nn.Parameter):
            return f"{name} is a {type(x).__name__}"
        if x.device.type not in ("cpu", "cuda"):
            return f"{name} is on {x.device}"
        if x.dtype not in _FLOATS and not (is_table and x.dtype == torch.complex64):
            return f"{name} is {x.dtype}"
        if x is q:
            continue
        if x.device != q.device:
            return f"{name} is on {x.device}, {first} on {q.device}"
        wide = is_table and rounding != "per_op" and x.dtype in (torch.float32, torch.complex64)
        if x.dtype != q.dtype and not wide:
            return f"{name} is {x.dtype}, {first} {q.dtype}"
        if is_table and x.requires_grad and torch.is_grad_enabled():
            return f"{name} requires a gradient"
        if x.dtype != q.dtype and is_recorded and rounding in ("promoted", "once_each") and q.dtype != torch.float32:
            return f"a gradient of {q.dtype} where {name} is {x.dtype}"
    return None
