"""Tensors whose numbers do not lie in memory as their type says: PyTorch's result, or an error that names the argument."""

import pytest
import ropejit
import torch
from test_apply import half_tables


def call(q=None, device="cpu", **change):
    """`apply` for one operand."""
    cos, sin = half_tables(device, torch.float32, 6, 32)
    given = {"q": q, "k": None, "cos": cos, "sin": sin} | change
    return ropejit.apply(**given)[0]


def operand(device="cpu"):
    return torch.randn(1, 6, 2, 32, device=device)


def freed(x):
    x = x.clone()
    x.untyped_storage().resize_(0)
    return x


UNREADABLE = {
    "sparse": lambda x: x.to_sparse(),
    "csr": lambda x: x.reshape(-1, x.shape[-1]).to_sparse_csr(),
    "mkldnn": lambda x: x.to_mkldnn(),
    "nested": lambda x: torch.nested.nested_tensor(list(x)),
    "jagged": lambda x: torch.nested.nested_tensor(list(x), layout=torch.jagged),
    "quantized": lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.quint8),
    "complex": lambda x: torch.complex(x, x).conj(),
    "freed": freed,
    "meta": lambda x: x.to("meta"),
}


OF_INTEGERS = [kind for kind in UNREADABLE if kind not in ("mkldnn", "quantized", "complex")]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "kind, name",
    [(kind, name) for kind in UNREADABLE for name in ("q", "k", "cos", "sin")] + [(kind, "position_ids") for kind in OF_INTEGERS],
)
def test_what_cannot_be_read_is_refused_by_name(kind, name):
    cos, sin = half_tables("cpu", torch.float32, 6, 32)
    given = {"q": operand(), "k": operand(), "cos": cos, "sin": sin, "position_ids": torch.arange(6)[None]}
    given[name] = UNREADABLE[kind](given[name])
    # Where q is meta, or on another device, it is the others that are elsewhere.
    names = "(q|k|cos|sin|position_ids)" if name == "q" else f"({name}|sin)" if name == "cos" else name
    for inplace in (False, True):
        with pytest.raises((ValueError, TypeError), match=f"^{names}: ") as error:
            ropejit.apply(**given, inplace=inplace)
        assert "frame #" not in str(error.value) and "at /" not in str(error.value)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["sparse", "nested", "quantized", "freed", "meta"])
def test_the_drop_ins_do_not_crash_either(kind):
    """What is no call for the kernels goes to PyTorch's own operations; memory that was freed they would read."""
    x = UNREADABLE[kind](operand())
    cos, sin = (torch.cat((t, t), -1)[None] for t in half_tables("cpu", torch.float32, 6, 32))
    with pytest.raises((RuntimeError, ValueError, NotImplementedError, TypeError)):
        ropejit.apply_rotary_pos_emb(x, x, cos, sin, 2)
    with pytest.raises(ValueError, match="^(q|k|cos): "):
        ropejit.apply_rotary_emb(x, *half_tables("cpu", torch.float32, 6, 32))


def test_a_tensor_without_elements_is_fine(device):
    q = operand(device)[:, :0]
    assert call(q, device).shape == q.shape
    q = freed(operand(device)[:, :0].contiguous())
    assert call(q, device).shape == q.shape


def test_the_same_under_autograd(device):
    """There tensors are looked at within autograd's own function."""
    q, g = operand(device), operand(device)
    for inplace in (False, True):
        for x in (freed(q), q.to("meta")):
            x = x.requires_grad_()
            with pytest.raises((ValueError, RuntimeError), match="^(q|cos): |leaf"):
                call(x, device, inplace=inplace)
        with pytest.raises(ValueError, match="^position_ids: has no memory"):
            call(q.clone().requires_grad_() * 1, device, position_ids=freed(torch.arange(6, device=device)), inplace=inplace)
        leaf = q.clone().requires_grad_()
        expected = torch.autograd.grad(call(leaf * 1, device), leaf, g)
        (given,) = torch.autograd.grad(call(torch._neg_view(leaf * -1), device, inplace=inplace), leaf, g)
        assert torch.equal(given, expected[0])
        sin = torch._neg_view(-half_tables(device, torch.float32, 6, 32)[1])
        (given,) = torch.autograd.grad(call(leaf * 1, device, sin=sin, inplace=inplace), leaf, g)
        assert torch.equal(given, expected[0])


@pytest.mark.parametrize("name", ["q", "k", "cos", "sin", "position_ids"])
def test_negated_views(device, name):
    cos, sin = half_tables(device, torch.float32, 6, 32)
    ids = torch.arange(6, device=device)
    given = {"q": operand(device), "k": operand(device), "cos": cos, "sin": sin, "position_ids": ids}
    expected = ropejit.apply(**given)
    given[name] = torch._neg_view(-given[name])
    assert all(map(torch.equal, ropejit.apply(**given), expected))
    if name in "qk":
        assert all(map(torch.equal, ropejit.apply(**given, inplace=True), expected))
        assert torch.equal(given[name], expected["qk".index(name)])


