"""Who is measured, and how each is called on q and k of `[batch, heads, tokens, head_dim]`.

What a peer needs and this environment lacks makes it absent, never an error. `PEERS_DIR` is where `make peers-bundle` has put
the files of those that are not installed.
"""

import contextlib
import importlib.util
import os
import pathlib
import sys
import types
from dataclasses import dataclass
from typing import Callable

PEERS = pathlib.Path(os.environ.get("PEERS_DIR", "."))


@dataclass
class Peer:
    """`prepare` makes of cos and sin, `[1, tokens, head_dim]`, what `call` takes; it is not timed."""

    call: Callable
    prepare: Callable = lambda cos, sin: (cos, sin)
    version: str = ""


def _module(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def transformers():
    import transformers
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    return Peer(apply_rotary_pos_emb, version=transformers.__version__)


def torch_compile():
    import torch
    import torch._dynamo

    eager = transformers()
    # One graph a shape; past the usual limit a shape would silently run eager.
    for name in ("recompile_limit", "cache_size_limit"):
        if hasattr(torch._dynamo.config, name):
            setattr(torch._dynamo.config, name, 64)
    return Peer(torch.compile(eager.call, dynamic=False), version=torch.__version__)


def unsloth():
    """Its kernel file alone, with stand-ins for what that imports: the package itself wants a training environment."""
    import torch
    import triton

    folder = PEERS / "unsloth"
    names = ("unsloth", "unsloth.kernels", "unsloth.device_type", "unsloth.kernels.utils", "unsloth.kernels.rms_layernorm")
    for name in names:
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = []
    one = torch.cuda.device_count() == 1
    vars(sys.modules["unsloth.device_type"]).update(DEVICE_COUNT=torch.cuda.device_count(), DEVICE_TYPE_TORCH="cuda")
    vars(sys.modules["unsloth.kernels.utils"]).update(
        long_indexing=_module("unsloth.kernels.indexing", folder / "indexing.py").long_indexing,
        next_power_of_2=triton.next_power_of_2, torch_device_stream=torch.cuda.current_stream,
        torch_gpu_device=contextlib.nullcontext if one else torch.cuda.device,
    )  # fmt: skip
    same = lambda kernel: kernel  # noqa: E731
    vars(sys.modules["unsloth.kernels.rms_layernorm"]).update(
        _BF16_TRACEABLE=False, _TRACEABLE=False, _eager_kernel=same, _traced_kernel=same, _tag_compile_cache=lambda path: None
    )
    rope = _module("unsloth.kernels.rope_embedding", folder / "rope_embedding.py")
    version = (folder / "version").read_text().strip()
    return Peer(rope.fast_rope_embedding, lambda cos, sin: (cos[0], sin[0]), version)


def liger():
    import importlib.metadata

    sys.path.insert(0, str(PEERS))
    from liger_kernel.ops.rope import LigerRopeFunction

    return Peer(LigerRopeFunction.apply, version=importlib.metadata.version("liger_kernel"))


def flash_attn():
    """Its Triton kernel; one launch for q, one for k. It wants each angle once."""
    path = PEERS / "flash_attn_rotary.py"
    if path.exists():
        rotary, version = _module("flash_attn_rotary", path), (PEERS / "flash_attn_version").read_text().strip()
    else:
        import flash_attn
        from flash_attn.ops.triton import rotary

        version = flash_attn.__version__

    def call(q, k, cos, sin):
        return tuple(rotary.apply_rotary(x.transpose(1, 2), cos, sin).transpose(1, 2) for x in (q, k))

    def prepare(cos, sin):
        half = cos.shape[-1] // 2
        return cos[0, :, :half].contiguous(), sin[0, :, :half].contiguous()

    return Peer(call, prepare, version)


def ropejit():
    import ropejit

    return Peer(ropejit.apply_rotary_pos_emb, version=ropejit.__version__)


def ropejit_in_place():
    import ropejit

    def call(q, k, cos, sin):
        return ropejit.apply(q, k, cos, sin, layout="bhsd", rounding="per_op", inplace=True)

    return Peer(call, version=ropejit.__version__)


#: In the order of the table.
ALL = {
    "ropejit": ropejit,
    "ropejit, in place": ropejit_in_place,
    "transformers eager": transformers,
    "torch.compile": torch_compile,
    "Unsloth": unsloth,
    "Liger": liger,
    "flash-attn Triton": flash_attn,
}
