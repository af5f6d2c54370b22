"""What stands for a model's function: called as the original is, it calls the original where the kernels do not cover a call.

There is one maker for each way of being called (`_form_texts.Form.call`). Each gets the original, which tells the log why it is
called (`_stays`), and ``turn(q, k, cos, sin, unsqueeze_dim)``, which is `_functions.drop_in` with what the form computes: q and k
rotated, or None. Whatever a maker does around it (cutting, joining, taking rows of tables) moves values and changes none.
"""

import functools

import torch

from . import _complex, _functions, _parts, _stays


def of(match, original):
    """The function that stands for ``original``."""
    form = match.form
    how = (form.style, form.tables, form.partial)
    rotate = _functions.drop_in

    def turn(q, k, cos, sin, unsqueeze_dim, rounding=form.rounding):
        return rotate(q, k, cos, sin, unsqueeze_dim, *how, rounding)

    its_own = _stays.told(original, f"{original.__module__}.{original.__qualname__}", form.rounding)
    function = _MAKERS[form.call + "_with_ids" if match.ids else form.call](its_own, turn)
    function.__ropejit_match__ = match
    return functools.wraps(original)(function)


def _pair(original, turn):
    def function(q, k, cos, sin, unsqueeze_dim=1):
        out = None if k is None else turn(q, k, cos, sin, unsqueeze_dim)
        return original(q, k, cos, sin, unsqueeze_dim) if out is None else out

    return function


def _pair_with_ids(original, turn):
    def function(q, k, cos, sin, position_ids=None, unsqueeze_dim=1):
        out = None if k is None else turn(q, k, cos, sin, unsqueeze_dim)
        return original(q, k, cos, sin, position_ids, unsqueeze_dim) if out is None else out

    return function


def _pair_or_q(original, turn):
    def function(q, k, cos, sin, unsqueeze_dim=1):
        out = turn(q, k, cos, sin, unsqueeze_dim)
        return original(q, k, cos, sin, unsqueeze_dim) if out is None else out

    return function


def _q_and_maybe_k(original, turn):
    def function(q, k=None, cos=None, sin=None, unsqueeze_dim=1):
        out = turn(q, k, cos, sin, unsqueeze_dim)
        if out is None:
            return original(q, k, cos, sin, unsqueeze_dim)
        return out[0] if k is None else out

    return function


def _single(original, turn):
    def function(x, cos, sin, unsqueeze_dim=1):
        out = turn(x, None, cos, sin, unsqueeze_dim)
        return original(x, cos, sin, unsqueeze_dim) if out is None else out[0]

    return function


def _single_with_ids(original, turn):
    def function(x, cos, sin, position_ids=None, unsqueeze_dim=1):
        out = turn(x, None, cos, sin, unsqueeze_dim)
        return original(x, cos, sin, position_ids, unsqueeze_dim) if out is None else out[0]

    return function


def _vision(original, turn):
    def function(q, k, cos, sin):
        out = None if k is None else turn(q, k, cos, sin, -2)
        return original(q, k, cos, sin) if out is None else out

    return function


def _vision_of_heads(original, turn):
    def function(q, k, cos, sin):
        out = None if k is None else turn(q, k, cos, sin, 1)
        return original(q, k, cos, sin) if out is None else out

    return function


def _vision_of_angles(original, turn):
    def function(tensor, freqs):
        out = None
        if _parts.tensors(tensor, ndim=4) and _parts.tensors(freqs, ndim=2) and freqs.is_floating_point():
            out = turn(tensor, None, freqs.cos(), freqs.sin(), 1)
        return original(tensor, freqs) if out is None else out[0]

    return function


def _gptj(original, turn):
    def function(tensor, sin, cos):
        out = turn(tensor, None, cos, sin, 2)
        return original(tensor, sin, cos) if out is None else out[0]

    return function


def _backwards(original, turn):
    def function(q, k, cos, sin, unsqueeze_dim=1):
        out = None
        if k is not None and _parts.tensors(cos, sin) and sin.is_floating_point() and cos.stride() == sin.stride():
            out = turn(q, k, cos, -sin, unsqueeze_dim)
        return original(q, k, cos, sin, unsqueeze_dim) if out is None else out

    return function


