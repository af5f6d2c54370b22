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
    rest = (cos, sin, None, None, None, None, "half_split", None, "bhsd", "once")
    torch.library.opcheck(_ops.rotate, (q, k, *rest, False))
    torch.library.opcheck(_ops.rotate, (q.transpose(1, 2), k.transpose(1, 2), *rest[:8], "bshd", "once", True))
    torch.library.opcheck(_ops.rotate_one, (q, *rest, False))
    q, k = q.detach().clone(), k.detach().clone()
    torch.library.opcheck(_ops.rotate_, (q, k, *rest))
    torch.library.opcheck(_ops.rotate_one_, (q, *rest))
    ids = torch.randint(0, 5, (2, 5), device=device)
    torch.library.opcheck(_ops.rotate, (q, k, cos[0], sin[0], ids, *rest[3:], False))
    packed, cu = torch.randn(5, 4, 64, device=device), torch.tensor([0, 2, 5], dtype=torch.int32, device=device)
    torch.library.opcheck(_ops.rotate_one, (packed, cos[0], sin[0], None, cu, None, None, "half_split", None, "thd", "once", False))


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


class Watching(torch.utils._python_dispatch.TorchDispatchMode):
    """Notes the names of the operators that it sees."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(func.name())
        return func(*args, **(kwargs or {}))


def test_a_mode_that_watches_plain_tensors_sees_the_operators(device):
    q, k, cos, sin = inputs(device, grad=False)
    expected = ropejit.apply_rotary_pos_emb(q, k, cos, sin)
    with Watching() as watching:
        ours = ropejit.apply_rotary_pos_emb(q, k, cos, sin)
        ropejit.apply(q.clone(), k.clone(), cos, sin, layout="bhsd", inplace=True)
    equal(ours, expected)
    assert {"ropejit::rotate", "ropejit::rotate_"} <= set(watching.seen)


def test_selective_checkpointing(device):
    from functools import partial

    from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

    def kept(ctx, op, *args, **kwargs):
        return CheckpointPolicy.MUST_SAVE if "ropejit" in op.name() else CheckpointPolicy.PREFER_RECOMPUTE

    q, k, cos, sin = inputs(device)

    def rotated(q, k):
        return sum(x.square().sum() for x in ropejit.apply_rotary_pos_emb(q * 2, k * 2, cos, sin))

    contexts = partial(create_selective_checkpoint_contexts, kept)
    ours = torch.autograd.grad(checkpoint(rotated, q, k, use_reentrant=False, context_fn=contexts), (q, k))
    equal(ours, torch.autograd.grad(rotated(q, k), (q, k)))


def test_a_tangent_is_never_lost(device):
    import torch.autograd.forward_ad as forward_ad

    q, k, cos, sin = inputs(device, grad=False)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(q, torch.ones_like(q))
        tangent = forward_ad.unpack_dual(ropejit.apply_rotary_pos_emb(dual, k, cos, sin)[0]).tangent
        equal([tangent], [ropejit.apply_rotary_pos_emb(torch.ones_like(q), k, cos, sin)[0]])
        with pytest.raises(NotImplementedError, match="forward-mode"):
            ropejit.apply(dual, k, cos, sin, layout="bhsd")
