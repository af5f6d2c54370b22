"""SGLang: its rotary embedding, replaced through its own registry of hooks.

`plugin` is the entry point of the group ``sglang.srt.plugins``. SGLang calls it in each of its processes if it is installed, so it
does nothing until ``SGLANG_PLUGINS`` names it. `register` does the same where a program calls it, before SGLang applies its hooks.

What is computed: float32 arithmetic with SGLang's float32 cache, each result rounded once. So does SGLang's kernel, but that its
compiler makes one step of a product and the sum, so that a few results differ in the last bit: of four million random ones 78 in
bfloat16 and 497 in float16, where both ways were computed on a processor.
"""

import logging
import os

_log = logging.getLogger("ropejit")
_TARGET = "sglang.srt.layers.rotary_embedding.RotaryEmbedding.forward_cuda"


def plugin():
    """The entry point: `register`, if ``SGLANG_PLUGINS`` names ``ropejit``."""
    if "ropejit" in os.environ.get("SGLANG_PLUGINS", "").split(","):
        register()
    else:
        _log.info("SGLang keeps its rotary embedding; hint: SGLANG_PLUGINS=ropejit names the plugin that replaces it")


def register():
    """Hooks ``RotaryEmbedding.forward_cuda``, and so every class that inherits it.

    The hook is around SGLang's own method, which serves what this does not: calls that store k and v in the cache as well (SGLang
    rotates k where it is besides, which `ropejit.rope_append` does not), offsets, float32, and heads for which SGLang itself has
    its second kernel.
    """
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    HookRegistry.register(_TARGET, forward_cuda, HookType.AROUND)
    _log.info("SGLang's RotaryEmbedding is ropejit's: some results differ from its own kernel's in the last bit")


def forward_cuda(original, self, positions, query, key, offsets=None, fused_set_kv_buffer_arg=None):
    """The hook: q and k, rotated where they are."""
    from . import _serving

    cache, rotary_dim = self.cos_sin_cache, self.rotary_dim
    plain = offsets is None and fused_set_kv_buffer_arg is None and not self.use_fallback_kernel and positions.ndim == 1
    if plain and cache.device == query.device and _serving.is_covered(self.head_size, rotary_dim, cache, query):
        if key is not None and key.dtype == query.dtype:
            out = _serving.rotate(positions, query, key, self.head_size, rotary_dim, cache, self.is_neox_style, "once")
            if out is not None:
                return out
    return original(self, positions, query, key, offsets, fused_set_kv_buffer_arg)
