"""Every attention of the installed transformers whose norms and rotation `patch` takes as one, small, with inputs; and what
stands in for the kernels where there is no GPU."""

import functools
import inspect
import sys

import every
import ropejit
import torch
from ropejit import _norm_calls, _norm_sequences, _patch

WIDTH = 32
#: What makes a configuration small, where it has such a field.
SMALL = dict(
    hidden_size=64, d_model=64, intermediate_size=96, num_attention_heads=4, num_heads=4,
    num_key_value_heads=2, head_dim=WIDTH, global_head_dim=WIDTH, kv_channels=WIDTH, vocab_size=64, attention_dropout=0.0,
    num_global_key_value_heads=2, qk_layernorm=True, use_qk_norm=True, qk_norm=True, num_attention_groups=2,
    adapter_in_dim=64,
)  # fmt: skip


@functools.lru_cache(maxsize=None)
def classes():
    """Each class whose ``forward`` is replaced."""
    every.modules()
    with ropejit.patched("transformers"):
        replaced = [(name, new.__qualname__) for name, _, _, new in _patch._replaced]
    methods = [(name, path.split(".")) for name, path in replaced if path.endswith(".forward")]
    return [getattr(sys.modules[name], path[0]) for name, path in methods]


def norm_rope(
    q, k, q_weight, k_weight, cos, sin, *, eps, flavour="weight_after", order="torch", rsqrt=None, after_rope=False,
    position_ids=None, cu_seqlens=None, style="half_split", rotary_dim=None, tables=None, inplace=False, layout="bshd",
    rounding="once",
):  # fmt: skip
    """`ropejit.qk_norm_rope` in PyTorch's operations, in the order of eager's sums, which differs between devices."""
    assert order == "torch" and rsqrt is None and position_ids is None and cu_seqlens is None and not inplace

    def normed(x, w):
        f = x.float()
        u = f * torch.rsqrt(f.pow(2).mean(-1, keepdim=True) + eps)
        of = {
            "weight_after": lambda: w * u.to(x.dtype), "one_plus_weight": lambda: u * (1.0 + w.float()),
            "weight_f32": lambda: u * w.float(), "no_weight": lambda: u,
        }  # fmt: skip
        return of[flavour]().to(x.dtype)

    def table(t):
        half = {"half": lambda: t, "full": lambda: t[..., : t.shape[-1] // 2], "twice": lambda: t[..., ::2]}[tables]()
        whole = torch.cat((half, half), -1) if style == "half_split" else half.repeat_interleave(2, -1)
        return whole.unsqueeze(-2 if layout == "bshd" else -3)

    def turned(x):
        if style == "half_split":
            a, b = x.chunk(2, -1)
            return torch.cat((-b, a), -1)
        return torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)

    def rotated(x):
        turning, resting = x[..., :rotary_dim], x[..., rotary_dim:]
        if rounding == "once":
            turning = turning.float()
        out = ((turning * table(cos)) + (turned(turning) * table(sin))).to(x.dtype)
        return torch.cat((out, resting), -1) if resting.shape[-1] else out

    def one(x, w):
        return None if x is None else normed(rotated(x), w) if after_rope else rotated(normed(x, w))

    return one(q, q_weight), one(k, k_weight)


def _config(cls, field, width):
    """A small configuration of the class that this parameter of ``__init__`` is annotated with."""
    base = next(c for c in cls.__mro__ if "__init__" in vars(c))
    annotation = inspect.signature(base.__init__).parameters[field].annotation
    if annotation is inspect.Parameter.empty:
        from transformers import Qwen3OmniMoeTextConfig as annotation
    if "Talker" in cls.__name__:
        from transformers.models.qwen3_omni_moe.configuration_qwen3_omni_moe import (
            Qwen3OmniMoeTalkerCodePredictorConfig as annotation,
        )
    if isinstance(annotation, str):
        annotation = getattr(sys.modules[cls.__module__], annotation)
    config = annotation()
    config = getattr(config, "text_config", config)
    config = type(config)(**{name: width if value == WIDTH else value for name, value in SMALL.items() if _has(config, name)})
    config._attn_implementation = "eager"
    return config


def _has(config, name):
    try:
        return hasattr(config, name)
    except Exception:  # noqa: BLE001 - of a kind of its own, where layers differ
        return True


def build(cls, layer=0, width=WIDTH):
    """One attention of the class, in its own small configuration, with weights at random."""
    parameters = inspect.signature(cls.__init__).parameters
    arguments = {n: _config(cls, n, width) for n in parameters if n.endswith("config")}
    arguments.update({n: v for n, v in (("layer_idx", layer), ("num_heads", 4)) if n in parameters})
    attention = cls(**arguments)
    with torch.no_grad():
        for p in attention.parameters():
            p.copy_(torch.randn_like(p) / 8 if p.ndim > 1 else torch.rand_like(p) + 0.5)
    return attention


def inputs(attention, device, dtype, tokens=5):
    """Arguments of a call of the attention, anew with every call of what is returned."""
    parameters = inspect.signature(type(attention).forward).parameters
    packed = "cu_seqlens" in parameters
    batch = () if packed else (2,)
    x, other = (torch.randn(*batch, n, 64).to(device, dtype) for n in (tokens, 3))
    angles = torch.rand(*batch, tokens, _head_dim(attention) // 2) * 6
    cos, sin = (torch.cat((t, t), -1).to(device, dtype) for t in (angles.cos(), angles.sin()))
    every = dict(
        attention_mask=None, merged_attention_mask=None, shared_kv_states={}, encoder_hidden_states=other,
        cu_seqlens=torch.tensor([0, tokens], dtype=torch.int32, device=device),
    )  # fmt: skip

    def arguments():
        some = {name: dict(value) if value == {} else value for name, value in every.items() if name in parameters}
        return dict(some, hidden_states=x, position_embeddings=(cos, sin))

    return arguments


def norms(attention):
    """Names and modules of the norms of q and k."""
    return {n: m for n, m in attention.named_children() if _norm_sequences.IS_NORM.fullmatch(n)}


def _head_dim(attention):
    weights = (getattr(norm, "weight", None) for norm in norms(attention).values())
    return next((w.shape[0] for w in weights if w is not None), None) or attention.head_dim


def watch(monkeypatch, device="cpu"):
    """The calls that take one launch, as a list that grows. On the processor `norm_rope` stands in for the kernels."""
    calls, measured = [], _norm_calls._measured
    whole = norm_rope if device == "cpu" else ropejit.qk_norm_rope

    def counted(*arguments, **keywords):
        calls.append((arguments, keywords))
        return whole(*arguments, **keywords)

    def uncounted(*arguments):
        before = len(calls)
        out = measured(*arguments)
        del calls[before:]
        return out

    monkeypatch.setattr(ropejit, "qk_norm_rope", counted, raising=False)
    monkeypatch.setattr(_norm_calls, "_measured", uncounted)
    monkeypatch.setattr(_norm_calls, "_on_cpu", device == "cpu")
    return calls


def few(monkeypatch, *names):
    """Has `patch` see modules only whose names end so: tests have loaded all there are."""
    whole = _patch._patcher
    monkeypatch.setattr(_patch, "_patcher", lambda name: whole(name) if name.endswith(names) else None)


def freeze(attention):
    for norm in norms(attention).values():
        norm.requires_grad_(False)


def step(attention, arguments):
    """The result and all gradients of one call."""
    arguments = arguments()
    arguments["hidden_states"] = arguments["hidden_states"].clone().requires_grad_()
    out = attention(**arguments)[0]
    generator = torch.Generator(out.device).manual_seed(3)
    given = torch.randn(out.shape, generator=generator, device=out.device).to(out.dtype)
    wanted = {n: p for n, p in attention.named_parameters() if p.requires_grad}
    wanted["hidden_states"] = arguments["hidden_states"]
    gradients = torch.autograd.grad(out, list(wanted.values()), given, allow_unused=True)
    return {"out": out.detach(), **{n: g for n, g in zip(wanted, gradients) if g is not None}}


def differences(ours, theirs):
    assert ours.keys() == theirs.keys()
    return [n for n in ours if ours[n].dtype != theirs[n].dtype or not torch.equal(ours[n], theirs[n])]


def same(ours, theirs):
    assert not differences(ours, theirs)


def outcome(attention, arguments):
    with torch.no_grad():
        return {"out": attention(**arguments())[0]}


def innermost(function):
    """The function that decorators call."""
    while True:
        inner = [c.cell_contents for c in function.__closure__ or () if inspect.isfunction(c.cell_contents)]
        named = [f for f in inner if f.__name__ == function.__name__]
        if not named:
            return function
        function = named[0]


def compiled(model, ids):
    """The logits of a model that is compiled anew."""
    torch.compiler.reset()
    return torch.compile(model, fullgraph=True, backend="aot_eager")(input_ids=ids, use_cache=False).logits
