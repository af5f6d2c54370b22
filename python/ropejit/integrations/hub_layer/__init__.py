"""A local repository of Hugging Face's `kernels`: `ropejit.integrations.kernels` says how it is named."""

from . import layers

__all__ = ["layers"]
