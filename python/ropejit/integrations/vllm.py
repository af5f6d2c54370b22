"""vLLM: its rotary layers, replaced through `CustomOp.register_oot`.

`plugin` is the entry point of the group ``vllm.general_plugins``. vLLM calls it in each of its processes if it is installed, so
it does nothing until ``VLLM_PLUGINS`` names it. `register` does the same where a program calls it, before a model is loaded.

What is computed: float32 arithmetic, each result rounded once (``rounding="once"``), of q and tables in 16 bits. These are the
bits of the CUDA kernels of vLLM 0.33, although those are compiled so that a product and the sum are one step: a product of two
numbers of 16 bits is exact in float32. Kernels of older releases, and each layer's ``forward_native``, round each operation, as
does ``rounding="per_op"``.
"""

import logging
import os

_log = logging.getLogger("ropejit")


def plugin():
    """The entry point: `register`, if ``VLLM_PLUGINS`` names ``ropejit``."""
    if "ropejit" in os.environ.get("VLLM_PLUGINS", "").split(","):
        register()
    else:
        _log.info("vLLM keeps its rotary layers; hint: VLLM_PLUGINS=ropejit names the plugin that replaces them")


def register(rounding="once"):
    """Has vLLM make our layers where it makes its own: ``RotaryEmbedding``, every class that inherits what it computes,
    and ``ApplyRotaryEmb`` of vision towers. Returns the names of those replaced.

    Layers with a way of their own (``MRotaryEmbedding``, DeepSeek's, Llama 4's vision) stay, and so do calls with q or tables in
    float32, where one step would show. vLLM calls ``RotaryEmbedding`` where its compilation config has
    ``custom_ops=["+rotary_embedding"]``; else it compiles ``forward_native``, and nothing of ours runs. ``ApplyRotaryEmb`` is
    called by default.
    """
    if rounding not in ("once", "per_op"):
        raise ValueError(f"rounding: {rounding!r} is not one of 'once' and 'per_op'")
    from vllm.model_executor.custom_op import op_registry_oot
    from vllm.model_executor.layers import rotary_embedding
    from vllm.model_executor.layers.rotary_embedding import RotaryEmbedding
    from vllm.model_executor.layers.rotary_embedding.common import ApplyRotaryEmb

    replaced, stay = [], []
    for cls in (*_family(RotaryEmbedding), ApplyRotaryEmb):
        name = cls.__name__
        if hasattr(cls, "__ropejit__"):
            continue
        own = op_registry_oot.get(name)
        if hasattr(own, "__ropejit__"):
            replaced.append(name)
            continue
        forward = cls.forward_cuda
        if own is not None or cls is not ApplyRotaryEmb and not _inherits(cls, RotaryEmbedding):
            stay.append(name)
            continue
        ours = _apply_rotary_emb(forward, rounding) if cls is ApplyRotaryEmb else _rotary_embedding(forward, rounding)
        made = type(name, (cls,), {"forward_cuda": ours, "__module__": __name__, "__ropejit__": cls})
        called = cls.name
        cls.register_oot(made, name=name)
        made.name = called  # what `custom_ops` calls it
        replaced.append(name)
    known = (RotaryEmbedding, ApplyRotaryEmb)
    stay += [name for name, c in vars(rotary_embedding).items() if isinstance(c, type) and _is_left(c, known)]
    _log.info(
        "vLLM's %s are ropejit's, rounding %r; these stay: %s",
        ", ".join(replaced), rounding, ", ".join(sorted(set(stay))) or "none",
    )  # fmt: skip
    return replaced


def _family(cls):
    yield cls
    for inner in cls.__subclasses__():
        yield from _family(inner)


def _inherits(cls, base):
    """Whether both ways of computing are the base's: a class with a native one of its own rotates in another way."""
    return all(getattr(cls, name) is getattr(base, name) for name in ("forward_cuda", "forward_native", "forward_static"))


def _is_left(cls, known):
    return hasattr(cls, "forward_cuda") and "Rotary" in cls.__name__ and not issubclass(cls, known)


def _rotary_embedding(theirs, rounding):
    def forward_cuda(self, positions, query, key=None):
        from . import _serving

        cache = None if self.use_flashinfer else self._match_cos_sin_cache_dtype(query)
        fits = cache is not None and cache.dtype == query.dtype
        if fits and _serving.is_covered(self.head_size, self.rotary_dim, cache, query):
            out = _serving.rotate(
                positions, query, key, self.head_size, self.rotary_dim, cache, self.is_neox_style, rounding
            )  # fmt: skip
            if out is not None:
                return out
        return theirs(self, positions, query, key)

    return forward_cuda


def _apply_rotary_emb(theirs, rounding):
    def forward_cuda(self, x, cos, sin):
        from . import _serving
        from .. import _functions

        rotary_dim = 2 * cos.shape[-1]
        whole = x.ndim in (3, 4) and x.shape[-1] <= 512 and 2 <= rotary_dim <= x.shape[-1]
        if not whole or x.dtype not in _serving.TYPES or not x.dtype == cos.dtype == sin.dtype:
            return theirs(self, x, cos, sin)
        # Where vLLM asks for float32 it casts all there and back: kernels compute in it anyway.
        how = "once" if self.enable_fp32_compute else rounding
        out, _ = _functions.apply(
            x if x.ndim == 4 else x.unsqueeze(0), None, cos, sin, tables="half", rotary_dim=rotary_dim, rounding=how,
            style="half_split" if self.is_neox_style else "interleaved",
        )  # fmt: skip
        return out if x.ndim == 4 else out.squeeze(0)

    return forward_cuda
