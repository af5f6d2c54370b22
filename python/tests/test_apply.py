"""`ropejit.apply` and the drop-ins of Unsloth and flash-attn: forms of positions and layouts, autograd, errors."""

import gc

import numpy as np
import pytest
import ropejit
import torch
from eager import DTYPES, equal, llama, qk, tables


def reference(x, cos, sin, interleaved=False):
    """Rounded once: x is [..., tokens, heads, head_dim], cos and sin [..., tokens, rotary_dim / 2]."""
    half = cos.shape[-1]
    rotary, rest = x[..., : 2 * half].float(), x[..., 2 * half :]
    c, s = cos.float().unsqueeze(-2), sin.float().unsqueeze(-2)
    a, b = (rotary[..., ::2], rotary[..., 1::2]) if interleaved else (rotary[..., :half], rotary[..., half:])
    turned = (a * c - b * s, b * c + a * s)
    out = torch.stack(turned, -1).flatten(-2) if interleaved else torch.cat(turned, -1)
    return torch.cat((out.to(x.dtype), rest), -1)


def half_tables(device, dtype, rows, rotary_dim):
    cos, sin = tables(device, dtype, 1, rows, rotary_dim)
    return cos[0, :, : rotary_dim // 2].contiguous(), sin[0, :, : rotary_dim // 2].contiguous()


def bshd(device, dtype, batch=2, tokens=5, heads=4, kv_heads=2, head_dim=64):
    return (torch.randn(batch, tokens, h, head_dim).to(dtype).to(device) for h in (heads, kv_heads))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("table", ["same", "f32"])
@pytest.mark.parametrize("inplace", [False, True])
def test_forms(device, dtype, interleaved, table, inplace):
    q, k = bshd(device, dtype)
    cos, sin = half_tables(device, dtype if table == "same" else torch.float32, 5, 64)
    expected = [reference(x, cos, sin, interleaved) for x in (q, k)]
    before = [x.clone() for x in (q, k)]
    out = ropejit.apply(q, k, cos, sin, interleaved=interleaved, inplace=inplace)
    equal(out, expected)
    if inplace:
        assert out[0] is q and out[1] is k
    else:
        equal((q, k), before)


@pytest.mark.parametrize("ids_dtype", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("shape", ["each", "shared", "flat", "strided"])
def test_position_ids(device, ids_dtype, shape):
    q, k = bshd(device, torch.bfloat16)
    cos, sin = half_tables(device, torch.bfloat16, 40, 64)
    ids = torch.randint(0, 40, (2 if shape in ("each", "strided") else 1, 5), device=device, dtype=ids_dtype)
    if shape == "strided":
        ids = ids.repeat_interleave(2, 1)[:, ::2]
    rows = ids.expand(2, 5).long()
    out = ropejit.apply(q, k, cos, sin, position_ids=ids[0] if shape == "flat" else ids)
    equal(out, [reference(x, cos[rows], sin[rows]) for x in (q, k)])


def test_a_position_outside_is_nan_and_told(device):
    q, k = bshd(device, torch.float32)
    cos, sin = half_tables(device, torch.float32, 8, 64)
    ids = torch.tensor([[0, 1, 2, 3, 8], [0, 1, 2, 3, 4]], device=device)
    out, _ = ropejit.apply(q, k, cos, sin, position_ids=ids)
    assert out[0, 4].isnan().all() and not out[1].isnan().any() and not out[0, :4].isnan().any()
    if device == "cuda":
        torch.cuda.synchronize()
    with pytest.raises(IndexError, match="position_ids"):
        ropejit.check()
    ropejit.check()


def test_rows_of_their_own(device):
    q, k = bshd(device, torch.float16)
    cos, sin = tables(device, torch.float16, 2, 5, 64)
    equal(ropejit.apply(q, k, cos, sin), [reference(x, cos[..., :32], sin[..., :32]) for x in (q, k)])


def test_packed(device):
    starts = [0, 3, 3, 10]
    cu = torch.tensor(starts, dtype=torch.int32, device=device)
    q, k = (torch.randn(10, h, 64, device=device) for h in (4, 2))
    cos, sin = half_tables(device, torch.float32, 16, 64)
    rows = torch.cat([torch.arange(b - a) for a, b in zip(starts, starts[1:], strict=False)]).to(device)
    expected = [reference(x, cos[rows], sin[rows]) for x in (q, k)]
    equal(ropejit.apply(q, k, cos, sin, cu_seqlens=cu, layout="thd"), expected)
    equal([ropejit.apply_rotary_emb(q, cos, sin, cu_seqlens=cu, max_seqlen=7)], expected[:1])
    moved = rows + 2
    equal(
        [ropejit.apply_rotary_emb(q, cos, sin, seqlen_offsets=2, cu_seqlens=cu)],
        [reference(q, cos[moved], sin[moved])],
    )
    offsets = torch.tensor([4, 0, 1], device=device)
    moved = rows + torch.tensor([4] * 3 + [1] * 7, device=device)
    equal(
        [ropejit.apply_rotary_emb(q, cos, sin, seqlen_offsets=offsets, cu_seqlens=cu)],
        [reference(q, cos[moved], sin[moved])],
    )


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("integer", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("ends", [[0, 3, 6], [2, 2, 5, 5], [0, 3, 20], [9, 12], [0]], ids=str)
def test_tokens_of_no_sequence_stay_as_they_are(device, ends, integer, inplace):
    cu = torch.tensor(ends, dtype=integer, device=device)
    x = torch.randn(8, 2, 40, device=device, dtype=torch.bfloat16)
    x[-1, 0, 0] = float("inf")
    cos, sin = half_tables(device, torch.float32, 8, 32)
    first = [max((a for a, b in zip(ends, ends[1:], strict=False) if a <= t < b), default=None) for t in range(8)]
    inside = torch.tensor([a is not None for a in first], device=device)
    rows = torch.tensor([0 if a is None else t - a for t, a in enumerate(first)], device=device)
    turned = torch.cat([reference(x[..., :32], cos[rows], sin[rows]), x[..., 32:]], -1)
    given = x.clone()
    out, _ = ropejit.apply(given, None, cos, sin, cu_seqlens=cu, rotary_dim=32, layout="thd", inplace=inplace)
    equal([out], [torch.where(inside[:, None, None], turned, x)])
    ropejit.check()
    q = x.clone().requires_grad_()
    out, _ = ropejit.apply(q, None, cos, sin, cu_seqlens=cu, rotary_dim=32, layout="thd")
    grad = torch.randn_like(out)
    (back,) = torch.autograd.grad(out, q, grad)
    assert torch.equal(back[~inside], grad[~inside]) and not back.isnan().any()
    ropejit.check()


def test_nothing_is_narrowed(device):
    """Numbers whose lower half would be a row of the tables."""
    q = torch.randn(8, 2, 32, device=device)
    cos, sin = half_tables(device, torch.float32, 8, 32)
    far = torch.tensor([2**32, 1], device=device)
    for integer in (torch.int32, torch.int64):
        cu = torch.tensor([0, 3, 8], dtype=integer, device=device)
        out = ropejit.apply_rotary_emb(q, cos, sin, seqlen_offsets=far, cu_seqlens=cu)
        assert out[:3].isnan().all() and not out[3:].isnan().any()
        with pytest.raises(IndexError):
            ropejit.check()
    cu = torch.tensor([0, 3, 2**32 + 4], device=device)
    rows = torch.tensor([0, 1, 2, 0, 1, 2, 3, 4], device=device)
    equal(ropejit.apply(q, None, cos, sin, cu_seqlens=cu, layout="thd")[:1], [reference(q, cos[rows], sin[rows])])


def test_lengths_are_compared(device):
    x = torch.randn(5, 3, 2, 32, device=device)
    cos, sin = half_tables(device, torch.float32, 8, 32)
    for count in (4, 6):
        offsets = torch.zeros(count, dtype=torch.int64, device=device)
        with pytest.raises(ValueError, match=f"^seqlen_offsets: {count} numbers for 5 sequences"):
            ropejit.apply_rotary_emb(x, cos, sin, seqlen_offsets=offsets)
        cu = torch.tensor([0, 3, 6, 9, 12, 15], device=device)
        with pytest.raises(ValueError, match=f"^seqlen_offsets: {count} numbers for 5 sequences"):
            ropejit.apply_rotary_emb(x.flatten(0, 1), cos, sin, seqlen_offsets=offsets, cu_seqlens=cu)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("inplace", [False, True])
def test_flash_attn_drop_in(device, interleaved, inplace):
    x, _ = bshd(device, torch.bfloat16)
    cos, sin = half_tables(device, torch.bfloat16, 32, 48)
    strided = torch.tensor([7, 0, 1, 0], device=device)[::2]
    for offset in (0, 3, strided, torch.tensor([7, 1], device=device), torch.tensor([7, 1], dtype=torch.int32, device=device)):
        first = offset if isinstance(offset, int) else offset[:, None].long()
        rows = (torch.arange(5, device=device) + first).expand(2, 5)
        given = x.clone()
        out = ropejit.apply_rotary_emb(given, cos, sin, interleaved, inplace, offset)
        equal([out], [reference(x, cos[rows], sin[rows], interleaved)])
        assert (out is given) == inplace


def test_an_offset_is_never_read_on_the_host(device, monkeypatch):
    """Reading it waits for the GPU, and a CUDA graph would keep the number."""
    x, _ = bshd(device, torch.float32, batch=1)
    cos, sin = half_tables(device, torch.float32, 32, 64)
    cu = torch.tensor([0, 5], dtype=torch.int32, device=device)
    for kind in (torch.int32, torch.int64):
        at = torch.tensor([3], device=device, dtype=kind)
        expected = ropejit.apply_rotary_emb(x, cos, sin, seqlen_offsets=3)
        read = []
        for name in ("item", "tolist", "__index__", "__int__", "__bool__", "cpu", "numpy"):
            monkeypatch.setattr(torch.Tensor, name, lambda *_, name=name: read.append(name))
        ours = ropejit.apply_rotary_emb(x, cos, sin, seqlen_offsets=at)
        packed = ropejit.apply_rotary_emb(x[0], cos, sin, seqlen_offsets=at, cu_seqlens=cu, max_seqlen=5)
        monkeypatch.undo()
        assert not read
        equal([ours, packed[None]], [expected, expected])


@pytest.mark.parametrize(
    "offsets",
    [
        torch.tensor([3]), torch.tensor(3), torch.zeros(6, dtype=torch.int32), torch.zeros(1, 5, dtype=torch.int64),
        torch.zeros(5), [3], 3.0, "3",
    ],
    ids=str,
)  # fmt: skip
def test_offsets_that_do_not_fit_are_refused_by_name(offsets):
    """Five sequences."""
    x, _ = bshd("cpu", torch.float32, batch=5)
    cos, sin = half_tables("cpu", torch.float32, 32, 64)
    with pytest.raises(ValueError, match="^seqlen_offsets: "):
        ropejit.apply_rotary_emb(x, cos, sin, seqlen_offsets=offsets)


def test_offsets_of_packed_sequences_are_never_wrapped(device):
    """2^32 + 1 is not 1: such a token stands outside the tables."""
    q = torch.randn(6, 2, 64, device=device)
    cos, sin = half_tables(device, torch.float32, 16, 64)
    for kind in (torch.int32, torch.int64):
        cu = torch.tensor([0, 3, 6], dtype=kind, device=device)
        offsets = torch.tensor([4, 2**32 + 1], device=device)
        out = ropejit.apply_rotary_emb(q, cos, sin, seqlen_offsets=offsets, cu_seqlens=cu, max_seqlen=3)
        equal([out[:3]], [reference(q, cos[4:10], sin[4:10])[:3]])
        assert out[3:].isnan().all()
        if device == "cuda":
            torch.cuda.synchronize()
        with pytest.raises(IndexError):
            ropejit.check()


def test_the_form_of_tables_is_told(device):
    q, k = bshd(device, torch.float32)
    cos, sin = half_tables(device, torch.float32, 5, 64)
    full = [torch.cat((t, t), -1) for t in (cos, sin)]
    twice = [t.repeat_interleave(2, -1) for t in (cos, sin)]
    for interleaved in (False, True):
        expected = ropejit.apply(q, k, cos, sin, interleaved=interleaved)
        for form, given in (("half", (cos, sin)), ("full", full), ("twice", twice)):
            equal(ropejit.apply(q, k, *given, interleaved=interleaved, tables=form), expected)
        compiled = torch.compile(ropejit.apply, backend="aot_eager", fullgraph=True)
        equal(compiled(q, k, *twice, interleaved=interleaved, tables="twice"), expected)
    equal(ropejit.apply(q, k, *full), ropejit.apply(q, k, cos, sin))
    part = ropejit.apply(q, k, *(t[:, :16].contiguous() for t in (cos, sin)), interleaved=True, rotary_dim=32)
    equal(ropejit.apply(q, k, *(t[:, :32] for t in twice), interleaved=True, rotary_dim=32, tables="twice"), part)
    with pytest.raises(ValueError, match="^cos: interleaved=True with rows of 64.*tables='twice'"):
        ropejit.apply(q, k, *twice, interleaved=True)
    with pytest.raises(ValueError, match="^cos: has rows of 32, tables='twice' .* needs 64"):
        ropejit.apply(q, k, cos, sin, interleaved=True, tables="twice")
    with pytest.raises(ValueError, match="^cos: has rows of 64, tables='half' .* needs 32"):
        ropejit.apply(q, k, *full, tables="half")
    with pytest.raises(ValueError, match="^tables: 'both'"):
        ropejit.apply(q, k, cos, sin, tables="both")


def test_drop_ins_name_what_does_not_fit():
    q, k = (x.transpose(1, 2) for x in bshd("cpu", torch.float32))
    cos, sin = half_tables("cpu", torch.float32, 5, 64)
    with pytest.raises(ValueError, match="^cos: is .2, 5, 32., .rows, width."):
        ropejit.fast_rope_embedding(q, k, cos.expand(2, -1, -1), sin)
    with pytest.raises(ValueError, match="^rope_embedding_indices: 7 numbers for 2 sequences of 5 tokens"):
        ropejit.fast_rope_embedding(q, k, cos, sin, torch.zeros(7, dtype=torch.int64))
    with pytest.raises(ValueError, match="^Q: has 3 dimensions"):
        ropejit.fast_rope_embedding(q[0], k[0], cos, sin)
    with pytest.raises(ValueError, match="rotary_dim"):  # tables of full width, where flash-attn has half
        ropejit.apply_rotary_emb(q.transpose(1, 2), torch.cat((cos, cos), -1), torch.cat((sin, sin), -1))


def test_unsloth_drop_in(device):
    q, k = qk(device, torch.bfloat16, 2, 5, 4, 2, 64)
    cos, sin = (x[0] for x in tables(device, torch.float32, 1, 40, 64))
    to = lambda x: x.transpose(1, 2)  # noqa: E731
    expected = [to(reference(to(x), cos[:5, :32], sin[:5, :32])) for x in (q, k)]
    equal(ropejit.fast_rope_embedding(q, k, cos, sin), expected)
    equal(ropejit.fast_rope_embedding(q, k, cos[None, None], sin[None, None]), expected)
    ids = torch.randint(0, 40, (2, 5), device=device)
    expected = [to(reference(to(x), cos[ids][..., :32], sin[ids][..., :32])) for x in (q, k)]
    equal(ropejit.fast_rope_embedding(q, k, cos, sin, ids), expected)
    equal(ropejit.fast_rope_embedding(q, k, cos, sin, ids.reshape(-1).int()), expected)


def test_without_k_and_without_tokens(device):
    q, _ = bshd(device, torch.float32)
    cos, sin = half_tables(device, torch.float32, 5, 64)
    out, none = ropejit.apply(q, None, cos, sin)
    assert none is None
    equal([out], [reference(q, cos, sin)])
    out, _ = ropejit.apply(q[:, :0], None, cos, sin)
    assert out.shape == (2, 0, 4, 64)


def test_finite_differences(device):
    """The gradient against differences in f32: a rotation is linear, so they differ by rounding alone, 2^-23 / step."""
    q, k = (x.requires_grad_() for x in bshd(device, torch.float32, 1, 2, 2, 1, 8))
    cos, sin = half_tables(device, torch.float32, 2, 8)
    weights = [torch.randn_like(x) for x in (q, k)]

    def loss(q, k):
        return sum((w.double() * x.double()).sum() for w, x in zip(weights, ropejit.apply(q, k, cos, sin), strict=True))

    grads = torch.autograd.grad(loss(q, k), (q, k))
    step = 2.0**-6
    for i, x in enumerate((q, k)):
        for at in range(x.numel()):
            move = torch.zeros_like(x).view(-1)
            move[at] = step
            ends = []
            for sign in (1, -1):
                moved = [q.detach(), k.detach()]
                moved[i] = moved[i] + sign * move.view_as(x)
                ends.append(loss(*moved).item())
            difference = (ends[0] - ends[1]) / (2 * step)
            assert abs(difference - grads[i].view(-1)[at].item()) < 1e-4


def test_gradients_of_gradients_and_of_one_output(device):
    q, k = (x.requires_grad_() for x in bshd(device, torch.float32))
    cos, sin = half_tables(device, torch.float32, 5, 64)
    out = ropejit.apply(q, k, cos, sin)
    g = [torch.randn_like(x, requires_grad=True) for x in out]
    grads = torch.autograd.grad(out, (q, k), g, create_graph=True)
    back = torch.autograd.grad(grads, g, [torch.ones_like(x) for x in grads])
    equal(back, ropejit.apply(*(torch.ones_like(x) for x in (q, k)), cos, sin))
    out = ropejit.apply(q, k, cos, sin)
    (only,) = torch.autograd.grad(out[1].sum(), k)  # an expanded gradient, and none for q
    theirs = torch.autograd.grad(reference(k, cos, sin).sum(), k)
    equal([only], theirs)


def test_gradients_are_not_written_to(device):
    q, k = (x.requires_grad_() for x in bshd(device, torch.bfloat16))
    cos, sin = half_tables(device, torch.bfloat16, 5, 64)
    out = ropejit.apply(q, k, cos, sin)
    given = [torch.randn_like(x) for x in out]
    before = [x.clone() for x in given]
    torch.autograd.grad(out, (q, k), given)
    equal(given, before)


def test_numpy():
    q = np.random.randn(2, 3, 4, 8).astype(np.float32)
    cos, sin = np.random.randn(2, 3, 4).astype(np.float32)
    expected = reference(*(torch.from_numpy(x) for x in (q, cos, sin))).numpy()
    out, none = ropejit.apply(q, None, cos, sin)
    assert none is None and isinstance(out, np.ndarray)
    np.testing.assert_array_equal(out, expected)
    assert ropejit.apply(q, None, cos, sin, inplace=True)[0] is q
    np.testing.assert_array_equal(q, expected)


def test_numpy_arrays_that_are_read_only():
    q = np.random.randn(2, 3, 4, 8).astype(np.float32)
    cos, sin, ids = np.random.randn(3, 4).astype(np.float32), np.random.randn(3, 4).astype(np.float32), np.arange(3)
    expected = ropejit.apply(q, q, cos, sin)
    for x in (q, cos, sin, ids):
        x.flags.writeable = False
    for place in ({}, {"position_ids": ids}):
        for x, y in zip(ropejit.apply(q, q, cos, sin, **place), expected, strict=True):
            np.testing.assert_array_equal(x, y)
    before = q.copy()
    with pytest.raises(ValueError, match="^q: is read-only"):
        ropejit.apply(q, None, cos, sin, inplace=True)
    with pytest.raises(ValueError, match="^k: is read-only"):
        ropejit.apply(q.copy(), q, cos, sin, inplace=True)
    np.testing.assert_array_equal(q, before)


def bad(**change):
    q, k = bshd("cpu", torch.float32)
    cos, sin = half_tables("cpu", torch.float32, 5, 64)
    arguments = {"q": q, "k": k, "cos": cos, "sin": sin} | change
    return lambda: ropejit.apply(**arguments)


@pytest.mark.parametrize(
    "change, name",
    [
        ({"layout": "sbhd"}, "layout"),
        ({"layout": None}, "layout"),
        ({"rounding": "twice"}, "rounding"),
        ({"rotary_dim": 30}, "cos"),
        ({"q": torch.ones(2, 5, 64)}, "q"),
        ({"q": torch.ones(2, 5, 4, 64, dtype=torch.float64)}, "q"),
        ({"k": torch.ones(2, 5, 2, 64, dtype=torch.float16)}, "k"),
        ({"k": torch.ones(2, 4, 2, 64)}, "k"),
        ({"k": torch.ones(2, 5, 2, 32)}, "k"),
        ({"cos": torch.ones(3, 5, 32), "sin": torch.ones(3, 5, 32)}, "cos"),
        ({"sin": torch.ones(4, 32)}, "sin"),
        ({"cos": torch.ones(5, 32, requires_grad=True)}, "cos"),
        ({"cos": torch.ones(5, 32, dtype=torch.bfloat16), "sin": torch.ones(5, 32, dtype=torch.bfloat16)}, "cos"),
        ({"position_ids": torch.zeros(2, 4, dtype=torch.int64)}, "position_ids"),
        ({"position_ids": torch.zeros(2, 5)}, "position_ids"),
        ({"cu_seqlens": torch.zeros(2, dtype=torch.int32)}, "cu_seqlens"),
        ({"position_ids": torch.zeros(5, dtype=torch.int32), "cu_seqlens": torch.zeros(2, dtype=torch.int32)}, "cu_seqlens"),
        ({"q": torch.ones(2, 1, 4, 64).expand(2, 5, 4, 64), "inplace": True}, "q"),
    ],
)
def test_errors_name_the_argument(change, name):
    with pytest.raises(ValueError, match=rf"^{name}"):
        bad(**change)()


TYPES = ["float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "bool", "complex64", "float8_e4m3fnuz", "float8_e5m2"]


@pytest.mark.parametrize("name", TYPES)
def test_types_that_no_kernel_takes_are_called_by_their_names(name):
    with pytest.raises(ValueError, match=f"^q: its elements must be float32, float16 or bfloat16, got {name}$"):
        bad(q=torch.zeros(2, 5, 4, 64).to(getattr(torch, name)))()


def test_errors_that_are_not_of_a_value():
    with pytest.raises(TypeError, match="^q:"):
        bad(q="no tensor")()
    with pytest.raises(IndexError, match="offset"):
        bad(cos=torch.ones(4, 32), sin=torch.ones(4, 32))()


def test_nothing_is_leaked(device):
    q, k = bshd(device, torch.float32)
    cos, sin = half_tables(device, torch.float32, 5, 64)
    ropejit.apply(q, k, cos, sin)
    gc.collect()
    before = sum(type(x) is torch.Tensor for x in gc.get_objects())
    for _ in range(50):
        ropejit.apply(q, k, cos, sin)
    assert sum(type(x) is torch.Tensor for x in gc.get_objects()) == before
    import sys

    assert sys.getrefcount(q) == 2


def test_llama_out_of_the_crates_own_layouts(device):
    """The drop-in and `apply` agree where both are asked for the same."""
    q, k = qk(device, torch.bfloat16, 2, 5, 4, 2, 64)
    cos, sin = tables(device, torch.bfloat16, 2, 5, 64)
    equal(ropejit.apply(q, k, cos, sin, layout="bhsd", rounding="per_op"), llama(q, k, cos, sin))
