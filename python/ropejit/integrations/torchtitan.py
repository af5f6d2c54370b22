"""torchtitan: its rotary modules, as overrides of its configuration.

This module is the one that torchtitan's ``--override.imports`` names, and so imports torchtitan::

    --override.imports ropejit.integrations.torchtitan.cos_sin_rope
    --override.imports ropejit.integrations.torchtitan.complex_rope

``cos_sin_rope`` has the bits of ``CosSinRoPE``, results and gradients. So has ``complex_rope`` those of ``ComplexRoPE`` where calls
are eager and `_complex` knows a contract of PyTorch's product; else it rounds once, and a few results may differ in the last bit.
"""

from dataclasses import dataclass

import torch
from torchtitan.config import derive, override
from torchtitan.models.common.rope import ComplexRoPE, CosSinRoPE

from .. import _complex, _functions

__all__ = ["RopejitComplexRoPE", "RopejitCosSinRoPE", "complex_rope", "cos_sin_rope"]


def _both(query, key, cos, sin, style, rounding="once"):
    """q and k, ``[batch, tokens, heads, head_dim]``, rotated, or None; cos and sin: ``[1 or batch, tokens, 1, head_dim / 2]``."""
    if not all(type(x) is torch.Tensor for x in (query, key, cos)) or cos.ndim != 4 or cos.shape[2] != 1:
        return None  # a DTensor: its placements are torchtitan's to follow
    return _functions.drop_in(query, key, cos.squeeze(2), sin.squeeze(2), 2, style, "half", False, rounding)


class RopejitCosSinRoPE(CosSinRoPE):
    """`CosSinRoPE`, whose rotation is one launch."""

    @dataclass(kw_only=True, slots=True)
    class Config(CosSinRoPE.Config):
        pass

    @staticmethod
    def apply_rotary_emb(query, key, rope_cache):
        """As `CosSinRoPE.apply_rotary_emb`: what kernels do not cover is computed by it."""
        # A row is cosines and sines, each angle twice, as this class makes them.
        head_dim = query.shape[-1]
        half = head_dim // 2
        fits = rope_cache.shape[-1] == 2 * head_dim
        cos, sin = rope_cache[..., :half], rope_cache[..., head_dim : head_dim + half]
        out = _both(query, key, cos, sin, "half_split") if fits else None
        return CosSinRoPE.apply_rotary_emb(query, key, rope_cache) if out is None else out


class RopejitComplexRoPE(ComplexRoPE):
    """`ComplexRoPE`, whose rotation is one launch."""

    @dataclass(kw_only=True, slots=True)
    class Config(ComplexRoPE.Config):
        pass

    @staticmethod
    def apply_rotary_emb(query, key, rope_cache):
        """As `ComplexRoPE.apply_rotary_emb`: what kernels do not cover is computed by it."""
        out = None
        if rope_cache.dtype == torch.complex64 and type(rope_cache) is torch.Tensor:
            cos, sin = (part.contiguous() for part in torch.view_as_real(rope_cache).unbind(-1))
            out = _both(query, key, cos, sin, "interleaved", _complex.rounding(query, key, rope_cache) or "once")
        return ComplexRoPE.apply_rotary_emb(query, key, rope_cache) if out is None else out


@override(target=CosSinRoPE.Config, description="ropejit's kernels for CosSinRoPE, with its bits", exact=True)
def cos_sin_rope(cfg):
    """The override for ``CosSinRoPE``."""
    return derive(cfg, RopejitCosSinRoPE.Config)


@override(target=ComplexRoPE.Config, description="ropejit's kernels for ComplexRoPE, to the last bit", exact=True)
def complex_rope(cfg):
    """The override for ``ComplexRoPE``."""
    return derive(cfg, RopejitComplexRoPE.Config)
