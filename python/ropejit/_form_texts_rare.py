"""Texts of functions that one model or few have, and what they compute: see `_forms`."""

from ._form_texts import BOTH, HALVES, PAIR, PAIRS, REPEAT, SPLIT, TURN, TURN_PART, UNSQUEEZE, Form

_PAIRWISE = """
def rotate(x):
    x = x.view(*x.shape[:-1], -1, 2)
    x1, x2 = x.unbind(dim=-1)
    x = torch.stack((-x2, x1), dim=-1)
    return x.flatten(start_dim=-2)
"""
_PAIRWISE_AT_ONCE = """
def rotate(x):
    x = x.view(*x.shape[:-1], -1, 2)
    x1, x2 = x.unbind(dim=-1)
    return torch.stack((-x2, x1), dim=-1).flatten(start_dim=-2)
"""
_Q_2D = """
    q_embed = q.float()
    q_embed = (q_embed * cos) + (rotate(q_embed) * sin)
"""
_BY_IDS = """
    cos = cos[position_ids].unsqueeze(unsqueeze_dim)
    sin = sin[position_ids].unsqueeze(unsqueeze_dim)
"""
_SECTIONS = """
    mrope_section = mrope_section * 2
    cos = torch.cat([m[i % 3] for i, m in enumerate(cos.split(mrope_section, dim=-1))], dim=-1).unsqueeze(unsqueeze_dim)
    sin = torch.cat([m[i % 3] for i, m in enumerate(sin.split(mrope_section, dim=-1))], dim=-1).unsqueeze(unsqueeze_dim)
"""
_WITH_SECTIONS = "def f(q, k, cos, sin, mrope_section, unsqueeze_dim=1):\n" + _SECTIONS

