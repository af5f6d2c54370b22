"""Tiny random models of every family of transformers that rotates: bits with `patch` and without.

    python benches/tiny_models.py [--device cuda] [--some] [--seconds N] [FAMILY …]

For each family it builds the first class of its module that can be built small and run on the CPU, and compares all tensors of
its output, with eager attention and with sdpa, in float32 and bfloat16, and the gradients of one training step in float32, on the
device. Each is run twice without `patch` first: what differs already then is not repeatable, and says nothing. A line a family,
and sums at the end; the exit status is 1 where something differs. Minutes for all; `--some` chooses families of every form of RoPE,
for one.
"""

import argparse
import copy
import importlib
import inspect
import logging
import os
import pathlib
import re
import signal
import sys
import time
import warnings
from collections import Counter

os.environ.setdefault("ROPEJIT_TUNING", "never")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # products of matrices that are the same each time
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import ropejit
import torch
import transformers
from ropejit import _patch
from transformers import PreTrainedModel

SIZES = {
    "hidden_size": 64, "d_model": 64, "n_embd": 64, "embed_dim": 64, "intermediate_size": 96, "ffn_dim": 96, "n_inner": 96,
    "encoder_ffn_dim": 96, "decoder_ffn_dim": 96, "num_hidden_layers": 2, "num_layers": 2, "n_layer": 2, "n_layers": 2, "depth": 2,
    "encoder_layers": 2, "decoder_layers": 2, "encoder_num_hidden_layers": 2, "decoder_num_hidden_layers": 2,
    "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "num_heads": 4, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_num_attention_heads": 4, "decoder_num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 16, "rotary_dim": 16, "vocab_size": 128, "max_position_embeddings": 128, "n_positions": 128, "num_experts": 4,
    "n_routed_experts": 4, "num_local_experts": 4, "moe_num_experts": 4, "num_experts_per_tok": 2, "top_k": 2,
    "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32, "q_lora_rank": 32, "kv_lora_rank": 16,
    "qk_rope_head_dim": 16, "qk_nope_head_dim": 16, "qk_head_dim": 32, "v_head_dim": 16, "n_group": 1, "topk_group": 1,
    "first_k_dense_replace": 1, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "image_size": 32, "patch_size": 8,
    "spatial_merge_size": 2, "index_n_heads": 4, "index_head_dim": 32, "index_topk": 4, "lru_width": 64, "global_head_dim": 16,
    "hidden_size_per_layer_input": 16, "vocab_size_per_layer_input": 128, "out_hidden_size": 64,
}  # fmt: skip
#: What single families need besides, in each part of their configuration that knows the name.
FAMILIES = {
    "bamba": dict(attn_layer_indices=[1], mamba_n_heads=8, mamba_d_head=16, mamba_d_state=16),
    "chameleon": dict(vocabulary_map={"<image>": 5}),
    "deepseek_ocr2": dict(mlp_layer_types=["dense", "sparse"]),
    "deepseek_v2": dict(qk_rope_head_dim=32),  # on the processor, complex products are trusted in rows of 16 numbers
    "dots1": dict(n_routed_experts=4, n_shared_experts=1),
    "esm": dict(position_embedding_type="rotary"),
    "falcon_h1": dict(mamba_d_ssm=64, mamba_n_heads=4, mamba_d_head=16, mamba_d_state=16),
    "gemma3n": dict(num_kv_shared_layers=0),
    "glm5_next": dict(num_key_value_heads=4),
    "gradium_phonon_tts": dict(condition_dim=64),
    "granitemoehybrid": dict(
        layer_types=["linear_attention", "full_attention"], mamba_n_heads=8, mamba_d_head=16, mamba_d_state=16,
        position_embedding_type="rope",
    ),
    "jamba": dict(attn_layer_period=2, attn_layer_offset=1),
    "lfm2_moe": dict(layer_types=["full_attention", "conv"]),
    "llama4": dict(head_dim=32),  # as of deepseek_v2
    "pocket_tts": dict(condition_dim=64),
    "recurrent_gemma": dict(block_types=["recurrent", "attention"]),
    "sapiens2": dict(num_key_value_heads_per_layer=[4, 4]),
    "seamless_m4t": dict(position_embeddings_type="rotary"),
    "wav2vec2_bert": dict(position_embeddings_type="rotary"),
    "wav2vec2_conformer": dict(position_embeddings_type="rotary"),
    "zamba2": dict(
        layers_block_type=["linear_attention", "hybrid", "hybrid"], num_hidden_layers=3, hybrid_layer_ids=[1, 2], use_mem_rope=True
    ),
    "zaya": dict(num_experts_per_tok=1),
}  # fmt: skip
#: What else is tried, in this order, where a model cannot be built or run: arguments of `tiny`.
OTHERWISE = (
    {},
    dict(unset=True),
    dict(left=("head_dim",)),
    dict(left=("num_key_value_heads", "head_dim")),
    dict(left=("rotary_dim", "num_key_value_heads")),
)
#: For `--some`: every form of RoPE, and what most people run.
SOME = (
    "llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "qwen2_vl", "qwen2_5_vl", "gemma", "gemma2", "gemma3", "phi", "phi3",
    "gpt_neox", "gptj", "codegen", "cohere", "cohere2", "olmo2", "glm", "glm4", "deepseek_v2", "deepseek_v3", "mixtral",
    "granite", "stablelm", "llama4",
    "starcoder2", "nemotron", "persimmon", "smollm3", "gpt_oss", "helium", "ernie4_5", "exaone4", "modernbert", "esm", "dinov3_vit",
)  # fmt: skip
#: Of one family, and of one model.
LIMIT_S, PARAMETERS = 90, 40_000_000


