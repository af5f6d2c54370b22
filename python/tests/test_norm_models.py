"""Tiny random models that normalise q and k: equal logits and equal gradients, patched and not, with norms and rotation as one
launch (see `test_norm_patch` for what stands in for it without a GPU)."""

import pytest
import ropejit
import sequences
import torch
import transformers

SMALL = dict(
    vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    head_dim=32, max_position_embeddings=128, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
EXPERTS = dict(moe_intermediate_size=32, num_experts=4, num_experts_per_tok=2)
LAYERS = dict(layer_types=["sliding_attention", "full_attention"], sliding_window=4)
#: The model, what its configuration has besides, and how many launches a forward pass has.
MODELS = {
    "Qwen3": (SMALL, 2),
    "Qwen3Moe": (SMALL | EXPERTS, 2),
    "Gemma3": (SMALL | LAYERS, 2),
    "Exaone4": (SMALL | LAYERS | dict(sliding_window_pattern=2), 1),  # full attention is not rotated
    "Glm4Moe": (SMALL | EXPERTS | dict(use_qk_norm=True, n_routed_experts=4, n_group=1, topk_group=1), 2),
    "Lfm2": ({k: v for k, v in SMALL.items() if k != "head_dim"} | dict(layer_types=["conv", "full_attention"]), 1),
    "Qwen3Next": (SMALL | EXPERTS | dict(layer_types=["full_attention"] * 2), 2),
    "HunYuanDenseV1": (SMALL, 2),
}


@pytest.fixture
def kernels(device, monkeypatch):
    sequences.few(monkeypatch, *(f"modeling_{name}" for name in ("qwen3", "qwen3_moe", "gemma3", "exaone4", "glm4_moe", "lfm2",
                                                              "qwen3_next", "hunyuan_v1_dense")))  # fmt: skip
    return sequences.watch(monkeypatch, device)


def build(name, device, dtype, attention):
    model_class = getattr(transformers, f"{name}ForCausalLM")
    config = model_class.config_class(**MODELS[name][0])
    model = model_class(config).to(device, dtype)
    model.set_attn_implementation(attention)
    for n, p in model.named_parameters():
        if "norm" in n:
            p.data.add_(torch.rand_like(p) / 2)
            p.requires_grad_(False)
    return model


def step(model, ids):
    """Logits and all gradients of one training step."""
    model.zero_grad()
    out = model(input_ids=ids, labels=ids, use_cache=False)
    out.loss.backward()
    return {"logits": out.logits.detach(), **{n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_models_compute_the_same(device, kernels, name, dtype, attention):
    model = build(name, device, dtype, attention)
    ids = torch.randint(3, 64, (2, 9), device=device)
    with torch.no_grad():
        plain = model(ids, use_cache=False).logits
    trained, again = step(model, ids), step(model, ids)
    with ropejit.patched("transformers"):
        with torch.no_grad():
            assert torch.equal(model(ids, use_cache=False).logits, plain)
        assert len(kernels) == MODELS[name][1]
        kernels.clear()
        ours = step(model, ids)
        assert len(kernels) == MODELS[name][1]
    # What PyTorch itself does not compute twice alike (atomics, on a GPU) cannot be compared by bits.
    twice = [n for n in trained if torch.equal(trained[n], again[n])]
    assert device != "cpu" or len(twice) == len(trained)
    assert "logits" in twice and len(twice) > len(trained) // 2 or attention == "sdpa"
    sequences.same({n: ours[n] for n in twice}, {n: trained[n] for n in twice})
    assert ours.keys() == trained.keys()


def test_generation(device, kernels):
    model = build("Qwen3", device, torch.bfloat16, "sdpa").eval()
    ids = torch.randint(3, 64, (2, 5), device=device)
    plain = model.generate(ids, max_new_tokens=6, do_sample=False)
    with ropejit.patched("transformers"):
        assert torch.equal(model.generate(ids, max_new_tokens=6, do_sample=False), plain)
    assert len(kernels) >= 2


@pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 10), reason="transformers' own functions break the graph"
)
def test_a_compiled_model(device, kernels):
    model = build("Qwen3", device, torch.float32, "sdpa").eval()
    ids = torch.randint(3, 64, (1, 5), device=device)

    with torch.no_grad():
        plain = sequences.compiled(model, ids)
        with ropejit.patched("transformers"):
            assert torch.equal(sequences.compiled(model, ids), plain)
    assert len(kernels) == 2
