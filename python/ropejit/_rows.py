"""Rows of cos and sin for tokens: of tables on three axes of positions, or of angles that the engine computes.

Rows are constants: autograd is not asked. What a tracer, a compiler or a subclass of tensors sees are operators of
``torch.library``.
"""

import json

import torch

from . import _ropejit, _service, _tensors

_units = {}


def _unit(dtype, device, width):
    """1 in the first half, 0 in the second: what a rotation turns into ``[cos | sin]``."""
    key = (dtype, device, width)
    unit = _units.get(key)
    if unit is None:
        unit = torch.zeros(width, dtype=dtype, device=device)
        unit[: width // 2] = 1
        if _is_plain() and not (unit.is_cuda and torch.cuda.is_current_stream_capturing()):  # a graph's memory is the graph's
            _units[key] = unit
    return unit


def _is_plain():
    """Whether what is made now is a tensor like any other, which may be kept."""
    return torch._C._functorch.maybe_current_level() is None and torch._C._len_torch_dispatch_stack() == 0


def _for_each(ids, unit):
    batch, tokens = ids.shape[-2:]
    return unit.expand(batch, tokens, 1, -1)


def _is_traced(*values):
    return torch.compiler.is_compiling() or not all(type(x) is torch.Tensor for x in values)


def _computed(ids, width, *rest):
    unit = _unit(torch.float32, ids.device, width)
    return _ropejit.computed_rows(_for_each(ids, unit), unit[None], ids, *rest)


def _of_axes(cos, sin, ids, width, sections, interleaved):
    return _ropejit.rows_of_axes(_for_each(ids, _unit(cos.dtype, cos.device, width)), cos, sin, ids, sections, interleaved)


def _launched(out, *tensors, names):
    if out is None:
        _tensors.refuse(*tensors, names=names)
        raise ValueError(f"{names[-1]}: PyTorch gave a tensor to the operator whose memory cannot be read, or such a table")
    return out[0]


@torch.library.custom_op("ropejit::computed_rows", mutates_args=())
def computed_rows(
    position_ids: torch.Tensor, width: int, source: str, accurate: bool, seq_len: int | None, sections: list[int] | None,
    interleaved: bool,
) -> torch.Tensor:  # fmt: skip
    """``[cos | sin]`` of each position."""
    out = _computed(position_ids, width, source, accurate, seq_len, sections, interleaved)
    return _launched(out, position_ids, names=("position_ids",))


@torch.library.custom_op("ropejit::rows_of_axes", mutates_args=())
def rows_of_axes(
    cos: torch.Tensor, sin: torch.Tensor, position_ids: torch.Tensor, width: int, sections: list[int], interleaved: bool
) -> torch.Tensor:
    """``[cos | sin]`` of each token, whose pairs follow three positions."""
    out = _of_axes(cos, sin, position_ids, width, sections, interleaved)
    return _launched(out, cos, sin, position_ids, names=("cos", "sin", "position_ids"))


@computed_rows.register_fake
def _(position_ids, width, *_):
    return position_ids.new_empty((*position_ids.shape[-2:], 1, width), dtype=torch.float32)


@rows_of_axes.register_fake
def _(cos, sin, position_ids, width, *_):
    return cos.new_empty((*position_ids.shape[-2:], 1, width))


def _halves(rows):
    half = rows.shape[-1] // 2
    return rows[..., 0, :half], rows[..., 0, half:]


def sections_of(mrope_section, pairs):
    """Three numbers that say how many pairs follow each axis."""
    try:
        sections = [int(n) for n in mrope_section]
    except (TypeError, ValueError):
        sections = []
    if len(sections) != 3 or min(sections, default=-1) < 0 or sum(sections) != pairs:
        raise ValueError(
            f"mrope_section: {mrope_section!r} does not divide the {pairs} pairs that turn among time, height and width; hint: three"
            f" numbers whose sum is {pairs}"
        )
    return sections


def _three_axes(position_ids):
    if not isinstance(position_ids, torch.Tensor):
        raise ValueError(f"position_ids: mrope_section needs a torch.Tensor of [3, batch, tokens], got {type(position_ids).__name__}")
    if position_ids.ndim == 2 and position_ids.shape[0] == 3:
        return position_ids[:, None]
    if position_ids.ndim != 3 or position_ids.shape[0] != 3:
        raise ValueError(f"position_ids: is {list(position_ids.shape)}, mrope_section needs [3, batch, tokens]")
    return position_ids


def on_three_axes(cos, sin, position_ids, mrope_section, interleaved, width):
    """cos and sin of each token, ``[batch, tokens, width / 2]``, whose pairs follow one of three positions each."""
    ids = _three_axes(position_ids)
    for name, table in (("cos", cos), ("sin", sin)):
        if not isinstance(table, torch.Tensor):
            raise ValueError(f"{name}: mrope_section needs a torch.Tensor, got {type(table).__name__}")
        if table.requires_grad and torch.is_grad_enabled():
            raise ValueError(f"{name}: requires a gradient, and none is computed for tables: pass a detached one")
    sections = sections_of(mrope_section, width // 2)
    with torch.no_grad():
        rows = None if _is_traced(cos, sin, ids) else _of_axes(cos, sin, ids, width, sections, interleaved)
        return _halves(torch.ops.ropejit.rows_of_axes(cos, sin, ids, width, sections, interleaved) if rows is None else rows[0])


class Angles:
    """cos and sin that the engine computes, instead of tables that you make.

    Args:
        source: a transformers model or configuration, a dict, the path of a ``config.json`` (or its folder), or the name of a
            configuration that comes with the package, such as ``"llama-3.1-8b"``; or frequencies, one a pair, in radians per
            position: a tensor or a list (``inv_freq``).
        layer: the layer type, where a configuration's differ (``"sliding_attention"``).
        attention_factor: on cos and sin, beside frequencies; a configuration states its own.
        accurate: True computes angles in float64, which stays right at any position; False as transformers does, in float32.

    ``cos, sin = angles(position_ids)`` is one launch, whose result serves all layers of a step::

        angles = ropejit.Angles(model.config)
        cos, sin = angles(position_ids)
        q, k = ropejit.apply(q, k, cos, sin)

    `apply` also takes it as ``angles=``, with None for cos and sin. Works under ``torch.compile(fullgraph=True)``.
    """

    def __init__(self, source, *, layer=None, attention_factor=None, accurate=False):
        if isinstance(source, (torch.Tensor, list, tuple)):
            if layer is not None:
                raise ValueError("layer: is of configurations, and source is frequencies; hint: leave it out")
            listed = source.detach().to(torch.float32).tolist() if isinstance(source, torch.Tensor) else list(source)
            if not listed or not all(isinstance(x, (int, float)) and 0 <= x < float("inf") for x in listed):
                raise ValueError("source: frequencies are finite numbers from 0 on, in one dimension, one a pair")
            factor = 1.0 if attention_factor is None else float(attention_factor)
            self._source = json.dumps({"inv_freq": listed, "attention_factor": factor})
        else:
            if attention_factor is not None:
                raise ValueError("attention_factor: a configuration states its own; hint: leave it out")
            text = _service._config_text(getattr(source, "config", source))
            self._source = json.dumps({"config": text, "layer": layer})
        self.accurate = bool(accurate)
        inv_freq, self.attention_factor, sections, self.depends_on_length = _ropejit.frequencies(self._source, None)
        self.rotary_dim = 2 * len(inv_freq)
        self.mrope_section, self.mrope_interleaved = (None, False) if sections is None else (list(sections[0]), sections[1])

    def __repr__(self):
        return f"Angles(rotary_dim={self.rotary_dim}, mrope_section={self.mrope_section}, accurate={self.accurate})"

    def inv_freq(self, seq_len=None):
        """The frequencies, one a pair, for sequences of ``seq_len`` tokens: a list."""
        return _ropejit.frequencies(self._source, seq_len)[0]

    def __call__(self, position_ids, *, seq_len=None, mrope_section=None, mrope_interleaved=None, dtype=None):
        """cos and sin of each position, float32, or rounded to ``dtype``: ``[tokens, rotary_dim / 2]`` for ``[tokens]``,
        ``[batch, tokens, rotary_dim / 2]`` for ``[batch, tokens]``, and for the three axes of ``[3, batch, tokens]``.

        ``seq_len``, the largest position plus one, is needed where ``depends_on_length`` is true (LongRoPE, dynamic NTK).
        ``mrope_section`` and ``mrope_interleaved`` say which axis a pair follows; None: as the configuration has it.
        """
        if not isinstance(position_ids, torch.Tensor) or position_ids.dtype not in (torch.int32, torch.int64):
            what = position_ids.dtype if isinstance(position_ids, torch.Tensor) else type(position_ids).__name__
            raise ValueError(f"position_ids: is {what}, a torch.Tensor of int32 or int64 is needed")
        if position_ids.ndim not in (1, 2, 3):
            raise ValueError(f"position_ids: is {list(position_ids.shape)}, [tokens], [batch, tokens] or [3, batch, tokens] is needed")
        if self.depends_on_length and seq_len is None:
            raise ValueError("seq_len: is needed: the frequencies depend on it; hint: the largest position plus one")
        sections, interleaved = None, False
        ids = position_ids[None] if position_ids.ndim == 1 else position_ids
        if position_ids.ndim == 3:
            ids = _three_axes(position_ids)
            sections = self.mrope_section if mrope_section is None else mrope_section
            if sections is None:
                raise ValueError("mrope_section: is needed for three axes of positions: three numbers, which the configuration lacks")
            sections = sections_of(sections, self.rotary_dim // 2)
            interleaved = self.mrope_interleaved if mrope_interleaved is None else bool(mrope_interleaved)
        elif mrope_section is not None:
            raise ValueError(f"position_ids: is {list(position_ids.shape)}, mrope_section needs [3, batch, tokens]")
        rest = (self.rotary_dim, self._source, self.accurate, seq_len, sections, interleaved)
        with torch.no_grad():
            rows = None if _is_traced(ids) else _computed(ids, *rest)
            cos, sin = _halves(torch.ops.ropejit.computed_rows(ids, *rest) if rows is None else rows[0])
            if dtype is not None:
                cos, sin = cos.to(dtype), sin.to(dtype)
        return (cos[0], sin[0]) if position_ids.ndim == 1 else (cos, sin)
