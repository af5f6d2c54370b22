"""Serving engines and trainers: what their layers compute with ours in their place. `engines` says which classes these are."""

import importlib.metadata
import logging
import subprocess
import sys

import engines
import pytest
import torch
from conftest import library
from ropejit.integrations import sglang, vllm

TYPES = [torch.bfloat16, torch.float16]


def reference(x, positions, cache, head_size, rotary_dim, is_neox, rounding):
    """float32 and one rounding, or each operation rounded."""
    heads = x.reshape(positions.numel(), -1, head_size)
    part = heads[..., :rotary_dim]
    compute = torch.float32 if rounding == "once" else x.dtype
    cos, sin = cache.to(x.device, compute)[positions.flatten()].unsqueeze(1).chunk(2, dim=-1)
    x1, x2 = part.to(compute).chunk(2, dim=-1) if is_neox else (part[..., ::2].to(compute), part[..., 1::2].to(compute))
    one, two = x1 * cos - x2 * sin, x2 * cos + x1 * sin
    out = torch.cat((one, two), -1) if is_neox else torch.stack((one, two), -1).flatten(-2)
    return torch.cat((out.to(x.dtype), heads[..., rotary_dim:]), -1).reshape(x.shape)


@pytest.fixture
def layers(monkeypatch, tmp_path):
    return engines.vllm(monkeypatch, tmp_path)


def qk(shape, device, dtype):
    """q and k as slices of what one linear layer makes."""
    (*tokens, heads, kv_heads, head_size) = shape
    qkv = torch.randn(*tokens, (heads + 2 * kv_heads) * head_size, device=device).to(dtype)
    q, k, _ = qkv.split([heads * head_size, kv_heads * head_size, kv_heads * head_size], dim=-1)
    return q, k


@pytest.mark.parametrize("rounding", ["once", "per_op"])
@pytest.mark.parametrize("is_neox", [True, False], ids=["neox", "gptj"])
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("rotary_dim", [64, 32])
def test_vllms_rotary_embedding(layers, device, dtype, is_neox, rounding, rotary_dim):
    theirs = layers.RotaryEmbedding(64, rotary_dim, 128, 10000, is_neox, dtype).to(device)
    vllm.register(rounding)
    ours = layers.RotaryEmbedding(64, rotary_dim, 128, 10000, is_neox, dtype).to(device)
    assert isinstance(ours, layers.RotaryEmbedding) and type(ours) is not type(theirs)
    positions = torch.randint(0, 128, (9,), device=device)
    q, k = qk((9, 4, 2, 64), device, dtype)
    cache = theirs.cos_sin_cache
    expected = [reference(x, positions, cache, 64, rotary_dim, is_neox, rounding) for x in (q, k)]
    if rounding == "per_op":
        native = theirs.forward_native(positions, q.clone(), k.clone())
        assert all(map(torch.equal, native, expected))
    out = ours.forward_cuda(positions, q, k)
    assert out[0] is q and out[1] is k and all(map(torch.equal, out, expected))


def test_vllms_rotary_embedding_of_q_alone_and_of_mla(layers, device):
    vllm.register()
    ours = layers.RotaryEmbedding(64, 64, 128, 10000, False, torch.bfloat16).to(device)
    positions = torch.randint(0, 128, (9,), device=device)
    q = torch.randn(9, 4, 192, device=device).bfloat16()[..., 128:]
    k = torch.randn(9, 1, 64, device=device).bfloat16()
    expected = [reference(x, positions, ours.cos_sin_cache, 64, 64, False, "once") for x in (q, k)]
    alone = ours.forward_cuda(positions, q.clone(), None)
    assert alone[1] is None and torch.equal(alone[0], expected[0])
    assert all(map(torch.equal, ours.forward_cuda(positions, q, k), expected))


