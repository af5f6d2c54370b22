"""What of diffusers the kernels compute, told by text: `patch("diffusers")` comes here for each of its modules.

Its models share one function, ``apply_rotary_emb`` of ``diffusers.models.embeddings``. LTX has its own, Wan and those made after
it have one inside of a processor's ``__call__``. All but Wan's read both of two angles that ought to be equal, and get their
tables from wherever a pipeline makes them, so no text can say whether they are: tables are looked at, each once. On a GPU that
waits for the tables to be made, so it happens once per table and not per layer; it cannot be while a graph is captured
or a compiler traces, and then the model's own function computes.
"""

import ast
import functools
import inspect
import logging
import sys
import types
from typing import NamedTuple

from . import _forms, _functions, _slots

_REAL = """
        cos, sin = cos.to(x.device), sin.to(x.device)
        if use_real_unbind_dim == -1:
            x_real, x_imag = x.reshape(*x.shape[:-1], -1, 2).unbind(-1)
            x_rotated = torch.stack([-x_imag, x_real], dim=-1).flatten(3)
        elif use_real_unbind_dim == -2:
            x_real, x_imag = x.reshape(*x.shape[:-1], 2, -1).unbind(-2)
            x_rotated = torch.cat([-x_imag, x_real], dim=-1)
        else:
            raise ValueError(f"`use_real_unbind_dim={use_real_unbind_dim}` but should be -1 or -2.")
        out = (x.float() * cos + x_rotated.float() * sin).to(x.dtype)
        return out
    else:
        x_rotated = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
"""
_COMPLEX = """
        x_out = torch.view_as_real(x_rotated * freqs_cis).flatten(3)
        return x_out.type_as(x)
"""
_EMBEDDINGS = (
    """
def f(x, freqs_cis, use_real=True, use_real_unbind_dim=-1, sequence_dim=2):
    if use_real:
        cos, sin = freqs_cis
        if sequence_dim == 2:
            cos = cos[None, None, :, :]
            sin = sin[None, None, :, :]
        elif sequence_dim == 1:
            cos = cos[None, :, None, :]
            sin = sin[None, :, None, :]
        else:
            raise ValueError(f"`sequence_dim={sequence_dim}` but should be 1 or 2.")
"""
    + _REAL
    + "        freqs_cis = freqs_cis.unsqueeze(2)"
    + _COMPLEX
)
_QWEN = (
    """
def f(x, freqs_cis, use_real=True, use_real_unbind_dim=-1):
    if use_real:
        cos, sin = freqs_cis
        cos = cos[None, None]
        sin = sin[None, None]
"""
    + _REAL
    + "        freqs_cis = freqs_cis.unsqueeze(1)"
    + _COMPLEX
)
_LTX = """
def f(x, freqs):
    cos, sin = freqs
    x_real, x_imag = x.unflatten(2, (-1, 2)).unbind(-1)
    x_rotated = torch.stack([-x_imag, x_real], dim=-1).flatten(2)
    out = (x.float() * cos + x_rotated.float() * sin).to(x.dtype)
    return out
"""
_WAN = """
def f(hidden_states, freqs_cos, freqs_sin):
    x1, x2 = hidden_states.unflatten(-1, (-1, 2)).unbind(-1)
    cos = freqs_cos[..., 0::2]
    sin = freqs_sin[..., 1::2]
    out = torch.empty_like(hidden_states)
    out[..., 0::2] = x1 * cos - x2 * sin
    out[..., 1::2] = x1 * sin + x2 * cos
    return out.type_as(hidden_states)
"""


@functools.lru_cache(maxsize=None)
def _known():
    texts = {"embeddings": _EMBEDDINGS, "qwen": _QWEN, "ltx": _LTX, "wan": _WAN}
    return {_forms.canonical([ast.parse(text).body[0]]): name for name, text in texts.items()}


class _Half(NamedTuple):
    """One of two equal angles of a table, as it was at a version and made on a stream; ``table`` is None where they differ."""

    version: int | None
    stream: int
    table: object


