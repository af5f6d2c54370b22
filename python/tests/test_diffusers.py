"""`patch("diffusers")`: tiny models with random weights have equal bits, patched and not, or are left alone and the log says so."""

import copy
import logging
import pickle

import pytest
import ropejit
import torch
from conftest import library

diffusers = library("diffusers", optional=True)

from diffusers.models import embeddings  # noqa: E402

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def ids(tokens, axes):
    """Positions of tokens on a square of so many axes."""
    return torch.stack([torch.arange(tokens) * (axis + 3) % 17 for axis in range(axes)], dim=-1)


def text(n, width):
    return dict(encoder_hidden_states=torch.randn(1, n, width), timestep=torch.tensor([7]))


def flux():
    model = diffusers.FluxTransformer2DModel(
        in_channels=8, num_layers=1, num_single_layers=1, attention_head_dim=32, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(8, 12, 12),
    )  # fmt: skip
    return model, dict(
        hidden_states=torch.randn(1, 16, 8), img_ids=ids(16, 3), txt_ids=torch.zeros(6, 3),
        pooled_projections=torch.randn(1, 32), **text(6, 32),
    )  # fmt: skip


def flux2():
    model = diffusers.Flux2Transformer2DModel(
        in_channels=8, num_layers=1, num_single_layers=1, attention_head_dim=32, num_attention_heads=2,
        joint_attention_dim=32, timestep_guidance_channels=32, axes_dims_rope=(8, 8, 8, 8),
    )  # fmt: skip
    return model, dict(
        hidden_states=torch.randn(1, 16, 8), img_ids=ids(16, 4), txt_ids=ids(6, 4), guidance=torch.tensor([1.0]), **text(6, 32)
    )


def hunyuan_video():
    model = diffusers.HunyuanVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=1, num_single_layers=1,
        num_refiner_layers=1, patch_size=1, text_embed_dim=16, pooled_projection_dim=8, rope_axes_dim=(4, 6, 6),
    )  # fmt: skip
    return model, dict(
        hidden_states=torch.randn(1, 4, 3, 4, 4), encoder_attention_mask=torch.ones(1, 6),
        pooled_projections=torch.randn(1, 8), guidance=torch.tensor([1000.0]), **text(6, 16),
    )  # fmt: skip


def cogvideox():
    model = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=32, in_channels=4, out_channels=4, time_embed_dim=8, text_embed_dim=16,
        num_layers=1, sample_width=8, sample_height=8, sample_frames=9, max_text_seq_length=6,
        use_rotary_positional_embeddings=True,
    )  # fmt: skip
    tables = embeddings.get_3d_rotary_pos_embed(32, ((0, 0), (4, 4)), (4, 4), 2)
    return model, dict(hidden_states=torch.randn(1, 2, 4, 8, 8), image_rotary_emb=tables, **text(6, 16))


def cosmos():
    model = diffusers.CosmosTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=24, num_layers=1, mlp_ratio=2,
        text_embed_dim=16, adaln_lora_dim=4, max_size=(4, 32, 32), concat_padding_mask=False, extra_pos_embed_type=None,
    )  # fmt: skip
    return model, dict(hidden_states=torch.randn(1, 4, 2, 8, 8), **text(6, 16))


def wan():
    model = diffusers.WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=24, in_channels=4, out_channels=4, text_dim=16, freq_dim=32, ffn_dim=32,
        num_layers=1, rope_max_seq_len=32,
    )  # fmt: skip
    return model, dict(hidden_states=torch.randn(1, 4, 2, 8, 8), **text(6, 16))


def ltx():
    model = diffusers.LTXVideoTransformer3DModel(
        in_channels=8, out_channels=8, num_attention_heads=4, attention_head_dim=16, cross_attention_dim=64, num_layers=1,
        caption_channels=16,
    )  # fmt: skip
    return model, dict(
        hidden_states=torch.randn(1, 2 * 4 * 4, 8), encoder_attention_mask=torch.ones(1, 6).bool(), num_frames=2, height=4,
        width=4, **text(6, 16),
    )  # fmt: skip


