"""What only a GPU can show: streams, graphs, memory that is used again, more than one GPU, tuning beside calls."""

import os
import subprocess
import sys

import pytest
import ropejit
import torch
from eager import DTYPES, equal, llama, qk, tables
from ropejit import _complex

pytestmark = pytest.mark.gpu


def inputs(dtype=torch.bfloat16, tokens=5, device="cuda", grad=False):
    return (*qk(device, dtype, 2, tokens, 4, 2, 64, grad=grad), *tables(device, dtype, 2, tokens, 64))


def test_tensors_are_read_through_the_exchange_api():
    """Without it a call takes some microseconds a tensor."""
    if tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 10):
        assert "dlpack_exchange_api" in repr(torch.Tensor.__dlpack_c_exchange_api__)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tokens", [1, 64, 1000])
def test_the_same_bits_as_on_the_processor(dtype, tokens):
    q, k, cos, sin = inputs(dtype, tokens)
    on_gpu = ropejit.apply_rotary_pos_emb(q, k, cos, sin)
    equal([x.cpu() for x in on_gpu], llama(*(x.cpu() for x in (q, k, cos, sin))))
    equal(on_gpu, llama(q, k, cos, sin))


@pytest.mark.parametrize("tokens", [1, 64, 1000])
def test_complex_products_have_a_contract_of_the_kernels(tokens):
    """PyTorch's compiler fuses one real product of each part with their sum, forward and backward: seen with 2.11 on an H200."""
    q, k = (torch.randn(2, tokens, heads, 128, device="cuda", requires_grad=True) for heads in (8, 2))
    freqs = torch.polar(torch.ones(tokens, 64, device="cuda"), 6 * torch.rand(tokens, 64, device="cuda"))
    how = _complex.rounding(q, k, freqs)
    assert how is not None
    cos, sin = (part.contiguous() for part in torch.view_as_real(freqs).unbind(-1))
    out = ropejit.apply(q, k, cos, sin, interleaved=True, rounding=how)
    pairs = (torch.view_as_complex(x.unflatten(-1, (-1, 2))) for x in (q, k))
    theirs = [torch.view_as_real(x * freqs[:, None]).flatten(-2) for x in pairs]
    equal(out, theirs)
    given = [torch.randn_like(x) for x in out]
    equal(*(torch.autograd.grad(x, (q, k), given) for x in (out, theirs)))


def test_runs_on_the_current_stream():
    q, k, cos, sin = inputs()
    expected = ropejit.apply_rotary_pos_emb(q, k, cos, sin)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(20_000_000)
        late = q * 1
        out = ropejit.apply_rotary_pos_emb(late, k, cos, sin)
        assert not side.query(), "the call waited for its stream"
    side.synchronize()
    equal(out, expected)


def test_the_backward_pass_runs_on_the_forward_passes_stream():
    q, k, cos, sin = inputs(grad=True)
    given = [torch.randn_like(q), torch.randn_like(k)]
    expected = torch.autograd.grad(llama(q, k, cos, sin), (q, k), given)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        out = ropejit.apply_rotary_pos_emb(q, k, cos, sin)
        torch.cuda._sleep(20_000_000)
        grads = torch.autograd.grad(out, (q, k), [x * 1 for x in given])
    side.synchronize()
    equal(grads, expected)


def test_memory_that_is_freed_after_the_call_is_used_again():
    """Inputs and outputs go back to the allocator while their kernel may still wait for its turn."""
    q, k, cos, sin = inputs(tokens=512)
    expected = llama(q, k, cos, sin)
    ropejit.apply_rotary_pos_emb(q, k, cos, sin)
    for _ in range(20):
        torch.cuda._sleep(1_000_000)
        out = ropejit.apply_rotary_pos_emb(q * 1, k * 1, cos * 1, sin * 1)  # inputs are freed at once
        over = [torch.full_like(x, float("nan")) for x in (q, k, cos, sin)]
        copies = [x * 1 for x in out]
        del out
        over += [torch.full_like(x, float("nan")) for x in (q, k)]
        equal(copies, expected)
        del over, copies


