"""SwiGLU and its gradients in float64."""

import numpy as np


def swiglu(gate, up):
    gate, up = gate.astype(np.float64), up.astype(np.float64)
    return gate / (1 + np.exp(-gate)) * up


def swiglu_backward(dy, gate, up):
    dy, gate, up = (x.astype(np.float64) for x in (dy, gate, up))
    s = 1 / (1 + np.exp(-gate))
    return {"gate": dy * up * (s * (1 + gate * (1 - s))), "up": dy * gate * s}
