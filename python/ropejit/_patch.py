"""Puts the kernels in place of other libraries' functions, in modules that are loaded and in those loaded later."""

import functools
import inspect
import logging
import re
import sys
from contextlib import contextmanager

from . import _functions, _slots

_log = logging.getLogger("ropejit")
#: Names of functions and methods that rotate, as libraries have them.
_ROTATES = re.compile(r"apply_\w*(rotary|rope)|rotate_queries")
#: name of the module, slot, what was there, what is there now
_replaced = []
_active = set()
#: What the log has been told of, until it is unpatched.
_told = set()
#: Who computes the gradients of norms' weights.
_norm_gradients = "eager"


def _replace(module, slot, new):
    original = slot.get()
    new.__ropejit__ = original
    slot.put(new)
    _replaced.append((module.__name__, slot, original, new))


def _rotating(module):
    """Names of the functions of a module that rotate, and of its methods."""
    for name, value in list(vars(module).items()):
        if inspect.isclass(value):
            # What a `…RotaryEmbedding` has makes tables.
            if value.__module__ == module.__name__ and "RotaryEmbedding" not in name:
                yield from (f"{name}.{method}" for method in vars(value) if _ROTATES.search(method))
        elif callable(value) and _ROTATES.search(name):
            yield name


def _say_once(level, whole, text, *arguments):
    if whole not in _told:
        _told.add(whole)
        _log.log(level, text, whole, *arguments)


def _patch_model(module):
    """Replaces a model's functions, where they are covered, and says in the log which stay. Then the sequences of norms and a
    rotation that call them."""
    from . import _forms, _replacements  # which imports PyTorch, as the model has

    left, called, rotating = {}, set(), {}
    for name in _rotating(module):
        slot = _slots.find(module, name)
        if slot is None:
            left[name] = "what is wrapped around it does not show it, or another kernel has taken its place"
            continue
        function = slot.get()
        is_ours = hasattr(function, "__ropejit__")
        match = function.__ropejit_match__ if is_ours else _forms.of(function, module.__name__)
        if isinstance(match, str):
            left[name] = match
        else:
            rotating[name] = match, slot
            if not is_ours:
                _replace(module, slot, _replacements.of(match, function))
        called.update(inspect.unwrap(function).__code__.co_names if inspect.isfunction(function) else ())
    for name, why in left.items():
        if name not in called:  # a helper goes with those that call it
            _say_once(logging.WARNING, f"{module.__name__}.{name}", "%s is not covered and stays as it is: %s", why)
    if rotating:
        for name, value in list(vars(module).items()):
            if inspect.isclass(value) and value.__module__ == module.__name__ and "forward" in vars(value):
                _patch_attention(module, name, value, rotating)


def _patch_attention(module, name, cls, rotating):
    """Replaces a ``forward`` that normalises q and k and rotates them, where both are covered, and says which stay."""
    from . import _norm_sequences

    slot = _slots.find(cls, "forward")
    if slot is None or hasattr(slot.get(), "__ropejit__"):
        return
    forward = slot.get()
    whole, norms = f"{module.__name__}.{name}.forward", _norm_sequences.norms_of(forward, rotating)
    if not norms:
        return
    from . import _norm_attention

    _set_norm_gradients(_norm_gradients)
    names = " and ".join(norms)
    found = _norm_attention.of(whole, cls, forward, module, rotating)
    if isinstance(found, str):
        _say_once(logging.WARNING, whole, "%s: %s and the rotation stay apart: %s", names, found)
        return
    make, fused = found
    _replace(module, slot, functools.wraps(forward)(make(*fused)))
    _say_once(logging.INFO, whole, "%s: %s and the rotation are one launch for the calls that kernels cover", names)


def _patch_unsloth(module):
    from . import _unsloth

    _unsloth.patch_module(module)


def _patch_diffusers(module):
    from . import _diffusers

    _diffusers.patch_module(module)


