"""``ropejit prewarm --for LIBRARY`` prepares what the library's calls need: a frozen process compiles nothing and leaves nothing
to eager code."""

import os
import subprocess
import sys

import ropejit

SMALL = dict(
    vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
    head_dim=16, max_position_embeddings=128, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
#: One for each form that transformers' functions have, and what its configuration needs besides the above.
TYPES = {
    "llama": {}, "gpt_neox": {"rotary_pct": 0.5, "num_key_value_heads": None}, "cohere": {}, "olmo2": {}, "glm": {},
    "ernie4_5": {}, "gptj": {"rotary_dim": 16, "n_head": 4, "n_embd": 64, "n_layer": 1, "num_key_value_heads": None},
    "gpt_oss": {"num_local_experts": 2, "num_experts_per_tok": 1}, "modernbert": {"global_attn_every_n_layers": 1, "num_key_value_heads": None},
}  # fmt: skip

FROZEN = """
import sys, torch, ropejit
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM
ropejit.patch("transformers")
def calls():
    stats = ropejit.stats()
    return stats.memory_hits + stats.disk_hits
for folder in sys.argv[2:]:
    config = AutoConfig.from_pretrained(folder)
    auto = AutoModelForMaskedLM if config.model_type == "modernbert" else AutoModelForCausalLM
    model = auto.from_config(config, dtype=torch.bfloat16, attn_implementation="eager").to(sys.argv[1])
    ids = torch.randint(3, 64, (2, 9), device=sys.argv[1])
    # Twice: a first call that finds its kernel loaded, since another spec has the same, is no hit.
    with torch.no_grad():
        model(input_ids=ids)
        before = calls()
        model(input_ids=ids)
    forward = calls() - before
    step = lambda: model(input_ids=ids).logits.float().sum().backward()
    step()
    before = calls()
    step()
    gradients = calls() - before - forward
    # q or k alone is trained, as some adapters do.
    alone = 0
    for name in ("q_proj", "k_proj"):
        for n, p in model.named_parameters():
            p.requires_grad_(name in n)
        if any(p.requires_grad for p in model.parameters()):
            model(input_ids=ids).logits.float().sum().backward()
    print(config.model_type, forward, gradients, ropejit.stats().compiles)
"""


def folders(tmp_path):
    from transformers import AutoConfig

    for name, more in TYPES.items():
        keys = {key: value for key, value in (SMALL | more).items() if value is not None}
        AutoConfig.for_model(name, **keys, dtype="bfloat16").save_pretrained(tmp_path / name)
        yield str(tmp_path / name)


def run(arguments, tmp_path, **environment):
    # What is compiled is run a few times: that need not be fast.
    ours = {"ROPEJIT_CACHE_DIR": str(tmp_path / "cache"), "ROPEJIT_HOST_CXXFLAGS": "-O0"}
    environment = os.environ | ours | environment
    command = [sys.executable, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def prewarm(library, device, tmp_path, *arguments):
    host = {"ROPEJIT_DEVICE": "host" if device == "cpu" else device}
    return run(["-m", "ropejit", "prewarm", "--for", library, "--no-tune", *arguments], tmp_path, **host)


def test_transformers_models_in_a_frozen_process(device, tmp_path):
    models = list(folders(tmp_path))
    prewarm("transformers", device, tmp_path, "--backward", "--tokens", "18", "--model", *models)
    told = run(["-c", FROZEN, device, *models], tmp_path, ROPEJIT_TUNING="frozen").splitlines()
    assert [line.split()[0] for line in told] == list(TYPES)
    for line in told:
        name, forward, gradients, compiles = line.split()
        assert int(forward) > 0 and int(compiles) == 0, line
        # Eager rounds the gradient otherwise where the tables' type differs, or only some of its products: left to it.
        assert int(gradients) > 0 or name in ("olmo2", "ernie4_5", "modernbert"), line


CALLS = """
import sys, torch, ropejit
device, dtype = sys.argv[1], torch.bfloat16
new = lambda *shape, dtype=dtype: torch.rand(*shape, dtype=dtype, device=device)
number = lambda *n, dtype=torch.int32: torch.tensor(n, dtype=dtype, device=device)
for table in (dtype, torch.float32):
    q, k = new(2, 8, 2, 32).transpose(1, 2).requires_grad_(), new(2, 8, 2, 32).transpose(1, 2)
    cos, sin = new(8, 32, dtype=table), new(8, 32, dtype=table)
    ids = torch.arange(8, device=device)
    for given in (None, ids.int(), ids):
        out, _ = ropejit.fast_rope_embedding(q, k, cos, sin, given)
        out.sum().backward()
    x, half = new(2, 8, 2, 32).requires_grad_(), (cos[:, :16].contiguous(), sin[:, :16].contiguous())
    for offsets in (0, number(0, 0), number(0, 0, dtype=torch.int64)):
        ropejit.apply_rotary_emb(x, *half, seqlen_offsets=offsets).sum().backward()
    packed = x.detach().reshape(16, 2, 32)
    ropejit.apply_rotary_emb(packed, *half, cu_seqlens=number(0, 8, 16), max_seqlen=8)
print(ropejit.stats().compiles)
"""


def test_unsloths_and_flash_attns_calls_in_a_frozen_process(device, tmp_path):
    numbers = ["--head-dim", "32", "--num-heads", "2", "--tokens", "16", "--backward"]
    for library in ("unsloth", "flash-attn"):
        prewarm(library, device, tmp_path, *numbers)
    assert run(["-c", CALLS, device], tmp_path, ROPEJIT_TUNING="frozen") == "0\n"


def test_a_gradient_of_one_alone_is_prepared(tmp_path):
    config = {"model_type": "llama", "torch_dtype": "bfloat16"} | SMALL
    done = ropejit.prewarm(config, tokens=[1], backward=True, tune=False, device="cpu")
    heads = {(" backward " in done.spec, done.spec.split()[2]) for done in done}
    assert heads == {(False, "h4/2"), (True, "h4/2"), (True, "h4/0"), (True, "h2/0")}


def test_an_unknown_library_is_named():
    done = subprocess.run(
        [sys.executable, "-m", "ropejit", "prewarm", "--for", "vllm", "--model", "llama-3.1-8b"], capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 2 and "vllm" in done.stderr and "flash-attn" in done.stderr


