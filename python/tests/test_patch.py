"""What is replaced and how: wrappers stay, wrong calls fail as before, the log names what is left alone."""

import functools
import inspect
import logging
import re
import types

import every
import pytest
import ropejit
import torch
from ropejit import _forms

TEXT = '''
import torch

def rotate_half(x):
    x1 = x[..., : x.shape[-1] // 2]
    x2 = x[..., x.shape[-1] // 2 :]
    return torch.cat((-x2, x1), dim=-1)

def apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim=1):
    cos = cos.unsqueeze(unsqueeze_dim)
    sin = sin.unsqueeze(unsqueeze_dim)
    q_embed = (q * cos) + (rotate_half(q) * sin)
    k_embed = (k * cos) + (rotate_half(k) * sin)
    return q_embed, k_embed

def tables(freqs):
    emb = torch.cat((freqs, freqs), dim=-1)
    return emb.cos(), emb.sin()
'''


def inputs():
    q, k, angles = torch.randn(1, 4, 6, 32), torch.randn(1, 2, 6, 32), torch.rand(1, 6, 16)
    angles = torch.cat((angles, angles), -1)
    return q, k, angles.cos(), angles.sin()


@pytest.mark.parametrize(
    "was, now",
    [
        ("(-x2, x1)", "(x2, x1)"), ("(q * cos) +", "(q * cos) -"), ("unsqueeze_dim=1", "unsqueeze_dim=2"),
        ("(freqs, freqs)", "(freqs, freqs + 1)"), ("sin, unsqueeze", "sin, *, unsqueeze"), ("sin = sin.unsq", "sin = cos.unsq"),
        ("sin, unsqueeze_dim=1", "sin, position_ids, unsqueeze_dim=1"),
        ("sin, unsqueeze_dim=1", "sin, unsqueeze_dim=1, position_ids=None"),
        ("return q_embed", "q_embed = q_embed * (position_ids is None)\n    return q_embed"),
    ],
)  # fmt: skip
def test_a_text_that_differs_is_not_covered(load, was, now):
    if "position_ids is" in now:
        text = TEXT.replace("sin, unsqueeze_dim=1", "sin, position_ids=None, unsqueeze_dim=1")
    else:
        text = TEXT
    assert _forms.of(load(TEXT).apply_rotary_pos_emb).form.name == "llama"
    assert was in text
    assert isinstance(_forms.of(load(text.replace(was, now)).apply_rotary_pos_emb), str)


def test_position_ids_that_are_not_read(load, served):
    module = load(TEXT.replace("sin, unsqueeze_dim=1", "sin, position_ids=None, unsqueeze_dim=1"))
    q, k, cos, sin = inputs()
    plain = module.apply_rotary_pos_emb(q, k, cos, sin)
    with ropejit.patched("transformers"):
        ours = module.apply_rotary_pos_emb(q, k, cos, sin, torch.arange(6)[None])
        last = module.apply_rotary_pos_emb(q.transpose(1, 2), k.transpose(1, 2), cos, sin, None, 2)
    assert len(served) == 2
    assert all(map(torch.equal, ours, plain))
    assert all(torch.equal(x.transpose(1, 2), y) for x, y in zip(last, plain))


WRAPPERS = '''
import functools

def decorated(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        q, k = function(*args, **kwargs)
        return q + 1, k
    return wrapper

def layer(function):
    class Func(torch.nn.Module):
        def forward(self, *args, **kwargs):
            return function(*args, **kwargs)
    Func.kernel_layer_name = "rotary_pos_emb"
    return Func()

def layer_that_tells(function):
    out = layer(function)
    out.__wrapped__ = function
    return out

class Caller(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.__wrapped__ = function
    def forward(self, *args, **kwargs):
        return self.__wrapped__(*args, **kwargs)

def both(function):
    return layer(decorated(function))
'''


@pytest.mark.parametrize("wrapper", ["decorated", "layer", "layer_that_tells", "Caller", "both"])
def test_what_is_wrapped_around_a_function_stays(load, served, wrapper):
    decorated = TEXT.replace("def apply_rotary", f"@{wrapper}\ndef apply_rotary")
    module = load(decorated.replace("import torch\n", "import torch\n" + WRAPPERS, 1))
    before, q, k, cos, sin = module.apply_rotary_pos_emb, *inputs()
    plain = before(q, k, cos, sin)
    for _ in range(2):
        with ropejit.patched("transformers"):
            ropejit.patch("transformers")
            assert module.apply_rotary_pos_emb is before
            assert all(map(torch.equal, module.apply_rotary_pos_emb(q, k, cos, sin), plain))
            assert len(served) == 1
        assert all(map(torch.equal, module.apply_rotary_pos_emb(q, k, cos, sin), plain))
        assert len(served) == 1
        served.clear()
    assert "forward" not in vars(before)


