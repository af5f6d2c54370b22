"""Whether a complex product is what the kernels compute: each of its real products rounded, then their sum.

A compiler may have contracted the product, `a·c − b·d` to one rounding of `a·c − fl(b·d)`: then the last bits differ. Of PyTorch
nothing says so but its results. On the processor its vector code rounds each product, and what is left over at the end of a row
or of a thread's part is contracted in most builds, and so are numbers that are no neighbours; so there only rows of neighbours
without such an end are trusted, of one thread's part, and compared as well. What a device was seen to do is kept.
"""

import logging

import torch

_log = logging.getLogger("ropejit")
#: Complex numbers that all vector code handles without a rest, and that one thread gets in any case.
_VECTORS, _ONE_PART = 16, 32768
_SEEN = {}


def is_rounded(q, k, freqs):
    """Whether the kernels may stand for the products of q and k, taken as complex numbers, with ``freqs``."""
    if torch.compiler.is_compiling():
        return False
    if freqs.dtype != torch.complex64 or freqs.is_conj() or freqs.device != q.device:
        return False
    if q.device.type == "cpu":
        if freqs.stride(-1) != 1 or q.shape[-1] % (2 * _VECTORS) or max(q.numel(), k.numel()) > 2 * _ONE_PART:
            return False
    if q.device not in _SEEN:
        if q.device.type not in ("cpu", "cuda") or (q.is_cuda and torch.cuda.is_current_stream_capturing()):
            return False
        _SEEN[q.device] = _measured(q.device)
    return _SEEN[q.device]


@torch.no_grad()
def _measured(device):
    """A product of some thousand numbers on the device, and the same by real operations, each a kernel of its own."""
    generator = torch.Generator("cpu").manual_seed(0)
    x, freqs = (torch.randn(2, 4, 8, 64, 2, generator=generator).to(device) for _ in range(2))
    freqs = freqs[:, :1]
    a, b, c, d = *x.unbind(-1), *freqs.unbind(-1)
    theirs = torch.view_as_real(torch.view_as_complex(x) * torch.view_as_complex(freqs.contiguous()))
    same = torch.equal(theirs, torch.stack((a * c - b * d, a * d + b * c), dim=-1))
    if not same:
        _log.warning("complex products on %s are contracted, which kernels do not do: models that use them compute themselves", device)
    return same
