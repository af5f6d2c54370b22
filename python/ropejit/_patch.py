"""Puts the kernels in place of other libraries' functions, in modules that are loaded and in those loaded later."""

import functools
import logging
import sys
from contextlib import contextmanager

from . import _functions

_log = logging.getLogger("ropejit")
_NAMES = ("apply_rotary_pos_emb", "apply_rotary_pos_emb_vision")
#: module, attribute, what was there
_replaced = []
_active = set()


def _replacement(form, original):
    """A function that is called as the original is, and calls it where the kernels do not cover a call."""
    rotate = _functions.drop_in
    how = (form.interleaved, form.tables, form.rounding)
    if form.call == "pair":

        def function(q, k, cos, sin, unsqueeze_dim=1):
            out = rotate(q, k, cos, sin, unsqueeze_dim, *how)
            return original(q, k, cos, sin, unsqueeze_dim) if out is None else out

    elif form.call == "pair_ids":

        def function(q, k, cos, sin, position_ids=None, unsqueeze_dim=1):
            out = rotate(q, k, cos, sin, unsqueeze_dim, *how)
            return original(q, k, cos, sin, position_ids, unsqueeze_dim) if out is None else out

    elif form.call == "single":

        def function(x, cos, sin, unsqueeze_dim=1):
            out = rotate(x, None, cos, sin, unsqueeze_dim, *how)
            return original(x, cos, sin, unsqueeze_dim) if out is None else out[0]

    elif form.call == "vision":

        def function(q, k, cos, sin):
            if q.ndim != 3 or cos.ndim != 2:
                return original(q, k, cos, sin)
            out = rotate(*(x.unsqueeze(0) for x in (q, k, cos, sin)), 2, *how)
            return original(q, k, cos, sin) if out is None else (out[0].squeeze(0), out[1].squeeze(0))

    else:

        def function(tensor, sin, cos):
            # Its tables are as wide as the tensor turns, so more than half would not fit: eager says so.
            out = rotate(tensor, None, cos, sin, 2, *how) if 2 * cos.shape[-1] == tensor.shape[-1] else None
            return original(tensor, sin, cos) if out is None else out[0]

    return functools.wraps(original)(function)


def _replace(module, name, new):
    _replaced.append((module, name, getattr(module, name)))
    new.__ropejit__ = True
    setattr(module, name, new)


def _patch_model(module):
    """Replaces a model's functions, where they are covered."""
    from . import _forms

    for name in _NAMES:
        original = module.__dict__.get(name)
        if original is None or getattr(original, "__ropejit__", False):
            continue
        form = _forms.of(original)
        if form is None:
            _log.warning("%s.%s is not covered, it stays as it is", module.__name__, name)
        else:
            _replace(module, name, _replacement(form, original))


def _patch_unsloth(module):
    for name in ("fast_rope_embedding",):
        original = module.__dict__.get(name)
        if original is None or getattr(original, "__ropejit__", False):
            continue

        def function(Q, K, cos, sin, rope_embedding_indices=None):
            return _functions.fast_rope_embedding(Q, K, cos, sin, rope_embedding_indices)

        _replace(module, name, functools.wraps(original)(function))


def _patcher(module_name):
    """What patches a module of this name; None for modules that are no concern."""
    package, _, _ = module_name.partition(".")
    last = module_name.rpartition(".")[2]
    if "transformers" in _active and last.startswith("modeling_") and package in ("transformers", "transformers_modules"):
        return _patch_model
    if "unsloth" in _active and package == "unsloth":
        return _patch_unsloth
    return None


class _Loader:
    """Loads as another loader does, then patches."""

    def __init__(self, loader, patcher):
        self.loader, self.patcher = loader, patcher

    def create_module(self, spec):
        return self.loader.create_module(spec)

    def exec_module(self, module):
        self.loader.exec_module(module)
        # As if the import had not been watched.
        module.__loader__ = module.__spec__.loader = self.loader
        self.patcher(module)

    def __getattr__(self, name):
        return getattr(self.loader, name)


class _Finder:
    """Watches imports. It finds nothing itself: it asks the finders behind it."""

    def find_spec(self, name, path, target=None):
        patcher = _patcher(name)
        if patcher is None:
            return None
        for finder in sys.meta_path:
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                if hasattr(spec.loader, "exec_module"):
                    spec.loader = _Loader(spec.loader, patcher)
                return spec
        return None


_finder = _Finder()


def patch(library):
    """Replaces the RoPE of a library, ``"transformers"`` or ``"unsloth"``, in every module that is loaded or will be.

    A model whose function is not one of the known forms, told by its text, keeps its own, with one line in the log of
    `logging.getLogger("ropejit")`. Calls that the kernels do not cover go to the original function.
    """
    if library not in ("transformers", "unsloth"):
        raise ValueError(f"library: {library!r} is not one of 'transformers' and 'unsloth'")
    _active.add(library)
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
    for name, module in list(sys.modules.items()):
        patcher = _patcher(name)
        if patcher is not None and hasattr(module, "__dict__"):
            patcher(module)


def unpatch(library=None):
    """Puts back what `patch` has replaced: of one library, or of all."""
    libraries = set(_active) if library is None else {library}
    _active.difference_update(libraries)
    if not _active and _finder in sys.meta_path:
        sys.meta_path.remove(_finder)
    packages = {p for name in libraries for p in ((name, "transformers_modules") if name == "transformers" else (name,))}
    for entry in reversed(_replaced[:]):
        module, name, original = entry
        if module.__name__.partition(".")[0] in packages:
            # Who has put something else there since then keeps it.
            if getattr(module.__dict__.get(name), "__ropejit__", False):
                setattr(module, name, original)
            _replaced.remove(entry)


@contextmanager
def patched(library):
    """``with ropejit.patched("transformers"): …`` patches inside the block."""
    already = library in _active
    patch(library)
    try:
        yield
    finally:
        if not already:
            unpatch(library)
