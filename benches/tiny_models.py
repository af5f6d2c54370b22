"""Tiny random models of every family of transformers that rotates: bits with `patch` and without.

    python benches/tiny_models.py [FAMILY …]

For each family it builds the first class of its module that can be built small and run on the CPU, and compares all tensors of
its output, with eager attention and with sdpa, in float32 and bfloat16, and the gradients of one training step in float32. A
line a family, and sums at the end. Half an hour on two cores.
"""

import copy
import importlib
import inspect
import logging
import os
import pathlib
import re
import signal
import sys
import warnings
from collections import Counter

os.environ.setdefault("ROPEJIT_TUNING", "never")

import torch
import transformers
from ropejit import _functions, _patch
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
#: Of one family, and of one model.
LIMIT_S, PARAMETERS = 90, 30_000_000


def tiny(config_class, without=()):
    """A configuration of this class with few of everything."""
    default = config_class()
    chosen = {k: v for k, v in SIZES.items() if k not in without and type(getattr(default, k, None)) is int}
    layers = next((chosen[k] for k in ("num_hidden_layers", "num_layers") if k in chosen), 2)
    for name, value in vars(default).items():
        if isinstance(value, transformers.PreTrainedConfig):
            chosen[name] = tiny(type(value), without).to_dict()
        elif isinstance(value, list) and ("layer" in name or "pattern" in name) and len(value) > layers:
            chosen[name] = value[:layers]
        elif name == "rope_parameters" and isinstance(value, dict):
            chosen[name] = _sections(value, chosen)
    return config_class(**chosen)


def _sections(parameters, chosen):
    parameters = copy.deepcopy(parameters)
    for each in [parameters, *(v for v in parameters.values() if isinstance(v, dict))]:
        if each.get("mrope_section"):
            n, angles = len(each["mrope_section"]), int(chosen.get("head_dim", 16) * each.get("partial_rotary_factor", 1.0)) // 2
            each["mrope_section"] = [angles - (n - 1) * (angles // n)] + [angles // n] * (n - 1)
    return parameters


def inputs(dtype):
    ids = torch.randint(3, 100, (2, 9), generator=torch.Generator().manual_seed(0))
    random = torch.Generator().manual_seed(1)
    pixels, frames = torch.randn(1, 3, 32, 32, generator=random).to(dtype), torch.randn(1, 24, 64, generator=random).to(dtype)
    yield dict(input_ids=ids)
    yield dict(input_ids=ids, decoder_input_ids=ids)
    yield dict(pixel_values=pixels)
    yield dict(inputs_embeds=frames)
    yield dict(input_features=frames)
    yield dict(input_values=frames)
    yield dict(hidden_states=torch.randn(16, 64, generator=random).to(dtype), grid_thw=torch.tensor([[1, 4, 4]]))


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


class Served:
    """Counts the calls that kernels computed."""

    def __init__(self):
        self.native, self.calls = _functions._drop_in, 0
        _functions._drop_in = self.count

    def count(self, *arguments):
        out = self.native(*arguments)
        self.calls += out is not None
        return out


def run(model, given, train=False):
    torch.manual_seed(3)
    with torch.set_grad_enabled(train):
        out = tensors(model(**{k: v.clone() for k, v in given.items()}))
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
    return len(ours) == len(theirs) and all(x.shape == y.shape and torch.equal(x.nan_to_num(), y.nan_to_num()) for x, y in zip(ours, theirs))


def comparisons(cls, served, results):
    """Builds one class and compares; the words for what came out."""
    for without in ((), ("head_dim",), ("num_key_value_heads", "head_dim"), ("rotary_dim", "num_key_value_heads")):
        try:
            config = tiny(cls.config_class, without)
            with torch.device("meta"):
                size = sum(p.numel() for p in cls(copy.deepcopy(config)).parameters())
            if size > PARAMETERS:
                continue
            torch.manual_seed(0)
            model = cls(config).eval()
            given_of = [i for i, given in enumerate(inputs(torch.float32)) if _runs(model, given)]
        except Exception:  # noqa: BLE001 - cannot be built so
            continue
        if given_of:
            break
    else:
        return False
    for attention in ("eager", "sdpa"):
        for dtype in (torch.float32, torch.bfloat16):
            try:
                model.set_attn_implementation(attention)
                model = model.to(dtype)
                given = list(inputs(dtype))[given_of[0]]
                plain, again = run(model, given), run(model, given)
            except Exception:  # noqa: BLE001 - the model itself does not
                results["cannot run so"] += 1
                continue
            if not same(plain, again):
                results["not the same twice"] += 1
                continue
            before = served.calls
            ours = patched(model, lambda: run(model, given))  # noqa: B023 - called at once
            what = "equal" if same(ours, plain) else "DIFFERENT"
            results[what if served.calls > before else f"{what}, by eager"] += 1
    model = model.to(torch.float32)
    given = list(inputs(torch.float32))[given_of[0]]
    try:
        plain, again = run(model, given, True), run(model, given, True)
    except Exception:  # noqa: BLE001 - cannot be trained
        return True
    if plain and same(plain, again):
        before = served.calls
        ours = patched(model, lambda: run(model, given, True))
        equal = same(ours, plain)
        close = len(ours) == len(plain) and all(torch.allclose(x, y, rtol=1e-4, atol=1e-6) for x, y in zip(ours, plain))
        word = "equal" if equal else "sums in another order" if close else "DIFFERENT"
        results[f"step {word}" if served.calls > before else f"step {word}, by eager"] += 1
    return True


def _runs(model, given):
    try:
        return bool(run(model, given))
    except Exception:  # noqa: BLE001 - not its inputs
        return False


class _TooLong(BaseException):
    """No `Exception`, so that what tries models does not take it for theirs."""


def _stop(*_):
    raise _TooLong


def main(chosen):
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    transformers.logging.set_verbosity_error()
    root = pathlib.Path(transformers.__file__).parent / "models"
    mentions = re.compile(r"(apply_\w*(rotary|rope)|rotate_queries)\w*\(")
    files = [f for f in sorted(root.glob("*/modeling_*.py")) if mentions.search(f.read_text())]
    files = [f for f in files if not f.name.startswith(("modeling_tf_", "modeling_flax_")) and (not chosen or f.parent.name in chosen)]
    served, total, families = Served(), Counter(), Counter()
    signal.signal(signal.SIGALRM, _stop)
    for file in files:
        results, built = Counter(), None
        module = importlib.import_module(f"transformers.models.{file.parent.name}.{file.stem}")
        signal.alarm(LIMIT_S)
        try:
            for cls in classes(module):
                mine, before = Counter(), served.calls
                if comparisons(cls, served, mine) and (served.calls > before or not results):
                    results, built = mine, cls.__name__
                    if served.calls > before:
                        break
        except _TooLong:
            results["took too long"] += 1
        finally:
            signal.alarm(0)
        total.update(results)
        families["built" if built else "not built"] += 1
        families["served"] += any(word in results for word in ("equal", "DIFFERENT"))
        families["with a training step"] += any(word.startswith("step") and "eager" not in word for word in results)
        families["with a difference"] += any("DIFFERENT" in word for word in results)
        print(f"{file.parent.name:28} {built or 'not built':44} {dict(results)}", flush=True)
    print(f"families: {dict(families)}\ncomparisons: {dict(total)}")


if __name__ == "__main__":
    main(sys.argv[1:])
