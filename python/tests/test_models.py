"""Tiny random models: equal logits and equal gradients, patched and not."""

import sys

import pytest
import ropejit
import sequences
import torch
from transformers import (
    CohereConfig, CohereForCausalLM, GemmaConfig, GemmaForCausalLM, GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig,
    LlamaForCausalLM, MistralConfig, MistralForCausalLM, OlmoConfig, OlmoForCausalLM, Phi3Config, Phi3ForCausalLM, PhiConfig,
    PhiForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM,
)  # fmt: skip

SMALL = dict(
    vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=128, pad_token_id=0,
)  # fmt: skip
NEOX = {k: v for k, v in SMALL.items() if k != "num_key_value_heads"}
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SMALL)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SMALL, head_dim=32)),
    "gemma": lambda: GemmaForCausalLM(GemmaConfig(**SMALL, head_dim=32)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SMALL)),
    "phi": lambda: PhiForCausalLM(PhiConfig(**SMALL)),
    "phi3": lambda: Phi3ForCausalLM(Phi3Config(**SMALL)),
    "gpt_neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**NEOX)),
    "cohere": lambda: CohereForCausalLM(CohereConfig(**SMALL)),
    "olmo": lambda: OlmoForCausalLM(OlmoConfig(**SMALL)),
}


def step(model, ids):
    """Logits and all gradients of one training step."""
    model.zero_grad()
    out = model(input_ids=ids, labels=ids)
    out.loss.backward()
    return out.logits.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def rotations():
    stats = ropejit.stats()
    return stats.memory_hits + stats.disk_hits + stats.embedded_hits + stats.compiles


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.filterwarnings("ignore:.*deterministic")
@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_patched_models_compute_the_same(device, name, dtype):
    model = MODELS[name]().to(device, dtype)
    if device == "cuda":
        model.set_attn_implementation("eager")  # the backward pass of the others adds in any order
    ids = torch.randint(0, 64, (2, 9), device=device)
    logits, grads = step(model, ids)
    again, grads_again = step(model, ids)
    assert torch.equal(again, logits)
    before = rotations()
    with ropejit.patched("transformers"):
        ours, our_grads = step(model, ids)
    # OLMo's tables are in f32, and its own function then computes gradients that no contract equals.
    if not (name == "olmo" and dtype != torch.float32):
        assert rotations() > before, "the kernels were not called"
    assert torch.equal(ours, logits)
    assert our_grads.keys() == grads.keys()
    # Gradients of q and k are equal bit for bit, but lie in memory as the attention's do, not as eager PyTorch copies them:
    # what sums over them, as the weights of Qwen 3's norms of q and k do, may sum in another order.
    summed = [n for n in grads if n.endswith(("q_norm.weight", "k_norm.weight"))]
    # And what PyTorch itself does not compute twice alike (atomics, on a GPU) cannot be compared by bits.
    summed += [n for n in grads if n not in summed and not torch.equal(grads[n], grads_again[n])]
    assert device != "cpu" or all(n.endswith("_norm.weight") for n in summed)
    close = dict(rtol=1e-5, atol=1e-6) if dtype == torch.float32 else dict(rtol=2e-2, atol=1e-3)
    for n in summed:
        torch.testing.assert_close(our_grads[n], grads[n], **close)
    differ = [n for n in grads if n not in summed and not torch.equal(grads[n], our_grads[n])]
    assert not differ


