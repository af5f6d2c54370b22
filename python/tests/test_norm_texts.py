"""Texts of norms and of attention that are taken as one call, and such that differ and stay as they are."""

import logging
import pathlib

import pytest
import ropejit
import sequences
import torch
from test_patch import TEXT as ROTATION

TEXT = ROTATION.replace("import torch\n", "import torch\nfrom torch import nn\n", 1) + '''
class Norm(nn.Module):
    def __init__(self, size, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(size))
        self.variance_epsilon = eps

    def forward(self, hidden_states):
        input_dtype = hidden_states.dtype
        hidden_states = hidden_states.to(torch.float32)
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        hidden_states = hidden_states * torch.rsqrt(variance + self.variance_epsilon)
        return self.weight * hidden_states.to(input_dtype)

class Other(Norm):
    def forward(self, hidden_states):
        return 2 * super().forward(hidden_states)

class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.use_norm, self.sliding, self.__secret = True, 4, 1.0
        self.q_proj, self.k_proj = nn.Linear(64, 128), nn.Linear(64, 64)
        self.q_norm = Norm(32)
        self.k_norm = Norm(32)

    def forward(self, x, position_embeddings, scale: float = 1.5, *, more=None, **rest):
        """Says what it does."""
        shape = (*x.shape[:-1], -1, 32)
        q = self.q_norm(self.q_proj(x).view(shape)).transpose(1, 2)
        k = self.k_norm(self.k_proj(x).view(shape)).transpose(1, 2)
        cos, sin = position_embeddings
        q, k = apply_rotary_pos_emb(q, k, cos, sin)
        return q * scale, k, more, rest
'''
NORMED = TEXT[TEXT.index("        q = self.q_norm(") : TEXT.index("        cos, sin")]
BODY = TEXT[TEXT.index("        q = self.q_norm(") : TEXT.index("        return q * scale")]
RAW = "        q = self.q_proj(x).view(shape)\n        k = self.k_proj(x).view(shape)\n"
SWAP = "        q = q.transpose(1, 2)\n        k = k.transpose(1, 2)\n"
NORM = "        q = self.q_norm(q)\n        k = self.k_norm(k)\n"
TABLES = "        cos, sin = position_embeddings\n"
ROTATE = "        q, k = apply_rotary_pos_emb(q, k, cos, sin)\n"


CALL = "    def __call__(self, x):\n        return super().__call__(x) * 2\n\n"


def indented(text):
    return "".join(f"    {line}\n" for line in text.splitlines())