@pytest.mark.parametrize("inplace", [False, True])
def test_cuda_graph(inplace):
    q, k, cos, sin = inputs()
    given = [x.clone() for x in (q, k)]

    def call():
        return ropejit.apply(q, k, cos, sin, layout="bhsd", rounding="per_op", inplace=inplace)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = call()
    for turn in range(3):  # with other contents each time
        for x, y in zip((q, k), given, strict=True):
            x.copy_(y + turn)
        expected = llama(*(y + turn for y in given), cos, sin)
        graph.replay()
        torch.cuda.synchronize()
        equal(out, expected)


def test_cuda_graph_of_a_training_step():
    q, k, cos, sin = inputs(torch.float32)
    # Leaves: what made them would be differentiated on its own stream, outside the capture.
    q, k = (x.detach().requires_grad_() for x in (q, k))
    given = [torch.randn_like(q), torch.randn_like(k)]

    def step():
        return torch.autograd.grad(ropejit.apply_rotary_pos_emb(q, k, cos, sin), (q, k), given)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        grads = step()
    graph.replay()
    torch.cuda.synchronize()
    equal(grads, torch.autograd.grad(llama(q, k, cos, sin), (q, k), given))


def test_a_capture_of_what_is_not_loaded_says_so_and_spoils_nothing():
    q = torch.randn(1, 3, 2, 58, device="cuda")
    cos = torch.rand(3, 29, device="cuda")
    x = torch.zeros(4, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        with pytest.raises(NotImplementedError, match="before the capture"):
            ropejit.apply(q, None, cos, cos)
        x.add_(1)
    graph.replay()
    assert x.sum().item() == 4
    ropejit.apply(q, None, cos, cos)


def test_compiled_with_cuda_graphs():
    q, k, cos, sin = inputs()
    compiled = torch.compile(ropejit.apply_rotary_pos_emb, fullgraph=True, mode="reduce-overhead")
    expected = llama(q, k, cos, sin)
    with torch.no_grad():
        for _ in range(4):  # warm-up, capture, replays
            torch.compiler.cudagraph_mark_step_begin()
            equal([x.clone() for x in compiled(q, k, cos, sin)], expected)


def test_many_streams():
    """One engine, many streams: what one stream computes does not depend on the others."""
    sets = [inputs(tokens=33 + i) for i in range(4)]
    expected = [llama(*s) for s in sets]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in sets]
    outs = []
    for _ in range(10):
        for stream, s in zip(streams, sets, strict=True):
            with torch.cuda.stream(stream):
                outs.append(ropejit.apply_rotary_pos_emb(*s))
    torch.cuda.synchronize()
    for i, out in enumerate(outs):
        equal(out, expected[i % 4])


def test_tensors_of_different_devices_are_refused():
    q, k, cos, sin = inputs()
    with pytest.raises(ValueError, match="^cos: is on cpu, q on cuda:0"):
        ropejit.apply(q, k, cos.cpu(), sin, layout="bhsd")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_second_gpu_while_the_first_is_current():
    q, k, cos, sin = inputs(device="cuda:1")
    out = ropejit.apply_rotary_pos_emb(q, k, cos, sin)
    assert torch.cuda.current_device() == 0 and out[0].device == q.device
    equal(out, llama(q, k, cos, sin))
    equal(ropejit.apply_rotary_pos_emb(*(x.to("cuda:0") for x in (q, k, cos, sin))), [x.to("cuda:0") for x in out])


def test_logits_with_attention_as_models_come():
    from test_models import MODELS

    for name in ("llama", "qwen3", "gemma"):
        model = MODELS[name]().to("cuda", torch.bfloat16).eval()
        ids = torch.randint(0, 64, (2, 40), device="cuda")
        with torch.no_grad():
            logits = model(input_ids=ids).logits
            with ropejit.patched("transformers"):
                assert torch.equal(model(input_ids=ids).logits, logits), name


