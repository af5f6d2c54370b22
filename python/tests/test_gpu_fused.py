"""RoPE with its neighbours on a GPU: the bits of transformers' own modules in eager PyTorch, graphs, compiled calls, streams."""

import functools

import fused
import pytest
import ropejit
import torch
from eager import llama
from ropejit import Norm

pytestmark = pytest.mark.gpu

DEVICE = "cuda"
EPS = 1e-6
bf16, f16, f32, e4m3 = torch.bfloat16, torch.float16, torch.float32, torch.float8_e4m3fn
DTYPES = [f32, f16, bf16]
WIDTHS = [64, 80, 96, 128, 192, 256]
HEADS, KV_HEADS = 8, 2
#: 8 to 65,536 rows of q, 2 to 16,384 of k.
TOKENS = [1, 3, 129, 8192]


@functools.cache
def norm_class(name):
    from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
    from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

    return {"weight_after": Qwen3RMSNorm, "one_plus_weight": Gemma3RMSNorm}[name]


def random(*shape, dtype=bf16):
    return torch.randn(shape, device=DEVICE).to(dtype)


def tables(tokens, width, dtype):
    """cos and sin, `[1, tokens, width]`, one copy after the other, as transformers makes them."""
    angles = torch.rand(tokens, width // 2, device=DEVICE) * 6
    angles = torch.cat((angles, angles), -1)[None]
    return angles.cos().to(dtype), angles.sin().to(dtype)


def norm(flavour, dim, dtype):
    module = norm_class(flavour)(dim, eps=EPS).to(DEVICE).to(dtype)
    module.weight.data = (torch.rand(dim, device=DEVICE) + 0.5).to(dtype)
    return module


def rounding(dtype):
    return "once" if dtype == f32 else "per_op"


def ours(q, k, q_weight, k_weight, cos, sin, flavour="weight_after", **how):
    """`[batch, tokens, heads, head_dim]`; eager's tables."""
    how = {"eps": EPS, "flavour": flavour, "rounding": rounding(q.dtype)} | how
    return ropejit.qk_norm_rope(q, k, q_weight, k_weight, cos[0], sin[0], **how)


def eager(q, k, q_norm, k_norm, cos, sin):
    """As Qwen3's and Gemma 3's attention begins."""
    q, k = llama(q_norm(q).transpose(1, 2), k_norm(k).transpose(1, 2), cos, sin)
    return q.transpose(1, 2), k.transpose(1, 2)


def adds_alike(rows, dim):
    """Whether PyTorch adds up so many rows in the order `torch`: with fewer than 16 it takes more lanes for a row where it can."""
    return rows >= 16 or dim <= 64 or 128 <= dim < 256


def equal(ours, theirs, what):
    """Every number; a zero's sign is not compared, since eager adds zeros to gradients."""
    for x, y in zip(ours, theirs, strict=True):
        assert x.dtype == y.dtype and x.shape == y.shape, what
        differ = (x != y).sum().item()
        assert differ == 0, f"{what}: {differ} of {x.numel()} differ, by {(x.float() - y.float()).abs().max().item()} at most"


@pytest.mark.parametrize("dim", WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("flavour", ["weight_after", "one_plus_weight"])
def test_the_bits_of_eager_transformers(flavour, dtype, dim):
    """Forward and dx as eager's autograd has them; dw in the order that is stated."""
    q_norm, k_norm = norm(flavour, dim, dtype), norm(flavour, dim, dtype)
    weights = q_norm.weight, k_norm.weight
    for tokens in TOKENS:
        q, k = (random(1, tokens, heads, dim, dtype=dtype).requires_grad_() for heads in (HEADS, KV_HEADS))
        cos, sin = tables(tokens, dim, dtype)
        out, expected = ours(q, k, *weights, cos, sin, flavour), eager(q, k, q_norm, k_norm, cos, sin)
        alike = [i for i, heads in enumerate((HEADS, KV_HEADS)) if adds_alike(tokens * heads, dim)]
        equal([out[i] for i in alike], [expected[i] for i in alike], f"forward of {tokens} tokens")
        given = [torch.randn_like(x) for x in expected]
        grads = torch.autograd.grad(out, (q, k, *weights), given)
        theirs = torch.autograd.grad(expected, (q, k), given)
        equal([grads[i] for i in alike], [theirs[i] for i in alike], f"dx of {tokens} tokens")
        half = [t[0, :, : dim // 2] for t in (cos, sin)]
        with torch.no_grad():
            for x, w, g, dx, dw in zip((q, k), weights, given, grads[:2], grads[2:], strict=True):
                stated = fused.backward(g, x, w, *half, EPS, rounding(dtype), flavour, rsqrt="approx")
                equal([dx, dw], stated, f"dx and dw of {tokens} tokens, as stated")


@pytest.mark.parametrize("dim", WIDTHS)
def test_one_row(dim):
    for dtype in DTYPES:
        module = norm("weight_after", dim, dtype)
        q, (cos, sin) = random(1, 1, 1, dim, dtype=dtype), tables(1, dim, dtype)
        with torch.no_grad():
            out, none = ours(q, None, module.weight, None, cos, sin)
            expected = eager(q, q, module, module, cos, sin)[0]
        assert none is None
        if not adds_alike(1, dim):
            half = [t[0, :, : dim // 2] for t in (cos, sin)]
            expected = fused.forward(q, module.weight, *half, EPS, rounding(dtype), rsqrt="approx")
        equal([out], [expected], f"one row of {dtype}")


@pytest.mark.parametrize("order", ["torch", "tree"])
@pytest.mark.parametrize("flavour", ["weight_after", "one_plus_weight", "weight_f32", "no_weight"])
def test_what_is_stated_for_every_flavour_and_order(flavour, order):
    """Both roots and contracts, after the rotation too."""
    q, k = random(2, 37, HEADS, 80).requires_grad_(), random(2, 37, KV_HEADS, 80).requires_grad_()
    weights = [None, None] if flavour == "no_weight" else [random(80).requires_grad_() for _ in range(2)]
    cos, sin = (t[0, :, :40].contiguous() for t in tables(37, 80, bf16))
    cases = [("approx", "once", False), ("approx", "per_op", False), ("ieee", "per_op", False)]
    cases += [("approx", "per_op", True)] if flavour in ("weight_after", "no_weight") else []
    for rsqrt, contract, after_rope in cases:
        how = {"flavour": flavour, "order": order, "after_rope": after_rope, "rsqrt": rsqrt}
        out = ropejit.qk_norm_rope(q, k, *weights, cos, sin, eps=EPS, rounding=contract, **how)
        given = [torch.randn_like(x) for x in out]
        grads = torch.autograd.grad(out, [x for x in (q, k, *weights) if x is not None], given)
        with torch.no_grad():
            for i, (x, w) in enumerate(zip((q, k), weights, strict=True)):
                fused.same(out[i].detach(), fused.forward(x, w, cos, sin, EPS, contract, **how), f"{how} {contract}")
                dx, dw = fused.backward(given[i], x, w, cos, sin, EPS, contract, **how)
                equal([grads[i]], [dx], f"dx, {how} {contract}")
                if w is not None:
                    equal([grads[2 + i]], [dw], f"dw, {how} {contract}")


def test_in_place_packed_and_heads_first():
    qkv = random(2, 65, HEADS + 2 * KV_HEADS, 128)
    q, k = qkv[:, :, :HEADS], qkv[:, :, HEADS : HEADS + KV_HEADS]
    q_norm, k_norm = norm("weight_after", 128, bf16), norm("weight_after", 128, bf16)
    cos, sin = tables(65, 128, bf16)
    with torch.no_grad():
        expected, v = eager(q, k, q_norm, k_norm, cos, sin), qkv[:, :, HEADS + KV_HEADS :].clone()
        weights = q_norm.weight, k_norm.weight
        heads_first = ours(*(x.transpose(1, 2) for x in (q, k)), *weights, cos, sin, layout="bhsd")
        equal([x.transpose(1, 2) for x in heads_first], expected, "heads first")
        assert ours(q, k, *weights, cos, sin, inplace=True)[0] is q
    equal((q, k), expected, "in place")
    assert torch.equal(qkv[:, :, HEADS + KV_HEADS :], v)


BLOCKS, SIZE = 40, 16


def append_inputs(tokens, dim, kept, order="nhd", dtype=bf16):
    """The positional arguments of `rope_append`, with eager's tables of full width."""
    shape = (2, BLOCKS, SIZE, KV_HEADS, dim) if order == "nhd" else (2, BLOCKS, KV_HEADS, SIZE, dim)
    caches = random(*shape).to(kept)
    caches = caches if order == "nhd" else caches.transpose(2, 3)
    slots = torch.randperm(BLOCKS * SIZE, device=DEVICE)[:tokens]
    slots[1::7] = -1
    q, k, v = (random(tokens, heads, dim, dtype=dtype) for heads in (HEADS, KV_HEADS, KV_HEADS))
    cos, sin = (t[0] for t in tables(tokens, dim, dtype))
    return [q, k, v, cos, sin, *caches, slots]


@pytest.mark.parametrize("order", ["nhd", "hnd"])
@pytest.mark.parametrize("kept", [bf16, e4m3], ids=str)
@pytest.mark.parametrize("tokens", [1, 5, 500])
def test_append_against_eager(tokens, kept, order):
    """Norm, rotation, division, conversion and index write by eager; the whole cache is compared."""
    given = append_inputs(tokens, 128, kept, order)
    q, k, v, cos, sin, k_cache, v_cache, slots = given
    q_norm, k_norm = norm("weight_after", 128, bf16), norm("weight_after", 128, bf16)
    how = {"norm": Norm(q_norm.weight, k_norm.weight, eps=EPS), "rounding": "per_op"}
    scales = [torch.rand(1, device=DEVICE) * 0.1 + 0.01 for _ in range(3)] if kept == e4m3 else [None] * 3
    with torch.no_grad():
        turned = [x[0] for x in eager(q[None], k[None], q_norm, k_norm, cos[None], sin[None])]
        whole = [k_cache.clone(), v_cache.clone()]
        for cache, x, scale in zip(whole, (turned[1], v), scales[1:], strict=True):
            fused.store(cache, x, slots, scale)
        if kept == e4m3:
            how |= {"q_scale": scales[0], "k_scale": scales[1], "v_scale": scales[2], "q_dtype": e4m3}
        out = ropejit.rope_append(*given, **how)
    fused.same(out, fused.fp8(turned[0], scales[0]) if kept == e4m3 else turned[0], "q")
    fused.same(k_cache, whole[0], "k_cache")
    fused.same(v_cache, whole[1], "v_cache")
    ropejit.check()


@pytest.mark.parametrize("dtype", [f16, bf16], ids=str)
@pytest.mark.parametrize("use", ["divide", "multiply"])
def test_every_number_of_two_bytes_as_fp8(dtype, use):
    v = torch.arange(-32768, 32768, device=DEVICE).to(torch.int16).view(dtype).reshape(-1, KV_HEADS, 64)
    tokens = v.shape[0]
    q, k = random(tokens, 1, 64, dtype=dtype), random(tokens, KV_HEADS, 64, dtype=dtype)
    cos, sin = (t[0] for t in tables(tokens, 64, dtype))
    for scale in (1.0, 0.0371, -3.3, 2.0**-70):
        caches = torch.zeros(2, tokens // 8, 8, KV_HEADS, 64, device=DEVICE).to(e4m3)
        by = torch.tensor([scale], device=DEVICE)
        slots = torch.arange(tokens, device=DEVICE)
        ropejit.rope_append(q, k, v, cos, sin, *caches, slots, k_scale=by, v_scale=by, scale_use=use)
        fused.same(caches[1].reshape(v.shape), fused.fp8(v, by, use), f"scale {scale}")


@pytest.mark.parametrize("kept", [bf16, e4m3], ids=str)
@pytest.mark.parametrize("tokens", [1, 300])
def test_mla_against_deepseek_v3(tokens, kept):
    """One base of rows `[ckv | k_pe]`, which both caches are views of."""
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import apply_rotary_pos_emb_interleave

    q, k_pe, ckv = random(tokens, 16, 192), random(tokens, 1, 64), random(tokens, 1, 512)
    cos, sin = tables(tokens, 64, bf16)
    base = random(BLOCKS, SIZE, 576).to(kept)
    slots = torch.randperm(BLOCKS * SIZE, device=DEVICE)[:tokens]
    slots[2::5] = -1
    q_pe, k_embed = apply_rotary_pos_emb_interleave(
        q[None, ..., 128:].transpose(1, 2), k_pe[None].transpose(1, 2), cos, sin
    )
    expected = torch.cat((q[..., :128], q_pe[0].transpose(0, 1)), -1)
    scales = [torch.tensor([x], device=DEVICE) for x in (0.03, 0.02)] if kept == e4m3 else [None, None]
    whole = base.clone()
    fused.store(whole[..., None, 512:], k_embed[0].transpose(0, 1), slots, scales[0])
    fused.store(whole[..., None, :512], ckv, slots, scales[1])
    out = ropejit.rope_append(
        q, k_pe, ckv, cos[0], sin[0], base[..., None, 512:], base[..., None, :512], slots, k_scale=scales[0],
        v_scale=scales[1], style="deinterleave", part="last", rotary_dim=64, rounding="per_op",
    )  # fmt: skip
    fused.same(out, expected, "q")
    fused.same(base, whole, "the whole base")


def test_page_tables():
    """Decoding: a token of each of three requests."""
    given = append_inputs(3, 128, bf16)
    kv_indices = torch.tensor([7, 2, 39, 11, 5], dtype=torch.int32, device=DEVICE)
    kv_indptr = torch.tensor([0, 2, 3, 5], dtype=torch.int32, device=DEVICE)
    batch = torch.tensor([0, 1, 2], dtype=torch.int32, device=DEVICE)
    positions = torch.tensor([SIZE + 3, 0, 9], dtype=torch.int32, device=DEVICE)
    given[7] = torch.tensor([2 * SIZE + 3, 39 * SIZE, 11 * SIZE + 9], device=DEVICE)
    other = [x.clone() for x in given[5:7]]
    expected = ropejit.rope_append(*given)
    out = ropejit.rope_append(*given[:5], *other, None, pages=(kv_indices, kv_indptr, batch, positions))
    assert torch.equal(out, expected) and torch.equal(other[0], given[5]) and torch.equal(other[1], given[6])
    given[7][1] = BLOCKS * SIZE
    ropejit.rope_append(*given)
    torch.cuda.synchronize()
    with pytest.raises(IndexError, match="^slot_mapping: token 1 has a slot outside of the cache"):
        ropejit.check()


def captured(call):
    """A graph of a call, and what it returned."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = call()
    return graph, out


@pytest.mark.parametrize("inplace", [False, True])
def test_a_graph_of_the_norm_follows_its_inputs(inplace):
    q, k = random(1, 33, HEADS, 128), random(1, 33, KV_HEADS, 128)
    weights, (cos, sin) = [random(128), random(128)], tables(33, 128, bf16)
    graph, out = captured(lambda: ours(q, k, *weights, cos, sin, inplace=inplace))
    for _ in range(3):
        for x in (q, k, *weights):
            x.copy_(torch.randn_like(x))
        expected = ours(q.clone(), k.clone(), *weights, cos, sin)
        graph.replay()
        torch.cuda.synchronize()
        assert all(map(torch.equal, out, expected))


def test_a_graph_of_a_training_step():
    q, k = (random(1, 130, heads, 128).requires_grad_() for heads in (HEADS, KV_HEADS))
    weights, (cos, sin) = [random(128).requires_grad_() for _ in range(2)], tables(130, 128, bf16)
    given = [torch.randn_like(q), torch.randn_like(k)]

    def step():
        return torch.autograd.grad(ours(q, k, *weights, cos, sin), (q, k, *weights), given)

    graph, grads = captured(step)
    for _ in range(3):
        with torch.no_grad():
            for x in (q, k, *weights, *given):
                x.copy_(torch.randn_like(x))
        graph.replay()
        torch.cuda.synchronize()
        assert all(map(torch.equal, grads, step()))


def test_a_graph_of_the_append_follows_its_inputs():
    given = append_inputs(5, 128, e4m3)
    q, k, v, _, _, k_cache, v_cache, slots = given
    weights, scale = [random(128), random(128)], torch.tensor([0.05], device=DEVICE)
    how = {"norm": Norm(*weights), "k_scale": scale, "v_scale": scale, "q_scale": scale, "q_dtype": e4m3}
    graph, out = captured(lambda: ropejit.rope_append(*given, **how))
    for _ in range(3):
        for x in (q, k, v, *weights):
            x.copy_(torch.randn_like(x))
        scale.copy_(torch.rand(1) + 0.01)
        slots.copy_(torch.randperm(BLOCKS * SIZE)[: slots.numel()])
        k_cache.view(torch.uint8).zero_()
        v_cache.view(torch.uint8).zero_()
        other = [x.clone() for x in (k_cache, v_cache)]
        expected = ropejit.rope_append(*given[:5], *other, slots, **how)
        graph.replay()
        torch.cuda.synchronize()
        fused.same(out, expected, "q")
        fused.same(k_cache, other[0], "k_cache")
        fused.same(v_cache, other[1], "v_cache")


@pytest.mark.parametrize("mode", [None, "reduce-overhead"])
def test_compiled(mode):
    q, k = (random(1, 65, heads, 128).requires_grad_() for heads in (HEADS, KV_HEADS))
    weights, (cos, sin) = [random(128).requires_grad_() for _ in range(2)], tables(65, 128, bf16)
    given = [torch.randn_like(q), torch.randn_like(k)]

    def step(q, k, *rest):
        return ours(q * 2, k * 2, *rest)

    expected = step(q, k, *weights, cos, sin)
    gradients = torch.autograd.grad(expected, (q, k, *weights), given)
    compiled = torch.compile(step, fullgraph=True, mode=mode)
    for _ in range(3):  # warm-up, capture, replay
        torch.compiler.cudagraph_mark_step_begin()
        out = compiled(q, k, *weights, cos, sin)
        copies = [x.detach().clone() for x in out]
        grads = [x.clone() for x in torch.autograd.grad(out, (q, k, *weights), given)]
        assert all(map(torch.equal, copies, expected)) and all(map(torch.equal, grads, gradients))


def test_compiled_append():
    scale = torch.tensor([0.05], device=DEVICE)
    for kept, how in ((bf16, {}), (e4m3, {"k_scale": scale, "v_scale": scale})):
        given = append_inputs(9, 128, kept)
        given[5:7] = [x.clone() for x in given[5:7]]  # apart: see test_append.py
        other = [x.clone() for x in given[5:7]]

        def step(*given, how=how):
            return ropejit.rope_append(*given, **how)

        torch._dynamo.reset()
        expected = step(*given[:5], *other, given[7])
        out = torch.compile(step, fullgraph=True)(*given)
        assert torch.equal(out, expected)
        for x, y in zip(given[5:7], other, strict=True):
            fused.same(x, y, "cache")


def test_nothing_waits_for_the_device_and_memory_is_used_again():
    """Roots, workspace and copies go back to the allocator while their kernels may still wait for their turn."""
    q, k = (random(1, 700, heads, 128).requires_grad_() for heads in (HEADS, KV_HEADS))
    weights, (cos, sin) = [random(128).requires_grad_() for _ in range(2)], tables(700, 128, bf16)
    given = [torch.randn_like(q), torch.randn_like(k)]

    def step():
        return torch.autograd.grad(ours(q * 1, k * 1, *weights, cos, sin), (q, k, *weights), [x * 1 for x in given])

    expected = step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(10):
            torch.cuda._sleep(1_000_000)
            grads = step()
            over = [torch.full((1 << n,), float("nan"), device=DEVICE) for n in range(8, 20)]
            copies = [x * 1 for x in grads]
            del grads, over
            torch.cuda.set_sync_debug_mode("default")
            assert all(map(torch.equal, copies, expected))
            torch.cuda.set_sync_debug_mode("error")
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_runs_on_the_current_stream():
    given = append_inputs(64, 128, bf16)
    expected = ropejit.rope_append(*given)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(20_000_000)
        out = ropejit.rope_append(given[0] * 1, *given[1:])
        assert not side.query(), "the call waited for its stream"
    side.synchronize()
    assert torch.equal(out, expected)
    with pytest.raises(ValueError, match="^k_cache: is on cpu, q on cuda:0"):
        ropejit.rope_append(*given[:5], given[5].cpu(), given[6], given[7])