RARE = (
    Form(
        "nanochat", "backwards",
        PAIR + UNSQUEEZE + TURN + BOTH + """
def rotate(x):
    x1 = x[..., : x.shape[-1] // 2]
    x2 = x[..., x.shape[-1] // 2 :]
    return torch.cat((x2, -x1), dim=-1)
""",
    ),
    Form(
        "muse_glimmer", "last_rows_for_q",
        PAIR + UNSQUEEZE + """
    q_len = q.size(-2)
    q_embed = (q * cos[..., -q_len:, :]) + (rotate(q) * sin[..., -q_len:, :])
    k_embed = (k * cos) + (rotate(k) * sin)
""" + BOTH + HALVES,
    ),
    Form(
        "pe_audio", "of_four",
        PAIR + """
    freqs_cis = stack_freqs(cos, sin)
    freqs_cis = freqs_cis.unsqueeze(unsqueeze_dim)
    q_ = q.reshape(*q.shape[:-1], -1, 1, 2)
    k_ = k.reshape(*k.shape[:-1], -1, 1, 2)
    return (q_ * freqs_cis).sum(5).flatten(3), (k_ * freqs_cis).sum(5).flatten(3)


def stack_freqs(cos, sin):
    dim = cos.size(-1)
    cos = cos.narrow(-1, 0, dim // 2)
    sin = sin.narrow(-1, 0, dim // 2)
    freqs_cis = torch.stack((cos, -sin, sin, cos), dim=-1).view(*cos.size(), 2, 2)
    return freqs_cis
""",
        style="interleaved", tables="first",
    ),
    Form(
        "deepseek_v4", "tail",
        """
def f(x, cos, sin, unsqueeze_dim=1):
    cos = cos.repeat_interleave(2, dim=-1).unsqueeze(unsqueeze_dim)
    sin = sin.repeat_interleave(2, dim=-1).unsqueeze(unsqueeze_dim)
    rope_dim = cos.shape[-1]
    nope, rope = x[..., :-rope_dim], x[..., -rope_dim:]
    rotated = ((rope.float() * cos) + (rotate(rope).float() * sin)).to(x.dtype)
    return torch.cat([nope, rotated], dim=-1)
""" + PAIRS,
        style="interleaved", tables="half", rounding="once_each",
    ),
    Form(
        "minimax_m3_vision", "vision_of_heads",
        "def f(q, k, cos, sin):\n" + """
    rot_dim = cos.shape[-1]
    cos, sin = cos[:, None, :], sin[:, None, :]
    q_rot, q_pass = q[..., :rot_dim], q[..., rot_dim:]
    k_rot, k_pass = k[..., :rot_dim], k[..., rot_dim:]
    q_rot = q_rot * cos + rotate(q_rot) * sin
    k_rot = k_rot * cos + rotate(k_rot) * sin
    return torch.cat([q_rot, q_pass], dim=-1), torch.cat([k_rot, k_pass], dim=-1)
""" + HALVES,
        partial=True,
    ),
    Form(
        "inkling2_vision", "vision",
        "def f(q, k, cos, sin):\n" + """
    orig_q_dtype = q.dtype
    orig_k_dtype = k.dtype
    q, k = q.float(), k.float()
    cos, sin = cos.unsqueeze(-2).float(), sin.unsqueeze(-2).float()
""" + TURN + "    return q_embed.to(orig_q_dtype), k_embed.to(orig_k_dtype)\n" + _PAIRWISE_AT_ONCE,
        style="interleaved", tables="twice", rounding="once",
    ),
    Form(
        "qwen2_5_omni_vision", "vision_of_angles",
        """
def f(tensor, freqs):
    orig_dtype = tensor.dtype
    tensor = tensor.float()
    cos = freqs.cos()
    sin = freqs.sin()
    cos = cos.unsqueeze(1).repeat(1, 1, 2).unsqueeze(0).float()
    sin = sin.unsqueeze(1).repeat(1, 1, 2).unsqueeze(0).float()
    output = (tensor * cos) + (rotate(tensor) * sin)
    output = output.to(orig_dtype)
    return output
""" + HALVES,
        tables="half", rounding="once",
    ),
    Form(
        "sam3", "broadcast",
        "def f(q, k, cos, sin):\n" + _Q_2D + """
    k_embed = k.float()
    k_embed = (k_embed * cos) + (rotate(k_embed) * sin)
    return q_embed.type_as(q), k_embed.type_as(k)
""" + _PAIRWISE,
        style="interleaved", tables="twice", rounding="once",
    ),
    Form(
        "sam2_video", "memory",
        """
def f(q, k, cos, sin, num_k_exclude_rope=0, repeat_freqs_k=False):
    k_rot, k_pass = k[..., : k.shape[-2] - num_k_exclude_rope, :], k[..., k.shape[-2] - num_k_exclude_rope :, :]
""" + _Q_2D + """
    if k_rot.shape[-2] == 0:
        return q_embed.type_as(q), torch.cat([k_rot, k_pass], dim=-2)
    if repeat_freqs_k and k_rot.shape[-2] != q.shape[-2]:
        repeat_factor = k_rot.shape[-2] // q.shape[-2]
        cos_k = cos.repeat(1, 1, repeat_factor, 1)
        sin_k = sin.repeat(1, 1, repeat_factor, 1)
    else:
        cos_k = cos
        sin_k = sin
    k_embed = k_rot.float()
    k_embed = (k_embed * cos_k) + (rotate(k_embed) * sin_k)
    k_embed = torch.cat([k_embed.type_as(k), k_pass], dim=-2)
    return q_embed.type_as(q), k_embed
""" + _PAIRWISE,
        style="interleaved", tables="twice", rounding="once",
    ),
    Form(
        "edgetam_video", "grouped_memory",
        "def f(q, k, cos, sin, cos_k, sin_k, num_k_exclude_rope=0, repeat_freqs_k=1):\n" + _Q_2D + """
    num_total_k_tokens = k.shape[-2]
    k_for_rope = k[..., : num_total_k_tokens - num_k_exclude_rope, :]
    k_excluded = k[..., num_total_k_tokens - num_k_exclude_rope :, :]
    if k_for_rope.shape[-2] == 0:
        return q_embed.type_as(q), k_excluded
    batch_size, num_heads, k_seq_len, channels_per_head = k_for_rope.shape
    tokens_per_group = k_seq_len // repeat_freqs_k
    spatial_tokens = cos_k.shape[-2]
    temporal_tokens = tokens_per_group - spatial_tokens
    k_grouped = k_for_rope.view(batch_size, num_heads, repeat_freqs_k, tokens_per_group, channels_per_head)
    k_temporal = k_grouped[..., :temporal_tokens, :].reshape(batch_size, num_heads, -1, channels_per_head)
    k_spatial = k_grouped[..., temporal_tokens:, :].reshape(batch_size, num_heads, -1, channels_per_head)
    k_rope_input = k_spatial
    if repeat_freqs_k > 1:
        cos_k = cos_k.repeat(1, 1, repeat_freqs_k, 1)
        sin_k = sin_k.repeat(1, 1, repeat_freqs_k, 1)
    k_spatial_embed = k_rope_input.float()
    k_spatial_embed = (k_spatial_embed * cos_k) + (rotate(k_spatial_embed) * sin_k)
    k_spatial_reshaped = k_spatial_embed.view(batch_size, num_heads, repeat_freqs_k, -1, channels_per_head)
    k_temporal_reshaped = k_temporal.view(batch_size, num_heads, repeat_freqs_k, -1, channels_per_head)
    k_final = torch.cat([k_temporal_reshaped, k_spatial_reshaped], dim=3)
    k_final = k_final.view(batch_size, num_heads, k_seq_len, channels_per_head)
    k_embed = torch.cat([k_final.type_as(k), k_excluded], dim=-2)
    return q_embed.type_as(q), k_embed
""" + _PAIRWISE,
        style="interleaved", tables="twice", rounding="once",
    ),
    Form(
        "dinov3", "patches",
        """
def f(q, k, cos, sin, **kwargs):
    num_tokens = q.shape[-2]
    num_patches = sin.shape[-2]
    num_prefix_tokens = num_tokens - num_patches
    q_prefix_tokens, q_patches = q.split((num_prefix_tokens, num_patches), dim=-2)
    k_prefix_tokens, k_patches = k.split((num_prefix_tokens, num_patches), dim=-2)
    q_patches = (q_patches * cos) + (rotate(q_patches) * sin)
    k_patches = (k_patches * cos) + (rotate(k_patches) * sin)
    q = torch.cat((q_prefix_tokens, q_patches), dim=-2)
    k = torch.cat((k_prefix_tokens, k_patches), dim=-2)
    return q, k
""" + HALVES,
    ),
    Form(
        "gemma4_vision", "axes",
        """
def f(x, cos, sin, position_ids, unsqueeze_dim=2):
    ndim = position_ids.shape[-1]
    num_input_channels = x.shape[-1]
    num_rotated_channels_per_dim = 2 * (num_input_channels // (2 * ndim))
    if num_rotated_channels_per_dim <= 0:
        raise ValueError(
            "Invalid configuration: num_rotated_channels_per_dim must be > 0, got"
            f" {num_rotated_channels_per_dim} (num_input_channels={num_input_channels},"
            f" ndim={ndim})"
        )
    split_sizes = [num_rotated_channels_per_dim] * ndim
    x_parts = torch.split(x, split_sizes, dim=-1)
    cos_parts = torch.split(cos, split_sizes, dim=-1)
    sin_parts = torch.split(sin, split_sizes, dim=-1)
    y_parts = [
        rotated(x=x_parts[k], cos=cos_parts[k], sin=sin_parts[k], unsqueeze_dim=unsqueeze_dim) for k in range(ndim)
    ]
    return torch.cat(y_parts, dim=-1)


def rotated(x, cos, sin, unsqueeze_dim=1):
""" + UNSQUEEZE + "    return (x * cos) + (rotate(x) * sin)\n" + HALVES,
        tables="first",
        made_by="""
def recomposition_frequencies(self, freq):
    freq_h, freq_w = freq[:, :, 0], freq[:, :, 1]
    return torch.cat([freq_h, freq_h, freq_w, freq_w], dim=-1)
""",
    ),
    Form("phimoe", "by_ids", "def f(q, k, cos, sin, position_ids, unsqueeze_dim=1):\n" + _BY_IDS + TURN + BOTH + HALVES),
    Form(
        "clvp", "by_ids_with_v",
        "def f(q, k, v, cos, sin, position_ids, unsqueeze_dim=1):\n" + _BY_IDS + TURN + """
    v_embed = (v * cos) + (rotate(v) * sin)
    return q_embed, k_embed, v_embed
""" + HALVES,
        made_by="""
def forward(self, hidden_states):
    sequence_length = hidden_states.shape[1]
    if sequence_length == self.cached_sequence_length and self.cached_rotary_positional_embedding is not None:
        return self.cached_rotary_positional_embedding
    self.cached_sequence_length = sequence_length
    time_stamps = torch.arange(sequence_length, device=hidden_states.device).type_as(self.inv_freq)
    freqs = time_stamps[:, None] * self.inv_freq
    embeddings = torch.cat((freqs, freqs), dim=-1)
    self.cached_rotary_positional_embedding = embeddings.unsqueeze(0)
    return self.cached_rotary_positional_embedding
""",
    ),
    Form("esm_of_old", "cached", """
def f(x, cos, sin):
    cos = cos[:, :, : x.shape[-2], :]
    sin = sin[:, :, : x.shape[-2], :]
    return (x * cos) + (rotate(x) * sin)


def rotate(x):
    x1, x2 = x.chunk(2, dim=-1)
    return torch.cat((-x2, x1), dim=-1)
"""),
    Form("qwen2_vl", "sections", _WITH_SECTIONS + TURN + BOTH + HALVES),
    Form("glm4v_moe", "sections", _WITH_SECTIONS + SPLIT + TURN_PART + BOTH + HALVES, partial=True),
    Form(
        "glm4v_of_old", "sections", _WITH_SECTIONS + REPEAT + SPLIT + TURN_PART + BOTH + PAIRS,
        style="interleaved", tables="first", partial=True,
    ),
    Form(
        "roformer", "sinusoidal",
        """
def f(sinusoidal_pos, query_layer, key_layer, value_layer=None):
    sin, cos = sinusoidal_pos.chunk(2, dim=-1)
    sin_pos = torch.stack([sin, sin], dim=-1).reshape_as(sinusoidal_pos)
    cos_pos = torch.stack([cos, cos], dim=-1).reshape_as(sinusoidal_pos)
    rotate_half_query_layer = torch.stack([-query_layer[..., 1::2], query_layer[..., ::2]], dim=-1).reshape_as(
        query_layer
    )
    query_layer = query_layer * cos_pos + rotate_half_query_layer * sin_pos
    rotate_half_key_layer = torch.stack([-key_layer[..., 1::2], key_layer[..., ::2]], dim=-1).reshape_as(key_layer)
    key_layer = key_layer * cos_pos + rotate_half_key_layer * sin_pos
    if value_layer is not None:
        rotate_half_value_layer = torch.stack([-value_layer[..., 1::2], value_layer[..., ::2]], dim=-1).reshape_as(
            value_layer
        )
        value_layer = value_layer * cos_pos + rotate_half_value_layer * sin_pos
        return query_layer, key_layer, value_layer
    return query_layer, key_layer
""",
        style="interleaved", tables="half",
    ),
    Form(
        "conformer", "conformer",
        """
def f(self, hidden_states, relative_position_embeddings):
    batch_size, sequence_length, hidden_size = hidden_states.size()
    hidden_states = hidden_states.view(batch_size, sequence_length, self.num_heads, self.head_size)
    cos = relative_position_embeddings[0, :sequence_length, ...]
    sin = relative_position_embeddings[1, :sequence_length, ...]
    hidden_states = hidden_states.transpose(0, 1)
    rotated_states_begin = hidden_states[..., : self.head_size // 2]
    rotated_states_end = hidden_states[..., self.head_size // 2 :]
    rotated_states = torch.cat((-rotated_states_end, rotated_states_begin), dim=rotated_states_begin.ndim - 1)
    hidden_states = (hidden_states * cos) + (rotated_states * sin)
    hidden_states = hidden_states.transpose(0, 1)
    hidden_states = hidden_states.view(batch_size, sequence_length, self.num_heads * self.head_size)
    return hidden_states
""",
    ),
    Form(
        "llama4", "complex",
        """
def f(xq, xk, freqs_cis):
    xq_ = torch.view_as_complex(xq.float().reshape(*xq.shape[:-1], -1, 2))
    xk_ = torch.view_as_complex(xk.float().reshape(*xk.shape[:-1], -1, 2))
    xq_out = torch.view_as_real(xq_ * freqs_cis[:, :, None, :]).flatten(3)
    xk_out = torch.view_as_real(xk_ * freqs_cis[:, :, None, :]).flatten(3)
    return xq_out.type_as(xq), xk_out.type_as(xk)
""",
        style="interleaved", tables="half", rounding="once",
    ),
    Form(
        "deepseek_v2", "complex_heads_first",
        """
def f(xq, xk, freqs_cis):
    xq_ = torch.view_as_complex(xq.float().reshape(*xq.shape[:-1], -1, 2))
    xk_ = torch.view_as_complex(xk.float().reshape(*xk.shape[:-1], -1, 2))
    freqs_cis = freqs_cis.unsqueeze(1).to(xq_.device)
    xq_out = torch.view_as_real(xq_ * freqs_cis).flatten(3).type_as(xq)
    xk_out = torch.view_as_real(xk_ * freqs_cis).flatten(3).type_as(xk)
    return xq_out, xk_out
""",
        style="interleaved", tables="half", rounding="once",
    ),
    Form(
        "llama4_vision", "complex_vision",
        """
def f(query, key, freqs_ci):
    query_ = torch.view_as_complex(query.float().reshape(*query.shape[:-1], -1, 2))
    key_ = torch.view_as_complex(key.float().reshape(*key.shape[:-1], -1, 2))
    freqs_ci = reshape_for_broadcast(freqs_ci=freqs_ci, query=query_)
    freqs_ci = freqs_ci.to(query_.device)
    query_out = torch.view_as_real(query_ * freqs_ci).flatten(3)
    key_out = torch.view_as_real(key_ * freqs_ci).flatten(3)
    return query_out.type_as(query), key_out.type_as(key)


def reshape_for_broadcast(freqs_ci, query):
    ndim = query.ndim
    shape = [d if i == 1 or i == ndim - 1 else 1 for i, d in enumerate(query.shape)]
    return freqs_ci.view(*shape)
""",
        style="interleaved", tables="half", rounding="once",
    ),
)  # fmt: skip
