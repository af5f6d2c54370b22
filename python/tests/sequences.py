"""Every attention of the installed transformers whose norms and rotation `patch` takes as one, small, with inputs; and what
stands in for the kernels where there is no GPU."""

import functools
import inspect
import sys

import every
import ropejit
import torch
from ropejit import _patch

WIDTH = 32
#: What makes a configuration small, where it has such a field.
SMALL = dict(
    hidden_size=64, d_model=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4, num_heads=4,
    num_key_value_heads=2, head_dim=WIDTH, global_head_dim=WIDTH, kv_channels=WIDTH, vocab_size=64, attention_dropout=0.0,
    num_global_key_value_heads=2, qk_layernorm=True, use_qk_norm=True, qk_norm=True, num_attention_groups=2,
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


def _config(cls, field):
    """A small configuration of the class that this parameter of ``__init__`` is annotated with."""
    base = next(c for c in cls.__mro__ if "__init__" in vars(c))
    annotation = inspect.signature(base.__init__).parameters[field].annotation
    if annotation is inspect.Parameter.empty:
        from transformers import Qwen3OmniMoeTextConfig as annotation
    if isinstance(annotation, str):
        annotation = getattr(sys.modules[cls.__module__], annotation)
    config = annotation()
    config = getattr(config, "text_config", config)
    for name, value in SMALL.items():
        if getattr(config, name, None) is not None:
            setattr(config, name, value)
    config._attn_implementation = "eager"
    return config


def build(cls, layer=0):
    """One attention of the class, in its own small configuration, with weights at random."""
    parameters = inspect.signature(cls.__init__).parameters
    arguments = {n: _config(cls, n) for n in parameters if n.endswith("config")}
    arguments.update({n: v for n, v in (("layer_idx", layer), ("num_heads", 4)) if n in parameters})
    attention = cls(**arguments)
    with torch.no_grad():
        for p in attention.parameters():
            p.copy_(torch.randn_like(p) / 8 if p.ndim > 1 else torch.rand_like(p) + 0.5)
    return attention


def inputs(attention, device, dtype, tokens=5, width=None):
    """Arguments of a call of the attention."""
    parameters = inspect.signature(type(attention).forward).parameters
    x = torch.randn(2, tokens, 64).to(device, dtype)
    packed = "cu_seqlens" in parameters
    angles = torch.rand(tokens if packed else (2, tokens), (width or rotary(attention)) // 2) * 6 if packed else None
    if angles is None:
        angles = torch.rand(2, tokens, (width or rotary(attention)) // 2) * 6
    angles = angles.to(device)
    angles = torch.cat((angles, angles), -1)
    out = dict(hidden_states=x, position_embeddings=(angles.cos().to(dtype), angles.sin().to(dtype)))
    for name in ("attention_mask", "merged_attention_mask"):
        if name in parameters:
            out[name] = None
    if packed:
        out.update(hidden_states=x[0], cu_seqlens=torch.tensor([0, tokens], dtype=torch.int32, device=device))
    if "shared_kv_states" in parameters:
        out["shared_kv_states"] = {}
    if "encoder_hidden_states" in parameters:
        out["encoder_hidden_states"] = torch.randn(2, 3, 64).to(device, dtype)
    return out


def rotary(attention):
    """How wide the tables of a model like this are."""
    norm = next(m for n, m in attention.named_modules() if n.startswith(("q_", "query_")) and "norm" in n)
    return head_dim(norm, attention)


def head_dim(norm, attention):
    weight = getattr(norm, "weight", None)
    return attention.head_dim if weight is None else weight.shape[0]
