"""Children of fork() and the end of the interpreter, beside what runs in the background. Each script runs in an interpreter of
its own. PyTorch computes nothing there: the threads of its OpenMP do not survive a fork, and are waited for."""

import os
import subprocess
import sys
import textwrap

import pytest

BEGIN = """
import os, signal, sys, threading
import numpy, torch, ropejit
a = numpy.arange(512 * 16, dtype=numpy.float32).reshape(512, 16)
cos, sin = torch.from_numpy(numpy.cos(a)), torch.from_numpy(numpy.sin(a))
def call(heads=9, tokens=512):
    q = torch.from_numpy(numpy.arange(tokens * heads * 32, dtype=numpy.float32).reshape(1, tokens, heads, 32))
    return ropejit.apply(q, None, cos[:tokens], sin[:tokens])[0].numpy().tobytes()
def child(work, end=os._exit):
    pid = os.fork()
    if pid == 0:
        signal.alarm(100)  # only what hangs meets it
        try:
            work()
        except Exception as e:
            print(type(e).__name__, e, flush=True)
            os._exit(3)
        end(0)
    status = os.waitpid(pid, 0)[1]
    assert status == 0, f"the child's status is {status}"
"""


def run(script, tmp_path, tuning="background"):
    env = {k: v for k, v in os.environ.items() if not k.startswith("ROPEJIT_")}
    env.update(ROPEJIT_CACHE_DIR=str(tmp_path / "cache"), ROPEJIT_TUNING=tuning, PYTHONFAULTHANDLER="1")
    script = BEGIN + textwrap.dedent(script) + "\nprint('done')\n"
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and done.stdout.endswith("done\n"), done.stdout + done.stderr
    # PyTorch and Python have things to say about forks, and a busy machine measures badly; nothing fails.
    assert not any(word in done.stderr for word in ("ERROR", "panicked", "left out", "cannot be had")), done.stderr
    return done.stdout


@pytest.mark.parametrize("end", ["os._exit", "sys.exit"])
def test_children_call_wait_and_end(end, tmp_path):
    run(
        f"""
        want, other = call(), call(5)
        def same():
            assert call() == want
        def everything():
            assert call() == want and call(5) == other and len(call(7)) == 512 * 7 * 32 * 4
            ropejit.wait_tuned()
            assert ropejit.stats().compiles + ropejit.stats().disk_hits > 0
            ropejit.check()
            ropejit.inspect()
            ropejit.freeze()
            try:
                call(11)
                raise AssertionError("frozen")
            except ropejit.NotCachedError:
                pass
        for work in (same, everything, ropejit.wait_tuned, lambda: None):
            child(work, {end})
        ropejit.wait_tuned()
        for work in (same, everything, lambda: child(everything, {end})):
            child(work, {end})
        """,
        tmp_path,
    )


def test_children_of_a_process_whose_threads_call(tmp_path):
    run(
        """
        want, stop = call(), threading.Event()
        def busy(first):
            heads = first
            while not stop.is_set():
                call(1 + heads % 40, 64)
                ropejit.stats()
                heads += 2
        threads = [threading.Thread(target=busy, args=(i,)) for i in range(2)]
        for thread in threads:
            thread.start()
        def work():
            assert call() == want and call(3) and call(33, 64)
            ropejit.stats()
        for i in range(10):
            child(work, [os._exit, sys.exit][i % 2])
        stop.set()
        for thread in threads:
            thread.join()
        """,
        tmp_path,
        tuning="never",
    )


def test_workers_of_a_data_loader(tmp_path):
    out = run(
        """
        from torch.utils.data import DataLoader, Dataset
        import zlib
        want = zlib.crc32(call())
        class Rotated(Dataset):
            def __len__(self):
                return 8
            def __getitem__(self, i):
                return zlib.crc32(call(9)), os.getpid()
        seen = list(DataLoader(Rotated(), batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=200))
        assert [crc for crc, _ in seen] == 8 * [want]
        print("workers", len({pid for _, pid in seen} - {os.getpid()}))
        """,
        tmp_path,
    )
    assert "workers 2" in out


def test_the_interpreter_ends_while_kernels_are_tuned(tmp_path):
    run("call()", tmp_path)
    run("call(3); call(4); call(5, 8)", tmp_path)


def test_the_interpreter_ends_while_another_thread_tunes(tmp_path):
    run(
        """
        config = dict(model_type="llama", hidden_size=256, num_attention_heads=4, num_hidden_layers=1, rope_theta=1e4)
        def tune():
            ropejit.prewarm(config, tokens=[1, 64, 512], device="cpu")
        threading.Thread(target=tune, daemon=True).start()
        while ropejit.stats().compiles == 0:
            pass
        """,
        tmp_path,
    )
