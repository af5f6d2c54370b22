"""The functions that rotate. Each is one native call; only under a tracer do they go through operators of ``torch.library``."""

import sys

from . import _ropejit

_apply = _ropejit.apply
_drop_in = _ropejit.drop_in
_modules = sys.modules


def _is_compiling():
    """Until PyTorch is there to be asked itself. Dynamo sees a constant; the native function sees all other tracers."""
    global _is_compiling

    torch = _modules.get("torch")  # not an import: whoever compiles has imported it
    if torch is None or torch.compiler.is_dynamo_compiling():
        return torch is not None
    _is_compiling = torch.compiler.is_dynamo_compiling
    return False


if "torch" in _modules:
    _is_compiling()  # now: a compiler that traces the first call would read all of `sys.modules`


def apply(
    q, k, cos, sin, *, position_ids=None, cu_seqlens=None, interleaved=False, rotary_dim=None, tables=None, inplace=False,
    layout="bshd", rounding="once", style=None, **more,
):  # fmt: skip
    """Rotates q and k; returns both.

    Args:
        q, k: ``[batch, tokens, heads, head_dim]`` for the layout ``"bshd"``, ``[batch, heads, tokens, head_dim]`` for
            ``"bhsd"``, ``[tokens, heads, head_dim]`` for ``"thd"``. float32, float16 or bfloat16, any strides. They may
            differ in heads; k may be None.
        cos, sin: ``[rows, width]``, or ``[batch, rows, width]`` where sequences have rows of their own. float32 or the
            type of q. ``width`` is ``rotary_dim`` (each angle twice) or ``rotary_dim / 2``; see ``tables``.
        position_ids: which row a token gets, int32 or int64, ``[tokens]`` or ``[batch, tokens]``. None: token i of a
            sequence gets row i. A position outside the tables makes its token NaN, and `check` raises.
        cu_seqlens: where packed sequences begin and the last ends, int32 or int64; each counts from 0. The layout is
            ``"thd"``. A token of no sequence, as padding at the end, stays as it is, and so does its gradient.
        interleaved: elements 2i and 2i + 1 turn together (GPT-J), not i and i + rotary_dim / 2 (Llama, NeoX).
        style: the same by name: ``"half_split"`` or ``"interleaved"``; or ``"deinterleave"`` (DeepSeek-V3, Kimi, GLM-5): elements
            2i and 2i + 1 turn together and leave as i and i + rotary_dim / 2. None: what ``interleaved`` says.
        rotary_dim: as many elements of each head turn, the rest stays. None: all.
        tables: how the angles stand in a row of cos and sin: ``"half"``: each once; ``"full"``: each twice, one copy after the
            other (``torch.cat((f, f), -1)``, as in Llama; the first half is read); ``"twice"``: each twice, side by side
            (``f.repeat_interleave(2, -1)``, as in GPT-J and Cohere; every second one is read, which costs a copy a call). None:
            what their width says, half or full; ``interleaved`` with tables of full width has to say which.
        inplace: write to q and k, as PyTorch's operations in place do: under autograd to slices of a tensor, not to leaves; not
            to two tensors that share elements. Otherwise they stay as they are, and so do gradients in the backward pass.
        rounding: ``"once"`` computes in float32 and rounds the result; ``"per_op"`` rounds every product and the sum, as
            eager PyTorch does in bfloat16 and float16. For float32 they are the same. ``"contracted"`` is ``"once"``, but of two
            products one goes into their sum without being rounded, as in PyTorch's complex product on CUDA.

    More, for tensors of PyTorch:
        mrope_section: how many pairs follow the time, the height and the width of a token: three numbers. ``position_ids`` are
            ``[3, batch, tokens]``. ``mrope_interleaved=True``: axes alternate from pair to pair (Qwen3-VL). One more launch.
        angles: `Angles`, which stand for cos and sin (None): the engine computes them. ``seq_len`` as there. One more launch.
        freqs_cis: stands for cos and sin (None): complex64 ``[rows, pairs]``, or ``[batch, rows, pairs]``; the same as real numbers,
            ``[…, 2]``; or as matrices ``[…, 2, 2]`` (Flux). Neighbours turn, unless ``style`` says otherwise. Costs two copies.
        conjugate: True turns back: the rotation by the negated angle.
        rotary_dim_offset: the first element of a head that turns (MLA: behind the part without positions). A k whose heads are
            as long as what turns, turns whole. With it, heads may have more than 512 elements.
        offset: added to all positions: an int, or a tensor with one for each sequence.
        per_head: True: cos and sin are ``[batch, heads, rows, width]``, of each head its own (LTX). q and k have as many heads.
        contiguous: True: results are contiguous, whatever q and k are.

    Gradients are computed for q and k; a table that requires one is an error. Works under ``torch.compile(fullgraph=True)``
    and in CUDA graphs. Arrays of other libraries (NumPy, CuPy, JAX) are taken through DLPack. On a GPU the call stands in line on the
    stream that the library works on now, as one of its own. Where a library does not tell its stream (only CuPy, and those
    with DLPack's C exchange API do), or arrays of several are mixed, the call returns when its work is done.
    """
    if more:
        from . import _more

        plain = dict(
            position_ids=position_ids, cu_seqlens=cu_seqlens, interleaved=interleaved, rotary_dim=rotary_dim, tables=tables,
            inplace=inplace, layout=layout, rounding=rounding, style=style,
        )  # fmt: skip
        return _more.apply(q, k, cos, sin, plain, more)
    if style is None:
        style = "interleaved" if interleaved else "half_split"
    elif interleaved and style != "interleaved":
        raise ValueError(f"style: {style!r} and interleaved=True are not the same; hint: leave interleaved out")
    if style == "interleaved" or tables is not None:
        cos, sin = _read_once(q, cos, sin, style == "interleaved", rotary_dim, tables)
    if _is_compiling():
        from . import _ops

        return _ops.apply(q, k, cos, sin, position_ids, cu_seqlens, None, style, rotary_dim, layout, rounding, inplace)
    return _apply(q, k, cos, sin, position_ids, cu_seqlens, None, style, rotary_dim, layout, rounding, inplace)


