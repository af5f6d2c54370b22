"""Arguments of `apply` that are other tables or views, `Angles`, and packed tensors: equal bits to what one would write out."""

import pytest
import ropejit
import torch
from eager import DTYPES, equal

HALF = 16
WIDTH = 2 * HALF


def made(device, dtype=torch.float32, rows=40, half=HALF):
    angles = torch.arange(rows)[:, None] * 10000 ** (-torch.arange(0, half) / half)
    return angles.cos().to(dtype).to(device), angles.sin().to(dtype).to(device)


def qk(device, dtype=torch.float32, tokens=7, head_dim=WIDTH):
    return tuple(torch.randn(2, tokens, heads, head_dim, device=device).to(dtype) for heads in (4, 2))


def axis_of(pair, sections, interleaved):
    """As Qwen2-VL cuts pairs, and as Qwen3-VL lets axes alternate."""
    t, h, w = sections
    if interleaved:
        return 1 if pair % 3 == 1 and pair < 3 * h else 2 if pair % 3 == 2 and pair < 3 * w else 0
    return 0 if pair < t else 1 if pair < t + h else 2


def by_axis(table, ids, sections, interleaved):
    """The rows of a table for three positions a token, picked pair by pair."""
    of = [axis_of(pair, sections, interleaved) for pair in range(table.shape[-1])]
    return torch.stack([table[ids[axis].long(), pair] for pair, axis in enumerate(of)], -1)


def gradients(function, *tensors):
    leaves = [x.detach().clone().requires_grad_() for x in tensors]
    out = function(*leaves)
    weights = [torch.randn(x.shape, generator=torch.Generator().manual_seed(i)).to(x) for i, x in enumerate(out)]
    return torch.autograd.grad(sum((x * w).sum() for x, w in zip(out, weights)), leaves)


def as_longhand(call, longhand, *tensors, compiled=True):
    """Results, gradients and what a compiler makes of it are those of the longhand call."""
    equal(call(*tensors), longhand(*tensors))
    equal(gradients(call, *tensors), gradients(longhand, *tensors))
    if compiled:
        torch._dynamo.reset()
        equal(torch.compile(call, fullgraph=True, backend="aot_eager")(*tensors), longhand(*tensors))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("ids_dtype", [torch.int32, torch.int64], ids=str)
def test_sections(device, dtype, interleaved, ids_dtype):
    q, k = qk(device, dtype)
    cos, sin = made(device, dtype)
    ids = torch.randint(0, 40, (3, 2, 7), device=device, dtype=ids_dtype)
    rows = [by_axis(table, ids, (8, 4, 4), interleaved) for table in (cos, sin)]
    more = dict(mrope_section=[8, 4, 4], mrope_interleaved=interleaved)
    as_longhand(
        lambda q, k: ropejit.apply(q, k, cos, sin, position_ids=ids, **more),
        lambda q, k: ropejit.apply(q, k, *rows),
        q, k, compiled=dtype == torch.bfloat16,
    )  # fmt: skip
    # Tables of full width, and positions of one sequence for all.
    full = [torch.cat((x, x), -1) for x in (cos, sin)]
    out = ropejit.apply(q, k, *full, position_ids=ids[:, :1], tables="full", **more)
    equal(out, ropejit.apply(q, k, *(x[:1] for x in rows)))


@pytest.mark.parametrize("accurate", [False, True])
def test_angles(device, accurate):
    inv_freq = 10000.0 ** (-torch.arange(0, HALF) / HALF)
    angles = ropejit.Angles(inv_freq, accurate=accurate, attention_factor=0.5)
    assert (angles.rotary_dim, angles.depends_on_length, angles.mrope_section) == (WIDTH, False, None)
    assert angles.inv_freq() == inv_freq.tolist()
    ids = torch.tensor([[0, 1, 2, 3, 500, 70000, 9], [5, 4, 3, 2, 1, 0, 1_000_000]], device=device)
    cos, sin = angles(ids)
    exact = ids.double()[..., None] * inv_freq.double().to(device)
    if not accurate:
        exact = (ids.float()[..., None] * inv_freq.to(device)).double()  # the angle is rounded, the rest is not
    assert cos.dtype == torch.float32 and cos.shape == (2, 7, HALF)
    for table, wanted in ((cos, exact.cos() / 2), (sin, exact.sin() / 2)):
        assert (table.double() - wanted).abs().max() < 1e-7
    equal([x[0] for x in (cos, sin)], angles(ids[0]))
    equal([x.bfloat16() for x in (cos, sin)], angles(ids, dtype=torch.bfloat16))


