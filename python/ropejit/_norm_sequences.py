"""Where a model's attention normalises q and k and rotates them, told by the text of its ``forward``, which is written anew so
that both are one call.

The statements of such a sequence stand apart: projections, the norms, transposes, tables, the rotation. The new text takes norms
and transposes out of their places and asks, where the rotation stands, for all of it at once. What is called there decides with
every call (`_norm_calls`). Where it declines, the model's own statements follow, as they are written and on the lines where they are
written. All other statements stay.

    q = self.q_norm(self.q_proj(x).view(shape)).transpose(1, 2)       q = self.q_proj(x).view(shape)
    k = self.k_norm(self.k_proj(x).view(shape)).transpose(1, 2)       k = self.k_proj(x).view(shape)
    v = self.v_proj(x).view(shape).transpose(1, 2)                    v = self.v_proj(x).view(shape).transpose(1, 2)
    cos, sin = position_embeddings                                    cos, sin = position_embeddings
    q, k = apply_rotary_pos_emb(q, k, cos, sin)                       out = fused(apply_rotary_pos_emb, self.q_norm, …)
                                                                      if out is None:
                                                                          q = self.q_norm(q).transpose(1, 2)
                                                                          k = self.k_norm(k).transpose(1, 2)
                                                                          q, k = apply_rotary_pos_emb(q, k, cos, sin)
                                                                      else:
                                                                          q, k = out
"""

import ast
import copy
import functools
import inspect
import re
import sys
import types
from dataclasses import dataclass, field

#: Attributes that are norms of q and k.
IS_NORM = re.compile(r"(q|k|qk|query|key)_layer_?norms?|(q|k|qk|query|key)_norms?")
_FUSED, _OUT, _FORWARD = "_ropejit_fused{}", "_ropejit_out", "_ropejit_forward"


@dataclass
class Sequence:
    """The statements of one sequence."""

    #: The function that rotates, as the text names it, and the dimension in which it widens the tables.
    rotate: str
    unsqueeze_dim: int
    #: Names of q and k, or of one of them, and of the tables.
    names: tuple[str, ...]
    tables: tuple[str, str]
    #: For each name the attribute that normalises it.
    norms: dict[str, str] = field(default_factory=dict)
    #: Whether dimensions 1 and 2 are swapped between norm and rotation.
    swapped: bool = False
    #: Whether the rotation comes first.
    after_rope: bool = False
    #: What has to be true for the norms to be taken.
    condition: ast.expr | None = None
    #: Statements that are taken out, and what comes in their places.
    moved: dict[int, ast.stmt | None] = field(default_factory=dict)
    #: The model's own statements, norms and rotation.
    own: list[ast.stmt] = field(default_factory=list)
    #: The same without the rotation.
    unrotated: list[ast.stmt] = field(default_factory=list)


def _mentioned(*nodes):
    return {n.id for node in nodes for n in ast.walk(node) if isinstance(n, ast.Name)}


def _norm(node):
    """The attribute and the argument of ``self.q_norm(x)``."""
    if not isinstance(node, ast.Call) or len(node.args) != 1 or node.keywords or not isinstance(node.func, ast.Attribute):
        return None
    if ast.unparse(node.func.value) != "self" or not IS_NORM.fullmatch(node.func.attr):
        return None
    return node.func.attr, node.args[0]


def _swap(node):
    """x of ``x.transpose(1, 2)``."""
    is_call = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "transpose"
    return node.func.value if is_call and not node.keywords and [ast.unparse(a) for a in node.args] == ["1", "2"] else None


def _assigned(statement):
    """Name and value of ``name = value``."""
    if isinstance(statement, ast.Assign) and len(statement.targets) == 1 and isinstance(statement.targets[0], ast.Name):
        return statement.targets[0].id, statement.value
    return None, None


def _is_plain(statement):
    """Whether a norm may be taken behind this statement: it binds names, and writes to nothing else."""
    if not isinstance(statement, ast.Assign):
        return False
    stores = (n for t in statement.targets for n in ast.walk(t) if isinstance(getattr(n, "ctx", None), ast.Store))
    if not all(isinstance(n, (ast.Name, ast.Tuple)) for n in stores):
        return False
    names = (n.func.attr for n in ast.walk(statement) if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute))
    return not any(name.endswith("_") for name in names)


