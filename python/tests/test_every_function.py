"""Every function of the installed transformers that rotates: its bits, forward and backward, or left alone.

Each is called in all ways in which models call functions of its kind.
"""

import itertools
from collections import Counter

import every
import pytest
import ropejit
import torch
import transformers_coverage
from calls import WAYS, WIDTH, Made
from ropejit import _complex, _forms
from ropejit._form_texts_rare import RARE

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
#: Whether q and k need a gradient; what goes beside them needs one as q does.
NEEDS = list(itertools.product((False, True), repeat=2))
#: Only in the texts of releases before the one that is tested.
OLD = {"deepseek_v3_by_view", "phimoe", "esm_of_old", "qwen2_vl", "glm4v_moe", "glm4v_of_old", "qwen2_5_omni_vision"}


def outcome(function, call, inputs, wanted):
    """Results and gradients, or the error."""
    wanted = [wanted[i % 2] for i in range(len(inputs))]
    inputs = [x.clone().requires_grad_(need) for x, need in zip(inputs, wanted)]
    try:
        results = call(function, *inputs)
    except Exception as error:  # noqa: BLE001 - whatever eager raises
        return type(error), str(error)
    torch.manual_seed(1)
    given = [torch.randn_like(x) for x in results]
    for x in given:
        x[..., ::3] = 0  # as a loss that masks tokens or heads
    needing = [i for i, need in enumerate(wanted) if need]
    gradients = []
    if needing:
        gradients = torch.autograd.grad([results[i] for i in needing], [inputs[i] for i in needing], [given[i] for i in needing])
    return [x.detach() for x in results] + list(gradients)


def same(ours, theirs):
    return len(ours) == len(theirs) and all(
        x.dtype == y.dtype and x.shape == y.shape and torch.equal(x, y) for x, y in zip(ours, theirs)
    )


def compare(patched, original, form, widths, needs, device, served, calls):
    """Each call of both; the ways in which kernels computed one that needs no gradient, and what differs."""
    used, wrong = set(), []
    ways = WAYS[form.call]
    for way, dtype, table, wanted, width in itertools.product(ways, DTYPES, (None, torch.float32), needs, widths):
        if table is dtype:
            continue
        inputs, call = ways[way](Made(form, dtype, table or dtype, width, device))
        theirs = outcome(original, call, inputs, wanted)
        served.clear()
        ours = outcome(patched, call, inputs, wanted)
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
    originals = [(module, name, slot, slot and slot.get()) for module, name, slot in every.functions()]
    functions, calls, wrong, unused, texts = Counter(), Counter(), [], [], set()
    with ropejit.patched("transformers"):
        for module, name, slot, original in originals:
            label = f"{module.__name__}.{name}"
            if slot is None or slot.get() is original:
                functions["left alone"] += 1
                continue
            functions["recognised"] += 1
            form = _forms.of(original, module.__name__).form
            # For one function of each text: tables that are narrower than a head, and a gradient of one of the two. What stands
            # for the others is the same function of ours.
            widths, needs = ((WIDTH,), (NEEDS[0], NEEDS[-1])) if form.name in texts else ((WIDTH, WIDTH // 2), NEEDS)
            texts.add(form.name)
            used, differing = compare(slot.get(), original, form, widths, needs, device, served, calls)
            functions["wrong" if differing else "equal"] += 1
            wrong.extend((label, *call) for call in differing)
            # A device whose complex products have no contract of the kernels' computes them itself.
            if not form.call.startswith("complex") or all(_complex._SEEN.values()):
                unused.extend((label, *call) for call in itertools.product(WAYS[form.call], DTYPES) if call not in used)
    with capsys.disabled():
        print(f"\nfunctions that rotate: {dict(functions)}; their texts: {len(texts)}; calls of them: {dict(calls)}")
    assert not wrong, wrong[:5]
    assert not unused, f"recognised, and kernels did not compute {unused[:5]}"
    assert not transformers_coverage.fallen(transformers_coverage.found())
    assert functions["recognised"] >= 110
    # Of the newest release that is known each form is met, but for the one whose tables may differ.
    if transformers_coverage.version() == max(transformers_coverage.KNOWN):
        assert texts == {form.name for form in _forms.FORMS} - {"hunyuan_vl"} - OLD


@pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 10), reason="transformers' own functions break the graph"
)
@pytest.mark.parametrize("needs", [False, True], ids=["forward", "gradient"])
def test_one_function_of_each_text_compiled(needs):
    found = {}
    for module, name, slot in every.functions():
        match = slot and _forms.of(slot.get(), module.__name__)
        if isinstance(match, _forms.Match):
            found.setdefault(match.form.name, (name, slot, slot.get(), match.form))
    with ropejit.patched("transformers"):  # once: it reads the texts of all modules
        for name, slot, original, form in found.values():
            if form in RARE and not needs:
                continue  # with a gradient it is the same, and more
            for way in list(WAYS[form.call])[:2]:
                inputs, call = WAYS[form.call][way](Made(form, torch.bfloat16, torch.bfloat16, WIDTH, "cpu"))
                theirs = outcome(original, call, inputs, (needs, needs))
                torch.compiler.reset()
                compiled = torch.compile(slot.get(), backend="aot_eager", fullgraph=True)
                ours = outcome(compiled, call, inputs, (needs, needs))
                assert isinstance(ours, list) and same(ours, theirs), (form.name, name, way, ours)
