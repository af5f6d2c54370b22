"""One peer in this process: prints one line of JSON for each figure, as it has it.

    measure.py PEER first     the first and second call of this process, after PyTorch and the CUDA context are up
    measure.py PEER table     device times by graph replay, host time of a call, error

bf16; tables in bf16, one for all calls.
"""

import json
import statistics
import sys
import time

import peers
import torch

#: batch, tokens, heads, kv_heads, head_dim
BSHD = [
    (1, 8192, 32, 32, 128), (1, 8192, 32, 8, 128), (4, 4096, 32, 8, 128), (8, 2048, 32, 8, 64), (1, 8192, 16, 8, 256),
    (1, 512, 32, 8, 128), (128, 1, 32, 8, 128), (1, 1, 32, 8, 128),
]  # fmt: skip
BHSD = [(1, 8192, 32, 32, 128), (4, 4096, 32, 8, 128)]
#: Bytes that a graph goes through before it comes back to the same: several times the L2 of any GPU of today.
ROTATE = 400e6


def tables(tokens, head_dim):
    angles = torch.arange(tokens)[:, None].double() * 10000 ** (-torch.arange(0, head_dim, 2).double() / head_dim)
    full = torch.cat((angles, angles), -1)[None]
    return full.cos().bfloat16().cuda(), full.sin().bfloat16().cuda()


def qk(shape, layout):
    batch, tokens, heads, kv_heads, head_dim = shape

    def one(heads):
        if layout == "bhsd":
            return torch.randn(batch, heads, tokens, head_dim, device="cuda", dtype=torch.bfloat16)
        return torch.randn(batch, tokens, heads, head_dim, device="cuda", dtype=torch.bfloat16).transpose(1, 2)

    return one(heads), one(kv_heads)


def tell(**figures):
    print(json.dumps(figures), flush=True)


def graph_us(calls, samples=7):
    """Device time of one of `calls`, in µs: the median over replays of a graph of them all."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for call in calls[:2]:
            call()
    torch.cuda.synchronize()
    graph, kept = torch.cuda.CUDAGraph(), []
    with torch.cuda.graph(graph):
        for call in calls:
            kept.append(call())  # kept, so that no output takes the place of another
    graph.replay()
    torch.cuda.synchronize()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    graph.replay()
    end.record()
    torch.cuda.synchronize()
    replays = max(1, min(200, int(20 / max(begin.elapsed_time(end), 1e-3))))
    times = []
    for _ in range(samples):
        begin.record()
        for _ in range(replays):
            graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) * 1e3 / replays / len(calls))
    return statistics.median(times)


def device(peer, shape, layout):
    batch, tokens, heads, kv_heads, head_dim = shape
    moved = 2 * batch * tokens * (heads + kv_heads) * head_dim * 2
    sets = int(max(3, min(256, ROTATE // moved)))
    given = peer.prepare(*tables(tokens, head_dim))
    inputs = [qk(shape, layout) for _ in range(sets)]
    us = graph_us([lambda q=q, k=k: peer.call(q, k, *given) for q, k in inputs])
    del inputs
    sources = [torch.empty(moved // 2, dtype=torch.uint8, device="cuda") for _ in range(sets)]
    targets = [torch.empty_like(x) for x in sources]
    copy_us = graph_us([lambda t=t, s=s: t.copy_(s) for t, s in zip(targets, sources, strict=True)])
    tell(kind="device", shape=shape, layout=layout, bytes=moved, us=us, copy_us=copy_us)


def host(peer, calls=200):
    """Host time of a call of one token, in µs: the median of 30 loops, each shorter than the GPU's queue, so that the host
    never waits for the GPU."""
    q, k = qk((1, 1, 32, 8, 128), "bshd")
    given = peer.prepare(*tables(1, 128))
    warm = torch.randn(4096, 4096, device="cuda")
    for _ in range(200):  # up to its clocks
        warm @ warm
    times = []
    for _ in range(31):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(calls):
            peer.call(q, k, *given)
        times.append((time.perf_counter() - begin) / calls * 1e6)
        torch.cuda.synchronize()
    tell(kind="host", us=statistics.median(times[1:]))


def error(peer):
    """Against the rotation in f64 of the same bf16 inputs and tables: the greatest and the mean error."""
    q, k = qk((1, 512, 32, 8, 128), "bshd")
    cos, sin = tables(512, 128)
    c, s = cos.double().unsqueeze(1), sin.double().unsqueeze(1)
    turned = [torch.cat((-x[..., 64:], x[..., :64]), -1).double() for x in (q, k)]
    exact = [x.double() * c + y * s for x, y in zip((q, k), turned, strict=True)]
    out = peer.call(q, k, *peer.prepare(cos, sin))
    off = torch.cat([(a.double() - b).abs().flatten() for a, b in zip(out, exact, strict=True)])
    tell(kind="error", greatest=off.max().item(), mean=off.mean().item())


def first(name):
    torch.zeros(1, device="cuda")
    q, k = qk(BSHD[0], "bshd")
    cos, sin = tables(8192, 128)
    torch.cuda.synchronize()
    times = []
    begin = time.perf_counter()
    peer = peers.ALL[name]()
    times.append(time.perf_counter() - begin)
    given = peer.prepare(cos, sin)
    torch.cuda.synchronize()
    for _ in range(2):
        begin = time.perf_counter()
        peer.call(q, k, *given)
        torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    load, first_call, second = (t * 1e3 for t in times)
    tell(kind="first", import_ms=load, first_ms=first_call, second_ms=second)


def table(name):
    peer = peers.ALL[name]()
    made = time.strftime("%Y-%m-%d", time.gmtime())
    tell(kind="peer", version=peer.version, gpu=torch.cuda.get_device_name(), torch=torch.__version__, made=made)
    for measure in (host, error):
        measure(peer)
    for layout, shapes in (("bshd", BSHD), ("bhsd", BHSD)):
        for shape in shapes:
            try:
                device(peer, shape, layout)
            except Exception as e:  # one shape that fails is a gap in the table
                tell(kind="failed", shape=shape, layout=layout, why=f"{type(e).__name__}: {e}"[:300])
            torch.cuda.empty_cache()


if __name__ == "__main__":
    name, what = sys.argv[1:]
    with torch.no_grad():
        first(name) if what == "first" else table(name)
