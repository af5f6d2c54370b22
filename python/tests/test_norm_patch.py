"""Norms of q and k and the rotation, taken as one call inside of a model's attention: equal bits, or the model's own statements.

Without a GPU every such call is the model's own. There `kernels` makes the processor count as a GPU and has PyTorch's operations
stand in for the kernels, so that all but the kernels is seen at work.
"""

import inspect
import logging
import traceback
from collections import Counter

import pytest
import ropejit
import sequences
import torch
from ropejit import _functions, _fused, _patch

DTYPES = [torch.float32, torch.bfloat16]
#: Layers that may differ: sliding or not, with the rotation or without.
LAYERS = (0, 1, 3)
WIDTHS = {"cpu": (32,), "cuda": (64, 128)}


@pytest.fixture
def kernels(device, monkeypatch):
    """The arguments of calls that took one launch, as a list that grows."""
    calls = []
    # A test that measures begins anew, and counts no call of a measurement.
    whole = getattr(_functions, "qk_norm_rope") if device == "cuda" else sequences.norm_rope
    measured = _fused._measured

    def counted(*arguments, **keywords):
        calls.append((arguments, keywords))
        return whole(*arguments, **keywords)

    def uncounted(*arguments):
        before = len(calls)
        out = measured(*arguments)
        del calls[before:]
        return out

    monkeypatch.setattr(_functions, "qk_norm_rope", counted, raising=False)
    monkeypatch.setattr(_fused, "_measured", uncounted)
    monkeypatch.setattr(_fused, "_on_cpu", device == "cpu")
    return calls


def qwen3(device="cpu", dtype=torch.bfloat16):
    """An attention of Qwen 3 and what makes its arguments."""
    from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention

    attention = sequences.build(Qwen3Attention).to(device, dtype)
    return attention, sequences.inputs(attention, device, dtype)


def freeze(attention):
    for norm in sequences.norms(attention).values():
        norm.requires_grad_(False)


def step(attention, arguments):
    """The result and all gradients of one call."""
    arguments = arguments()
    arguments["hidden_states"] = arguments["hidden_states"].clone().requires_grad_()
    out = attention(**arguments)[0]
    generator = torch.Generator(out.device).manual_seed(3)
    given = torch.randn(out.shape, generator=generator, device=out.device).to(out.dtype)
    wanted = {n: p for n, p in attention.named_parameters() if p.requires_grad}
    wanted["hidden_states"] = arguments["hidden_states"]
    gradients = torch.autograd.grad(out, list(wanted.values()), given, allow_unused=True)
    return {"out": out.detach(), **{n: g for n, g in zip(wanted, gradients) if g is not None}}


def differences(ours, theirs):
    assert ours.keys() == theirs.keys()
    return [n for n in ours if ours[n].dtype != theirs[n].dtype or not torch.equal(ours[n], theirs[n])]


def same(ours, theirs):
    assert not differences(ours, theirs)


@pytest.fixture
def few(monkeypatch):
    """Patches two models only: tests have loaded all there are."""
    whole = _patch._patcher
    names = ("qwen3.modeling_qwen3", "olmo2.modeling_olmo2")
    monkeypatch.setattr(_patch, "_patcher", lambda name: whole(name) if name.endswith(names) else None)


def attentions(device, dtype):
    """Attentions of every class, of layers and widths that may differ, and what makes their arguments."""
    for cls in sequences.classes():
        for layer in LAYERS:
            for width in WIDTHS[device]:
                attention = sequences.build(cls, layer, width).to(device, dtype)
                yield attention, sequences.inputs(attention, device, dtype)


def outcome(attention, arguments):
    with torch.no_grad():
        return {"out": attention(**arguments())[0]}


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
                # Both are sums of the same rounded terms: neither may be much further from the exact one.
                far = [(results[n].double() - exact[n]).norm().item() for results in (mine, plain)]
                assert far[0] <= 2 * far[1] + torch.finfo(dtype).eps * exact[n].norm().item(), (attention, n, far)


