#!/usr/bin/env python3
"""Makes fused_*.bin: what PyTorch's arithmetic makes of a norm of q and k, of its gradient, of an fp8 cache, and of pairs
that move, on a CPU.

Needs torch and transformers. One file a case: a line of JSON (the spec as ropejit's RopeSpec, shapes, lengths of the arrays), then
the arrays as raw little-endian bytes, [batch, tokens, heads, head_dim] in memory.

The norm of transformers' own classes cannot be stored: on a CPU their mean adds up in another order than on CUDA, and the order
decides bits. So the sum is spelled out as additions of tensors. Every other step is the operation of PyTorch that the classes use.
To show that nothing else differs, tokens of even number have elements that are small multiples of 1/8, whose squares add up
exactly in any order: there, for dimensions that are
powers of two, the forward results must equal the classes', and this script ends with an error where they do not. Where
pairs move, DeepSeek V3's own function is stored, and its own gradient.
"""

import json
import pathlib

import torch
import transformers
from torch.nn.functional import pad
from transformers.models.deepseek_v3.modeling_deepseek_v3 import apply_rotary_pos_emb_interleave
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.gemma3n.modeling_gemma3n import Gemma3nRMSNorm
from transformers.models.llama4.modeling_llama4 import Llama4TextL2Norm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm, apply_rotary_pos_emb

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
SOURCE = f"transformers {transformers.__version__}, torch {torch.__version__.split('+')[0]}, cpu"
EPS = 1e-6
FOLDER = pathlib.Path(__file__).parent


def raw(tensor):
    tensor = tensor.detach().contiguous()
    return (tensor.view(torch.uint8) if tensor.element_size() < 4 else tensor).numpy().tobytes()


def write(name, spec, shape, arrays, **more):
    arrays = {key: raw(value) for key, value in arrays.items()}
    head = {"source": SOURCE, "spec": spec, "shape": shape, "eps": EPS, **more,
            "arrays": [[key, len(value)] for key, value in arrays.items()]}
    (FOLDER / f"fused_{name}.bin").write_bytes(json.dumps(head).encode() + b"\n" + b"".join(arrays.values()))


def total(order, x):
    """The sum over the last dimension, in f32."""
    dim = x.shape[-1]
    if order == "tree":
        while dim & (dim - 1):
            x, dim = pad(x, (0, 1)), dim + 1
        while x.shape[-1] > 1:
            x = x[..., 0::2] + x[..., 1::2]
        return x
    if dim >= 128 and dim % 4 == 0:
        fours = torch.zeros(*x.shape[:-1], 32, 4)
        for run in range(0, dim, 128):
            part = x[..., run : run + 128]
            fours = fours + pad(part, (0, 128 - part.shape[-1])).reshape(*x.shape[:-1], 32, 4)
        lanes = ((fours[..., 0] + fours[..., 1]) + fours[..., 2]) + fours[..., 3]
    else:
        lanes = torch.zeros(*x.shape[:-1], 32)
        for run in range(0, dim, 32):
            part = x[..., run : run + 32]
            lanes = lanes + pad(part, (0, 32 - part.shape[-1]))
    while lanes.shape[-1] > 1:
        half = lanes.shape[-1] // 2
        lanes = lanes[..., :half] + lanes[..., half:]
    return lanes


def one_part(dim):
    return torch.tensor(1.0) / dim


def normalise(flavour, order, x, w):
    f = x.float()
    r = torch.rsqrt(total(order, f * f) * one_part(x.shape[-1]) + EPS)
    u = f * r
    if flavour == "weight_after":
        return w * u.to(x.dtype), r
    if flavour == "one_plus_weight":
        return (u * (1.0 + w.float())).to(x.dtype), r
    if flavour == "weight_f32":
        return (u * w.float()).to(x.dtype), r
    return u.to(x.dtype), r


def halves(x):
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), dim=-1)


def rotate(rounding, x, cos, sin):
    """transformers' rotation in the dtype of x; `once`: in f32, rounded by the caller."""
    if rounding == "once":
        x, cos, sin = x.float(), cos.float(), sin.float()
    return x * cos + halves(x) * sin


def of_norm(flavour, order, rounding, dm, x, w, r):
    """The gradient of the norm alone: dx, and each head's part of the gradient of the weight."""
    dtype, f = x.dtype, x.float()
    u = f * r
    if flavour == "weight_after" and rounding == "per_op":
        dn, term = (dm * w).float(), (dm * u.to(dtype)).float()
    elif flavour == "weight_after":
        dn, term = dm.float() * w.float(), dm.float() * u.to(dtype).float()
    elif flavour == "one_plus_weight":
        dn, term = dm.float() * (1.0 + w.float()), dm.float() * u
    elif flavour == "weight_f32":
        dn, term = dm.float() * w.float(), dm.float() * u
    else:
        dn, term = dm.float(), None
    dv = (-0.5 * total(order, dn * f)) * ((r * r) * r)
    return (dn * r + (dv * one_part(x.shape[-1])) * (2.0 * f)).to(dtype), term


