import numpy as np


def scale(x, factor, n):
    assert x.shape == (n,)
    return x * np.float32(factor)


def add_rmsnorm(x, residual, weight, eps, hidden):
    residual = x.astype(np.float32) + residual.astype(np.float32)
    if x.dtype == np.float16:
        residual = residual.astype(np.float16).astype(np.float32)
    scale = 1 / np.sqrt(np.square(residual).sum(-1, keepdims=True) / hidden + eps)
    return {"y": residual * scale * weight.astype(np.float32), "residual": residual}