def test_two_wrappers_of_one_class_are_two(load, served):
    text = TEXT.replace("import torch\n", "import torch\n" + WRAPPERS, 1)
    module = load(text + "\nother = Caller(lambda *args: args)\napply_rotary_pos_emb = Caller(apply_rotary_pos_emb)\n")
    with ropejit.patched("transformers"):
        module.apply_rotary_pos_emb(*inputs())
        assert len(served) == 1
        assert module.other(1, 2) == (1, 2)


def test_a_kernel_that_has_taken_the_place_keeps_it(load, served, caplog):
    decorated = TEXT.replace("def apply_rotary", "@layer\ndef apply_rotary")
    module = load(decorated.replace("import torch\n", "import torch\n" + WRAPPERS, 1))
    layer = module.apply_rotary_pos_emb
    # As `kernelize` does it: first with a kernel of the hub, then with none.
    layer.forward = types.MethodType(lambda self, *args: args[:2], layer)
    q, k, cos, sin = inputs()
    with ropejit.patched("transformers"):
        assert layer(q, k, cos, sin)[0] is q
    assert module.__name__ in caplog.text
    with ropejit.patched("transformers"):
        layer.forward = types.MethodType(type(layer).forward, layer)
        layer(q, k, cos, sin)
        assert len(served) == 0
        ropejit.patch("transformers")
        layer(q, k, cos, sin)
        assert len(served) == 1
    plain = layer(q, k, cos, sin)
    assert len(served) == 1 and plain[0].shape == q.shape


def test_a_wrapper_that_hides_its_function_is_left_alone_with_a_line(load, caplog):
    text = TEXT.replace("import torch\n", "import torch\nimport functools\n", 1)
    module = load(text.replace("def apply_", "@functools.cache\ndef apply_"))
    before = module.apply_rotary_pos_emb
    with ropejit.patched("transformers"):
        assert module.apply_rotary_pos_emb is before
    assert f"{module.__name__}.apply_rotary_pos_emb is not covered" in caplog.text


#: What the log says of a call of Llama's function, and the call.
LEFT = {
    "q is torch.float64": lambda q, k, cos, sin: [x.double() for x in (q, k, cos, sin)],
    "k is torch.float16, q torch.float32": lambda q, k, cos, sin: (q, k.half(), cos, sin),
    "cos is torch.float32, q torch.bfloat16": lambda q, k, cos, sin: (q.bfloat16(), k.bfloat16(), cos, sin),
    "q is on meta": lambda q, k, cos, sin: [x.to("meta") for x in (q, k, cos, sin)],
    "sin requires a gradient": lambda q, k, cos, sin: (q, k, cos, sin.requires_grad_()),
    "q is a Mine": lambda q, k, cos, sin: (q.as_subclass(Mine), k, cos, sin),
    "arguments that kernels do not cover (the first: q [1, 4, 6, 32], k [1, 2, 6, 32], cos [1, 1, 32], sin [1, 1, 32])":
        lambda q, k, cos, sin: (q, k, cos[:, :1], sin[:, :1]),
}  # fmt: skip


class Mine(torch.Tensor):
    pass


@pytest.mark.parametrize("reason", LEFT)
def test_a_call_that_is_left_to_the_model_has_one_line(load, served, caplog, reason):
    module = load(TEXT)
    arguments = LEFT[reason](*inputs())
    line = f"{module.__name__}.apply_rotary_pos_emb: {reason}; the model's own function computes such calls"
    theirs = module.apply_rotary_pos_emb(*arguments)

    def told():
        return [record.getMessage() for record in caplog.records if module.__name__ in record.getMessage()]

    for _ in range(2):  # a new patch tells it again
        caplog.clear()
        with ropejit.patched("transformers"):
            module.apply_rotary_pos_emb(*arguments)  # pytest's level is WARNING
            assert not told()
            with caplog.at_level(logging.INFO, "ropejit"):
                for _ in range(2):
                    ours = module.apply_rotary_pos_emb(*arguments)
                    module.apply_rotary_pos_emb(*inputs())
            assert told() == [line]
        assert all(x.is_meta or torch.equal(x, y) for x, y in zip(ours, theirs, strict=True))
    assert len(served) == 4


