"""Texts of the functions that most models have, and what they compute: see `_forms`."""

from dataclasses import dataclass

HALVES = """
def rotate(x):
    x1 = x[..., : x.shape[-1] // 2]
    x2 = x[..., x.shape[-1] // 2 :]
    return torch.cat((-x2, x1), dim=-1)
"""
PAIRS = """
def rotate(x):
    x1 = x[..., ::2]
    x2 = x[..., 1::2]
    return torch.stack((-x2, x1), dim=-1).flatten(-2)
"""
PAIRS_NAMED = """
def rotate(x):
    x1 = x[..., ::2]
    x2 = x[..., 1::2]
    rot_x = torch.stack((-x2, x1), dim=-1).flatten(-2)
    return rot_x
"""
UNSQUEEZE = """
    cos = cos.unsqueeze(unsqueeze_dim)
    sin = sin.unsqueeze(unsqueeze_dim)
"""
REPEAT = """
    cos = cos[..., : cos.shape[-1] // 2].repeat_interleave(2, dim=-1)
    sin = sin[..., : sin.shape[-1] // 2].repeat_interleave(2, dim=-1)
"""
TURN = """
    q_embed = (q * cos) + (rotate(q) * sin)
    k_embed = (k * cos) + (rotate(k) * sin)
"""
SPLIT = """
    rotary_dim = cos.shape[-1]
    q_rot, q_pass = q[..., :rotary_dim], q[..., rotary_dim:]
    k_rot, k_pass = k[..., :rotary_dim], k[..., rotary_dim:]
"""
TURN_PART = """
    q_embed = (q_rot * cos) + (rotate(q_rot) * sin)
    k_embed = (k_rot * cos) + (rotate(k_rot) * sin)
    q_embed = torch.cat([q_embed, q_pass], dim=-1)
    k_embed = torch.cat([k_embed, k_pass], dim=-1)
"""
FIRST_HALVES = """
    cos = cos[..., : cos.shape[-1] // 2].unsqueeze(unsqueeze_dim)
    sin = sin[..., : sin.shape[-1] // 2].unsqueeze(unsqueeze_dim)
"""
DEINTERLEAVED_BOTH = """
    q1, q2 = q[..., 0::2], q[..., 1::2]
    k1, k2 = k[..., 0::2], k[..., 1::2]
    q_embed = torch.cat([q1 * cos - q2 * sin, q2 * cos + q1 * sin], dim=-1)
    k_embed = torch.cat([k1 * cos - k2 * sin, k2 * cos + k1 * sin], dim=-1)
"""
BOTH = "    return q_embed, k_embed\n"
PAIR = "def f(q, k, cos, sin, unsqueeze_dim=1):\n"


@dataclass(frozen=True)
class Form:
    """How a covered function is called and what it computes."""

    name: str
    #: How it is called: which function of `_replacements` stands for it.
    call: str
    text: str
    #: Which elements turn together, as `ropejit.apply` has it.
    style: str = "half_split"
    #: A row of the tables has each angle once (``half``), twice side by side (``twice``), twice one copy after the other
    #: (``full``), or so with only the first copy read (``first``).
    tables: str = "full"
    #: Whether the tables may be narrower than a head, whose rest then stays.
    partial: bool = False
    #: Of eager operations: ``per_op`` in the tensors' type, ``once`` in float32, ``promoted`` as the tables decide,
    #: ``once_each`` in float32 with a cast of its own for each product, whose gradients are rounded one by one.
    rounding: str = "per_op"
    #: The text of the method that makes the tables, where `_tables` cannot follow how they come to the function.
    made_by: str = ""


