"""What transformers computes, in PyTorch's own operations: for what the kernels do not cover."""

import torch


def rotate_half(x):
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), dim=-1)


def apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim=1):
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    rotary_dim = cos.shape[-1]

    def rotated(x):
        turning, resting = x[..., :rotary_dim], x[..., rotary_dim:]
        out = (turning * cos) + (rotate_half(turning) * sin)
        return torch.cat((out, resting), dim=-1) if resting.shape[-1] else out

    return rotated(q), rotated(k)