def backward(flavour, order, rounding, after, dy, x, w, r, cos, sin):
    dtype = x.dtype
    if after:
        turned = rotate(rounding, x, cos, sin).to(dtype)
        dz, term = of_norm(flavour, order, rounding, dy, turned, w, r)
        return rotate(rounding, dz, cos, -sin).to(dtype), term
    dm = rotate(rounding, dy, cos, -sin)
    return of_norm(flavour, order, rounding, dm, x, w, r)


def of_weight(term, dtype):
    """Heads, numbered (token, head): one after the other in tiles of 32, then a tree of tiles."""
    tiles = []
    for rows in term.reshape(-1, term.shape[-1]).split(32):
        tile = torch.zeros(rows.shape[-1])
        for row in rows:
            tile = tile + row
        tiles.append(tile)
    return total("tree", torch.stack(tiles, dim=-1))[..., 0].to(dtype)


def module_of(flavour, dim, w):
    if flavour == "no_weight":
        return Llama4TextL2Norm(EPS)
    kind = {"weight_after": Qwen3RMSNorm, "one_plus_weight": Gemma3RMSNorm, "weight_f32": Gemma3nRMSNorm}[flavour]
    module = kind(dim, eps=EPS)
    module.weight.data = w
    return module


def tables(tokens, width, dtype):
    inv_freq = 1.0 / (10000 ** (torch.arange(0, width, 2).float() / width))
    angles = (torch.arange(tokens).float() + 1)[:, None] * inv_freq[None, :]
    full = torch.cat((angles, angles), dim=-1)
    return full.cos().to(dtype), full.sin().to(dtype)


def heads_of(dtype, tokens, heads, dim):
    x = torch.randn(1, tokens, heads, dim)
    x[:, 0::2] = (x[:, 0::2] * 8).round().clamp(-24, 24) / 8
    return x.to(dtype)


def spec_of(dtype, dim, heads, kv_heads, rounding, **more):
    return {"dtype": dtype, "head_dim": dim, "rotary_dim": dim, "num_heads": heads, "num_kv_heads": kv_heads,
            "style": "half_split", "rounding": rounding, "direction": "forward", "table": {"dtype": dtype, "width": "full"},
            "positions": "implicit", **more}


def norm_case(flavour, order, dtype_name, dim, rounding, after=False, tokens=3):
    dtype, counts = DTYPES[dtype_name], (2, 1)
    torch.manual_seed(dim + len(flavour) + len(dtype_name))
    cos, sin = tables(tokens, dim, dtype)
    wide = [t[None, :, None] for t in (cos, sin)]
    arrays = {"cos": cos, "sin": sin}
    for name, heads in zip("qk", counts):
        x, dy = heads_of(dtype, tokens, heads, dim), torch.randn(1, tokens, heads, dim).to(dtype)
        w = (torch.rand(dim) + 0.5).to(dtype)
        module = module_of(flavour, dim, w)
        if after:
            y, r = normalise(flavour, order, rotate(rounding, x, *wide).to(dtype), w)
        else:
            m, r = normalise(flavour, order, x, w)
            y = rotate(rounding, m, *wide).to(dtype)
            # A mean on a CPU divides, on CUDA it multiplies by the reciprocal: the same for powers of two.
            exact = dim & (dim - 1) == 0
            assert not exact or torch.equal(m[:, 0::2], module(x)[:, 0::2]), (flavour, dtype_name, dim)
            if exact and (rounding == "per_op" or dtype == torch.float32):
                eager = apply_rotary_pos_emb(module(x), module(x), cos[None], sin[None], unsqueeze_dim=2)[0]
                assert torch.equal(y[:, 0::2], eager[:, 0::2]), (flavour, dtype_name, dim)
        dx, term = backward(flavour, order, rounding, after, dy, x, w, r, *wide)
        arrays |= {name: x, f"{name}_out": y, f"{name}_rsqrt": r, f"{name}_dy": dy, f"{name}_dx": dx}
        if term is not None:
            arrays |= {f"{name}_weight": w, f"{name}_dw": of_weight(term, dtype)}
    norm = {"flavour": flavour, "order": order, "rsqrt": "ieee", **({"after_rope": True} if after else {})}
    spec = spec_of(dtype_name, dim, *counts, rounding, norm=norm)
    write(f"norm_{flavour}_{dtype_name}_{dim}", spec, [1, tokens], arrays)


def fp8(x, scale, use):
    """Saturating, as vLLM and FlashInfer store it; PyTorch's own conversion makes NaN of what is too large."""
    scaled = x.float() / scale if use == "divide" else x.float() * scale
    return scaled.clamp(-448.0, 448.0).to(torch.float8_e4m3fn)