def _rotation(statement, matches):
    """The `Sequence` that a rotation ends or begins, yet without norms; None for other statements."""
    if not isinstance(statement, ast.Assign) or len(statement.targets) != 1 or not isinstance(statement.value, ast.Call):
        return None
    target, call = statement.targets[0], statement.value
    match = matches.get(call.func.id) if isinstance(call.func, ast.Name) else None
    if match is None or match.ids or match.form.call not in ("pair", "single", "vision") or match.form.style == "deinterleave":
        return None
    targets = [target] if match.form.call == "single" else target.elts if isinstance(target, ast.Tuple) else []
    n = 1 if match.form.call == "single" else 2
    arguments = call.args[: n + 2]
    if len(targets) != n or len(arguments) != n + 2 or not all(isinstance(x, ast.Name) for x in (*targets, *arguments)):
        return None
    names = tuple(x.id for x in targets)
    used = [x.id for x in arguments]
    rest = call.args[n + 2 :] + [k.value for k in call.keywords if k.arg == "unsqueeze_dim"]
    if used[:n] != list(names) or len(set(used)) != n + 2 or len(rest) + n + 2 != len(call.args) + len(call.keywords):
        return None
    if match.form.call == "vision":
        return None if rest else Sequence(call.func.id, -2, names, tuple(used[n:]))
    dims = [x.value for x in rest if isinstance(x, ast.Constant) and type(x.value) is int]
    return Sequence(call.func.id, *(dims or [1]), names, tuple(used[n:])) if len(dims) == len(rest) <= 1 else None


def _condition(statement, names):
    """The norms of ``if self.use_qk_norm: q = self.q_norm(q); k = self.k_norm(k)``, by name."""
    if not isinstance(statement, ast.If) or statement.orelse or len(statement.body) != len(names):
        return None
    plain = (ast.Attribute, ast.Name, ast.Load, ast.Constant, ast.Compare, ast.cmpop, ast.BoolOp, ast.boolop, ast.UnaryOp, ast.Not)
    if not all(isinstance(node, plain) for node in ast.walk(statement.test)) or _mentioned(statement.test) & set(names):
        return None
    norms = {}
    for name, value in map(_assigned, statement.body):
        found = name in names and _norm(value)
        if not found or ast.unparse(found[1]) != name:
            return None
        norms[name] = found[0]
    return norms if len(norms) == len(names) else None


def _before(sequence, block, end):
    """Finds the norms in front of statement `end` of a block; whether they are all there."""
    names, swaps = sequence.names, dict.fromkeys(sequence.names, 0)
    for i in range(end - 1, -1, -1):
        statement = block[i]
        missing = [name for name in names if name not in sequence.norms]
        if not missing:
            break
        if not _mentioned(statement) & set(missing):
            if not _is_plain(statement):
                return False
            continue
        norms = _condition(statement, names)
        name, value = _assigned(statement)
        if norms and len(missing) == len(names):
            sequence.norms, sequence.condition, sequence.moved[i] = norms, statement.test, None
            continue
        if name not in missing:
            return False
        if _swap(value) is not None and ast.unparse(_swap(value)) == name:
            swaps[name] += 1
            sequence.moved[i] = None
            continue
        inner = _swap(value)
        swaps[name] += inner is not None
        found = _norm(value if inner is None else inner)
        if found is None or _mentioned(found[1]) & (set(names) - {name}):
            return False
        sequence.norms[name], raw = found
        # What is normalised stays where it is; the norm goes to what follows.
        is_name = ast.unparse(raw) == name
        sequence.moved[i] = None if is_name else ast.copy_location(ast.Assign(statement.targets, raw), statement)
    own = [_normalised(block[i], name_is_all=sequence.moved[i] is None) for i in sorted(sequence.moved)]
    sequence.unrotated, sequence.swapped = own, bool(swaps[names[0]] % 2)
    return len(sequence.norms) == len(names) and len({n % 2 for n in swaps.values()}) == 1


