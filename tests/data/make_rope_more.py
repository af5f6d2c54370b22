"""Makes rope_more.json: what transformers computes for further published configurations.

    python make_rope_more.py > rope_more.json

Each configuration holds the keys of the published config.json that matter for rotary position embedding. Expected values
come from the model's own configuration class and rotary embedding module, on the CPU; the pair style from rotating unit
vectors with the module's own function. Needs torch and transformers (made with 5.23.0).
"""

import importlib
import inspect
import json
import sys

import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

transformers.logging.set_verbosity_error()

LONG = [1.1, 1.2, 1.5, 2.0, 3.0, 5.0, 8.0, 12.0, 16.0, 24.0, 32.0, 40.0, 48.0, 52.0, 56.0, 60.0]


def factors(pairs, scale):
    """Growing divisors in the manner of the published lists, which are long."""
    return [round(1.0 + (LONG[i * len(LONG) // pairs] - 1.0) * scale + 0.01 * i, 4) for i in range(pairs)]


CASES = {
    "qwen2-vl-7b": dict(model_type="qwen2_vl", hidden_size=3584, num_attention_heads=28, num_key_value_heads=4,
        max_position_embeddings=32768, rope_theta=1000000.0, torch_dtype="bfloat16",
        rope_scaling=dict(type="mrope", mrope_section=[16, 24, 24])),
    "qwen2.5-vl-7b": dict(model_type="qwen2_5_vl", hidden_size=3584, num_attention_heads=28, num_key_value_heads=4,
        max_position_embeddings=128000, rope_theta=1000000.0, torch_dtype="bfloat16",
        rope_scaling=dict(type="mrope", mrope_section=[16, 24, 24])),
    "qwen3-vl-8b": dict(model_type="qwen3_vl", text_config=dict(model_type="qwen3_vl_text", dtype="bfloat16", head_dim=128,
        hidden_size=4096, num_attention_heads=32, num_key_value_heads=8, max_position_embeddings=262144, rope_theta=5000000,
        rope_scaling=dict(mrope_interleaved=True, mrope_section=[24, 20, 20], rope_type="default"))),
    "deepseek-v2-lite": dict(model_type="deepseek_v2", hidden_size=2048, num_attention_heads=16, num_key_value_heads=16,
        qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128, max_position_embeddings=163840, rope_theta=10000,
        rope_scaling=dict(beta_fast=32, beta_slow=1, factor=40, mscale=0.707, mscale_all_dim=0.707,
                          original_max_position_embeddings=4096, type="yarn"), torch_dtype="bfloat16"),
    "phi-3.5-mini-like": dict(model_type="phi3", hidden_size=3072, num_attention_heads=32, num_key_value_heads=32,
        max_position_embeddings=131072, original_max_position_embeddings=4096, rope_theta=10000.0,
        rope_scaling=dict(type="longrope", short_factor=factors(48, 0.02), long_factor=factors(48, 1.0)),
        torch_dtype="bfloat16"),
    "phi-4-mini-like": dict(model_type="phi3", hidden_size=3072, num_attention_heads=24, num_key_value_heads=8,
        max_position_embeddings=131072, original_max_position_embeddings=4096, rope_theta=10000.0,
        partial_rotary_factor=0.75, rope_scaling=dict(type="longrope", short_factor=[1.0] * 48,
        long_factor=factors(48, 0.8)), torch_dtype="bfloat16"),
    "gemma-3-4b": dict(model_type="gemma3", text_config=dict(hidden_size=2560, model_type="gemma3_text",
        num_hidden_layers=34, rope_scaling=dict(factor=8.0, rope_type="linear"), sliding_window=1024),
        torch_dtype="bfloat16"),
    "gemma-3-1b": dict(model_type="gemma3_text", head_dim=256, hidden_size=1152, num_attention_heads=4,
        num_key_value_heads=1, num_hidden_layers=26, max_position_embeddings=32768, rope_local_base_freq=10000,
        rope_theta=1000000, rope_scaling=None, torch_dtype="bfloat16"),
    "gemma-4-like": dict(model_type="gemma4_text", hidden_size=2560, num_attention_heads=8, num_key_value_heads=2,
        num_hidden_layers=6, global_head_dim=512, head_dim=256, max_position_embeddings=131072, dtype="bfloat16",
        rope_parameters=dict(full_attention=dict(partial_rotary_factor=0.25, rope_theta=1000000.0,
        rope_type="proportional"), sliding_attention=dict(rope_theta=10000.0, rope_type="default"))),
    "gpt-oss-20b": dict(model_type="gpt_oss", head_dim=64, hidden_size=2880, num_attention_heads=64,
        num_key_value_heads=8, max_position_embeddings=131072, rope_theta=150000, rope_scaling=dict(beta_fast=32.0,
        beta_slow=1.0, factor=32.0, original_max_position_embeddings=4096, rope_type="yarn", truncate=False)),
    "stablelm-2-12b": dict(model_type="stablelm", hidden_size=5120, num_attention_heads=32, num_key_value_heads=8,
        max_position_embeddings=4096, partial_rotary_factor=0.25, rope_theta=10000, torch_dtype="bfloat16"),
    "falcon-7b": dict(model_type="falcon", alibi=False, hidden_size=4544, multi_query=True, num_attention_heads=71,
        new_decoder_architecture=False, torch_dtype="bfloat16"),
    "falcon-40b": dict(model_type="falcon", alibi=False, hidden_size=8192, num_attention_heads=128, num_kv_heads=8,
        new_decoder_architecture=True, torch_dtype="bfloat16"),
    "command-r": dict(model_type="cohere", hidden_size=8192, num_attention_heads=64, num_key_value_heads=64,
        max_position_embeddings=8192, model_max_length=131072, rope_theta=8000000.0, torch_dtype="float16"),
    "command-r7b": dict(model_type="cohere2", hidden_size=4096, num_attention_heads=32, num_key_value_heads=8,
        head_dim=128, max_position_embeddings=8192, rope_theta=50000, rope_scaling=None, torch_dtype="bfloat16"),
    "glm-4-9b": dict(model_type="glm", head_dim=128, hidden_size=4096, num_attention_heads=32, num_key_value_heads=2,
        max_position_embeddings=131072, partial_rotary_factor=0.5, rope_theta=10000.0, torch_dtype="bfloat16"),
    "glm-4.5-air": dict(model_type="glm4_moe", head_dim=128, hidden_size=4096, num_attention_heads=96,
        num_key_value_heads=8, max_position_embeddings=131072, partial_rotary_factor=0.5, rope_theta=1000000,
        torch_dtype="bfloat16"),
    "llama-4-scout": dict(model_type="llama4", text_config=dict(model_type="llama4_text", head_dim=128, hidden_size=5120,
        num_attention_heads=40, num_key_value_heads=8, max_position_embeddings=10485760, rope_theta=500000.0,
        rope_scaling=dict(factor=16.0, high_freq_factor=1.0, low_freq_factor=1.0, rope_type="llama3",
        original_max_position_embeddings=8192), torch_dtype="bfloat16")),
    "olmo-2-7b": dict(model_type="olmo2", hidden_size=4096, num_attention_heads=32, num_key_value_heads=32,
        max_position_embeddings=4096, rope_theta=500000, rope_scaling=None, torch_dtype="float32"),
    "olmo-3-7b": dict(model_type="olmo3", hidden_size=4096, num_attention_heads=32, num_key_value_heads=32,
        num_hidden_layers=32, max_position_embeddings=65536, rope_theta=500000, rope_scaling=dict(rope_type="yarn",
        factor=8.0, attention_factor=1.2079441541679836, beta_fast=32.0, beta_slow=1.0,
        original_max_position_embeddings=8192), torch_dtype="bfloat16"),
    "ministral-3-8b": dict(model_type="ministral3", head_dim=128, hidden_size=4096, num_attention_heads=32,
        num_key_value_heads=8, max_position_embeddings=262144, dtype="bfloat16", rope_parameters=dict(beta_fast=32.0,
        beta_slow=1.0, factor=16.0, llama_4_scaling_beta=0.1, mscale=1.0, mscale_all_dim=1.0,
        original_max_position_embeddings=16384, rope_theta=1000000.0, rope_type="yarn", type="yarn")),
    "pythia-1.4b": dict(model_type="gpt_neox", hidden_size=2048, num_attention_heads=16, rotary_emb_base=10000,
        rotary_pct=0.25, max_position_embeddings=2048, torch_dtype="float16"),
    "starcoder2-7b": dict(model_type="starcoder2", hidden_size=4608, num_attention_heads=36, num_key_value_heads=4,
        max_position_embeddings=16384, rope_theta=1000000, torch_dtype="float32"),
    "granite-3.1-8b": dict(model_type="granite", hidden_size=4096, num_attention_heads=32, num_key_value_heads=8,
        max_position_embeddings=131072, rope_theta=10000000.0, rope_scaling=None, torch_dtype="bfloat16"),
    "smollm3-3b": dict(model_type="smollm3", hidden_size=2048, num_attention_heads=16, num_key_value_heads=4,
        max_position_embeddings=65536, rope_theta=5000000.0, rope_scaling=None, torch_dtype="bfloat16"),
    "llama-3.2-1b": dict(model_type="llama", head_dim=64, hidden_size=2048, num_attention_heads=32, num_key_value_heads=8,
        max_position_embeddings=131072, rope_theta=500000.0, rope_scaling=dict(factor=32.0, high_freq_factor=4.0,
        low_freq_factor=1.0, original_max_position_embeddings=8192, rope_type="llama3"), torch_dtype="bfloat16"),
    "phi-2": dict(model_type="phi", hidden_size=2560, num_attention_heads=32, num_key_value_heads=32,
        max_position_embeddings=2048, partial_rotary_factor=0.4, rope_theta=10000.0, torch_dtype="float16"),
    "ernie-4.5-0.3b": dict(model_type="ernie4_5", head_dim=128, hidden_size=1024, num_attention_heads=16,
        num_key_value_heads=2, max_position_embeddings=131072, rope_theta=500000.0, torch_dtype="bfloat16"),
    "modernbert-base": dict(model_type="modernbert", hidden_size=768, num_attention_heads=12, num_hidden_layers=22,
        max_position_embeddings=8192, global_rope_theta=160000.0, local_rope_theta=10000.0, torch_dtype="float32"),
    "qwen3-next-80b": dict(model_type="qwen3_next", head_dim=256, hidden_size=2048, num_attention_heads=16,
        num_key_value_heads=2, max_position_embeddings=262144, partial_rotary_factor=0.25, rope_theta=10000000,
        torch_dtype="bfloat16"),
    "minimax-m2": dict(model_type="minimax_m2", head_dim=128, hidden_size=3072, num_attention_heads=48,
        num_key_value_heads=8, max_position_embeddings=196608, rotary_dim=64, rope_theta=5000000),
    "nemotron-4-15b": dict(model_type="nemotron", hidden_size=6144, num_attention_heads=48, num_key_value_heads=8,
        max_position_embeddings=4096, partial_rotary_factor=0.5, rope_theta=10000.0, torch_dtype="bfloat16"),
    "vicuna-16k-linear": dict(model_type="llama", hidden_size=4096, num_attention_heads=32, num_key_value_heads=32,
        max_position_embeddings=4096, rope_scaling=dict(factor=4.0, type="linear"), torch_dtype="float16"),
    "llava-1.5-7b": dict(model_type="llava", text_config=dict(model_type="llama", max_position_embeddings=4096,
        torch_dtype="float16")),
}


def style_of(module, model_type, interleave):
    """Which element turns together with element 0."""
    name = "apply_rotary_pos_emb_interleave" if interleave else "apply_rotary_pos_emb"
    rotate = getattr(module, name, None) or getattr(module, "apply_rotary_emb")
    for width in (16, 8, None):
        pairs = []
        try:
            for j in range(16):
                x = torch.zeros(1, 1, 1, 16)
                x[..., j] = 1
                if width is None:
                    args = (x, x, torch.polar(torch.ones(1, 1, 8), torch.full((1, 1, 8), 0.6435)))
                else:
                    args = (x, x, torch.full((1, 1, width), 0.8), torch.full((1, 1, width), 0.6))
                if "k" not in inspect.signature(rotate).parameters and "xk" not in inspect.signature(rotate).parameters:
                    args = (args[0], *args[2:])
                out = rotate(*args)
                out = out[0] if isinstance(out, tuple) else out
                pairs.append(set(out.flatten().nonzero().flatten().tolist()))
        except Exception:
            continue
        partner = [j for j in range(1, 16) if pairs[j] == pairs[0]]
        return {1: "interleaved", 8: "half_split"}[partner[0]]
    raise RuntimeError(model_type)


def case(name, published):
    config = CONFIG_MAPPING[published["model_type"]](**{k: v for k, v in json.loads(json.dumps(published)).items()})
    config = config.get_text_config()
    module = importlib.import_module(type(config).__module__.replace("configuration_", "modeling_"))
    kinds = [k for n, k in inspect.getmembers(module, inspect.isclass)
             if n.endswith("RotaryEmbedding") and "Vision" not in n and k.__module__ == module.__name__]
    rotary = kinds[0](config)
    buffers = {k: v for k, v in rotary.named_buffers() if "original" not in k}
    expected = {}
    for key, value in buffers.items():
        layer = key.removesuffix("inv_freq")
        expected[key] = dict(inv_freq=value.tolist(), attention_factor=float(getattr(rotary, layer + "attention_scaling")))
    long = None
    flat = config.rope_parameters if "rope_type" in config.rope_parameters else {}
    if flat.get("rope_type") in ("dynamic", "longrope"):
        length = 4 * flat.get("original_max_position_embeddings", config.max_position_embeddings)
        rotary(torch.zeros(1, 1, 1), torch.tensor([[length - 1]]))
        long = dict(seq_len=length, inv_freq=rotary.inv_freq.tolist(), attention_factor=float(rotary.attention_scaling))
    config.allow_global_per_layer_attribute_access = True
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    widths = {k: 2 * len(v["inv_freq"]) for k, v in expected.items()}
    main = next((w for w in widths.values() if w <= head_dim), None)
    return dict(name=name, config=published,
                source=f"transformers {transformers.__version__} {module.__name__}.{kinds[0].__name__}",
                expected=expected, expected_long=long, rotary_dim=main, head_dim=head_dim,
                style=style_of(module, name, getattr(config, "rope_interleave", False)))


def main():
    print("[")
    cases = list(CASES.items())
    for i, (name, published) in enumerate(cases):
        print(json.dumps(case(name, published)) + ("," if i + 1 < len(cases) else ""))
    print("]")


if __name__ == "__main__":
    sys.exit(main())