#: Ways to write the sequence, and how many calls take one launch.
TAKEN = {
    "as it is": (BODY, BODY),
    "the norms first": (BODY, RAW + NORM + SWAP + TABLES + ROTATE),
    "the norms behind the transpose": (BODY, RAW + SWAP + TABLES + NORM + ROTATE),
    "the tables first": (BODY, TABLES + NORMED + ROTATE),
    "heads last": (BODY, RAW + NORM + TABLES + ROTATE.replace("sin)", "sin, unsqueeze_dim=2)") + SWAP),
    "a dimension by its place": (BODY, RAW + NORM + TABLES + ROTATE.replace("sin)", "sin, 2)") + SWAP),
    "transposed twice": (BODY, RAW + NORM + SWAP + SWAP + SWAP + TABLES + ROTATE),
    "norms on a condition": (BODY, RAW + "        if self.use_norm:\n" + indented(NORM) + SWAP + TABLES + ROTATE),
    "a rotation on a condition": (BODY, NORMED + TABLES + "        if self.sliding is not None:\n" + indented(ROTATE)),
    "both on conditions": (
        BODY,
        RAW + "        if self.use_norm:\n" + indented(NORM) + SWAP + "        if self.sliding:\n" + indented(TABLES + ROTATE),
    ),
    "all on a condition": (BODY, RAW + TABLES + "        if self.sliding:\n" + indented(SWAP + NORM + ROTATE)),
    "the rotation first": (BODY, RAW + SWAP + TABLES + ROTATE + NORM),
    "other statements between": (TABLES, "        half = [y / 2 for y in (x, x)]\n" + TABLES),
    "another name": (BODY, RAW.replace("q =", "y =", 1) + NORM.replace("(q)", "(y)") + SWAP + TABLES + ROTATE),
    "what it closes over": (TABLES, TABLES + "        own = super().__repr__, lambda: q, __class__\n".replace("q,", "scale,")),
}  # fmt: skip
LEFT = {
    "q is changed between": (TABLES, TABLES + "        q = q * 2\n"),
    "q is read between": (TABLES, TABLES + "        more = q.sum()\n"),
    "q is kept between": (TABLES, TABLES + "        more = lambda: q\n"),
    "k is made of q": (BODY, BODY.replace("self.k_proj(x)", "self.k_proj(x) + q.sum()")),
    "a tensor is written between": (TABLES, TABLES + "        more = x.detach().clone().mul_(2)\n"),
    "an element is written between": (TABLES, TABLES + "        rest['more'] = 1\n"),
    "a return between": (TABLES, TABLES + "        if more is not None:\n            return 1\n"),
    "q alone": (BODY, BODY.replace("self.k_norm(self.k_proj(x).view(shape))", "self.k_proj(x).view(shape)")),
    "more than a transpose": (BODY, RAW + NORM + SWAP.replace("(1, 2)", "(1, 2).contiguous()") + TABLES + ROTATE),
    "rows of all heads": (BODY, BODY.replace("q_norm(self.q_proj(x).view(shape))", "q_norm(self.q_proj(x)[..., :32]).view(shape)")),
    "another transpose": (BODY, RAW + NORM + SWAP.replace("(1, 2)", "(-3, -2)") + TABLES + ROTATE),
    "tables that are computed": (ROTATE, ROTATE.replace("cos, sin)", "cos * 1, sin)")),
    "one table twice": (ROTATE, ROTATE.replace("cos, sin)", "cos, cos)")),
    "k and q": (ROTATE, ROTATE.replace("(q, k,", "(k[:, :1], q,")),
    "another dimension": (ROTATE, ROTATE.replace("sin)", "sin, unsqueeze_dim=int(1))")),
    "a private name": (TABLES, TABLES + "        scale = scale * self.__secret\n"),
    "norms of two classes": ("self.k_norm = Norm(32)", "self.k_norm = Other(32)"),
    "norms that are made elsewhere": ("self.k_norm = Norm(32)", "setattr(self, 'k_norm', Norm(32))"),
    "a norm's mean": (".mean(-1", ".mean(-2"),
    "a norm's sum": (".mean(-1", ".sum(-1"),
    "a norm's power": (".pow(2)", ".pow(4)"),
    "a norm's type": ("hidden_states.to(torch.float32)", "hidden_states.to(torch.float64)"),
    "a norm's epsilon": ("variance + self.variance_epsilon)", "variance) + self.variance_epsilon"),
    "a norm's weight": ("return self.weight *", "return self.weight +"),
    "a norm's call": ("class Norm(nn.Module):\n", "class Norm(nn.Module):\n" + CALL),
}  # fmt: skip


@pytest.fixture
def taken(monkeypatch):
    return sequences.watch(monkeypatch)


def written(change):
    was, now = change
    assert was in TEXT
    return TEXT.replace(was, now, 1)


def call(attention, **more):
    torch.manual_seed(5)
    x, angles = torch.randn(2, 6, 64, dtype=torch.bfloat16), torch.rand(2, 6, 16)
    angles = torch.cat((angles, angles), -1)
    tables = angles.cos().bfloat16(), angles.sin().bfloat16()
    with torch.no_grad():
        return attention(x, tables, **more)


def compare(attention):
    """Equal results, patched and not, of all that the text distinguishes."""
    for use_norm in (True, False):
        for sliding in (4, None):
            attention.use_norm, attention.sliding = use_norm, sliding
            plain = call(attention, other=1)
            with ropejit.patched("transformers"):
                ours = call(attention, other=1)
            assert all(map(torch.equal, ours[:2], plain[:2])) and ours[3] == plain[3]
            assert [x.stride() for x in ours[:2]] == [x.stride() for x in plain[:2]]


@pytest.fixture(autouse=True)
def few(monkeypatch, tmp_path):
    sequences.few(monkeypatch, tmp_path.name)


