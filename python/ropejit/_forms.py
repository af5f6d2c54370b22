"""Which of transformers' functions the kernels compute, told by their text.

A function is covered when its syntax tree, and those of the helpers it calls, equal one of the texts below: names of models
say nothing, because a model's function may change with the next release. Annotations, docstrings, decorators and the
names of helpers are ignored. Where the function reads each angle twice, the text of its module must also show that both are
the same (`_tables`).
"""

import ast
import functools
import inspect
import textwrap
from dataclasses import dataclass
from typing import NamedTuple

from . import _tables

_HALVES = """
def rotate(x):
    x1 = x[..., : x.shape[-1] // 2]
    x2 = x[..., x.shape[-1] // 2 :]
    return torch.cat((-x2, x1), dim=-1)
"""
_PAIRS = """
def rotate(x):
    x1 = x[..., ::2]
    x2 = x[..., 1::2]
    return torch.stack((-x2, x1), dim=-1).flatten(-2)
"""
_PAIRS_NAMED = """
def rotate(x):
    x1 = x[..., ::2]
    x2 = x[..., 1::2]
    rot_x = torch.stack((-x2, x1), dim=-1).flatten(-2)
    return rot_x
"""
_UNSQUEEZE = """
    cos = cos.unsqueeze(unsqueeze_dim)
    sin = sin.unsqueeze(unsqueeze_dim)
"""
_REPEAT = """
    cos = cos[..., : cos.shape[-1] // 2].repeat_interleave(2, dim=-1)
    sin = sin[..., : sin.shape[-1] // 2].repeat_interleave(2, dim=-1)
"""
_TURN = """
    q_embed = (q * cos) + (rotate(q) * sin)
    k_embed = (k * cos) + (rotate(k) * sin)
"""
_SPLIT = """
    rotary_dim = cos.shape[-1]
    q_rot, q_pass = q[..., :rotary_dim], q[..., rotary_dim:]
    k_rot, k_pass = k[..., :rotary_dim], k[..., rotary_dim:]
"""
_TURN_PART = """
    q_embed = (q_rot * cos) + (rotate(q_rot) * sin)
    k_embed = (k_rot * cos) + (rotate(k_rot) * sin)
    q_embed = torch.cat([q_embed, q_pass], dim=-1)
    k_embed = torch.cat([k_embed, k_pass], dim=-1)
"""
_BOTH = "    return q_embed, k_embed\n"
_PAIR = "def f(q, k, cos, sin, unsqueeze_dim=1):\n"


@dataclass(frozen=True)
class Form:
    """How a covered function is called and what it computes."""

    name: str
    #: ``pair`` (q, k, cos, sin, unsqueeze_dim), ``single`` (x, cos, sin, unsqueeze_dim), ``vision`` (q, k, cos, sin),
    #: ``gptj`` (tensor, sin, cos).
    call: str
    text: str
    interleaved: bool = False
    #: A row of the tables has each angle once (``half``), twice side by side (``twice``), twice one copy after the other
    #: (``full``), or so with only the first copy read (``first``).
    tables: str = "full"
    #: Whether the tables may be narrower than a head, whose rest then stays.
    partial: bool = False
    #: Of eager operations: ``per_op`` in the tensors' type, ``once`` in float32, ``promoted`` as the tables decide,
    #: ``once_each`` in float32 with a cast of its own for each product, whose gradients are rounded one by one.
    rounding: str = "per_op"


