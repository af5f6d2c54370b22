"""RoPE with its neighbours in PyTorch's own operations: the norm, its gradient and the cache, each rounding written out."""

import torch
import torch.nn.functional as F


def fold(lanes):
    """32 lanes become one: lane i += lane i + n for n = 16, 8, 4, 2, 1."""
    while lanes.shape[-1] > 1:
        half = lanes.shape[-1] // 2
        lanes = lanes[..., :half] + lanes[..., half:]
    return lanes


def padded(x, width):
    return F.pad(x, (0, width - x.shape[-1]))


def total(x, order):
    """The sum of the last dimension in float32, kept as a dimension of one."""
    dim = x.shape[-1]
    if order == "tree":
        x = padded(x, 1 << (dim - 1).bit_length())
        while x.shape[-1] > 1:
            x = x[..., ::2] + x[..., 1::2]
        return x
    if dim >= 128 and dim % 4 == 0:
        runs = [padded(run, 128).unflatten(-1, (32, 4)) for run in x.split(128, -1)]
        v = torch.zeros_like(runs[0])
        for run in runs:
            v = v + run
        return fold(((v[..., 0] + v[..., 1]) + v[..., 2]) + v[..., 3])
    lanes = None
    for run in x.split(32, -1):
        lanes = padded(run, 32) if lanes is None else lanes + padded(run, 32)
    return fold(lanes)


def inverse(dim, device):
    """fl(1/D), as float32."""
    return torch.tensor(1.0, device=device) / dim


def root(x, eps, order, rsqrt):
    """r, of `x.float()`."""
    x = x.float()
    v = total(x * x, order) * inverse(x.shape[-1], x.device) + eps
    # PyTorch's sqrt of float32 on a CPU is not always the nearest.
    return torch.rsqrt(v) if rsqrt == "approx" else 1.0 / v.double().sqrt().float()


def norm(x, w, eps, flavour="weight_after", order="torch", rsqrt="ieee"):
    u = x.float() * root(x, eps, order, rsqrt)
    if flavour == "weight_after":
        return w * u.to(x.dtype)
    if flavour == "one_plus_weight":
        return (u * (1.0 + w.float())).to(x.dtype)
    if flavour == "weight_f32":
        return (u * w.float()).to(x.dtype)
    return u.to(x.dtype)


def norm_backward(dm, x, w, eps, flavour, order, rsqrt, rounding):
    """dx, and a row of the weight's gradient for each head. `dm` is of x's type for `per_op`, else of float32."""
    r, f, T = root(x, eps, order, rsqrt), x.float(), x.dtype
    u = f * r
    if flavour == "weight_after" and rounding == "per_op":
        dn, term = (dm * w).float(), (dm * u.to(T)).float()
    elif flavour == "weight_after":
        dn, term = dm.float() * w.float(), dm.float() * u.to(T).float()
    elif flavour == "no_weight":
        dn, term = dm.float(), None
    else:
        dn, term = dm.float() * (w.float() if flavour == "weight_f32" else 1.0 + w.float()), dm.float() * u
    of_mean = ((-0.5 * total(dn * f, order)) * ((r * r) * r)) * inverse(x.shape[-1], x.device)
    return (dn * r + of_mean * (2.0 * f)).to(T), term


def weight_gradient(term, dtype):
    """Rows numbered token by token, head by head: 32 in sequence from 0, then a tree of neighbours."""
    rows = term.reshape(-1, term.shape[-1])
    rows = F.pad(rows, (0, 0, 0, -rows.shape[0] % 32)).unflatten(0, (-1, 32))
    sums = torch.zeros_like(rows[:, 0])
    for i in range(32):
        sums = sums + rows[:, i]
    sums = F.pad(sums, (0, 0, 0, (1 << (sums.shape[0] - 1).bit_length()) - sums.shape[0]))
    while sums.shape[0] > 1:
        sums = sums[::2] + sums[1::2]
    return sums[0].to(dtype)


def halves(x, style):
    """The two elements of each pair."""
    return (x[..., ::2], x[..., 1::2]) if style != "half_split" else x.chunk(2, -1)


def joined(a, b, style):
    return torch.stack((a, b), -1).flatten(-2) if style == "interleaved" else torch.cat((a, b), -1)


