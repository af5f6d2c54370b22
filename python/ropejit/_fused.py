"""RoPE with its neighbours: the norm before it, the cache behind it. Each function is one native call, as in `_functions`."""

from . import _functions, _ropejit

_qk_norm_rope = _ropejit.qk_norm_rope
_rope_append = _ropejit.rope_append


def qk_norm_rope(
    q, k, q_weight, k_weight, cos, sin, *, eps, flavour="weight_after", order="torch", rsqrt=None, after_rope=False,
    position_ids=None, cu_seqlens=None, style="half_split", rotary_dim=None, tables=None, inplace=False, layout="bshd",
    rounding="once",
):  # fmt: skip
    """Normalises each head of q and k, then rotates it, in one launch; returns both.

    Args:
        q, k: as for `apply`. k may be None.
        q_weight, k_weight: ``[head_dim]``, of q's type. None for the flavour ``"no_weight"``, and k's where there is no k.
        cos, sin, position_ids, cu_seqlens, rotary_dim, tables, layout: as for `apply`. The norm is of the whole head, the rotation
            of its first ``rotary_dim`` elements.
        eps: added to the mean of the squares.
        flavour: how a weight is applied to a normalised element ``u = x.float() * r``, ``T`` being q's type:

            - ``"weight_after"``: ``w * u.to(T)`` (Qwen3, GLM-4-MoE, EXAONE-4, LFM2);
            - ``"one_plus_weight"``: ``(u * (1 + w.float())).to(T)`` (Gemma 3, Qwen3.5, Qwen3-Next, MiniMax-M3);
            - ``"weight_f32"``: ``(u * w.float()).to(T)`` (Gemma 3n and 4);
            - ``"no_weight"``: ``u.to(T)`` (Llama 4).
        order: the order in which the squares of a head are added, in float32: ``"torch"``: that of PyTorch's ``mean(-1)`` on CUDA;
            ``"tree"``: a balanced tree, neighbours first. Never by the number of tokens.
        rsqrt: ``r`` is the reciprocal root of ``x.float().pow(2).mean(-1) + eps``: ``"approx"``: ``torch.rsqrt`` on CUDA, which
            a GPU alone can compute; ``"ieee"``: ``1 / sqrt(v)``, each rounded. None: ``"approx"`` for CUDA tensors, else ``"ieee"``.
        after_rope: the rotation comes first, and the norm is of its rounded result (Llama 4).
        style: ``"half_split"``, ``"interleaved"`` or ``"deinterleave"``, as for `apply`.
        inplace: write to q and k. Not where a gradient is wanted, since the backward pass needs them as they were.
        rounding: of the rotation, as for `apply`. The normalised element is rounded to q's type either way.

    With ``rounding="per_op"`` (for float32: either) the results equal, bit for bit on CUDA, the model's RMS norm followed by
    transformers' ``apply_rotary_pos_emb`` in eager PyTorch.

    Gradients are computed for q, k and the weights; the backward pass keeps q, k and one float32 a head. Those of q and k equal
    eager's with ``"per_op"`` and are nearer to exact ones with ``"once"``; a weight's gradient is added in float32 in an order of
    its own, 32 rows in sequence, then a tree, which depends on nothing but the number of rows. There are no second derivatives. Works under
    ``torch.compile(fullgraph=True)`` and in CUDA graphs. Tensors are PyTorch's.
    """
    if style == "interleaved" or tables is not None:
        cos, sin = _functions._read_once(q, cos, sin, style == "interleaved", rotary_dim, tables)
    if _functions._is_compiling():
        from . import _norm_ops

        return _norm_ops.qk_norm_rope(
            q, k, q_weight, k_weight, cos, sin, position_ids, cu_seqlens, eps, flavour, order, rsqrt, after_rope, style,
            rotary_dim, layout, rounding, inplace,
        )  # fmt: skip
    return _qk_norm_rope(
        q, k, q_weight, k_weight, cos, sin, position_ids, cu_seqlens, eps, flavour, order, rsqrt, after_rope, style,
        rotary_dim, layout, rounding, inplace,
    )  # fmt: skip


