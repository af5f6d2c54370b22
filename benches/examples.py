"""The kernels of examples/ beside what people use today: torch.compile, Liger, PyTorch's own functions.

usage: examples.py FOLDER [OUT.json]   FOLDER holds the examples; Liger is left out where it is not installed.

Device time of a call in microseconds: CUDA graphs replayed in turn over tensors that are rotated past the L2, medians. `of copy`
is the speed as a share of a device-to-device copy of the bytes that the computation has to move. Liger's cross-entropy
synchronises and cannot be captured: it is timed with that, and its kernel alone by the profiler.
"""

import json
import os
import sys
import warnings

import ropejit
import torch
import torch.nn.functional as F

warnings.filterwarnings("ignore")
L2_BYTES = 60e6
IGNORED = -100


def median(values):
    return sorted(values)[len(values) // 2]


def prepared(call, sets):
    """Launches that are timed together: call(i) for the sets in turn, as a graph where it can be captured."""
    for i in range(min(2, sets)):
        call(i)
    torch.cuda.synchronize()
    launches = max(sets, 4)

    def run():
        for i in range(launches):
            call(i % sets)

    try:
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream), torch.cuda.graph(graph, stream=stream):
            run()
        torch.cuda.current_stream().wait_stream(stream)
        return graph.replay, launches
    except RuntimeError:  # it synchronises
        torch.cuda.synchronize()
        return run, launches


def race(calls, sets, rounds=15):
    """Microseconds of each call, by name: in turn, warm, so that clocks and what tensors have come to hold meet all alike."""
    runs = {name: prepared(call, sets) for name, call in calls.items()}
    times = {name: [] for name in runs}
    for round in range(-5, rounds):
        for name, (run, launches) in runs.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run()
            end.record()
            torch.cuda.synchronize()
            if round >= 0:
                times[name].append(start.elapsed_time(end) * 1e3 / launches)
    return {name: median(values) for name, values in times.items()}


def kernel_time(call, sets, name):
    """Microseconds of the kernel of this name alone."""
    from torch.profiler import ProfilerActivity, profile

    call(0)
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        for i in range(12):
            call(i % sets)
        torch.cuda.synchronize()
    return median([e.device_time for e in seen.events() if name in e.name])


def rotated(bytes_moved):
    return max(2, int(3 * L2_BYTES / bytes_moved) + 1)


