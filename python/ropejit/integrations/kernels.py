"""Hugging Face `kernels`: the layer for ``rotary_pos_emb``, by transformers' `KernelConfig` or by `use_kernel_mapping`.

``LOCAL`` is what ``KernelConfig({"rotary_pos_emb": LOCAL}, use_local_kernel=True)`` takes; an object of `RotaryLayer` is what
``use_kernel_mapping({"rotary_pos_emb": {"cuda": RotaryLayer()}})`` takes.
"""

import pathlib

#: The folder of this package that `kernels` loads, and the layer in it.
LOCAL = f"{pathlib.Path(__file__).parent / 'hub_layer'}:RotaryPosEmb"


class RotaryLayer:
    """What `kernels` calls a repository, without a hub: `load` gives the layer's class."""

    layer_name = "RotaryPosEmb"

    def load(self):
        from ._rotary_layer import RotaryPosEmb

        return RotaryPosEmb

    def __eq__(self, other):
        return isinstance(other, RotaryLayer)

    def __hash__(self):
        return hash(RotaryLayer)

    def __str__(self):
        return f"ropejit (layer `{self.layer_name}`)"
