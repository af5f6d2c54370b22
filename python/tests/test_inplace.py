"""In place: no element is turned twice, nothing is written before a refusal, and autograd knows what PyTorch's own operations
tell it, or what flash-attn's function does."""

import random

import pytest
import ropejit
import torch
from eager import equal
from test_apply import bshd, half_tables


def test_in_place_under_autograd(device):
    q, k = (x.requires_grad_() for x in bshd(device, torch.float32))
    cos, sin = half_tables(device, torch.float32, 5, 64)
    with pytest.raises(RuntimeError, match="leaf"):
        ropejit.apply(q, k, cos, sin, inplace=True)
    out = ropejit.apply(q * 2, k * 2, cos, sin, inplace=True)
    theirs = ropejit.apply(q * 2, k * 2, cos, sin)
    given = [torch.randn_like(x) for x in out]
    equal(torch.autograd.grad(out, (q, k), given), torch.autograd.grad(theirs, (q, k), given))


def test_what_was_saved_and_then_written_is_told(device):
    q, k = bshd(device, torch.float32)
    cos, sin = half_tables(device, torch.float32, 5, 64)
    w = torch.ones((), device=device, requires_grad=True)
    loss = (w * q).sum()
    ropejit.apply(q, k, cos, sin, inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def touched(buffer, view, rotary_dim):
    """How often a view's turning elements come at each place of a buffer."""
    count = torch.zeros_like(buffer)
    places = count.as_strided(view.shape, view.stride(), view.storage_offset())[..., :rotary_dim]
    count.put_(torch.arange(buffer.numel()).as_strided(places.shape, places.stride(), places.storage_offset()).reshape(-1),
               torch.ones(places.numel()), accumulate=True)  # fmt: skip
    return count


def refused(buffer, q, k, cos, sin):
    before = buffer.clone()
    try:
        ropejit.apply(q, k, cos, sin, inplace=True, rotary_dim=2 * cos.shape[-1])
    except ValueError as e:
        assert str(e).startswith("k: shares elements with q") and torch.equal(buffer, before)
        return True
    return False


def test_no_element_is_turned_twice(device):
    """Against a count of elements, over views of one buffer as they come."""
    dice = random.Random(3)
    cos, sin = half_tables(device, torch.float32, 8, 4)
    kinds = {True: 0, False: 0}
    for _ in range(600):
        batch, tokens, heads, kv, d = dice.randint(1, 3), dice.randint(1, 4), dice.choice((1, 3)), dice.choice((1, 3)), 8
        buffer = torch.randn(4096, device=device)

        def view(heads):
            axes = [(batch, 0), (tokens, 1), (heads, 2)]
            dice.shuffle(axes)
            strides, reach = [0, 0, 0, 1], d
            for n, axis in axes:  # noqa: B023
                strides[axis] = reach + dice.choice((0, 0, 4, 8, 16))
                reach += strides[axis] * (n - 1)
            return torch.as_strided(buffer, (batch, tokens, heads, d), strides, dice.randrange(0, 120, 4))  # noqa: B023

        q, k = view(heads), view(kv)
        if dice.random() < 0.5 and heads == kv:
            k = torch.as_strided(buffer, k.shape, q.stride(), dice.randrange(0, 120, 4))
        twice = bool(((touched(buffer.cpu(), q, 4) + touched(buffer.cpu(), k, 4)) > 1).any())
        assert refused(buffer, q, k, cos[:tokens], sin[:tokens]) == twice, (q.shape, q.stride(), k.shape, k.stride())
        kinds[twice] += 1
    assert min(kinds.values()) > 50


def test_slices_of_a_packed_buffer_in_place_and_the_same_tensor_twice(device):
    cos, sin = half_tables(device, torch.float32, 5, 64)
    for shape, parts in (
        ((2, 5, 8, 64), lambda x: (x[:, :, :4], x[:, :, 4:6])),
        ((2, 5, 3, 4, 64), lambda x: (x[:, :, 0], x[:, :, 1])),
        ((2, 5, 4, 3, 64), lambda x: (x[:, :, :, 0], x[:, :, :, 1])),  # heads take turns, as in GPT-NeoX
        ((2, 8, 5, 64), lambda x: (x[:, :4].transpose(1, 2), x[:, 4:6].transpose(1, 2))),
    ):
        x = torch.randn(shape, device=device)
        expected = ropejit.apply(*(p.clone() for p in parts(x)), cos, sin)
        rest = x.clone()
        equal(ropejit.apply(*parts(x), cos, sin, inplace=True), expected)
        for turned, part in zip(expected, parts(rest), strict=True):
            part.copy_(turned)
        assert torch.equal(x, rest)
    x = torch.randn(2, 5, 4, 64, device=device)
    assert refused(x, x, x, cos, sin)
    assert refused(x, x[:, :, :3], x[:, :, 2:], cos, sin)
    assert refused(x, x, x.detach(), cos, sin)
    assert refused(x, x, x[:, :, 3:], cos, sin)
    compiled = torch.compile(lambda x: ropejit.apply(x, x, cos, sin, inplace=True), backend="eager")
    with pytest.raises(Exception, match="k: "):
        compiled(x)


def test_out_of_place_nothing_is_shared(device):
    cos, sin = half_tables(device, torch.float32, 5, 64)
    x = torch.randn(2, 5, 4, 64, device=device)
    out = ropejit.apply(x, x, cos, sin)
    assert len({t.data_ptr() for t in (*out, x)}) == 3 and torch.equal(*out)
    one = torch.randn(1, 5, 1, 64, device=device).expand(2, 5, 4, 64)
    equal(ropejit.apply(one, one, cos, sin), ropejit.apply(one.contiguous(), one.contiguous(), cos, sin))


def turned(x, cos, sin):
    """Out of place, of the first of three, and the gradient of the squares of all: of x."""
    x = x.detach().clone().requires_grad_()
    y = x * 1
    loss = ropejit.apply_rotary_emb(y[:, :, 0], cos, sin).pow(3).sum() + y[:, :, 1:].pow(3).sum()
    return loss.detach(), torch.autograd.grad(loss, x)[0]


WAYS = {
    "the base is read": lambda x, f: (y := x * 1, f(y[:, :, 0]), y)[2].pow(3).sum(),
    "the result is read": lambda x, f: (y := x * 1, f(y[:, :, 0]).pow(3).sum() + y[:, :, 1:].pow(3).sum())[1],
    "no view": lambda x, f: f(x[:, :, 0] * 1).pow(3).sum() + x[:, :, 1:].pow(3).sum(),
    "a slice of a slice": lambda x, f: (y := (x * 1)[:, :], f(y[:, :, 0][..., :]), y)[2].pow(3).sum(),
}
LENIENT = {
    "unbind": lambda x, f: (y := (x * 1).unbind(2), f(y[0]).pow(3).sum() + y[1].pow(3).sum() + y[2].pow(3).sum())[1],
    "split": lambda x, f: (y := (x * 1).split((1, 2), dim=2), f(y[0][:, :, 0]).pow(3).sum() + y[1].pow(3).sum())[1],
    "chunk": lambda x, f: (y := (x * 1).chunk(3, dim=2), f(y[0][:, :, 0]).pow(3).sum() + y[1].pow(3).sum() + y[2].pow(3).sum())[1],
    "a view of a leaf": lambda x, f: f(x[:, :, 0]).pow(3).sum() + x[:, :, 1:].pow(3).sum(),
}


@pytest.mark.parametrize("way", [*WAYS, *LENIENT])
@pytest.mark.parametrize("interleaved", [False, True])
def test_flash_attns_function_in_place(device, way, interleaved):
    cos, sin = half_tables(device, torch.float32, 16, 64)
    cos, sin = cos[:5], sin[:5]
    x = torch.randn(2, 5, 3, 4, 64, device=device, requires_grad=True)
    f = lambda q, inplace=True: ropejit.apply_rotary_emb(q, cos, sin, interleaved, inplace)  # noqa: E731
    y = x.detach().clone().requires_grad_()
    z = y * 1
    expected = f(z[:, :, 0], False).pow(3).sum() + z[:, :, 1:].pow(3).sum()
    loss = (WAYS | LENIENT)[way](x, f)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-3)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("offset", ["none", "int", "tensor"])
