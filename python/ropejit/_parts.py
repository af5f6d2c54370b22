"""Replacements of functions that turn parts of their tensors and leave others: see `_replacements`."""

import torch


def tensors(*values, ndim=None):
    return all(isinstance(x, torch.Tensor) and (ndim is None or x.ndim == ndim) for x in values)


def rows(table):
    """``[rows, width]`` of a table whose other dimensions are of one; what is none stays."""
    if isinstance(table, torch.Tensor) and table.ndim <= 4:
        while table.ndim > 2 and table.shape[0] == 1:
            table = table[0]
    return table


def whole(*tables):
    """Whether rows are not parts of wider ones, which need not repeat their angles."""
    return all(table.shape[-2] < 2 or table.stride(-2) == table.shape[-1] for table in tables)


def is_empty(q, k):
    """Then a ``view`` of the original may fail."""
    return q.numel() == 0 or (isinstance(k, torch.Tensor) and k.numel() == 0)


def broadcast(turn, q, k, cos, sin):
    """Tables as they are, without an unsqueezed dimension, against ``[batch, heads, tokens, head_dim]``."""
    if not tensors(q, ndim=4) or not tensors(cos, sin) or cos.shape != sin.shape or is_empty(q, k):
        return None
    return turn(q, k, rows(cos), rows(sin), 0)


def last_rows_for_q(original, turn):
    def function(q, k, cos, sin, unsqueeze_dim=1):
        out = None
        if type(unsqueeze_dim) is int and unsqueeze_dim == 1 and tensors(q, k, ndim=4) and tensors(cos, sin, ndim=3):
            n = q.shape[2]
            if n == k.shape[2]:
                out = turn(q, k, cos, sin, 1)
            elif 0 < n < k.shape[2] and (turned := turn(k, None, cos, sin, 1)) is not None:
                k_out = turned[0]
                turned = turn(q, None, cos[:, -n:], sin[:, -n:], 1)
                out = None if turned is None else (turned[0], k_out)
        return original(q, k, cos, sin, unsqueeze_dim) if out is None else out

    return function


def tail(original, turn):
    def function(x, cos, sin, unsqueeze_dim=1):
        out = None
        if tensors(x, cos, sin) and x.ndim and cos.ndim and 0 < 2 * cos.shape[-1] <= x.shape[-1]:
            stays = x.shape[-1] - 2 * cos.shape[-1]
            turned = turn(x[..., stays:], None, cos, sin, unsqueeze_dim)
            if turned is not None:
                out = torch.cat((x[..., :stays], turned[0]), dim=-1) if stays else turned[0]
        return original(x, cos, sin, unsqueeze_dim) if out is None else out

    return function


def memory(original, turn):
    def turned(q, k, cos, sin, excluded, repeats):
        if not tensors(q, k, ndim=4) or not tensors(cos, sin) or type(excluded) is not int or type(repeats) not in (bool, int):
            return None
        n, n_q = k.shape[2] - excluded, q.shape[2]
        if excluded < 0 or n <= 0 or n_q == 0 or not 2 <= cos.ndim <= 4 or not 2 <= sin.ndim <= 4:
            return None
        if excluded == 0 and n == n_q:
            return broadcast(turn, q, k, cos, sin)
        cos_k, sin_k = cos, sin
        if repeats and n != n_q:
            cos_k, sin_k = (x.repeat(1, 1, n // n_q, 1) if whole(x) else x for x in (cos, sin))
        k_out = broadcast(turn, k[..., :n, :], None, cos_k, sin_k)
        q_out = None if k_out is None else broadcast(turn, q, None, cos, sin)
        return None if q_out is None else (q_out[0], torch.cat((k_out[0], k[..., n:, :]), dim=-2))

    def function(q, k, cos, sin, num_k_exclude_rope=0, repeat_freqs_k=False):
        out = turned(q, k, cos, sin, num_k_exclude_rope, repeat_freqs_k)
        return original(q, k, cos, sin, num_k_exclude_rope, repeat_freqs_k) if out is None else out

    return function


def grouped_memory(original, turn):
    def turned(q, k, cos, sin, cos_k, sin_k, excluded, groups):
        if not tensors(q, k, ndim=4) or not tensors(cos_k, sin_k) or not type(excluded) is type(groups) is int:
            return None
        batch, heads, tokens, head_dim = k.shape
        n = tokens - excluded
        if excluded < 0 or n <= 0 or groups < 1 or n % groups or not (2 <= cos_k.ndim <= 4 and 2 <= sin_k.ndim <= 4):
            return None
        stay = n // groups - cos_k.shape[-2]  # of each group, the first
        if stay < 0:
            return None
        grouped = k[..., :n, :].view(batch, heads, groups, n // groups, head_dim)
        if groups > 1:
            cos_k, sin_k = (x.repeat(1, 1, groups, 1) if whole(x) else x for x in (cos_k, sin_k))
        k_out = broadcast(turn, grouped[..., stay:, :].reshape(batch, heads, -1, head_dim), None, cos_k, sin_k)
        q_out = None if k_out is None else broadcast(turn, q, None, cos, sin)
        if q_out is None:
            return None
        parts = (grouped[..., :stay, :], k_out[0].view(batch, heads, groups, -1, head_dim))
        turned_k = torch.cat(parts, dim=3).view(batch, heads, n, head_dim)
        return q_out[0], torch.cat((turned_k, k[..., n:, :]), dim=-2)

    def function(q, k, cos, sin, cos_k, sin_k, num_k_exclude_rope=0, repeat_freqs_k=1):
        out = turned(q, k, cos, sin, cos_k, sin_k, num_k_exclude_rope, repeat_freqs_k)
        return original(q, k, cos, sin, cos_k, sin_k, num_k_exclude_rope, repeat_freqs_k) if out is None else out

    return function


def patches(original, turn):
    def function(q, k, cos, sin, **kwargs):
        out = None
        if tensors(q, k, ndim=4) and tensors(sin) and sin.ndim >= 2 and q.shape[2] == k.shape[2] >= sin.shape[-2]:
            first = q.shape[2] - sin.shape[-2]
            out = broadcast(turn, q[:, :, first:], k[:, :, first:], cos, sin)
            if out is not None and first:
                out = tuple(torch.cat((x[:, :, :first], y), dim=2) for x, y in zip((q, k), out))
        return original(q, k, cos, sin, **kwargs) if out is None else out

    return function


def axes(original, turn):
    def turned(x, cos, sin, position_ids, unsqueeze_dim):
        if not tensors(x, cos, sin, position_ids) or not (x.ndim and cos.ndim and sin.ndim and position_ids.ndim):
            return None
        n, head_dim = position_ids.shape[-1], x.shape[-1]
        if not n or head_dim % (2 * n) or not cos.shape[-1] == sin.shape[-1] == head_dim:
            return None
        parts = zip(*(torch.split(each, head_dim // n, dim=-1) for each in (x, cos, sin)))
        out = [turn(each, None, c, s, unsqueeze_dim) for each, c, s in parts]
        return None if any(part is None for part in out) else torch.cat([part[0] for part in out], dim=-1)

    def function(x, cos, sin, position_ids, unsqueeze_dim=2):
        out = turned(x, cos, sin, position_ids, unsqueeze_dim)
        return original(x, cos, sin, position_ids, unsqueeze_dim) if out is None else out

    return function
