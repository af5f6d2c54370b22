"""Whether the tables of a module repeat each angle, told by the text that makes them.

Kernels read one of two equal halves, or of two neighbours. A model's function reads both, so it is replaced only where they
cannot differ. Each function of the module is followed statement by statement, as far as its text is plain: an expression that
is not understood repeats nothing. Rows that the module cuts out of wider ones are told with every call, by their strides.
"""

import ast
import functools
import inspect
import re
import sys
from typing import NamedTuple


class _Value(NamedTuple):
    #: ``full``: its last dimension is something followed by a copy; ``twice``: each element stands twice; None: not known.
    repeated: str | None = None
    #: It comes from a cosine or sine of this function.
    table: bool = False


_NOTHING = _Value()
_JOINS = ("cat", "concat", "concatenate", "stack")
_POSITION, _TURNS = re.compile("Position(al)?Embedding"), re.compile("Rotary|Rope|RoPE")
#: Methods that change no value's place in the last dimension.
_KEEPING = ("to", "float", "type", "type_as", "contiguous", "clone", "detach", "cos", "sin")


def _last(call):
    """Whether a call names the last dimension."""
    named = [k.value for k in call.keywords if k.arg in ("dim", "axis")] + call.args[-1:]
    return any(ast.unparse(value) == "-1" for value in named)


def _attributes(node):
    return {n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute)}


def _first(call):
    return any(k.arg in ("dim", "axis") and ast.unparse(k.value) == "0" for k in call.keywords)


class _Function:
    """One function, followed. `pairs` are the (cos, sin) that it makes."""

    def __init__(self, node, methods, arguments=()):
        self.methods = methods
        self.env = dict(zip([a.arg for a in node.args.args][1:], arguments))
        self.pairs, self.returned = [], _NOTHING
        self._run(node.body)

    def _run(self, body):
        for statement in body:
            if isinstance(statement, ast.With):
                self._run(statement.body)
                continue
            if isinstance(statement, ast.If):
                self._branch(statement)
                continue
            self._look_for_pairs(statement)
            if isinstance(statement, ast.Return) and statement.value is not None:
                self.returned = self._value(statement.value)
            elif isinstance(statement, ast.Assign) and len(statement.targets) == 1:
                self._assign(statement.targets[0], statement.value)
            elif not isinstance(statement, (ast.Expr, ast.FunctionDef)) or self._writes(statement):
                self._forget(statement)

    def _branch(self, statement):
        """Each branch begins with what was known; behind it, what either has written is not known."""
        before = dict(self.env)
        for body in (statement.body, statement.orelse):
            self._run(body)
            self.env = dict(before)
        self._forget(statement)

    def _assign(self, target, value):
        if isinstance(target, ast.Attribute):
            if self._value(value).table:
                self.pairs.append(self._value(value).repeated)  # a table that is kept
            return
        if isinstance(target, ast.Name):
            self.env[target.id] = self._value(value)
        elif isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) and len(target.elts) == len(value.elts):
            values = [self._value(x) for x in value.elts]
            for name, known in zip(target.elts, values):
                self.env[ast.unparse(name)] = known
        else:
            self._forget(ast.Tuple([target, value], ast.Load()))

    def _writes(self, statement):
        calls = [n.func for n in ast.walk(statement) if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)]
        return any(f.attr.endswith("_") for f in calls)

    def _forget(self, node):
        """A branch, a loop, a write into a tensor: names that occur in it are what they were, without the promise."""
        table = self._is_table(node)
        for name in {n.id for n in ast.walk(node) if isinstance(n, ast.Name)} - {"self"}:  # what it keeps is looked at there
            self.env[name] = _Value(None, self.env.get(name, _NOTHING).table or table)
        if any(isinstance(n, ast.Return) for n in ast.walk(node)):
            self.returned = _Value(None, table)

    def _is_table(self, node):
        names = (self.env.get(n.id, _NOTHING).table for n in ast.walk(node) if isinstance(n, ast.Name))
        return any(names) or not _attributes(node).isdisjoint(("cos", "sin"))

    def _look_for_pairs(self, statement):
        joined = set()
        for node in ast.walk(statement):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _JOINS:
                # `torch.stack((cos, sin))` puts one behind the other: that is a pair.
                joined.update(map(id, node.args if node.func.attr != "stack" or len(node.args) > 1 or node.keywords else ()))
            if isinstance(node, (ast.Tuple, ast.List)) and len(node.elts) == 2 and id(node) not in joined:
                values = [self._value(x) for x in node.elts]
                if isinstance(node.ctx, ast.Load) and all(v.table for v in values):
                    self.pairs.append(values[0].repeated if values[0] == values[1] else None)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "register_buffer":
                kept = [self._value(x) for x in node.args[1:2]]
                self.pairs.extend(v.repeated for v in kept if v.table)

    def _value(self, node):
        unknown = _Value(None, self._is_table(node))
        if isinstance(node, ast.Name):
            return self.env.get(node.id, _NOTHING)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
            # A number that scales: `cos * self.attention_scaling`.
            factor = ast.unparse(node.right)
            return self._value(node.left) if factor.endswith(("scaling", "mscale")) else unknown
        if isinstance(node, ast.Subscript):
            # New dimensions, and all of the last one: `cos[:, None, None, :]`.
            index = node.slice.elts if isinstance(node.slice, ast.Tuple) else ()
            keeps = index and all(ast.unparse(x) in (":", "None") for x in index) and ast.unparse(index[-1]) == ":"
            return _Value(self._value(node.value).repeated, unknown.table) if keeps else unknown
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            return unknown
        called, of = node.func.attr, node.func.value
        in_torch = isinstance(of, ast.Name) and of.id == "torch"
        if called == "repeat_interleave" and len(node.args) == 1 + in_torch + (len(node.keywords) == 0):
            repeats = node.args[int(in_torch)]
            return _Value("twice", unknown.table) if ast.unparse(repeats) == "2" and _last(node) else unknown
        if called == "tile" and not in_torch and not node.keywords and [ast.unparse(x) for x in node.args] == ["2"]:
            return _Value("full", unknown.table)
        if called in _JOINS[:3] and in_torch and node.args and isinstance(node.args[0], (ast.Tuple, ast.List)):
            return self._joined(node, node.args[0].elts, unknown)
        if called == "stack" and in_torch and len(node.args) == 1 and not node.keywords and isinstance(node.args[0], (ast.Tuple, ast.List)):
            kinds = {self._value(x).repeated for x in node.args[0].elts}
            return _Value(kinds.pop() if len(kinds) == 1 else None, unknown.table)
        if in_torch and called in ("cos", "sin") and len(node.args) == 1:
            return _Value(self._value(node.args[0]).repeated, True)
        if isinstance(of, ast.Name) and of.id == "self" and called in self.methods:
            # One level is all that models have; a method that calls itself must not be followed.
            methods = {name: method for name, method in self.methods.items() if name != called}
            inner = _Function(self.methods[called], methods, [self._value(x) for x in node.args])
            return _Value(inner.returned.repeated, unknown.table or inner.returned.table)
        if called in _KEEPING and not in_torch:
            return _Value(self._value(of).repeated, unknown.table)
        return unknown

    def _joined(self, call, parts, unknown):
        if _first(call):
            # Rows under rows. What is no table of this function is one of another, which is looked at there.
            kinds = {v.repeated for v in map(self._value, parts) if v.table}
            return _Value(kinds.pop(), True) if len(kinds) == 1 else unknown
        texts = {ast.unparse(part) for part in parts}
        if len(parts) == 2 and len(texts) == 1 and isinstance(parts[0], (ast.Name, ast.Attribute)) and _last(call):
            return _Value("full", unknown.table)
        return unknown


