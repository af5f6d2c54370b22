"""Calls of an attention whose norms and rotation are one launch: what somebody has changed, what kernels do not cover, and what is
around the method.
"""

import inspect
import logging
import traceback

import pytest
import ropejit
import sequences
import torch
from ropejit import _norm_calls
from sequences import freeze, innermost, same, step


@pytest.fixture
def kernels(device, monkeypatch):
    return sequences.watch(monkeypatch, device)


@pytest.fixture(autouse=True)
def few(monkeypatch):
    sequences.few(monkeypatch, "qwen3.modeling_qwen3", "olmo2.modeling_olmo2")


def qwen3(device="cpu", dtype=torch.bfloat16):
    """An attention of Qwen 3 and what makes its arguments."""
    from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention

    attention = sequences.build(Qwen3Attention).to(device, dtype)
    return attention, sequences.inputs(attention, device, dtype)


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
def test_what_somebody_has_changed_is_the_models_own(device, kernels, change):
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
def test_calls_that_kernels_do_not_cover_are_the_models_own(device, kernels, change):
    attention, arguments = qwen3(device)
    attention.requires_grad_(False)
    arguments = arguments()
    change(arguments)
    theirs = result(attention, lambda: arguments)
    with ropejit.patched("transformers"):
        ours = result(attention, lambda: arguments)
    assert not kernels
    assert torch.equal(ours, theirs) if torch.is_tensor(theirs) else ours == theirs


def test_transforms_are_the_models_own(device, kernels):
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
def test_an_order_of_sums_that_differs_is_seen_once_and_said(monkeypatch, kernels, device, caplog, what):
    """As if PyTorch had changed the order in which it adds up squares, or only what it does in the backward pass."""
    whole = ropejit.qk_norm_rope

    def other(q, k, *arguments, **keywords):
        if what == "gradient":
            out = whole(q, k, *arguments, **keywords)
            return tuple(x.detach() + (x - x.detach()) * (1 + 2**-7) if x.requires_grad else x for x in out)
        return tuple(x * (1 + 2**-7) for x in whole(q, k, *arguments, **keywords))

    monkeypatch.setattr(ropejit, "qk_norm_rope", other)
    attention, arguments = qwen3(device)
    freeze(attention)
    plain = step(attention, arguments)
    with ropejit.patched("transformers"):
        for _ in range(2):
            same(step(attention, arguments), plain)
        with torch.no_grad():
            attention(**arguments())
    lines = [record for record in caplog.records if "other bits" in record.getMessage()]
    assert len(lines) == (1 if what == "gradient" else 2)  # without a gradient it is another question
    assert "Qwen3Attention.forward" in lines[0].getMessage()
    assert len(kernels) == (1 if what == "gradient" else 0)


def test_a_kernel_that_cannot_be_had_leaves_the_norms_and_is_said(monkeypatch, kernels, device, caplog):
    def refused(*_, **__):
        raise ropejit.NotCachedError("no kernel is cached")

    monkeypatch.setattr(ropejit, "qk_norm_rope", refused)
    attention, arguments = qwen3(device)
    attention.requires_grad_(False)
    plain = result(attention, arguments)
    with ropejit.patched("transformers"):
        for _ in range(2):
            assert torch.equal(result(attention, arguments), plain)
    assert len([r for r in caplog.records if "no kernel is cached" in r.getMessage()]) == 1


def test_measuring_leaves_no_trace(device, kernels):
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


def test_what_is_around_a_method_stays(caplog):
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
        for name in ("co_name", "co_filename", "co_firstlineno", "co_argcount", "co_kwonlyargcount", "co_posonlyargcount"):
            assert getattr(code, name) == getattr(was, name)
        assert code.co_varnames[: len(was.co_varnames)] == was.co_varnames
        assert Derived.forward is now
    assert Qwen3Attention.forward is before and innermost(before) is innermost(Derived.forward)
    assert not hasattr(innermost(before), "__ropejit__")
    lines = [r.getMessage() for r in caplog.records if "Qwen3Attention.forward" in r.getMessage()]
    assert lines == [
        "transformers.models.qwen3.modeling_qwen3.Qwen3Attention.forward: k_norm and q_norm and the rotation are one launch for"
        " the calls that kernels cover"
    ]


def test_attention_whose_norms_stay_has_one_line(caplog):
    import transformers.models.olmo2.modeling_olmo2 as module

    with caplog.at_level(logging.WARNING, "ropejit"), ropejit.patched("transformers"):
        ropejit.patch("transformers")
    start = f"{module.__name__}.Olmo2Attention.forward: k_norm and q_norm and the rotation stay apart: "
    assert len([r for r in caplog.records if r.getMessage().startswith(start)]) == 1


def test_errors_name_the_lines_of_the_models_file(device, kernels):
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


def test_a_wrong_choice_is_refused():
    with pytest.raises(ValueError, match="norm_gradients: 'mine' is not one of 'eager' and 'own'"):
        ropejit.patch("transformers", norm_gradients="mine")
    with pytest.raises(ValueError, match="norm_gradients: 'own' is for 'transformers'"):
        ropejit.patch("unsloth", norm_gradients="own")
    assert not _norm_calls.own_gradients


def test_the_last_choice_holds():
    with ropejit.patched("transformers"):
        ropejit.patch("transformers", norm_gradients="own")
        assert _norm_calls.own_gradients
        with ropejit.patched("transformers"):
            assert not _norm_calls.own_gradients
        assert _norm_calls.own_gradients
    assert not _norm_calls.own_gradients


@pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 10), reason="transformers' own functions break the graph"
)
@pytest.mark.parametrize("training", [False, True])
def test_a_compiled_attention(device, kernels, training):
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