def _is_of_four(q, k, unsqueeze_dim):
    """What texts that name all dimensions take."""
    return _parts.tensors(q, k, ndim=4) and type(unsqueeze_dim) is int and unsqueeze_dim >= 0 and not _parts.is_empty(q, k)


def _of_four(original, turn):
    def function(q, k, cos, sin, unsqueeze_dim=1):
        out = turn(q, k, cos, sin, unsqueeze_dim) if _is_of_four(q, k, unsqueeze_dim) else None
        return original(q, k, cos, sin, unsqueeze_dim) if out is None else out

    return function


def _of_four_with_ids(original, turn):
    def function(q, k, cos, sin, position_ids=None, unsqueeze_dim=1):
        out = turn(q, k, cos, sin, unsqueeze_dim) if _is_of_four(q, k, unsqueeze_dim) else None
        return original(q, k, cos, sin, position_ids, unsqueeze_dim) if out is None else out

    return function


def _broadcast_pair(original, turn):
    def function(q, k, cos, sin):
        out = None if k is None else _parts.broadcast(turn, q, k, cos, sin)
        return original(q, k, cos, sin) if out is None else out

    return function


def _rows_of_ids(cos, sin, position_ids):
    """The rows that tokens stand for; None where eager may mean something else."""
    if not _parts.tensors(position_ids) or not _parts.tensors(cos, sin, ndim=2) or not _parts.whole(cos, sin):
        return None
    return (cos[position_ids], sin[position_ids]) if position_ids.dtype in (torch.int64, torch.int32) else None


def _by_ids(original, turn):
    def function(q, k, cos, sin, position_ids, unsqueeze_dim=1):
        rows = None if k is None else _rows_of_ids(cos, sin, position_ids)
        out = None if rows is None else turn(q, k, *rows, unsqueeze_dim)
        return original(q, k, cos, sin, position_ids, unsqueeze_dim) if out is None else out

    return function


def _by_ids_with_v(original, turn):
    def function(q, k, v, cos, sin, position_ids, unsqueeze_dim=1):
        rows = None if k is None else _rows_of_ids(cos, sin, position_ids)
        out = None if rows is None else turn(q, k, *rows, unsqueeze_dim)
        v_out = None if out is None else turn(v, None, *rows, unsqueeze_dim)
        return original(q, k, v, cos, sin, position_ids, unsqueeze_dim) if v_out is None else (*out, v_out[0])

    return function


def _cached(original, turn):
    def function(x, cos, sin):
        out = None
        if _parts.tensors(x, cos, sin, ndim=4):
            out = _parts.broadcast(turn, x, None, cos[:, :, : x.shape[2]], sin[:, :, : x.shape[2]])
        return original(x, cos, sin) if out is None else out[0]

    return function


def _sections(original, turn):
    def rows(table, sections):
        # The angles of each section from its own axis; both copies alike, because there are three axes and three sections.
        return torch.cat([part[i % 3] for i, part in enumerate(table.split(sections * 2, dim=-1))], dim=-1)

    def turned(q, k, cos, sin, sections, unsqueeze_dim):
        if type(sections) is not list or len(sections) != 3 or not all(type(n) is int and n >= 0 for n in sections):
            return None
        if k is None or not _parts.tensors(cos, sin, ndim=4) or not _parts.whole(cos, sin):
            return None
        if any(table.shape[0] != 3 or table.shape[-1] != 2 * sum(sections) for table in (cos, sin)):
            return None
        return turn(q, k, rows(cos, sections), rows(sin, sections), unsqueeze_dim)

    def function(q, k, cos, sin, mrope_section, unsqueeze_dim=1):
        out = turned(q, k, cos, sin, mrope_section, unsqueeze_dim)
        return original(q, k, cos, sin, mrope_section, unsqueeze_dim) if out is None else out

    return function


