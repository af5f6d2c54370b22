"""Arguments of `apply` that most calls lack: each is views of tensors, or other tables, above one plain call."""

import torch

from . import _functions

_NAMES = (
    "mrope_section", "mrope_interleaved", "angles", "seq_len", "offset", "freqs_cis", "conjugate", "rotary_dim_offset",
    "per_head", "contiguous",
)  # fmt: skip


def apply(q, k, cos, sin, plain, more):
    """`apply` with the arguments ``more``. ``plain`` are those that it always has."""
    for name in more:
        if name not in _NAMES:
            raise TypeError(f"apply() got an unexpected keyword argument '{name}'")
    more = dict.fromkeys(_NAMES) | more
    for name, x in (("q", q), ("k", k)):
        if not isinstance(x, torch.Tensor) and not (name == "k" and x is None):
            given = ", ".join(name for name in _NAMES if more[name] is not None)
            raise TypeError(f"{name}: must be a torch.Tensor beside {given}, got {type(x).__name__}; hint: torch.from_dlpack makes one")
    if more["contiguous"] and plain["inplace"]:
        raise ValueError("contiguous: results are q and k themselves with inplace=True; hint: leave one of them out")
    plain = dict(plain)
    if more["freqs_cis"] is not None:
        cos, sin = _of_complex(cos, sin, more, plain)
    first = _first(q, k, more["rotary_dim_offset"], plain)
    turning = plain["rotary_dim"] if plain["rotary_dim"] is not None else q.shape[-1] - (first or 0)
    _move(q, more["offset"], plain)
    if more["angles"] is not None:
        cos, sin = _of_angles(q, cos, sin, more, plain, turning)
    elif more["seq_len"] is not None:
        raise ValueError("seq_len: is of angles, which are not given; hint: leave it out")
    elif more["mrope_section"] is not None:
        cos, sin = _of_axes(q, cos, sin, more, plain, turning)
    elif more["mrope_interleaved"]:
        raise ValueError("mrope_interleaved: needs mrope_section")
    if more["conjugate"]:
        sin = -sin
    turn = _each_head if more["per_head"] else _functions.apply
    if first is None:
        out = turn(q, k, cos, sin, **plain)
    else:
        out = _part(q, k, cos, sin, first, turning, plain, turn)
    if more["contiguous"]:
        out = tuple(x if x is None else x.contiguous() for x in out)
    return out


def _style(plain):
    return plain["style"] or ("interleaved" if plain["interleaved"] else "half_split")


def _no_tables(name, cos, sin):
    if cos is not None or sin is not None:
        raise ValueError(f"cos: and sin must be None beside {name}, which stands for them")


def _of_complex(cos, sin, more, plain):
    """cos and sin of complex numbers, or of matrices ``[[cos, -sin], [sin, cos]]``."""
    table = more["freqs_cis"]
    _no_tables("freqs_cis", cos, sin)
    if more["angles"] is not None:
        raise ValueError("freqs_cis: cannot be given beside angles")
    if not isinstance(table, torch.Tensor):
        raise TypeError(f"freqs_cis: must be a torch.Tensor, got {type(table).__name__}")
    if table.dtype == torch.complex64:
        cos, sin = table.real, table.imag
    elif table.is_complex():
        raise ValueError(f"freqs_cis: is {table.dtype}, complex64 is needed; hint: pass freqs_cis.to(torch.complex64)")
    elif table.ndim >= 4 and table.shape[-2:] == (2, 2):
        cos, sin = table[..., 0, 0], table[..., 1, 0]
    elif table.ndim >= 3 and table.shape[-1] == 2:
        cos, sin = table[..., 0], table[..., 1]
    else:
        raise ValueError(
            f"freqs_cis: is {list(table.shape)} of {table.dtype}; complex64 [rows, pairs], its view_as_real [rows, pairs, 2] or"
            " matrices [rows, pairs, 2, 2] are needed, or such with batch in front"
        )
    shape = cos.shape
    while cos.ndim > 2 and (cos.ndim > 3 or cos.shape[0] == 1):
        one = next((i for i in range(cos.ndim - 2) if cos.shape[i] == 1), None)
        if one is None:
            raise ValueError(f"freqs_cis: has angles of {list(shape)}, [rows, pairs] or [batch, rows, pairs] is needed")
        cos, sin = cos.squeeze(one), sin.squeeze(one)
    # Products of complex numbers turn neighbours.
    if plain["style"] is None:
        plain["style"] = "interleaved"
    if plain["tables"] not in (None, "half"):
        raise ValueError(f"tables: freqs_cis has each angle once, not {plain['tables']!r}; hint: leave it out")
    plain["tables"], plain["interleaved"] = "half", plain["style"] == "interleaved"
    return cos.contiguous(), sin.resolve_neg().contiguous()


