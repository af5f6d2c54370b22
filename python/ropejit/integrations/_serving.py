"""The rotation that serving engines ask for: tokens in a row, one cache of ``cos | sin``, in place."""

import torch

from .. import _functions

TYPES = (torch.float16, torch.bfloat16)


def is_covered(head_size, rotary_dim, cache, x):
    """Whether kernels take such heads, of 16 bits: in float32 it would show that engines' kernels fuse a product and the sum."""
    fits = 2 <= rotary_dim <= head_size <= 512 and rotary_dim % 2 == 0 == head_size % 2
    return fits and cache.shape[-1] == rotary_dim and x.dtype in TYPES and cache.dtype in (x.dtype, torch.float32)


def rotate(positions, query, key, head_size, rotary_dim, cache, is_neox_style, rounding):
    """q and k, rotated where they are; under a compiler, new ones. None where they cannot be seen as tokens of heads.

    positions: ``[tokens]`` or ``[batch, tokens]``; query and key: ``[*, heads * head_size]`` or ``[*, heads, head_size]``, key may
    be None; cache: ``[rows, rotary_dim]``, cosines, then sines.
    """
    positions, half = positions.reshape(-1), rotary_dim // 2
    tokens = positions.shape[0]
    if tokens == 0:
        return query, key
    try:
        q = query.view(tokens, -1, head_size)
        k = None if key is None else key.view(tokens, -1, head_size)
    except RuntimeError:  # rows of a batch that do not follow each other
        return None
    # A compiler makes the copies that operators in place need, and then drops them, or not: what it can see needs none.
    inplace = not _functions._is_compiling()
    q, k = _functions.apply(
        q, k, cache[:, :half], cache[:, half:], position_ids=positions, tables="half", rotary_dim=rotary_dim, inplace=inplace,
        layout="thd", rounding=rounding, style="half_split" if is_neox_style else "interleaved",
    )  # fmt: skip
    return (query, key) if inplace else (q.view(query.shape), None if key is None else k.view(key.shape))
