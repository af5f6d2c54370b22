"""How models call the functions that rotate: one entry for each way of being called (`_form_texts.Form.call`).

A way makes, for a form, the type of q, that of the tables, the tables' width and a device, the tensors that may need a gradient
and a function that calls a model's function with them and returns what it returns as a list.
"""

import types

import torch

#: Of a head.
WIDTH = 32
BATCH, TOKENS, HEADS, KV_HEADS = 2, 5, 4, 2


def tables(kind, dtype, *shape):
    """cos and sin of random angles, as the modules of this kind make them."""
    width = shape[-1]
    angles = torch.rand(*shape[:-1], width // 2) * 100
    angles = {
        "half": lambda: angles,
        "full": lambda: torch.cat((angles, angles), -1),
        "twice": lambda: angles.repeat_interleave(2, -1),
    }["full" if kind == "first" else kind]()
    return angles.cos().to(dtype), angles.sin().to(dtype)


class Made:
    """Makes the arguments of one call."""

    def __init__(self, form, dtype, table, width, device):
        self.form, self.dtype, self.table, self.width, self.device = form, dtype, table, width, device

    def x(self, *shape):
        return torch.randn(shape).to(self.device, self.dtype)

    def qk(self, order="bht"):
        sizes = {"b": BATCH, "t": TOKENS}
        return [self.x(*(sizes.get(axis, heads) for axis in order), WIDTH) for heads in (HEADS, KV_HEADS)]

    def tables(self, *shape):
        return [x.to(self.device) for x in tables(self.form.tables, self.table, *shape, self.width)]

    def angles(self, *shape):
        return (torch.rand(*shape, self.width // 2) * 100).to(self.device)

    def complex(self, *shape):
        angles = self.angles(*shape)
        return torch.polar(torch.ones_like(angles), angles)


#: What models pass: the order of q's dimensions (batch, heads, tokens), whether tables have a batch, and the keyword.
ORDERS = {
    "heads first": ("bht", True, {}),
    "heads last": ("bth", True, {"unsqueeze_dim": 2}),
    "one table, heads first": ("bht", False, {"unsqueeze_dim": 0}),
    "one table, heads last": ("bth", False, {"unsqueeze_dim": 1}),
    "no batch": ("th", False, {"unsqueeze_dim": -2}),
}


def _in_orders(call, orders=tuple(ORDERS)):
    def way(order, batch, keywords):
        def make(m):
            cos, sin = m.tables(*([BATCH, TOKENS] if batch else [TOKENS]))
            return m.qk(order), lambda f, *inputs: call(f, *inputs, cos, sin, **keywords)

        return make

    return {name: way(*ORDERS[name]) for name in orders}


def _both(f, q, k, cos, sin, **keywords):
    return list(f(q, k, cos, sin, **keywords))


def _each(f, q, k, cos, sin, **keywords):
    return [f(q, cos, sin, **keywords), f(k, cos, sin, **keywords)]


def _q_alone(call):
    def make(m):
        cos, sin = m.tables(BATCH, TOKENS)
        return m.qk()[:1], lambda f, q: call(f, q, cos, sin)

    return {"q alone": make}


def _q_and_none(f, q, cos, sin):
    out, none = f(q, None, cos, sin)
    assert none is None
    return [out]


def _vision(call=_both, **orders):
    def way(order, batch):
        def make(m):
            cos, sin = m.tables(*([BATCH, TOKENS] if batch else [TOKENS]))
            return m.qk(order), lambda f, *inputs: call(f, *inputs, cos, sin)

        return make

    return {name.replace("_", " "): way(*value) for name, value in orders.items()}


def _of_angles(m):
    freqs = m.angles(TOKENS).to(m.table)
    return [m.x(1, TOKENS, HEADS, WIDTH)], lambda f, x: [f(x, freqs)]


def _fewer_rows_of_q(m):
    cos, sin = m.tables(BATCH, TOKENS)
    q, k = m.qk()
    return [q[:, :, :3].clone(), k], lambda f, q, k: list(f(q, k, cos, sin))


def _ones(n):
    def make(m):
        cos, sin = m.tables(*[1] * n, TOKENS)
        return m.qk(), lambda f, q, k: list(f(q, k, cos, sin))

    return make


def _memory(more, **keywords):
    def make(m):
        cos, sin = m.tables(1, TOKENS)
        q, k = m.x(BATCH, 2, TOKENS, WIDTH), m.x(BATCH, 2, more, WIDTH)
        return [q, k], lambda f, q, k: list(f(q, k, cos, sin, **keywords))

    return make


def _grouped(groups, stay, excluded):
    def make(m):
        (cos, sin), (cos_k, sin_k) = m.tables(1, TOKENS), m.tables(1, 3)
        q, k = m.x(BATCH, 2, TOKENS, WIDTH), m.x(BATCH, 2, groups * (stay + 3) + excluded, WIDTH)
        return [q, k], lambda f, q, k: list(f(q, k, cos, sin, cos_k, sin_k, num_k_exclude_rope=excluded, repeat_freqs_k=groups))

    return make


def _patches(before):
    def make(m):
        cos, sin = m.tables(TOKENS - before)
        return m.qk(), lambda f, q, k: list(f(q, k, cos, sin))

    return make


def _axes(m):
    halves = [tables("full", m.table, BATCH, TOKENS, m.width // 2) for _ in range(2)]
    cos, sin = (torch.cat(parts, -1).to(m.device) for parts in zip(*halves))
    ids = torch.zeros(BATCH, TOKENS, 2, dtype=torch.int64, device=m.device)
    return m.qk("bth")[:1], lambda f, x: [f(x, cos, sin, ids)]


def _by_ids(inputs, order="bht", **keywords):
    def make(m):
        cos, sin = m.tables(9)
        ids = torch.randint(0, 9, (BATCH, TOKENS)).to(m.device)
        given = [*m.qk(order), m.qk(order)[1]][:inputs]
        return given, lambda f, *inputs: list(f(*inputs, cos, sin, ids, **keywords))

    return make


def _cached(m):
    cos, sin = m.tables(1, 1, TOKENS + 2)
    return m.qk(), lambda f, q, k: [f(q, cos, sin), f(k, cos, sin)]


def _sections(order, **keywords):
    def make(m):
        cos, sin = m.tables(3, BATCH, TOKENS)
        sections = [m.width // 2 - 2 * (m.width // 6), m.width // 6, m.width // 6]
        return m.qk(order), lambda f, q, k: list(f(q, k, cos, sin, sections, **keywords))

    return make


def _sinusoidal(inputs):
    def make(m):
        cos, sin = m.tables(1, 1, TOKENS)
        return [*m.qk(), m.qk()[1]][:inputs], lambda f, *inputs: list(f(torch.cat((sin, cos), -1), *inputs))

    return make


def _conformer(m):
    model = types.SimpleNamespace(num_heads=HEADS, head_size=WIDTH)
    both = torch.stack([x[:, None, None, :] for x in m.tables(TOKENS + 1)])
    return [m.x(BATCH, TOKENS, HEADS * WIDTH)], lambda f, x: [f(model, x, both)]


def _complex(order, *shape):
    def make(m):
        freqs = m.complex(*shape)
        return m.qk(order), lambda f, q, k: list(f(q, k, freqs))

    return make


_PAIR = _in_orders(_both)
_FOUR = tuple(ORDERS)[:4]
WAYS = {
    "pair": _PAIR,
    "pair_or_q": {**_PAIR, **_q_alone(_q_and_none)},
    "q_and_maybe_k": {**_PAIR, **_q_alone(lambda f, q, cos, sin: [f(q, cos=cos, sin=sin)])},
    "single": _in_orders(_each),
    "vision": _vision(no_batch=("th", False), one_table=("bth", False), a_batch=("bth", True)),
    "vision_of_heads": _vision(no_batch=("th", False), one_table=("bth", False)),
    "vision_of_angles": {"one sequence": _of_angles},
    "gptj": _vision(lambda f, q, k, cos, sin: [f(q, sin, cos), f(k, sin, cos)], heads_last=("bth", True)),
    "backwards": _PAIR,
    "last_rows_for_q": {**_in_orders(_both, _FOUR[:1]), "fewer rows of q": _fewer_rows_of_q},
    "of_four": _in_orders(_both, _FOUR),
    "tail": _in_orders(_each),
    "broadcast": {"two dimensions": _ones(0), "three": _ones(1), "four": _ones(2)},
    "memory": {
        "as long as q": _memory(TOKENS), "some excluded": _memory(TOKENS + 2, num_k_exclude_rope=2),
        "repeated": _memory(2 * TOKENS + 1, num_k_exclude_rope=1, repeat_freqs_k=True),
    },
    "grouped_memory": {"one group": _grouped(1, 0, 0), "two groups": _grouped(2, 2, 1)},
    "patches": {"only patches": _patches(0), "two tokens before": _patches(2)},
    "axes": {"heads last": _axes},
    "by_ids": {"heads first": _by_ids(2), "heads last": _by_ids(2, "bth", unsqueeze_dim=2)},
    "by_ids_with_v": {"heads first": _by_ids(3)},
    "cached": {"heads first": _cached},
    "sections": {"heads first": _sections("bht"), "heads last": _sections("bth", unsqueeze_dim=2)},
    "sinusoidal": {"q and k": _sinusoidal(2), "and v": _sinusoidal(3)},
    "conformer": {"a sequence": _conformer},
    "complex": {"heads last": _complex("bth", BATCH, TOKENS)},
    "complex_heads_first": {"heads first": _complex("bht", BATCH, TOKENS)},
    "complex_vision": {"heads last": _complex("bth", TOKENS, 1)},
}  # fmt: skip
