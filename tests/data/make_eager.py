#!/usr/bin/env python3
"""Makes eager_*.bin: q, k, cos, sin, and what transformers' apply_rotary_pos_emb makes of them on a CPU.

Needs torch and transformers. One file a case: a line of JSON, then the arrays as raw little-endian bytes in the order of
its "arrays". q and k are [batch, tokens, heads, head_dim] in memory (transformers sees them transposed, as models do).
"""

import json
import pathlib

import torch
import transformers
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

HERE = pathlib.Path(__file__).parent


def raw(tensor):
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.view(torch.int16)
    return tensor.contiguous().numpy().tobytes()


def make(name, dtype, batch, tokens, heads, kv_heads, head_dim, first):
    torch.manual_seed(len(name) * 1000 + head_dim)
    q = torch.randn(batch, tokens, heads, head_dim).to(dtype)
    k = torch.randn(batch, tokens, kv_heads, head_dim).to(dtype)
    inv_freq = 1.0 / (10000 ** (torch.arange(0, head_dim, 2).float() / head_dim))
    positions = torch.arange(first, first + tokens).float()[None, :, None].expand(batch, -1, -1)
    angles = positions * inv_freq[None, None, :]
    emb = torch.cat((angles, angles), dim=-1)
    cos, sin = emb.cos().to(dtype), emb.sin().to(dtype)
    q_out, k_out = apply_rotary_pos_emb(q.transpose(1, 2), k.transpose(1, 2), cos, sin)
    arrays = {
        "q": q, "k": k, "cos": cos, "sin": sin,
        "q_out": q_out.transpose(1, 2), "k_out": k_out.transpose(1, 2),
    }
    head = {
        "source": f"transformers {transformers.__version__}, torch {torch.__version__.split('+')[0]}, cpu",
        "dtype": name, "batch": batch, "tokens": tokens, "num_heads": heads, "num_kv_heads": kv_heads,
        "head_dim": head_dim, "arrays": {key: len(raw(value)) for key, value in arrays.items()},
    }
    path = HERE / f"eager_{name}_{head_dim}.bin"
    path.write_bytes(json.dumps(head).encode() + b"\n" + b"".join(raw(value) for value in arrays.values()))
    print(path.name, path.stat().st_size)


for name, dtype in (("f32", torch.float32), ("bf16", torch.bfloat16), ("f16", torch.float16)):
    make(name, dtype, 2, 5, 4, 2, 128, 0)
    make(name, dtype, 1, 3, 3, 1, 80, 131072)
