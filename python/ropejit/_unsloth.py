"""What of Unsloth the kernels compute: `patch("unsloth")` comes here for each of its modules and of those that it generates.

Unsloth's own ``fast_rope_embedding`` is replaced by ours, whatever its text is: it rounds as README says. The rest of Unsloth that
rotates rounds in an order that kernels have not, and stays, with a line in the log: decode multiplies in the type of q and adds
the second product with ``addcmul_``, or has a kernel that fuses in that type. A module that Unsloth generates has the model's own
functions: one that it leaves to eager PyTorch is replaced as in transformers; one that it compiles stays, since the compiler's
rounding is another.
"""

import functools
import inspect
import logging
import re

from . import _forms, _functions, _replacements, _slots

#: Names of Unsloth's functions that rotate and stay.
_OWN = re.compile(r"^(inplace_rope_embedding|decode_\w*rope\w*|fast_qk_norm_rope)$")


def patch_module(module):
    """Replaces what is covered in a module of Unsloth, and says in the log what stays."""
    from . import _patch

    def stays(name, why):
        whole = f"{module.__name__}.{name}"
        _patch._say_once(logging.WARNING, whole, "%s is not covered and stays as it is: %s", why)

    if "unsloth_compiled_module_" in module.__name__:
        _patch_generated(module, _patch, stays)
        return
    for name, value in list(vars(module).items()):
        if name == "fast_rope_embedding":
            if not hasattr(value, "__ropejit__"):
                _patch._replace(module, _slots.Attribute(module, name), functools.wraps(value)(_fast_rope_embedding()))
        elif inspect.isfunction(value) and value.__module__ == module.__name__:
            if _OWN.match(name):
                stays(name, "it fuses a step that kernels round")
            elif "addcmul_" in value.__code__.co_names and {"cos", "sin"} <= set(value.__code__.co_varnames):
                stays(name, "it rotates among its other statements, in an order of rounding that kernels have not")


def _fast_rope_embedding():
    def function(Q, K, cos, sin, rope_embedding_indices=None):
        return _functions.fast_rope_embedding(Q, K, cos, sin, rope_embedding_indices)

    return function


def _patch_generated(module, patch, stays):
    for name, value in list(vars(module).items()):
        if not callable(value) or not patch._ROTATES.search(name) or hasattr(value, "__ropejit__"):
            continue
        if not inspect.isfunction(value) or hasattr(value, "__wrapped__") or hasattr(value, "_torchdynamo_orig_callable"):
            stays(name, "Unsloth compiles it")
            continue
        match = _forms.of(value, module.__name__)
        if isinstance(match, str):
            stays(name, match)
        else:
            patch._replace(module, _slots.Attribute(module, name), _replacements.of(match, value))
