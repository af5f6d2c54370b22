"""Kernels of your own, from a `.toml` and a `.cu`."""

from . import _ropejit

#: A template, ready to be called.
Template = _ropejit.Template


def template(path):
    """Reads a kernel's description and its source.

    What is returned is called with the kernel's arguments by name. The spec and the sizes follow from the tensors; what no
    tensor says is given by name as well::

        kernel = ropejit.template("add_rmsnorm.toml")
        y = torch.empty_like(x)
        kernel(x=x, residual=r, weight=w, y=y, eps=1e-6)

    Tensors are contiguous, and those that the kernel writes do not overlap others. Nothing is differentiated.
    """
    return _ropejit.Template(path)
