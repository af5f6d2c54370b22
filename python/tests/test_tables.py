"""Whether tables repeat each angle: what the text of a module says, against the tables that it makes."""

import importlib
import inspect
import itertools
import re

import every
import pytest
import ropejit
import torch
from ropejit import _forms, _tables


def repeated(table):
    half = table.shape[-1] // 2
    if torch.equal(table[..., :half], table[..., half:]):
        return "full"
    return "twice" if torch.equal(table[..., ::2], table[..., 1::2]) else None


def position_ids():
    """Positions of a text, of patches, and on axes that differ, as images have them."""
    yield from (torch.randint(0, 90, shape) for shape in [(1, 5), (5, 2), (1, 5, 2), (2, 1, 5), (3, 1, 5), (4, 1, 5)])


def made(module, owner):
    """How the tables repeat angles that this class makes with default configurations, in all ways in which it can be called."""
    configurations = [c for n, c in vars(module).items() if n.endswith("Config") and inspect.isclass(c)]
    for configuration in configurations:
        try:
            config = configuration()
            rope = getattr(module, owner)(config)
        except Exception:  # noqa: BLE001, S112 - not what this class is made from
            continue
        layer_types = {*(getattr(config, "layer_types", None) or ()), None}
        for ids, layer_type in itertools.product(position_ids(), layer_types):
            try:
                cos, sin = rope(torch.zeros(1, 5, 8), ids, **({"layer_type": layer_type} if layer_type else {}))
            except Exception:  # noqa: BLE001, S112 - not how it is called
                continue
            yield repeated(cos)
            yield repeated(sin)


def test_what_the_text_says_is_what_modules_make(capsys):
    agreed, never_called = 0, []
    for module in every.modules():
        said = dict(_tables._made_by(module.__name__))
        for owner in [owner for owner in said if re.search("Rotary|Rope|Positional", owner)]:
            seen = set(made(module, owner))
            if not seen:
                never_called.append(owner)
            elif said[owner] is not None:
                assert seen == {said[owner]}, (module.__name__, owner)
                agreed += 1
    with capsys.disabled():
        print(f"\nclasses whose tables are as their text says: {agreed}; that could not be called here: {len(never_called)}")
    assert agreed >= 150


def test_hunyuan_vl_has_two_angles_where_one_is_read():
    from transformers import HunYuanVLTextConfig
    from transformers.models.hunyuan_vl import modeling_hunyuan_vl as module

    parameters = dict(rope_type="default", rope_theta=1e4, mrope_section=[4, 4, 4, 4])
    config = HunYuanVLTextConfig(
        hidden_size=128, num_attention_heads=4, head_dim=32, num_hidden_layers=1, rope_parameters=parameters
    )
    q, k = torch.randn(1, 4, 6, 32), torch.randn(1, 2, 6, 32)
    image = torch.arange(6).expand(4, 1, 6) + torch.arange(4)[:, None, None]
    cos, sin = module.HunYuanVLRotaryEmbedding(config)(q, image)
    assert repeated(cos) is None
    plain = module.apply_rotary_pos_emb(q, k, cos, sin)
    with ropejit.patched("transformers"):
        assert all(map(torch.equal, module.apply_rotary_pos_emb(q, k, cos, sin), plain))


def test_a_part_of_a_wider_row_is_left_to_eager():
    # As MiniMax-M3's indexer cuts the tables of its attention, and Gemma 4's towers those of two axes.
    from transformers.models.llama import modeling_llama as module

    q, k = torch.randn(1, 4, 6, 32), torch.randn(1, 2, 6, 32)
    angles = torch.rand(1, 6, 32)
    cos, sin = (torch.cat((x, x), -1)[..., :32] for x in (angles.cos(), angles.sin()))
    plain = module.apply_rotary_pos_emb(q, k, cos, sin)
    with ropejit.patched("transformers"):
        assert all(map(torch.equal, module.apply_rotary_pos_emb(q, k, cos, sin), plain))


MODULE = '''
import torch
{imported}

class {owner}:
    def forward(self, x, position_ids):
        freqs = position_ids[..., None].float() * self.inv_freq
        {body}

    def halves(self, freq):
        return torch.cat((freq, freq), dim=-1)

    def sections(self, freq):
        freq = torch.cat((freq, freq), dim=-1)
        return torch.cat([m[i % 3] for i, m in enumerate(freq.split([2, 3, 3] * 2, dim=-1))], dim=-1)
'''
FULL = """emb = torch.cat((freqs, freqs), dim=-1)
        return (emb.cos() * self.attention_scaling).to(x.dtype), (emb.sin() * self.attention_scaling).to(x.dtype)"""