def test_angles_stand_for_tables(device):
    q, k = qk(device, torch.bfloat16)
    angles = ropejit.Angles("llama-2-7b")
    assert angles.rotary_dim == 128
    angles = ropejit.Angles([10000.0 ** (-i / HALF) for i in range(HALF)])
    ids = torch.randint(0, 5000, (2, 7), device=device)
    cos, sin = angles(ids)
    as_longhand(
        lambda q, k: ropejit.apply(q, k, None, None, angles=angles, position_ids=ids),
        lambda q, k: ropejit.apply(q, k, cos, sin),
        q, k,
    )  # fmt: skip
    equal(ropejit.apply(q, k, None, None, angles=angles), ropejit.apply(q, k, *angles(torch.arange(7, device=device))))
    bhsd = [x.transpose(1, 2) for x in (q, k)]
    out = ropejit.apply(*bhsd, None, None, angles=angles, layout="bhsd")
    equal([x.transpose(1, 2) for x in out], ropejit.apply(q, k, None, None, angles=angles))
    packed = [x.flatten(0, 1) for x in (q, k)]
    starts = torch.tensor([0, 3, 14], device=device)
    out = ropejit.apply(*packed, None, None, angles=angles, layout="thd", cu_seqlens=starts)
    equal(out, ropejit.apply(*packed, *angles(torch.arange(14, device=device)), layout="thd", cu_seqlens=starts))


@pytest.mark.parametrize("strict", [False, True])
def test_export(device, strict):
    class Model(torch.nn.Module):
        def forward(self, x, ids, cos, sin):
            x, _ = ropejit.apply(x, None, None, None, angles=angles, position_ids=ids[0])
            return ropejit.apply(x, None, cos, sin, position_ids=ids, mrope_section=[8, 4, 4])[0]

    angles = ropejit.Angles([10000.0 ** (-i / HALF) for i in range(HALF)])
    given = (qk(device)[0], torch.randint(0, 40, (3, 2, 7), device=device), *made(device))
    exported = torch.export.export(Model(), given, strict=strict).module()
    equal([exported(*given)], [Model()(*given)])


def test_under_vmap(device):
    angles = ropejit.Angles([10000.0 ** (-i / HALF) for i in range(HALF)])
    ids, (cos, sin) = torch.randint(0, 40, (3, 2, 7), device=device), made(device)
    many = torch.randn(3, 2, 7, 4, WIDTH, device=device)
    for call in (
        lambda x: ropejit.apply(x, None, None, None, angles=angles, conjugate=True)[0],
        lambda x: ropejit.apply(x, None, cos, sin, position_ids=ids, mrope_section=[8, 4, 4])[0],
    ):
        equal([torch.func.vmap(call)(many)], [torch.stack([call(x) for x in many])])


def test_transforms_leave_nothing_behind(device):
    from ropejit import _rows

    ids, (cos, sin) = torch.randint(0, 40, (3, 2, 7), device=device), made(device)
    q, _ = qk(device)

    def call(x):
        return ropejit.apply(x, None, cos, sin, position_ids=ids, mrope_section=[8, 4, 4])[0]

    _rows._units.clear()
    under = torch.func.functionalize(call)(q), torch.func.vmap(call)(q[None])[0]
    with torch.inference_mode():
        call(q)
    equal(under, [call(q)] * 2)
    equal(gradients(lambda x: (call(x),), q), gradients(lambda x: (call(x * 1),), q))


def test_operators(device):
    ids, (cos, sin) = torch.randint(0, 40, (3, 2, 7), device=device), made(device)
    source = ropejit.Angles([1.0] * HALF)._source
    torch.library.opcheck(torch.ops.ropejit.rows_of_axes.default, (cos, sin, ids, WIDTH, [8, 4, 4], False))
    torch.library.opcheck(torch.ops.ropejit.computed_rows.default, (ids, WIDTH, source, False, None, [8, 4, 4], False))


