"""Inputs, and what transformers' own functions make of them."""

import torch
from transformers.models.cohere.modeling_cohere import apply_rotary_pos_emb as cohere
from transformers.models.glm.modeling_glm import apply_rotary_pos_emb as glm
from transformers.models.gpt_neox.modeling_gpt_neox import apply_rotary_pos_emb as gpt_neox
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb as llama

__all__ = ["cohere", "equal", "glm", "gpt_neox", "llama", "qk", "tables"]

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def qk(device, dtype, batch, tokens, heads, kv_heads, head_dim, bhsd=False, grad=False):
    """q and k, `[batch, heads, tokens, head_dim]`, stored as they are or (as models do) as `[batch, tokens, heads, …]`."""

    def one(heads):
        shape = (batch, heads, tokens, head_dim) if bhsd else (batch, tokens, heads, head_dim)
        x = torch.randn(shape).to(dtype).to(device).requires_grad_(grad)
        return x if bhsd else x.transpose(1, 2)

    return one(heads), one(kv_heads)


def tables(device, dtype, batch, tokens, width, first=0):
    """cos and sin, `[batch, tokens, width]`, each angle twice; sequences of a batch differ."""
    inv_freq = 1.0 / (10000 ** (torch.arange(0, width, 2).float() / width))
    angles = (torch.arange(first, first + tokens).float()[None, :] + torch.arange(batch)[:, None])[..., None] * inv_freq
    full = torch.cat((angles, angles), dim=-1)
    return full.cos().to(dtype).to(device), full.sin().to(dtype).to(device)


def equal(ours, theirs):
    """Bit for bit, and with the same strides."""
    for x, y in zip(ours, theirs, strict=True):
        assert x.dtype == y.dtype and x.shape == y.shape
        assert torch.equal(x, y), f"{(x != y).sum().item()} of {x.numel()} differ, by {(x - y).abs().max().item()} at most"