def copy_of(bytes_moved, sets):
    """A device-to-device copy of as many bytes."""
    pairs = [[torch.empty(bytes_moved // 2, dtype=torch.uint8, device="cuda") for _ in range(2)] for _ in range(sets)]
    return lambda i: pairs[i][1].copy_(pairs[i][0])


def tensors(sets, *shape):
    return [torch.randn(shape, device="cuda").bfloat16() for _ in range(sets)]


def liger(name):
    try:
        return __import__(f"liger_kernel.ops.{name}", fromlist=["ops"])
    except ImportError:
        return None


def swiglu(folder, rows, hidden):
    moved = 3 * rows * hidden * 2
    sets = rotated(moved)
    gate, up, y = (tensors(sets, rows, hidden) for _ in range(3))
    kernel = ropejit.template(f"{folder}/swiglu/swiglu.toml")
    compiled = torch.compile(lambda g, u: F.silu(g) * u)
    kernel(gate=gate[0], up=up[0], y=y[0])
    assert torch.equal(y[0], F.silu(gate[0]) * up[0]), "eager's bits"
    calls = {
        "copy": copy_of(moved, sets),
        "ropejit": lambda i: kernel(gate=gate[i], up=up[i], y=y[i]),
        "torch.compile": lambda i: compiled(gate[i], up[i]),
        "eager": lambda i: F.silu(gate[i]) * up[i],
    }
    if ops := liger("swiglu"):
        calls["Liger"] = lambda i: ops.swiglu_forward(gate[i], up[i])
    yield f"swiglu {rows}x{hidden}", moved, race(calls, sets)

    moved = 5 * rows * hidden * 2
    backward = ropejit.template(f"{folder}/swiglu/swiglu_backward.toml")

    def formula(g, u, d):
        s = torch.sigmoid(g)
        return d * u * (s * (1 + g * (1 - s))), d * g * s

    compiled = torch.compile(formula)
    dy = y
    g, u = gate[0].clone(), up[0].clone()
    backward(dy=dy[0], gate=g, up=u)
    for got, want in zip((g, u), formula(gate[0].double(), up[0].double(), dy[0].double())):
        assert torch.allclose(got.double(), want, rtol=1e-2, atol=1e-3), "near f64"
    calls = {
        "copy": copy_of(moved, sets),
        "ropejit": lambda i: backward(dy=dy[i], gate=gate[i], up=up[i]),
        "torch.compile": lambda i: compiled(gate[i], up[i], dy[i]),
    }
    if ops:
        calls["Liger"] = lambda i: ops.swiglu_backward(gate[i], up[i], dy[i])
    yield f"swiglu backward {rows}x{hidden}", moved, race(calls, sets)


def add_rmsnorm(folder, rows, hidden):
    moved = 4 * rows * hidden * 2
    sets = rotated(moved)
    x, residual, y = (tensors(sets, rows, hidden) for _ in range(3))
    weight = torch.rand(hidden, device="cuda").bfloat16() + 0.5
    kernel = ropejit.template(f"{folder}/add_rmsnorm/add_rmsnorm.toml")
    sums, r = x[0] + residual[0], residual[0].clone()
    kernel(x=x[0], residual=r, weight=weight, y=y[0], eps=1e-6)
    assert torch.equal(r, sums), "eager's sum"
    want = F.rms_norm(sums.double(), (hidden,), weight.double(), 1e-6)
    assert torch.allclose(y[0].double(), want, rtol=2e-2, atol=1e-3), "near f64"

    def eager(i):
        residual[i].add_(x[i])
        return F.rms_norm(residual[i], (hidden,), weight, 1e-6)

    def both(x, residual, weight):
        s = x + residual
        return s, F.rms_norm(s, (hidden,), weight, 1e-6)

    compiled = torch.compile(both)
    calls = {
        "copy": copy_of(moved, sets),
        "ropejit": lambda i: kernel(x=x[i], residual=residual[i], weight=weight, y=y[i], eps=1e-6),
        "torch.compile": lambda i: compiled(x[i], residual[i], weight),
        "add_, F.rms_norm": eager,
    }
    if ops := liger("fused_add_rms_norm"):
        calls["Liger"] = lambda i: ops.fused_add_rms_norm_forward(x[i], residual[i], weight, 1e-6, 0.0, "llama")
    yield f"add_rmsnorm {rows}x{hidden}", moved, race(calls, sets)


def cross_entropy(folder, rows, vocab):
    moved = 2 * rows * vocab * 2
    sets = 2
    logits = [2 * t for t in tensors(sets, rows, vocab)]
    labels = torch.randint(0, vocab, (rows,), device="cuda")
    labels[5] = IGNORED
    loss, scale = torch.empty(rows, device="cuda"), 1 / (rows - 1)
    kernel = ropejit.template(f"{folder}/cross_entropy/cross_entropy.toml")

    def ours(x):
        kernel(logits=x, labels=labels, loss=loss, ignore_index=IGNORED, scale=scale)

    x = logits[0].clone()
    ours(x)
    plain = logits[0][:64].float().requires_grad_()
    want = F.cross_entropy(plain, labels[:64], reduction="none", ignore_index=IGNORED)
    (gradient,) = torch.autograd.grad(want.sum() * scale, plain)
    assert torch.allclose(loss[:64], want, rtol=1e-5, atol=1e-5), "PyTorch's loss"
    assert torch.allclose(x[:64].float() / scale, gradient / scale, rtol=1e-2, atol=1e-4), "PyTorch's gradient"
    del x
    leaves = [x.requires_grad_() for x in logits]
    compiled = torch.compile(lambda x, t: F.cross_entropy(x.float(), t))

    def there_and_back(f, i):
        with torch.enable_grad():
            torch.autograd.grad(f(leaves[i], labels), leaves[i])

    calls = {
        "copy": copy_of(moved, sets),
        "ropejit": lambda i: ours(logits[i]),
        "torch.compile": lambda i: there_and_back(compiled, i),
        "F.cross_entropy in bf16": lambda i: there_and_back(F.cross_entropy, i),
    }
    ops = liger("cross_entropy")
    more = (None, IGNORED, 0.0, 0.0, "mean", None, False)
    if ops:
        calls["Liger"] = lambda i: ops.cross_entropy_forward(leaves[i], labels, *more)
    with torch.no_grad():
        times = race(calls, sets)
        if ops:
            times["Liger, its kernel alone"] = kernel_time(calls["Liger"], sets, "liger")
    yield f"cross_entropy {rows}x{vocab}", moved, times


def main(folder, out=None):
    os.environ.setdefault("ROPEJIT_TUNING", "blocking")
    torch.manual_seed(0)
    rows = []
    for case in (
        swiglu(folder, 4096, 4096),
        swiglu(folder, 8192, 14336),
        add_rmsnorm(folder, 8192, 4096),
        cross_entropy(folder, 4096, 128256),
    ):
        with torch.no_grad() if case.__name__ != "cross_entropy" else torch.enable_grad():
            for name, moved, times in case:
                rows.append({"case": name, "dtype": "bf16", "bytes": moved, "us": times})
                print(f"{name}, {moved / 1e6:.0f} MB")
                for who, us in times.items():
                    print(f"    {who:28} {us:9.1f} us  {times['copy'] / us:.3f} of copy")
    document = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "cases": rows}
    if out:
        with open(out, "w") as file:
            json.dump(document, file, indent=1)


if __name__ == "__main__":
    main(*sys.argv[1:])