def test_positions_outside_of_the_tables_are_nan(device):
    cos, sin = made(device, rows=5)
    ids = torch.tensor([0, 4, 5], device=device).expand(3, 2, 3).clone()
    q, _ = qk(device, tokens=3)
    out, _ = ropejit.apply(q, None, cos, sin, position_ids=ids, mrope_section=[8, 4, 4])
    assert out[:, 2].isnan().all() and not out[:, :2].isnan().any()
    with pytest.raises(IndexError, match="outside the cos/sin tables"):
        ropejit.check()


def test_no_tokens(device):
    angles, (cos, sin) = ropejit.Angles([1.0] * HALF), made(device)
    q = torch.zeros(2, 0, 3, WIDTH, device=device)
    ids = torch.zeros(3, 2, 0, dtype=torch.int64, device=device)
    assert ropejit.apply(q, None, None, None, angles=angles)[0].shape == q.shape
    assert ropejit.apply(q, None, cos, sin, position_ids=ids, mrope_section=[8, 4, 4])[0].shape == q.shape


def test_angles_on_three_axes(device):
    angles = ropejit.Angles([10000.0 ** (-i / HALF) for i in range(HALF)])
    ids = torch.randint(0, 5000, (3, 2, 7), device=device)
    of = [angles(ids[axis]) for axis in range(3)]
    for interleaved in (False, True):
        axes = [axis_of(pair, (8, 4, 4), interleaved) for pair in range(HALF)]
        wanted = [torch.stack([of[axis][i][..., pair] for pair, axis in enumerate(axes)], -1) for i in range(2)]
        equal(angles(ids, mrope_section=(8, 4, 4), mrope_interleaved=interleaved), wanted)


def test_angles_of_a_configuration(device):
    transformers = pytest.importorskip("transformers")
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 16, "long_factor": [4.0] * 16, "rope_theta": 10000.0}
    config = dict(model_type="phi3", hidden_size=128, num_attention_heads=4, num_key_value_heads=2, rope_parameters=rope)
    config.update(max_position_embeddings=256, original_max_position_embeddings=64, vocab_size=64, pad_token_id=0)
    config = transformers.Phi3Config(**config)
    angles, ids = ropejit.Angles(config), torch.arange(80, device=device)[None]
    assert angles.depends_on_length
    with pytest.raises(ValueError, match="seq_len: is needed"):
        angles(ids)
    theirs = transformers.models.phi3.modeling_phi3.Phi3RotaryEmbedding(config).to(device)
    for length in (50, 80):
        cos, sin = theirs(torch.zeros(1, device=device), ids[:, :length])
        ours = angles(ids[:, :length], seq_len=length)
        for a, b in zip(ours, (cos, sin)):
            assert (a - b[..., :16]).abs().max() < 1e-6
    section = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 4, 4]}
    config = transformers.Qwen2VLConfig(text_config=dict(hidden_size=128, num_attention_heads=4, num_key_value_heads=2, rope_parameters=section))
    angles = ropejit.Angles(config)
    assert (angles.mrope_section, angles.mrope_interleaved) == ([8, 4, 4], False)
    ids = torch.randint(0, 60, (3, 2, 7), device=device)
    equal(angles(ids), angles(ids, mrope_section=[8, 4, 4], mrope_interleaved=False))


@pytest.mark.parametrize("form", ["complex", "conjugate view", "real", "matrices", "flux", "batch"])
def test_complex_tables(device, form):
    q, k = qk(device, torch.bfloat16)
    cos, sin = made(device, rows=7)
    numbers = torch.complex(cos, sin)
    matrices = torch.stack((cos, -sin, sin, cos), -1).unflatten(-1, (2, 2))
    given = {
        "complex": numbers, "conjugate view": numbers.conj().resolve_conj().conj(), "real": torch.view_as_real(numbers),
        "matrices": matrices, "flux": matrices[None, None], "batch": numbers.expand(2, 7, HALF),
    }[form]  # fmt: skip
    as_longhand(
        lambda q, k: ropejit.apply(q, k, None, None, freqs_cis=given),
        lambda q, k: ropejit.apply(q, k, cos, sin, interleaved=True),
        q, k, compiled=form in ("real", "flux"),
    )  # fmt: skip
    equal(ropejit.apply(q, k, None, None, freqs_cis=given, style="half_split"), ropejit.apply(q, k, cos, sin))