COMMON = (
    Form("llama", "pair", PAIR + UNSQUEEZE + TURN + BOTH + HALVES),
    Form("gpt_neox", "pair", PAIR + UNSQUEEZE + SPLIT + TURN_PART + BOTH + HALVES, partial=True),
    Form(
        "phi3", "pair",
        PAIR + UNSQUEEZE + SPLIT + """
    q_embed = torch.cat([(q_rot * cos) + (rotate(q_rot) * sin), q_pass], dim=-1)
    k_embed = torch.cat([(k_rot * cos) + (rotate(k_rot) * sin), k_pass], dim=-1)
""" + BOTH + HALVES,
        partial=True,
    ),
    Form(
        "nemotron", "pair",
        PAIR + UNSQUEEZE + """
    rot_dim = cos.shape[-1]
    q, q_pass = q[..., :rot_dim], q[..., rot_dim:]
    k, k_pass = k[..., :rot_dim], k[..., rot_dim:]
""" + TURN + "    return torch.cat((q_embed, q_pass), dim=-1), torch.cat((k_embed, k_pass), dim=-1)\n" + HALVES,
        partial=True,
    ),
    Form(
        "olmo", "pair",
        PAIR + "    q_type, k_type = q.dtype, k.dtype\n" + UNSQUEEZE + TURN
        + "    return q_embed.to(q_type), k_embed.to(k_type)\n" + HALVES,
        rounding="promoted",
    ),
    Form(
        "esm", "pair",
        PAIR + "    original_dtype = q.dtype\n" + UNSQUEEZE + """
    q_embed = (q.float() * cos) + (rotate(q.float()) * sin)
    k_embed = (k.float() * cos) + (rotate(k.float()) * sin)
    return q_embed.to(original_dtype), k_embed.to(original_dtype)
""" + HALVES,
        rounding="once_each",
    ),
    Form(
        "hunyuan_vl", "pair",
        PAIR + """
    origin_dtype = q.dtype
    q, k = q.float(), k.float()
    cos = cos.unsqueeze(unsqueeze_dim).float()
    sin = sin.unsqueeze(unsqueeze_dim).float()
""" + TURN + "    return q_embed.to(origin_dtype), k_embed.to(origin_dtype)\n" + HALVES,
        rounding="once",
    ),
    Form(
        "glm", "pair", PAIR + UNSQUEEZE + REPEAT + SPLIT + TURN_PART + BOTH + PAIRS,
        style="interleaved", tables="first", partial=True,
    ),
    Form("helium", "pair", PAIR + UNSQUEEZE + REPEAT + TURN + BOTH + PAIRS, style="interleaved", tables="first"),
    Form(
        "ernie4_5", "pair",
        PAIR + "    original_dtype = q.dtype\n" + UNSQUEEZE + REPEAT + """
    q_embed = (q.float() * cos) + (rotate(q).float() * sin)
    k_embed = (k.float() * cos) + (rotate(k).float() * sin)
    return q_embed.to(original_dtype), k_embed.to(original_dtype)
""" + PAIRS,
        style="interleaved", tables="first", rounding="once_each",
    ),
    Form(
        "cohere", "pair",
        PAIR + "    dtype = q.dtype\n    q = q.float()\n    k = k.float()\n" + UNSQUEEZE + TURN
        + "    return q_embed.to(dtype=dtype), k_embed.to(dtype=dtype)\n" + PAIRS_NAMED,
        style="interleaved", tables="twice", rounding="once",
    ),
    Form("blt", "pair", PAIR + UNSQUEEZE + TURN + BOTH + PAIRS_NAMED, style="interleaved", tables="twice"),
    Form(
        "glm4v", "pair", PAIR + UNSQUEEZE + SPLIT + TURN_PART + BOTH + PAIRS,
        style="interleaved", tables="twice", partial=True,
    ),
    Form(
        "ernie4_5_vl", "pair",
        PAIR + "    original_dtype = q.dtype\n" + UNSQUEEZE + """
    q_embed = (q.float() * cos) + (rotate(q).float() * sin)
    k_embed = (k.float() * cos) + (rotate(k).float() * sin)
    return q_embed.to(original_dtype), k_embed.to(original_dtype)
""" + PAIRS,
        style="interleaved", tables="twice", rounding="once_each",
    ),
    Form(
        "deepseek_v3", "pair", PAIR + FIRST_HALVES + DEINTERLEAVED_BOTH + BOTH,
        style="deinterleave", tables="first",
    ),
    Form(
        "deepseek_v3_by_view", "of_four",
        PAIR + UNSQUEEZE + """
    b, h, s, d = q.shape
    q = q.view(b, h, s, d // 2, 2).transpose(4, 3).reshape(b, h, s, d)
    b, h, s, d = k.shape
    k = k.view(b, h, s, d // 2, 2).transpose(4, 3).reshape(b, h, s, d)
""" + TURN + BOTH + HALVES,
        style="deinterleave",
    ),
    Form(
        "mistral_large4", "pair_or_q",
        PAIR + FIRST_HALVES + """
    q1, q2 = q[..., 0::2], q[..., 1::2]
    q_embed = torch.cat([q1 * cos - q2 * sin, q2 * cos + q1 * sin], dim=-1)
    if k is not None:
        k1, k2 = k[..., 0::2], k[..., 1::2]
        k_embed = torch.cat([k1 * cos - k2 * sin, k2 * cos + k1 * sin], dim=-1)
    else:
        k_embed = None
""" + BOTH,
        style="deinterleave", tables="first",
    ),
    Form(
        "qwen4_exp", "q_and_maybe_k",
        "def f(q, k=None, cos=None, sin=None, unsqueeze_dim=1):\n" + UNSQUEEZE + """
    rotary_dim = cos.shape[-1]
    q_rope, q_nope = q[..., :rotary_dim], q[..., rotary_dim:]
    q_rope = (q_rope * cos) + (rotate(q_rope) * sin)
    q_rotated = torch.cat([q_rope, q_nope], dim=-1)
    if k is not None:
        k_rope, k_nope = k[..., :rotary_dim], k[..., rotary_dim:]
        k_rope = (k_rope * cos) + (rotate(k_rope) * sin)
        k_rotated = torch.cat([k_rope, k_nope], dim=-1)
        return q_rotated, k_rotated
    else:
        return q_rotated
""" + HALVES,
        partial=True,
    ),
    Form(
        "gemma4", "single",
        "def f(x, cos, sin, unsqueeze_dim=1):\n" + UNSQUEEZE + "    return (x * cos) + (rotate(x) * sin)\n" + HALVES,
    ),
    Form(
        "gpt_oss", "pair",
        PAIR + UNSQUEEZE + "    q_embed = rotate(q, cos, sin)\n    k_embed = rotate(k, cos, sin)\n" + BOTH + """
def rotate(x, cos, sin):
    first_half, second_half = torch.chunk(x, 2, dim=-1)
    first_ = first_half * cos - second_half * sin
    second_ = second_half * cos + first_half * sin
    return torch.cat((first_, second_), dim=-1)
""",
        tables="half",
    ),
    Form(
        "openai_privacy_filter", "pair",
        PAIR + UNSQUEEZE + "    q_embed = rotate(q, cos, sin)\n    k_embed = rotate(k, cos, sin)\n" + BOTH + """
def rotate(x, cos, sin):
    first_half, second_half = x[..., ::2], x[..., 1::2]
    first_ = first_half * cos - second_half * sin
    second_ = second_half * cos + first_half * sin
    return torch.stack((first_, second_), dim=-1).flatten(-2)
""",
        style="interleaved", tables="half",
    ),
    Form(
        "vision", "vision",
        "def f(q, k, cos, sin):\n" + """
    orig_q_dtype = q.dtype
    orig_k_dtype = k.dtype
    q, k = q.float(), k.float()
    cos, sin = cos.unsqueeze(-2).float(), sin.unsqueeze(-2).float()
""" + TURN + """
    q_embed = q_embed.to(orig_q_dtype)
    k_embed = k_embed.to(orig_k_dtype)
""" + BOTH + HALVES,
        rounding="once",
    ),
    Form(
        "gptj", "gptj",
        """
def f(tensor, sin, cos):
    sin = torch.repeat_interleave(sin[:, :, None, :], 2, 3)
    cos = torch.repeat_interleave(cos[:, :, None, :], 2, 3)
    return (tensor * cos) + (rotate(tensor) * sin)


def rotate(x):
    x1 = x[:, :, :, ::2]
    x2 = x[:, :, :, 1::2]
    x = torch.stack((-x2, x1), dim=-1)
    return x.flatten(-2)
""",
        style="interleaved", tables="half",
    ),
)  # fmt: skip
