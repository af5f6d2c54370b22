"""Kernels of the user's own, from their tensors to a launch."""

import pathlib

import numpy as np
import pytest
import torch

import ropejit

DATA = pathlib.Path(__file__).parents[2] / "tests" / "data" / "templates"


@pytest.fixture(scope="module")
def norm():
    return ropejit.template(DATA / "add_rmsnorm.toml")


@pytest.fixture(scope="module")
def scale():
    return ropejit.template(str(DATA / "scale.toml"))


def reference(x, residual, weight, eps):
    residual = (x.float() + residual.float()).to(x.dtype)
    r = residual.float()
    y = r * torch.rsqrt(r.square().mean(-1, keepdim=True) + eps) * weight.float()
    return y.to(x.dtype), residual


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_spec_and_sizes_follow_from_tensors(norm, device, dtype):
    for rows, hidden in [(3, 64), (5, 200)]:
        x, r = (torch.randn(rows, hidden, device=device, dtype=dtype) for _ in range(2))
        w = torch.rand(hidden, device=device, dtype=dtype) + 0.5
        wanted, residual = reference(x, r, w, 1e-5)
        for _ in range(2):
            y, got = torch.empty_like(x), r.clone()
            assert norm(x=x, residual=got, weight=w, y=y, eps=1e-5) is None
            assert torch.equal(got, residual)
            torch.testing.assert_close(y, wanted)


def test_numpy_arrays_are_served_on_the_processor(scale):
    x, y = np.arange(100, dtype=np.float32), np.zeros(100, dtype=np.float32)
    scale(x=x, y=y, factor=2)
    assert (y == 2 * x).all()


def test_what_is_written_is_known_to_autograd(scale, device):
    x, y = torch.ones(8, device=device), torch.ones(8, device=device)
    before = y._version
    scale(x=x, y=y, factor=3.0)
    assert y._version == before + 1 and x._version == 0


def test_no_thread_waits_for_the_interpreter(scale):
    from concurrent.futures import ThreadPoolExecutor

    def run(i):
        x, y = torch.full((1000,), float(i)), torch.empty(1000)
        for _ in range(20):
            scale(x=x, y=y, factor=0.5)
        return bool((y == i / 2).all())

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(run, range(8)))


def refused(kernel, error, message, **arguments):
    with pytest.raises(error) as caught:
        kernel(**arguments)
    assert str(caught.value) == message


def test_errors_name_the_argument(norm, scale, device):
    x, w = torch.zeros(3, 64, device=device), torch.zeros(64, device=device)
    good = dict(x=x, residual=x.clone(), weight=w, y=x.clone(), eps=1e-6)
    norm(**good, rows=3, hidden=64, dtype="f32")
    bad = lambda message, error=ValueError, **other: refused(norm, error, message, **{**good, **other})
    bad("residual: is f16, and 'dtype' is f32 by 'x'", residual=x.half())
    bad("weight: has 65 in dimension 0, and 'hidden' is 64 by 'x'", weight=torch.zeros(65, device=device))
    bad("x: has 3 in dimension 0, and 'rows' is 4", rows=4)
    bad("x: is f64, and 'dtype' may be one of f32, f16, bf16", x=x.double())
    bad("x: has elements that no kernel takes (complex64)", x=x.to(torch.complex64))
    bad("x: is not contiguous\nhint: .contiguous() makes a copy that is", x=torch.zeros(64, 3, device=device).T)
    bad("eps: is a <class 'str'>, and should be a number", eps="x")
    bad("dtype: 'f8' is not one of f32, f16, bf16", dtype="f8")
    with pytest.raises(ValueError, match="y: is missing"):
        norm(**{k: v for k, v in good.items() if k != "y"})
    with pytest.raises(TypeError, match="z: add_rmsnorm has no such argument\nhint: it has x, residual, weight, y, rows, eps"):
        norm(**good, z=x)
    with pytest.raises(TypeError, match="arguments are given by name: x, residual"):
        norm(x)
    with pytest.raises(ValueError, match=r"weight: has the shape \[64, 1\], and should have \[hidden\] = \[64\]"):
        norm(**{**good, "weight": w[:, None]})
    with pytest.raises(ValueError, match="x: requires a gradient, and the kernel has no backward"):
        norm(**{**good, "x": x.clone().requires_grad_()})
    with pytest.raises(ValueError, match="y: is read-only, and would be written"):
        array = np.zeros(8, dtype=np.float32)
        array.flags.writeable = False
        scale(x=np.ones(8, dtype=np.float32), y=array, factor=1.0)
    with pytest.raises(ValueError, match="x: its memory does not hold its numbers"):
        norm(**{**good, "x": torch._neg_view(x)})
    with torch.no_grad():
        norm(**{**good, "x": x.clone().requires_grad_()})
    refused(scale, ValueError, "factor: is missing", x=w, y=w.clone())
    refused(scale, ValueError, "n: 1.5 is given, and should be an integer of type u32", x=w, y=w.clone(), factor=1, n=1.5)


