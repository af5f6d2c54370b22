"""`patch("unsloth")`, on stand-ins: Unsloth needs a GPU to be imported. Its functions here have the signatures, and those
statements that count, of release 2026.10."""

import logging
import sys
import types

import pytest
import ropejit
import torch
from eager import equal, llama, qk, tables

DECODE = """
import torch

def LlamaAttention_fast_forward_inference(Qn, RH_Q, cos, sin):
    Qn *= cos
    Qn.addcmul_(RH_Q, sin)
    return Qn

def LlamaAttention_fast_forward(Q, cos, sin):
    return Q * cos
"""
KERNELS = """
def fast_rope_embedding(Q, K, cos, sin, rope_embedding_indices=None):
    return None

def decode_rope_inplace(Q, K, cos, sin, position_ids):
    return False

def inplace_rope_embedding(Q, K, cos, sin, position_ids):
    return None
"""
GENERATED = """
import functools
import torch

def compiled(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)
    return wrapper

class LlamaRotaryEmbedding(torch.nn.Module):
    def forward(self, x, position_ids):
        freqs = (self.inv_freq @ position_ids).transpose(1, 2)
        emb = torch.cat((freqs, freqs), dim=-1)
        cos = emb.cos() * self.attention_scaling
        sin = emb.sin() * self.attention_scaling
        return cos.to(dtype=x.dtype), sin.to(dtype=x.dtype)

def rotate_half(x):
    x1 = x[..., : x.shape[-1] // 2]
    x2 = x[..., x.shape[-1] // 2 :]
    return torch.cat((-x2, x1), dim=-1)

@DECORATOR
def apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim=1):
    cos = cos.unsqueeze(unsqueeze_dim)
    sin = sin.unsqueeze(unsqueeze_dim)
    q_embed = (q * cos) + (rotate_half(q) * sin)
    k_embed = (k * cos) + (rotate_half(k) * sin)
    return q_embed, k_embed
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Makes a module of a text, so that its text can be read."""

    def make(name, text):
        path = tmp_path / f"{name.rpartition('.')[2]}.py"
        path.write_text(text)
        made = types.ModuleType(name)
        made.__file__ = str(path)
        exec(compile(text, path, "exec"), vars(made))
        monkeypatch.setitem(sys.modules, name, made)
        return made

    return make


def test_decode_stays_and_is_said(module, caplog):
    decode, own = module("unsloth.models.llama", DECODE), module("unsloth.kernels.rope_embedding", KERNELS)
    before = {m: dict(vars(m)) for m in (decode, own)}
    with caplog.at_level(logging.WARNING, logger="ropejit"), ropejit.patched("unsloth"):
        ropejit.patch("unsloth")
        changed = [n for m, names in before.items() for n, v in names.items() if vars(m)[n] is not v]
    assert changed == ["fast_rope_embedding"] and all(vars(m) == names for m, names in before.items())
    said = [r.getMessage().partition(" is not covered")[0] for r in caplog.records]
    assert said == [
        "unsloth.models.llama.LlamaAttention_fast_forward_inference", "unsloth.kernels.rope_embedding.decode_rope_inplace",
        "unsloth.kernels.rope_embedding.inplace_rope_embedding",
    ]  # fmt: skip


@pytest.mark.parametrize("package", ["", "unsloth_compiled_cache."])
def test_a_generated_function_that_is_not_compiled_is_replaced(module, served, package, device):
    made = module(f"{package}unsloth_compiled_module_llama", GENERATED.replace("@DECORATOR\n", ""))
    theirs = made.apply_rotary_pos_emb
    q, k = qk(device, torch.bfloat16, 2, 9, 4, 2, 64)
    cos, sin = tables(device, torch.bfloat16, 2, 9, 64)
    with ropejit.patched("unsloth"):
        equal(made.apply_rotary_pos_emb(q, k, cos, sin), llama(q, k, cos, sin))
        assert len(served) == 1
    assert made.apply_rotary_pos_emb is theirs


@pytest.mark.parametrize("decorator", ["compiled", "torch.compile(fullgraph=True, dynamic=True)"])
def test_a_generated_function_that_is_compiled_stays_and_is_said(module, caplog, decorator):
    made = module("unsloth_compiled_module_llama", GENERATED.replace("DECORATOR", decorator))
    theirs = made.apply_rotary_pos_emb
    with caplog.at_level(logging.WARNING, logger="ropejit"), ropejit.patched("unsloth"):
        assert made.apply_rotary_pos_emb is theirs
    (said,) = [r.getMessage() for r in caplog.records]
    assert said == "unsloth_compiled_module_llama.apply_rotary_pos_emb is not covered and stays as it is: Unsloth compiles it"


def test_a_generated_function_of_another_text_stays_and_is_said(module, caplog):
    text = GENERATED.replace("@DECORATOR\n", "").replace("(q * cos) +", "(q * cos) -")
    made = module("unsloth_compiled_module_llama", text)
    with caplog.at_level(logging.WARNING, logger="ropejit"), ropejit.patched("unsloth"):
        assert not hasattr(made.apply_rotary_pos_emb, "__ropejit__")
    assert "none of the known forms" in caplog.text