def tiny(config_class, settings, left=(), unset=False):
    """A configuration of this class with few of everything. `settings`: of the family, for each part of the configuration that
    knows such a name; `left`: what stays as the class has it; `unset`: what the class leaves None gets its size as well."""
    default = config_class()
    default.allow_global_per_layer_attribute_access = True  # where layers differ, reading what they start from is an error else
    kinds = (int, type(None)) if unset else (int,)
    chosen = {k: v for k, v in SIZES.items() if k not in left and hasattr(default, k) and type(getattr(default, k)) in kinds}
    if {"kv_lora_rank", "num_key_value_heads"} <= set(chosen):  # latent attention has as many heads of k as of q
        chosen["num_key_value_heads"] = SIZES["num_attention_heads"]
    counter = next((k for k in ("num_hidden_layers", "num_layers") if k in chosen), None)
    lists = {k: v for k, v in vars(default).items() if isinstance(v, list)}
    if counter is not None:
        of_layers = {k: v for k, v in lists.items() if len(v) == getattr(default, counter)}
        kept = _kinds(of_layers)
        chosen[counter] = max(chosen[counter], len(kept))
        lists.update({k: [v[i] for i in kept] for k, v in of_layers.items()})
    for name, value in lists.items():
        if "layer" in name or "pattern" in name:
            chosen[name] = value[: chosen.get(counter, 2)]
    for name, value in vars(default).items():
        if isinstance(value, transformers.PreTrainedConfig):
            chosen[name] = tiny(type(value), settings, left, unset).to_dict()
        elif name == "rope_parameters" and isinstance(value, dict):
            chosen[name] = _sections(value, chosen, default)
    chosen.update({k: v for k, v in settings.items() if hasattr(default, k)})
    return config_class(**chosen)


def _kinds(lists):
    """Which layers to keep, of lists that say what each layer is: the first of each kind, and two at least."""
    seen, kept = set(), []
    length = min(map(len, lists.values()), default=0)
    for i in range(length):
        here = {(name, of[i]) for name, of in lists.items() if isinstance(of[i], str)}
        if here - seen:
            seen |= here
            kept.append(i)
    return sorted([*kept, *(i for i in range(length) if i not in kept)][: max(2, len(kept))])


