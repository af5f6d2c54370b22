"""Wrong arguments of `rope_append`: each is named, with the way out."""

import pytest
import ropejit
import torch
from ropejit import Norm
from test_append import bf16, e4m3, f16, inputs, pages


def bad(**change):
    names = ("q", "k", "v", "cos", "sin", "k_cache", "v_cache", "slot_mapping")
    given = dict(zip(names, inputs("cpu", bf16, kept=change.pop("kept", None)), strict=True))
    return ropejit.rope_append(**given | {key: x(given) if callable(x) else x for key, x in change.items()})


ONE = torch.ones(1)
BAD = [
    ({"slot_mapping": None}, "slot_mapping: is missing; hint: pass it, or pages"),
    ({"pages": pages("cpu")}, "pages: cannot be given beside slot_mapping"),
    ({"slot_mapping": None, "pages": pages("cpu")[:3]}, "pages: must be a tuple of four"),
    ({"slot_mapping": None, "pages": (*pages("cpu")[:3], torch.zeros(7))}, "positions: is f32, int32 is needed"),
    ({"slot_mapping": None, "pages": (*pages("cpu")[:3], torch.zeros(6, dtype=torch.int32))}, "positions: has 6 numbers"),
    ({"slot_mapping": None, "pages": (pages("cpu")[0], torch.zeros(0, dtype=torch.int32), *pages("cpu")[2:])}, "kv_indptr: is empty"),
    ({"slot_mapping": torch.zeros(7, dtype=torch.int32)}, "slot_mapping: is int32, int64 is needed; hint"),
    ({"slot_mapping": torch.zeros(6, dtype=torch.int64)}, "slot_mapping: has 6 numbers, q has 7 tokens"),
    ({"slot_mapping": torch.zeros(14, dtype=torch.int64)[::2]}, "slot_mapping: is not contiguous"),
    ({"v": None}, "v: is missing, and v_cache is given"),
    ({"v_cache": None}, "v_cache: is missing, and v is given"),
    ({"k": lambda g: g["k"].float()}, "k: is f32, q is bf16"),
    ({"k": lambda g: g["k"][..., :32]}, "k: has heads of 32"),
    ({"v": lambda g: g["v"].float()}, "v: is f32, q is bf16"),
    ({"v": lambda g: g["v"][:6]}, "v: "),
    ({"v": lambda g: g["v"][None]}, "v: has 4 dimensions"),
    ({"k_cache": lambda g: g["k_cache"].float()}, "k_cache: is f32, q's type .bf16. or float8_e4m3fn"),
    ({"k_cache": lambda g: g["k_cache"].flatten(0, 1)}, "k_cache: is .32, 2, 64., .blocks, block_size"),
    ({"k_cache": lambda g: g["k_cache"][:, :, :1]}, "k_cache: "),
    ({"k_cache": lambda g: g["k_cache"][..., :1].expand(-1, -1, -1, 64)}, "k_cache: "),
    ({"k_cache": lambda g: g["k_cache"][:1].expand(4, -1, -1, -1)}, "k_cache: its strides"),
    ({"v_cache": lambda g: g["v_cache"][:2]}, "v_cache: "),
    ({"v_cache": lambda g: g["v_cache"].to(e4m3)}, "v_cache: is e4m3, k_cache is bf16"),
    ({"v_cache": lambda g: g["k_cache"]}, "v_cache: shares elements with k_cache"),
    ({"k_scale": ONE}, "k_scale: is given, and k_cache is not of float8_e4m3fn"),
    ({"q_scale": ONE}, "q_scale: is given, and q_out is not of float8_e4m3fn"),
    ({"kept": e4m3}, "k_scale: is missing: k_cache is of float8_e4m3fn"),
    ({"kept": e4m3, "k_scale": ONE}, "v_scale: is missing"),
    ({"kept": e4m3, "k_scale": ONE, "v_scale": torch.ones(2)}, "v_scale: has 2 numbers, k_scale has 1"),
    ({"kept": e4m3, "k_scale": torch.ones(3), "v_scale": ONE}, "k_scale: has 3 numbers, 1 or 2"),
    ({"kept": e4m3, "k_scale": ONE.double(), "v_scale": ONE}, "k_scale: is float64, float32 is needed"),
    ({"q_dtype": e4m3}, "q_scale: is missing: q_out is of float8_e4m3fn"),
    ({"q_dtype": f16}, "q_dtype: is torch.float16"),
    ({"q_dtype": e4m3, "inplace": True}, "q_dtype: is torch.float8_e4m3fn, and inplace=True"),
    ({"q_dtype": bf16, "q_out": lambda g: torch.empty_like(g["q"], dtype=e4m3)}, "q_dtype: is torch.bfloat16, q_out is"),
    ({"q_out": lambda g: g["q"].clone(), "inplace": True}, "q_out: cannot be given beside inplace=True"),
    ({"q_out": lambda g: g["q"]}, "q_out: shares memory with q"),
    ({"q_out": lambda g: g["q"].view(torch.uint8)[..., :64].view(e4m3), "q_scale": ONE}, "q_out: shares memory with q"),
    ({"q_out": lambda g: g["q"][:6].clone()}, "q_out: is .6, 4, 64., q is .7, 4, 64."),
    ({"q_out": lambda g: g["q"].float()}, "q_out: is f32"),
    ({"part": "middle"}, "part: 'middle' is not one of"),
    ({"part": "last"}, "part: the whole head turns"),
    ({"scale_use": "add"}, "scale_use: 'add' is not one of"),
    ({"layout": "bshd"}, "q: has 3 dimensions"),
    ({"k_cache": lambda g: g["q"].new_zeros(0, 0, 2, 64), "v_cache": lambda g: g["q"].new_zeros(4, 8, 2, 64)}, "v_cache: "),
]


@pytest.mark.parametrize("change, text", BAD, ids=[text for _, text in BAD])
def test_errors_name_the_argument(change, text):
    with pytest.raises(ValueError, match=f"^{text}"):
        bad(**change)


def test_errors_that_are_not_of_a_value():
    with pytest.raises(TypeError, match="^k_scale: is a float, a float32 tensor is needed; hint: make torch.tensor.0.5"):
        bad(kept=e4m3, k_scale=0.5, v_scale=ONE)
    with pytest.raises(TypeError, match="^norm: must be a ropejit.Norm, got tuple"):
        bad(norm=(1, 2))
    with pytest.raises(TypeError, match="^slot_mapping: must be a torch.Tensor"):
        bad(slot_mapping=[1, 2])
    with pytest.raises(TypeError, match="^k: must be a torch.Tensor"):
        bad(k=None)
    with pytest.raises(AttributeError):
        Norm().eps = 1
    base = torch.randn(7, 4, 64).bfloat16()
    with pytest.raises(ValueError, match="^k: shares elements with q, which is written in place"):
        bad(q=base, k=base[:, 1:3], inplace=True)
    kv = torch.randn(4, 8, 2, 64).bfloat16()
    with pytest.raises(ValueError, match="^k_cache: lies in the memory that k is read from"):
        bad(k=kv.flatten(0, 1)[:7], k_cache=kv)


def test_a_tangent_is_never_lost():
    import torch.autograd.forward_ad as forward_ad

    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="forward-mode differentiation of rope_append"):
        bad(v=lambda g: forward_ad.make_dual(g["v"], torch.ones_like(g["v"])))