def qwen_image():
    model = diffusers.QwenImageTransformer2DModel(
        in_channels=8, out_channels=2, num_layers=1, attention_head_dim=32, num_attention_heads=2, joint_attention_dim=16,
        axes_dims_rope=(8, 12, 12),
    )  # fmt: skip
    return model, dict(
        hidden_states=torch.randn(1, 16, 8), encoder_hidden_states_mask=torch.ones(1, 6, dtype=torch.long),
        img_shapes=[[(1, 4, 4)]], **text(6, 16),
    )  # fmt: skip


#: How often kernels rotate in one call of the model: q and k of each of its layers.
MODELS = {flux: 4, flux2: 4, hunyuan_video: 4, cogvideox: 2, cosmos: 2, wan: 2, ltx: 2, qwen_image: 4}


def to(value, device, dtype):
    """Weights and activations in a type; positions and tables stay in theirs."""
    if isinstance(value, tuple):
        return tuple(x.to(device) for x in value)
    if not isinstance(value, torch.Tensor):
        return value
    return value.to(device, dtype) if value.is_floating_point() and value.ndim > 1 else value.to(device)


def prepared(name, device, dtype):
    model, inputs = name()
    inputs = {key: to(x, device, torch.float32 if key.endswith(("_ids", "_mask")) else dtype) for key, x in inputs.items()}
    return model.to(device, dtype), inputs


@pytest.mark.parametrize("dtype", DTYPES[::2], ids=str)
@pytest.mark.parametrize("name", MODELS, ids=lambda f: f.__name__)
def test_patched_models_compute_the_same(device, served, name, dtype):
    model, inputs = prepared(name, device, dtype)
    with torch.no_grad():
        theirs = model(**inputs, return_dict=False)[0]
        with ropejit.patched("diffusers"):
            ours = model(**inputs, return_dict=False)[0]
        assert len(served) == MODELS[name]
        again = model(**inputs, return_dict=False)[0]
    assert torch.isfinite(theirs).all() and theirs.abs().sum() > 0
    assert torch.equal(ours, theirs) and torch.equal(again, theirs)
    assert len(served) == MODELS[name]


@pytest.mark.parametrize("dtype", DTYPES[::2], ids=str)
@pytest.mark.parametrize("name", MODELS, ids=lambda f: f.__name__)
def test_and_have_the_same_gradients(device, served, name, dtype):
    model, inputs = prepared(name, device, dtype)

    def gradients():
        model.zero_grad()
        model(**inputs, return_dict=False)[0].float().square().mean().backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    theirs = gradients()
    with ropejit.patched("diffusers"):
        ours = gradients()
    # Gradients of 16 bits are rounded as kernels do not, unless tables are of 16 bits as well: Wan's go where its weights go. Complex
    # products are made of one cast.
    assert len(served) == (MODELS[name] if dtype == torch.float32 or name in (wan, qwen_image) else 0)
    assert len(theirs) > 10 and all(map(torch.equal, ours, theirs))


