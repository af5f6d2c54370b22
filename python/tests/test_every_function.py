"""Every function of the installed transformers that rotates: its bits, forward and backward, or left alone.

Each is called in all ways in which models call functions of its kind.
"""

import itertools
from collections import Counter

import every
import pytest
import ropejit
import torch
from ropejit import _forms

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
WIDTH = 32


def tables(kind, dtype, *shape):
    """cos and sin of random angles, as the modules of this kind make them."""
    width = shape[-1]
    angles = torch.rand(*shape[:-1], width // 2) * 100
    angles = {
        "half": lambda: angles,
        "full": lambda: torch.cat((angles, angles), -1),
        "twice": lambda: angles.repeat_interleave(2, -1),
    }["full" if kind == "first" else kind]()
    return angles.cos().to(dtype), angles.sin().to(dtype)


#: What models pass: the order of q's dimensions (batch, heads, tokens), whether tables have a batch, and the keyword.
PAIR = {
    "heads first": ("bht", True, {}),
    "heads last": ("bth", True, {"unsqueeze_dim": 2}),
    "one table, heads first": ("bht", False, {"unsqueeze_dim": 0}),
    "one table, heads last": ("bth", False, {"unsqueeze_dim": 1}),
    "no batch": ("th", False, {"unsqueeze_dim": -2}),
}
WAYS = {
    "pair": PAIR,
    "single": PAIR,
    "vision": {"no batch": ("th", False, {}), "one table": ("bth", False, {}), "a batch": ("bth", True, {})},
    "gptj": {"heads last": ("bth", True, {})},
}
SIZES = {"b": 2, "t": 5}
#: Whether q and k need a gradient.
NEEDS = list(itertools.product((False, True), repeat=2))


def arguments(match, way, dtype, table, width, device):
    order, batch, keywords = WAYS[match.form.call][way]

    def one(heads):
        shape = [SIZES.get(axis, heads) for axis in order] + [WIDTH]
        return torch.randn(shape).to(device, dtype)

    cos, sin = (x.to(device) for x in tables(match.form.tables, table, *([2, 5] if batch else [5]), width))
    return [one(4), one(2)], cos, sin, keywords


def call(function, match, inputs, cos, sin, keywords):
    q, k = inputs
    kind = match.form.call
    if kind == "single":
        return [function(q, cos, sin, **keywords), function(k, cos, sin, **keywords)]
    if kind == "gptj":
        return [function(q, sin, cos), function(k, sin, cos)]
    return list(function(q, k, cos, sin, **keywords))


def outcome(function, match, inputs, cos, sin, keywords, wanted):
    """Results and gradients, or the error."""
    inputs = [x.clone().requires_grad_(need) for x, need in zip(inputs, wanted)]
    try:
        results = call(function, match, inputs, cos, sin, keywords)
    except Exception as error:  # noqa: BLE001 - whatever eager raises
        return type(error), str(error)
    torch.manual_seed(1)
    given = [torch.randn_like(x) for x in results]
    for x in given:
        x[..., ::3] = 0  # as a loss that masks tokens or heads
    needing = [i for i in (0, 1) if wanted[i]]
    gradients = []
    if needing:
        gradients = torch.autograd.grad([results[i] for i in needing], [inputs[i] for i in needing], [given[i] for i in needing])
    return [x.detach() for x in results] + list(gradients)


def same(ours, theirs):
    return len(ours) == len(theirs) and all(
        x.dtype == y.dtype and x.shape == y.shape and torch.equal(x, y) for x, y in zip(ours, theirs)
    )


def compare(patched, original, match, widths, device, served, calls):
    """Each call of both; the ways in which kernels computed one that needs no gradient, and what differs."""
    used, wrong = set(), []
    ways = WAYS[match.form.call]
    for way, dtype, table, wanted, width in itertools.product(ways, DTYPES, (None, torch.float32), NEEDS, widths):
        if table is dtype:
            continue
        inputs, cos, sin, keywords = arguments(match, way, dtype, table or dtype, width, device)
        theirs = outcome(original, match, inputs, cos, sin, keywords, wanted)
        served.clear()
        ours = outcome(patched, match, inputs, cos, sin, keywords, wanted)
        if isinstance(theirs, tuple):
            good, what = ours == theirs and not served, "refused as eager refuses"
        else:
            good = isinstance(ours, list) and same(ours, theirs)
            what = "equal" if served else "left to eager"
        calls[what if good else "wrong"] += 1
        if not good:
            wrong.append((way, dtype, table, wanted, width))
        if served and table is None and not any(wanted):
            used.add((way, dtype))
    return used, wrong


def test_every_function_of_transformers(device, capsys, served):
    originals = [(module, name, slot and slot.get()) for module, name, slot in every.functions()]
    functions, calls, wrong, unused, texts = Counter(), Counter(), [], [], set()
    with ropejit.patched("transformers"):
        for module, name, original in originals:
            label = f"{module.__name__}.{name}"
            if "." in name or vars(module)[name] is original:
                functions["left alone"] += 1
                continue
            functions["recognised"] += 1
            match = _forms.of(original, module.__name__)
            # Tables that are narrower than a head: for one function of each text.
            widths = (WIDTH,) if match.form.name in texts else (WIDTH, WIDTH // 2)
            texts.add(match.form.name)
            used, differing = compare(vars(module)[name], original, match, widths, device, served, calls)
            functions["wrong" if differing else "equal"] += 1
            wrong.extend((label, *call) for call in differing)
            unused.extend((label, *call) for call in itertools.product(WAYS[match.form.call], DTYPES) if call not in used)
    with capsys.disabled():
        print(f"\nfunctions that rotate: {dict(functions)}; their texts: {len(texts)}; calls of them: {dict(calls)}")
    assert not wrong, wrong[:5]
    assert not unused, f"recognised, and kernels did not compute {unused[:5]}"
    assert functions["recognised"] >= 150
    # Each known form is met, but for the one whose tables may differ.
    assert texts == {form.name for form in _forms.FORMS} - {"hunyuan_vl"}


@pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 10), reason="transformers' own functions break the graph"
)
@pytest.mark.parametrize("needs", [False, True], ids=["forward", "gradient"])
def test_one_function_of_each_text_compiled(needs):
    found = {}
    for module, name, slot in every.functions():
        match = slot and _forms.of(slot.get(), module.__name__)
        if isinstance(match, _forms.Match):
            found.setdefault(match.form.name, (module, name, match))
    for module, name, match in found.values():
        for way in list(WAYS[match.form.call])[:2]:
            inputs, cos, sin, keywords = arguments(match, way, torch.bfloat16, torch.bfloat16, WIDTH, "cpu")
            theirs = outcome(vars(module)[name], match, inputs, cos, sin, keywords, (needs, needs))
            torch.compiler.reset()
            with ropejit.patched("transformers"):
                compiled = torch.compile(vars(module)[name], backend="aot_eager", fullgraph=True)
                ours = outcome(compiled, match, inputs, cos, sin, keywords, (needs, needs))
            assert isinstance(ours, list) and same(ours, theirs), (module.__name__, way, ours)
