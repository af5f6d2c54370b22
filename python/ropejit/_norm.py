"""The norm that `rope_append` applies before it turns q and k."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, eq=False)
class Norm:
    """A norm of each head of q and k, as `qk_norm_rope` computes it.

    Args:
        q_weight, k_weight: ``[head_dim]``, of q's type; None for the flavour ``"no_weight"``.
        eps: added to the mean of the squares.
        flavour, order, rsqrt, after_rope: as for `qk_norm_rope`.
    """

    q_weight: Any = None
    k_weight: Any = None
    eps: float = 1e-6
    flavour: str = "weight_after"
    order: str = "torch"
    rsqrt: str | None = None
    after_rope: bool = False