@functools.lru_cache(maxsize=None)
def _seen(kind):
    """Halves of the tables that live, by object. Not an attribute of the table: it would be saved with it."""
    from torch.utils.weak import WeakIdKeyDictionary

    return WeakIdKeyDictionary()


def _cut(table, kind):
    """The angles that kernels read and those that ought to be their equals: a row's neighbours, or its halves."""
    if kind == "full":
        return table.chunk(2, -1)
    return (table[..., ::2], table[..., 1::2])


def _halves(cos, sin, kind, look=True):
    """cos and sin with each angle once; None where there are angles that differ, or nobody may look. ``look``: whether both of
    two angles are read; else cos has the first and sin the second, as Wan reads them."""
    import torch

    tables = (cos, sin)
    if any(type(table) is not torch.Tensor or table.requires_grad or table.shape[-1] % 2 for table in tables):
        return None
    on_gpu = cos.is_cuda
    if torch.compiler.is_compiling() or on_gpu and torch.cuda.is_current_stream_capturing():
        # A graph has to follow its tables, which a copy from outside of it does not.
        return None if look else (cos[..., ::2], sin[..., 1::2])
    stream = torch.cuda.current_stream(cos.device).cuda_stream if on_gpu else 0
    halves = []
    for table, part in zip(tables, (0, 0) if look else (0, 1), strict=True):
        seen = _seen(kind if look else part)
        # Writes to a table of inference mode leave no trace.
        version = None if table.is_inference() else table._version
        half = seen.get(table)
        if half is None or half[:2] != (version, stream):
            parts = _cut(table.detach(), kind)
            half = parts[part].contiguous()
            # Bits: an angle whose zero has the other sign makes another product.
            bits = torch.int32 if table.dtype == torch.float32 else torch.int16
            if look and not torch.equal(*(x.contiguous().view(bits) for x in parts)):
                half = None
            half = seen[table] = _Half(version, stream, half)
        halves.append(half.table)
    return None if any(half is None for half in halves) else halves


def _drop_in(x, cos, sin, unsqueeze_dim, interleaved, rounding):
    out = _functions.drop_in(x, None, cos, sin, unsqueeze_dim, "interleaved" if interleaved else "half_split", "half", False, rounding)
    return None if out is None else out[0]


def _real(x, freqs, unbind_dim, sequence_dim):
    """What the shared function computes of real tables ``[tokens, head_dim]``, or None."""
    try:
        cos, sin = freqs
        if x.ndim != 4 or cos.ndim != 2 or cos.device != x.device or sin.device != x.device:
            return None
    except (AttributeError, TypeError, ValueError):
        return None
    if type(unbind_dim) is not int or unbind_dim not in (-1, -2) or sequence_dim not in (1, 2):
        return None
    interleaved = unbind_dim == -1
    if not _may_serve(x, cos, sin):
        return None
    halves = _halves(cos, sin, "twice" if interleaved else "full")
    return None if halves is None else _drop_in(x, *halves, 2 - sequence_dim, interleaved, "once_each")


def _complex_turned(x, freqs, unsqueeze_dim):
    """What the shared function and Qwen's compute of complex tables, which they unsqueeze there, or None."""
    import torch

    from . import _complex

    if type(x) is not torch.Tensor or type(freqs) is not torch.Tensor or x.ndim != 4 or not x.numel():
        return None
    rounding = _complex.rounding(x, x, freqs)
    if rounding is None:
        return None
    return _drop_in(x, *torch.view_as_real(freqs).unbind(-1), unsqueeze_dim, True, rounding)


def _may_serve(x, cos, sin):
    """Whether kernels compute what PyTorch does of these types: asked before a table is looked at. A gradient of 16 bits is
    rounded in steps that kernels do not have, unless tables are of that type."""
    import torch

    if x.dtype not in (torch.float32, torch.float16, torch.bfloat16) or cos.dtype != sin.dtype:
        return False
    is_recorded = x.dtype != torch.float32 and torch.is_grad_enabled() and x.requires_grad
    return cos.dtype == x.dtype or cos.dtype == torch.float32 and not is_recorded