def test_vllms_batches_and_no_tokens(layers, device):
    vllm.register()
    ours = layers.RotaryEmbedding(64, 64, 128, 10000, True, torch.bfloat16).to(device)
    positions = torch.randint(0, 128, (2, 5), device=device)
    q, k = qk((2, 5, 4, 2, 64), device, torch.bfloat16)
    expected = [reference(x, positions, ours.cos_sin_cache, 64, 64, True, "once") for x in (q, k)]
    assert all(map(torch.equal, ours.forward_cuda(positions, q, k), expected))
    none = ours.forward_cuda(positions[:0], q[:0], k[:0])
    assert none[0].shape[0] == 0


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_vllms_kernels_may_fuse_a_product_and_the_sum(layers, device, dtype):
    """Products of two numbers of 16 bits are exact in float32, so that both ways have the same bits."""
    vllm.register()
    ours = layers.RotaryEmbedding(64, 64, 128, 10000, True, dtype).to(device)
    positions, (q, k) = torch.randint(0, 128, (900,), device=device), qk((900, 4, 2, 64), device, dtype)
    cos, sin = (t.unsqueeze(1) for t in ours.cos_sin_cache.float()[positions].chunk(2, -1))
    x1, x2 = q.reshape(900, 4, 64).float().chunk(2, -1)
    fused = lambda a, b, c: (a.double() * b.double() + c.double()).float()  # noqa: E731
    expected = torch.cat((fused(x1, cos, -(x2 * sin)), fused(x2, cos, x1 * sin)), -1).to(dtype).view(q.shape)
    assert torch.equal(ours.forward_cuda(positions, q, k)[0], expected)


def test_vllms_float32_and_odd_heads_stay(layers, device, monkeypatch):
    base = layers.RotaryEmbedding
    calls = []
    monkeypatch.setattr(base, "forward_cuda", lambda self, *x: calls.append(x))
    vllm.register()
    positions = torch.zeros(3, dtype=torch.long, device=device)
    for head_size, dtype in ((64, torch.float32), (1024, torch.bfloat16)):
        ours = base(head_size, 64, 16, 10000, True, dtype).to(device)
        ours.forward_cuda(positions, *qk((3, 1, 1, head_size), device, dtype))
    assert len(calls) == 2


def test_vllms_family(layers, caplog):
    with caplog.at_level(logging.INFO, logger="ropejit"):
        replaced = vllm.register()
    assert {"RotaryEmbedding", "Llama3RotaryEmbedding", "ApplyRotaryEmb"} <= set(replaced)
    assert not {"FourierRotaryEmbedding", "MRotaryEmbedding"} & set(replaced)
    said = caplog.records[-1].getMessage()
    assert "RotaryEmbedding" in said and "FourierRotaryEmbedding" in said.partition("these stay")[2]
    assert sorted(vllm.register()) == sorted(replaced)
    op = layers.Llama3RotaryEmbedding
    from vllm.model_executor.custom_op import op_registry_oot

    # `custom_ops` finds it by the name that it had.
    assert op_registry_oot["Llama3RotaryEmbedding"].name == op.name == "rotary_embedding"


@pytest.mark.parametrize("in_float32", [False, True])
@pytest.mark.parametrize("is_neox", [True, False], ids=["neox", "gptj"])
@pytest.mark.parametrize("ndim", [3, 4])
@pytest.mark.parametrize("rounding", ["once", "per_op"])
def test_vllms_apply_rotary_emb(layers, device, is_neox, in_float32, ndim, rounding):
    from vllm.model_executor.layers.rotary_embedding.common import ApplyRotaryEmb

    theirs = ApplyRotaryEmb(True, is_neox, in_float32)
    vllm.register(rounding)
    ours = ApplyRotaryEmb(True, is_neox, in_float32)
    x = torch.randn(2, 9, 4, 80, device=device).bfloat16()
    x = x if ndim == 4 else x[0]
    angles = torch.randn(9, 40, device=device)
    cos, sin = angles.cos().bfloat16(), angles.sin().bfloat16()
    before = x.clone()
    out = ours.forward_cuda(x, cos, sin)
    if in_float32 or rounding == "per_op":
        assert torch.equal(out, theirs.forward_native(x, cos, sin))
    else:
        assert torch.equal(out, ApplyRotaryEmb(True, is_neox, True).forward_native(x, cos, sin))
    assert out.shape == x.shape and torch.equal(x, before)


def test_vllms_vision_towers_with_tables_of_float32_stay(layers, device, monkeypatch):
    from vllm.model_executor.layers.rotary_embedding.common import ApplyRotaryEmb

    calls = []
    monkeypatch.setattr(ApplyRotaryEmb, "forward_cuda", lambda self, *x: calls.append(x))
    vllm.register()
    angles = torch.randn(9, 40, device=device)
    for in_float32 in (False, True):
        x = torch.randn(9, 4, 80, device=device).bfloat16()
        ApplyRotaryEmb(True, True, in_float32).forward_cuda(x, angles.cos(), angles.sin())
    assert len(calls) == 2


