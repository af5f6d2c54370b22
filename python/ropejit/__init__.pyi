"""Types of the package: what `__init__` looks up late is known here too."""

import os
from collections.abc import Sequence
from typing import Any, Literal

from ._norm import Norm as Norm
from ._patch import patch as patch
from ._patch import patched as patched
from ._patch import unpatch as unpatch
from ._service import Candidate as Candidate
from ._service import Choice as Choice
from ._service import Prepared as Prepared
from ._service import Stats as Stats
from ._service import inspect as inspect
from ._service import prewarm as prewarm
from ._service import stats as stats

from ._template import template as template

__version__: str

#: A `torch.Tensor`, or an array of another library that speaks DLPack.
Tensor = Any

class Template:
    family: str
    gpu_only: str | None
    def __init__(self, path: str | os.PathLike[str]) -> None: ...
    def __call__(self, **arguments: Any) -> None: ...

class RopejitError(RuntimeError): ...
class NotCachedError(RopejitError): ...

class Angles:
    rotary_dim: int
    attention_factor: float
    depends_on_length: bool
    mrope_section: list[int] | None
    mrope_interleaved: bool
    accurate: bool
    def __init__(
        self, source: Any, *, layer: str | None = None, attention_factor: float | None = None, accurate: bool = False
    ) -> None: ...
    def inv_freq(self, seq_len: int | None = None) -> list[float]: ...
    def __call__(
        self,
        position_ids: Tensor,
        *,
        seq_len: int | None = None,
        mrope_section: Sequence[int] | None = None,
        mrope_interleaved: bool | None = None,
        dtype: Any = None,
    ) -> tuple[Tensor, Tensor]: ...

def apply(
    q: Tensor,
    k: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    *,
    position_ids: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    interleaved: bool = False,
    rotary_dim: int | None = None,
    tables: Literal["half", "full", "twice"] | None = None,
    inplace: bool = False,
    layout: Literal["bshd", "bhsd", "thd"] = "bshd",
    rounding: Literal["once", "per_op", "contracted"] = "once",
    style: Literal["half_split", "interleaved", "deinterleave"] | None = None,
    mrope_section: Sequence[int] | None = None,
    mrope_interleaved: bool | None = None,
    angles: Angles | None = None,
    seq_len: int | None = None,
    freqs_cis: Tensor | None = None,
    conjugate: bool = False,
    rotary_dim_offset: int | None = None,
    offset: int | Tensor | None = None,
    per_head: bool = False,
    contiguous: bool = False,
) -> tuple[Tensor, Tensor | None]: ...
def qk_norm_rope(
    q: Tensor,
    k: Tensor | None,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    *,
    eps: float,
    flavour: Literal["weight_after", "one_plus_weight", "weight_f32", "no_weight"] = "weight_after",
    order: Literal["torch", "tree"] = "torch",
    rsqrt: Literal["approx", "ieee"] | None = None,
    after_rope: bool = False,
    position_ids: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    style: Literal["half_split", "interleaved", "deinterleave"] = "half_split",
    rotary_dim: int | None = None,
    tables: Literal["half", "full", "twice"] | None = None,
    inplace: bool = False,
    layout: Literal["bshd", "bhsd", "thd"] = "bshd",
    rounding: Literal["once", "per_op", "contracted"] = "once",
) -> tuple[Tensor, Tensor | None]: ...
def rope_append(
    q: Tensor,
    k: Tensor,
    v: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    k_cache: Tensor,
    v_cache: Tensor | None,
    slot_mapping: Tensor | None,
    *,
    norm: Norm | None = None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    q_scale: Tensor | None = None,
    scale_use: Literal["divide", "multiply"] = "divide",
    q_out: Tensor | None = None,
    q_dtype: Any = None,
    inplace: bool = False,
    pages: tuple[Tensor, Tensor, Tensor, Tensor] | None = None,
    position_ids: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    style: Literal["half_split", "interleaved", "deinterleave"] = "half_split",
    rotary_dim: int | None = None,
    part: Literal["first", "last"] = "first",
    tables: Literal["half", "full", "twice"] | None = None,
    layout: Literal["bshd", "bhsd", "thd"] = "thd",
    rounding: Literal["once", "per_op", "contracted"] = "once",
) -> Tensor: ...
def apply_rotary_pos_emb(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1
) -> tuple[Tensor, Tensor]: ...
def fast_rope_embedding(
    Q: Tensor, K: Tensor, cos: Tensor, sin: Tensor, rope_embedding_indices: Tensor | None = None
) -> tuple[Tensor, Tensor]: ...
def apply_rotary_emb(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    interleaved: bool = False,
    inplace: bool = False,
    seqlen_offsets: int | Tensor = 0,
    cu_seqlens: Tensor | None = None,
    max_seqlen: int | None = None,
) -> Tensor: ...
def apply_rotary_emb_qkv_(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    cos_k: Tensor | None = None,
    sin_k: Tensor | None = None,
    interleaved: bool = False,
    seqlen_offsets: int | Tensor = 0,
    num_heads_q: int | None = None,
) -> Tensor: ...
def apply_rotary_emb_kv_(
    kv: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False, seqlen_offsets: int | Tensor = 0
) -> Tensor: ...
def check() -> None: ...
def freeze() -> None: ...
def wait_tuned() -> None: ...
