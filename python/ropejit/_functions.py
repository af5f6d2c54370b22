"""The functions that rotate. Each is one native call; only under a tracer do they go through operators of ``torch.library``."""

import sys

from . import _ropejit

_apply = _ropejit.apply
_drop_in = _ropejit.drop_in
_modules = sys.modules


def _is_compiling():
    # Not an import: whoever compiles has imported PyTorch. A tracer sees a constant.
    torch = _modules.get("torch")
    return torch is not None and torch.compiler.is_compiling()


def apply(
    q, k, cos, sin, *, position_ids=None, cu_seqlens=None, interleaved=False, rotary_dim=None, inplace=False,
    layout="bshd", rounding="once",
):  # fmt: skip
    """Rotates q and k; returns both.

    Args:
        q, k: ``[batch, tokens, heads, head_dim]`` for the layout ``"bshd"``, ``[batch, heads, tokens, head_dim]`` for
            ``"bhsd"``, ``[tokens, heads, head_dim]`` for ``"thd"``. float32, float16 or bfloat16, any strides. They may
            differ in heads; k may be None.
        cos, sin: ``[rows, width]``, or ``[batch, rows, width]`` where sequences have rows of their own. float32 or the
            type of q. ``width`` is ``rotary_dim`` (each angle twice, as transformers makes them; the first half is read)
            or ``rotary_dim / 2``.
        position_ids: which row a token gets, int32 or int64, ``[tokens]`` or ``[batch, tokens]``. None: token i of a
            sequence gets row i. A position outside the tables makes its token NaN, and `check` raises.
        cu_seqlens: where packed sequences begin and the last ends, int32 or int64; each counts from 0. The layout is
            ``"thd"``. A token of no sequence, as padding at the end, stays as it is, and so does its gradient.
        interleaved: elements 2i and 2i + 1 turn together (GPT-J), not i and i + rotary_dim / 2 (Llama, NeoX).
        rotary_dim: as many elements of each head turn, the rest stays. None: all.
        inplace: write to q and k. Otherwise they stay as they are, and so do gradients in the backward pass.
        rounding: ``"once"`` computes in float32 and rounds the result; ``"per_op"`` rounds every product and the sum, as
            eager PyTorch does in bfloat16 and float16. For float32 they are the same.

    Gradients are computed for q and k, not for cos and sin. Works under ``torch.compile(fullgraph=True)`` and in CUDA
    graphs. Arrays of other libraries (NumPy, CuPy, JAX) are taken through DLPack. On a GPU the call stands in line on the
    stream that the library works on now, as one of its own. Where a library does not tell its stream (only CuPy, and those
    with DLPack's C exchange API do), or arrays of several are mixed, the call returns when its work is done.
    """
    if _is_compiling():
        from . import _ops

        return _ops.apply(q, k, cos, sin, position_ids, cu_seqlens, None, interleaved, rotary_dim, layout, rounding, inplace)
    return _apply(q, k, cos, sin, position_ids, cu_seqlens, None, interleaved, rotary_dim, layout, rounding, inplace)


def apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim=1):
    """As the function of this name in transformers' Llama and GPT-NeoX, bit for bit, forward and backward.

    q and k are ``[batch, heads, tokens, head_dim]`` (``unsqueeze_dim=1``) or ``[batch, tokens, heads, head_dim]``
    (``unsqueeze_dim=2``); cos and sin are ``[batch or 1, tokens, rotary_dim]``. What the kernels do not cover (types that
    differ, float64, …) is computed by PyTorch's own operations, as transformers does it.
    """
    out = drop_in(q, k, cos, sin, unsqueeze_dim, False, "full", "per_op")
    if out is None:
        from . import _eager

        return _eager.apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim)
    return out


def fast_rope_embedding(Q, K, cos, sin, rope_embedding_indices=None):
    """As Unsloth's function of this name.

    Q and K are ``[batch, heads, tokens, head_dim]``; cos and sin are ``[rows, width]`` or have leading dimensions of one.
    ``rope_embedding_indices`` says which row a token gets. Returns new tensors; Q and K stay as they are.
    """
    cos, sin = (x.reshape(x.shape[-2:]) if x.ndim != 2 else x for x in (cos, sin))
    ids = rope_embedding_indices
    if ids is not None:
        batch, tokens = Q.shape[0], Q.shape[2]
        ids = ids.reshape(batch, tokens) if ids.numel() == batch * tokens else ids.reshape(1, tokens)
    rotary_dim = None if cos.shape[-1] * 2 == Q.shape[-1] else cos.shape[-1]
    return _positional(Q, K, cos, sin, ids, None, None, False, rotary_dim, "bhsd", "once", False)


def apply_rotary_emb(
    x, cos, sin, interleaved=False, inplace=False, seqlen_offsets=0, cu_seqlens=None, max_seqlen=None
):  # fmt: skip
    """As flash-attn's function of this name.

    x is ``[batch, tokens, heads, head_dim]``, or ``[tokens, heads, head_dim]`` with ``cu_seqlens``; cos and sin are
    ``[rows, rotary_dim / 2]``. ``seqlen_offsets`` is an int, or one for each sequence. ``max_seqlen`` is not needed. A token
    that stands outside the tables becomes NaN (see `check`); flash-attn leaves it unrotated. One of no sequence of
    ``cu_seqlens`` stays as it is.
    """
    offset = None if isinstance(seqlen_offsets, int) and seqlen_offsets == 0 else seqlen_offsets
    layout = "bshd" if cu_seqlens is None else "thd"
    return _positional(
        x, None, cos, sin, None, cu_seqlens, offset, interleaved, 2 * cos.shape[-1], layout, "once", inplace
    )[0]


def drop_in(q, k, cos, sin, unsqueeze_dim, interleaved, tables, rounding):
    """What a model's own function computes, or None where the kernels do not: `_forms.Form` says what the last three mean."""
    half = tables != "full"
    if tables == "twice":
        cos, sin = cos[..., ::2], sin[..., ::2]
    if _is_compiling():
        from . import _ops

        return _ops.drop_in(q, k, cos, sin, unsqueeze_dim, interleaved, half, rounding)
    return _drop_in(q, k, cos, sin, unsqueeze_dim, interleaved, half, rounding)


def _positional(*arguments):
    if _is_compiling():
        from . import _ops

        return _ops.apply(*arguments)
    return _apply(*arguments)