def test_conjugate(device):
    q, k = qk(device, torch.bfloat16)
    cos, sin = made(device)
    as_longhand(
        lambda q, k: ropejit.apply(q, k, cos, sin, conjugate=True), lambda q, k: ropejit.apply(q, k, cos, -sin), q, k
    )  # fmt: skip
    back = ropejit.apply(*ropejit.apply(q.float(), k.float(), cos, sin), cos, sin, conjugate=True)
    assert all((a - b).abs().max() < 1e-5 for a, b in zip(back, (q.float(), k.float())))
    equal(ropejit.apply(q, k, cos, sin, conjugate=False), ropejit.apply(q, k, cos, sin))


@pytest.mark.parametrize("mla", [False, True])
@pytest.mark.parametrize("rotary_dim", [None, WIDTH])
def test_part_of_a_head(device, mla, rotary_dim):
    first, size = 24, 24 + WIDTH
    q, k = qk(device, torch.bfloat16, head_dim=size)
    if mla:
        k = k[..., :1, first:].contiguous()
    cos, sin = made(device)

    def longhand(q, k):
        turned, rest = ropejit.apply(q[..., first:].contiguous(), None if mla else k[..., first:].contiguous(), cos, sin)
        out_k = ropejit.apply(k, None, cos, sin)[0] if mla else torch.cat((k[..., :first], rest), -1)
        return torch.cat((q[..., :first], turned), -1), out_k

    call = dict(rotary_dim_offset=first, rotary_dim=rotary_dim)
    as_longhand(lambda q, k: ropejit.apply(q, k, cos, sin, **call), longhand, q, k)
    wanted, given = longhand(q, k), (q.clone(), k.clone())
    out = ropejit.apply(*given, cos, sin, inplace=True, **call)
    assert out[0] is given[0] and out[1] is given[1]
    equal(out, wanted)


def test_wide_heads(device):
    q, k = qk(device, torch.bfloat16, head_dim=1024)
    cos, sin = made(device)
    out = ropejit.apply(q, k, cos, sin, rotary_dim=WIDTH, rotary_dim_offset=0)
    narrow = ropejit.apply(*(x[..., :WIDTH].contiguous() for x in (q, k)), cos, sin)
    equal(out, [torch.cat((a, x[..., WIDTH:]), -1) for a, x in zip(narrow, (q, k))])
    with pytest.raises(ValueError, match="rotary_dim_offset=0"):
        ropejit.apply(q, k, cos, sin, rotary_dim=WIDTH)


@pytest.mark.parametrize("offset", ["number", "each"])
@pytest.mark.parametrize("ids", [False, True])
def test_offset(device, offset, ids):
    q, k = qk(device, torch.bfloat16)
    cos, sin = made(device)
    given = 3 if offset == "number" else torch.tensor([3, 11], device=device)
    ids = torch.randint(0, 20, (2, 7), device=device) if ids else None
    base = torch.arange(7, device=device).expand(2, 7) if ids is None else ids
    moved = base + (given if offset == "number" else given[:, None])
    as_longhand(
        lambda q, k: ropejit.apply(q, k, cos, sin, position_ids=ids, offset=given),
        lambda q, k: ropejit.apply(q, k, cos, sin, position_ids=moved),
        q, k,
    )  # fmt: skip


