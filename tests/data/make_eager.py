#!/usr/bin/env python3
"""Makes eager_*.bin: what transformers' own functions make of q and k on a CPU, over forms of rotary embedding.

    make_eager.py             the stored cases, beside this script: a few of each form
    make_eager.py FOLDER      a grid of cases in FOLDER, for `make test-transformers`

Needs torch and transformers. One file a case: a line of JSON (the spec as ropejit's RopeSpec, shapes, lengths of the
arrays), then the arrays as raw little-endian bytes. q and k are [batch, tokens, heads, head_dim] in memory (transformers
sees them transposed, as models do), or [batch, heads, tokens, head_dim] where "head_major".
"""

import itertools
import json
import pathlib
import sys

import torch
import transformers
from transformers.models.cohere.modeling_cohere import apply_rotary_pos_emb as cohere
from transformers.models.gpt_neox.modeling_gpt_neox import apply_rotary_pos_emb as neox
from transformers.models.gptj.modeling_gptj import apply_rotary_pos_emb as gptj
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb as llama

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
SOURCE = f"transformers {transformers.__version__}, torch {torch.__version__.split('+')[0]}, cpu"
count = 0


def raw(tensor):
    tensor = tensor.detach().contiguous()
    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy().tobytes()


def write(folder, name, spec, shape, head_major, arrays):
    global count
    batch, tokens, rows = shape
    if head_major:
        for key in ("q", "k", "q_out", "k_out"):
            arrays[key] = arrays[key].transpose(1, 2)
    arrays = {key: raw(value) for key, value in arrays.items()}
    head = {"source": SOURCE, "spec": spec, "batch": batch, "tokens": tokens, "rows": rows, "head_major": head_major,
            "arrays": [[key, len(value)] for key, value in arrays.items()]}
    (folder / f"eager_{name}.bin").write_bytes(json.dumps(head).encode() + b"\n" + b"".join(arrays.values()))
    count += 1


