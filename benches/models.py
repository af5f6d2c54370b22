"""A stack of Qwen3-8B's layers, patched and not, in one process: prefill, decode and a training step, times and bits.

    python benches/models.py OUT.json [layers]

Random weights, bf16, sdpa. Each part is timed in turn: not patched, patched, and for training patched with norms whose weights
get gradients of ropejit's own order as well. Times are medians in ms, with a synchronisation around each. Bits of decoding and
training are compared where eager repeats itself, which `eager_repeats` shows; `fast_decode` is with the attention that is timed.
"""

import json
import os
import statistics
import sys
import time
from contextlib import contextmanager

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before PyTorch reads it

import ropejit
import torch
import transformers
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import Qwen3Config, Qwen3ForCausalLM

PREFILL, DECODED, TRAINED, EXACT = 8192, 32, 4096, 512


def timed(work, repeat):
    times = []
    for _ in range(repeat + 2):
        torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[2:])


def model(layers):
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=151936, hidden_size=4096, intermediate_size=12288, num_hidden_layers=layers, num_attention_heads=32,
        num_key_value_heads=8, head_dim=128, max_position_embeddings=40960, dtype="bfloat16",
    )  # fmt: skip
    with torch.device("cuda"):
        made = Qwen3ForCausalLM(config).to(torch.bfloat16).eval()
    for name, weight in made.named_parameters():
        if name.endswith(("q_norm.weight", "k_norm.weight")):
            weight.data.uniform_(0.5, 1.5)
    return made


def prefill(made, ids):
    with torch.no_grad():
        return made(ids, use_cache=False, logits_to_keep=16).logits


def decode(made, ids):
    """Logits of each step after a prompt of 512."""
    with torch.no_grad():
        out = made(ids[:, :512], use_cache=True, logits_to_keep=1)
        logits, cache, token = [out.logits], out.past_key_values, out.logits.argmax(-1)
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(DECODED):
            out = made(token, past_key_values=cache, use_cache=True)
            cache, token = out.past_key_values, out.logits.argmax(-1)
            logits.append(out.logits)
        torch.cuda.synchronize()
        return torch.cat(logits, 1), 1e3 * (time.perf_counter() - start) / DECODED


def train(made, ids):
    made.zero_grad(set_to_none=True)
    loss = made(ids, labels=ids, use_cache=False).loss
    loss.backward()
    return loss.detach()


@contextmanager
def repeatable():
    """Nothing else differs from run to run: PyTorch's fast attention adds up as it comes, in decoding and in training."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.use_deterministic_algorithms(False)


def gradients(made, ids):
    with repeatable():
        loss = train(made, ids[:, :EXACT])
    return loss, {name: p.grad.clone() for name, p in made.named_parameters() if p.grad is not None}


def measure(made, ids, parts):
    found = {}
    if "prefill" in parts:
        found["prefill_ms"] = timed(lambda: prefill(made, ids), 7)
        found["prefill"] = prefill(made, ids)
    if "decode" in parts:
        found["decode_ms"] = statistics.median([decode(made, ids)[1] for _ in range(5)][1:])
        with repeatable():
            found["decode"] = decode(made, ids)[0]
        found["fast_decode"] = decode(made, ids)[0]
    if "train" in parts:
        short = ids[:, :TRAINED]
        found["train_ms"] = timed(lambda: train(made, short), 5)
        found["loss"], found["gradients"] = gradients(made, ids)
    return found


def compare(one, other):
    """Elements that differ, of how many; of the norms' weights the largest relative difference."""
    report = {}
    for part in ("prefill", "decode", "fast_decode", "loss"):
        if part in one and part in other:
            differ = one[part] != other[part]
            report[part] = {"differ": int(differ.sum()), "of": differ.numel()}
            if part.endswith("decode") and differ.any():
                report[part]["first_step"] = int(differ[0].any(-1).nonzero()[0])
    if "gradients" in one and "gradients" in other:
        norms = [n for n in one["gradients"] if n.endswith(("q_norm.weight", "k_norm.weight"))]
        rest = [n for n in one["gradients"] if n not in norms]
        report["gradients"] = {
            "differ": sum(int((one["gradients"][n] != other["gradients"][n]).sum()) for n in rest),
            "of": sum(one["gradients"][n].numel() for n in rest),
        }
        far = lambda a, b: float((a.float() - b.float()).abs().max() / b.float().abs().max())
        report["norm_weights_relative"] = max(far(other["gradients"][n], one["gradients"][n]) for n in norms)
    return report


def main():
    out, layers = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 8
    made, ids = model(layers), torch.randint(0, 151936, (1, PREFILL), device="cuda")
    parts = ("prefill", "decode", "train")
    eager = measure(made, ids, parts)
    again = measure(made, ids, ("decode", "train"))  # whether eager repeats itself
    ropejit.patch("transformers")
    measure(made, ids, parts)  # kernels are tuned beside this
    ropejit.wait_tuned()
    patched = measure(made, ids, parts)
    ropejit.unpatch("transformers")
    ropejit.patch("transformers", norm_gradients="own")
    measure(made, ids, ("train",))
    ropejit.wait_tuned()
    own = measure(made, ids, ("train",))
    ropejit.unpatch("transformers")
    report = {
        "device": torch.cuda.get_device_name(), "torch": torch.__version__, "transformers": transformers.__version__,
        "layers": layers, "prefill": PREFILL, "trained": TRAINED, "gradients_of": EXACT,
        "ms": {name: {k: v for k, v in found.items() if k.endswith("_ms")}
               for name, found in (("eager", eager), ("patched", patched), ("own", own))},
        "eager_repeats": compare(eager, again), "patched_bits": compare(eager, patched), "own_bits": compare(eager, own),
        "stats": str(ropejit.stats()),
    }  # fmt: skip
    with open(out, "w") as file:
        json.dump(report, file, indent=1)
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