def test_flash_attns_function_in_place_on_a_leaf(device, dtype, offset):
    """As its own tests do. Its function never says that x was written, so autograd lets it."""
    cos, sin = half_tables(device, dtype, 32, 48)
    offset = {"none": 0, "int": 3, "tensor": torch.tensor([3, 7], device=device)}[offset]
    x = torch.randn(2, 5, 4, 64, device=device, dtype=dtype, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    out = ropejit.apply_rotary_emb(x, cos, sin, inplace=True, seqlen_offsets=offset)
    theirs = ropejit.apply_rotary_emb(y, cos, sin, seqlen_offsets=offset)
    assert torch.equal(out, theirs) and torch.equal(x, out) and out.data_ptr() == x.data_ptr()
    g = torch.randn_like(out)
    kept = g.clone()
    equal(torch.autograd.grad(out, x, g), torch.autograd.grad(theirs, y, g))
    assert torch.equal(g, kept)


@pytest.mark.parametrize("way", WAYS)
def test_apply_in_place_is_as_pytorchs_operations(device, way):
    """Of q and k in one call, both slices of one tensor or not."""
    cos, sin = half_tables(device, torch.float32, 5, 64)
    x = torch.randn(2, 5, 3, 4, 64, device=device, requires_grad=True)
    f = lambda q: ropejit.apply(q, None, cos, sin, inplace=True)[0]  # noqa: E731
    loss = WAYS[way](x, f)
    loss.backward()
    expected, grad = turned(x, cos, sin)
    torch.testing.assert_close(loss.detach(), expected, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(x.grad, grad, rtol=1e-5, atol=1e-5)


def test_q_and_k_of_one_tensor_in_place(device):
    cos, sin = half_tables(device, torch.float32, 5, 64)
    x = torch.randn(2, 5, 3, 4, 64, device=device, requires_grad=True)
    qkv = x * 1
    q, k = ropejit.apply(qkv[:, :, 0], qkv[:, :, 1], cos, sin, inplace=True)
    y = x.detach().clone().requires_grad_()
    theirs = torch.stack((*ropejit.apply(y[:, :, 0], y[:, :, 1], cos, sin), y[:, :, 2]), 2)
    equal((q, k, qkv), (theirs[:, :, 0], theirs[:, :, 1], theirs))
    g = torch.randn_like(qkv)
    equal(torch.autograd.grad(qkv, x, g, retain_graph=True), torch.autograd.grad(theirs, y, g, retain_graph=True))
    equal(torch.autograd.grad(q, x, g[:, :, 0]), torch.autograd.grad(theirs[:, :, 0], y, g[:, :, 0]))


@pytest.mark.parametrize("refused", [0, 1])
def test_what_pytorch_refuses_is_refused_before_anything_is_written(device, refused):
    """In PyTorch's own words."""
    cos, sin = half_tables(device, torch.float32, 5, 64)
    leaf = torch.randn(2, 5, 4, 64, device=device, requires_grad=True)
    base = torch.randn(2, 5, 3, 4, 64, device=device, requires_grad=True)
    for make in (lambda: leaf, lambda: leaf[:, :, :2], lambda: (base * 1).unbind(2)[0], lambda: (base * 1).split(1, 2)[1][:, :, 0]):
        fine = torch.randn(2, 5, 4, 64, device=device, requires_grad=True) * 1
        operands = [fine, fine]
        operands[refused] = bad = make()
        before, version = [x.detach().clone() for x in operands], fine._version
        with pytest.raises(RuntimeError) as theirs:
            bad.mul_(1)
        with pytest.raises(RuntimeError) as ours:
            ropejit.apply(*operands, cos, sin, inplace=True)
        assert str(ours.value) == str(theirs.value)
        equal(operands, before)
        assert fine._version == version and "Mul" in type(fine.grad_fn).__name__


def test_a_wrong_argument_under_autograd_writes_and_records_nothing(device):
    cos, sin = half_tables(device, torch.float32, 4, 64)  # a row too few
    q = torch.randn(2, 5, 4, 64, device=device, requires_grad=True) * 1
    before = q.detach().clone()
    with pytest.raises(IndexError):
        ropejit.apply(q, None, cos, sin, inplace=True)
    equal([q], [before])
    assert "Mul" in type(q.grad_fn).__name__


def test_inference_tensors_in_place(device):
    cos, sin = half_tables(device, torch.float32, 5, 64)
    with torch.inference_mode():
        q, k = torch.randn(2, 5, 4, 64, device=device), torch.randn(2, 5, 2, 64, device=device)
    before = [x.clone() for x in (q, k)]
    plain = torch.randn(2, 5, 2, 64, device=device)
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            for operands in ((q, k), (q, None), (before[0], k)):
                with pytest.raises(RuntimeError, match="Inplace update to inference tensor outside InferenceMode"):
                    ropejit.apply(*operands, cos, sin, inplace=True)
            with pytest.raises(RuntimeError, match="Inplace update to inference tensor"):
                ropejit.apply_rotary_emb(q, cos, sin, inplace=True)
    equal((q, k), before)
    expected = ropejit.apply(*before, cos, sin)
    with torch.inference_mode():
        equal(ropejit.apply(q, k, cos, sin, inplace=True), expected)
        ropejit.apply(plain, plain.clone(), cos, sin, inplace=True)
    assert plain._version == 1


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("way", ["apply", "drop-in", "in place", "compiled", "watched"])
def test_what_is_made_of_a_tensor_that_wants_no_gradient_wants_none(device, way, first):
    """Where only q is trained, a cache of k must not keep the graph of each step."""
    cos, sin = half_tables(device, torch.float32, 5, 64)
    full = [torch.cat((t, t), -1)[None] for t in (cos, sin)]
    operands = [torch.randn(2, 5, 4, 64, device=device), torch.randn(2, 5, 4, 64, device=device)]
    leaf = operands[first].requires_grad_()
    plain = [x.detach().clone() for x in operands]
    apply = lambda q, k: ropejit.apply(q, k, cos, sin)  # noqa: E731
    if way == "watched":
        from test_compile import Watching

        with Watching():
            out = apply(*operands)
    elif way == "in place":
        operands[first] = operands[first] * 1
        out = ropejit.apply(*operands, cos, sin, inplace=True)
    elif way == "compiled":
        out = torch.compile(apply, backend="aot_eager", fullgraph=True)(*operands)
    elif way == "drop-in":
        out = ropejit.apply_rotary_pos_emb(*operands, *full, 2)
    else:
        out = apply(*operands)
    assert out[first].requires_grad and not out[1 - first].requires_grad and out[1 - first].grad_fn is None
    equal(out, apply(*plain))
    g = torch.randn_like(leaf)
    plain[first].requires_grad_()
    expected = torch.autograd.grad(ropejit.apply(plain[first], None, cos, sin)[0], plain[first], g)
    equal(torch.autograd.grad(out[first], leaf, g), expected)