@functools.lru_cache(maxsize=None)
def _made_by(module_name):
    """For each pair of tables that a module makes: the class or function that makes it, and how it repeats angles."""
    made = []

    def visit(nodes, owner, methods):
        for node in nodes:
            if isinstance(node, ast.ClassDef):
                inside = {n.name: n for n in node.body if isinstance(n, ast.FunctionDef)}
                visit(node.body, node.name, inside)
            elif isinstance(node, ast.FunctionDef) and {"cos", "sin"} <= _attributes(node):
                made.extend((owner or node.name, repeated) for repeated in _Function(node, methods).pairs)

    visit(ast.parse(inspect.getsource(sys.modules[module_name])).body, None, {})
    return made


def _is_added(maker):
    """Whether what a class makes is added to features, and turns nothing."""
    return _POSITION.search(maker) is not None and _TURNS.search(maker) is None


def makers(module_name, method):
    """The methods of this name, as trees, of the classes of a module that make tables."""
    classes = [n for n in ast.parse(inspect.getsource(sys.modules[module_name])).body if isinstance(n, ast.ClassDef)]
    return [n for c in classes if "Rotary" in c.name for n in c.body if isinstance(n, ast.FunctionDef) and n.name == method]


def doubt(kind, name, *module_names):
    """Why the tables that the function ``name`` is given may not repeat each angle as ``kind`` says; None if they do. The
    first of the modules that makes tables is looked at: where the function is bound, then where it is defined."""
    for module_name in module_names:
        made = _made_by(module_name)
        # A vision tower has tables of its own.
        vision = "vision" in name.lower()
        made = [pair for pair in made if not _is_added(pair[0])]
        own = [pair for pair in made if ("vision" in pair[0].lower()) == vision] or made
        if own:
            makers = [maker for maker, repeated in own if repeated != kind]
            return f"tables of {makers[0]} may differ where the kernels read one of two angles" if makers else None
    return "its module makes no tables"
