"""Bit for bit what transformers computes, forward and backward, over a grid."""

import pytest
import ropejit
import torch
from eager import DTYPES, cohere, equal, glm, gpt_neox, llama, qk, tables

SHAPES = [(1, 1), (2, 7), (3, 33)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bhsd", [False, True], ids=["bshd", "bhsd"])
@pytest.mark.parametrize("head_dim, first", [(64, 0), (80, 4096), (128, 131072), (256, 1048576)])
@pytest.mark.parametrize("batch, tokens", SHAPES)
def test_llama(device, dtype, bhsd, head_dim, first, batch, tokens):
    q, k = qk(device, dtype, batch, tokens, 4, 2, head_dim, bhsd, grad=True)
    cos, sin = tables(device, dtype, batch, tokens, head_dim, first)
    theirs = llama(q, k, cos, sin)
    ours = ropejit.apply_rotary_pos_emb(q, k, cos, sin)
    equal(ours, theirs)
    told = lambda x: [s for s, n in zip(x.stride(), x.shape) if n > 1]  # noqa: E731
    assert [told(x) for x in ours] == [told(x) for x in theirs]
    given = [torch.randn_like(x) for x in theirs]
    equal(torch.autograd.grad(ours, (q, k), given), torch.autograd.grad(theirs, (q, k), given))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rotary_dim", [16, 32])
def test_partial(device, dtype, rotary_dim):
    q, k = qk(device, dtype, 2, 9, 4, 2, 64, grad=True)
    cos, sin = tables(device, dtype, 2, 9, rotary_dim)
    theirs, ours = gpt_neox(q, k, cos, sin), ropejit.apply_rotary_pos_emb(q, k, cos, sin)
    equal(ours, theirs)
    given = [torch.randn_like(x) for x in theirs]
    equal(torch.autograd.grad(ours, (q, k), given), torch.autograd.grad(theirs, (q, k), given))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_unsqueeze_dim_2_and_one_row_of_tables_for_all(device, dtype):
    q, k = (x.transpose(1, 2) for x in qk(device, dtype, 3, 5, 4, 2, 64))
    cos, sin = tables(device, dtype, 1, 5, 64)
    equal(ropejit.apply_rotary_pos_emb(q, k, cos, sin, 2), llama(q, k, cos, sin, 2))
    equal(ropejit.apply_rotary_pos_emb(q, k, cos.expand(3, -1, -1), sin, unsqueeze_dim=2), llama(q, k, cos, sin, 2))


def test_slices_of_one_packed_buffer(device):
    qkv = torch.randn(2, 6, 8, 64, device=device, dtype=torch.bfloat16)
    q, k = qkv[:, :, :4].transpose(1, 2), qkv[:, :, 4:6].transpose(1, 2)
    before = qkv.clone()
    cos, sin = tables(device, torch.bfloat16, 2, 6, 64)
    equal(ropejit.apply_rotary_pos_emb(q, k, cos, sin), llama(q, k, cos, sin))
    assert torch.equal(qkv, before)


def test_a_last_dimension_with_a_stride(device):
    q, k = (torch.randn(1, 2, 64, 5, device=device).transpose(2, 3) for _ in range(2))
    cos, sin = tables(device, torch.float32, 1, 5, 64)
    equal(ropejit.apply_rotary_pos_emb(q, k, cos, sin), llama(q, k, cos, sin))


@pytest.mark.parametrize(
    "dtype, table", [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16), (torch.float64, torch.float64)]
)
def test_what_is_not_covered_is_as_eager_does_it(device, dtype, table):
    q, k = qk(device, dtype, 2, 5, 4, 2, 64, grad=True)
    cos, sin = tables(device, table, 2, 5, 64)
    theirs, ours = llama(q, k, cos, sin), ropejit.apply_rotary_pos_emb(q, k, cos, sin)
    equal(ours, theirs)
    given = [torch.randn_like(x) for x in theirs]
    equal(torch.autograd.grad(ours, (q, k), given), torch.autograd.grad(theirs, (q, k), given))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("table", ["same", torch.float32], ids=str)
def test_cohere(device, dtype, table):
    q, k = qk(device, dtype, 2, 5, 4, 2, 64)
    cos, sin = tables(device, dtype if table == "same" else table, 2, 5, 64)
    half = (cos[..., :32], sin[..., :32])
    theirs = cohere(q, k, *(x.repeat_interleave(2, -1) for x in half))
    equal(ropejit.apply(q, k, *half, interleaved=True, layout="bhsd"), theirs)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_glm(device, dtype):
    q, k = qk(device, dtype, 2, 5, 4, 2, 64)
    cos, sin = tables(device, dtype, 2, 5, 32)
    ours = ropejit.apply(q, k, cos, sin, interleaved=True, rotary_dim=32, tables="full", layout="bhsd", rounding="per_op")
    equal(ours, glm(q, k, cos, sin))


def bits(x):
    return x.detach().view(torch.int16 if x.element_size() == 2 else torch.int32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", ["llama", "gpt_neox", "gpt_oss"])
def test_zeros_have_eagers_signs_but_in_gradients_of_slices(device, dtype, form):
    """There eager adds the +0 with which it pads a slice's gradient, so that it has no −0 at all. See the README."""
    from transformers.models.gpt_oss import modeling_gpt_oss

    def zeros(x):  # half of it, of both signs
        return (x * (torch.rand_like(x, dtype=torch.float32) > 0.5).to(dtype)).copysign(torch.randn_like(x))

    q, k = (zeros(x).requires_grad_() for x in qk(device, dtype, 2, 9, 4, 2, 64))
    cos, sin = tables(device, dtype, 2, 9, 32 if form == "gpt_neox" else 64)
    if form == "gpt_oss":
        cos, sin = cos[..., :32], sin[..., :32]
        theirs = modeling_gpt_oss.apply_rotary_pos_emb(q, k, cos, sin)
        with ropejit.patched("transformers"):
            ours = modeling_gpt_oss.apply_rotary_pos_emb(q, k, cos, sin)
    else:
        theirs, ours = {"llama": llama, "gpt_neox": gpt_neox}[form](q, k, cos, sin), ropejit.apply_rotary_pos_emb(q, k, cos, sin)
    assert all(torch.equal(bits(x), bits(y)) for x, y in zip(ours, theirs, strict=True))
    assert any(((x == 0) & x.signbit()).any() for x in ours)
    given = [zeros(x) for x in theirs]
    theirs, ours = torch.autograd.grad(theirs, (q, k), given), torch.autograd.grad(ours, (q, k), given)
    equal(ours, theirs)
    if form == "gpt_oss":
        assert all(torch.equal(bits(x), bits(y)) for x, y in zip(ours, theirs, strict=True))
    else:
        assert not any(((x == 0) & x.signbit()).any() for x in theirs)
        assert all(torch.equal(bits(x + 0), bits(y)) for x, y in zip(ours, theirs, strict=True))


def test_meta_tensors_and_other_shapes_are_left_to_eager():
    q, k = (torch.empty(1, 2, 3, 64, device="meta") for _ in range(2))
    cos, sin = (torch.empty(1, 3, 64, device="meta") for _ in range(2))
    assert ropejit.apply_rotary_pos_emb(q, k, cos, sin)[0].shape == q.shape
    q, k = (torch.randn(2, 1, 2, 3, 64) for _ in range(2))
    cos, sin = (x[:, None] for x in tables("cpu", torch.float32, 1, 3, 64))
    equal(ropejit.apply_rotary_pos_emb(q, k, cos, sin, 2), llama(q, k, cos, sin, 2))
