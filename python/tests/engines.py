"""vLLM and SGLang as far as their rotary layers need them: neither can be installed beside any PyTorch, or without a GPU.

Their modules are read from an unpacked wheel where ``ROPEJIT_TEST_VLLM`` or ``ROPEJIT_TEST_SGLANG`` names the folder, and what
those import of the rest are stand-ins. Without, the rotary layers are stand-ins as well: classes of the signatures that vLLM 0.33
and SGLang 0.5.23 publish, which compute in PyTorch.
"""

import importlib
import importlib.machinery
import logging
import os
import sys
import types

VLLM = os.environ.get("ROPEJIT_TEST_VLLM")
SGLANG = os.environ.get("ROPEJIT_TEST_SGLANG")

_CUSTOM_OP = """
import torch

op_registry_oot = {}

class CustomOp(torch.nn.Module):
    def __new__(cls, *args, **kwargs):
        return super().__new__(op_registry_oot.get(cls.__name__, cls))

    def __init__(self, *, enforce_enable=False, compile_native=False):
        super().__init__()
        self._forward_method = self.forward_cuda

    def forward(self, *args, **kwargs):
        return self._forward_method(*args, **kwargs)

    @classmethod
    def register(cls, name, dynamic_arg_dims=None):
        def decorator(op_cls):
            op_cls.name = name
            return op_cls

        return decorator

    @classmethod
    def register_oot(cls, _decorated_op_cls=None, name=None):
        if _decorated_op_cls is None:
            return lambda decorated: cls.register_oot(decorated, name)
        assert name not in op_registry_oot, f"Duplicate op name: {name}"
        _decorated_op_cls.name = name
        op_registry_oot[name] = _decorated_op_cls
        return _decorated_op_cls
"""
_VLLM = """
import torch
from vllm.model_executor.custom_op import CustomOp

def turned(x, cos, sin, is_neox_style):
    cos, sin = cos.unsqueeze(-2).to(x.dtype), sin.unsqueeze(-2).to(x.dtype)
    x1, x2 = torch.chunk(x, 2, dim=-1) if is_neox_style else (x[..., ::2], x[..., 1::2])
    parts = x1 * cos - x2 * sin, x2 * cos + x1 * sin
    return torch.cat(parts, dim=-1) if is_neox_style else torch.stack(parts, dim=-1).flatten(-2)

@CustomOp.register("apply_rotary_emb")
class ApplyRotaryEmb(CustomOp):
    def __init__(self, enforce_enable=False, is_neox_style=True, enable_fp32_compute=False):
        super().__init__(enforce_enable=enforce_enable)
        self.is_neox_style, self.enable_fp32_compute = is_neox_style, enable_fp32_compute

    def forward_native(self, x, cos, sin):
        y = x.float() if self.enable_fp32_compute else x
        return turned(y, cos, sin, self.is_neox_style).to(x.dtype)

    forward_static = forward_cuda = forward_native

@CustomOp.register("rotary_embedding")
class RotaryEmbedding(CustomOp):
    def __init__(self, head_size, rotary_dim, max_position_embeddings, base, is_neox_style, dtype, init_cache=True):
        super().__init__()
        self.head_size, self.rotary_dim, self.is_neox_style = head_size, rotary_dim, is_neox_style
        self.use_flashinfer = False
        steps = 1.0 / base ** (torch.arange(0, rotary_dim, 2).float() / rotary_dim)
        angles = torch.arange(max_position_embeddings).float()[:, None] * steps
        self.register_buffer("cos_sin_cache", torch.cat((angles.cos(), angles.sin()), -1).to(dtype), persistent=False)

    def _match_cos_sin_cache_dtype(self, query):
        return self.cos_sin_cache.to(query.device, query.dtype)

    def forward_static(self):
        raise NotImplementedError

    def forward_native(self, positions, query, key=None):
        cos, sin = self._match_cos_sin_cache_dtype(query)[positions.flatten()].chunk(2, dim=-1)

        def one(x):
            heads = x.view(positions.numel(), -1, self.head_size)
            part = turned(heads[..., : self.rotary_dim], cos, sin, self.is_neox_style)
            return torch.cat((part, heads[..., self.rotary_dim :]), -1).reshape(x.shape)

        return one(query), None if key is None else one(key)

    def forward_cuda(self, positions, query, key=None):
        return self.forward_native(positions, query, key)

class Llama3RotaryEmbedding(RotaryEmbedding):
    pass

class FourierRotaryEmbedding(RotaryEmbedding):
    def forward_native(self, positions, query, key=None):
        return query, key

class MRotaryEmbedding(CustomOp):
    def forward_cuda(self, positions, query, key=None):
        raise NotImplementedError
"""
_SGLANG = """
import torch

class RotaryEmbedding(torch.nn.Module):
    def __init__(self, head_size, rotary_dim, max_position_embeddings, base, is_neox_style, dtype, position_start=0):
        super().__init__()
        self.head_size, self.rotary_dim, self.is_neox_style = head_size, rotary_dim, is_neox_style
        self.use_fallback_kernel = head_size not in (64, 128, 256, 512)
        steps = 1.0 / base ** (torch.arange(0, rotary_dim, 2).float() / rotary_dim)
        angles = torch.arange(max_position_embeddings).float()[:, None] * steps
        self.register_buffer("cos_sin_cache", torch.cat((angles.cos(), angles.sin()), -1), persistent=False)

    def forward_cuda(self, positions, query, key, offsets=None, fused_set_kv_buffer_arg=None):
        return "theirs"

class YaRNScalingRotaryEmbedding(RotaryEmbedding):
    pass
"""
_HOOKS = """
import enum, functools, pkgutil
from collections import defaultdict

class HookType(enum.Enum):
    AROUND = "around"

class HookRegistry:
    _hooks = defaultdict(list)

    @classmethod
    def register(cls, target, hook, hook_type, *, source=None):
        cls._hooks[target].append(hook)

    @classmethod
    def apply_hooks(cls):
        for target, hooks in cls._hooks.items():
            path, name = target.rsplit(".", 1)
            owner = pkgutil.resolve_name(path)
            for hook in hooks:
                original = getattr(owner, name)

                @functools.wraps(original)
                def wrapper(*args, original=original, hook=hook, **kwargs):
                    return hook(original, *args, **kwargs)

                setattr(owner, name, wrapper)
"""