def _ltx(x, freqs):
    """What LTX's function computes: tables ``[batch, tokens, channels]``, for all heads of a token side by side."""
    try:
        cos, sin = freqs
        channels = x.shape[-1]
        fits = x.ndim == cos.ndim == sin.ndim == 3 and cos.shape == sin.shape and cos.shape[1:] == x.shape[1:]
        if not fits or cos.device != x.device or not x.is_contiguous() or not _may_serve(x, cos, sin):
            return None
    except (AttributeError, TypeError, ValueError):
        return None
    # Pairs know nothing of heads: any even part of a row is one.
    width = next((n for n in (128, 64, 256, 96, 512) if channels % n == 0), channels)
    if not 2 <= width <= 512 or x.numel() == 0:
        return None
    halves = _halves(cos, sin, "twice")
    if halves is None:
        return None
    heads = x.view(x.shape[0], -1, 1, width)
    cos, sin = (half.view(half.shape[0], heads.shape[1], width // 2) for half in halves)
    out = _drop_in(heads, cos, sin, 2, True, "once_each")
    return None if out is None else out.view(x.shape)


def _wan(x, cos, sin):
    """What the function inside of Wan's processor computes: tables ``[1, tokens, 1, head_dim]``, of which cos is read at even
    places and sin at odd ones."""
    try:
        if x.ndim != 4 or cos.ndim != 4 or sin.shape != cos.shape or cos.shape[2] != 1 or cos.device != x.device:
            return None
    except AttributeError:
        return None
    if not _may_serve(x, cos, sin):
        return None
    halves = _halves(cos, sin, "twice", look=False)
    return None if halves is None else _drop_in(x, *(half.squeeze(2) for half in halves), 2, True, "promoted")


def _replacement(known, original, whole):
    """A function that is called as the original is, and calls it where the kernels do not cover a call."""
    from . import _stays

    its_own = _stays.told(original, whole, "once_each")

    def complex_stays():
        from . import _patch

        _patch._say_once(
            logging.WARNING, whole,
            "%s: some calls with complex tables stay as they are: kernels do not compute all their bits",
        )  # fmt: skip

    if known == "embeddings":

        def function(x, freqs_cis, use_real=True, use_real_unbind_dim=-1, sequence_dim=2):
            if use_real:
                out = _real(x, freqs_cis, use_real_unbind_dim, sequence_dim)
                return its_own(x, freqs_cis, use_real, use_real_unbind_dim, sequence_dim) if out is None else out
            if (out := _complex_turned(x, freqs_cis, 2)) is not None:
                return out
            if not _functions._is_compiling():
                complex_stays()
            return original(x, freqs_cis, use_real, use_real_unbind_dim, sequence_dim)

    elif known == "qwen":

        def function(x, freqs_cis, use_real=True, use_real_unbind_dim=-1):
            if use_real:
                out = _real(x, freqs_cis, use_real_unbind_dim, 2)
                return its_own(x, freqs_cis, use_real, use_real_unbind_dim) if out is None else out
            if (out := _complex_turned(x, freqs_cis, 1)) is not None:
                return out
            if not _functions._is_compiling():
                complex_stays()
            return original(x, freqs_cis, use_real, use_real_unbind_dim)

    else:

        def function(x, freqs):
            out = _ltx(x, freqs)
            return its_own(x, freqs) if out is None else out

    return functools.wraps(original)(function)


def _inside_wan(hidden_states, freqs_cos, freqs_sin):
    """Its code takes the place of the function inside of Wan's processor, among that module's names."""
    from ropejit import _diffusers

    return _diffusers.inside_wan(hidden_states, freqs_cos, freqs_sin)


#: The function inside of Wan's processor, as it was.
_wan_original = None


def inside_wan(hidden_states, freqs_cos, freqs_sin):
    """What the replaced function inside of a processor's ``__call__`` computes."""
    out = _wan(hidden_states, freqs_cos, freqs_sin)
    return _wan_original(hidden_states, freqs_cos, freqs_sin) if out is None else out


def _nested(method, rotates):
    """The code of the function inside of a method whose name says that it rotates; None where there is none."""
    for constant in method.__code__.co_consts:
        if isinstance(constant, types.CodeType) and rotates.search(constant.co_name):
            return constant
    return None


def _with_ours(method, nested):
    """The method with our code for the function inside of it, or a text that says why not."""
    global _wan_original

    try:
        tree = _forms.tree_of(method)
    except (OSError, TypeError, SyntaxError):
        return "its text cannot be read"
    inside = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == nested.co_name]
    if len(inside) != 1 or nested.co_freevars or _known().get(_forms.canonical(inside)) != "wan":
        return "its text is none of the known forms"
    from . import _stays

    whole = f"{method.__module__}.{method.__qualname__}.{nested.co_name}"
    _wan_original = _stays.told(types.FunctionType(nested, method.__globals__), whole, "promoted")
    ours = _inside_wan.__code__.replace(co_name=nested.co_name)
    constants = tuple(ours if x is nested else x for x in method.__code__.co_consts)
    code = method.__code__.replace(co_consts=constants)
    new = types.FunctionType(code, method.__globals__, method.__name__, method.__defaults__, method.__closure__)
    new.__kwdefaults__ = method.__kwdefaults__
    return functools.wraps(method)(new)


def patch_module(module):
    """Replaces what rotates in a module of diffusers, where it is covered, and says in the log which stay."""
    from . import _patch

    def stays(name, why):
        whole = f"{module.__name__}.{name}"
        _patch._say_once(logging.WARNING, whole, "%s is not covered and stays as it is: %s", why)

    for name, value in list(vars(module).items()):
        if inspect.isclass(value) and value.__module__ == module.__name__:
            for method_name, method in list(vars(value).items()):
                if not inspect.isfunction(method) or hasattr(method, "__ropejit__"):
                    continue
                whole = f"{name}.{method_name}"
                if _patch._ROTATES.search(method_name):
                    if "apply_rotary_emb" not in method.__code__.co_names and "mrope" not in method_name:
                        stays(whole, "it is a method")  # neither one that calls the shared function nor one that sorts angles
                    continue
                nested = _nested(method, _patch._ROTATES)
                if nested is not None:
                    new = _with_ours(method, nested)
                    if isinstance(new, str):
                        stays(f"{whole}.{nested.co_name}", new)
                    else:
                        _patch._replace(module, _slots.Attribute(value, method_name), new)
        elif inspect.isfunction(value) and _patch._ROTATES.search(name):
            _patch_function(module, name, value, _patch, stays)


def _patch_function(module, name, function, patch, stays):
    slot = _slots.Attribute(module, name)
    if hasattr(function, "__ropejit__"):
        ours = [old for _, old, _, new in patch._replaced if new is function and isinstance(old, _slots.Attribute)]
        if not any(old.module is module for old in ours):
            # Imported from a module that was patched before: it goes back with that one.
            slot.put(function.__ropejit__)
            patch._replace(module, slot, function)
        return
    try:
        known = _known().get(_forms.canonical([_forms.tree_of(function)]))
    except (OSError, TypeError, SyntaxError, AttributeError):
        stays(name, "its text cannot be read")
        return
    if known in (None, "wan"):
        if function.__module__ == module.__name__:
            stays(name, "its text is none of the known forms")
        return
    shared = getattr(sys.modules.get(function.__module__), function.__name__, None)
    ours = shared if getattr(shared, "__ropejit__", None) is function else None
    patch._replace(module, slot, ours or _replacement(known, function, f"{function.__module__}.{function.__name__}"))
