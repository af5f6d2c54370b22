"""Which of transformers' functions the kernels compute, told by their text.

A function is covered when its syntax tree, and those of the helpers it calls, equal one of the texts that we know: names of models
say nothing, because a model's function may change with the next release. Annotations, docstrings, decorators and the
names of helpers are ignored. Where the function reads each angle twice, the text of its module must also show that both are
the same (`_tables`).
"""

import ast
import functools
import hashlib
import inspect
import textwrap
from typing import NamedTuple

from . import _form_texts_rare, _tables
from ._form_texts import COMMON, Form

FORMS = COMMON + _form_texts_rare.RARE
#: Texts, by their `digest`, that kernels compute no bit-equal result for, and why.
_TWO_ANGLES = "it turns the two elements of a pair by angles of their own"
OTHERS = {
    "581a170f3cab": "it computes in float64",  # MusicFlamingo
    **dict.fromkeys(("dc140950aa40", "72053070183c", "7c19a8c96292", "6fddd781c56a"), _TWO_ANGLES),  # V-JEPA 2, with its method
    "7d1c99db4a63": "flash-attn's kernel computes it",  # ModernBERT, of packed q, k and v
}


class _Canonical(ast.NodeTransformer):
    """One spelling for what is the same: `0::2` and `::2`, lists and tuples, names of helpers."""

    def __init__(self, helpers):
        self.helpers = helpers

    def visit_Slice(self, node):
        self.generic_visit(node)
        if isinstance(node.lower, ast.Constant) and node.lower.value == 0:
            node.lower = None
        return node

    def visit_List(self, node):
        self.generic_visit(node)
        return ast.Tuple(node.elts, node.ctx)

    def visit_Name(self, node):
        node.id = self.helpers.get(node.id, node.id)
        return node


def canonical(functions):
    """One text for the syntax trees of a function and, behind it, its helpers."""
    helpers = {f.name: f"helper{i}" for i, f in enumerate(functions)}
    texts = []
    for function in functions:
        if isinstance(function.body[0], ast.Expr) and isinstance(function.body[0].value, ast.Constant):
            function.body = function.body[1:]
        names = [a.arg for a in function.args.args]
        if function.args.vararg or function.args.kwonlyargs or function.args.posonlyargs:
            return None
        names += [f"**{function.args.kwarg.arg}"] if function.args.kwarg else []
        body = [ast.unparse(ast.fix_missing_locations(_Canonical(helpers).visit(node))) for node in function.body]
        defaults = [ast.unparse(d) for d in function.args.defaults]
        texts.append(f"{helpers[function.name]} {names} {defaults}\n" + "\n".join(body))
    return "\n".join(texts)


def digest(functions):
    """Of the text of `canonical`: the same for all models that have a function and its helpers word for word."""
    return hashlib.sha256((canonical(functions) or "").encode()).hexdigest()[:12]


def _drop_unused_ids(function):
    """Removes ``position_ids=None`` from the parameters of a function that does not read it; whether it was there."""
    args = function.args
    if [a.arg for a in args.args[-2:]] != ["position_ids", "unsqueeze_dim"] or len(args.defaults) != 2:
        return False
    if ast.unparse(args.defaults[0]) != "None" or any(
        isinstance(node, ast.Name) and node.id == "position_ids" for line in function.body for node in ast.walk(line)
    ):
        return False
    del args.args[-2], args.defaults[0]
    return True


def _with_helpers(function, find):
    """The function and those that it calls, and those that these call, as trees, in the order in which they are first met.
    ``find``: the tree of a name, or None."""
    found = {function.name: function}
    queue = [function]
    for tree in queue:
        nodes = [node for statement in tree.body for node in ast.walk(statement)]  # not of decorators
        for node in nodes:
            name = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else None
            if name is not None and name not in found and (helper := find(name)) is not None:
                found[name] = helper
                queue.append(helper)
    return queue


@functools.lru_cache(maxsize=None)
def _known():
    known = {}
    for form in FORMS:
        functions = {node.name: node for node in ast.parse(form.text).body if isinstance(node, ast.FunctionDef)}
        known[canonical(_with_helpers(functions["f"], functions.get))] = form
    return known


@functools.lru_cache(maxsize=None)
def _text(function):
    return textwrap.dedent(inspect.getsource(function))


def tree_of(function):
    return ast.parse(_text(function)).body[0]


def trees_of(function):
    """Of a function and the helpers that it calls."""
    bound = function.__globals__
    return _with_helpers(tree_of(function), lambda name: tree_of(bound[name]) if name in bound else None)


class Match(NamedTuple):
    """A covered function."""

    form: Form
    #: It takes ``position_ids``, unused, in front of ``unsqueeze_dim``.
    ids: bool


def of(function, module_name=None):
    """What a model's function is: a `Match`, or a text that says why it is not covered. ``module_name``: where it is bound,
    if elsewhere than where it is defined."""
    try:
        functions = trees_of(function)
        if not all(isinstance(f, ast.FunctionDef) for f in functions):
            return "it is no plain function"
        ids = _drop_unused_ids(functions[0])
        form = _known().get(canonical(functions))
        if form is None or (ids and form.call not in ("pair", "single", "of_four")):
            return OTHERS.get(digest(functions), "its text is none of the known forms")
        modules = dict.fromkeys((module_name or function.__module__, function.__module__))
        return _doubt(form, function.__name__, *modules) or Match(form, ids)
    except (OSError, TypeError, SyntaxError, AttributeError, IndexError, KeyError):
        return "its text cannot be read"


def _doubt(form, name, *modules):
    if form.made_by:
        (maker,) = ast.parse(form.made_by).body
        text = canonical([maker])
        made = [canonical([method]) for module in modules for method in _tables.makers(module, maker.name)]
        return None if made and all(x == text for x in made) else "the text that makes its tables is not the known one"
    return _tables.doubt(form.tables, name, *modules) if form.tables in ("full", "twice") else None