def case(folder, form, dtype_name, batch, tokens, heads, kv_heads, head_dim, first=0, head_major=False, backward=False):
    dtype = DTYPES[dtype_name]
    torch.manual_seed(head_dim * 131 + tokens * 7 + len(form))
    rotary = {"neox": head_dim // 4, "gptj": head_dim // 2}.get(form, head_dim)
    inv_freq = 1.0 / (10000 ** (torch.arange(0, rotary, 2).float() / rotary))
    q = torch.randn(batch, tokens, heads, head_dim).to(dtype)
    k = torch.randn(batch, tokens, kv_heads, head_dim).to(dtype)
    angles = torch.arange(first, first + tokens).float()[:, None] * inv_freq[None, :]
    full = torch.cat((angles, angles), dim=-1)
    # A row for each token of each sequence, as transformers passes them; sequences differ.
    cos = torch.stack([(full + b).cos() for b in range(batch)])
    sin = torch.stack([(full + b).sin() for b in range(batch)])
    rounding, style, width, table = "per_op", "half_split", "full", dtype_name
    inputs = [q.clone().requires_grad_(), k.clone().requires_grad_()]
    qt, kt = (x.transpose(1, 2) for x in inputs)
    if form == "cohere":
        # Interleaved, tables in f32, one rounding at the end.
        rounding, style, width, table = "once", "interleaved", "half", "f32"
        wide = [x[..., : rotary // 2].repeat_interleave(2, -1) for x in (cos, sin)]
        out = cohere(qt, kt, *wide)
        cos, sin = (x[..., : rotary // 2] for x in (cos, sin))
    elif form == "gptj":
        style, width = "interleaved", "half"
        cos, sin = (x[..., : rotary // 2].to(dtype) for x in (cos, sin))
        turned = [gptj(x[..., :rotary], sin, cos) for x in inputs]
        out = [torch.cat((t, x[..., rotary:]), -1).transpose(1, 2) for t, x in zip(turned, inputs)]
    else:
        cos, sin = cos.to(dtype), sin.to(dtype)
        out = (neox if form == "neox" else llama)(qt, kt, cos, sin)
    if dtype_name == "f32":
        rounding = "once"
    out = [x.transpose(1, 2) for x in out]
    if backward:
        given = [torch.randn_like(x) for x in out]
        out = torch.autograd.grad(out, inputs, given)
        q, k = given
    spec = {"dtype": dtype_name, "head_dim": head_dim, "rotary_dim": rotary, "num_heads": heads, "num_kv_heads": kv_heads,
            "style": style, "rounding": rounding, "direction": "backward" if backward else "forward",
            "table": {"dtype": table, "width": width}, "positions": "implicit"}
    arrays = {"q": q, "k": k, "cos": cos, "sin": sin, "q_out": out[0], "k_out": out[1]}
    name = f"{form}_{dtype_name}_{batch}x{tokens}_{head_dim}{'_bhsd' if head_major else ''}{'_backward' if backward else ''}"
    write(folder, name, spec, (batch, tokens, tokens), head_major, arrays)


def mrope(folder, kind, dtype_name, batch, tokens, heads, kv_heads):
    """Three position axes: the model's own rotary embedding makes cos and sin from position_ids."""
    dtype = DTYPES[dtype_name]
    torch.manual_seed(tokens)
    if kind == "qwen2_vl":
        from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLTextConfig as Config
        from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLRotaryEmbedding as Rotary
        sections, interleaved = [16, 24, 24], False
    else:
        from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLTextConfig as Config
        from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextRotaryEmbedding as Rotary
        sections, interleaved = [24, 20, 20], True
    parameters = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": sections, "mrope_interleaved": interleaved}
    config = Config(hidden_size=128 * heads, num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=128,
                    rope_parameters=parameters)
    rotary = Rotary(config)
    q = torch.randn(batch, tokens, heads, 128).to(dtype)
    k = torch.randn(batch, tokens, kv_heads, 128).to(dtype)
    rows = 40
    ids = torch.randint(0, rows, (3, batch, tokens))
    cos, sin = rotary(q, ids)
    out = [x.transpose(1, 2) for x in llama(q.transpose(1, 2), k.transpose(1, 2), cos, sin)]
    table_cos, table_sin = llama_table(rotary.inv_freq.float(), rows, dtype)
    spec = {"dtype": dtype_name, "head_dim": 128, "rotary_dim": 128, "num_heads": heads, "num_kv_heads": kv_heads,
            "style": "half_split", "rounding": "once" if dtype_name == "f32" else "per_op", "direction": "forward",
            "table": {"dtype": dtype_name, "width": "full"}, "positions": "ids64",
            "mrope": {"sections": sections, "interleaved": interleaved}}
    arrays = {"q": q, "k": k, "cos": table_cos, "sin": table_sin, "ids": ids, "q_out": out[0], "k_out": out[1]}
    write(folder, f"{kind}_{dtype_name}_{batch}x{tokens}", spec, (batch, tokens, rows), False, arrays)


def llama_table(inv_freq, rows, dtype):
    angles = torch.arange(rows).float()[:, None] * inv_freq[None, :]
    full = torch.cat((angles, angles), dim=-1)
    return full.cos().to(dtype), full.sin().to(dtype)


if len(sys.argv) > 1:
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for form, dtype, (batch, tokens), head_dim, head_major, backward in itertools.product(
        ("llama", "neox", "cohere", "gptj"), DTYPES, ((1, 1), (2, 7), (3, 33)), (64, 80, 96, 128, 256), (False, True),
        (False, True),
    ):
        first = {64: 0, 80: 4096, 96: 131072, 128: 1048576, 256: 17}[head_dim]
        case(folder, form, dtype, batch, tokens, 4, 2, head_dim, first, head_major, backward)
    for kind, dtype, (batch, tokens) in itertools.product(("qwen2_vl", "qwen3_vl"), DTYPES, ((1, 1), (2, 9))):
        mrope(folder, kind, dtype, batch, tokens, 4, 2)
else:
    folder = pathlib.Path(__file__).parent
    for dtype in DTYPES:
        case(folder, "llama", dtype, 2, 5, 4, 2, 128)
        case(folder, "llama", dtype, 1, 3, 3, 1, 80, first=131072)
        case(folder, "llama", dtype, 1, 3, 2, 1, 128, head_major=True, backward=True)
    for form, dtype in (("neox", "bf16"), ("cohere", "bf16"), ("gptj", "f16")):
        case(folder, form, dtype, 2, 3, 2, 1, 64)
        case(folder, form, dtype, 2, 3, 2, 1, 64, backward=True)
    mrope(folder, "qwen2_vl", "bf16", 2, 3, 2, 1)
    mrope(folder, "qwen3_vl", "bf16", 2, 3, 2, 1)
print(f"{count} cases in {folder}")