def cache_case(dtype_name, use, per_head):
    """A norm, the rotation, k and v to a cache of fp8, q as fp8."""
    dtype, tokens, heads, kv_heads, dim, blocks, block_size = DTYPES[dtype_name], 5, 3, 2, 64, 4, 4
    torch.manual_seed(len(use) + per_head)
    cos, sin = tables(tokens, dim, dtype)
    wide = [t[None, :, None] for t in (cos, sin)]
    q, k, v = (heads_of(dtype, tokens, n, dim) for n in (heads, kv_heads, kv_heads))
    q_weight, k_weight = ((torch.rand(dim) + 0.5).to(dtype) for _ in range(2))
    turned = [rotate("per_op", normalise("weight_after", "torch", x, w)[0], *wide)
              for x, w in ((q, q_weight), (k, k_weight))]
    # From far below the least number to far above the largest.
    def scales(n):
        values = 10.0 ** (torch.rand(n) * 5 - 4)
        return values if use == "divide" else 1.0 / values
    of = [scales(n if per_head else 1) for n in (heads, kv_heads, kv_heads)]
    q_out, k_out, v_out = (fp8(x, s[:, None], use).view(torch.uint8) for x, s in zip((*turned, v), of))
    slots = torch.tensor([9, -1, 2, 15, 0])
    caches = []
    for x in (k_out, v_out):
        cache = torch.full((blocks * block_size, kv_heads, dim), 0x5A, dtype=torch.uint8)
        for token, slot in enumerate(slots):
            if slot >= 0:
                cache[slot] = x[0, token]
        caches.append(cache)
    how = {"scale": use, **({"per_head": True} if per_head else {})}
    spec = spec_of(dtype_name, dim, heads, kv_heads, "per_op",
                   norm={"flavour": "weight_after", "order": "torch", "rsqrt": "ieee"},
                   append={"slots": "slot_mapping", "v_head_dim": dim, "cache": how, "q": how})
    arrays = {"cos": cos, "sin": sin, "q": q, "k": k, "v": v, "q_weight": q_weight, "k_weight": k_weight, "q_out": q_out,
              "slots": slots, "k_cache": caches[0], "v_cache": caches[1], "q_scale": of[0], "k_scale": of[1], "v_scale": of[2]}
    write(f"cache_{use}_{dtype_name}", spec, [1, tokens], arrays, cache=[blocks, block_size])


def moved_case(dtype_name):
    """DeepSeek V3's own function, whose pairs come interleaved and leave as halves; q as [nope | rope], k as k_pe."""
    dtype, tokens, heads, nope, rope = DTYPES[dtype_name], 3, 2, 32, 16
    torch.manual_seed(rope)
    cos, sin = tables(tokens, rope, dtype)
    q, k = torch.randn(1, tokens, heads, nope + rope).to(dtype), torch.randn(1, tokens, 1, rope).to(dtype)
    inputs = [x.clone().requires_grad_() for x in (q, k)]
    turned = apply_rotary_pos_emb_interleave(inputs[0][..., nope:], inputs[1], cos[None], sin[None], unsqueeze_dim=2)
    out = torch.cat((inputs[0][..., :nope], turned[0]), dim=-1), turned[1]
    given = [torch.randn_like(x) for x in out]
    gradients = torch.autograd.grad(out, inputs, given)
    spec = spec_of(dtype_name, nope + rope, heads, 1, "once" if dtype_name == "f32" else "per_op", k_head_dim=rope, part="last")
    spec |= {"rotary_dim": rope, "style": "deinterleave"}
    arrays = {"cos": cos, "sin": sin, "q": q, "k": k, "q_out": out[0], "k_out": out[1], "q_dy": given[0], "k_dy": given[1],
              "q_dx": gradients[0], "k_dx": gradients[1]}
    write(f"moved_{dtype_name}", spec, [1, tokens], arrays)


for old in FOLDER.glob("fused_*.bin"):
    old.unlink()
for name in DTYPES:
    narrow = "once" if name == "f32" else "per_op"
    norm_case("weight_after", "torch", name, 128, narrow)
    norm_case("one_plus_weight", "torch", name, 64, narrow)
    norm_case("weight_f32", "tree", name, 96, "once")
    moved_case(name)
norm_case("no_weight", "torch", "bf16", 256, "per_op", after=True, tokens=2)
norm_case("weight_after", "tree", "f16", 64, "once")
norm_case("one_plus_weight", "torch", "bf16", 80, "per_op")
norm_case("weight_f32", "torch", "bf16", 64, "per_op")
# Three tiles of heads of q.
norm_case("weight_after", "torch", "bf16", 8, "per_op", tokens=40)
cache_case("bf16", "divide", False)
cache_case("f16", "multiply", True)
files = list(FOLDER.glob("fused_*.bin"))
print(f"{len(files)} cases, {sum(file.stat().st_size for file in files)} bytes, in {FOLDER}")
