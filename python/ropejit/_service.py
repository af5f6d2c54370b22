"""Prewarming, counters and the cache's contents."""

import json
import os
from dataclasses import dataclass

from . import _ropejit


@dataclass(frozen=True)
class Stats:
    """What was done since the process began, over all devices."""

    compiles: int
    tunings: int
    memory_hits: int
    disk_hits: int
    embedded_hits: int
    priors: int
    waited: int
    unusable_entries: int
    failed_writes: int


@dataclass(frozen=True)
class Candidate:
    """A variant that was tried. ``median_ns`` is None where it was not measured to the end."""

    variant: str
    median_ns: float | None
    bit_equal: bool | None


@dataclass(frozen=True)
class Choice:
    """Which variant serves a spec, token bucket and layout on a device, and why: measured here (``tuned``), taken from what was
    measured on another GPU of the model and comes with the package (``prior``), or the default."""

    key: str
    spec: str
    tokens: int
    layout: str
    arch: str
    device: str
    variant: str
    tuned: bool
    prior: bool
    median_ns: float | None
    copy_ns: float | None
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True)
class Prepared:
    """What `prewarm` has made sure of. ``origin`` is ``disk`` or ``embedded`` where there was nothing to do."""

    spec: str
    tokens: int
    layout: str
    variant: str
    tuned: bool
    prior: bool
    origin: str


def _known(cls, fields):
    """A dataclass of what it knows: a newer library may tell more."""
    return cls(**{name: fields[name] for name in cls.__dataclass_fields__ if name in fields})


def stats():
    """What was done since the process began, over all devices."""
    return _known(Stats, json.loads(_ropejit.stats()))


def inspect():
    """The choices in the cache folder, then those of the folders that are only read."""
    choices = []
    for fields in json.loads(_ropejit.inspect()):
        fields["candidates"] = tuple(_known(Candidate, c) for c in fields["candidates"])
        choices.append(_known(Choice, fields))
    return choices


def prewarm(
    model_or_config, tokens=(1, 64, 512, 8192), *, device=None, dtype=None, layout="bshd", rounding="per_op",
    table_dtype=None, backward=False, tune=True,
):  # fmt: skip
    """Compiles and tunes, now, what a model's calls will need, and keeps it; a second run finds all of it done.

    Args:
        model_or_config: a transformers model or configuration, a dict, or the path of a ``config.json`` (or its folder).
        tokens: token counts over the whole batch, each rounded up to a power of two.
        device: ``"cuda"``, ``"cuda:N"`` or ``"cpu"``; None: that of the model, else the first GPU, else the processor.
        dtype: ``"bf16"``, ``"f16"`` or ``"f32"``; None: the model's.
        layout: how q and k lie in memory: ``"bshd"`` is what a projection's view gives, transposed or not.
        rounding, table_dtype: those of the calls; the defaults are those of ``apply_rotary_pos_emb``.
        backward: also what gradients need.
        tune: False measures nothing: what comes with the package for this GPU's model is compiled, else the default variant.
    """
    config = getattr(model_or_config, "config", model_or_config)
    if isinstance(config, (str, os.PathLike)):
        path = os.path.join(config, "config.json") if os.path.isdir(config) else config
        text = _ropejit.read_config(path)
    elif isinstance(config, dict):
        text = json.dumps(config)
    else:
        text = json.dumps(config.to_dict(), default=str)
    if device is None:
        device = _device_of(model_or_config)
    if dtype is None:
        dtype = getattr(model_or_config, "dtype", None)
    names = {"bfloat16": "bf16", "float16": "f16", "float32": "f32"}
    dtype, table_dtype = (None if d is None else names.get(str(d).removeprefix("torch."), str(d)) for d in (dtype, table_dtype))
    done = _ropejit.prewarm(
        text, list(tokens), device, dtype, layout, rounding, table_dtype, backward, tune
    )  # fmt: skip
    return [_known(Prepared, fields) for fields in json.loads(done)]


def _device_of(model):
    import sys

    if hasattr(model, "device"):
        return str(model.device)
    torch = sys.modules.get("torch")
    return "cuda" if torch is not None and torch.cuda.is_available() else "cpu"