def test_the_imaginary_part_of_a_conjugate(device):
    """What a table for the way back comes as: a negated view with a stride of two."""
    cos, sin = half_tables(device, torch.float32, 6, 32)
    turns = torch.complex(cos, sin).conj()
    assert turns.imag.is_neg()
    q = operand(device)
    assert torch.equal(call(q, device, cos=turns.real, sin=turns.imag), call(q, device, sin=-sin))
    full = (torch.cat((t, t), -1)[None] for t in (turns.real, turns.imag))
    out, _ = ropejit.apply_rotary_pos_emb(q, q, *full, 2)
    assert torch.equal(out, call(q, device, sin=-sin))


def test_zero_tensors(device):
    zero = torch._efficientzerotensor((1, 6, 2, 32), device=device)
    assert not call(zero, device).any()
    with pytest.raises(ValueError, match="^q: is a zero tensor"):
        call(zero, device, inplace=True)
    sin = torch._efficientzerotensor((6, 16), device=device)
    q = operand(device)
    assert torch.equal(call(q, device, cos=torch.ones(6, 16, device=device), sin=sin), q)


def test_meta_tensors_give_meta_tensors():
    q, cos = torch.empty(1, 6, 2, 32, device="meta"), torch.empty(6, 16, device="meta")
    out, k = ropejit.apply(q, q[:, :, :1], cos, cos)
    assert out.is_meta and out.shape == q.shape and k.shape == (1, 6, 1, 32)
    assert ropejit.apply(q, None, cos, cos, inplace=True)[0] is q


def test_a_lazy_clone_is_not_written_for_both(device):
    q = operand(device)
    before, clone = q.clone(), torch._lazy_clone(q)
    call(clone, device, inplace=True)
    assert torch.equal(q, before) and torch.equal(clone, call(q, device))


def test_a_symbolic_trace_holds_the_operator(device):
    from torch.fx import symbolic_trace

    cos, sin = half_tables(device, torch.float32, 6, 32)
    q, k = operand(device), operand(device)
    for inplace in (False, True):
        traced = symbolic_trace(lambda q, k: ropejit.apply(q, k, cos, sin, inplace=inplace))  # noqa: B023
        expected = ropejit.apply(q, k, cos, sin)
        assert all(map(torch.equal, traced(q.clone(), k.clone()), expected)) and "ropejit.rotate" in traced.code


class Mine(torch.Tensor):
    """A subclass that overrides nothing."""


def test_subclasses(device):
    q = operand(device)
    out = call(q.as_subclass(Mine), device)
    assert type(out) is Mine and torch.equal(out.as_subclass(torch.Tensor), call(q, device))
    assert torch.equal(call(torch.nn.Parameter(q), device), call(q, device))
    assert torch.equal(call(torch.nn.Buffer(q), device), call(q, device))
    with pytest.raises(ValueError, match="^q: .*uninitialized"):
        call(torch.nn.UninitializedParameter(), device)


def test_stand_ins_of_tracers(device):
    from torch._subclasses import FakeTensorMode
    from torch._subclasses.functional_tensor import FunctionalTensor, FunctionalTensorMode

    q = operand(device)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = call(mode.from_tensor(q), device)
    assert fake.shape == q.shape and type(fake).__name__ == "FakeTensor"
    with FunctionalTensorMode():
        out = FunctionalTensor.from_functional(call(FunctionalTensor.to_functional(q), device))
    assert torch.equal(out, call(q, device))


def in_place(x, device):
    x = x * 1
    call(x, device, inplace=True)
    return x


def test_functionalize(device):
    q = operand(device)
    for f in (lambda x: call(x, device), lambda x: in_place(x, device)):
        assert torch.equal(torch.func.functionalize(f)(q), call(q, device))


def test_vmap(device):
    """Over what turns, tables, positions and offsets; in place; of the drop-ins."""
    cos, sin = half_tables(device, torch.float32, 8, 32)
    x = torch.randn(3, 2, 6, 2, 32, device=device)
    ids = torch.randint(0, 8, (3, 2, 6), device=device)
    offsets = torch.randint(0, 3, (3, 2), device=device)
    of_rows = torch.randn(3, 2, 6, 16, device=device)
    full = [torch.cat((t[:6], t[:6]), -1)[None] for t in (cos, sin)]
    cases = {
        "q": (lambda q: ropejit.apply(q, q[:, :, :1], cos, sin)[1], x),
        "not the first dimension": (lambda q: ropejit.apply(q, None, cos, sin)[0], x.movedim(0, 2), 2),
        "tables of each": (lambda c: ropejit.apply(x[0], None, c, c)[0], of_rows),
        "tables of each sequence": (lambda q: ropejit.apply(q, None, of_rows[0], of_rows[1])[0], x),
        "ids": (lambda i: ropejit.apply(x[0], x[1], cos, sin, position_ids=i)[1], ids),
        "ids of each sequence": (lambda q: ropejit.apply(q, None, cos, sin, position_ids=ids[0])[0], x),
        "offsets": (lambda o: ropejit.apply_rotary_emb(x[0], cos, sin, seqlen_offsets=o), offsets),
        "shared offsets": (lambda q: ropejit.apply_rotary_emb(q, cos, sin, seqlen_offsets=offsets[0]), x),
        "packed": (lambda q: ropejit.apply(q, None, cos, sin, position_ids=ids[0, 0], layout="thd")[0], x[:, 0]),
        "in place": (lambda q: ropejit.apply(q * 1, None, cos, sin, inplace=True)[0], x),
        "transformers": (lambda q: ropejit.apply_rotary_pos_emb(q, q, *full, 2)[0], x),
    }
    for name, (f, over, *dim) in cases.items():
        each = torch.stack([f(s) for s in over.movedim(dim[0] if dim else 0, 0)])
        assert torch.equal(torch.func.vmap(f, *dim)(over), each), name