def test_nothing_is_said_while_a_compiler_or_a_tracer_looks(load, caplog):
    module = load(TEXT)
    wide = [x.double() for x in inputs()]
    theirs = module.apply_rotary_pos_emb(*wide)

    def turned(*arguments):
        return module.apply_rotary_pos_emb(*arguments)

    class Turned(torch.nn.Module):
        def forward(self, *arguments):
            return turned(*arguments)

    with ropejit.patched("transformers"), caplog.at_level(logging.INFO, "ropejit"):
        compiled = torch.compile(turned, fullgraph=True, backend="eager")
        exported = torch.export.export(Turned(), tuple(wide), strict=False).module()
        traced = torch.jit.trace(turned, wide, check_trace=False)
        in_symbols = torch.fx.symbolic_trace(lambda q, k, cos, sin: turned(q, k, cos, sin))
        q_in_symbols = torch.fx.symbolic_trace(lambda q: turned(q, *wide[1:]))
        for function in (compiled, exported, traced, in_symbols, lambda q, *rest: q_in_symbols(q)):
            assert all(map(torch.equal, function(*wide), theirs))
        assert "q is torch.float64" not in caplog.text
        turned(*wide)
        assert "q is torch.float64" in caplog.text


def test_each_function_that_is_left_alone_has_one_line(caplog):
    left = []
    with caplog.at_level(logging.WARNING, "ropejit"), ropejit.patched("transformers"):
        ropejit.patch("transformers")
        for module, name, slot in every.functions():
            if slot is None or not hasattr(slot.get(), "__ropejit__"):
                left.append(f"{module.__name__}.{name}")
    told = [record.getMessage() for record in caplog.records if record.name == "ropejit"]
    lines = {name: [line for line in told if line.startswith(f"{name} is not covered and stays as it is: ")] for name in left}
    missing = [name for name, line in lines.items() if len(line) != 1]
    # A helper goes with the function that calls it.
    assert all(re.search(r"\.(_apply_rotary_emb|rotate_queries_or_keys)$", name) for name in missing), missing
    for name in (
        "musicflamingo.modeling_musicflamingo.apply_rotary_time_emb is not covered and stays as it is: it computes in float64",
        "vjepa2.modeling_vjepa2.VJEPA2RopeAttention.apply_rotary_embeddings", "jamba.modeling_jamba.apply_rotary_pos_emb",
    ):  # fmt: skip
        assert any(f"transformers.models.{name}" in line for line in told), name


@functools.lru_cache(maxsize=None)
def representatives():
    """The module, slot and form of one covered function of each text."""
    found = {}
    for module, name, slot in every.functions():
        match = slot and _forms.of(slot.get(), module.__name__)
        if isinstance(match, _forms.Match):
            found.setdefault((match.form.name, match.ids), (f"{module.__name__}.{name}", slot, match.form))
    return list(found.values())


#: What stands for an argument of a name that is no tensor of q's kind.
OTHERS = {
    "position_ids": lambda: torch.zeros(2, 6, 2, dtype=torch.int64), "mrope_section": lambda: [8, 4, 4],
    "freqs_cis": lambda: torch.polar(torch.ones(2, 6, 16), torch.rand(2, 6, 16)), "freqs": lambda: torch.rand(6, 16),
    "freqs_ci": lambda: torch.polar(torch.ones(6, 16), torch.rand(6, 16)), "num_k_exclude_rope": lambda: 0,
    "repeat_freqs_k": lambda: 1, "sinusoidal_pos": lambda: torch.rand(1, 1, 6, 32),
    "self": lambda: types.SimpleNamespace(num_heads=4, head_size=8), "hidden_states": lambda: torch.randn(2, 6, 32),
    "relative_position_embeddings": lambda: torch.rand(2, 6, 1, 1, 1).repeat(1, 1, 1, 1, 8),
}  # fmt: skip
HEADS_LAST = ("vision", "gptj", "vision_of_heads", "vision_of_angles", "complex", "complex_vision", "axes")
BY_IDS = ("by_ids", "by_ids_with_v")
#: Of tables, where they have no batch.
ONE_TABLE = ("broadcast", "memory", "grouped_memory", "patches", "vision_of_heads")


