"""Tensors that a kernel cannot read as they lie in memory: which of them PyTorch's dispatcher resolves, and why others are refused."""

import torch

_NAMES = ("q", "k", "cos", "sin", "position_ids", "cu_seqlens", "seqlen_offsets")


def _wraps_another(tensor):
    """Of `torch.func`: vmap, grad, functionalize."""
    return torch._C._functorch.is_functorch_wrapped_tensor(tensor) or torch._is_functional_tensor(tensor)


def is_transformed(*tensors):
    """Whether one of them is of `vmap` or `grad`."""
    of_one = torch._C._functorch.is_functorch_wrapped_tensor
    return any(isinstance(x, torch.Tensor) and of_one(x) and not torch._is_functional_tensor(x) for x in tensors)


def is_copied_back(*tensors):
    """Whether an operator that writes has no rule for one of them: functional tensors, negated views."""
    return any(isinstance(x, torch.Tensor) and (torch._is_functional_tensor(x) or x.is_neg()) for x in tensors)


def _unreadable(tensor):
    """Why neither a kernel nor PyTorch's dispatcher can do anything about it; None where one of them can."""
    if torch.nn.parameter.is_lazy(tensor):
        return "is a parameter of a lazy module that is uninitialized; hint: call the module once"
    if tensor.is_nested:
        return "is a nested tensor; hint: pass its values as packed sequences, with cu_seqlens and the layout 'thd'"
    if tensor.layout != torch.strided:
        return f"has the layout {tensor.layout}, torch.strided is needed; hint: pass its to_dense()"
    if tensor.is_quantized:
        return f"is quantized ({tensor.dtype}); hint: pass its dequantize()"
    if tensor.device.type not in ("cpu", "cuda", "meta"):
        return f"is on {tensor.device}, which is neither the processor nor a CUDA GPU"
    return _freed(tensor)


def _freed(tensor):
    if tensor.is_meta or tensor.is_nested or _wraps_another(tensor) or tensor._is_zerotensor() or tensor.numel() == 0:
        return None
    if not torch._C._has_storage(tensor):
        return None
    size = tensor.untyped_storage().nbytes()
    if isinstance(size, torch.SymInt) or size > 0:  # a tracer's stand-in, whose size is a formula, has not been freed
        return None
    return "has no memory: its storage was resized to zero, as FSDP does with parameters that are not in use"


def _tensors(arguments, names=_NAMES):
    return ((name, x) for name, x in zip(names, arguments, strict=False) if isinstance(x, torch.Tensor))


def refuse(*arguments, names=_NAMES):
    """Raises for what the dispatcher could not resolve either, by the name of the argument."""
    device = None
    for name, x in _tensors(arguments, names):
        device = x.device if device is None else device
        why = _unreadable(x)
        if why is None and x.device != device:
            why = f"is on {x.device}, q on {device}"
        if why is not None:
            raise ValueError(f"{name}: {why}")


def refuse_transforms(function):
    """Raises: the function is not taken apart for `torch.func`."""
    raise NotImplementedError(
        f"{function} does not work under the transforms of torch.func (vmap, grad); hint: a batch is a dimension of q"
    )


def refuse_constant(q, k):
    """Raises for what cannot be written, by name."""
    for name, x in _tensors((q, k)):
        if x._is_zerotensor():
            raise ValueError(f"{name}: is a zero tensor, which cannot be written in place; hint: pass its clone()")


def refuse_freed(*arguments):
    """Raises for a tensor whose memory was freed, by name: PyTorch's own operations would read it all the same."""
    for name, x in _tensors(arguments):
        why = _freed(x)
        if why is not None:
            raise ValueError(f"{name}: {why}")