MAKERS = {
    "full": (FULL, "full"),
    "a list": (FULL.replace("(freqs, freqs)", "[freqs, freqs]"), "full"),
    "through a method": ("return self.halves(freqs.cos()), self.halves(freqs.sin())", "full"),
    "within a with": (
        "with torch.no_grad():\n            emb = torch.cat((freqs, freqs), dim=-1)\n        return emb.cos(), emb.sin()", "full",
    ),
    "twice": ("emb = torch.repeat_interleave(freqs, 2, dim=-1)\n        return emb.cos(), emb.sin()", "twice"),
    "tiled": ("emb = freqs.tile(2)\n        return emb.cos(), emb.sin()", "full"),
    "tiled otherwise": ("emb = freqs.tile(2, 1)\n        return emb.cos(), emb.sin()", None),
    "new dimensions": (FULL.replace(" * self.attention_scaling)", "[:, None, :])"), "full"),
    "a part": (FULL.replace(" * self.attention_scaling)", "[:, None, 1:])"), None),
    "stacked": ("emb = torch.cat((freqs, freqs), dim=-1)\n        return torch.stack([emb.cos(), emb.sin()])", "full"),
    "kept": ("emb = torch.cat((freqs, freqs), dim=-1)\n        self.a, self.b = 1, 2\n        self.c = emb.cos()[None, :]\n        emb.sin()", "full"),
    "kept in a branch": (
        "if x is None:\n            emb = torch.cat((freqs, freqs), dim=-1)\n            self.c = emb.cos()\n            emb.sin()",
        "full",
    ),
    "one of two branches": (
        "if x is None:\n            freqs = torch.cat((freqs, freqs), dim=-1)\n        return freqs.cos(), freqs.sin()", None,
    ),
    "a buffer": ("emb = torch.cat((freqs, freqs), dim=-1)\n        self.register_buffer('c', emb.cos())\n        emb.sin()", "full"),
    "three times": ("emb = freqs.repeat_interleave(3, dim=-1)\n        return emb.cos(), emb.sin()", None),
    "another dimension": (FULL.replace("dim=-1", "dim=1"), None),
    "two angles": (FULL.replace("(freqs, freqs)", "(freqs, freqs + 1)"), None),
    "two random ones": (FULL.replace("(freqs, freqs)", "(freqs.bernoulli(), freqs.bernoulli())"), None),
    "sections of the copy": ("return self.sections(freqs.cos()), self.sections(freqs.sin())", None),
    "only sometimes": (FULL.replace("        return", "        if x.ndim > 3:\n            emb = freqs\n        return"), None),
    "written to": (FULL.replace("        return", "        emb[..., :3] = 0\n        return"), None),
    "written to in place": (FULL.replace("        return", "        emb.add_(self.shift)\n        return"), None),
    "scaled one by one": (FULL.replace("self.attention_scaling", "self.weight"), None),
    "one of them": (FULL.replace("(emb.sin()", "(freqs.sin()"), None),
    "cut": (FULL.replace("x.dtype), (", "x.dtype)[..., 1:], ("), None),
}  # fmt: skip


@pytest.fixture
def load(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    names = (f"model_of_tables_{i}" for i in itertools.count())

    def load(body, owner="RotaryEmbedding", imported=""):
        name = f"{next(names)}_{tmp_path.name}"
        (tmp_path / f"{name}.py").write_text(MODULE.format(body=body, owner=owner, imported=imported))
        return importlib.import_module(name)

    return load


@pytest.mark.parametrize("name", MAKERS)
def test_a_maker_is_told_by_its_text(load, name):
    body, kind = MAKERS[name]
    assert _tables._made_by(load(body).__name__) == [("RotaryEmbedding", kind)]


def test_where_a_function_is_imported_the_importing_module_makes_the_tables(load):
    llama = "from transformers.models.llama.modeling_llama import apply_rotary_pos_emb"
    makes_its_own = load(MAKERS["two angles"][0], imported=llama)
    assert "RotaryEmbedding" in _forms.of(makes_its_own.apply_rotary_pos_emb, makes_its_own.__name__)
    makes_none = load("return freqs", imported=llama)
    assert _forms.of(makes_none.apply_rotary_pos_emb, makes_none.__name__).form.name == "llama"


def test_a_vision_tower_has_tables_of_its_own(load):
    module = load(MAKERS["two angles"][0], owner="VisionRotaryEmbedding").__name__
    assert "VisionRotaryEmbedding" in _tables.doubt("full", "apply_rotary_pos_emb_vision", module)
    text = load(FULL, owner="TextRotaryEmbedding").__name__
    assert _tables.doubt("full", "apply_rotary_pos_emb", text) is None
