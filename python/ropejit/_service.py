"""Prewarming, counters and the cache's contents."""

import errno
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
    late_compiles: int


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
    table_dtype=None, tables="full", backward=False, tune=True,
):  # fmt: skip
    """Compiles and tunes, now, what a model's calls will need, and keeps it; a second run finds all of it done.

    Args:
        model_or_config: a transformers model or configuration, a dict, the path of a ``config.json`` (or its folder), or the name
            of a configuration that comes with the package, such as ``"llama-3.1-8b"``.
        tokens: token counts over the whole batch, each rounded up to a power of two.
        device: ``"cuda"``, ``"cuda:N"`` or ``"cpu"``, a `torch.device`, or a GPU's number; None: that of the model, else the first
            GPU, else the processor.
        dtype: ``"bf16"``, ``"f16"`` or ``"f32"``; None: the model's.
        layout: how q and k lie in memory: ``"bshd"`` is what a projection's view gives, transposed or not.
        rounding, table_dtype, tables: those of the calls; the defaults are those of ``apply_rotary_pos_emb``. ``"twice"`` is
            prepared as ``"half"`` is, since every second angle is read.
        backward: also what gradients need.
        tune: False measures nothing: what comes with the package for this GPU's model is compiled, else the default variant.
    """
    if tables not in ("half", "full", "twice"):
        raise ValueError(f"tables: {tables!r} is not one of 'half', 'full' and 'twice'")
    text = _config_text(getattr(model_or_config, "config", model_or_config))
    if device is None:
        device = _device_of(model_or_config)
    device = f"cuda:{device}" if isinstance(device, int) else str(device)
    if dtype is None:
        dtype = getattr(model_or_config, "dtype", None)
    names = {"bfloat16": "bf16", "float16": "f16", "float32": "f32"}
    dtype, table_dtype = (None if d is None else names.get(str(d).removeprefix("torch."), str(d)) for d in (dtype, table_dtype))
    done = _ropejit.prewarm(
        text, list(tokens), device, dtype, layout, rounding, table_dtype, tables != "full", backward, tune
    )  # fmt: skip
    return [_known(Prepared, fields) for fields in json.loads(done)]


def _config_text(config):
    """JSON of a configuration, or the name of one that comes with the package."""
    if isinstance(config, dict):
        return json.dumps(config)
    if not isinstance(config, (str, os.PathLike)):
        return json.dumps(config.to_dict(), default=str)
    path = os.path.join(config, "config.json") if os.path.isdir(config) else config
    if isinstance(config, str) and not os.path.exists(path) and config in _ropejit.shipped_configurations():
        return config
    if not os.path.exists(path):
        names = ", ".join(_ropejit.shipped_configurations())
        what = f"model_or_config: {os.strerror(errno.ENOENT)}: {os.fspath(path)!r}"
        raise FileNotFoundError(errno.ENOENT, f"{what}; hint: give a config.json, a folder with one, or one of {names}")
    return _ropejit.read_config(path)


def _device_of(model):
    import sys

    if hasattr(model, "device"):
        return str(model.device)
    torch = sys.modules.get("torch")
    return "cuda" if torch is not None and torch.cuda.is_available() else "cpu"