def _double(x):
    if isinstance(x, tuple):
        return tuple(map(_double, x))
    return x.double() if torch.is_tensor(x) and x.is_floating_point() else x


def test_on_the_processor_every_call_is_the_models_own(monkeypatch):
    def refused(*_, **__):
        raise AssertionError("a kernel was called")

    monkeypatch.setattr(_functions, "qk_norm_rope", refused, raising=False)
    cases = [(attention, arguments, step(attention, arguments)) for attention, arguments in attentions("cpu", torch.float32)]
    with ropejit.patched("transformers", norm_gradients="own"):
        for attention, arguments, plain in cases:
            assert hasattr(innermost(type(attention).forward), "__ropejit__")
            names = [f"{n}.weight" for n in sequences.norms(attention)]
            assert not set(differences(step(attention, arguments), plain)) - set(names), attention


def hooked(attention):
    handle = attention.q_norm.register_forward_hook(lambda module, args, out: out * 2)
    return handle.remove


def hooked_before(attention):
    handle = attention.k_norm.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    return handle.remove


def hooked_everywhere(attention):
    handle = torch.nn.modules.module.register_module_forward_hook(lambda module, args, out: out)
    return handle.remove


def hooked_backward(attention):
    handle = attention.q_norm.register_full_backward_hook(lambda module, given, wanted: None)
    return handle.remove


def replaced_on_one(attention):
    attention.q_norm.forward = lambda x: x * 3


def replaced_on_all(attention):
    cls = type(attention.q_norm)
    before, cls.forward = cls.forward, lambda self, x: x * 3
    return lambda: setattr(cls, "forward", before)


def of_another_class(attention):
    attention.k_norm.__class__ = type("Mine", (type(attention.k_norm),), {})


def without_norm(attention):
    attention.q_norm = torch.nn.Identity()


def of_another_eps(attention):
    attention.k_norm.variance_epsilon = 1e-3


def of_another_type(attention):
    attention.q_norm.float()


def parametrized(attention):
    class Doubled(torch.nn.Module):
        def forward(self, x):
            return 2 * x

    torch.nn.utils.parametrize.register_parametrization(attention.q_norm, "weight", Doubled())


def another_rotation(attention):
    from transformers.models.qwen3 import modeling_qwen3 as module

    before = module.apply_rotary_pos_emb
    module.apply_rotary_pos_emb = lambda q, k, cos, sin: (q * 2, k)
    return lambda: setattr(module, "apply_rotary_pos_emb", before)


@pytest.mark.parametrize(
    "change",
    [
        hooked, hooked_before, hooked_everywhere, hooked_backward, replaced_on_one, replaced_on_all, of_another_class,
        without_norm, of_another_eps, of_another_type, parametrized, another_rotation,
    ],
)  # fmt: skip
def test_what_somebody_has_changed_is_the_models_own(device, kernels, change, few):
    attention, arguments = qwen3(device)
    attention.requires_grad_(False)
    with ropejit.patched("transformers"):
        attention(**arguments())
        assert len(kernels) == 1
        undo = change(attention)
        kernels.clear()
        try:
            ours = result(attention, arguments)
            assert not kernels
        finally:
            if change is another_rotation:
                undo()
    if change is another_rotation:
        undo = another_rotation(attention)
    theirs = result(attention, arguments)
    if undo:
        undo()
    assert torch.equal(ours, theirs) if torch.is_tensor(theirs) else ours == theirs


def result(attention, arguments):
    try:
        return attention(**arguments())[0]
    except Exception as error:  # noqa: BLE001 - whatever eager raises
        return type(error), str(error)


def tables_that_require_a_gradient(arguments):
    arguments["position_embeddings"] = tuple(x.clone().requires_grad_() for x in arguments["position_embeddings"])


def tables_of_another_type(arguments):
    arguments["position_embeddings"] = tuple(x.float() for x in arguments["position_embeddings"])


def parts_of_wider_tables(arguments):
    arguments["position_embeddings"] = tuple(torch.cat((x, x), -1)[..., 16:48] for x in arguments["position_embeddings"])


