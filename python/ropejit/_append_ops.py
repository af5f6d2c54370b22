"""The operator of ``torch.library`` for `rope_append`: what a tracer, a compiler or a subclass of tensors sees."""

import torch

from . import _ropejit, _tensors
from ._ops import _like

_Maybe = torch.Tensor | None  # the types below are the operator's schema
_PAGES = ("kv_indices", "kv_indptr", "batch_indices", "positions")
_NAMES = (
    "q", "k", "v", "cos", "sin", "k_cache", "v_cache", "slot_mapping", *_PAGES, "q_scale", "k_scale", "v_scale",
    "q_weight", "k_weight", "q_out", "position_ids", "cu_seqlens",
)  # fmt: skip


#: PyTorch 2.11 compiles an operator that writes to two parts of one tensor so that the second is lost; 2.14 does not. Parts that lie
#: between each other (MLA's) are right in both.
_LOSES_VIEWS = tuple(map(int, torch.__version__.split("+")[0].split(".")[:2])) < (2, 14)


@torch.library.custom_op("ropejit::rope_append", mutates_args=("q_out", "k_cache", "v_cache"))
def append_op(
    q_out: torch.Tensor, k_cache: torch.Tensor, v_cache: _Maybe, q: _Maybe, k: torch.Tensor, v: _Maybe,
    cos: torch.Tensor, sin: torch.Tensor, slot_mapping: _Maybe, kv_indices: _Maybe, kv_indptr: _Maybe,
    batch_indices: _Maybe, positions: _Maybe, q_scale: _Maybe, k_scale: _Maybe, v_scale: _Maybe, q_weight: _Maybe,
    k_weight: _Maybe, position_ids: _Maybe, cu_seqlens: _Maybe, eps: float | None, flavour: str, order: str,
    rsqrt: str | None, after_rope: bool, style: str, rotary_dim: int | None, layout: str, rounding: str, scale_use: str,
    part: str,
) -> None:  # fmt: skip
    """Writes the rotated q to ``q_out``, and k and v to their caches. Without q, ``q_out`` is turned where it is."""
    pages = (kv_indices, kv_indptr, batch_indices, positions)
    inplace = q is None
    q, q_out = (q_out, None) if inplace else (q, q_out)
    out = _ropejit.append_plain(
        q, k, v, cos, sin, k_cache, v_cache, slot_mapping, None if kv_indices is None else pages, q_scale, k_scale, v_scale,
        q_weight, k_weight, q_out, position_ids, cu_seqlens, eps, flavour, order, rsqrt, after_rope, style, rotary_dim,
        layout, rounding, scale_use, part, inplace,
    )  # fmt: skip
    if out is None:
        raise ValueError("q: PyTorch gave a tensor to the operator whose memory cannot be read, or such another one")


@append_op.register_fake
def _(*_):
    return None


def rope_append(
    q, k, v, cos, sin, k_cache, v_cache, slot_mapping, pages, q_scale, k_scale, v_scale, q_weight, k_weight, q_out,
    position_ids, cu_seqlens, *rest,
):  # fmt: skip
    """The call as an operator."""
    *rest, inplace = rest
    written = {"q": q, "k": k, "v": v, "cos": cos, "sin": sin, "k_cache": k_cache, "v_cache": v_cache, "q_out": q_out}
    if torch.is_grad_enabled():
        for name, x in {**written, "q_weight": q_weight, "k_weight": k_weight}.items():
            if x is not None and x.requires_grad:
                raise ValueError(
                    f"{name}: requires a gradient, and rope_append is for inference: it has none; hint: call it under"
                    " torch.no_grad() or torch.inference_mode()"
                )
    if _LOSES_VIEWS and torch.compiler.is_dynamo_compiling() and v_cache is not None:
        of_one = k_cache._base is not None and k_cache._base is v_cache._base
        if of_one and sum((n - 1) * step for n, step in zip(k_cache.shape, k_cache.stride(), strict=True)) < k_cache.numel():
            raise ValueError(
                "v_cache: is a view of the tensor that k_cache is a view of, and this PyTorch (before 2.14) would compile that"
                " wrongly; hint: allocate the caches apart, or call rope_append outside of what is compiled"
            )
    if inplace and q_out is not None:
        raise ValueError("q_out: cannot be given beside inplace=True; hint: leave one of them out")
    out = q if inplace else _like(q) if q_out is None else q_out
    torch.ops.ropejit.rope_append(
        out, k_cache, v_cache, None if inplace else q, k, v, cos, sin, slot_mapping,
        *((None,) * 4 if pages is None else pages), q_scale, k_scale, v_scale, q_weight, k_weight, position_ids, cu_seqlens,
        *rest,
    )  # fmt: skip
    return out


def append_to_any_tensors(*arguments):
    """The same where the native function may not launch: somebody watches, or tensors are of a subclass, or do not lie in memory
    as they are. Nothing is copied back to a cache: what cannot be written is refused."""
    pages = (None,) * 4 if arguments[8] is None else arguments[8]
    tensors = (*arguments[:8], *pages, *arguments[9:17])
    _tensors.refuse(*tensors, names=_NAMES)
    if _tensors.is_transformed(*tensors):
        _tensors.refuse_transforms("rope_append")
    for name, x in zip(_NAMES, tensors, strict=True):
        if isinstance(x, torch.Tensor) and (x._is_zerotensor() or x.is_neg()):
            kind = "zero tensor" if x._is_zerotensor() else "negated view"
            raise ValueError(f"{name}: is a {kind}, whose memory does not hold its numbers; hint: pass x + 0 in its stead")
    return rope_append(*arguments)