def test_vllms_layers_are_traced(layers):
    vllm.register()
    ours = layers.RotaryEmbedding(64, 64, 128, 10000, True, torch.bfloat16)
    positions = torch.randint(0, 128, (9,))
    q, k = qk((9, 4, 2, 64), "cpu", torch.bfloat16)
    expected = [reference(x, positions, ours.cos_sin_cache, 64, 64, True, "once") for x in (q, k)]
    graphs = []

    def backend(graph, _):
        graphs.append(str(graph.graph))
        return graph

    out = torch.compile(ours.forward_cuda, fullgraph=True, backend=backend)(positions, q, k)
    assert all(map(torch.equal, out, expected)) and "ropejit.rotate" in graphs[0]


@pytest.mark.parametrize("plugin, variable", [(vllm, "VLLM_PLUGINS"), (sglang, "SGLANG_PLUGINS")], ids=["vllm", "sglang"])
def test_a_plugin_does_nothing_until_it_is_named(monkeypatch, caplog, plugin, variable):
    calls = []
    monkeypatch.setattr(plugin, "register", lambda: calls.append(1))
    with caplog.at_level(logging.INFO, logger="ropejit"):
        for value in (None, "", "lora", "ropejit2"):
            monkeypatch.setenv(variable, value) if value is not None else monkeypatch.delenv(variable, raising=False)
            plugin.plugin()
    assert not calls and f"{variable}=ropejit" in caplog.records[0].getMessage()
    monkeypatch.setenv(variable, "lora,ropejit")
    plugin.plugin()
    assert calls == [1]


def test_entry_points_name_the_plugins():
    try:
        importlib.metadata.distribution("ropejit")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("ropejit is not installed as a wheel")
    for group, module in (("vllm.general_plugins", vllm), ("sglang.srt.plugins", sglang)):
        (found,) = (e for e in importlib.metadata.entry_points(group=group) if e.name == "ropejit")
        assert found.load() is module.plugin