def tables(tokens, width, unbind_dim, device):
    angles = torch.randn(tokens, width // 2, device=device) * 100
    angles = angles.repeat_interleave(2, -1) if unbind_dim == -1 else torch.cat((angles, angles), -1)
    return angles.cos(), angles.sin()


@pytest.fixture
def function():
    """The shared function, patched, and as it was."""
    theirs = embeddings.apply_rotary_emb
    with ropejit.patched("diffusers"):
        assert embeddings.apply_rotary_emb is not theirs
        yield embeddings.apply_rotary_emb, theirs
    assert embeddings.apply_rotary_emb is theirs


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("unbind_dim", [-1, -2])
@pytest.mark.parametrize("sequence_dim", [1, 2])
@pytest.mark.parametrize("tokens, width", [(1, 64), (9, 40), (33, 128)])
def test_the_shared_function(device, served, function, dtype, unbind_dim, sequence_dim, tokens, width):
    ours, theirs = function
    x = torch.randn((2, tokens, 3, width) if sequence_dim == 1 else (2, 3, tokens, width), device=device, dtype=dtype)
    freqs = tables(tokens, width, unbind_dim, device)
    expected = theirs(x, freqs, True, unbind_dim, sequence_dim)
    out = ours(x, freqs, use_real_unbind_dim=unbind_dim, sequence_dim=sequence_dim)
    assert len(served) == 1 and torch.equal(out, expected) and out.stride() == expected.stride()
    x.requires_grad_()
    given = torch.randn_like(x)
    grads = [torch.autograd.grad(f(x, freqs, True, unbind_dim, sequence_dim), x, given)[0] for f in function]
    assert torch.equal(*grads)


def test_a_part_of_a_sequence(device, served, function):
    ours, theirs = function
    x = torch.randn(2, 3, 12, 64, device=device, dtype=torch.bfloat16)
    freqs = tables(8, 64, -1, device)
    assert torch.equal(ours(x[:, :, 4:], freqs), theirs(x[:, :, 4:], freqs)) and len(served) == 1


@pytest.mark.parametrize("unbind_dim", [-1, -2])
@pytest.mark.parametrize("table", [0, 1])
def test_tables_whose_angles_differ_stay_with_the_original(device, served, function, unbind_dim, table):
    ours, theirs = function
    x = torch.randn(2, 3, 9, 64, device=device)
    freqs = tables(9, 64, unbind_dim, device)
    freqs[table][4, 5] += 1e-3
    assert torch.equal(ours(x, freqs, True, unbind_dim), theirs(x, freqs, True, unbind_dim)) and not served


def test_so_does_a_zero_of_the_other_sign(device, served, function):
    ours, theirs = function
    x = torch.randn(2, 3, 9, 64, device=device)
    freqs = tables(9, 64, -1, device)
    freqs[1][0, 0], freqs[1][0, 1] = 0.0, -0.0
    assert torch.equal(ours(x, freqs), theirs(x, freqs)) and not served


def test_a_table_is_looked_at_once_and_again_when_it_was_written(device, served, function, monkeypatch):
    ours, theirs = function
    looks = []
    equal = torch.equal
    monkeypatch.setattr(torch, "equal", lambda *both: looks.append(1) or equal(*both))
    x, freqs = torch.randn(2, 3, 9, 64, device=device), tables(9, 64, -1, device)
    for _ in range(3):
        ours(x, freqs)
    assert len(looks) == 2 and len(served) == 3
    for table in freqs:
        table.copy_(table.flip(0))
    assert equal(ours(x, freqs), theirs(x, freqs)) and len(looks) == 4 and len(served) == 4
    freqs[0][0, 0] += 1
    assert equal(ours(x, freqs), theirs(x, freqs)) and len(served) == 4


def test_nothing_is_left_on_a_table(device, function):
    ours, _ = function
    freqs = tables(9, 64, -1, device)
    ours(torch.randn(2, 3, 9, 64, device=device), freqs)
    assert not vars(freqs[0]) and torch.equal(copy.deepcopy(freqs[0]), freqs[0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_types_stay_with_the_original_and_the_log_says_so_once(device, served, function, dtype, caplog):
    ours, theirs = function
    x, freqs = torch.randn(2, 3, 9, 64, device=device, dtype=torch.bfloat16), tables(9, 64, -1, device)
    freqs = tuple(t.to(dtype) for t in freqs)
    with caplog.at_level(logging.INFO, logger="ropejit"):
        for _ in range(2):
            assert torch.equal(ours(x, freqs), theirs(x, freqs)) and not served
    (line,) = [m for r in caplog.records if "such calls" in (m := r.getMessage())]
    assert line.startswith(f"{theirs.__module__}.{theirs.__qualname__}: cos is {dtype}")


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_tables_of_16_bits_have_gradients_too(device, served, function, dtype):
    x = torch.randn(2, 3, 9, 64, device=device, dtype=dtype, requires_grad=True)
    freqs, given = tuple(t.to(dtype) for t in tables(9, 64, -1, device)), torch.randn_like(x)
    out = [f(x, freqs) for f in function]
    assert len(served) == 1 and torch.equal(*out)
    assert torch.equal(*(torch.autograd.grad(y, x, given)[0] for y in out))


def test_a_tensor_of_inference_mode(device, served, function):
    ours, theirs = function
    with torch.inference_mode():
        x, freqs = torch.randn(2, 3, 9, 64, device=device), tables(9, 64, -1, device)
        assert torch.equal(ours(x, freqs), theirs(x, freqs)) and torch.equal(ours(x, freqs), theirs(x, freqs))
    assert len(served) == 2


def test_what_the_original_refuses_it_refuses_still(device, function):
    ours, _ = function
    x, freqs = torch.randn(2, 3, 9, 64, device=device), tables(9, 64, -1, device)
    with pytest.raises(ValueError, match="sequence_dim=3"):
        ours(x, freqs, sequence_dim=3)
    with pytest.raises(ValueError, match="use_real_unbind_dim=0"):
        ours(x, freqs, use_real_unbind_dim=0)
    with pytest.raises(RuntimeError):
        ours(x, tables(7, 64, -1, device))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_complex_tables(device, served, function, dtype):
    ours, theirs = function
    x = torch.randn(2, 9, 3, 64, device=device).to(dtype).requires_grad_()
    for batch in (1, 2):
        freqs = torch.polar(torch.ones(batch, 9, 32), torch.randn(batch, 9, 32)).to(device)
        served.clear()
        results = [f(x, freqs, use_real=False) for f in (ours, theirs)]
        assert torch.equal(*results) and len(served) == 1
        given = torch.randn_like(x)
        assert torch.equal(*(torch.autograd.grad(y, x, given)[0] for y in results))


def test_other_complex_tables_stay_and_the_log_says_so_once(device, served, function, caplog):
    ours, theirs = function
    x = torch.randn(2, 9, 3, 64, device=device, dtype=torch.float64)
    freqs = torch.polar(torch.ones(2, 9, 32), torch.randn(2, 9, 32)).to(device)
    with caplog.at_level(logging.WARNING, logger="ropejit"):
        for _ in range(2):
            assert torch.equal(ours(x, freqs, use_real=False), theirs(x, freqs, use_real=False)) and not served
    assert sum("complex tables stay" in r.getMessage() for r in caplog.records) == 1


@pytest.mark.parametrize("channels", [64, 48, 384, 1536])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ltx_has_tables_for_each_head(device, served, channels, dtype):
    from diffusers.models.transformers import transformer_ltx

    x, angles = torch.randn(2, 9, channels, device=device, dtype=dtype), torch.randn(2, 9, channels // 2, device=device)
    freqs = tuple(f(angles).repeat_interleave(2, -1) for f in (torch.cos, torch.sin))
    theirs = transformer_ltx.apply_rotary_emb(x, freqs)
    with ropejit.patched("diffusers"):
        assert torch.equal(transformer_ltx.apply_rotary_emb(x, freqs), theirs) and len(served) == 1
        one = tuple(t[:1] for t in freqs)
        ours = transformer_ltx.apply_rotary_emb(x, one)
    assert torch.equal(ours, transformer_ltx.apply_rotary_emb(x, one)) and len(served) == 2


def test_modules_that_imported_it_get_it_and_give_it_back(served):
    from diffusers.models.transformers import transformer_cosmos, transformer_flux, transformer_flux2

    modules = (transformer_flux, transformer_flux2, embeddings)
    before = [m.apply_rotary_emb for m in modules]
    wan_before = diffusers.models.transformers.transformer_wan.WanAttnProcessor.__call__
    with ropejit.patched("diffusers"):
        assert len({m.apply_rotary_emb for m in modules} | set(before)) == 2
        assert not hasattr(transformer_cosmos, "apply_rotary_emb")  # imports it in each call
    assert [m.apply_rotary_emb for m in modules] == before
    assert diffusers.models.transformers.transformer_wan.WanAttnProcessor.__call__ is wan_before


def test_a_module_that_is_imported_while_patched_gets_the_original_back(monkeypatch):
    import importlib
    import sys

    name = "diffusers.models.transformers.transformer_flux"
    with ropejit.patched("diffusers"):
        monkeypatch.delitem(sys.modules, name)
        again = importlib.import_module(name)
        assert again.apply_rotary_emb is embeddings.apply_rotary_emb
        assert hasattr(again.apply_rotary_emb, "__ropejit__")
    assert again.apply_rotary_emb is embeddings.apply_rotary_emb and not hasattr(again.apply_rotary_emb, "__ropejit__")


def test_what_is_not_covered_is_said(caplog):
    from diffusers.models.transformers import transformer_z_image  # noqa: F401

    with caplog.at_level(logging.WARNING, logger="ropejit"), ropejit.patched("diffusers"):
        pass
    said = [r.getMessage() for r in caplog.records]
    assert sum("transformer_z_image.ZSingleStreamAttnProcessor.__call__.apply_rotary_emb is not covered" in m for m in said) == 1
    assert not any("transformer_wan." in m or "transformer_flux." in m or "transformer_ltx." in m for m in said)


@pytest.mark.parametrize("name", [wan, flux], ids=lambda f: f.__name__)
def test_a_patched_processor_is_pickled_and_copied(name):
    model, _ = name()
    with ropejit.patched("diffusers"):
        for processor in model.attn_processors.values():
            assert type(pickle.loads(pickle.dumps(processor))) is type(copy.deepcopy(processor)) is type(processor)


def test_the_compiler_traces_the_models_own_function(device, served, function):
    """Tables cannot be looked at there."""
    ours, theirs = function
    x, freqs = torch.randn(2, 3, 9, 64, device=device), tables(9, 64, -1, device)
    compiled = torch.compile(lambda x, freqs: ours(x, freqs), fullgraph=True, backend="eager")
    assert torch.equal(compiled(x, freqs), theirs(x, freqs)) and not served


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("how", ["eager", "compiled"])
def test_wans_reads_cosines_at_even_places_and_sines_at_odd_ones(device, served, dtype, how):
    from diffusers.models.transformers import transformer_wan

    from ropejit import _diffusers

    x = torch.randn(2, 9, 3, 64, device=device, dtype=dtype)
    freqs = [torch.randn(1, 9, 1, 64, device=device) for _ in range(2)]
    with ropejit.patched("diffusers"):
        assert transformer_wan.WanAttnProcessor.__call__.__ropejit__
        ours = _diffusers.inside_wan
        theirs = _diffusers._wan_original(x, *freqs)
        if how == "compiled":
            out = torch.compile(lambda *all: ours(*all), fullgraph=True, backend="eager")(x, *freqs)
        else:
            out = ours(x, *freqs)
            assert len(served) == 1
    assert torch.equal(out, theirs)


@pytest.mark.gpu
def test_a_captured_graph_follows_its_tables(function):
    ours, theirs = function
    x, freqs = torch.randn(2, 3, 9, 64, device="cuda"), tables(9, 64, -1, "cuda")
    ours(x, freqs)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = ours(x, freqs)
    for table in freqs:
        table.copy_(torch.randn_like(table))
    graph.replay()
    assert torch.equal(out, theirs(x, freqs))