def _read_once(q, cos, sin, interleaved, rotary_dim, tables):
    """The tables, in a form that kernels take for what it is; raises where the form is not told, or not theirs."""
    try:
        width, turning = cos.shape[-1], q.shape[-1] if rotary_dim is None else rotary_dim
    except (AttributeError, IndexError):
        return cos, sin  # no tensors, or without dimensions: the native function says so by name
    if tables is None and (width != turning or not interleaved):
        return cos, sin
    if tables is None:
        raise ValueError(
            f"cos: interleaved=True with rows of {width} for a rotary_dim of {turning} can be read in two ways; hint: say"
            " tables='twice' where each angle stands twice side by side, tables='full' where one copy follows the other"
        )
    if tables not in ("half", "full", "twice"):
        raise ValueError(f"tables: {tables!r} is not one of 'half', 'full' and 'twice'")
    if width * (2 if tables == "half" else 1) != turning:
        needed = turning // 2 if tables == "half" else turning
        raise ValueError(f"cos: has rows of {width}, tables={tables!r} with a rotary_dim of {turning} needs {needed}")
    return tuple(_every_second(x) for x in (cos, sin)) if tables == "twice" else (cos, sin)


def _every_second(table):
    table = table[..., ::2]
    # Kernels read rows of neighbours. For tensors of PyTorch, which have no such method, the native function makes a copy where
    # it must. (Asking `sys.modules` for PyTorch would have a compiler read all modules there are.)
    return table.copy() if hasattr(table, "copy") else table


def apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim=1):
    """As the function of this name in transformers' Llama and GPT-NeoX, bit for bit, forward and backward.

    q and k are ``[batch, heads, tokens, head_dim]`` (``unsqueeze_dim=1``) or ``[batch, tokens, heads, head_dim]``
    (``unsqueeze_dim=2``); cos and sin are ``[batch or 1, tokens, rotary_dim]``, each angle twice: the second half of a row
    repeats the first, which is the one that is read. What the kernels do not cover (types that differ, float64, …) is
    computed by PyTorch's own operations, as transformers does it.
    """
    out = drop_in(q, k, cos, sin, unsqueeze_dim, "half_split", "full", True, "per_op")
    if out is None:
        from . import _eager

        return _eager.apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim)
    return out


