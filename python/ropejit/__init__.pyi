"""Types of the package: what `__init__` looks up late is known here too."""

import os
from typing import Any, Literal

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

def apply(
    q: Tensor,
    k: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    *,
    position_ids: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    interleaved: bool = False,
    rotary_dim: int | None = None,
    tables: Literal["half", "full", "twice"] | None = None,
    inplace: bool = False,
    layout: Literal["bshd", "bhsd", "thd"] = "bshd",
    rounding: Literal["once", "per_op"] = "once",
) -> tuple[Tensor, Tensor | None]: ...
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
def check() -> None: ...
def freeze() -> None: ...
def wait_tuned() -> None: ...