def too_few_tables(arguments):
    arguments["position_embeddings"] = tuple(x[:, :3] for x in arguments["position_embeddings"])


def no_tokens(arguments):
    arguments["hidden_states"] = arguments["hidden_states"][:, :0]
    arguments["position_embeddings"] = tuple(x[:, :0] for x in arguments["position_embeddings"])


@pytest.mark.parametrize(
    "change",
    [tables_that_require_a_gradient, tables_of_another_type, parts_of_wider_tables, too_few_tables, no_tokens],
)  # fmt: skip
def test_calls_that_kernels_do_not_cover_are_the_models_own(device, kernels, change, few):
    attention, arguments = qwen3(device)
    attention.requires_grad_(False)
    arguments = arguments()
    change(arguments)
    theirs = result(attention, lambda: arguments)
    with ropejit.patched("transformers"):
        ours = result(attention, lambda: arguments)
    assert not kernels
    assert torch.equal(ours, theirs) if torch.is_tensor(theirs) else ours == theirs


def test_transforms_are_the_models_own(device, kernels, few):
    attention, arguments = qwen3(device, torch.float32)
    attention.requires_grad_(False)
    x, rest = arguments()["hidden_states"], arguments()
    rest.pop("hidden_states")

    def call(x):
        return attention(x, **rest)[0]

    def transformed():
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
            forward = torch.autograd.forward_ad.unpack_dual(call(dual))
        return torch.func.vmap(call)(x[None])[0], torch.func.grad(lambda x: call(x).sum())(x), *forward

    theirs = transformed()
    with ropejit.patched("transformers"):
        ours = transformed()
    assert not kernels
    assert all(map(torch.equal, ours, theirs))


@pytest.mark.parametrize("what", ["forward", "gradient"])
def test_an_order_of_sums_that_differs_is_seen_once_and_said(monkeypatch, kernels, device, caplog, what, few):
    """As if PyTorch had changed the order in which it adds up squares, or only what it does in the backward pass."""
    whole = _functions.qk_norm_rope

    def other(q, k, *arguments, **keywords):
        if what == "gradient":
            out = whole(q, k, *arguments, **keywords)
            return tuple(x.detach() + (x - x.detach()) * (1 + 2**-7) if x.requires_grad else x for x in out)
        return tuple(x * (1 + 2**-7) for x in whole(q, k, *arguments, **keywords))

    monkeypatch.setattr(_functions, "qk_norm_rope", other)
    attention, arguments = qwen3(device)
    freeze(attention)
    plain = step(attention, arguments)
    with ropejit.patched("transformers"):
        for _ in range(2):
            same(step(attention, arguments), plain)
        with torch.no_grad():
            attention(**arguments())
    lines = [record for record in caplog.records if "another order" in record.getMessage()]
    assert len(lines) == (1 if what == "gradient" else 2)  # without a gradient it is another question
    assert "Qwen3Attention.forward" in lines[0].getMessage()
    assert len(kernels) == (1 if what == "gradient" else 0)


def test_measuring_leaves_no_trace(device, kernels, few):
    attention, arguments = qwen3(device)
    attention.requires_grad_(False)
    torch.manual_seed(11)
    state = torch.get_rng_state(), *([torch.cuda.get_rng_state()] if device == "cuda" else [])
    with ropejit.patched("transformers"), torch.inference_mode(), torch.autocast(device, enabled=False):
        attention(**arguments())
    assert len(kernels) == 1
    now = torch.get_rng_state(), *([torch.cuda.get_rng_state()] if device == "cuda" else [])
    assert all(map(torch.equal, now, state))
    assert torch.is_grad_enabled()