def rope_append(
    q, k, v, cos, sin, k_cache, v_cache, slot_mapping, *, norm=None, k_scale=None, v_scale=None, q_scale=None,
    scale_use="divide", q_out=None, q_dtype=None, inplace=False, pages=None, position_ids=None, cu_seqlens=None,
    style="half_split", rotary_dim=None, part="first", tables=None, layout="thd", rounding="once",
):  # fmt: skip
    """Rotates q and k and stores k and v in a paged cache, in one launch; returns the rotated q. For inference: no gradients.

    k and v themselves stay as they are.

    Args:
        q: ``[tokens, heads, head_dim]`` for the layout ``"thd"``, ``[batch, tokens, heads, head_dim]`` for ``"bshd"``. float32,
            float16 or bfloat16, any strides.
        k: the same with the heads of the cache. Its heads may have ``rotary_dim`` elements where those of q have more: all of
            them turn, as the ``k_pe`` of MLA.
        v: as k, with a ``head_dim`` of its own; it is copied. v and v_cache may both be None.
        cos, sin, position_ids, cu_seqlens, rotary_dim, tables, rounding: as for `apply`. With page tables, too, a token's row of
            cos and sin is what position_ids (or cu_seqlens) say.
        k_cache, v_cache: ``[blocks, block_size, kv_heads, head_dim]``, any strides but that the last dimension is contiguous: a
            cache stored ``[blocks, kv_heads, block_size, head_dim]`` is passed as its ``transpose(1, 2)``. Of q's type, or
            float8_e4m3fn: then a value, rounded to q's type, is scaled in float32 and rounded to the nearest, saturating.
            Both may be views of one tensor. Only the tokens' slots are written.
        slot_mapping: int64, one number a token: ``block * block_size + place``. -1: q is turned, nothing is stored. A slot
            outside the cache is stored nowhere, and `check` raises. None where ``pages`` are given.
        pages: in its stead ``(kv_indices, kv_indptr, batch_indices, positions)``, int32: token t is number ``positions[t]`` of
            request ``b = batch_indices[t]``, whose blocks are ``kv_indices[kv_indptr[b]:kv_indptr[b + 1]]``.
        norm: a `Norm` of the heads of q and k, before they turn; None: none.
        k_scale, v_scale, q_scale: float32 tensors of one number, or of one a head, where k_cache and v_cache, or the result, are
            of float8_e4m3fn. They are read by the kernel: a CUDA graph follows them.
        scale_use: ``"divide"``: ``x / scale`` is stored (vLLM); ``"multiply"``: ``x * scale`` (FlashInfer).
        q_out: a tensor that receives the rotated q, of q's shape; of q's type or float8_e4m3fn. None: a new one, of ``q_dtype``.
        q_dtype: the type of the result, q's own or float8_e4m3fn; None: that of q_out, else q's.
        inplace: write q where it is.
        style: as for `apply`.
        part: which elements of a head turn: the ``"first"`` ``rotary_dim``, or the ``"last"``, as in MLA's ``[nope | rope]``. Of a
            k of ``rotary_dim`` elements, all.

    In eager PyTorch, of a cache of q's type::

        q, k = ropejit.apply(q, k, cos, sin)          # or qk_norm_rope
        stored = slot_mapping >= 0
        block, place = slot_mapping[stored] // block_size, slot_mapping[stored] % block_size
        k_cache[block, place], v_cache[block, place] = k[stored], v[stored]

    and of fp8 ``(k.float() / k_scale).clamp(-448, 448).to(torch.float8_e4m3fn)``. Two tokens of one slot: either is stored.
    Works under ``torch.compile(fullgraph=True)`` and in CUDA graphs, which follow all tensors.
    """
    if style == "interleaved" or tables is not None:
        cos, sin = _functions._read_once(q, cos, sin, style == "interleaved", rotary_dim, tables)
    if q_dtype is not None:
        q_out = _of_type(q, q_out, q_dtype, inplace)
    q_weight = k_weight = eps = rsqrt = None
    flavour, order, after_rope = "no_weight", "torch", False
    if norm is not None:
        try:
            q_weight, k_weight, eps = norm.q_weight, norm.k_weight, norm.eps
            flavour, order, rsqrt, after_rope = norm.flavour, norm.order, norm.rsqrt, norm.after_rope
        except AttributeError:
            raise TypeError(f"norm: must be a ropejit.Norm, got {type(norm).__name__}") from None
    if _functions._is_compiling():
        from . import _append_ops

        return _append_ops.rope_append(
            q, k, v, cos, sin, k_cache, v_cache, slot_mapping, pages, q_scale, k_scale, v_scale, q_weight, k_weight, q_out,
            position_ids, cu_seqlens, eps, flavour, order, rsqrt, after_rope, style, rotary_dim, layout, rounding, scale_use,
            part, inplace,
        )  # fmt: skip
    return _rope_append(
        q, k, v, cos, sin, k_cache, v_cache, slot_mapping, pages, q_scale, k_scale, v_scale, q_weight, k_weight, q_out,
        position_ids, cu_seqlens, eps, flavour, order, rsqrt, after_rope, style, rotary_dim, layout, rounding, scale_use,
        part, inplace,
    )  # fmt: skip


def _of_type(q, q_out, q_dtype, inplace):
    """A tensor for a result of this type; None where it need not be made here."""
    import torch

    if q_dtype not in (q.dtype, torch.float8_e4m3fn):
        raise ValueError(f"q_dtype: is {q_dtype}, q's type ({q.dtype}) or torch.float8_e4m3fn is needed")
    if q_out is not None:
        if q_out.dtype != q_dtype:
            raise ValueError(f"q_dtype: is {q_dtype}, q_out is {q_out.dtype}; hint: leave one of them out")
        return q_out
    if q_dtype == q.dtype:
        return None
    if inplace:
        raise ValueError(f"q_dtype: is {q_dtype}, and inplace=True writes q as {q.dtype}; hint: leave one of them out")
    return torch.empty_like(q, dtype=q_dtype)