def _normalised(statement, name_is_all):
    """The statement with the norm's argument replaced by the name that then has it."""
    if name_is_all:
        return statement
    statement = copy.deepcopy(statement)
    call = statement.value if _swap(statement.value) is None else _swap(statement.value)
    call.args = [ast.copy_location(ast.Name(statement.targets[0].id, ast.Load()), call.args[0])]
    return statement


def _after(sequence, block, start):
    """Finds the norms right behind statement `start`; whether they are all there."""
    for i in range(start + 1, start + 1 + len(sequence.names)):
        name, value = _assigned(block[i]) if i < len(block) else (None, None)
        found = name in sequence.names and name not in sequence.norms and _norm(value)
        if not found or ast.unparse(found[1]) != name:
            return False
        sequence.norms[name], sequence.moved[i] = found[0], None
    sequence.after_rope = True
    return True


def _branch(statement, matches):
    """The sequence of ``if condition: [cos, sin = …]; q, k = rotate(q, k, cos, sin)``, and where in it the rotation stands."""
    if not isinstance(statement, ast.If) or statement.orelse:
        return None, 0
    for j, inner in enumerate(statement.body):
        sequence = _rotation(inner, matches)
        if sequence is not None:
            before = (statement.test, *statement.body[:j])
            free = not _mentioned(*before) & set(sequence.names) and all(map(_is_plain, statement.body[:j]))
            return (sequence if free else None), j
    return None, 0


def _call(sequence, number, rotation):
    """The statements that stand where the rotation stood."""
    condition = "" if sequence.condition is None else f" if {ast.unparse(sequence.condition)} else None"
    norms = [f"self.{sequence.norms[name]}{condition}" for name in sequence.names]
    none = ["None"] * (2 - len(norms))  # in place of k, where one tensor is rotated
    arguments = ", ".join([sequence.rotate, *norms, *none, *sequence.names, *none, *sequence.tables])
    call = f"{_OUT} = {_FUSED.format(number)}({arguments})"
    statements = ast.parse(f"{call}\nif {_OUT} is None:\n    pass\nelse:\n    {', '.join(sequence.names)} = {_OUT}").body
    for node in (n for s in statements for n in ast.walk(s)):
        if hasattr(node, "lineno"):
            ast.copy_location(node, rotation)
    statements[1].body = sequence.own
    return statements


def _found(block, r, matches):
    """The sequence that statement `r` of a block rotates, and where the rotation stands in it, if in a branch."""
    statement, j = block[r], None
    sequence = _rotation(statement, matches)
    if sequence is None:
        sequence, j = _branch(statement, matches)
    if sequence is None:
        return None, None
    rotation = statement if j is None else statement.body[j]
    if _before(sequence, block, r):
        sequence.own = [*sequence.unrotated, rotation]
        return sequence, j
    sequence = _rotation(statement, matches)
    if sequence is None or not _after(sequence, block, r):
        return None, None
    sequence.own = [rotation, *(block[i] for i in sorted(sequence.moved))]
    return sequence, None


def _rewrite_block(block, matches, found):
    """Writes the sequences of one list of statements anew, in place."""
    r = 0
    while r < len(block):
        sequence, j = _found(block, r, matches)
        if sequence is not None:
            statement = block[r]
            new = _call(sequence, len(found), statement if j is None else statement.body[j])
            found.append(sequence)
            if j is not None:
                statement.body[j : j + 1] = new
                statement.orelse = [copy.deepcopy(s) for s in sequence.unrotated]
                new = [statement]
            parts = [new if i == r else [sequence.moved.get(i, old)] for i, old in enumerate(block)]
            parts = [[s for s in part if s is not None] for part in parts]
            block[:] = [s for part in parts for s in part]
            r = sum(map(len, parts[: r + 1])) - 1
        r += 1


def _blocks(block):
    """A list of statements, and those in the branches of its conditions."""
    yield block
    for statement in block:
        if isinstance(statement, ast.If):
            yield from _blocks(statement.body)
            yield from _blocks(statement.orelse)


def _parsed(function):
    """The tree of a method with the positions of its file; None where its text cannot be told."""
    lines, first = inspect.getsourcelines(function)
    if not lines[0][:1].isspace():
        return None
    tree = ast.increment_lineno(ast.parse("class _:\n" + "".join(lines)), first - 2)
    (definition,) = tree.body[0].body
    return definition if isinstance(definition, ast.FunctionDef) else None