def tower(name):
    """A tiny vision tower and its inputs."""
    from transformers import (
        Kimi_K25VisionConfig, Kimi_K25VisionModel, MLCDVisionConfig, MLCDVisionModel, PixtralVisionConfig, PixtralVisionModel,
        Step3p7VisionConfig, Step3p7VisionModel,
    )  # fmt: skip

    small = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2)
    image = dict(image_size=32, patch_size=8, **small)
    pixels = torch.randn(2, 3, 32, 32)
    if name == "mlcd":
        return MLCDVisionModel(MLCDVisionConfig(**image)), dict(pixel_values=pixels)
    if name == "pixtral":
        return PixtralVisionModel(PixtralVisionConfig(**image)), dict(pixel_values=pixels, image_sizes=[[32, 32], [32, 32]])
    if name == "step3p7":
        return Step3p7VisionModel(Step3p7VisionConfig(**image)), dict(pixel_values=pixels)
    config = Kimi_K25VisionConfig(patch_size=8, pos_emb_height=4, pos_emb_width=4, **small)
    return Kimi_K25VisionModel(config), dict(pixel_values=torch.randn(16, 3, 8, 8), grid_thw=torch.tensor([[1, 4, 4]]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["mlcd", "pixtral", "step3p7", "kimi_k25"])
def test_patched_vision_towers_compute_the_same(device, served, name, dtype):
    model, inputs = tower(name)
    model = model.eval().to(device, dtype)
    pixels = inputs.pop("pixel_values").to(device, dtype)
    inputs = {k: v.to(device) if torch.is_tensor(v) else v for k, v in inputs.items()}
    with torch.no_grad():
        plain = model(pixels, **inputs).last_hidden_state
        with ropejit.patched("transformers"):
            ours = model(pixels, **inputs).last_hidden_state
    assert torch.equal(ours, plain)
    assert len(served) == 2  # one a layer


def test_generation(device):
    model = MODELS["llama"]().to(device).eval()
    ids = torch.randint(1, 64, (2, 5), device=device)
    plain = model.generate(ids, max_new_tokens=6, do_sample=False)
    with ropejit.patched("transformers"):
        assert torch.equal(model.generate(ids, max_new_tokens=6, do_sample=False), plain)


@pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 10), reason="transformers' own functions break the graph"
)
def test_a_compiled_patched_model(device):
    model = MODELS["llama"]().to(device).eval()
    ids = torch.randint(1, 64, (1, 5), device=device)

    with torch.no_grad():
        plain = sequences.compiled(model, ids)
        with ropejit.patched("transformers"):
            assert torch.equal(sequences.compiled(model, ids), plain)


@pytest.mark.parametrize("columns", [False, True])
def test_complex_products_with_tables_in_either_order(device, columns):
    """transformers 5.17 makes DeepSeek-V2's table by columns, and PyTorch contracts products of numbers that are no neighbours."""
    module = pytest.importorskip("transformers.models.deepseek_v2.modeling_deepseek_v2")
    q, k = (torch.randn(2, heads, 9, 32, device=device) for heads in (4, 1))
    freqs = torch.polar(torch.ones(1, 9, 16), torch.randn(1, 9, 16)).to(device)
    if columns:
        freqs = freqs.mT.contiguous().mT
    wanted = module.apply_rotary_emb(q, k, freqs)
    with ropejit.patched("transformers"):
        ours = module.apply_rotary_emb(q, k, freqs)
    assert all(map(torch.equal, ours, wanted))


def test_patch_and_unpatch():
    from transformers.models.llama import modeling_llama
    from transformers.models.mistral import modeling_mistral

    originals = [m.apply_rotary_pos_emb for m in (modeling_llama, modeling_mistral)]
    ropejit.patch("transformers")
    ropejit.patch("transformers")
    assert modeling_llama.apply_rotary_pos_emb is not originals[0]
    assert modeling_llama.apply_rotary_pos_emb.__wrapped__ is originals[0]
    ropejit.unpatch("transformers")
    assert [m.apply_rotary_pos_emb for m in (modeling_llama, modeling_mistral)] == originals
    with pytest.raises(ValueError, match="library"):
        ropejit.patch("torch")


def test_a_model_that_is_loaded_later(monkeypatch):
    name = "transformers.models.granite.modeling_granite"
    monkeypatch.delitem(sys.modules, name, raising=False)
    with ropejit.patched("transformers"):
        import importlib

        module = importlib.import_module(name)
        assert module.apply_rotary_pos_emb.__ropejit__
        assert module.__loader__ is module.__spec__.loader and not type(module.__loader__).__module__.startswith("ropejit")
    assert not hasattr(module.apply_rotary_pos_emb, "__ropejit__")


def test_unsloth_is_patched_where_it_is_loaded(monkeypatch):
    import types

    module = types.ModuleType("unsloth.kernels.rope_embedding")

    def fast_rope_embedding(Q, K, cos, sin, rope_embedding_indices=None):
        raise AssertionError("the original was called")

    module.fast_rope_embedding = fast_rope_embedding
    monkeypatch.setitem(sys.modules, module.__name__, module)
    with ropejit.patched("unsloth"):
        q, k = torch.randn(1, 2, 3, 8), torch.randn(1, 1, 3, 8)
        module.fast_rope_embedding(q, k, torch.ones(3, 8), torch.zeros(3, 8))
    assert module.fast_rope_embedding is fast_rope_embedding
