"""`qk_norm_rope`: bit for bit what PyTorch's own operations give when each rounding and each addition is written out."""

import gc

import fused
import pytest
import ropejit
import torch
from ropejit import _norm_ops
from test_compile import Watching

EPS = 1e-6
FLAVOURS = ["weight_after", "one_plus_weight", "weight_f32", "no_weight"]
bf16, f16, f32 = torch.bfloat16, torch.float16, torch.float32


def angles(device, dtype, rows, pairs):
    """cos and sin, `[rows, pairs]`."""
    a = torch.rand(rows, pairs) * 100
    return a.cos().to(dtype).to(device), a.sin().to(dtype).to(device)


def inputs(device, dtype=f32, dim=64, heads=3, kv_heads=2, batch=2, tokens=5, flavour="weight_after", grad=False, pairs=None, table=None):
    """q, k, their weights, cos and sin."""

    def one(*shape):
        return (torch.randn(shape) * 3).to(dtype).to(device).requires_grad_(grad)

    weights = [None if flavour == "no_weight" else one(dim) for _ in range(2)]
    return one(batch, tokens, heads, dim), one(batch, tokens, kv_heads, dim), *weights, *angles(device, table or dtype, tokens, pairs or dim // 2)


def call(q, k, q_weight, k_weight, cos, sin, **how):
    return ropejit.qk_norm_rope(q, k, q_weight, k_weight, cos, sin, **{"eps": EPS, "rsqrt": "ieee"} | how)


def reference(q, k, q_weight, k_weight, cos, sin, rounding="once", **how):
    with torch.no_grad():
        return [fused.forward(x, w, cos, sin, EPS, rounding, **how) for x, w in ((q, q_weight), (k, k_weight))]


def check(given, rounding="once", turned=None, **how):
    """Forward, dx and dw against the reference. `turned`: cos and sin of each token, where they are not as given."""
    q, k, q_weight, k_weight, cos, sin = given
    named = {key: how[key] for key in how if key in ("flavour", "order", "after_rope", "style")}
    tables = turned or (cos, sin)
    out = call(*given, rounding=rounding, **how)
    for ours, theirs in zip(out, reference(q, k, q_weight, k_weight, *tables, rounding, **named), strict=True):
        fused.same(ours.detach(), theirs, "forward")
    given_back = [torch.randn_like(x) for x in out]
    wanted = [x for x in (q, k, q_weight, k_weight) if x is not None]
    grads = torch.autograd.grad(out, wanted, given_back)
    for i, (x, w) in enumerate(((q, q_weight), (k, k_weight))):
        with torch.no_grad():
            dx, dw = fused.backward(given_back[i], x, w, *tables, EPS, rounding, **named)
        fused.same(grads[i], dx, "dx")
        if w is not None:
            fused.same(grads[2 + i], dw, "dw")
            assert grads[2 + i].dtype == w.dtype


@pytest.mark.parametrize("dim", [64, 80, 128, 256])
@pytest.mark.parametrize("dtype, rounding", [(f32, "once"), (f16, "per_op"), (bf16, "per_op"), (bf16, "once")])
def test_types_and_widths(device, dtype, rounding, dim):
    check(inputs(device, dtype, dim, grad=True), rounding)


@pytest.mark.parametrize("order", ["torch", "tree"])
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_flavours_and_orders(device, flavour, order):
    for rounding in ("once", "per_op"):
        check(inputs(device, bf16, 80, flavour=flavour, grad=True), rounding, flavour=flavour, order=order)


@pytest.mark.parametrize("flavour", ["weight_after", "no_weight"])
def test_after_rope(device, flavour):
    for rounding in ("once", "per_op"):
        check(inputs(device, bf16, 64, flavour=flavour, grad=True), rounding, flavour=flavour, after_rope=True)


@pytest.mark.parametrize("style", ["interleaved", "deinterleave"])
def test_styles(device, style):
    for rounding in ("once", "per_op"):
        check(inputs(device, bf16, 64, grad=True), rounding, style=style)


def test_partial_rotation_and_tables(device):
    """The norm is of the whole head. Tables of float32 beside bf16; of full width."""
    given = inputs(device, bf16, 96, pairs=24, table=f32, grad=True)
    check(given, "once", rotary_dim=48)
    *rest, cos, sin = given
    full = [torch.cat((t, t), -1) for t in (cos, sin)]
    for tables in (None, "full"):
        for ours, theirs in zip(call(*rest, *full, rotary_dim=48, tables=tables), call(*given, rotary_dim=48), strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("heads, kv_heads, tokens", [(1, 1, 1), (8, 2, 9), (5, 1, 70)])
def test_numbers_of_heads_and_rows(device, heads, kv_heads, tokens):
    """Tiles of 32 rows that are full, and that are not."""
    check(inputs(device, bf16, 64, heads, kv_heads, 1, tokens, grad=True), "per_op")


def test_without_k(device):
    q, k, q_weight, k_weight, cos, sin = inputs(device, bf16, 64, grad=True)
    both = call(q, k, q_weight, k_weight, cos, sin)
    out, none = call(q, None, q_weight, None, cos, sin)
    assert none is None and torch.equal(out, both[0])
    g = torch.randn_like(q)
    ours = torch.autograd.grad(out, (q, q_weight), g)
    theirs = torch.autograd.grad(both, (q, q_weight), (g, torch.zeros_like(k)))
    assert all(map(torch.equal, ours, theirs))


def test_layouts_and_strides(device):
    q, k, q_weight, k_weight, cos, sin = inputs(device, f32, 64)
    expected = call(q, k, q_weight, k_weight, cos, sin)
    heads_first = [x.transpose(1, 2) for x in (q, k)]
    for like in (lambda x: x, torch.Tensor.contiguous):
        out = call(*map(like, heads_first), q_weight, k_weight, cos, sin, layout="bhsd")
        assert all(torch.equal(x.transpose(1, 2), y) for x, y in zip(out, expected, strict=True))
    spread = [torch.stack((x, x), -1)[..., 0] for x in (q, k, q_weight, k_weight)]
    assert spread[0].stride(-1) == 2
    assert all(map(torch.equal, call(*spread, cos, sin), expected))
    of_one = [x[:1].expand(3, -1, -1, -1) for x in (q, k)]
    assert all(torch.equal(x[2], y[0]) for x, y in zip(call(*of_one, q_weight, k_weight, cos, sin), expected, strict=True))


def test_in_place_in_one_packed_tensor(device):
    """q, k and v side by side, as a projection leaves them: v stays as it is."""
    _, _, q_weight, k_weight, cos, sin = inputs(device, bf16, 64)
    qkv = torch.randn(2, 5, 3 + 2 + 2, 64, device=device).to(bf16)
    before = qkv.clone()
    q, k = qkv[:, :, :3], qkv[:, :, 3:5]
    expected = call(q.clone(), k.clone(), q_weight, k_weight, cos, sin)
    version = qkv._version
    out = call(q, k, q_weight, k_weight, cos, sin, inplace=True)
    assert out[0] is q and out[1] is k and qkv._version > version
    assert torch.equal(q, expected[0]) and torch.equal(k, expected[1]) and torch.equal(qkv[:, :, 5:], before[:, :, 5:])


@pytest.mark.parametrize("integer", [torch.int32, torch.int64])
def test_positions(device, integer):
    q, k, q_weight, k_weight, _, _ = inputs(device, bf16, 64, grad=True)
    cos, sin = angles(device, bf16, 20, 32)
    ids = torch.randint(0, 20, (2, 5), device=device)
    check((q, k, q_weight, k_weight, cos, sin), "per_op", (cos[ids], sin[ids]), position_ids=ids.to(integer))
    own = [torch.stack((t[:5], t[5:10])) for t in (cos, sin)]
    check((q, k, q_weight, k_weight, *own), "per_op")


def test_packed_sequences(device):
    """A token of no sequence stays as it is, and so does its gradient; it counts nothing in the weights'."""
    q, k, q_weight, k_weight, cos, sin = inputs(device, f32, 64, batch=1, tokens=12)
    q, k = (x[0].requires_grad_() for x in (q, k))
    q_weight, k_weight = (w.requires_grad_() for w in (q_weight, k_weight))
    cu = torch.tensor([0, 3, 3, 9], dtype=torch.int32, device=device)
    rows = torch.tensor([0, 1, 2, 0, 1, 2, 3, 4, 5], device=device)
    out = call(q, k, q_weight, k_weight, cos, sin, cu_seqlens=cu, layout="thd")
    g = [torch.randn_like(x) for x in out]
    grads = torch.autograd.grad(out, (q, k, q_weight, k_weight), g)
    for i, (x, w) in enumerate(((q, q_weight), (k, k_weight))):
        with torch.no_grad():
            fused.same(out[i][:9].detach(), fused.forward(x[:9], w, cos[rows], sin[rows], EPS, "once"))
            dx, dw = fused.backward(g[i][:9], x[:9], w, cos[rows], sin[rows], EPS, "once")
        assert torch.equal(out[i][9:], x[9:]) and torch.equal(grads[i][9:], g[i][9:])
        fused.same(grads[i][:9], dx)
        fused.same(grads[2 + i], dw)


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("after_rope", [False, True])
def test_near_the_exact_gradient(device, flavour, after_rope):
    """As gradcheck does, but against float64's autograd: the formula itself is right."""
    given = inputs(device, f32, 64, flavour=flavour, grad=True)
    out = call(*given, flavour=flavour, after_rope=after_rope)
    g = [torch.randn_like(x) for x in out]
    wanted = [x for x in given[:4] if x is not None]
    grads = torch.autograd.grad(out, wanted, g)
    q, k, q_weight, k_weight, cos, sin = (None if x is None else x.detach().double() for x in given)
    exact = [None if x is None else x.requires_grad_() for x in (q, k, q_weight, k_weight)]

    def normed(x, w):
        u = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS)
        return u if w is None else u * (1 + w if flavour == "one_plus_weight" else w)

    def turned(x):
        a, b = x.chunk(2, -1)
        c, s = cos[:, None], sin[:, None]
        return torch.cat((a * c - b * s, b * c + a * s), -1)

    steps = (turned, normed) if after_rope else (normed, turned)
    results = []
    for x, w in zip(exact[:2], exact[2:], strict=True):
        for step in steps:
            x = step(x, w) if step is normed else step(x)
        results.append(x)
    theirs = torch.autograd.grad(results, [x for x in exact if x is not None], [x.double() for x in g])
    for ours, exactly in zip(grads, theirs, strict=True):
        assert (ours - exactly).abs().max() < 2e-6 * exactly.abs().max()


def test_gradients_of_one_output_and_of_frozen_inputs(device):
    given = inputs(device, bf16, 64, grad=True)
    out = call(*given)
    g = [torch.randn_like(x) for x in out]
    both = torch.autograd.grad(out, given[:4], g, retain_graph=True)
    only_k = torch.autograd.grad(out[1], (given[1], given[3]), g[1], retain_graph=True)
    only_q = torch.autograd.grad(out[0], (given[0], given[2]), g[0])
    assert all(map(torch.equal, (*only_q, *only_k), (both[0], both[2], both[1], both[3])))
    q, k, q_weight, k_weight, cos, sin = (x.detach() for x in given)
    out = call(q, k, q_weight, k_weight.requires_grad_(), cos, sin)
    assert not out[0].requires_grad and out[1].requires_grad
    assert torch.equal(torch.autograd.grad(out[1], k_weight, g[1])[0], both[3])
    expanded = torch.ones((), device=device, dtype=bf16).expand_as(given[0])
    (ours,) = torch.autograd.grad(call(*given)[0], given[0], expanded)
    assert torch.equal(ours, torch.autograd.grad(call(*given)[0], given[0], expanded.contiguous())[0])


def test_what_is_kept_is_x_and_a_number_a_head(device):
    given = inputs(device, bf16, 64, grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        out = call(*given)
    assert out[0].grad_fn is not None
    mine = {x.data_ptr() for x in given}
    others = [x for x in kept if x.data_ptr() not in mine]
    assert [(x.dtype, x.numel()) for x in others] == [(f32, 2 * 5 * (3 + 2))]
    del out, kept, others
    gc.collect()


def test_no_second_derivative(device):
    given = inputs(device, f32, 64, grad=True)
    for function in (call, torch.compile(call, fullgraph=True, backend="eager")):
        out = function(*given)
        (grad,) = torch.autograd.grad(out[0].square().sum(), given[0], create_graph=True)
        with pytest.raises(NotImplementedError, match="qk_norm_rope has no second derivative"):
            torch.autograd.grad(grad.sum(), given[0])


def test_in_place_is_refused_where_a_gradient_is_wanted(device):
    q, k, q_weight, k_weight, cos, sin = inputs(device, f32, 64)
    for name, change in (("q", (q * 1).requires_grad_()), ("k_weight", k_weight.clone().requires_grad_())):
        given = {"q": q, "k": k, "q_weight": q_weight, "k_weight": k_weight, "cos": cos, "sin": sin, name: change}
        before = q.clone()
        with pytest.raises(ValueError, match=f"^{name}: requires a gradient, and inplace=True"):
            call(**given, inplace=True)
        assert torch.equal(q, before)
        with torch.no_grad():
            call(**given | {"q": q.clone(), "k": k.clone()}, inplace=True)


def test_without_tokens(device):
    q, k, q_weight, k_weight, cos, sin = inputs(device, f32, 64, tokens=0, grad=True)
    out = call(q, k, q_weight, k_weight, cos, sin)
    assert out[0].shape == q.shape and out[1].shape == k.shape
    grads = torch.autograd.grad(out, (q, q_weight), [torch.zeros_like(x) for x in out])
    assert grads[0].shape == q.shape and not grads[1].any()


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_fullgraph(device, backend):
    for how in ({}, {"inplace": True}):
        def step(q, k, *rest, how=how):
            return call(q * 2, k * 2, *rest, **how)

        given = inputs(device, bf16, 64, grad=not how)
        compiled = torch.compile(step, fullgraph=True, backend=backend)
        ours, eager = compiled(*given), step(*given)
        assert all(map(torch.equal, ours, eager))
        if not how:
            g = [torch.randn_like(x) for x in eager]
            ours, eager = (torch.autograd.grad(x, given[:4], g) for x in (ours, eager))
            assert all(map(torch.equal, ours, eager))


def test_opcheck(device):
    q, k, q_weight, k_weight, cos, sin = inputs(device, f32, 64, grad=True)
    form = (EPS, "weight_after", "torch", "ieee", False, "half_split", None, "bshd", "once")
    torch.library.opcheck(_norm_ops.norm_op, (q, k, q_weight, k_weight, cos, sin, None, None, *form, True))
    torch.library.opcheck(_norm_ops.norm_op, (q, None, q_weight, None, cos, sin, None, None, *form, True))
    q, k, q_weight, k_weight = (x.detach().clone() for x in (q, k, q_weight, k_weight))
    torch.library.opcheck(_norm_ops.norm_op, (q, k, q_weight, k_weight, cos, sin, None, None, *form, False))
    saved = torch.rand(2 * 5 * 5, device=device)
    back = (torch.randn_like(q), torch.randn_like(k), q, k, q_weight, k_weight, cos, sin, None, None, saved, *form)
    torch.library.opcheck(_norm_ops.norm_backward_op, back)
    torch.library.opcheck(_norm_ops.norm_op_, (q, k, q_weight, k_weight, cos, sin, None, None, *form))


class Plain(torch.Tensor):
    """A subclass that changes nothing."""


def test_other_tensors(device):
    """Subclasses, modes that watch, negated views, zero and meta tensors go through the operators."""
    given = inputs(device, f32, 64)
    expected = call(*given)
    out = call(given[0].as_subclass(Plain), *given[1:])
    assert all(map(torch.equal, out, expected)) and isinstance(out[0], Plain)
    with Watching() as watching:
        assert all(map(torch.equal, call(*given), expected))
        call(given[0].clone(), given[1].clone(), *given[2:], inplace=True)
    assert {"ropejit::qk_norm_rope", "ropejit::qk_norm_rope_"} <= set(watching.seen)
    for i in range(6):
        negated = [torch._neg_view(-x) if j == i else x for j, x in enumerate(given)]
        if i in (2, 3):
            with pytest.raises(ValueError, match="^[qk]_weight: "):
                call(*negated)
        else:
            assert all(map(torch.equal, call(*negated), expected))
    q = torch._neg_view(-given[0])
    call(q, given[1].clone(), *given[2:], inplace=True)
    assert torch.equal(q, expected[0])
    zero = torch._efficientzerotensor(given[0].shape, device=device)
    assert not call(zero, *given[1:])[0].any()
    out = call(*(x.to("meta") for x in given))
    assert out[0].is_meta and out[0].shape == given[0].shape and out[1].shape == given[1].shape
    leaf = given[0].clone().requires_grad_()
    g = torch.randn_like(leaf)
    expected = torch.autograd.grad(call(leaf, *given[1:])[0], leaf, g)[0]
    assert torch.equal(torch.autograd.grad(call(leaf, *given[1:])[0], leaf, torch._neg_view(-g))[0], expected)


def test_transforms_of_torch_func_are_refused(device):
    q, *rest = inputs(device, f32, 64)
    with pytest.raises(NotImplementedError, match="qk_norm_rope does not work under the transforms of torch.func"):
        torch.func.vmap(lambda x: call(x[None], None, rest[1], None, *rest[3:])[0])(q)
    with pytest.raises(NotImplementedError, match="torch.func"):
        torch.func.grad(lambda x: call(x, *rest)[0].sum())(q)


def bad(**change):
    q, k, q_weight, k_weight, cos, sin = inputs("cpu", bf16, 64, table=f32)
    given = {"q": q, "k": k, "q_weight": q_weight, "k_weight": k_weight, "cos": cos, "sin": sin}
    return call(**given | change)


BAD = [
    ({"q_weight": None}, "q_weight: is missing"),
    ({"k_weight": None}, "k_weight: is missing"),
    ({"k": None}, "k_weight: is given, and there is no k"),
    ({"flavour": "no_weight"}, "q_weight: is given, and the flavour"),
    ({"q_weight": torch.ones(32).bfloat16()}, "q_weight: is .32., .64. is needed"),
    ({"q_weight": torch.ones(1, 64).bfloat16()}, "q_weight: is .1, 64."),
    ({"k_weight": torch.ones(64)}, "k_weight: is f32, q is bf16"),
    ({"q_weight": torch.ones(64).long()}, "q_weight: its elements must be"),
    ({"q_weight": torch.ones(64).bfloat16().to("meta")}, "q_weight: "),
    ({"flavour": "weight"}, "flavour: 'weight' is not one of"),
    ({"flavour": None}, "flavour: must be a str"),
    ({"order": "tee"}, "order: 'tee' is not one of"),
    ({"rsqrt": "fast"}, "rsqrt: 'fast' is not one of"),
    ({"eps": "small"}, "eps: must be a number"),
    ({"eps": -1.0}, "eps: must be 0 or above"),
    ({"eps": float("nan")}, "eps: must be 0 or above"),
    ({"style": "neox"}, "style: 'neox' is not one of"),
    ({"style": 3}, "style: must be a str"),
    ({"layout": "bsdh"}, "layout: "),
    ({"rounding": "twice"}, "rounding: "),
    ({"rotary_dim": 66}, "cos: "),
    ({"rotary_dim": "all"}, "rotary_dim: is all"),
    ({"tables": "quarter"}, "tables: 'quarter'"),
    ({"cos": torch.ones(5, 64), "sin": torch.ones(5, 64), "style": "interleaved"}, "cos: "),
    ({"position_ids": torch.zeros(5), "k": None, "k_weight": None}, "position_ids: must be int32 or int64"),
    ({"cu_seqlens": torch.tensor([0, 5])}, "cu_seqlens: packed sequences have the layout"),
]


@pytest.mark.parametrize("change, text", BAD, ids=[text for _, text in BAD])
def test_errors_name_the_argument(change, text):
    with pytest.raises(ValueError, match=f"^{text}"):
        bad(**change)


def test_errors_that_are_not_of_a_value():
    for name in ("q", "k", "q_weight", "cos"):
        with pytest.raises(TypeError, match=f"^{name}: must be a torch.Tensor, got <class 'numpy.ndarray'>"):
            bad(**{name: torch.ones(5, 64).numpy()})
    with pytest.raises(NotImplementedError, match="^norm.rsqrt: .*ieee|Ieee"):
        bad(rsqrt="approx")
    with pytest.raises(TypeError, match="eps"):
        ropejit.qk_norm_rope(*inputs("cpu"))
    import torch.autograd.forward_ad as forward_ad

    q, *rest = inputs("cpu")
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="forward-mode"):
        call(forward_ad.make_dual(q, torch.ones_like(q)), *rest)
    shared = torch.randn(2, 5, 3, 64)
    _, _, q_weight, k_weight, cos, sin = inputs("cpu")
    with pytest.raises(ValueError, match="^k: shares elements with q, which is written in place"):
        call(shared, shared[:, :, 1:], q_weight, k_weight, cos, sin, inplace=True)
    with pytest.raises(ValueError, match="^cos: requires a gradient"):
        call(shared, None, q_weight, None, cos.clone().requires_grad_(), sin)
