"""Autotuned, cached kernels for rotary position embedding (RoPE).

``apply`` rotates q and k; ``qk_norm_rope`` normalises them in the same launch, ``rope_append`` stores k and v in a paged cache.
``apply_rotary_pos_emb`` (transformers), ``fast_rope_embedding`` (Unsloth) and ``apply_rotary_emb`` (flash-attn) are drop-in
replacements; ``patch`` puts them in place of a library's own. ``template`` makes a callable of a kernel of your own.
``prewarm`` fills the cache at deploy time, ``freeze`` forbids compiling and tuning from then on, ``stats`` and ``inspect`` say what
was done and why.

PyTorch is not imported by importing this.
"""

import atexit as _atexit
import os as _os

from . import _ropejit
from ._ropejit import NotCachedError, RopejitError, __version__, check, freeze, wait_tuned
from ._fused import qk_norm_rope, rope_append
from ._functions import apply, apply_rotary_emb, apply_rotary_pos_emb, fast_rope_embedding

# Looked up at their first use: what these import takes longer than all the rest.
_LATER = dict.fromkeys(("Candidate", "Choice", "Prepared", "Stats", "inspect", "prewarm", "stats"), "_service")
_LATER.update(dict.fromkeys(("patch", "patched", "unpatch"), "_patch"))
_LATER["Norm"] = "_norm"
_LATER["Angles"] = "_rows"
_LATER.update(dict.fromkeys(("apply_rotary_emb_kv_", "apply_rotary_emb_qkv_"), "_packed"))
_LATER.update(dict.fromkeys(("Template", "template"), "_template"))

__all__ = [
    "Angles", "Candidate", "Choice", "Norm", "NotCachedError", "Prepared", "RopejitError", "Stats", "Template", "__version__",
    "apply", "apply_rotary_emb", "apply_rotary_emb_kv_", "apply_rotary_emb_qkv_", "apply_rotary_pos_emb", "check",
    "fast_rope_embedding", "freeze", "inspect", "patch", "patched", "prewarm", "qk_norm_rope", "rope_append", "stats", "template",
    "unpatch", "wait_tuned",
]  # fmt: skip

# A thread that still tunes while the driver shuts down may crash.
_atexit.register(_ropejit.close)

if _os.environ.get("ROPEJIT_LOG"):
    from . import _log

    _log.follow(_os.environ["ROPEJIT_LOG"])


def __getattr__(name):
    if name in _LATER:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted({*globals(), *__all__})