def _patcher(module_name):
    """What patches a module of this name; None for modules that are no concern."""
    package, _, _ = module_name.partition(".")
    last = module_name.rpartition(".")[2]
    if "transformers" in _active and last.startswith("modeling_") and package in ("transformers", "transformers_modules"):
        return _patch_model
    if "unsloth" in _active and (package == "unsloth" or last.startswith("unsloth_compiled_module_")):
        return _patch_unsloth
    if "diffusers" in _active and module_name.startswith("diffusers.models."):
        return _patch_diffusers
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


def patch(library, norm_gradients="eager"):
    """Replaces the RoPE of a library, ``"transformers"``, ``"diffusers"`` or ``"unsloth"``, in every module, loaded or to come.

    A function is replaced where its text is one of the known forms. Every other one that rotates keeps its own, with a line in
    the log of `logging.getLogger("ropejit")` that names it and says why. Calls that the kernels do not cover go to the
    original function. Decorators stay around what is replaced.

    Where a model of transformers normalises q and k next to the rotation (Qwen 3, Gemma 3, GLM-4-MoE, …), and the texts of the
    norm and of the attention's ``forward`` are known forms too, norms and rotation are one launch on a GPU. Every call that it
    would not give the model's own bits, results and gradients of q and k, goes to the model's own norms and the rotation alone.
    A norm's weights are the exception, because the kernels add up their gradient in an order of their own. ``norm_gradients``:
    ``"eager"`` leaves the norms to the model where such a gradient is recorded, as when all of a model is trained; ``"own"``
    takes the launch there too. It is what the last call of `patch` for transformers said.
    """
    if library not in ("transformers", "diffusers", "unsloth"):
        raise ValueError(f"library: {library!r} is not one of 'transformers', 'diffusers' and 'unsloth'")
    if norm_gradients not in ("eager", "own"):
        raise ValueError(f"norm_gradients: {norm_gradients!r} is not one of 'eager' and 'own'")
    if library == "transformers":
        _set_norm_gradients(norm_gradients)
    elif norm_gradients != "eager":
        raise ValueError(f"norm_gradients: {norm_gradients!r} is for 'transformers'; {library!r} has no norms that are replaced")
    _active.add(library)
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
    for name, module in list(sys.modules.items()):
        patcher = _patcher(name)
        if patcher is not None and hasattr(module, "__dict__"):
            patcher(module)


def _set_norm_gradients(said):
    """Tells `_norm_calls`, if it is there; it is told when it is imported."""
    global _norm_gradients

    before, _norm_gradients = _norm_gradients, said
    fused = sys.modules.get(f"{__package__}._norm_calls")
    if fused is not None:
        fused.own_gradients = said == "own"
    return before


def unpatch(library=None):
    """Puts back what `patch` has replaced: of one library, or of all."""
    libraries = set(_active) if library is None else {library}
    _active.difference_update(libraries)
    if not _active and _finder in sys.meta_path:
        sys.meta_path.remove(_finder)
    packages = {p for name in libraries for p in ((name, "transformers_modules") if name == "transformers" else (name,))}
    generated = "unsloth" in libraries  # by Unsloth, in packages that have other names
    of = lambda name: name.partition(".")[0] in packages or generated and "unsloth_compiled_module_" in name  # noqa: E731
    _told.difference_update([name for name in _told if of(name)])
    for entry in reversed(_replaced[:]):
        name, slot, original, new = entry
        if of(name):
            # Who has put something else there since then keeps it.
            if slot.get() is new:
                slot.put(original)
            _replaced.remove(entry)


@contextmanager
def patched(library, norm_gradients="eager"):
    """``with ropejit.patched("transformers"): …`` patches inside the block, with what `patch` takes."""
    already, before = library in _active, _norm_gradients
    patch(library, norm_gradients)
    try:
        yield
    finally:
        _set_norm_gradients(before)
        if not already:
            unpatch(library)