def fast_rope_embedding(Q, K, cos, sin, rope_embedding_indices=None):
    """As Unsloth's function of this name.

    Q and K are ``[batch, heads, tokens, head_dim]``; cos and sin are ``[rows, width]`` or have leading dimensions of one.
    ``rope_embedding_indices`` says which row a token gets. Returns new tensors; Q and K stay as they are.
    """
    if Q.ndim != 4:
        raise ValueError(f"Q: has {Q.ndim} dimensions, [batch, heads, tokens, head_dim] is needed")
    cos, sin = _one_table("cos", cos), _one_table("sin", sin)
    ids = rope_embedding_indices
    if ids is not None:
        batch, tokens = Q.shape[0], Q.shape[2]
        if ids.numel() not in (tokens, batch * tokens):
            raise ValueError(f"rope_embedding_indices: {ids.numel()} numbers for {batch} sequences of {tokens} tokens")
        ids = ids.reshape(-1, tokens) if tokens else ids.reshape(1, 0)
    rotary_dim = None if cos.shape[-1] * 2 == Q.shape[-1] else cos.shape[-1]
    return _positional(Q, K, cos, sin, ids, None, None, "half_split", rotary_dim, "bhsd", "once", False)


def _one_table(name, table):
    """`[rows, width]` of a table whose other dimensions are of one."""
    if table.ndim == 2:
        return table
    rows = table.shape[-2:]
    if table.ndim < 2 or table.numel() != rows[0] * rows[1]:
        raise ValueError(f"{name}: is {list(table.shape)}, [rows, width] or leading dimensions of one are needed")
    return table.reshape(rows)


def apply_rotary_emb(
    x, cos, sin, interleaved=False, inplace=False, seqlen_offsets=0, cu_seqlens=None, max_seqlen=None
):  # fmt: skip
    """As flash-attn's function of this name.

    x is ``[batch, tokens, heads, head_dim]``, or ``[tokens, heads, head_dim]`` with ``cu_seqlens``; cos and sin are
    ``[rows, rotary_dim / 2]``. ``seqlen_offsets`` is an int, or a tensor with one for each sequence, which is read by the kernel
    alone: a CUDA graph follows it. ``max_seqlen`` is not needed. A token that stands outside the tables becomes NaN (see
    `check`); flash-attn leaves it unrotated. One of no sequence of ``cu_seqlens`` stays as it is.

    In place under autograd, x may be a slice of another tensor, which then knows of it, as with PyTorch's operations in place;
    and it may be what those refuse, a leaf or one of the views of `unbind` and `split`: then, as with flash-attn, the result has
    the gradient, and what is read from x itself has not.
    """
    if isinstance(seqlen_offsets, int):
        offset = seqlen_offsets or None
    else:
        offset = seqlen_offsets.contiguous() if hasattr(seqlen_offsets, "contiguous") else seqlen_offsets
    layout = "bshd" if cu_seqlens is None else "thd"
    rotary_dim = 2 * cos.shape[-1]
    style = "interleaved" if interleaved else "half_split"
    return _positional(
        x, None, cos, sin, None, cu_seqlens, offset, style, rotary_dim, layout, "once", inplace, True
    )[0]


def drop_in(q, k, cos, sin, unsqueeze_dim, style, tables, partial, rounding):
    """What a model's own function computes, or None where the kernels do not: `_forms.Form` says what the last four mean."""
    if _is_compiling():
        from . import _ops

        return _ops.drop_in(q, k, cos, sin, unsqueeze_dim, style, tables, partial, rounding)
    return _drop_in(q, k, cos, sin, unsqueeze_dim, style, tables, partial, rounding)


def _positional(*arguments):
    if _is_compiling():
        from . import _ops

        return _ops.apply(*arguments)
    return _apply(*arguments)