def wrong_calls(function, form):
    """Arguments that a function of a model is not meant for, or that kernels do not compute."""
    # A text that its call's names do not decide takes them by name all the same.
    names = [p.name for p in inspect.signature(function).parameters.values() if p.kind is not p.VAR_KEYWORD]
    width = 16 if form.tables == "half" else 32
    x = torch.randn(*((2, 6, 4, 32) if form.call in HEADS_LAST else (2, 4, 6, 32)))
    table = torch.rand(2, 6, 1).expand(2, 6, width).contiguous()  # repeats in every way
    if form.call in ONE_TABLE:
        table = table[:1] if form.call != "vision_of_heads" else table[0]
    if form.call in BY_IDS:
        table = table[0]
    if form.call == "cached":
        table = table[:1, None]
    if form.call == "sections":
        table = torch.rand(3, 2, 6, 1).expand(3, 2, 6, width).contiguous()
    made = {name: OTHERS[name]() for name in names if name in OTHERS}
    if form.call in BY_IDS:
        made["position_ids"] = torch.zeros(2, 6, dtype=torch.int64)
    elif form.call in ("pair", "single", "of_four"):
        made.pop("position_ids", None)
    tables = [name for name in names if re.match("(cos|sin)", name)]
    right = {n: made.get(n, table if n in tables else x) for n in names if n not in ("unsqueeze_dim", "position_ids") or n in made}
    yield {}
    yield {**right, "unknown": 1}
    for name in right:
        if name == "self":
            continue
        yield {key: value for key, value in right.items() if key != name}
        for value in (None, 1, "x", [1.0], x.numpy(), x[0, 0], x.double(), x.int(), x.to("meta"), x[..., :30], x[..., :1],
                      x[:, :, :3], x[:1], table, table[:, :1], table[..., :8], table[:1, :3], x[None], x[:0], x[:, :, :0],
                      x.bool(), x.to(torch.complex64), torch.tensor(1.0), -1, 2, True):  # fmt: skip
            # Rows of a table that do not repeat their angles: no model has them.
            if form.call not in BY_IDS or name not in tables or value is None or getattr(value, "shape", None) != x[0, 0].shape:
                yield {**right, name: value}
    for change in (lambda t: t[..., :30], lambda t: t[..., :1], lambda t: t[:, :1], lambda t: t[0], lambda t: t[0, 0],
                   lambda t: t.double(), lambda t: t[:1], lambda t: t.repeat(1, 1, 2), lambda t: t[:, :0], lambda t: t.to("meta"),
                   lambda t: t.int(), lambda t: t.requires_grad_()):  # fmt: skip
        if table.ndim == 3 or "requires" in inspect.getsource(change):
            yield {**right, **{name: change(table.clone()) for name in tables}}
    if "unsqueeze_dim" in names:
        for dim in (None, "1", 1.0, True, -1, 0, 3, 4, 7, -7, 1 << 70, torch.tensor(1)):
            yield {**right, "unsqueeze_dim": dim}


def result(function, arguments):
    try:
        out = function(**arguments)
    except Exception as error:  # noqa: BLE001 - whatever eager raises
        return type(error), str(error)
    return out if isinstance(out, tuple) else (out,)


def test_wrong_calls_are_as_they_were(caplog):
    chosen = [(name, slot, slot.get(), form) for name, slot, form in representatives()]
    assert len(chosen) >= len(_forms.FORMS) - 10
    refused = 0
    with caplog.at_level(logging.INFO, "ropejit"), ropejit.patched("transformers"):
        for name, slot, original, form in chosen:
            function = slot.get()
            assert function is not original
            for arguments in wrong_calls(original, form):
                torch.manual_seed(0)
                theirs, ours = result(original, arguments), result(function, arguments)
                where = (name, {key: getattr(value, "shape", value) for key, value in arguments.items()})
                if isinstance(theirs[0], type):
                    refused += 1
                    assert ours == theirs, where
                else:
                    assert [getattr(x, "shape", x) for x in ours] == [getattr(x, "shape", x) for x in theirs], where
                    assert all(x is y is None or x.is_meta or torch.equal(x, y) for x, y in zip(ours, theirs)), where
    assert refused > 500
    assert len([line for line in caplog.text.splitlines() if "the model's own function computes such calls" in line]) > 100


def test_positional_arguments_are_where_they_were():
    originals = [(slot, slot.get()) for _, slot, _ in representatives()]
    with ropejit.patched("transformers"):
        for slot, original in originals:
            kinds = [(p.name, p.default) for p in inspect.signature(slot.get(), follow_wrapped=False).parameters.values()]
            assert kinds == [(p.name, p.default) for p in inspect.signature(original).parameters.values()]


def test_the_gradient_of_a_gradient_where_each_product_is_cast(device):
    from transformers.models.esm import modeling_esm as module

    q, k, cos, sin = (x.to(device, torch.bfloat16) for x in inputs())
    weights = [torch.randn_like(q) for _ in range(2)]

    def second():
        x, g = q.clone().requires_grad_(), weights[0].clone().requires_grad_()
        (first,) = torch.autograd.grad(module.apply_rotary_pos_emb(x, k, cos, sin)[0], x, g, create_graph=True)
        return first.detach(), *torch.autograd.grad(first, g, weights[1])

    plain = second()
    with ropejit.patched("transformers"):
        assert all(map(torch.equal, second(), plain))


def test_a_result_needs_a_gradient_where_its_input_does(device):
    from transformers.models.esm import modeling_esm as module

    q, k, cos, sin = (x.to(device, torch.bfloat16) for x in inputs())
    with ropejit.patched("transformers"):
        for needs in ((True, False), (False, True)):
            out = module.apply_rotary_pos_emb(*(x.clone().requires_grad_(n) for x, n in zip((q, k), needs)), cos, sin)
            assert tuple(x.requires_grad for x in out) == needs