def _sinusoidal(original, turn):
    def turned(table, q, k, v):
        if not _parts.tensors(table, q, k, ndim=4) or table.shape[-1] % 2:
            return None
        sin, cos = table.chunk(2, dim=-1)
        out = _parts.broadcast(turn, q, k, cos, sin)
        if out is None or v is None:
            return out
        v_out = _parts.broadcast(turn, v, None, cos, sin)
        return None if v_out is None else (*out, v_out[0])

    def function(sinusoidal_pos, query_layer, key_layer, value_layer=None):
        out = turned(sinusoidal_pos, query_layer, key_layer, value_layer)
        return original(sinusoidal_pos, query_layer, key_layer, value_layer) if out is None else out

    return function


def _conformer(original, turn):
    def turned(heads, head_dim, x, tables):
        if not _parts.tensors(x, ndim=3) or not _parts.tensors(tables, ndim=5) or not type(heads) is type(head_dim) is int:
            return None
        if tables.shape[0] != 2 or tuple(tables.shape[2:4]) != (1, 1):
            return None
        if x.shape[-1] != heads * head_dim or not x.is_contiguous():
            return None
        cos, sin = tables[:, : x.shape[1], 0, 0]
        return turn(x.view(*x.shape[:2], heads, head_dim), None, cos, sin, 1)

    def function(self, hidden_states, relative_position_embeddings):
        out = turned(self.num_heads, self.head_size, hidden_states, relative_position_embeddings)
        return original(self, hidden_states, relative_position_embeddings) if out is None else out[0].view(hidden_states.shape)

    return function


def _complex_turned(turn, q, k, freqs, table, unsqueeze_dim):
    """``freqs``: as the text is given it; ``table``: as its text shapes it, and None where that cannot be."""
    if table is None or not _parts.tensors(q, k, ndim=4) or _parts.is_empty(q, k):
        return None
    rounding = _complex.rounding(q, k, freqs)
    return None if rounding is None else turn(q, k, *torch.view_as_real(table).unbind(-1), unsqueeze_dim, rounding)


def _complex_by(unsqueeze_dim):
    def maker(original, turn):
        def function(xq, xk, freqs_cis):
            table = freqs_cis if _parts.tensors(freqs_cis, ndim=3) else None
            out = _complex_turned(turn, xq, xk, freqs_cis, table, unsqueeze_dim)
            return original(xq, xk, freqs_cis) if out is None else out

        return function

    return maker


def _complex_vision(original, turn):
    def function(query, key, freqs_ci):
        table = None
        if _parts.tensors(query, ndim=4) and _parts.tensors(freqs_ci) and freqs_ci.is_contiguous():
            tokens, width = query.shape[1], query.shape[-1] // 2
            table = freqs_ci.view(tokens, width) if freqs_ci.numel() == tokens * width else None
        out = _complex_turned(turn, query, key, freqs_ci, table, 1)
        return original(query, key, freqs_ci) if out is None else out

    return function


_MAKERS = {
    "pair": _pair, "pair_with_ids": _pair_with_ids, "pair_or_q": _pair_or_q, "q_and_maybe_k": _q_and_maybe_k,
    "single": _single, "single_with_ids": _single_with_ids, "vision": _vision, "vision_of_heads": _vision_of_heads,
    "vision_of_angles": _vision_of_angles, "gptj": _gptj, "backwards": _backwards, "last_rows_for_q": _parts.last_rows_for_q,
    "of_four": _of_four, "of_four_with_ids": _of_four_with_ids, "tail": _parts.tail, "broadcast": _broadcast_pair,
    "memory": _parts.memory, "grouped_memory": _parts.grouped_memory, "patches": _parts.patches, "axes": _parts.axes,
    "by_ids": _by_ids, "by_ids_with_v": _by_ids_with_v, "cached": _cached, "sections": _sections, "sinusoidal": _sinusoidal,
    "conformer": _conformer, "complex": _complex_by(2), "complex_heads_first": _complex_by(1),
    "complex_vision": _complex_vision,
}  # fmt: skip