@functools.lru_cache(maxsize=16)
def _imports(text):
    """The statements of a module that import: Python compiles calls of methods of what is imported in another way."""
    imports, statements = [], ast.parse(text).body
    while statements:
        statement = statements.pop(0)
        if isinstance(statement, (ast.Import, ast.ImportFrom)):
            imports.append(statement)
        elif isinstance(statement, (ast.If, ast.Try, ast.With)):
            statements += [s for s in ast.iter_child_nodes(statement) if isinstance(s, ast.stmt)]
            statements += [s for h in getattr(statement, "handlers", ()) for s in h.body]
    return imports


def _compiled(definition, function, names):
    """The code of a tree, as that of a method with `names` around it."""
    definition = copy.deepcopy(definition)
    definition.name, definition.returns = _FORWARD, None
    # Lines count from the first decorator.
    definition.decorator_list = [ast.copy_location(ast.Constant(None), d) for d in definition.decorator_list[:1]]
    arguments = definition.args
    for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg):
        if argument is not None:
            argument.annotation = None
    # The function has its defaults; its code needs none.
    arguments.defaults, arguments.kw_defaults = [], [None] * len(arguments.kwonlyargs)
    module = ast.parse(f"def scope({', '.join((*function.__code__.co_freevars, *names))}): pass")
    module.body[0].body = [definition]
    module.body[:0] = _imports(inspect.getsource(sys.modules[function.__module__]))
    code = compile(ast.fix_missing_locations(module), function.__code__.co_filename, "exec", dont_inherit=True)
    for name in ("scope", _FORWARD):
        code = next(c for c in code.co_consts if isinstance(c, types.CodeType) and c.co_name == name)
    return code


def _same(code, other):
    """Whether two codes do the same: names of the functions and lines apart."""
    if (code.co_code, code.co_names, code.co_varnames) != (other.co_code, other.co_names, other.co_varnames):
        return False
    if len(code.co_consts) != len(other.co_consts):
        return False
    return all(
        _same(x, y) if isinstance(x, types.CodeType) and isinstance(y, types.CodeType) else (type(x), x) == (type(y), y)
        for x, y in zip(code.co_consts, other.co_consts)
        if not isinstance(x, str)  # qualified names
    )


def _is_private(tree):
    names = (n.id if isinstance(n, ast.Name) else n.attr for n in ast.walk(tree) if isinstance(n, (ast.Name, ast.Attribute)))
    return any(name.startswith("__") and not name.endswith("__") for name in names)


def of(function, matches):
    """The sequences of a method, and what makes it anew: called with a function for each, it returns the method that calls
    them. `matches`: what `_forms.of` says of each function that rotates, by name. No sequence: an empty list."""
    try:
        definition = _parsed(function)
        if definition is None or _is_private(definition) or not _same(_compiled(definition, function, ()), function.__code__):
            return [], None
    except (OSError, TypeError, SyntaxError, ValueError, KeyError):
        return [], None
    found = []
    for block in list(_blocks(definition.body)):
        _rewrite_block(block, matches, found)

    def make(*fused):
        names = {_FUSED.format(i): types.CellType(f) for i, f in enumerate(fused)}
        names.update(zip(function.__code__.co_freevars, function.__closure__ or ()))
        code = _compiled(definition, function, [name for name in names if name not in function.__code__.co_freevars])
        old = function.__code__
        more = {"co_qualname": old.co_qualname} if hasattr(old, "co_qualname") else {}
        code = code.replace(co_name=old.co_name, **more)
        closure = tuple(names[name] for name in code.co_freevars)
        new = types.FunctionType(code, function.__globals__, function.__name__, function.__defaults__, closure)
        new.__kwdefaults__ = function.__kwdefaults__
        return new

    return found, make


def norms_of(function, matches):
    """Attributes of the norms of q and k that a function names, where it also names a function of `matches`."""
    code = getattr(function, "__code__", None)  # reading the text of every method would take seconds
    names = code.co_names if code is not None else ()
    return sorted(filter(IS_NORM.fullmatch, names)) if any(name in matches for name in names) else []