def test_grad_of_torch_func(device):
    q, g = operand(device), operand(device)
    given = q.clone().requires_grad_()
    (expected,) = torch.autograd.grad(call(given, device), given, g)
    loss = lambda f: lambda x: (f(x, device) * g).sum()  # noqa: E731
    for f in (call, in_place):
        assert torch.equal(torch.func.grad(loss(f))(q), expected)
    # x of the outer level within the inner one
    inner = lambda x: torch.func.grad(lambda z: (call(x, device) * z).sum())(torch.ones_like(x))  # noqa: E731
    assert torch.equal(torch.func.grad(lambda x: (inner(x) * g).sum())(q), expected)
    stacked = torch.stack([q, q + 1])
    assert torch.equal(torch.func.vmap(torch.func.grad(loss(call)))(stacked), torch.stack([expected, expected]))
    k = operand(device)
    of_both = torch.func.grad(lambda q, k: (torch.stack(ropejit.apply(q, k, *half_tables(device, torch.float32, 6, 32))) * g).sum(), (0, 1))
    assert all(torch.equal(x, expected) for x in of_both(q, k))


def test_many_gradients_at_once(device):
    q = operand(device).requires_grad_()
    given = torch.randn(3, *q.shape, device=device)
    out = call(q, device)
    (batched,) = torch.autograd.grad(out, q, given, is_grads_batched=True, retain_graph=True)
    assert torch.equal(batched, torch.stack([torch.autograd.grad(out, q, g, retain_graph=True)[0] for g in given]))
    (batched,) = torch.func.vmap(lambda g: torch.autograd.grad(out, q, g, retain_graph=True))(given)
    assert torch.equal(batched, torch.stack([torch.autograd.grad(out, q, g, retain_graph=True)[0] for g in given]))


def test_gradients_of_any_kind(device):
    q = operand(device).requires_grad_()
    out = call(q, device)
    g = torch.randn_like(out)
    (expected,) = torch.autograd.grad(out, q, g, retain_graph=True)
    (negated,) = torch.autograd.grad(out, q, torch._neg_view(-g), retain_graph=True)
    assert torch.equal(negated, expected)
    (zero,) = torch.autograd.grad(out, q, torch._efficientzerotensor(g.shape, device=device))
    assert not zero.any()


@pytest.mark.filterwarnings("ignore:.*deprecated")
@pytest.mark.parametrize("inplace", [False, True])
def test_a_trace_holds_the_rotation(device, inplace):
    cos, sin = half_tables(device, torch.float32, 6, 32)
    full = [torch.cat((t, t), -1)[None] for t in (cos, sin)]
    offsets = torch.tensor([0], device=device)

    def both(x):
        out = ropejit.apply(x * 1, x[:, :, :1] * 1, cos, sin, inplace=inplace)
        flash = ropejit.apply_rotary_emb(x * 1, cos, sin, inplace=inplace, seqlen_offsets=offsets)
        return *out, flash, *ropejit.apply_rotary_pos_emb(x, x, *full, 2), *ropejit.fast_rope_embedding(x.transpose(1, 2), x.transpose(1, 2), cos, sin)

    for grad in (False, True):
        traced = torch.jit.trace(both, (operand(device).requires_grad_(grad),), check_trace=False)
        x = operand(device)
        assert all(map(torch.equal, traced(x), both(x)))
        assert str(traced.graph).count("ropejit::rotate") >= 4


def test_a_table_that_requires_a_gradient_is_refused_everywhere(device):
    cos, sin = half_tables(device, torch.float32, 6, 32)
    cos.requires_grad_()
    q = operand(device)
    f = lambda q: ropejit.apply(q, None, cos, sin)[0]  # noqa: E731
    compiled = torch.compile(f, backend="eager")
    ways = {
        "eager": f, "compiled": compiled, "in one graph": torch.compile(f, backend="aot_eager", fullgraph=True),
        "traced": lambda q: torch.jit.trace(f, (q,), check_trace=False)(q), "vmap": lambda q: torch.func.vmap(f)(q[None]),
        "grad": torch.func.grad(lambda q: f(q).sum()),
    }  # fmt: skip
    for way in ways.values():
        with pytest.raises(Exception, match="cos: requires a gradient"):
            way(q)
    with torch.no_grad():
        assert torch.equal(f(q), compiled(q))
