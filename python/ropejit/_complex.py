"""Which of the kernels' rounding contracts PyTorch's complex product has.

``a·c − b·d`` and ``a·d + b·c`` are `once` where each real product is rounded, and `contracted` where the compiler has fused one of
the two with the sum, as it does for CUDA. Of PyTorch nothing says which but its results. On the processor its vector code rounds
each product, and what is left over at the end of a row or of a thread's part is contracted in most builds, and so are numbers that
are no neighbours; so there only rows of neighbours without such an end are trusted, of one thread's part, and compared as well.
What a device was seen to do is kept.
"""

import logging

import torch

_log = logging.getLogger("ropejit")
#: Complex numbers that all vector code handles without a rest, and that one thread gets in any case.
_VECTORS, _ONE_PART = 16, 32768
#: A device's contract, or None where it has neither.
_SEEN = {}


def rounding(q, k, freqs):
    """The contract of the products of q and k, taken as complex numbers, with ``freqs``; None where kernels have none like it."""
    if torch.compiler.is_compiling():
        return None
    if freqs.dtype != torch.complex64 or freqs.is_conj() or freqs.device != q.device:
        return None
    if q.device.type == "cpu":
        if freqs.stride(-1) != 1 or q.shape[-1] % (2 * _VECTORS) or max(q.numel(), k.numel()) > 2 * _ONE_PART:
            return None
    if q.device not in _SEEN:
        if q.device.type not in ("cpu", "cuda") or _is_watched() or (q.is_cuda and torch.cuda.is_current_stream_capturing()):
            return None
        _SEEN[q.device] = _measured(q.device)
    return _SEEN[q.device]


def _is_watched():
    """Whether a transform, a mode or a tracer would take part in the measurement."""
    if torch._C._functorch.maybe_current_level() is not None or torch._C._get_tracing_state() is not None:
        return True
    return torch._C._len_torch_dispatch_stack() > 0


@torch.no_grad()
def _measured(device):
    """Some thousand products on the device, and the same by real operations, each a kernel of its own."""
    generator = torch.Generator("cpu").manual_seed(0)
    x, freqs = (torch.randn(2, 4, 8, 64, 2, generator=generator).to(device) for _ in range(2))
    fitting, conjugate = {"once", "contracted"}, torch.tensor((1.0, -1.0), device=device)
    # For all tokens and heads, and for each token or head as models broadcast them; by the conjugate as autograd has it.
    for rows in (freqs, freqs[:, :1].contiguous(), freqs[:, :, :1].contiguous()):
        turning = torch.view_as_complex(rows)
        for factor, same in ((turning, rows), (turning.conj(), rows * conjugate)):
            theirs = torch.view_as_real(torch.view_as_complex(x) * factor)
            fitting = {how for how in fitting if torch.equal(theirs, product(x, same, how))}
    if not fitting:
        _log.warning("complex products on %s are rounded as no kernel does: models that use them compute themselves", device)
    return fitting.pop() if fitting else None


def product(x, y, how):
    """The complex product of pairs, each real operation by itself, under a contract."""
    a, b, c, d = *x.unbind(-1), *y.unbind(-1)
    if how == "contracted":
        return torch.stack((_fused(a, c, -(b * d)), _fused(a, d, b * c)), dim=-1)
    return torch.stack((a * c - b * d, a * d + b * c), dim=-1)


def _fused(x, y, z):
    """``x·y + z`` of float32 numbers, rounded once."""
    exact, z = x.double() * y.double(), z.double()
    total = exact + z
    part = total - exact
    error = (exact - (total - part)) + (z - part)
    # Of the two numbers of float64 beside the sum, the odd one rounds to float32 as the sum does.
    beside = torch.nextafter(total, torch.copysign(torch.full_like(total, torch.inf), error))
    return torch.where((error != 0) & (total.view(torch.int64) & 1 == 0), beside, total).float()
