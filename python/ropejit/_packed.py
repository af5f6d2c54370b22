"""flash-attn's functions for packed tensors: views of q and k, turned where they are."""

import torch

from . import _functions


def _checked(name, packed, needs):
    if not isinstance(packed, torch.Tensor):
        raise TypeError(f"{name}: must be a torch.Tensor, got {type(packed).__name__}")
    if packed.requires_grad and packed.is_leaf and torch.is_grad_enabled():
        raise ValueError(f"{name}: is a leaf that requires a gradient, and is written in place; hint: pass {name}.clone()")
    if packed.ndim not in needs:
        raise ValueError(f"{name}: is {list(packed.shape)}, {' or '.join(needs.values())} is needed")


def _turned(q, k, cos, sin, interleaved, seqlen_offsets):
    offset = seqlen_offsets.contiguous() if isinstance(seqlen_offsets, torch.Tensor) else seqlen_offsets or None
    style = "interleaved" if interleaved else "half_split"
    _functions._positional(q, k, cos, sin, None, None, offset, style, 2 * cos.shape[-1], "bshd", "once", True)


def apply_rotary_emb_qkv_(
    qkv, cos, sin, cos_k=None, sin_k=None, interleaved=False, seqlen_offsets=0, num_heads_q=None
):  # fmt: skip
    """As flash-attn's function of this name: turns q and k of a packed tensor in place, and returns it.

    qkv is ``[batch, tokens, 3, heads, head_dim]``, or ``[batch, tokens, num_heads_q + 2 * kv_heads, head_dim]``; cos and sin are
    ``[rows, rotary_dim / 2]``, of k as well unless ``cos_k`` and ``sin_k`` are given, which cost another launch. The rest as in
    `apply_rotary_emb`.
    """
    _checked("qkv", qkv, {5: "[batch, tokens, 3, heads, head_dim]", 4: "[batch, tokens, heads of q, k and v, head_dim]"})
    if qkv.ndim == 5:
        if qkv.shape[2] != 3:
            raise ValueError(f"qkv: is {list(qkv.shape)}, [batch, tokens, 3, heads, head_dim] is needed")
        q, k = qkv[:, :, 0], qkv[:, :, 1]
    else:
        heads = qkv.shape[2]
        if type(num_heads_q) is not int or not 0 < num_heads_q < heads or (heads - num_heads_q) % 2:
            raise ValueError(f"num_heads_q: {num_heads_q!r} of {heads} heads leaves no equal numbers of heads for k and v")
        kv_heads = (heads - num_heads_q) // 2
        q, k = qkv[:, :, :num_heads_q], qkv[:, :, num_heads_q : num_heads_q + kv_heads]
    if (cos_k is None) != (sin_k is None):
        raise ValueError("sin_k: cos_k and sin_k are given together, or neither")
    if cos_k is None:
        _turned(q, k, cos, sin, interleaved, seqlen_offsets)
    else:
        _turned(q, None, cos, sin, interleaved, seqlen_offsets)
        _turned(k, None, cos_k, sin_k, interleaved, seqlen_offsets)
    return qkv


def apply_rotary_emb_kv_(kv, cos, sin, interleaved=False, seqlen_offsets=0):
    """As flash-attn's function of this name: turns k of ``[batch, tokens, 2, heads, head_dim]`` in place, and returns the tensor."""
    _checked("kv", kv, {5: "[batch, tokens, 2, heads, head_dim]"})
    if kv.shape[2] != 2:
        raise ValueError(f"kv: is {list(kv.shape)}, [batch, tokens, 2, heads, head_dim] is needed")
    _turned(kv[:, :, 0], None, cos, sin, interleaved, seqlen_offsets)
    return kv