def _tokens(q, layout):
    if layout not in ("bshd", "bhsd", "thd") or q.ndim != (3 if layout == "thd" else 4):
        return None  # the plain call says what is wrong
    return q.shape[{"bshd": 1, "bhsd": 2, "thd": 0}[layout]]


def _move(q, offset, plain):
    """Adds to all positions: a number, or one for each sequence."""
    if offset is None:
        return
    if plain["cu_seqlens"] is not None:
        raise ValueError("offset: cannot be given beside cu_seqlens; hint: apply_rotary_emb has seqlen_offsets")
    if not isinstance(offset, int) and not (isinstance(offset, torch.Tensor) and offset.ndim <= 1):
        raise ValueError("offset: an int, or a tensor with one for each sequence, is needed")
    ids = plain["position_ids"]
    if ids is None:
        tokens = _tokens(q, plain["layout"])
        if tokens is None:
            return
        ids = torch.arange(tokens, device=q.device)
    elif not isinstance(ids, torch.Tensor):
        raise ValueError(f"position_ids: must be a torch.Tensor beside offset, got {type(ids).__name__}")
    if isinstance(offset, torch.Tensor) and offset.ndim == 1:
        offset = offset[:, None]
    plain["position_ids"] = ids + offset


def _of_angles(q, cos, sin, more, plain, turning):
    angles = more["angles"]
    _no_tables("angles", cos, sin)
    if not hasattr(angles, "rotary_dim") or not callable(angles):
        raise TypeError(f"angles: must be ropejit.Angles, got {type(angles).__name__}; hint: ropejit.Angles(config) makes them")
    if angles.rotary_dim != turning:
        raise ValueError(f"angles: are {angles.rotary_dim // 2}, and {turning} elements turn; hint: rotary_dim={angles.rotary_dim}")
    if plain["tables"] not in (None, "half"):
        raise ValueError(f"tables: angles has each angle once, not {plain['tables']!r}; hint: leave it out")
    ids, plain["position_ids"] = plain["position_ids"], None
    if ids is not None and plain["cu_seqlens"] is not None:
        raise ValueError("cu_seqlens: cannot be given beside position_ids; hint: position_ids alone say where each token stands")
    if ids is None:
        ids = torch.arange(_tokens(q, plain["layout"]) or 0, device=q.device)
    plain["tables"] = "half"
    return angles(ids, **{name: more[name] for name in ("seq_len", "mrope_section", "mrope_interleaved")})


def _of_axes(q, cos, sin, more, plain, turning):
    if plain["cu_seqlens"] is not None:
        raise ValueError("cu_seqlens: cannot be given beside mrope_section; hint: position_ids alone say where each token stands")
    interleaved = _style(plain) == "interleaved"
    if interleaved or plain["tables"] is not None:
        cos, sin = _functions._read_once(q, cos, sin, interleaved, turning, plain["tables"])
    from . import _rows

    ids, plain["position_ids"], plain["tables"] = plain["position_ids"], None, "half"
    return _rows.on_three_axes(cos, sin, ids, more["mrope_section"], bool(more["mrope_interleaved"]), turning)


