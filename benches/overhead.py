"""Where the host time of a call from Python goes: `overhead.py [cpu|cuda]`, one token, 32/8 heads of 128, bf16.

The launch is told from the rest by calls without a token, which do all but launch. On the processor the launch is the work.
"""

import json
import sys
import time

import ropejit
import torch
from ropejit import _functions, _ropejit


def ns(call, calls=20000, loops=7):
    """Nanoseconds of a call: the least of some loops, since what disturbs only adds."""
    best = float("inf")
    for _ in range(loops):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        begin = time.perf_counter_ns()
        for _ in range(calls // loops):
            call()
        best = min(best, (time.perf_counter_ns() - begin) / (calls // loops))
    return best


def main():
    device = sys.argv[1] if len(sys.argv) > 1 else "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(1)
    q, k = (torch.randn(1, 1, h, 128, device=device, dtype=torch.bfloat16) for h in (32, 8))
    angles = torch.rand(1, 1, 64, device=device).repeat(1, 1, 2)
    cos, sin = angles.cos().bfloat16(), angles.sin().bfloat16()
    qt, kt = q.transpose(1, 2), k.transpose(1, 2)
    none_q, none_k = q[:, :0], k[:, :0]
    for inplace in (False, True):
        ropejit.apply(q, k, cos, sin, rounding="per_op", inplace=inplace)
    ropejit.apply_rotary_pos_emb(qt, kt, cos, sin)
    ropejit.wait_tuned()
    nothing = ns(lambda: None)
    native = (None, None, None, False, None, "bshd", "once")
    calls = {
        "apply, in place": lambda: ropejit.apply(q, k, cos, sin, rounding="per_op", inplace=True),
        "apply, out of place": lambda: ropejit.apply(q, k, cos, sin, rounding="per_op"),
        "transformers drop-in": lambda: ropejit.apply_rotary_pos_emb(qt, kt, cos, sin),
        "in place, without a token": lambda: ropejit.apply(none_q, none_k, cos, sin, inplace=True),
        "out of place, without a token": lambda: ropejit.apply(none_q, none_k, cos, sin),
        "the same two, native function alone: in place": lambda: _ropejit.apply(none_q, none_k, cos, sin, *native, True),
        "… out of place": lambda: _ropejit.apply(none_q, none_k, cos, sin, *native, False),
        "is a tracer at work?": _functions._is_compiling,
        "torch.empty_like, twice": lambda: (torch.empty_like(q), torch.empty_like(k)),
        "telling autograd of what was written": lambda: torch._C._increment_version((q, k)),
        "requires_grad, four times": lambda: (q.requires_grad, k.requires_grad, cos.requires_grad, sin.requires_grad),
        "is_grad_enabled": torch.is_grad_enabled,
    }
    figures = {name: ns(call) - nothing for name, call in calls.items()}
    with torch.no_grad():
        figures["apply, in place, no_grad"] = ns(calls["apply, in place"]) - nothing
        figures["apply, out of place, no_grad"] = ns(calls["apply, out of place"]) - nothing
    leaf = [x.clone().requires_grad_() for x in (q, k)]
    figures["apply, out of place, recorded by autograd"] = ns(lambda: ropejit.apply(*leaf, cos, sin, rounding="per_op")) - nothing
    print(f"{torch.cuda.get_device_name() if device == 'cuda' else 'processor'}, torch {torch.__version__}, one token, 32/8/128, bf16")
    for name, value in figures.items():
        print(f"{value / 1e3:8.2f} µs  {name}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
