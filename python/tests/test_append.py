"""`rope_append`: q as PyTorch's own operations give it, and every byte of the caches, of slots that are written and of others."""

import fused
import pytest
import ropejit
import torch
from ropejit import Norm, _append_ops
from test_compile import Watching
from test_norm import EPS, Plain, angles

bf16, f16, f32, e4m3 = torch.bfloat16, torch.float16, torch.float32, torch.float8_e4m3fn
BLOCKS, SIZE = 4, 8


def cache(device, dtype, heads, dim, order="nhd"):
    """`[blocks, block_size, heads, dim]` of numbers that are there already; `hnd`: heads before the places of a block."""
    shape = (BLOCKS, SIZE, heads, dim) if order == "nhd" else (BLOCKS, heads, SIZE, dim)
    full = torch.randn(shape).to(dtype).to(device)
    return full if order == "nhd" else full.transpose(1, 2)


def inputs(device, dtype=bf16, tokens=7, heads=4, kv_heads=2, dim=64, kept=None, order="nhd"):
    """The positional arguments."""

    def one(heads):
        return (torch.randn(tokens, heads, dim) * 2).to(dtype).to(device)

    slots = torch.randperm(BLOCKS * SIZE)[:tokens].to(device)
    slots[2:3] = -1
    caches = [cache(device, kept or dtype, kv_heads, dim, order) for _ in range(2)]
    return [one(heads), one(kv_heads), one(kv_heads), *angles(device, f32, tokens, dim // 2), *caches, slots]


def copies(given):
    """As if nothing had been written: the caches of the same strides."""
    return [x.clone(memory_format=torch.preserve_format) if isinstance(x, torch.Tensor) else x for x in given]


def check(given, expected_q, expected_k, expected_v, k_scale=None, v_scale=None, use="divide", **how):
    """The result, and whole caches."""
    q, k, v, *_, k_cache, v_cache, slots = given
    whole = [None if x is None else x.clone() for x in (k_cache, v_cache)]
    fused.store(whole[0], expected_k, slots, k_scale, use)
    if v is not None:
        fused.store(whole[1], expected_v, slots, v_scale, use)
    before = [x.clone() for x in (q, k)]
    if k_scale is not None:
        how |= {"k_scale": k_scale, "v_scale": v_scale, "scale_use": use}
    out = ropejit.rope_append(*given, **how)
    fused.same(out, expected_q, "q")
    fused.same(k_cache, whole[0], "k_cache")
    if v is not None:
        fused.same(v_cache, whole[1], "v_cache")
    fused.same(k, before[1])
    if not how.get("inplace"):
        fused.same(q, before[0])
    return out


def turned(given, rounding="once", **how):
    q, k, _, cos, sin = given[:5]
    return [fused.rotate(x, cos, sin, rounding, **how) for x in (q, k)]


@pytest.mark.parametrize("order", ["nhd", "hnd"])
@pytest.mark.parametrize("dtype", [f32, f16, bf16], ids=str)
def test_types_and_strides(device, dtype, order):
    given = inputs(device, dtype, order=order)
    check(given, *turned(given), given[2])
    assert given[5].stride(1) < given[5].stride(2) if order == "hnd" else given[5].is_contiguous()


@pytest.mark.parametrize("use", ["divide", "multiply"])
@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.parametrize("dtype", [f16, bf16], ids=str)
def test_fp8(device, dtype, per_head, use):
    """Large numbers saturate, and NaN stays one."""
    given = inputs(device, dtype, kept=e4m3)
    given[0][0, 0], given[1][0, 0, 0], given[2][1, 1, 3] = 3e4, float("nan"), -6e4
    n = given[1].shape[1] if per_head else 1
    k_scale, v_scale = (torch.rand(n, device=device) * 0.1 + 0.01 for _ in range(2))
    check(given, *turned(given), given[2], k_scale, v_scale, use)
    n = given[0].shape[1] if per_head else 1
    q_scale = torch.rand(n, device=device) * 0.1 + 0.01
    expected = fused.fp8(turned(given)[0], q_scale, use)
    how = {"q_scale": q_scale, "k_scale": k_scale, "v_scale": v_scale, "scale_use": use}
    fused.same(ropejit.rope_append(*given, **how, q_dtype=e4m3), expected)
    q_out = torch.empty_like(given[0], dtype=e4m3)
    assert ropejit.rope_append(*given, **how, q_out=q_out) is q_out
    fused.same(q_out, expected)


def test_every_number_of_two_bytes_as_fp8(device):
    """All 65,536 of bf16 through v, which is copied."""
    v = torch.arange(-32768, 32768).to(torch.int16).view(bf16).reshape(-1, 2, 64).to(device)
    tokens = v.shape[0]
    q = torch.randn(tokens, 1, 64, device=device).to(bf16)
    k = torch.randn(tokens, 2, 64, device=device).to(bf16)
    caches = [torch.zeros(tokens // 8, 8, 2, 64, device=device).to(e4m3) for _ in range(2)]
    slots = torch.arange(tokens, device=device)
    one = torch.ones(1, device=device)
    ropejit.rope_append(q, k, v, *angles(device, f32, tokens, 32), *caches, slots, k_scale=one, v_scale=one)
    fused.same(caches[1].reshape(v.shape), fused.fp8(v, one))


@pytest.mark.parametrize("flavour", ["weight_after", "one_plus_weight", "no_weight"])
def test_with_a_norm(device, flavour):
    for rounding in ("once", "per_op"):
        given = inputs(device, bf16, dim=128)
        q, k, v, cos, sin = given[:5]
        weights = [None if flavour == "no_weight" else torch.rand(128).to(bf16).to(device) for _ in range(2)]
        norm = Norm(*weights, eps=EPS, flavour=flavour, rsqrt="ieee")
        cos, sin = given[3:5] = cos.to(bf16), sin.to(bf16)
        expected = [fused.forward(x, w, cos, sin, EPS, rounding, flavour) for x, w in zip((q, k), weights, strict=True)]
        check(given, *expected, v, norm=norm, rounding=rounding)
        alone = ropejit.qk_norm_rope(
            q, k, *weights, cos, sin, eps=EPS, flavour=flavour, rsqrt="ieee", rounding=rounding, layout="thd"
        )
        assert all(map(torch.equal, alone, expected))


@pytest.mark.parametrize("style", ["interleaved", "deinterleave"])
@pytest.mark.parametrize("part", ["first", "last"])
def test_styles_and_parts(device, style, part):
    given = inputs(device, bf16, dim=96)
    given[3:5] = angles(device, f32, 7, 24)
    check(given, *turned(given, style=style, part=part), given[2], style=style, part=part, rotary_dim=48)


def mla(device, dtype=bf16, kept=None, tokens=7, heads=4):
    """q `[nope | rope]`, one k_pe and one latent row a token, and a cache of rows `[ckv | k_pe]`, twice as a view."""
    q = torch.randn(tokens, heads, 192).to(dtype).to(device)
    k_pe, ckv = (torch.randn(tokens, 1, n).to(dtype).to(device) for n in (64, 512))
    base = torch.randn(BLOCKS, SIZE, 576).to(kept or dtype).to(device)
    slots = torch.randperm(BLOCKS * SIZE)[:tokens].to(device)
    slots[1:2] = -1
    return [q, k_pe, ckv, *angles(device, f32, tokens, 32), base[..., None, 512:], base[..., None, :512], slots], base


@pytest.mark.parametrize("kept", [None, e4m3], ids=str)
@pytest.mark.parametrize("inplace", [False, True])
def test_mla(device, kept, inplace):
    given, base = mla(device, kept=kept)
    q, k, v, cos, sin = given[:5]
    expected = [fused.rotate(q, cos, sin, "once", "deinterleave", "last"), fused.rotate(k, cos, sin, "once", "deinterleave")]
    scales = () if kept is None else tuple(torch.tensor([s], device=device) for s in (0.03, 0.02))
    how = {"style": "deinterleave", "rotary_dim": 64, "part": "last", "inplace": inplace}
    whole = base.clone()
    fused.store(whole[..., None, 512:], expected[1], given[7], *scales[:1])
    fused.store(whole[..., None, :512], v, given[7], *scales[1:])
    check(given, *expected, v, *scales, **how)
    fused.same(base, whole, "the whole base")


def test_without_v(device):
    given = inputs(device)
    given[2] = given[6] = None
    check(given, *turned(given), None)


def test_q_where_it_is_and_elsewhere(device):
    given = inputs(device)
    expected = turned(given)
    q_out = torch.empty(7, 9, 64, device=device, dtype=bf16)[:, 2:6]
    assert check(copies(given), *expected, given[2], q_out=q_out) is q_out
    given = copies(given)
    version = given[0]._version, given[5]._version
    assert check(given, *expected, given[2], inplace=True) is given[0]
    assert given[0]._version > version[0] and given[5]._version > version[1]


def test_batches_and_positions(device):
    q, k, v, cos, sin, k_cache, v_cache, slots = inputs(device, tokens=6)
    ids = torch.randint(0, 6, (6,), device=device)
    expected = [fused.rotate(x, cos[ids], sin[ids], "once") for x in (q, k)]
    check([q, k, v, cos, sin, k_cache, v_cache, slots], *expected, v, position_ids=ids)
    of_two = [x.unflatten(0, (2, 3)) for x in (q, k, v)]
    for given in (slots, slots.reshape(2, 3)):
        for x in (k_cache, v_cache):
            x.zero_()
        out = ropejit.rope_append(
            *of_two, cos, sin, k_cache, v_cache, given, layout="bshd", position_ids=ids.reshape(2, 3)
        )
        fused.same(out.flatten(0, 1), expected[0])
        whole = torch.zeros_like(k_cache)
        fused.store(whole, expected[1], slots)
        fused.same(k_cache, whole)
    cu = torch.tensor([0, 2, 6], device=device, dtype=torch.int32)
    rows = torch.tensor([0, 1, 0, 1, 2, 3], device=device)
    expected = [fused.rotate(x, cos[rows], sin[rows], "once") for x in (q, k)]
    check([q, k, v, cos, sin, k_cache, v_cache, slots], *expected, v, cu_seqlens=cu)


def pages(device):
    """Two requests: of blocks 3 and 0, and of block 2; seven tokens, one of which is stored nowhere."""
    return tuple(
        torch.tensor(x, dtype=torch.int32, device=device)
        for x in ([3, 0, 2], [0, 2, 3], [0, 0, 1, 0, 1, 1, 0], [0, 9, 4, -1, 7, 0, 15])
    )


def test_page_tables(device):
    given = inputs(device)
    given[7] = torch.tensor([24, 1, 20, -1, 23, 16, 7], device=device)
    caches = [x.clone() for x in given[5:7]]
    check(given, *turned(given), given[2])
    ropejit.rope_append(*given[:5], *caches, None, pages=pages(device))
    assert all(torch.equal(x, y) for x, y in zip(caches, given[5:7], strict=True))


def test_a_slot_outside_is_stored_nowhere_and_told(device):
    given = inputs(device)
    given[7][3], given[7][5] = BLOCKS * SIZE, -2
    before = given[7].clone()
    given[7][given[7] == BLOCKS * SIZE] = -1
    given[7][given[7] == -2] = -1
    whole = [x.clone() for x in given[5:7]]
    expected = turned(given)
    fused.store(whole[0], expected[1], given[7])
    given[7] = before
    fused.same(ropejit.rope_append(*given), expected[0])
    fused.same(given[5], whole[0])
    if device == "cuda":
        torch.cuda.synchronize()
    with pytest.raises(IndexError, match="^slot_mapping: token [35] has a slot outside of the cache"):
        ropejit.check()
    ropejit.check()


def test_without_tokens(device):
    given = inputs(device, tokens=0)
    before = given[5].clone()
    assert ropejit.rope_append(*given).shape == given[0].shape
    assert torch.equal(given[5], before)


def test_it_is_for_inference(device):
    given = inputs(device, f32)
    for at, name in ((0, "q"), (2, "v"), (5, "k_cache")):
        changed = copies(given)
        changed[at].requires_grad_()
        with pytest.raises(ValueError, match=f"^{name}: requires a gradient, and rope_append is for inference"):
            ropejit.rope_append(*changed)
        with torch.no_grad():
            assert torch.equal(ropejit.rope_append(*changed), ropejit.rope_append(*copies(given)))
    weight = torch.nn.Parameter(torch.ones(64, device=device))
    with pytest.raises(ValueError, match="^q_weight: requires a gradient"):
        ropejit.rope_append(*given, norm=Norm(weight, weight, rsqrt="ieee"))
    with torch.inference_mode():
        ropejit.rope_append(*given, norm=Norm(weight, weight, rsqrt="ieee"))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_fullgraph(device, backend):
    weights = [torch.rand(64, device=device).to(bf16) for _ in range(2)]
    scale = torch.tensor([0.05], device=device)
    latent, _ = mla(device)
    mla_how = {"style": "deinterleave", "rotary_dim": 64, "part": "last"}
    fp8 = {"k_scale": scale, "v_scale": scale, "q_scale": scale, "q_dtype": e4m3}
    for make, how in (
        (lambda: inputs(device), {"norm": Norm(*weights, eps=EPS, rsqrt="ieee")}),
        (lambda: inputs(device), {"inplace": True}),
        (lambda: inputs(device, kept=e4m3), fp8),
        (lambda: copies_of_base(latent), mla_how),
    ):
        given = make()
        torch._dynamo.reset()

        def step(*given, how=how):
            return ropejit.rope_append(*given, **how) * 1 if "q_dtype" not in how else ropejit.rope_append(*given, **how)

        ours, theirs = given, copies_of_base(given)
        results = torch.compile(step, fullgraph=True, backend=backend)(*ours), step(*theirs)
        fused.same(*results)
        for x, y in zip(ours, theirs, strict=True):
            if isinstance(x, torch.Tensor):
                fused.same(x, y) if x.is_floating_point() else None


def copies_of_base(given):
    """Copies; caches that are views of one base stay so."""
    if given[5]._base is None or given[6] is None or given[5]._base is not given[6]._base:
        return copies(given)
    base = given[5]._base.clone()
    views = [base.as_strided(x.shape, x.stride(), x.storage_offset()) for x in given[5:7]]
    return [*copies(given[:5]), *views, given[7].clone()]


def test_opcheck(device):
    q, k, v, cos, sin, k_cache, v_cache, slots = inputs(device, f32)
    form = (None, "no_weight", "torch", None, False, "half_split", None, "thd", "once", "divide", "first")
    rest = (cos, sin, slots, *(None,) * 11)
    torch.library.opcheck(_append_ops.append_op, (torch.empty_like(q), k_cache, v_cache, q, k, v, *rest, *form))
    torch.library.opcheck(_append_ops.append_op, (q.clone(), k_cache, None, None, k, None, *rest, *form))


def test_other_tensors(device):
    given = inputs(device, f32)
    theirs = copies(given)
    expected = ropejit.rope_append(*theirs)
    ours = copies(given)
    out = ropejit.rope_append(ours[0].as_subclass(Plain), *ours[1:])
    assert torch.equal(out, expected) and isinstance(out, Plain) and torch.equal(ours[5], theirs[5])
    ours = copies(given)
    with Watching() as watching:
        assert torch.equal(ropejit.rope_append(*ours), expected)
    assert "ropejit::rope_append" in watching.seen and torch.equal(ours[5], theirs[5])
    for at, name in ((0, "q"), (1, "k"), (2, "v"), (5, "k_cache")):
        negated = copies(given)
        negated[at] = torch._neg_view(-negated[at])
        with pytest.raises(ValueError, match=f"^{name}: is a negated view"):
            ropejit.rope_append(*negated)
    out = ropejit.rope_append(*(x.to("meta") for x in given))
    assert out.is_meta and out.shape == given[0].shape
    with pytest.raises(NotImplementedError, match="rope_append does not work under the transforms of torch.func"):
        torch.func.vmap(lambda q: ropejit.rope_append(q[None], *given[1:]))(given[0])


def test_a_cache_without_slots(device):
    """Every slot is outside; -1 is not."""
    given = inputs(device)
    given[5] = given[6] = None
    given[5:7] = [torch.empty(0, SIZE, 2, 64, device=device, dtype=bf16) for _ in range(2)]
    given[7].fill_(-1)
    fused.same(ropejit.rope_append(*given), turned(given)[0])
    ropejit.check()


def test_caches_of_one_tensor_under_a_compiler():
    """Right, or refused by name: PyTorch before 2.14 loses what is written to the second view."""
    q, k, v = (torch.randn(9, heads, 64).to(torch.bfloat16) for heads in (4, 2, 2))
    angles = torch.rand(9, 32) * 6
    both = torch.randn(2, 3, 4, 2, 64).to(torch.bfloat16)
    expected, slots = both.clone(), torch.randperm(12)[:9]
    ropejit.rope_append(q, k, v, angles.cos(), angles.sin(), *expected, slots)

    def step(k_cache, v_cache):
        return ropejit.rope_append(q, k, v, angles.cos(), angles.sin(), k_cache, v_cache, slots)

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    if tuple(map(int, torch.__version__.split("+")[0].split(".")[:2])) < (2, 14):
        with pytest.raises(Exception, match="view"):
            compiled(*both)
    else:
        compiled(*both)
        assert torch.equal(both, expected)
