"""Which norms of q and k the kernels compute, told by the text of their class.

As for functions that rotate (`_forms`): the syntax tree of ``forward`` and of the methods that it calls decides, names of
models and classes say nothing.
"""

import ast
import functools
import inspect
from dataclasses import dataclass

from . import _forms

_SQUARES = """
def forward(self, hidden_states):
    input_dtype = hidden_states.dtype
    hidden_states = hidden_states.to(torch.float32)
    variance = hidden_states.pow(2).mean(-1, keepdim=True)
    hidden_states = hidden_states * torch.rsqrt(variance + self.variance_epsilon)
"""
_NORM = """
def _norm(self, x):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)
"""


@dataclass(frozen=True)
class Norm:
    """A norm over the elements of one head."""

    name: str
    #: As the argument of this name of `qk_norm_rope`.
    flavour: str
    text: str
    #: The attribute that is added to the mean of the squares.
    eps: str = "eps"
    #: The attribute that says whether there is a weight, where there is such an attribute.
    scaled: str | None = None
    #: Whether the kernels' gradient has the steps of this text. Not where the root is a power of −0.5: its gradient takes a
    #: power of −1.5, that of ``rsqrt`` a third power.
    differentiable: bool = True


NORMS = (
    Norm("t5", "weight_after", _SQUARES + "    return self.weight * hidden_states.to(input_dtype)\n", "variance_epsilon"),
    Norm("olmo", "weight_f32", _SQUARES + "    return (self.weight * hidden_states).to(input_dtype)\n", "variance_epsilon"),
    Norm(
        "lara", "weight_f32",
        _SQUARES + "    return (self.weight.to(torch.float32) * hidden_states).to(input_dtype)\n",
        "variance_epsilon",
    ),
    Norm(
        "gemma", "one_plus_weight",
        """
def forward(self, x):
    output = self._norm(x.float())
    output = output * (1.0 + self.weight.float())
    return output.type_as(x)
""" + _NORM,
    ),
    Norm(
        "gemma3n", "weight_f32",
        """
def forward(self, hidden_states):
    normed_output = self._norm(hidden_states.float())
    if self.with_scale:
        normed_output = normed_output * self.weight.float()
    return normed_output.type_as(hidden_states)

def _norm(self, hidden_states):
    mean_squared = hidden_states.pow(2).mean(-1, keepdim=True) + self.eps
    return hidden_states * torch.pow(mean_squared, -0.5)
""",
        scaled="with_scale", differentiable=False,
    ),
    Norm("l2", "no_weight", "def forward(self, x):\n    return self._norm(x.float()).type_as(x)\n" + _NORM),
)  # fmt: skip


@functools.lru_cache(maxsize=None)
def _known():
    return {_forms.canonical(ast.parse(norm.text).body): norm for norm in NORMS}


def _methods(cls):
    """The trees of ``forward`` and of the methods of ``self`` that it calls, in the order of their names."""
    forward = _forms.tree_of(cls.forward)
    calls = [node.func for node in ast.walk(forward) if isinstance(node, ast.Call)]
    of_self = {f.attr for f in calls if isinstance(f, ast.Attribute) and ast.unparse(f.value) == "self"}
    return [forward, *(_forms.tree_of(getattr(cls, name)) for name in sorted(of_self))]


@functools.lru_cache(maxsize=None)
def of(cls):
    """The `Norm` that a class of modules computes, or None."""
    import torch

    if not inspect.isclass(cls) or not issubclass(cls, torch.nn.Module) or cls.__call__ is not torch.nn.Module.__call__:
        return None
    try:
        return _known().get(_forms.canonical(_methods(cls)))
    except (OSError, TypeError, SyntaxError, AttributeError, IndexError, KeyError):
        return None
