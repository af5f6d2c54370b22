"""Every function of the installed transformers that rotates, and every module that makes tables for one."""

import functools
import importlib
import pathlib
import re

import transformers
from ropejit import _patch, _slots

_MENTIONS = re.compile(r"(apply_\w*(rotary|rope)|rotate_queries)\w*\(|class \w*(Rotary|Rope|RoPE)\w*\(")


@functools.lru_cache(maxsize=None)
def modules():
    """Modules whose text mentions a rotation, imported."""
    root = pathlib.Path(transformers.__file__).parent
    of_torch = [f for f in sorted(root.glob("models/*/modeling_*.py")) if not f.name.startswith(("modeling_tf_", "modeling_flax_"))]
    files = [f for f in of_torch if _MENTIONS.search(f.read_text())]
    return [importlib.import_module(f"transformers.models.{f.parent.name}.{f.stem}") for f in files]


def text(module):
    return pathlib.Path(module.__file__).read_text()


@functools.lru_cache(maxsize=None)
def borrowed():
    """(module, name) of each function that another module has from there."""
    each = ((m.__name__, name, getattr(value, "__module__", None)) for m in modules() for name, value in vars(m).items())
    return {(home, name) for user, name, home in each if home != user}


def functions():
    """(module, name, slot) of each."""
    for module in modules():
        for name in _patch._rotating(module):
            yield module, name, _slots.find(module, name)
