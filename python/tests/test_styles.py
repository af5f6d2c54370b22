"""Which elements turn together: `style` of `apply`."""

import pytest
import ropejit
import torch
from test_norm import bf16, f16, f32, inputs


@pytest.mark.parametrize("dtype", [f32, f16, bf16], ids=str)
@pytest.mark.parametrize("inplace", [False, True])
def test_apply_takes_pairs_that_move(device, dtype, inplace):
    """`style="deinterleave"` is the first thing DeepSeek-V3 does to a head, then a half-split rotation."""
    q, k, _, _, cos, sin = inputs(device, dtype, 64, grad=not inplace)
    full = [torch.cat((t, t), -1) for t in (cos, sin)]
    for tables in ((cos, sin), full):
        moved = [torch.cat((x[..., ::2], x[..., 1::2]), -1) for x in (q, k)]
        expected = ropejit.apply(*moved, *tables)
        given = [x.clone() for x in (q, k)] if inplace else (q, k)
        out = ropejit.apply(*given, *tables, style="deinterleave", inplace=inplace)
        assert all(map(torch.equal, out, expected))
        if not inplace:
            g = [torch.randn_like(x) for x in out]
            ours, theirs = (torch.autograd.grad(x, (q, k), g) for x in (out, expected))
            assert all(map(torch.equal, ours, theirs))
            compiled = torch.compile(lambda q, k, c, s: ropejit.apply(q, k, c, s, style="deinterleave"), fullgraph=True, backend="aot_eager")
            assert all(map(torch.equal, compiled(q, k, *tables), expected))


def test_the_two_ways_to_say_interleaved(device):
    q, k, _, _, cos, sin = inputs(device)
    by_flag, by_name = ropejit.apply(q, k, cos, sin, interleaved=True), ropejit.apply(q, k, cos, sin, style="interleaved")
    assert all(map(torch.equal, by_flag, by_name))
    assert all(map(torch.equal, ropejit.apply(q, k, cos, sin), ropejit.apply(q, k, cos, sin, style="half_split")))
    with pytest.raises(ValueError, match="^style: 'half_split' and interleaved=True"):
        ropejit.apply(q, k, cos, sin, interleaved=True, style="half_split")
    with pytest.raises(ValueError, match="^style: 'gptj' is not one of"):
        ropejit.apply(q, k, cos, sin, style="gptj")