@pytest.mark.parametrize("way", TAKEN)
def test_ways_to_write_it(load, taken, way):
    module = load(written(TAKEN[way]))
    attention = module.Attention().bfloat16()
    compare(attention)
    attention.use_norm, attention.sliding = True, 4
    taken.clear()
    with ropejit.patched("transformers"):
        call(attention)
    assert len(taken) == 1


@pytest.mark.parametrize("way", LEFT)
def test_what_differs_stays_as_it_is(load, taken, way, caplog):
    module = load(written(LEFT[way]))
    before = module.Attention.forward
    attention = module.Attention().bfloat16()
    plain = outcome(attention)
    with ropejit.patched("transformers"):
        assert module.Attention.forward is before
        ours = outcome(attention)
    assert not taken
    assert ours == plain if isinstance(plain, str) else all(map(torch.equal, ours[:2], plain[:2]))
    assert f"{module.__name__}.Attention.forward: " in caplog.text and "q_norm and the rotation stay apart: " in caplog.text


def outcome(attention):
    try:
        return call(attention)
    except Exception as error:  # noqa: BLE001 - whatever eager raises
        return str(error)


def test_a_file_that_has_changed_since_it_was_loaded(load, taken, caplog):
    module = load(TEXT)
    attention, path = module.Attention().bfloat16(), pathlib.Path(module.__file__)
    plain = call(attention)
    path.write_text(path.read_text().replace("q * scale", "q * scale * 2"))
    with ropejit.patched("transformers"):
        ours = call(attention)
    assert not taken and all(map(torch.equal, ours[:2], plain[:2]))
    assert "Attention.forward: k_norm and q_norm and the rotation stay apart" in caplog.text


LAYER = '''
def layer(function):
    class Func(torch.nn.Module):
        def forward(self, *args, **kwargs):
            return function(*args, **kwargs)
    Func.kernel_layer_name = "rotary_pos_emb"
    return Func()

def doubled(function):
    import functools
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        q, k = function(*args, **kwargs)
        return q * 2, k
    return wrapper
'''


@pytest.mark.parametrize("wrapper", ["layer", "doubled"])
def test_a_rotation_with_something_around_it(load, taken, wrapper):
    """A layer of Hugging Face's `kernels` does no more than its function, until a kernel of the hub takes its place."""
    text = TEXT.replace("from torch import nn\n", "from torch import nn\n" + LAYER, 1)
    module = load(text.replace("def apply_rotary", f"@{wrapper}\ndef apply_rotary"))
    attention = module.Attention().bfloat16()
    plain = call(attention)
    with ropejit.patched("transformers"):
        assert all(map(torch.equal, call(attention)[:2], plain[:2]))
        assert len(taken) == (wrapper == "layer")
        if wrapper == "layer":
            module.apply_rotary_pos_emb.forward = lambda q, k, cos, sin: (q * 3, k)
            call(attention)
            assert len(taken) == 1


def test_a_model_that_is_loaded_later(load, taken):
    with ropejit.patched("transformers"):
        module = load(TEXT)
        attention = module.Attention().bfloat16()
        ours = call(attention)
        assert len(taken) == 1
    assert all(map(torch.equal, call(attention)[:2], ours[:2]))
    assert len(taken) == 1


def test_what_a_class_inherits_is_replaced_too(load, taken):
    derived = "class Derived(Attention):\n    def forward(self, *args, **kwargs):\n        return super().forward(*args, **kwargs)\n"
    module = load(f"{TEXT}\n{derived}")
    attention = module.Derived().bfloat16()
    plain = call(attention)
    with ropejit.patched("transformers"):
        assert all(map(torch.equal, call(attention)[:2], plain[:2]))
    assert len(taken) == 1


def test_the_log_says_what_is_one_launch(load, taken, caplog):
    module = load(TEXT)
    with caplog.at_level(logging.INFO, "ropejit"), ropejit.patched("transformers"):
        ropejit.patch("transformers")
    lines = [r.getMessage() for r in caplog.records if r.getMessage().startswith(f"{module.__name__}.Attention")]
    assert lines == [
        f"{module.__name__}.Attention.forward: k_norm and q_norm and the rotation are one launch for the calls that kernels cover"
    ]