FORMS = (
    Form("llama", "pair", _PAIR + _UNSQUEEZE + _TURN + _BOTH + _HALVES),
    Form("gpt_neox", "pair", _PAIR + _UNSQUEEZE + _SPLIT + _TURN_PART + _BOTH + _HALVES, partial=True),
    Form(
        "phi3", "pair",
        _PAIR + _UNSQUEEZE + _SPLIT + """
    q_embed = torch.cat([(q_rot * cos) + (rotate(q_rot) * sin), q_pass], dim=-1)
    k_embed = torch.cat([(k_rot * cos) + (rotate(k_rot) * sin), k_pass], dim=-1)
""" + _BOTH + _HALVES,
        partial=True,
    ),
    Form(
        "nemotron", "pair",
        _PAIR + _UNSQUEEZE + """
    rot_dim = cos.shape[-1]
    q, q_pass = q[..., :rot_dim], q[..., rot_dim:]
    k, k_pass = k[..., :rot_dim], k[..., rot_dim:]
""" + _TURN + "    return torch.cat((q_embed, q_pass), dim=-1), torch.cat((k_embed, k_pass), dim=-1)\n" + _HALVES,
        partial=True,
    ),
    Form(
        "olmo", "pair",
        _PAIR + "    q_type, k_type = q.dtype, k.dtype\n" + _UNSQUEEZE + _TURN
        + "    return q_embed.to(q_type), k_embed.to(k_type)\n" + _HALVES,
        rounding="promoted",
    ),
    Form(
        "esm", "pair",
        _PAIR + "    original_dtype = q.dtype\n" + _UNSQUEEZE + """
    q_embed = (q.float() * cos) + (rotate(q.float()) * sin)
    k_embed = (k.float() * cos) + (rotate(k.float()) * sin)
    return q_embed.to(original_dtype), k_embed.to(original_dtype)
""" + _HALVES,
        rounding="once_each",
    ),
    Form(
        "hunyuan_vl", "pair",
        _PAIR + """
    origin_dtype = q.dtype
    q, k = q.float(), k.float()
    cos = cos.unsqueeze(unsqueeze_dim).float()
    sin = sin.unsqueeze(unsqueeze_dim).float()
""" + _TURN + "    return q_embed.to(origin_dtype), k_embed.to(origin_dtype)\n" + _HALVES,
        rounding="once",
    ),
    Form(
        "glm", "pair", _PAIR + _UNSQUEEZE + _REPEAT + _SPLIT + _TURN_PART + _BOTH + _PAIRS,
        interleaved=True, tables="first", partial=True,
    ),
    Form("helium", "pair", _PAIR + _UNSQUEEZE + _REPEAT + _TURN + _BOTH + _PAIRS, interleaved=True, tables="first"),
    Form(
        "ernie4_5", "pair",
        _PAIR + "    original_dtype = q.dtype\n" + _UNSQUEEZE + _REPEAT + """
    q_embed = (q.float() * cos) + (rotate(q).float() * sin)
    k_embed = (k.float() * cos) + (rotate(k).float() * sin)
    return q_embed.to(original_dtype), k_embed.to(original_dtype)
""" + _PAIRS,
        interleaved=True, tables="first", rounding="once_each",
    ),
    Form(
        "cohere", "pair",
        _PAIR + "    dtype = q.dtype\n    q = q.float()\n    k = k.float()\n" + _UNSQUEEZE + _TURN
        + "    return q_embed.to(dtype=dtype), k_embed.to(dtype=dtype)\n" + _PAIRS_NAMED,
        interleaved=True, tables="twice", rounding="once",
    ),
    Form("blt", "pair", _PAIR + _UNSQUEEZE + _TURN + _BOTH + _PAIRS_NAMED, interleaved=True, tables="twice"),
    Form(
        "gemma4", "single",
        "def f(x, cos, sin, unsqueeze_dim=1):\n" + _UNSQUEEZE + "    return (x * cos) + (rotate(x) * sin)\n" + _HALVES,
    ),
    Form(
        "gpt_oss", "pair",
        _PAIR + _UNSQUEEZE + "    q_embed = rotate(q, cos, sin)\n    k_embed = rotate(k, cos, sin)\n" + _BOTH + """
def rotate(x, cos, sin):
    first_half, second_half = torch.chunk(x, 2, dim=-1)
    first_ = first_half * cos - second_half * sin
    second_ = second_half * cos + first_half * sin
    return torch.cat((first_, second_), dim=-1)
""",
        tables="half",
    ),
    Form(
        "vision", "vision",
        "def f(q, k, cos, sin):\n" + """
    orig_q_dtype = q.dtype
    orig_k_dtype = k.dtype
    q, k = q.float(), k.float()
    cos, sin = cos.unsqueeze(-2).float(), sin.unsqueeze(-2).float()
""" + _TURN + """
    q_embed = q_embed.to(orig_q_dtype)
    k_embed = k_embed.to(orig_k_dtype)
""" + _BOTH + _HALVES,
        rounding="once",
    ),
    Form(
        "gptj", "gptj",
        """
def f(tensor, sin, cos):
    sin = torch.repeat_interleave(sin[:, :, None, :], 2, 3)
    cos = torch.repeat_interleave(cos[:, :, None, :], 2, 3)
    return (tensor * cos) + (rotate(tensor) * sin)


def rotate(x):
    x1 = x[:, :, :, ::2]
    x2 = x[:, :, :, 1::2]
    x = torch.stack((-x2, x1), dim=-1)
    return x.flatten(-2)
""",
        interleaved=True, tables="half",
    ),
)  # fmt: skip


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
        if function.args.vararg or function.args.kwarg or function.args.kwonlyargs or function.args.posonlyargs:
            return None
        body = [ast.unparse(ast.fix_missing_locations(_Canonical(helpers).visit(node))) for node in function.body]
        defaults = [ast.unparse(d) for d in function.args.defaults]
        texts.append(f"{helpers[function.name]} {names} {defaults}\n" + "\n".join(body))
    return "\n".join(texts)