def _sections(parameters, chosen, default):
    """The same with sections of three axes that fit the head, where the family has any."""
    parameters = copy.deepcopy(parameters)
    for each in [parameters, *(v for v in parameters.values() if isinstance(v, dict))]:
        if each.get("mrope_section") or "rope_theta" in each and "mrope_section" in (default.ignore_keys_at_rope_validation or ()):
            share = each.get("partial_rotary_factor") or getattr(default, "partial_rotary_factor", None) or 1.0
            n, angles = len(each.get("mrope_section", "thw")), int(chosen.get("head_dim", 16) * share) // 2
            each["mrope_section"] = [angles - (n - 1) * (angles // n)] + [angles // n] * (n - 1)
    return parameters


def inputs(dtype):
    ids = torch.randint(3, 100, (2, 9), generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)

    def random(*shape):
        return torch.randn(*shape, generator=generator).to(dtype)

    pixels, frames, grid = random(1, 3, 32, 32), random(1, 24, 64), torch.tensor([[1, 4, 4]])
    yield dict(input_ids=ids)
    yield dict(input_ids=ids, decoder_input_ids=ids)
    yield dict(pixel_values=pixels)
    yield dict(inputs_embeds=frames)
    yield dict(input_features=frames)
    yield dict(input_values=frames)
    yield dict(hidden_states=random(16, 64), grid_thw=grid)
    yield dict(pixel_values_videos=random(1, 2, 3, 32, 32))
    yield dict(pixel_values=random(1, 2, 3, 32, 32))
    yield dict(input_ids=ids[:1], pixel_values=random(1, 1, 3, 32, 32))
    for bins in (80, 128, 160):
        yield dict(input_features=random(1, 48, bins))
    yield dict(input_values=random(1, 4000))
    yield dict(input_values=random(1, 1, 4000))
    yield dict(input_ids=ids[:1], input_values=random(1, 1, 4000))
    yield dict(past_values=random(2, 64))
    for patch in (192, 384):  # three channels of eight by eight, once and for two frames
        yield dict(hidden_states=random(16, patch), grid_thw=grid)
        yield dict(pixel_values=random(16, patch), grid_thw=grid)


def tensors(out):
    if isinstance(out, torch.Tensor):
        return [out]
    values = out.values() if isinstance(out, dict) else out if isinstance(out, (tuple, list)) else ()
    return [x for value in values for x in tensors(value)]


def classes(module):
    found = [
        c for c in vars(module).values()
        if inspect.isclass(c) and issubclass(c, PreTrainedModel) and c.__module__ == module.__name__
        and getattr(c, "config_class", None) is not None and not c.__name__.endswith("PreTrainedModel")
    ]  # fmt: skip
    order = ("ForCausalLM", "TextModel", "ForConditionalGeneration", "VisionModel", "Model")
    rank = lambda c: next((i for i, end in enumerate(order) if c.__name__.endswith(end)), len(order))  # noqa: E731
    return sorted(found, key=rank)


def served():
    """Grows with each call that a kernel computes."""
    return sum(vars(ropejit.stats()).values())


def run(model, given, train=False):
    torch.manual_seed(3)
    device = next(model.parameters()).device
    with torch.set_grad_enabled(train):
        out = tensors(model(**{k: v.to(device, copy=True) for k, v in given.items()}))
    if not train:
        return out
    model.zero_grad()
    floating = [x for x in out if x.is_floating_point() and x.requires_grad]
    sum(x.float().square().mean() for x in floating).backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def patched(model, function):
    for name in dict.fromkeys(type(m).__module__ for m in model.modules()):
        if ".modeling_" in name:
            _patch._patch_model(sys.modules[name])
    try:
        return function()
    finally:
        _patch.unpatch("transformers")


def same(ours, theirs):
    equal = (x.shape == y.shape and torch.equal(x.nan_to_num(), y.nan_to_num()) for x, y in zip(ours, theirs))
    return len(ours) == len(theirs) and all(equal)


def built(cls, settings):
    """A tiny model of this class and the place of inputs that it takes, on the CPU; None where no way is found."""
    for otherwise in OTHERWISE:
        try:
            config = tiny(cls.config_class, settings, **otherwise)
            with torch.device("meta"):
                size = sum(p.numel() for p in cls(copy.deepcopy(config)).parameters())
            if size > PARAMETERS:
                continue
            torch.manual_seed(0)
            model = cls(config).eval()
            place = next((i for i, given in enumerate(inputs(torch.float32)) if _runs(model, given)), None)
        except Exception:  # noqa: BLE001 - cannot be built so
            continue
        if place is not None:
            return model, place
    return None


def comparisons(cls, settings, device, results):
    """Builds one class and compares; counts the words for what came out. Whether it could be built."""
    found = built(cls, settings)
    if found is None:
        return False
    model, place = found
    model = model.to(device)
    for attention in ("eager", "sdpa"):
        for dtype in (torch.float32, torch.bfloat16):
            try:
                model.set_attn_implementation(attention)
                model = model.to(dtype)
            except Exception:  # noqa: BLE001 - the model itself does not
                results["cannot run so"] += 1
                continue
            results[compared(model, list(inputs(dtype))[place], False)] += 1
    model = model.to(torch.float32)
    word = compared(model, list(inputs(torch.float32))[place], True)
    results[f"step {word}"] += 1
    return True


def compared(model, given, train):
    """What came out of a run with `patch`, against one without."""
    try:
        plain, again = run(model, given, train), run(model, given, train)
    except Exception:  # noqa: BLE001 - the model itself does not
        return "cannot run so"
    if not plain or not same(plain, again):
        return "not repeatable" if plain else "cannot run so"
    before = served()
    try:
        ours = patched(model, lambda: run(model, given, train))
    except Exception as error:  # noqa: BLE001 - of any kind, and ours
        return f"DIFFERENT: {type(error).__name__}: {error}"
    word = "equal" if same(ours, plain) else "DIFFERENT"
    if word != "equal" and train and len(ours) == len(plain):
        close = all(torch.allclose(x, y, rtol=1e-4, atol=1e-6) for x, y in zip(ours, plain))
        word = "sums in another order" if close else word
    return word if served() > before else f"{word}, by eager"


def _runs(model, given):
    try:
        return bool(run(model, given))
    except Exception:  # noqa: BLE001 - not its inputs
        return False


class _TooLong(BaseException):
    """No `Exception`, so that what tries models does not take it for theirs."""


def _stop(*_):
    raise _TooLong


def families(chosen):
    root = pathlib.Path(transformers.__file__).parent / "models"
    mentions = re.compile(r"(apply_\w*(rotary|rope)|rotate_queries)\w*\(")
    files = [f for f in sorted(root.glob("*/modeling_*.py")) if not f.name.startswith(("modeling_tf_", "modeling_flax_"))]
    return [f for f in files if (not chosen or f.parent.name in chosen) and mentions.search(f.read_text())]


def of_family(file, device):
    """The class that was built, or why none was, and the words for what came out."""
    results, name = Counter(), None
    settings = FAMILIES.get(file.parent.name, {})
    signal.alarm(LIMIT_S)
    try:
        module = importlib.import_module(f"transformers.models.{file.parent.name}.{file.stem}")
        for cls in classes(module):
            mine, before = Counter(), served()
            if comparisons(cls, settings, device, mine) and (served() > before or not results):
                results, name = mine, cls.__name__
                if served() > before:
                    break
    except _TooLong:
        results["took too long"] += 1
    except Exception as error:  # noqa: BLE001 - of this family alone
        results[f"{type(error).__name__}: {error}"[:200]] += 1
    finally:
        signal.alarm(0)
    return name, results


def main():
    options = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    options.add_argument("families", nargs="*", metavar="FAMILY")
    options.add_argument("--device", default="cpu")
    options.add_argument("--some", action="store_true", help="families of every form, instead of all")
    options.add_argument("--seconds", type=float, default=float("inf"), help="no family is begun after so many")
    options = options.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    transformers.logging.set_verbosity_error()
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.set_num_threads(1)  # models so small only wait for each other's threads
    signal.signal(signal.SIGALRM, _stop)
    total, sums, began = Counter(), Counter(), time.monotonic()
    for file in families({*options.families, *(SOME if options.some else ())}):
        family, start = file.parent.name, time.monotonic()
        if start - began > options.seconds:
            sums["left out: no time"] += 1
            print(f"{family:28} left out: no time", flush=True)
            continue
        name, results = of_family(file, options.device)
        total.update(results)
        sums["built" if name else "not built"] += 1
        sums["served"] += any(word in results for word in ("equal", "DIFFERENT"))
        sums["with a training step"] += any(f"step {word}" in results for word in ("equal", "sums in another order", "DIFFERENT"))
        sums["with a difference"] += any("DIFFERENT" in word for word in results)
        print(f"{family:28} {name or 'not built':44} {dict(results)} {time.monotonic() - start:.1f} s", flush=True)
    print(f"{torch.__version__=} {transformers.__version__=} {options.device=} {time.monotonic() - began:.0f} s")
    print(f"families: {dict(sums)}\ncomparisons: {dict(total)}")
    return 1 if sums["with a difference"] else 0


if __name__ == "__main__":
    sys.exit(main())
