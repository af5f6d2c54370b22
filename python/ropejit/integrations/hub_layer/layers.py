"""The layers of this repository. `kernels` imports the folder under a name of its own, so they are made elsewhere, once."""

from ropejit.integrations._rotary_layer import RotaryPosEmb

__all__ = ["RotaryPosEmb"]
