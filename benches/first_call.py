"""First calls of fresh processes: `first_call.py OUT [cuda|cpu]`.

In each process PyTorch is imported, its CUDA context is up, and q, k and the tables lie on the GPU, before the clock starts.
`import ropejit` is timed apart. The first call's time is all that it does until its result is there: opening the engine (device,
cache folder), finding the kernel, launching, and the wait for the GPU. A cold process has an empty cache folder of its own; a
warm one has the folder of a process that has tuned. The policy is the default: tuning goes on in the background, and may
disturb the second call. 1×8192 tokens, 32/32 heads of 128, bf16, out of place, no gradients.
"""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

TARGET_MS = 5.0
COLD, WARM = 4, 5

PROCESS = r"""
import json, sys, time
import torch
from torch import cuda

batch, tokens, heads, dim = 1, 8192, 32, 128
q, k = (torch.randn(batch, tokens, heads, dim, device=DEVICE, dtype=torch.bfloat16).transpose(1, 2) for _ in range(2))
angles = torch.rand(1, tokens, dim // 2, device=DEVICE).repeat(1, 1, 2)
cos, sin = angles.cos().bfloat16(), angles.sin().bfloat16()
wait = cuda.synchronize if DEVICE == "cuda" else lambda: None
wait()
ms = []
def timed(f):
    begin = time.perf_counter()
    result = f()
    returned = time.perf_counter()
    wait()
    ms.append(((returned - begin) * 1e3, (time.perf_counter() - begin) * 1e3))
    return result
with torch.no_grad():
    torch.empty_like(q), torch.empty_like(k)  # the allocator's own first time is not ropejit's
    wait()
    nvrtc = ["libnvrtc.so" in open("/proc/self/maps").read()]
    ropejit = timed(lambda: __import__("ropejit"))
    for _ in range(3):
        timed(lambda: ropejit.apply_rotary_pos_emb(q, k, cos, sin))
        nvrtc.append("libnvrtc.so" in open("/proc/self/maps").read())
stats = ropejit.stats()
how = {n: getattr(stats, n) for n in ("embedded_hits", "disk_hits", "compiles")}
print(json.dumps({"import": ms[0][1], "first": ms[1][1], "returned": ms[1][0], "second": ms[2][1], "third": ms[3][1],
                  "nvrtc_before_and_after": nvrtc[:2], **how}), flush=True)
if TUNE:
    ropejit.wait_tuned()
"""


def process(folder, device, tune=False):
    """The figures of one process; `tune` waits for background tuning, so that the folder is warm."""
    code = f"DEVICE, TUNE = {device!r}, {tune}\n{PROCESS}"
    environment = os.environ | {"ROPEJIT_CACHE_DIR": str(folder)}
    if not tune:
        environment["ROPEJIT_LOG"] = os.environ.get("ROPEJIT_LOG", "debug")
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=90, check=False)
    if done.returncode:
        print(done.stderr[-2000:], flush=True)
        return None
    return json.loads(done.stdout.splitlines()[0]) | {"log": done.stderr.splitlines()[:20]}


def main():
    out = pathlib.Path(sys.argv[1])
    device = sys.argv[2] if len(sys.argv) > 2 else "cuda"
    runs = {"empty cache": [], "warm cache": []}
    with tempfile.TemporaryDirectory() as scratch:
        for name, folder in [("empty cache", f"cold{i}") for i in range(COLD)] + [("warm cache", "warm")] * WARM:
            if name == "warm cache" and not runs[name]:
                process(f"{scratch}/warm", device, tune=True)
            runs[name].append(process(f"{scratch}/{folder}", device))
            if runs[name][-1] is None:
                break  # the others would fail as well
    failed = sum(run is None for group in runs.values() for run in group)
    (out / "first-call.json").write_text(json.dumps(runs, indent=1) + "\n")
    print("| | first call, ms: median (least–most) | of it until it returned | second | import ropejit | kernel from | NVRTC |")
    print("|---|---|---|---|---|---|---|")
    met = not failed
    for name, group in runs.items():
        group = [run for run in group if run]
        if not group:
            continue
        of = lambda key, group=group: [run[key] for run in group]  # noqa: E731
        at = lambda key: f"{statistics.median(of(key)):.2f}"  # noqa: E731
        origins = {"shipped" if r["embedded_hits"] else "compiled" if r["compiles"] else "disk" for r in group}
        first = of("first")
        nvrtc = {
            "was loaded before" if before else "loaded" if after else "not loaded"
            for before, after in of("nvrtc_before_and_after")
        }
        met = met and statistics.median(first) <= TARGET_MS
        print(f"| {name} ({len(group)}) | **{at('first')}** ({min(first):.2f}–{max(first):.2f}) | {at('returned')} | "
              f"{at('second')} | {at('import')} | {', '.join(sorted(origins))} | "
              f"{', '.join(sorted(nvrtc))} |")  # fmt: skip
    for name, group in runs.items():
        for line in next((run["log"] for run in group if run), []):
            print(f"{name}: {line}")
    print(f"first calls {'within' if met else 'NOT WITHIN'} {TARGET_MS:g} ms; {failed} processes failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
