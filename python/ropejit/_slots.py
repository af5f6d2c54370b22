"""Where a function is kept: in a module, or behind what is wrapped around it there.

A decorator stays in place, with all that others expect of it (Hugging Face's `kernels` turns a function into an
``nn.Module``, which its ``kernelize`` looks for): only the function that it calls is another one.
"""

import sys
import types


class Attribute:
    """An attribute of a module or of a class; of a static method, its function."""

    def __init__(self, module, name):
        self.module, self.name = module, name

    def get(self):
        value = self.module.__dict__.get(self.name)
        return value.__func__ if isinstance(value, staticmethod) else value

    def put(self, value):
        is_static = isinstance(self.module.__dict__.get(self.name), staticmethod)
        setattr(self.module, self.name, staticmethod(value) if is_static else value)


class _Cell:
    """A variable that the wrapper has closed over."""

    def __init__(self, cell):
        self.cell = cell

    def get(self):
        return self.cell.cell_contents

    def put(self, value):
        self.cell.cell_contents = value


class _Forward:
    """The ``forward`` of one ``nn.Module``, which wraps a function that is not in its closure."""

    def __init__(self, module, inner):
        self.module, self.inner = module, inner

    def get(self):
        return self.module.__dict__.get("forward", self.inner)

    def put(self, value):
        if value is self.inner:
            self.module.__dict__.pop("forward", None)
        else:
            self.module.__dict__["forward"] = value


def _is_module(value):
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.nn.Module)


def _cells(function):
    cells = getattr(function, "__closure__", None) or ()
    return [(cell, cell.cell_contents) for cell in cells if _is_set(cell)]


def _is_set(cell):
    try:
        cell.cell_contents
    except ValueError:
        return False
    return True


def _next(value):
    """The slot of what ``value`` is wrapped around; None where it wraps nothing, False where that is hidden."""
    is_module = _is_module(value)
    outer = type(value).forward if is_module else value
    own = value.__dict__.get("forward") if is_module else None
    if own is not None and getattr(own, "__func__", None) is not outer and not hasattr(own, "__ropejit__"):
        return False  # another kernel has taken its place
    inner = vars(value).get("__wrapped__") if hasattr(value, "__dict__") else None
    if hasattr(inner, "__ropejit__"):
        return False
    cells = _cells(outer)
    if inner is None and is_module:
        functions = [x for _, x in cells if isinstance(x, types.FunctionType)]
        if len(functions) != 1:
            return False
        inner = functions[0]
    if inner is None:
        return None
    for cell, content in cells:
        # Where ours is there already, what it stands for is what is wrapped.
        if content is inner or getattr(content, "__ropejit__", None) is inner:
            return _Cell(cell)
    return _Forward(value, inner) if is_module else False


def find(module, name):
    """The slot of the function that is called by this attribute of a module or class (``Class.method``: of a class in the
    module), or None where that cannot be told."""
    owner, _, name = name.rpartition(".")
    slot = Attribute(getattr(module, owner) if owner else module, name)
    while not hasattr(slot.get(), "__ropejit__"):
        inner = _next(slot.get())
        if inner is None:
            return slot
        if inner is False:
            return None
        slot = inner
    return slot
