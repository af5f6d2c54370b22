"""Arrays of other libraries: what comes before a call is seen by it, and what comes after sees the call, on whatever streams."""

import subprocess
import sys

import numpy as np
import pytest
import ropejit
import torch

SLEEP = 400_000_000  # cycles, about 0.2 s
SHAPE = (2, 64, 4, 64)


def inputs():
    rng = np.random.default_rng(7)
    x = rng.standard_normal(SHAPE, dtype=np.float32)
    angles = rng.random((SHAPE[1], SHAPE[3] // 2), dtype=np.float32)
    return x, np.cos(angles), np.sin(angles)


def expected(x, cos, sin):
    """On the processor: the same bits."""
    return ropejit.apply(x, None, cos, sin)[0]


class Opaque:
    """An array of a library that says nothing of its streams."""

    def __init__(self, array):
        self.array = array

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()

    def __dlpack__(self, **how):
        return self.array.__dlpack__(**how)


def sleep(stream=0):
    """Keeps a stream busy, by its handle."""
    with torch.cuda.stream(torch.cuda.ExternalStream(stream) if stream else torch.cuda.default_stream()):
        torch.cuda._sleep(SLEEP)


def loaded(cupy, *arrays):
    """As arrays of CuPy, with the kernel for them loaded and all work done: a first call would hide an order."""
    x, cos, sin = (cupy.asarray(a) for a in arrays)
    for inplace in (False, True):
        ropejit.apply(x.copy(), None, cos, sin, inplace=inplace)
    cupy.cuda.Device().synchronize()
    return x, cos, sin


@pytest.mark.gpu
@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize("kind", ["non_blocking", "blocking", "null", "ptds"])
def test_a_call_stands_in_line_on_cupys_current_stream(cupy, kind, inplace):
    made = {
        "non_blocking": lambda: cupy.cuda.Stream(non_blocking=True),
        "blocking": lambda: cupy.cuda.Stream(),
        "null": lambda: cupy.cuda.Stream.null,
        "ptds": lambda: cupy.cuda.Stream.ptds,
    }
    stream = made[kind]()
    with stream:
        late, cos, sin = loaded(cupy, *inputs())
        x = cupy.zeros_like(late)
        cupy.cuda.Device().synchronize()
        if kind == "non_blocking":
            sleep()  # the default stream, for which nothing here has to wait
        sleep(stream.ptr)
        x[...] = late
        out, _ = ropejit.apply(x, None, cos, sin, inplace=inplace)
        after = out.copy()
        assert not stream.done, "the call waited for its stream"
    stream.synchronize()
    np.testing.assert_array_equal(after.get(), expected(*inputs()))
    assert (out is x) == inplace


@pytest.mark.gpu
def test_a_graph_of_cupy_captures_the_call(cupy):
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        x, cos, sin = loaded(cupy, *inputs())
        stream.begin_capture()
        ropejit.apply(x, None, cos, sin, inplace=True)
        with pytest.raises(ValueError, match="captured"):
            ropejit.apply(x, None, Opaque(cos), Opaque(sin), inplace=True)
        graph = stream.end_capture()
        graph.launch(stream)
    stream.synchronize()
    np.testing.assert_array_equal(x.get(), expected(*inputs()))


@pytest.mark.gpu
def test_a_library_that_does_not_tell_its_stream_finds_the_call_done(cupy):
    stream, other = (cupy.cuda.Stream(non_blocking=True) for _ in range(2))
    with stream:
        late, cos, sin = loaded(cupy, *inputs())
        x = cupy.zeros_like(late)
        cupy.cuda.Device().synchronize()
        sleep(stream.ptr)
        x[...] = late
        ropejit.apply(Opaque(x), None, Opaque(cos), Opaque(sin), inplace=True)
    with other:
        after = x.copy()
    other.synchronize()
    np.testing.assert_array_equal(after.get(), expected(*inputs()))


@pytest.mark.gpu
def test_arrays_of_two_libraries(cupy):
    """Each may go on at once, on its own stream."""
    stream, side = cupy.cuda.Stream(non_blocking=True), torch.cuda.Stream()
    with stream:
        x, *_ = loaded(cupy, *inputs())
        sleep(stream.ptr)
        with torch.cuda.stream(side):
            cos, sin = (torch.from_numpy(a).cuda() for a in inputs()[1:])
            torch.cuda._sleep(SLEEP // 4)
            cos, sin = cos * 1, sin * 1
            ropejit.apply(x, None, cos, sin, inplace=True)
            cos.fill_(float("nan"))
        after = x.copy()
    stream.synchronize()
    np.testing.assert_array_equal(after.get(), expected(*inputs()))


@pytest.mark.gpu
def test_jax(jax):
    given = [jax.numpy.asarray(a) for a in inputs()]
    ropejit.apply(given[0], None, *given[1:])
    torch.cuda.synchronize()
    sleep()  # the default stream, which JAX does not wait for
    late = given[0] * 1
    outs = [ropejit.apply(x, None, *given[1:])[0] for x in (late, late * 2)]
    after = [np.asarray(out * 1) for out in outs]
    np.testing.assert_array_equal(after[0], expected(*inputs()))
    np.testing.assert_array_equal(after[1], 2 * after[0])
    np.testing.assert_array_equal(np.asarray(late), inputs()[0])
    with pytest.raises(ValueError, match="^q: .*immutable"):
        ropejit.apply(late, None, *given[1:], inplace=True)


def test_what_libraries_are_asked_for():
    """Stand-ins say that they are on GPU 3 and hand over the processor's memory, so that the protocol is seen without a GPU."""
    code = """
import sys, types
import numpy as np, torch, ropejit

asked = []

class Unknown:
    def __init__(self, *shape): self.memory = np.ones(shape, np.float32)
    def __dlpack_device__(self): return (2, 3)
    def __dlpack__(self, *, stream, **how): asked.append(stream); return self.memory.__dlpack__(**how)
    def __array_namespace__(self): return types.SimpleNamespace(empty_like=lambda x: type(x)(*x.memory.shape))

class ndarray(Unknown): pass
class Slice(ndarray): pass

def call(q, table):
    asked.clear()
    ropejit.apply(q(1, 2, 1, 4), None, table(2, 2), table(2, 2))
    return asked

assert call(Unknown, Unknown) == [1] * 4, asked
current = types.SimpleNamespace(ptr=0)
gpus = []
cuda = types.SimpleNamespace(get_current_stream=lambda gpu: gpus.append(gpu) or current)
sys.modules["cupy"] = types.SimpleNamespace(ndarray=ndarray, cuda=cuda)
assert call(ndarray, ndarray) == [1] * 4 and gpus == [3], (asked, gpus)
for current.ptr in (2, 0x7F00_1234_5678):
    for arrays in [(ndarray, ndarray), (Slice, ndarray), (ndarray, Unknown)]:
        assert call(*arrays) == [current.ptr] * 4, asked
    assert call(Unknown, ndarray) == [1] * 4, asked
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