def _first(q, k, first, plain):
    """Where the part begins that turns; None: the plain call is told by ``rotary_dim`` alone."""
    if first is None:
        return None
    if type(first) is not int or not 0 <= first < q.shape[-1]:
        raise ValueError(f"rotary_dim_offset: {first!r} is not within a head of {q.shape[-1]} elements")
    turning = plain["rotary_dim"] if plain["rotary_dim"] is not None else q.shape[-1] - first
    for name, x in (("q", q), ("k", k)):
        if x is not None and x.shape[-1] < first + turning and (x is q or x.shape[-1] != turning):
            raise ValueError(
                f"rotary_dim_offset: elements {first} to {first + turning} do not fit in {name}, whose heads have {x.shape[-1]};"
                " hint: give rotary_dim"
            )
    return first


def _part(q, k, cos, sin, first, turning, plain, turn):
    """Turns ``turning`` elements from ``first`` on. A k whose heads have no more than that turns whole: the ``k_pe`` of MLA."""

    def place(x):
        start = 0 if x.shape[-1] == turning else first
        return start, start + turning

    def part(x):
        return None if x is None else x[..., slice(*place(x))]

    def whole(x, turned):
        if x is None or plain["inplace"]:
            return x
        start, end = place(x)
        return turned if x.shape[-1] == turning else torch.cat((x[..., :start], turned, x[..., end:]), dim=-1)

    turned = turn(part(q), part(k), cos, sin, **{**plain, "rotary_dim": None})
    return whole(q, turned[0]), whole(k, turned[1])


def _each_head(q, k, cos, sin, **plain):
    """Each head as a sequence of its own, with tables of its own: ``[batch, heads, rows, width]``."""
    layout = plain.pop("layout")
    if layout not in ("bshd", "bhsd") or q.ndim != 4:
        raise ValueError("layout: per_head needs 'bshd' or 'bhsd' and four dimensions; hint: of packed tensors, pass q[None]")
    heads_at = 1 if layout == "bhsd" else 2
    batch, heads = q.shape[0], q.shape[heads_at]
    if k is not None and (k.ndim != 4 or k.shape[heads_at] != heads):
        raise ValueError(f"k: per_head has tables for {heads} heads of q, k is {list(k.shape)}; hint: make two calls, k as q")
    for name, table in (("cos", cos), ("sin", sin)):
        if not isinstance(table, torch.Tensor) or table.ndim != 4 or table.shape[0] not in (1, batch) or table.shape[1] != heads:
            shape = list(table.shape) if isinstance(table, torch.Tensor) else type(table).__name__
            raise ValueError(f"{name}: is {shape}, per_head needs [{batch}, {heads}, rows, width]")
    ids = plain["position_ids"]
    if isinstance(ids, torch.Tensor) and ids.ndim == 2 and ids.shape[0] == batch > 1:
        plain["position_ids"] = ids.repeat_interleave(heads, 0)

    def apart(name, x):
        if x is None:
            return None
        each = x if layout == "bhsd" else x.transpose(1, 2)
        if not plain["inplace"]:
            return each.reshape(batch * heads, 1, *each.shape[2:])
        try:
            return each.view(batch * heads, 1, *each.shape[2:])
        except RuntimeError:
            what = f"its strides {x.stride()} do not let batch and heads be one dimension, so per_head cannot write it in place"
            raise ValueError(f"{name}: {what}; hint: leave inplace out") from None

    def together(x, turned):
        if x is None or plain["inplace"]:
            return x
        each = turned.view(batch, heads, *turned.shape[2:])
        return each if layout == "bhsd" else each.transpose(1, 2)

    tables = (table.expand(batch, -1, -1, -1).reshape(batch * heads, *table.shape[2:]) for table in (cos, sin))
    out = _functions.apply(apart("q", q), apart("k", k), *tables, layout="bhsd", **plain)
    return together(q, out[0]), together(k, out[1])
