"""Where the host time of a call from Python goes: `overhead.py [cpu|cuda]`, one token, 32/8 heads of 128, bf16.

The launch is told from the rest by calls without a token, which do all but launch. On the processor the launch is the work.
Parts that are PyTorch's own are measured alone, as they are called here.
"""

import json
import os
import sys
import time

os.environ.setdefault("ROPEJIT_TUNING", "never")  # nothing beside the loops

import ropejit
import torch
from ropejit import _functions, _ropejit

#: Microseconds that a call may take on a GPU's host, launch included.
TARGETS = {"in place": 6.0, "out of place": 12.0}


def us(call, calls=300, loops=60):
    """Microseconds of a call: the least of some loops, since what disturbs only adds. A loop is shorter than a GPU's queue,
    which would make the host wait."""
    best = float("inf")
    for _ in range(loops):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        begin = time.perf_counter_ns()
        for _ in range(calls):
            call()
        best = min(best, (time.perf_counter_ns() - begin) / calls / 1e3)
    return best


def main():
    device = sys.argv[1] if len(sys.argv) > 1 else "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(1)
    q, k = (torch.randn(1, 1, h, 128, device=device, dtype=torch.bfloat16) for h in (32, 8))
    angles = torch.rand(1, 1, 64, device=device).repeat(1, 1, 2)
    cos, sin = angles.cos().bfloat16(), angles.sin().bfloat16()
    qt, kt = q.transpose(1, 2), k.transpose(1, 2)
    none_q, none_k = q[:, :0], k[:, :0]
    leaf_q, leaf_k = (x.clone().requires_grad_() for x in (q, k))
    for inplace in (False, True):
        ropejit.apply(q, k, cos, sin, rounding="per_op", inplace=inplace)
    ropejit.apply_rotary_pos_emb(qt, kt, cos, sin)
    rest = (None, None, None, "half_split", None, "bshd", "per_op")
    calls = {
        "in place": lambda: ropejit.apply(q, k, cos, sin, rounding="per_op", inplace=True),
        "out of place": lambda: ropejit.apply(q, k, cos, sin, rounding="per_op"),
        "transformers drop-in": lambda: ropejit.apply_rotary_pos_emb(qt, kt, cos, sin),
        "recorded by autograd": lambda: ropejit.apply(leaf_q, leaf_k, cos, sin, rounding="per_op"),
        "in place, no token": lambda: ropejit.apply(none_q, none_k, cos, sin, rounding="per_op", inplace=True),
        "out of place, no token": lambda: ropejit.apply(none_q, none_k, cos, sin, rounding="per_op"),
        "native, in place, no token": lambda: _ropejit.apply(none_q, none_k, cos, sin, *rest, True),
        "is a tracer at work?": _functions._is_compiling,
        "empty_like, twice": lambda: (torch.empty_like(q), torch.empty_like(k)),
        "increment_version": lambda: torch._C._increment_version((q, k)),
        "requires_grad, four times": lambda: (q.requires_grad, k.requires_grad, cos.requires_grad, sin.requires_grad),
        "is_grad_enabled": torch.is_grad_enabled,
        "dispatch modes": torch._C._len_torch_dispatch_stack,
        "forward-mode level": lambda: torch.autograd.forward_ad._current_level,
    }  # fmt: skip
    if device == "cuda":
        warm = torch.randn(4096, 4096, device=device)
        for _ in range(200):  # up to its clocks
            warm @ warm
    nothing = us(lambda: None)
    f = {name: us(call) - nothing for name, call in calls.items()}
    with torch.no_grad():
        f["in place, no_grad"] = us(calls["in place"]) - nothing
        f["out of place, no_grad"] = us(calls["out of place"]) - nothing
    steps = {
        "Python above the native function": f["in place, no token"] - f["native, in place, no token"],
        "… of it, whether a tracer is at work": f["is a tracer at work?"],
        "native function, in place, all but the launch": f["native, in place, no token"],
        "… of it, may autograd have to know": f["is_grad_enabled"] + f["requires_grad, four times"],
        "… of it, modes and forward-mode level": f["dispatch modes"] + f["forward-mode level"],
        "… of it, telling autograd of what was written": f["increment_version"],
        "launch" if device == "cuda" else "launch, which is the work": f["in place"] - f["in place, no token"],
        "**in place**": f["in place"],
        "two outputs, and a look at each": f["out of place, no token"] - f["in place, no token"] + f["increment_version"],
        "… of it, `torch.empty_like`": f["empty_like, twice"],
        "**out of place**": f["out of place"],
        "in place under no_grad": f["in place, no_grad"],
        "out of place under no_grad": f["out of place, no_grad"],
        "transformers drop-in": f["transformers drop-in"],
        "recorded by autograd": f["recorded by autograd"],
    }
    where = torch.cuda.get_device_name() if device == "cuda" else "the processor"
    print(f"Host time of a call on {where}, torch {torch.__version__}, one token, 32/8/128, bf16\n\n| step | µs |\n|---|---|")
    for name, value in steps.items():
        print(f"| {name} | {value:.2f} |")
    print()
    for name, target in TARGETS.items():
        if device == "cuda":
            print(f"{name}: {f[name]:.2f} µs, {'within' if f[name] <= target else 'MORE THAN'} {target:g}")
    print(json.dumps({"device": where, "torch": torch.__version__, "us": f}))


if __name__ == "__main__":
    main()
