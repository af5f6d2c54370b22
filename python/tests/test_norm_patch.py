"""Norms of q and k and the rotation, taken as one call inside of a model's attention: equal bits, or the model's own statements.

Without a GPU every such call is the model's own. There `kernels` makes the processor count as a GPU and has PyTorch's operations
stand in for the kernels, so that all but the kernels is seen at work.
"""

from collections import Counter

import pytest
import ropejit
import sequences
import torch
from sequences import differences, freeze, innermost, outcome, step

DTYPES = [torch.float32, torch.bfloat16]
#: Layers that may differ: sliding or not, with the rotation or without.
LAYERS = (0, 1, 3)
WIDTHS = {"cpu": (32,), "cuda": (64, 128)}


@pytest.fixture
def kernels(device, monkeypatch):
    return sequences.watch(monkeypatch, device)


def attentions(device, dtype):
    """Attentions of every class, of layers and widths that may differ, and what makes their arguments."""
    for cls in sequences.classes():
        for layer in LAYERS:
            made = [_made(cls, layer, width, device, dtype) for width in WIDTHS[device]]
            # Some have heads of one width only: that of all they project to, divided by their number.
            yield from [case for case in made if case] or [_made(cls, layer, sequences.WIDTH, device, dtype)]


def _made(cls, layer, width, device, dtype):
    attention = sequences.build(cls, layer, width).to(device, dtype)
    arguments = sequences.inputs(attention, device, dtype)
    try:
        outcome(attention, arguments)
    except RuntimeError:
        return None
    return attention, arguments


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_attention_computes_the_same(device, kernels, dtype):
    cases, taken, differing = [], Counter(), []
    for attention, arguments in attentions(device, dtype):
        freeze(attention)
        cases.append((attention, arguments, outcome(attention, arguments), step(attention, arguments)))
    with ropejit.patched("transformers"):
        for attention, arguments, plain, trained in cases:
            name = type(attention).__name__
            kernels.clear()
            ours = outcome(attention, arguments)
            taken[name] += len(kernels)
            if differences(ours, plain) + differences(step(attention, arguments), trained):
                differing.append(name)
    assert not differing
    assert [cls.__name__ for cls in sequences.classes() if not taken[cls.__name__]] == []


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_weights_of_norms_that_are_trained(device, kernels, dtype):
    """They are summed by PyTorch unless somebody has said that the kernels may. (In another order all the same, where the
    gradient that it sums lies otherwise in memory, as with the rotation alone.) All else is eager's in both cases.
    """
    cases = [(attention, arguments, step(attention, arguments)) for attention, arguments in attentions(device, dtype)]
    weights = [
        [f"{n}.{p}" for n, m in sequences.norms(attention).items() for p, _ in m.named_parameters()] for attention, _, _ in cases
    ]
    with ropejit.patched("transformers"):
        for (attention, arguments, plain), names in zip(cases, weights):
            kernels.clear()
            differing = differences(step(attention, arguments), plain)
            assert not set(differing) - set(names) and not (names and kernels), attention
    taken, ours = 0, []
    with ropejit.patched("transformers", norm_gradients="own"):
        for attention, arguments, _ in cases:
            kernels.clear()
            ours.append(step(attention, arguments))
            taken += len(kernels)
    assert taken >= 40
    for (attention, arguments, plain), names, mine in zip(cases, weights, ours):
        rest = [{n: x for n, x in results.items() if n not in names} for results in (mine, plain)]
        assert not differences(*rest), attention
        exact = step(attention.double(), lambda: {n: _double(x) for n, x in arguments().items()})
        for n in names:
            if n in plain:
                # Both are sums of the same rounded terms: neither may be much further from one in float64 (in which the
                # model's norm still computes in float32).
                far = [(results[n].double() - exact[n]).norm().item() for results in (mine, plain)]
                assert far[0] <= 2 * far[1] + torch.finfo(dtype).eps * exact[n].norm().item(), (attention, n, far)


def _double(x):
    if isinstance(x, tuple):
        return tuple(map(_double, x))
    return x.double() if torch.is_tensor(x) and x.is_floating_point() else x


def test_on_the_processor_every_call_is_the_models_own(monkeypatch):
    def refused(*_, **__):
        raise AssertionError("a kernel was called")

    monkeypatch.setattr(ropejit, "qk_norm_rope", refused, raising=False)
    cases = [(attention, arguments, step(attention, arguments)) for attention, arguments in attentions("cpu", torch.float32)]
    with ropejit.patched("transformers", norm_gradients="own"):
        for attention, arguments, plain in cases:
            assert hasattr(innermost(type(attention).forward), "__ropejit__")
            names = [f"{n}.weight" for n in sequences.norms(attention)]
            assert not set(differences(step(attention, arguments), plain)) - set(names), attention