def test_what_is_written_shares_no_memory(norm, scale, device):
    memory = torch.arange(64, dtype=torch.float32, device=device)
    shared = "y: is written, and shares memory with x\nhint: give it memory of its own, such as y.clone()"
    refused(scale, ValueError, shared, x=memory, y=memory, factor=2.0)
    refused(scale, ValueError, shared, x=memory[:32], y=memory[31:63], factor=2.0)
    refused(scale, ValueError, shared, x=memory[31:63], y=memory[:32], factor=2.0)
    array = np.zeros(8, dtype=np.float32)
    refused(scale, ValueError, shared, x=array, y=array, factor=2.0)
    assert (memory == torch.arange(64, device=device)).all()
    scale(x=memory[:32], y=memory[32:], factor=2.0)
    assert (memory[32:] == 2 * memory[:32]).all()
    scale(x=memory[:0], y=memory[:0], factor=2.0)
    x, w = torch.zeros(3, 64, device=device), torch.zeros(64, device=device)
    with pytest.raises(ValueError, match="residual: is written, and shares memory with y"):
        norm(x=x.clone(), residual=x, weight=w, y=x, eps=1e-6)
    with pytest.raises(ValueError, match="residual: is written, and shares memory with weight"):
        norm(x=x.clone(), residual=x, weight=x[1], y=x.clone(), eps=1e-6)
    norm(x=x, residual=x.clone(), weight=x[1], y=x.clone(), eps=1e-6)  # what is only read may


def test_a_description_that_is_loaded_again_is_compiled_once(device):
    x = torch.ones(8, device=device)
    ropejit.template(DATA / "scale.toml")(x=x, y=torch.empty_like(x), factor=2.0)
    before = ropejit.stats().compiles
    for _ in range(50):
        y = torch.empty_like(x)
        ropejit.template(DATA / "scale.toml")(x=x, y=y, factor=2.0)
        assert (y == 2).all()
    assert ropejit.stats().compiles == before


@pytest.mark.gpu
def test_tensors_of_two_devices_do_not_meet(norm):
    x, w = torch.zeros(3, 64, device="cuda"), torch.zeros(64)
    refused(norm, ValueError, "weight: is on cpu, x on cuda:0", x=x, residual=x, weight=w, y=x, eps=0.1)


@pytest.mark.gpu
def test_a_graph_replays_it(scale):
    x, y = torch.ones(1024, device="cuda"), torch.zeros(1024, device="cuda")
    scale(x=x, y=y, factor=1.0)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        scale(x=x, y=y, factor=4.0)
    x.fill_(2)
    graph.replay()
    torch.cuda.synchronize()
    assert (y == 8).all()


def test_a_description_that_is_wrong_names_file_and_line(tmp_path):
    text = (DATA / "scale.toml").read_text()
    (tmp_path / "scale.cu").write_text((DATA / "scale.cu").read_text())
    (tmp_path / "scale.toml").write_text(text.replace("bucket", "buckt"))
    with pytest.raises(ValueError, match=r"scale.toml:23: \[launch\] buckt: unknown key\nhint: known here: grid"):
        ropejit.template(tmp_path / "scale.toml")
    assert repr(ropejit.template(DATA / "scale.toml")).endswith('scale.toml")')