def _drop_unused_ids(function):
    """Removes ``position_ids=None`` from the parameters of a function that does not read it; whether it was there."""
    args = function.args
    if [a.arg for a in args.args[4:]] != ["position_ids", "unsqueeze_dim"] or len(args.defaults) != 2:
        return False
    if ast.unparse(args.defaults[0]) != "None" or any(
        isinstance(node, ast.Name) and node.id == "position_ids" for line in function.body for node in ast.walk(line)
    ):
        return False
    del args.args[4], args.defaults[0]
    return True


@functools.lru_cache(maxsize=None)
def _known():
    known = {}
    for form in FORMS:
        functions = [node for node in ast.parse(form.text).body if isinstance(node, ast.FunctionDef)]
        known[canonical(functions)] = form
    return known


@functools.lru_cache(maxsize=None)
def _text(function):
    return textwrap.dedent(inspect.getsource(function))


def tree_of(function):
    return ast.parse(_text(function)).body[0]


class Match(NamedTuple):
    """A covered function."""

    form: Form
    #: It takes ``position_ids``, unused, in front of ``unsqueeze_dim``.
    ids: bool


def of(function, module_name=None):
    """What a model's function is: a `Match`, or a text that says why it is not covered. ``module_name``: where it is bound,
    if elsewhere than where it is defined."""
    try:
        tree = tree_of(function)
        nodes = [node for statement in tree.body for node in ast.walk(statement)]  # not of decorators
        called = {node.func.id for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
        helpers = [tree_of(function.__globals__[name]) for name in sorted(called) if name in function.__globals__]
        if not all(isinstance(f, ast.FunctionDef) for f in (tree, *helpers)):
            return "it is no plain function"
        ids = _drop_unused_ids(tree)
        form = _known().get(canonical([tree, *helpers]))
        if form is None or (ids and form.call != "pair"):
            return "its text is none of the known forms"
        modules = dict.fromkeys((module_name or function.__module__, function.__module__))
        doubt = form.tables in ("full", "twice") and _tables.doubt(form.tables, function.__name__, *modules)
        return doubt or Match(form, ids)
    except (OSError, TypeError, SyntaxError, AttributeError, IndexError, KeyError):
        return "its text cannot be read"