def fresh(code, folder, **environment):
    """What a fresh process prints, which has a GPU and a cache of its own."""
    start = """
import os, torch, ropejit
q, k = torch.randn(1, 256, 32, 128, device="cuda").bfloat16(), torch.randn(1, 256, 8, 128, device="cuda").bfloat16()
angles = torch.rand(256, 64, device="cuda")
cos, sin = angles.cos().bfloat16(), angles.sin().bfloat16()
torch.cuda.synchronize()
nvrtc = lambda: "libnvrtc.so" in open("/proc/self/maps").read()
"""
    environment = os.environ | {"ROPEJIT_CACHE_DIR": str(folder)} | environment
    done = subprocess.run(
        [sys.executable, "-c", start + code], env=environment, capture_output=True, text=True, timeout=120, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_tuning_beside_calls_changes_no_bit_and_the_next_process_loads_no_compiler(tmp_path):
    # Of this width nothing is shipped that was measured before: where there is, it serves, and nothing is tuned.
    narrow = "q, k, cos, sin = (x[..., :n].contiguous() for x, n in ((q, 48), (k, 48), (cos, 24), (sin, 24)))\n"
    code = narrow + """
first = [x.clone() for x in ropejit.apply(q, k, cos, sin)]
while not (tuned := ropejit.stats().tunings):
    assert not ropejit.stats().priors, "a choice that is shipped serves: nothing will be tuned"
    assert all(map(torch.equal, ropejit.apply(q, k, cos, sin), first))
assert all(map(torch.equal, ropejit.apply(q, k, cos, sin), first))
ropejit.wait_tuned()
print(tuned)
"""
    assert fresh(code, tmp_path, ROPEJIT_TUNING="background") == ["1"]
    code = narrow + """
before = nvrtc()
ropejit.freeze()
ropejit.apply(q, k, cos, sin)
print(ropejit.stats().compiles, nvrtc() and not before)
"""
    assert fresh(code, tmp_path, ROPEJIT_TUNING="background") == ["0", "False"]


@pytest.mark.parametrize("kind", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("inplace", [False, True])
def test_a_graph_follows_its_offsets(kind, packed, inplace):
    """Decoding: one sequence, whose position is in a tensor. Nothing may be read on the host."""
    cos, sin = (x[0, :, :32].contiguous() for x in tables("cuda", torch.bfloat16, 1, 64, 64))
    given = torch.randn(1, 1, 8, 64, device="cuda", dtype=torch.bfloat16)
    x, at = given.clone(), torch.tensor([5], device="cuda", dtype=kind)
    how = {"cu_seqlens": torch.tensor([0, 1], device="cuda", dtype=torch.int32), "max_seqlen": 1} if packed else {}

    def call(x, offset):
        out = ropejit.apply_rotary_emb(x[0] if packed else x, cos, sin, inplace=inplace, seqlen_offsets=offset, **how)
        return out[None] if packed else out

    torch.cuda.set_sync_debug_mode("error")
    try:
        call(x.clone(), at)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = call(x, at)
    for position in (5, 6, 63):
        x.copy_(given)
        at.fill_(position)
        graph.replay()
        torch.cuda.synchronize()
        expected = ropejit.apply_rotary_emb(given, cos, sin, seqlen_offsets=position)
        equal([out], [expected])


def test_in_place_under_autograd_in_a_graph():
    """Slices of one packed tensor: the gradient's launches are captured too."""
    cos, sin = (x[0, :, :32].contiguous() for x in tables("cuda", torch.float32, 1, 5, 64))
    x = torch.randn(2, 5, 3, 4, 64, device="cuda", requires_grad=True)
    given = torch.randn_like(x)

    def step():
        qkv = x * 1
        ropejit.apply(qkv[:, :, 0], qkv[:, :, 1], cos, sin, inplace=True)
        return torch.autograd.grad(qkv, x, given)

    expected = step()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        grads = step()
    graph.replay()
    torch.cuda.synchronize()
    equal(grads, expected)