def rotate(x, cos, sin, rounding, style="half_split", part="first"):
    """`[…, tokens, heads, dim]`, cos and sin `[…, tokens, pairs]`; what is beyond the pairs rests."""
    width = 2 * cos.shape[-1]
    rest = x[..., width:] if part == "first" else x[..., : x.shape[-1] - width]
    a, b = halves(x[..., :width] if part == "first" else x[..., x.shape[-1] - width :], style)
    c, s = cos.unsqueeze(-2), sin.unsqueeze(-2)
    if rounding == "per_op":
        c, s = c.to(x.dtype), s.to(x.dtype)
    else:
        a, b, c, s = a.float(), b.float(), c.float(), s.float()
    turned = joined(a * c - b * s, b * c + a * s, style).to(x.dtype)
    return torch.cat((turned, rest) if part == "first" else (rest, turned), -1)


def rotate_back(dy, cos, sin, rounding, style="half_split"):
    """The transposed rotation: of dy's type for `per_op`, else float32 that nothing has rounded."""
    width = 2 * cos.shape[-1]
    turning, rest = dy[..., :width], dy[..., width:]
    a, b = turning.chunk(2, -1) if style == "deinterleave" else halves(turning, style)
    c, s = cos.unsqueeze(-2), sin.unsqueeze(-2)
    if rounding == "per_op":
        c, s = c.to(dy.dtype), s.to(dy.dtype)
    else:
        a, b, c, s, rest = a.float(), b.float(), c.float(), s.float(), rest.float()
    back = joined(a * c + b * s, b * c - a * s, "half_split" if style == "half_split" else "interleaved")
    return torch.cat((back, rest), -1)


def forward(x, w, cos, sin, eps, rounding, flavour="weight_after", order="torch", rsqrt="ieee", after_rope=False, style="half_split"):
    """One of q and k, `[…, tokens, heads, dim]`."""
    how = (eps, flavour, order, rsqrt)
    if after_rope:
        return norm(rotate(x, cos, sin, rounding, style), w, *how)
    return rotate(norm(x, w, *how), cos, sin, rounding, style)


def backward(dy, x, w, cos, sin, eps, rounding, flavour="weight_after", order="torch", rsqrt="ieee", after_rope=False, style="half_split"):
    """dx, and the weight's gradient (None where there is no weight)."""
    how = (eps, flavour, order, rsqrt, rounding)
    if after_rope:
        dz, term = norm_backward(dy, rotate(x, cos, sin, rounding, style), w, *how)
        dx = rotate_back(dz, cos, sin, rounding, style).to(x.dtype)
    else:
        dx, term = norm_backward(rotate_back(dy, cos, sin, rounding, style), x, w, *how)
    return dx, None if w is None else weight_gradient(term, w.dtype)


def fp8(x, scale, use="divide"):
    """`x` in float8_e4m3fn. PyTorch's conversion does not saturate everywhere, so what is too large is cut before; NaN is 0x7f."""
    scale = scale.reshape(-1, 1)
    x = x.float() / scale if use == "divide" else x.float() * scale
    x = torch.where(x.isnan(), 0x7F, x.clamp(-448, 448).to(torch.float8_e4m3fn).view(torch.uint8))
    return x.view(torch.float8_e4m3fn)


def store(cache, x, slots, scale=None, use="divide"):
    """Writes `[tokens, heads, dim]` to the slots of a cache; those of -1 nowhere."""
    stored = slots >= 0
    x = x[stored] if scale is None else fp8(x[stored], scale, use)
    blocks, places = slots[stored] // cache.shape[1], slots[stored] % cache.shape[1]
    if cache.dtype == torch.float8_e4m3fn:
        cache, x = cache.view(torch.uint8), x.view(torch.uint8)
    cache[blocks, places] = x


def bits(x):
    """Integers of the same bits: NaN and -0 compare."""
    return x.view({1: torch.uint8, 2: torch.int16, 4: torch.int32}[x.element_size()])


def same(ours, theirs, what=""):
    """Bit for bit, but that any NaN is a NaN."""
    assert ours.dtype == theirs.dtype and ours.shape == theirs.shape, (what, ours.dtype, theirs.dtype, ours.shape, theirs.shape)
    differ = bits(ours) != bits(theirs)
    if ours.dtype != torch.float8_e4m3fn:
        differ &= ~(ours.isnan() & theirs.isnan())
    n = differ.sum().item()
    assert n == 0, f"{what}: {n} of {ours.numel()} differ, first at {differ.nonzero()[0].tolist()}"
