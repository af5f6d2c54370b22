"""Which attention classes take the norms of q and k and the rotation as one call: those whose norms, whose functions that rotate
and whose ``forward`` are known by their texts."""

import ast
import inspect

from . import _forms, _norm_calls, _norm_forms, _norm_sequences


def _called(cls, attribute):
    """The classes of which ``__init__`` makes this attribute, as far as its text names them."""
    found = []
    for base in cls.__mro__:
        init = base.__dict__.get("__init__")
        if not inspect.isfunction(init):
            continue
        init = inspect.unwrap(init)
        try:
            nodes = list(ast.walk(_forms.tree_of(init)))
        except (OSError, TypeError, SyntaxError):
            continue
        for node in nodes:
            if isinstance(node, ast.Assign) and any(ast.unparse(t) == f"self.{attribute}" for t in node.targets):
                calls = [n.func for n in ast.walk(node.value) if isinstance(n, ast.Call)]
                found += [_named(f, init.__globals__) for f in calls]
    return [x for x in found if inspect.isclass(x)]


def _named(node, names):
    if isinstance(node, ast.Attribute):
        return getattr(_named(node.value, names), node.attr, None)
    return names.get(node.id) if isinstance(node, ast.Name) else None


def _norm_of(cls, attributes):
    """The class of all these norms, and which `Norm` it is; a text where that is not known."""
    classes = [_called(cls, attribute) for attribute in attributes]
    if not all(classes):
        return f"it cannot be told what {' and '.join(attributes)} are"
    for norm_class in classes[0]:
        norm = _norm_forms.of(norm_class)
        if norm is not None and all(norm_class in others for others in classes):
            return norm_class, norm
    names = sorted({c.__name__ for made in classes for c in made})
    return f"the text of {', '.join(names)} is none of the known forms"


def _layer_forward(rotate, function):
    """Whether all that stands around `function` is a layer of Hugging Face's `kernels`, and the ``forward`` that it then has."""
    if rotate is function:
        return True, None
    is_layer = hasattr(rotate, "kernel_layer_name") and hasattr(rotate, "_parameters")
    return is_layer, vars(rotate).get("forward") if is_layer else None


def of(label, cls, forward, module, rotating):
    """What makes a class' ``forward`` anew, and the functions that it then asks; a text where it stays as it is.

    `rotating`: for each function that rotates, by name, its `_forms.Match` and its `_slots` slot.
    """
    found, make = _norm_sequences.of(forward, {name: match for name, (match, _) in rotating.items()})
    if not found:
        return "the text is none of the known sequences"
    rules = []
    for sequence in found:
        match, slot = rotating[sequence.rotate]
        norm = _norm_of(cls, list(dict.fromkeys(sequence.norms.values())))
        if isinstance(norm, str):
            return norm
        rotate, function = vars(module)[sequence.rotate], slot.get()
        plain, layer_forward = _layer_forward(rotate, function)
        if not plain:
            return f"what is wrapped around {sequence.rotate} may do more"
        rules.append(
            _norm_calls.Rule(
                label, rotate, function.__ropejit__, layer_forward, match.form, *norm, sequence.unsqueeze_dim, sequence.swapped,
                sequence.after_rope,
            )
        )  # fmt: skip
    return make, [_norm_calls.of(rule) for rule in rules]