@pytest.mark.parametrize("layout", ["bshd", "bhsd"])
@pytest.mark.parametrize("ids", [False, True])
def test_tables_of_each_head(device, layout, ids):
    q, k = (torch.randn(2, 7, 3, WIDTH, device=device).bfloat16() for _ in range(2))
    cos, sin = (torch.stack([table.roll(i, 0) for i in range(6)]).view(2, 3, 40, HALF) for table in made(device))
    ids = torch.randint(0, 40, (2, 7), device=device) if ids else None
    heads = 2 if layout == "bshd" else 1
    q, k = (q, k) if layout == "bshd" else (q.transpose(1, 2), k.transpose(1, 2))

    def longhand(q, k):
        of = [
            ropejit.apply(*(x.narrow(heads, i, 1) for x in (q, k)), cos[:, i], sin[:, i], layout=layout, position_ids=ids)
            for i in range(3)
        ]
        return tuple(torch.cat(parts, heads) for parts in zip(*of, strict=True))

    call = dict(layout=layout, position_ids=ids, per_head=True, contiguous=True)
    as_longhand(
        lambda q, k: ropejit.apply(q, k, cos, sin, **call), lambda q, k: tuple(x.contiguous() for x in longhand(q, k)), q, k
    )  # fmt: skip
    one = [x[:1].clone() for x in (q, k)]
    out = ropejit.apply(*one, cos[:1], sin[:1], **{**call, "position_ids": None if ids is None else ids[:1]})
    equal(out, [x[:1].contiguous() for x in ropejit.apply(q, k, cos, sin, **call)])
    with pytest.raises(ValueError, match="k: per_head has tables for 3 heads"):
        ropejit.apply(q, k.narrow(heads, 0, 1), cos, sin, **call)
    if layout == "bshd":
        with pytest.raises(ValueError, match="q: its strides"):
            ropejit.apply(q, k, cos, sin, layout=layout, per_head=True, inplace=True)
    else:
        given = [x.contiguous() for x in (q, k)]
        wanted = ropejit.apply(*given, cos, sin, layout=layout, per_head=True)
        assert ropejit.apply(*given, cos, sin, layout=layout, per_head=True, inplace=True)[0] is given[0]
        equal(given, wanted)


def test_contiguous(device):
    q, k = (x.transpose(1, 2) for x in qk(device, torch.bfloat16))
    cos, sin = made(device)
    plain = ropejit.apply(q, k, cos, sin, layout="bhsd")
    out = ropejit.apply(q, k, cos, sin, layout="bhsd", contiguous=True)
    assert not plain[0].is_contiguous() and all(x.is_contiguous() for x in out)
    equal(out, plain)
    assert ropejit.apply(q, None, cos, sin, layout="bhsd", contiguous=True)[1] is None


@pytest.mark.parametrize("gqa", [False, True])
@pytest.mark.parametrize("offsets", [0, 3, "each"])
@pytest.mark.parametrize("own", [False, True])
def test_packed(device, gqa, offsets, own):
    cos, sin = made(device)
    cos_k, sin_k = (cos.flip(0), sin.flip(0)) if own else (cos, sin)
    offsets = torch.tensor([2, 9], device=device) if offsets == "each" else offsets
    shape, heads = ((2, 7, 8, WIDTH), dict(num_heads_q=4)) if gqa else ((2, 7, 3, 4, WIDTH), {})
    qkv = torch.randn(shape, device=device).bfloat16()

    def split(x):
        return x.split((4, 2, 2), 2) if gqa else x.unbind(2)

    q, k, v = split(qkv)
    of_k = ropejit.apply_rotary_emb(k, cos_k, sin_k, seqlen_offsets=offsets)
    wanted = [ropejit.apply_rotary_emb(q, cos, sin, seqlen_offsets=offsets), of_k, v.clone()]
    more = dict(cos_k=cos_k, sin_k=sin_k) if own else {}
    weight = torch.randn(shape, device=device).bfloat16()
    leaf = qkv.clone().requires_grad_()
    out = ropejit.apply_rotary_emb_qkv_(leaf * 1, cos, sin, seqlen_offsets=offsets, **heads, **more)
    equal(split(out.detach()), wanted)
    (grad,) = torch.autograd.grad((out * weight).sum(), leaf)
    own_tables = zip(split(weight)[:2], (cos, cos_k), (sin, sin_k), strict=True)
    back = [ropejit.apply_rotary_emb(x, c, -s, seqlen_offsets=offsets) for x, c, s in own_tables]
    equal(split(grad), [*back, split(weight)[2]])
    given = qkv.clone()
    assert ropejit.apply_rotary_emb_qkv_(given, cos, sin, seqlen_offsets=offsets, **heads, **more) is given
    equal(split(given), wanted)


