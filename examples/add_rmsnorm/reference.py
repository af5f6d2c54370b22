"""Add and RMS norm in float64. The sum is rounded to the elements' type first: it is what the next block reads."""

import numpy as np


def rounded(x, dtype):
    """x rounded to f32, f16 or bf16, as float64."""
    if dtype == "f16":
        return x.astype(np.float16).astype(np.float64)
    x = x.astype(np.float32)
    if dtype == "bf16":
        bits = x.view(np.uint32)
        bits = (bits + 0x7FFF + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)
        x = bits.astype(np.uint32).view(np.float32)
    return x.astype(np.float64)


def add_rmsnorm(x, residual, weight, eps, dtype):
    residual = rounded(residual.astype(np.float64) + x.astype(np.float64), dtype)
    scale = 1 / np.sqrt((residual**2).mean(axis=-1, keepdims=True) + eps)
    return {"residual": residual, "y": residual * scale * weight.astype(np.float64)}
