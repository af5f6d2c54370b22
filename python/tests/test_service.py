"""Importing, prewarming, freezing, counters, the cache's contents, the command line, threads."""

import json
import os
import subprocess
import sys
import threading

import pytest
import ropejit
import torch

LLAMA = {
    "model_type": "llama", "hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1, "rope_theta": 10000.0,
    "max_position_embeddings": 64, "torch_dtype": "bfloat16",
}  # fmt: skip


def python(code, tmp_path, *arguments, **environment):
    """What a fresh process prints."""
    environment = os.environ | {"ROPEJIT_CACHE_DIR": str(tmp_path / "cache"), "ROPEJIT_TUNING": "never"} | environment
    command = [sys.executable, *(["-c", code] if code else []), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


CALL = """
import torch, ropejit
q, k = torch.randn(1, 3, 2, 64).bfloat16().to(DEVICE), torch.randn(1, 3, 1, 64).bfloat16().to(DEVICE)
cos, sin = torch.ones(1, 3, 64).bfloat16().to(DEVICE), torch.zeros(1, 3, 64).bfloat16().to(DEVICE)
ropejit.freeze() if FREEZE else None
ropejit.apply_rotary_pos_emb(q.transpose(1, 2), k.transpose(1, 2), cos, sin)
print(ropejit.stats().compiles)
"""


def test_importing_is_quick_and_does_not_import_torch(tmp_path):
    code = "import time; t = time.perf_counter(); import ropejit, sys; ms = (time.perf_counter() - t) * 1e3; "
    code += "print(ms, 'torch' in sys.modules)"
    runs = [python(code, tmp_path).split() for _ in range(5)]
    assert all(torch_is_loaded == "False" for _, torch_is_loaded in runs)
    assert min(float(ms) for ms, _ in runs) < 30


def test_dir_names_all_that_is_public_before_it_is_used(tmp_path):
    code = "import ropejit; names = dir(ropejit); print(sorted(set(ropejit.__all__) - set(names)), len(names) == len(set(names)))"
    assert python(code, tmp_path) == "[] True\n"


def test_what_was_prewarmed_serves_a_frozen_process(device, tmp_path):
    prewarm = f"import ropejit; print(len(ropejit.prewarm({LLAMA!r}, tokens=[3], device='{device}', tune=False)))"
    call = CALL.replace("DEVICE", repr(device)).replace("FREEZE", "True")
    assert python(prewarm, tmp_path) == "1\n"
    assert python(call, tmp_path) == "0\n"
    again = prewarm.replace("print(len(", "print([p.origin for p in ").replace("False)))", "False)])")
    assert python(again, tmp_path) in ("['disk']\n", "['embedded']\n")


def test_frozen_and_not_cached_is_an_error_that_names_the_command(device, tmp_path):
    code = CALL.replace("DEVICE", repr(device)).replace("FREEZE", "True").replace("64", "62")
    code = code.replace("ropejit.apply_rotary", "try:\n  ropejit.apply_rotary") + "\n"
    code = code.replace("print(ropejit.stats().compiles)", "except ropejit.NotCachedError as e:\n  print(e)")
    assert "prewarm --dtype bf16 --head-dim 62" in python(code, tmp_path)


def test_prewarm_takes_models_configurations_and_files(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=8, hidden_size=64, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    arguments = dict(tokens=[1], tune=False, device="cpu")
    for given, text in ((config, "d32 h2/1"), (model, "f32 d32 h2/1"), (LLAMA, "bf16 d64 h2/1"), (tmp_path, "bf16 d64 h2/1")):
        (done,) = ropejit.prewarm(given, **arguments)
        assert text in done.spec and "half_split" in done.spec and done.tokens == 1 and not done.tuned
    assert len(ropejit.prewarm(LLAMA, backward=True, **arguments)) == 4
    with pytest.raises(ValueError, match="layout"):
        ropejit.prewarm(LLAMA, layout="x", **arguments)
    with pytest.raises(ValueError, match="model_type"):
        ropejit.prewarm({"model_type": "nobody-knows"}, **arguments)


def test_prewarm_takes_names_and_devices(tmp_path, monkeypatch):
    once = dict(tokens=[1], tune=False)
    (named,) = ropejit.prewarm("llama-3.1-8b", device=torch.device("cpu"), **once)
    assert named.spec == "bf16 d128 h32/8 half_split per_op table=bf16/full pos=implicit"
    (half,) = ropejit.prewarm("llama-3.1-8b", device="cpu", tables="half", **once)
    (twice,) = ropejit.prewarm("llama-3.1-8b", device="cpu", tables="twice", **once)
    assert half.spec == twice.spec == named.spec.replace("full", "half")
    # A folder of that name is the user's.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "llama-3.1-8b").mkdir()
    (tmp_path / "llama-3.1-8b" / "config.json").write_text(json.dumps(LLAMA))
    assert "d64 h2/1" in ropejit.prewarm("llama-3.1-8b", device="cpu", **once)[0].spec
    with pytest.raises(FileNotFoundError, match="model_or_config: .*: 'llama-9'; hint: .*llama-3.1-8b"):
        ropejit.prewarm("llama-9", **once)
    with pytest.raises(ValueError, match="device: 'meta'"):
        ropejit.prewarm(LLAMA, device=torch.device("meta"), **once)
    with pytest.raises(ValueError, match="^tables: 'both'"):
        ropejit.prewarm(LLAMA, device="cpu", tables="both", **once)


def test_what_was_prewarmed_for_half_tables_serves_a_frozen_process(device, tmp_path):
    once = f"tokens=[3], device='{device}', tune=False"
    prewarm = f"import ropejit; ropejit.prewarm({LLAMA!r}, tables='twice', {once})"
    python(prewarm, tmp_path)
    code = CALL.replace("DEVICE", repr(device)).replace("FREEZE", "True").split("ropejit.apply_rotary")[0]
    code += "two = [t[0, :, :32].repeat_interleave(2, -1) for t in (cos, sin)]\n"
    code += "ropejit.apply(q, k, *two, tables='twice', rounding='per_op'); print(ropejit.stats().compiles)"
    assert python(code, tmp_path) == "0\n"


#: Its cache folder cannot be made, which is one warning; and a model keeps its own function, which is another.
NOISY = """
import sys, types, torch, ropejit
ropejit.apply(torch.ones(1, 1, 2, 58), None, torch.ones(1, 29), torch.ones(1, 29))
model = sys.modules["transformers_modules.modeling_mine"] = types.ModuleType("transformers_modules.modeling_mine")
model.apply_rotary_pos_emb = lambda q, k: (q, k)
ropejit.patch("transformers")
"""


def logged(tmp_path, terminal=False, **environment):
    """What a fresh process writes to stderr, which may be a terminal."""
    import pty

    (tmp_path / "file").touch()
    environment = os.environ | {"ROPEJIT_CACHE_DIR": str(tmp_path / "file" / "below")} | environment
    if not terminal:
        return subprocess.run([sys.executable, "-c", NOISY], env=environment, stderr=subprocess.PIPE, text=True, check=True).stderr
    leader, follower = pty.openpty()
    with subprocess.Popen([sys.executable, "-c", NOISY], env=environment, stderr=follower) as process:
        os.close(follower)
        text = b""
        try:
            while part := os.read(leader, 4096):
                text += part
        except OSError:
            pass  # all its other ends are closed
        assert process.wait(timeout=300) == 0
    os.close(leader)
    return text.decode()


def test_the_log_follows_ropejit_log_and_no_color(tmp_path):
    native, of_python = "the cache cannot be written to", "modeling_mine.apply_rotary_pos_emb is not covered"
    plain = logged(tmp_path)
    assert native in plain and of_python in plain and "\x1b" not in plain
    for quiet in ("off", "error", "warn,ropejit=error"):
        silent = logged(tmp_path, ROPEJIT_LOG=quiet)
        assert native not in silent and of_python not in silent, quiet
    nonsense = logged(tmp_path, ROPEJIT_LOG="loud")
    assert "ROPEJIT_LOG: 'loud' is no level" in nonsense and of_python in nonsense
    assert "\x1b[" in logged(tmp_path, terminal=True, NO_COLOR="")
    colourless = logged(tmp_path, terminal=True, NO_COLOR="1")
    assert native in colourless and "\x1b[" not in colourless


def test_inspect_and_stats_are_plain_dataclasses():
    import dataclasses

    ropejit.prewarm(LLAMA, tokens=[1], tune=False, device="cpu")
    choices = ropejit.inspect()
    assert any(c.spec.startswith("bf16 d64 h2/1") and c.tokens == 1 for c in choices)
    assert all(dataclasses.is_dataclass(x) for x in (choices[0], choices[0].candidates[0], ropejit.stats()))


@pytest.mark.parametrize("module", [["-m", "ropejit"]])
def test_the_command_line(module, tmp_path):
    assert "prewarm" in python("", tmp_path, *module, "--help")
    assert json.loads(python("", tmp_path, *module, "inspect", "--json")) is not None
    environment = os.environ | {"ROPEJIT_CACHE_DIR": str(tmp_path)}
    bad = subprocess.run([sys.executable, *module, "nonsense"], env=environment, capture_output=True, check=False)
    assert bad.returncode == 2


def test_other_threads_run_while_a_kernel_is_compiled(device, tmp_path):
    """A first call compiles for tens of milliseconds at least; a thread that counts must not stand still."""
    code = """
import threading, time, torch, ropejit
q = torch.randn(1, 4, 2, 66).to(DEVICE); cos = torch.ones(4, 33).to(DEVICE)
stamps, stop = [], threading.Event()
def count():
    while not stop.is_set():
        stamps.append(time.perf_counter()); time.sleep(0.001)
thread = threading.Thread(target=count); thread.start()
begin = time.perf_counter(); ropejit.apply(q, None, cos, cos); end = time.perf_counter()
stop.set(); thread.join()
inside = [s for s in stamps if begin < s < end]
print(ropejit.stats().compiles, int((end - begin) * 1e3), len(inside))
""".replace("DEVICE", repr(device))
    # On a GPU a shipped kernel may answer; whoever tunes first compiles whatever is shipped.
    tuning = "blocking" if device == "cuda" else "never"
    compiles, ms, ticks = map(int, python(code, tmp_path, ROPEJIT_TUNING=tuning).split())
    assert compiles >= 1 and ticks > ms / 10


def test_many_threads_at_once(device):
    q, k = torch.randn(1, 5, 2, 64, device=device), torch.randn(1, 5, 1, 64, device=device)
    cos, sin = torch.rand(5, 32, device=device), torch.rand(5, 32, device=device)
    expected = ropejit.apply(q, k, cos, sin)
    wrong = []

    def work(i):
        for _ in range(50):
            out = ropejit.apply(q, k, cos, sin, interleaved=bool(i % 2))
            if device == "cuda":
                torch.cuda.synchronize()
            if not i % 2 and not all(map(torch.equal, out, expected)):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_background_tuning_ends_with_the_interpreter(device, tmp_path):
    code = CALL.replace("DEVICE", repr(device)).replace("FREEZE", "False")
    python(code, tmp_path, ROPEJIT_TUNING="background")


def test_a_fork_ends(tmp_path):
    """A forked process has none of the threads that tune, and must not wait for them."""
    code = CALL.replace("DEVICE", "'cpu'").replace("FREEZE", "False") + """
import os, sys
child = os.fork()
if child == 0:
    ropejit.apply_rotary_pos_emb(q.transpose(1, 2), k.transpose(1, 2), cos, sin)
    sys.exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert python(code, tmp_path, ROPEJIT_TUNING="background").split()[-1] == "7"