def test_packed_kv(device):
    cos, sin = made(device)
    kv = torch.randn(2, 7, 2, 3, WIDTH, device=device).bfloat16()
    wanted = torch.stack((ropejit.apply_rotary_emb(kv[:, :, 0], cos, sin, interleaved=True), kv[:, :, 1]), 2)
    assert ropejit.apply_rotary_emb_kv_(kv, cos, sin, interleaved=True) is kv
    equal([kv], [wanted])


ERRORS = {
    "unexpected keyword argument 'sections'": dict(sections=1),
    r"mrope_section: \[8, 4\] does not divide the 16 pairs": dict(mrope_section=[8, 4]),
    r"mrope_section: \[8, 4, 5\]": dict(mrope_section=[8, 4, 5]),
    r"position_ids: is \[2, 7\], mrope_section needs \[3, batch, tokens\]": dict(
        mrope_section=[8, 4, 4], position_ids=torch.zeros(2, 7, dtype=torch.int64)
    ),
    "position_ids: mrope_section needs a torch.Tensor": dict(mrope_section=[8, 4, 4], position_ids=None),
    "mrope_interleaved: needs mrope_section": dict(mrope_interleaved=True),
    "position_ids: is .*; hint: three axes need an mrope_section": dict(),
    "cos: and sin must be None beside freqs_cis": dict(freqs_cis=torch.ones(7, HALF, dtype=torch.complex64)),
    "cos: and sin must be None beside angles": dict(angles=len),
    "rotary_dim_offset: 32 is not within": dict(rotary_dim_offset=32),
    "rotary_dim_offset: elements 8 to 40 do not fit in q": dict(rotary_dim_offset=8, rotary_dim=32),
    "offset: an int": dict(offset="three"),
    "seq_len: is of angles": dict(seq_len=7),
    "contiguous: results are q and k themselves": dict(contiguous=True, inplace=True, position_ids=None),
}


@pytest.mark.parametrize("what", ERRORS, ids=str)
def test_errors_name_the_argument(what):
    q, k = qk("cpu")
    cos, sin = made("cpu")
    given = dict(position_ids=torch.zeros(3, 2, 7, dtype=torch.int64)) | ERRORS[what]
    before = q.clone()
    with pytest.raises((ValueError, TypeError), match=what):
        ropejit.apply(q, k, cos, sin, **given)
    equal([q], [before])


def test_errors_of_angles():
    angles = ropejit.Angles([1.0, 0.5])
    q, k = qk("cpu")
    with pytest.raises(ValueError, match="angles: are 2, and 32 elements turn; hint: rotary_dim=4"):
        ropejit.apply(q, k, None, None, angles=angles)
    with pytest.raises(ValueError, match="mrope_section: is needed for three axes"):
        angles(torch.zeros(3, 2, 7, dtype=torch.int64))
    with pytest.raises(ValueError, match="position_ids: is torch.float32"):
        angles(torch.zeros(2, 7))
    for wrong in ([1.0, -0.5], [], [float("nan")], torch.zeros(2, 2)):
        with pytest.raises(ValueError, match="source: frequencies are finite numbers"):
            ropejit.Angles(wrong)
    with pytest.raises(ValueError, match="layer: 'none' is not one of"):
        ropejit.Angles("llama-2-7b", layer="none")
    with pytest.raises(TypeError, match="angles: must be ropejit.Angles"):
        ropejit.apply(q, k, None, None, angles=[1.0])
    with pytest.raises(ValueError, match="freqs_cis: is torch.complex128"):
        ropejit.apply(q, k, None, None, freqs_cis=torch.ones(7, HALF, dtype=torch.complex128))


def test_errors_of_packed_tensors():
    cos, sin = made("cpu")
    with pytest.raises(ValueError, match=r"num_heads_q: 5 of 8 heads"):
        ropejit.apply_rotary_emb_qkv_(torch.zeros(1, 7, 8, WIDTH), cos, sin, num_heads_q=5)
    with pytest.raises(ValueError, match=r"hint: pass qkv.clone\(\)"):
        ropejit.apply_rotary_emb_qkv_(torch.zeros(1, 7, 3, 2, WIDTH, requires_grad=True), cos, sin)
    with pytest.raises(ValueError, match="kv: is "):
        ropejit.apply_rotary_emb_kv_(torch.zeros(1, 7, 3, 2, WIDTH), cos, sin)