def test_no_library_is_imported_before_it_is_called():
    program = """
import sys
import ropejit.integrations.vllm, ropejit.integrations.sglang, ropejit.integrations.kernels
assert not {"torch", "vllm", "sglang", "kernels"} & set(sys.modules), sorted(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.fixture
def rotary(monkeypatch, tmp_path):
    package = engines.sglang(monkeypatch, tmp_path)
    sglang.register()
    package.hooks.apply_hooks()
    return package


@pytest.mark.parametrize("is_neox", [True, False], ids=["neox", "gptj"])
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("rotary_dim", [64, 32])
@pytest.mark.parametrize("positions_type", [torch.int64, torch.int32], ids=str)
def test_sglangs_rotary_embedding(rotary, device, dtype, is_neox, rotary_dim, positions_type):
    ours = rotary.RotaryEmbedding(64, rotary_dim, 128, 10000, is_neox, dtype).to(device)
    assert ours.cos_sin_cache.dtype == torch.float32
    positions = torch.randint(0, 128, (9,), device=device, dtype=positions_type)
    q, k = qk((9, 4, 2, 64), device, dtype)
    expected = [reference(x, positions, ours.cos_sin_cache, 64, rotary_dim, is_neox, "once") for x in (q, k)]
    out = ours.forward_cuda(positions, q, k)
    assert out[0] is q and out[1] is k and all(map(torch.equal, out, expected)) and not rotary.theirs


def test_what_sglangs_own_kernel_is_for_goes_to_it(rotary, device, monkeypatch):
    from ropejit.integrations import _serving

    monkeypatch.setattr(_serving, "rotate", lambda *_: pytest.fail("it is not covered"))
    positions = torch.zeros(9, dtype=torch.int64, device=device)
    for head_size, dtype, more in (
        (64, torch.float32, {}), (80, torch.bfloat16, {}), (64, torch.bfloat16, {"fused_set_kv_buffer_arg": object()}),
    ):  # fmt: skip
        ours = rotary.RotaryEmbedding(head_size, 64, 16, 10000, True, dtype).to(device)
        before = len(rotary.theirs)
        out = ours.forward_cuda(positions, *qk((9, 4, 2, head_size), device, dtype), **more)
        assert out == "theirs" or len(rotary.theirs) == before + 1


@pytest.fixture
def titan():
    library("torchtitan", optional=True)
    library("spmd_types", optional=True)
    from ropejit.integrations import torchtitan

    return torchtitan


def _rope(kind, **more):
    from torchtitan.models.common import rope

    return getattr(rope, kind).Config(dim=64, max_seq_len=32, **more)


@pytest.mark.parametrize("dtype", [torch.float32, *TYPES], ids=str)
@pytest.mark.parametrize("positions", [None, "one", "each"])
@pytest.mark.parametrize("more", [{}, {"scaling": "yarn", "rope_factor": 4.0, "original_seq_len": 16}], ids=["plain", "yarn"])
def test_torchtitans_cos_sin_rope(titan, device, served, dtype, positions, more):
    config = _rope("CosSinRoPE", **more)
    theirs, ours = config.build().to(device), titan.cos_sin_rope(config).build().to(device)
    assert type(ours) is titan.RopejitCosSinRoPE and torch.equal(ours.cache, theirs.cache)
    q, k = (torch.randn(2, 9, n, 64, device=device).to(dtype).requires_grad_() for n in (4, 2))
    ids = None if positions is None else torch.randint(0, 32, (1 if positions == "one" else 2, 9), device=device)
    out, expected = ours(q, k, ids), theirs(q, k, ids)
    assert len(served) == 1 and all(map(torch.equal, out, expected))
    given = [torch.randn_like(x) for x in out]
    own, grads = (torch.autograd.grad(y, (q, k), given) for y in (out, expected))
    assert all(map(torch.equal, own, grads))


@pytest.mark.parametrize("dtype", [torch.float32, *TYPES], ids=str)
@pytest.mark.parametrize("scaling", ["none", "llama"])
def test_torchtitans_complex_rope(titan, device, served, dtype, scaling):
    config = _rope("ComplexRoPE", scaling=scaling)
    theirs, ours = config.build().to(device), titan.complex_rope(config).build().to(device)
    q, k = (torch.randn(2, 9, n, 64, device=device).to(dtype).requires_grad_() for n in (4, 2))
    ids = torch.randint(0, 32, (2, 9), device=device)
    out, expected = ours(q, k, ids), theirs(q, k, ids)
    assert len(served) == 1
    given = [torch.randn_like(x) for x in out]
    own, grads = (torch.autograd.grad(y, (q, k), given) for y in (out, expected))
    for x, y in zip((*out, *own), (*expected, *grads), strict=True):
        torch.testing.assert_close(x, y, rtol=torch.finfo(dtype).eps, atol=4 * torch.finfo(torch.float32).eps)


@pytest.mark.parametrize("kind, name", [("CosSinRoPE", "cos_sin_rope"), ("ComplexRoPE", "complex_rope")])
def test_torchtitan_applies_the_override(titan, kind, name):
    """By the name that ``--override.imports`` takes."""
    from dataclasses import dataclass

    from torchtitan.config import OverrideConfig
    from torchtitan.config.override import apply_overrides
    from torchtitan.protocols.module import Module

    class Attention(Module):
        @dataclass(kw_only=True, slots=True)
        class Config(Module.Config):
            rope: object

    root = Attention.Config(rope=_rope(kind))
    lines = apply_overrides(OverrideConfig(imports=[f"ropejit.integrations.torchtitan.{name}"]), root)
    assert type(root.rope) is getattr(titan, f"Ropejit{kind}").Config and len(lines) == 1


@pytest.mark.parametrize("kind, name", [("CosSinRoPE", "cos_sin_rope"), ("ComplexRoPE", "complex_rope")])
def test_torchtitans_layers_are_traced(titan, kind, name):
    ours = getattr(titan, name)(_rope(kind)).build()
    q, k = torch.randn(2, 9, 4, 64), torch.randn(2, 9, 2, 64)
    graphs = []

    def backend(graph, _):
        graphs.append(str(graph.graph))
        return graph

    out = torch.compile(lambda q, k: ours(q, k), fullgraph=True, backend=backend)(q, k)
    assert all(map(torch.equal, out, ours(q, k))) and "ropejit.rotate" in graphs[0]
