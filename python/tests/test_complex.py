"""Products of complex numbers: the contracts that they may have, what a device is seen to do, and models that use them."""

import logging

import pytest
import ropejit
import torch
from eager import DTYPES, equal
from ropejit import _complex
from transformers.models.deepseek_v2.modeling_deepseek_v2 import apply_rotary_emb as deepseek_v2
from transformers.models.llama4.modeling_llama4 import apply_rotary_emb as llama4
from transformers.models.llama4.modeling_llama4 import vision_apply_rotary_emb as llama4_vision

TOKENS, WIDTH = 6, 64


def numbers(device, dtype, *shape, grad=False):
    return torch.randn(*shape, WIDTH).to(dtype).to(device).requires_grad_(grad)


def turned(x, freqs, how):
    """x by complex numbers, of which each real operation is written out; rounded to x's type."""
    pairs = x.float().unflatten(-1, (-1, 2))
    return _complex.product(pairs, torch.view_as_real(freqs).expand_as(pairs), how).flatten(-2).to(x.dtype)


def freqs_of(device, *shape):
    return torch.polar(torch.ones(*shape, WIDTH // 2), 6 * torch.rand(*shape, WIDTH // 2)).to(device)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("how", ["once", "contracted"])
def test_kernels_compute_the_contract(device, dtype, how):
    x = numbers(device, dtype, 2, TOKENS, 3, grad=True)
    freqs = freqs_of(device, TOKENS)
    with torch.no_grad():
        # A sum that is nearly between two float32: rounded to float64 before, it would be rounded to the other.
        x[0, 0, 0, :2] = torch.tensor([1 + 2.0**-12, -(2.0**-60)])
        freqs[0, 0] = complex(1 + 2.0**-12, 1.0)
    cos, sin = (part.contiguous() for part in torch.view_as_real(freqs).unbind(-1))
    out, _ = ropejit.apply(x, None, cos, sin, interleaved=True, rounding=how)
    equal([out], [turned(x, freqs[:, None], how)])
    if dtype == torch.float32:
        assert out[0, 0, 0, 0] == 1 + 2.0**-11 + (2.0**-23 if how == "contracted" else 0)
    other = "once" if how == "contracted" else "contracted"
    assert dtype != torch.float32 or not torch.equal(out, ropejit.apply(x, None, cos, sin, interleaved=True, rounding=other)[0])
    given = torch.randn_like(out)
    (gradient,) = torch.autograd.grad(out, x, given)
    equal([gradient], [turned(given, freqs[:, None].conj().resolve_conj(), how)])
    in_place, _ = ropejit.apply(x.detach().clone(), None, cos, sin, interleaved=True, rounding=how, inplace=True)
    equal([in_place], [out])


def models(device, dtype, grad):
    """The functions, q and k as they get them, their table, and how it is broadcast."""
    bth, bht = [(2, TOKENS, n) for n in (4, 2)], [(2, n, TOKENS) for n in (4, 2)]
    each, one = freqs_of(device, 2, TOKENS), freqs_of(device, TOKENS)
    for name, shapes, table, broadcast in (
        ("llama4", bth, each, each[:, :, None]), ("llama4_vision", bth, one[:, None], one[:, None]),
        ("deepseek_v2", bht, each, each[:, None]),
    ):  # fmt: skip
        yield name, [numbers(device, dtype, *shape, grad=grad) for shape in shapes], table, broadcast


@pytest.fixture
def functions():
    """By name, as `patch` has replaced them."""
    from transformers.models.deepseek_v2 import modeling_deepseek_v2
    from transformers.models.llama4 import modeling_llama4

    with ropejit.patched("transformers"):
        yield {
            "llama4": modeling_llama4.apply_rotary_emb, "llama4_vision": modeling_llama4.vision_apply_rotary_emb,
            "deepseek_v2": modeling_deepseek_v2.apply_rotary_emb,
        }  # fmt: skip


EAGER = {"llama4": llama4, "llama4_vision": llama4_vision, "deepseek_v2": deepseek_v2}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("how", ["once", "contracted"])
def test_models_get_the_contract_that_was_seen(functions, monkeypatch, served, dtype, how):
    monkeypatch.setitem(_complex._SEEN, torch.device("cpu"), how)
    for name, inputs, table, broadcast in models("cpu", dtype, True):
        served.clear()
        out = functions[name](*inputs, table)
        assert len(served) == 1, name
        equal(out, [turned(x, broadcast, how) for x in inputs])
        given = [torch.randn_like(x) for x in out]
        equal(torch.autograd.grad(out, inputs, given), [turned(x, broadcast.conj().resolve_conj(), how) for x in given])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_models_keep_their_bits(device, functions, served, dtype):
    for name, inputs, table, _ in models(device, dtype, True):
        served.clear()
        out, theirs = functions[name](*inputs, table), EAGER[name](*inputs, table)
        assert len(served) == 1 or _complex._SEEN[table.device] is None, name
        equal(out, theirs)
        given = [torch.randn_like(x) for x in out]
        equal(*(torch.autograd.grad(x, inputs, given) for x in (out, theirs)))


def test_where_there_is_no_such_contract_the_models_compute(functions, monkeypatch, served):
    monkeypatch.setitem(_complex._SEEN, torch.device("cpu"), None)
    for name, inputs, table, _ in models("cpu", torch.float32, False):
        equal(functions[name](*inputs, table), EAGER[name](*inputs, table))
    assert not served


def test_results_decide_what_was_seen(device, monkeypatch, caplog):
    device, product = torch.empty(0, device=device).device, _complex.product
    seen = _complex._measured(device)
    other = {"once": "contracted", "contracted": "once"}
    monkeypatch.setattr(_complex, "product", lambda x, y, how: product(x, y, other[how]))
    assert _complex._measured(device) == other.get(seen)
    monkeypatch.setattr(_complex, "product", lambda x, y, how: product(x, y, how).nextafter(x))
    with caplog.at_level(logging.WARNING, "ropejit"):
        assert _complex._measured(device) is None
    assert f"complex products on {device}" in caplog.text