def test_what_is_around_a_method_stays(caplog, few):
    from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention

    class Derived(Qwen3Attention):
        """Has the method of its base."""

    before = Qwen3Attention.forward
    with caplog.at_level(logging.INFO, "ropejit"), ropejit.patched("transformers"):
        ropejit.patch("transformers")
        now = Qwen3Attention.forward
        assert inspect.signature(now) == inspect.signature(before)
        for name in ("__name__", "__qualname__", "__module__", "__doc__", "__annotations__"):
            assert getattr(now, name) == getattr(before, name)
        code, was = (innermost(f).__code__ for f in (now, before))
        for name in ("co_name", "co_filename", "co_firstlineno", "co_flags", "co_argcount", "co_varnames"):
            mine, theirs = getattr(code, name), getattr(was, name)
            assert mine[: len(theirs)] == theirs if name == "co_varnames" else mine | 16 == theirs | 16 if name == "co_flags" else mine == theirs
        assert Derived.forward is now
    assert Qwen3Attention.forward is before and innermost(before) is innermost(Derived.forward)
    assert not hasattr(innermost(before), "__ropejit__")
    lines = [r.getMessage() for r in caplog.records if "Qwen3Attention.forward" in r.getMessage()]
    assert lines == [
        "transformers.models.qwen3.modeling_qwen3.Qwen3Attention.forward: k_norm and q_norm and the rotation are one launch for"
        " the calls that kernels cover"
    ]


def innermost(function):
    """The function that decorators call."""
    while True:
        inner = [c.cell_contents for c in function.__closure__ or () if inspect.isfunction(c.cell_contents)]
        named = [f for f in inner if f.__name__ == function.__name__]
        if not named:
            return function
        function = named[0]


def test_attention_whose_norms_stay_has_one_line(caplog, few):
    import transformers.models.olmo2.modeling_olmo2 as module

    with caplog.at_level(logging.WARNING, "ropejit"), ropejit.patched("transformers"):
        ropejit.patch("transformers")
    start = f"{module.__name__}.Olmo2Attention.forward: k_norm and q_norm and the rotation stay apart: "
    assert len([r for r in caplog.records if r.getMessage().startswith(start)]) == 1


def test_errors_name_the_lines_of_the_models_file(device, kernels, few):
    attention, arguments = qwen3(device)

    def lines():
        try:
            attention(**arguments())
        except RuntimeError as error:
            frames = traceback.extract_tb(error.__traceback__)
            return [(f.lineno, f.line) for f in frames if f.filename.endswith("modeling_qwen3.py")]
        raise AssertionError("no error")

    for break_it in (lambda: attention.q_norm.register_forward_pre_hook(fail), lambda: attention.v_proj.register_forward_hook(fail),
                     lambda: attention.o_proj.register_forward_hook(fail)):  # fmt: skip
        handle = break_it()
        plain = lines()
        with ropejit.patched("transformers"):
            assert lines() == plain and plain
        handle.remove()


def fail(*_):
    raise RuntimeError("broken")


def test_a_wrong_choice_is_refused(few):
    with pytest.raises(ValueError, match="norm_gradients: 'mine' is not one of 'eager' and 'own'"):
        ropejit.patch("transformers", norm_gradients="mine")
    with pytest.raises(ValueError, match="norm_gradients: 'own' is for 'transformers'"):
        ropejit.patch("unsloth", norm_gradients="own")
    assert not _fused.own_gradients


def test_the_last_choice_holds(few):
    with ropejit.patched("transformers"):
        ropejit.patch("transformers", norm_gradients="own")
        assert _fused.own_gradients
        with ropejit.patched("transformers"):
            assert not _fused.own_gradients
        assert _fused.own_gradients
    assert not _fused.own_gradients


@pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 10), reason="transformers' own functions break the graph"
)
@pytest.mark.parametrize("training", [False, True])
def test_a_compiled_attention(device, kernels, training, few):
    attention, arguments = qwen3(device)
    freeze(attention)

    def compiled():
        torch.compiler.reset()
        call = torch.compile(attention, fullgraph=True, backend="aot_eager")
        if training:
            return step(call, arguments)
        with torch.no_grad():
            return {"out": call(**arguments())[0]}

    plain = compiled()
    with ropejit.patched("transformers"):
        ours = compiled()
    assert kernels
    same({n.removeprefix("_orig_mod."): x for n, x in ours.items()}, {n.removeprefix("_orig_mod."): x for n, x in plain.items()})