class _Anything:
    """What is asked of the rest of a library while its classes are defined: switches that are off, and decorators."""

    def __getattr__(self, name):
        return _Anything()

    def __call__(self, *arguments, **_):
        return arguments[0] if len(arguments) == 1 and callable(arguments[0]) else False

    def __bool__(self):
        return False


class _StandIn(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything()


def _put(monkeypatch, name, path=None, **attributes):
    module = _StandIn(name)
    module.__dict__.update(attributes)
    module.__path__ = [str(path)] if path else []
    module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
    monkeypatch.setitem(sys.modules, name, module)
    parent, _, last = name.rpartition(".")
    if parent:
        vars(sys.modules[parent])[last] = module
    return module


def _forget(monkeypatch, name):
    for loaded in [n for n in sys.modules if n == name or n.startswith(name + ".")]:
        monkeypatch.delitem(sys.modules, loaded)


def vllm(monkeypatch, folder):
    """vLLM's module of rotary layers; ``folder``: where stand-ins are written."""
    _forget(monkeypatch, "vllm")
    root = VLLM and os.path.join(VLLM, "vllm")
    if not root:
        root = folder / "vllm"
        layers = root / "model_executor" / "layers" / "rotary_embedding"
        layers.mkdir(parents=True)
        (root / "model_executor" / "custom_op.py").write_text(_CUSTOM_OP)
        (layers / "common.py").write_text(_VLLM)
        (layers / "__init__.py").write_text("from .common import *\n")
    _put(monkeypatch, "vllm", root)
    _put(monkeypatch, "vllm.model_executor", os.path.join(root, "model_executor"))
    _put(monkeypatch, "vllm.model_executor.layers", os.path.join(root, "model_executor", "layers"))
    config = types.SimpleNamespace(custom_ops=["all"], enabled_custom_ops=set(), disabled_custom_ops=set())
    _put(monkeypatch, "vllm.config", get_cached_compilation_config=lambda: config)
    others = {f"is_{name}": bool for name in ("rocm", "cpu", "tpu", "xpu", "out_of_tree")}
    platform = types.SimpleNamespace(**others, is_cuda=lambda: True)
    _put(monkeypatch, "vllm.platforms", current_platform=platform)
    _put(monkeypatch, "vllm.logger", init_logger=logging.getLogger)
    for name in ("_aiter_ops", "utils", "utils.torch_utils", "utils.flashinfer", "triton_utils", "distributed"):
        _put(monkeypatch, f"vllm.{name}")
    _put(monkeypatch, "vllm.model_executor.utils")
    return importlib.import_module("vllm.model_executor.layers.rotary_embedding")


def sglang(monkeypatch, folder):
    """SGLang's rotary embedding and its registry of hooks; ``folder``: where stand-ins are written."""
    import torch

    _forget(monkeypatch, "sglang")
    root = SGLANG and os.path.join(SGLANG, "sglang")
    if not root:
        root = folder / "sglang"
        for name, text in (("layers/rotary_embedding/base.py", _SGLANG), ("plugins/hook_registry.py", _HOOKS)):
            path = root / "srt" / name
            path.parent.mkdir(parents=True)
            path.write_text(text)
    _put(monkeypatch, "sglang", root)
    _put(monkeypatch, "sglang.srt", os.path.join(root, "srt"))
    _put(monkeypatch, "sglang.srt.layers", os.path.join(root, "srt", "layers"))
    _put(monkeypatch, "sglang.srt.plugins", os.path.join(root, "srt", "plugins"))
    package = _put(monkeypatch, "sglang.srt.layers.rotary_embedding", os.path.join(root, "srt", "layers", "rotary_embedding"))
    for name in ("environ", "platforms"):
        _put(monkeypatch, f"sglang.srt.{name}")
    _put(monkeypatch, "sglang.srt.runtime_context", publish_role=lambda: None)
    _put(monkeypatch, "sglang.srt.utils", is_cuda=lambda: True)
    for name in ("kernels", "kernels.ops", "kernels.ops.attention"):
        _put(monkeypatch, f"sglang.{name}")
    _put(monkeypatch, "sglang.kernels.fused_op", BaseFusedOp=torch.nn.Module)
    theirs = lambda *_, **__: calls.append(1)  # noqa: E731
    calls = []
    kernels = dict(apply_rope_with_cos_sin_cache_inplace=theirs, rotary_embedding=theirs)
    _put(monkeypatch, "sglang.kernels.ops.attention.rope", **kernels)
    package.RotaryEmbedding = importlib.import_module("sglang.srt.layers.rotary_embedding.base").RotaryEmbedding
    package.hooks = importlib.import_module("sglang.srt.plugins.hook_registry").HookRegistry
    package.theirs = calls
    return package
