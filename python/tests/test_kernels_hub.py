"""Hugging Face `kernels`: its own code loads the folder of this package, and its `kernelize` puts the layer where functions were.

What transformers has to take part in runs where its version and that of `kernels` fit each other: `make test-python` runs this
file a second time with two that do. There is no GPU in `KernelConfig`'s list of devices that a processor could stand for, so
there a processor says that it is one.
"""

import logging
import sys
from pathlib import Path

import pytest
import torch
from conftest import MISSING, library
from eager import DTYPES, equal, qk, tables

kernels = library("kernels", optional=True)

from ropejit.integrations.kernels import LOCAL, RotaryLayer  # noqa: E402

FOLDER, _, NAME = LOCAL.rpartition(":")
REPOSITORIES = [kernels.LocalLayerRepository(Path(FOLDER), layer_name=NAME), RotaryLayer()]
MODES = [kernels.Mode.INFERENCE, kernels.Mode.TRAINING, kernels.Mode.INFERENCE | kernels.Mode.TORCH_COMPILE]


def rotate_half(x):
    x1 = x[..., : x.shape[-1] // 2]
    x2 = x[..., x.shape[-1] // 2 :]
    return torch.cat((-x2, x1), dim=-1)


def partial(q, k, cos, sin, unsqueeze_dim=1):
    cos = cos.unsqueeze(unsqueeze_dim)
    sin = sin.unsqueeze(unsqueeze_dim)
    rotary_dim = cos.shape[-1]
    q_rot, q_pass = q[..., :rotary_dim], q[..., rotary_dim:]
    k_rot, k_pass = k[..., :rotary_dim], k[..., rotary_dim:]
    q_embed = (q_rot * cos) + (rotate_half(q_rot) * sin)
    k_embed = (k_rot * cos) + (rotate_half(k_rot) * sin)
    q_embed = torch.cat([q_embed, q_pass], dim=-1)
    k_embed = torch.cat([k_embed, k_pass], dim=-1)
    return q_embed, k_embed


def angles(positions, inv_freq):
    """The tables that `partial` gets: a model's text has such a function, and is told by it."""
    freqs = positions[:, None] * inv_freq
    emb = torch.cat((freqs, freqs), dim=-1)
    cos = emb.cos()
    sin = emb.sin()
    return cos, sin


def unknown(q, k, cos, sin, unsqueeze_dim=1):
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    return q * cos - rotate_half(q) * sin, k * cos - rotate_half(k) * sin


def layer(function, repository, mode=kernels.Mode.TRAINING):
    """The function as a layer of `kernels`, with ours in its place."""
    made = kernels.use_kernel_forward_from_hub("rotary_pos_emb")(function)

    @kernels.use_kernelized_func(made)
    class Attention(torch.nn.Module):
        def forward(self, *arguments):
            return made(*arguments)

    attention = Attention()
    with kernels.use_kernel_mapping({"rotary_pos_emb": {"cpu": repository}}, inherit_mapping=False):
        kernels.kernelize(attention, mode=mode, device="cpu", use_fallback=False)
    assert made.forward.__func__.__name__ == "forward" and made.forward.__func__.__qualname__ == "RotaryPosEmb.forward"
    return attention


@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("repository", REPOSITORIES, ids=["folder", "object"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_part_of_a_head_turns_and_gradients_are_right(served, repository, mode, dtype):
    ours = layer(partial, repository, mode)
    q, k = qk("cpu", dtype, 2, 9, 4, 2, 64, grad=True)
    cos, sin = tables("cpu", dtype, 2, 9, 32)
    theirs, out = partial(q, k, cos, sin), ours(q, k, cos, sin)
    assert len(served) == 1
    equal(out, theirs)
    given = [torch.randn_like(x) for x in theirs]
    equal(torch.autograd.grad(out, (q, k), given), torch.autograd.grad(theirs, (q, k), given))


@pytest.mark.parametrize("repository", REPOSITORIES, ids=["folder", "object"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_q_alone(served, repository, dtype):
    ours = layer(partial, repository)
    q, _ = qk("cpu", dtype, 2, 9, 4, 2, 64, grad=True)
    cos, sin = tables("cpu", dtype, 2, 9, 32)
    theirs, (out, none) = partial(q, q, cos, sin)[0], ours(q, None, cos, sin)
    assert none is None and torch.equal(out, theirs) and len(served) == (dtype == torch.float32)
    given = torch.randn_like(q)
    assert torch.equal(*(torch.autograd.grad(x, q, given)[0] for x in (out, theirs)))


def test_unsqueeze_dim_is_passed_on(served):
    ours = layer(partial, RotaryLayer())
    q, k = (x.transpose(1, 2) for x in qk("cpu", torch.bfloat16, 2, 9, 4, 2, 64))
    cos, sin = tables("cpu", torch.bfloat16, 2, 9, 32)
    equal(ours(q, k, cos, sin, 2), partial(q, k, cos, sin, 2))
    assert len(served) == 1


def test_a_function_of_another_text_computes_itself(served, caplog):
    with caplog.at_level(logging.WARNING, logger="ropejit"):
        ours = layer(unknown, RotaryLayer())
        q, k = qk("cpu", torch.float32, 2, 9, 4, 2, 64)
        cos, sin = tables("cpu", torch.float32, 2, 9, 64)
        for _ in range(2):
            equal(ours(q, k, cos, sin), unknown(q, k, cos, sin))
    assert not served and sum("unknown is not covered and stays" in r.getMessage() for r in caplog.records) == 1


def test_a_layer_that_is_no_function_computes_itself(served):
    @kernels.use_kernel_forward_from_hub("rotary_pos_emb")
    class Own(torch.nn.Module):
        def forward(self, q, k, cos, sin, unsqueeze_dim=1):
            return unknown(q, k, cos, sin, unsqueeze_dim)

    own = Own()
    with kernels.use_kernel_mapping({"rotary_pos_emb": {"cpu": RotaryLayer()}}, inherit_mapping=False):
        kernels.kernelize(own, mode=kernels.Mode.INFERENCE, device="cpu", use_fallback=False)
    q, k = qk("cpu", torch.float32, 2, 9, 4, 2, 64)
    cos, sin = tables("cpu", torch.float32, 2, 9, 64)
    equal(own(q, k, cos, sin), unknown(q, k, cos, sin))
    assert not served


@pytest.mark.parametrize("first", ["eager", "compiled"])
def test_under_the_compiler(first):
    ours = layer(partial, RotaryLayer(), MODES[2])
    q, k = qk("cpu", torch.bfloat16, 2, 9, 4, 2, 64)
    cos, sin = tables("cpu", torch.bfloat16, 2, 9, 32)
    theirs = partial(q, k, cos, sin)
    if first == "eager":
        ours(q, k, cos, sin)
    graphs = []

    def backend(graph, _):
        graphs.append(str(graph.graph))
        return graph

    equal(torch.compile(ours, fullgraph=True, backend=backend)(q, k, cos, sin), theirs)
    assert "ropejit.rotate" in graphs[0]
    torch._dynamo.reset()


def test_by_itself_it_is_llamas():
    from ropejit.integrations.hub_layer.layers import RotaryPosEmb

    q, k = qk("cpu", torch.bfloat16, 2, 9, 4, 2, 64)
    cos, sin = tables("cpu", torch.bfloat16, 2, 9, 32)
    equal(RotaryPosEmb()(q, k, cos, sin), partial(q, k, cos, sin))
    assert torch.equal(RotaryPosEmb()(q, None, cos, sin)[0], partial(q, k, cos, sin)[0])


@pytest.fixture
def fitting(monkeypatch):
    """transformers, of a version that takes this `kernels`; the processor says that it is a GPU."""
    transformers = library("transformers")
    from transformers.integrations import hub_kernels
    from transformers.utils import kernel_config
    from transformers.utils.import_utils import is_kernels_available

    if not is_kernels_available():
        why = f"transformers {transformers.__version__} and kernels {kernels.__version__} that fit each other"
        MISSING.add(why)
        pytest.skip(why)
    for module in (hub_kernels, kernel_config):
        monkeypatch.setattr(module, "get_device_type", lambda _: "cuda")
    monkeypatch.setattr(kernels.layer.repos, "_find_capability", lambda: 90)
    yield transformers
    # One function serves all models of a family: each gets its own back.
    for name, module in list(sys.modules.items()):
        if name.startswith("transformers.models."):
            getattr(vars(module).get("apply_rotary_pos_emb"), "__dict__", {}).pop("forward", None)


SMALL = dict(
    vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    pad_token_id=0,
)  # fmt: skip


def logits_and_gradients(model, ids):
    model.zero_grad()
    out = model(input_ids=ids, labels=ids)
    out.loss.backward()
    return out.logits.detach(), [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("family", ["Llama", "Mistral", "Qwen2", "Gemma", "Phi", "Olmo", "GptOss"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_transformers_takes_the_folder(fitting, served, family, dtype):
    model = getattr(fitting, f"{family}ForCausalLM")(getattr(fitting, f"{family}Config")(**SMALL)).to(dtype).train()
    ids = torch.randint(0, 64, (2, 9))
    expected, gradients = logits_and_gradients(model, ids)
    assert not served
    model.set_use_kernels(True, fitting.KernelConfig({"rotary_pos_emb": LOCAL}, use_local_kernel=True))
    logits, own = logits_and_gradients(model, ids)
    # Two layers. Olmo's tables are in float32: in bfloat16 its gradients are rounded as kernels do not.
    assert len(served) == (0 if family == "Olmo" and dtype == torch.bfloat16 else 2)
    assert torch.equal(logits, expected)
    assert all(map(torch.equal, own, gradients))
