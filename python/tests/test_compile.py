"""`torch.library` and `torch.compile`: no graph break, and the same bits as eager calls."""

import pytest
import ropejit
import torch
from eager import DTYPES, equal, qk, tables
from ropejit import _ops


def inputs(device, dtype=torch.float32, grad=True):
    return (*qk(device, dtype, 2, 5, 4, 2, 64, grad=grad), *tables(device, dtype, 2, 5, 64))


def test_opcheck(device):
    q, k, cos, sin = inputs(device)
    rest = (cos, sin, None, None, None, None, False, None, "bhsd", "once")
    torch.library.opcheck(_ops.rotate, (q, k, *rest, False))
    torch.library.opcheck(_ops.rotate, (q.transpose(1, 2), k.transpose(1, 2), *rest[:8], "bshd", "once", True))
    torch.library.opcheck(_ops.rotate_one, (q, *rest, False))
    q, k = q.detach().clone(), k.detach().clone()
    torch.library.opcheck(_ops.rotate_, (q, k, *rest))
    torch.library.opcheck(_ops.rotate_one_, (q, *rest))
    ids = torch.randint(0, 5, (2, 5), device=device)
    torch.library.opcheck(_ops.rotate, (q, k, cos[0], sin[0], ids, *rest[3:], False))
    packed, cu = torch.randn(5, 4, 64, device=device), torch.tensor([0, 2, 5], dtype=torch.int32, device=device)
    torch.library.opcheck(_ops.rotate_one, (packed, cos[0], sin[0], None, cu, None, None, False, None, "thd", "once", False))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_fullgraph(device, dtype, backend):
    q, k, cos, sin = inputs(device, dtype)
    compiled = torch.compile(ropejit.apply_rotary_pos_emb, fullgraph=True, backend=backend)
    ours, eager = compiled(q, k, cos, sin), ropejit.apply_rotary_pos_emb(q, k, cos, sin)
    equal(ours, eager)
    given = [torch.randn_like(x) for x in eager]
    equal(torch.autograd.grad(ours, (q, k), given), torch.autograd.grad(eager, (q, k), given))


def test_fullgraph_in_place(device):
    def rotated(q, k, cos, sin):
        q, k = q * 2, k * 2
        return ropejit.apply(q, k, cos, sin, layout="bhsd", inplace=True)

    compiled = torch.compile(rotated, fullgraph=True, backend="aot_eager")
    for grad in (False, True):
        q, k, cos, sin = inputs(device, grad=grad)
        ours, eager = compiled(q, k, cos, sin), rotated(q, k, cos, sin)
        equal(ours, eager)
        if grad:
            given = [torch.randn_like(x) for x in eager]
            equal(torch.autograd.grad(ours, (q, k), given), torch.autograd.grad(eager, (q, k), given))


def test_fullgraph_of_the_other_functions(device):
    q, k, cos, sin = inputs(device, grad=False)
    ids = torch.randint(0, 5, (2, 5), device=device)

    def both(q, k):
        flash = ropejit.apply_rotary_emb(q.transpose(1, 2), cos[0, :, :32], sin[0, :, :32], seqlen_offsets=0)
        return flash, *ropejit.fast_rope_embedding(q, k, cos[0], sin[0], ids)

    equal(torch.compile(both, fullgraph=True, backend="aot_eager")(q, k), both(q, k))


def test_what_is_not_covered_is_compiled_as_eager(device):
    q, k = (x.detach().double() for x in qk(device, torch.float32, 1, 3, 2, 1, 16))
    cos, sin = tables(device, torch.float64, 1, 3, 16)
    compiled = torch.compile(ropejit.apply_rotary_pos_emb, fullgraph=True, backend="aot_eager")
    equal(compiled(q, k, cos, sin), ropejit.apply_rotary_pos_emb(q, k, cos, sin))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_graph():
    q, k, cos, sin = inputs("cuda", torch.bfloat16, grad=False)
    expected = ropejit.apply_rotary_pos_emb(q, k, cos, sin)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = ropejit.apply_rotary_pos_emb(q, k, cos, sin)
    for x in out:
        x.zero_()
    graph.replay()
    torch.cuda.synchronize()
    equal(out, expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_runs_on_the_current_stream():
    q, k, cos, sin = inputs("cuda", torch.bfloat16, grad=False)
    expected = ropejit.apply_rotary_pos_emb(q, k, cos, sin)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(20_000_000)
        late = q * 1
        out = ropejit.apply_rotary_pos_emb(late, k, cos, sin)
    side.synchronize()
    equal(out, expected)
