"""The layer that takes the place of ``apply_rotary_pos_emb`` where Hugging Face's `kernels` looks for one."""

import logging

import torch

from .. import _forms, _functions, _replacements

_log = logging.getLogger("ropejit")


class RotaryPosEmb(torch.nn.Module):
    """Rotates q and k as the function does in whose place it is put: told by that function's text, as by `ropejit.patch`. Where
    the text is not known, or kernels do not cover a call, the function itself computes. ``k`` may be None."""

    can_torch_compile = True
    has_backward = True

    def forward(self, q, k, cos, sin, unsqueeze_dim=1):
        _find(type(self))
        return _known[type(self)](q, k, cos, sin, unsqueeze_dim)


#: What serves in the place of a decorated function, by the class that `kernels` has made for it.
_known = {}


@torch.compiler.assume_constant_result
def _find(cls):
    """Fills `_known`: while a compiler traces as well, which reads it behind this call."""
    if cls not in _known:
        _known[cls] = _made_for(cls)


def _decorated(cls):
    """The function that `kernels` has made a layer of: the only one that its ``forward`` closes over."""
    cells = getattr(cls.forward, "__closure__", None) or ()
    functions = [cell for cell in cells if callable(cell.cell_contents)]
    return functions[0] if len(functions) == 1 else None


def _made_for(cls):
    if cls is RotaryPosEmb:  # by itself, in no function's place
        return _llama
    cell = _decorated(cls)
    if cell is None:
        _log.warning("%s stays as it is: it is no function's layer", cls)
        return lambda *arguments: cls.forward(None, *arguments)
    function = getattr(cell.cell_contents, "__ropejit__", cell.cell_contents)  # what `patch` has put there serves as well
    match = _forms.of(function)
    if isinstance(match, str):
        _log.warning("%s.%s is not covered and stays as it is: %s", function.__module__, function.__name__, match)
        return function
    return _of_q_alone(match.form, function, _replacements.of(match, function))


def _llama(q, k, cos, sin, unsqueeze_dim=1):
    if k is not None:
        return _functions.apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim)
    out = _functions.drop_in(q, None, cos, sin, unsqueeze_dim, "half_split", "full", True, "per_op")
    return (_functions.apply_rotary_pos_emb(q, q, cos, sin, unsqueeze_dim)[0], None) if out is None else out


def _of_q_alone(form, function, both):
    """The function for two, which takes one as well."""
    how = (form.style, form.tables, form.partial, form.rounding)

    def function_or_one(q, k, cos, sin, unsqueeze_dim=1):
        if k is not None:
            return both(q, k, cos, sin, unsqueeze_dim=unsqueeze_dim)
        out = _functions.drop_in(q, None, cos, sin, unsqueeze_dim, *how) if form.call == "pair" else None
        return (function(q, q, cos, sin, unsqueeze_dim=unsqueeze_dim)[0], None) if out is None else out

    return function_or_one
