"""ropejit and its peers on this GPU: one table, one run.

    run.py OUT [--budget SECONDS] [--only NAME,…] [--table]

Every peer is measured in processes of its own, with caches of its own: one process with empty caches, two with warm ones,
one for the table; with --table that one alone, and OUT/peers.json keeps what it has of first calls. Figures are printed as they come. OUT/peers.json has them all, OUT/peers.md and OUT/peers.svg show them,
OUT/peers-short.md is the table of a first screen.
"""

import argparse
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import peers
import report

HERE = pathlib.Path(__file__).parent


def processes(name, what, caches, seconds, **environment):
    """The figures that one process prints, and why it ended before its time, if it did."""
    places = {v: str(caches / v.lower()) for v in ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "ROPEJIT_CACHE_DIR")}
    command = [sys.executable, str(HERE / "measure.py"), name, what]
    started = subprocess.Popen(
        command, env=os.environ | places | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        out, err = started.communicate(timeout=max(seconds, 1))
        why = None if started.returncode == 0 else (err.strip().splitlines() or ["no message"])[-1]
    except subprocess.TimeoutExpired:
        os.killpg(started.pid, signal.SIGKILL)  # with the compilers it has started
        out, err = started.communicate()
        why = "out of time"
    figures = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    for figure in figures:
        print(f"  {name}, {what}: " + json.dumps(figure), flush=True)
    if why:
        print(f"  {name}, {what}: {why}", flush=True)
    return figures, why


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--budget", type=float, default=360, help="seconds for all")
    parser.add_argument("--only", help="names of peers")
    parser.add_argument("--table", action="store_true", help="no first calls")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    names = arguments.only.split(",") if arguments.only else list(peers.ALL)
    end = time.monotonic() + arguments.budget
    earlier = arguments.out / "peers.json"
    results = json.loads(earlier.read_text()) if arguments.table and earlier.exists() else {}
    for at, name in enumerate(names):
        # What is left is shared by those who are left.
        share = time.monotonic() + (end - time.monotonic()) / (len(names) - at)
        left = lambda share=share: share - time.monotonic()  # noqa: E731
        print(f"{name} ({end - time.monotonic():.0f} s left)", flush=True)
        caches = pathlib.Path(tempfile.mkdtemp(prefix="peers-"))
        kept = {key: value for key, value in results.get(name, {}).items() if key in ("empty", "warm")}
        result = results[name] = {"empty": None, "warm": [], "device": [], "failed": []} | kept
        figures, why = [], None
        if not arguments.table:
            figures, why = processes(name, "first", caches, left())
            if figures:
                result["empty"] = figures[-1]
                for _ in range(2):
                    result["warm"] += processes(name, "first", caches, left())[0]
        if arguments.table or figures:
            # What is compared is the kernel that a program has once it runs: the tuned one.
            figures, why = processes(name, "table", caches, left(), ROPEJIT_TUNING="blocking")
            for figure in figures:
                kind = figure.pop("kind")
                if kind in ("device", "failed"):
                    result[kind].append(figure)
                else:
                    result[kind] = figure
        if why:
            result["why"] = why
        shutil.rmtree(caches, ignore_errors=True)
        (arguments.out / "peers.json").write_text(json.dumps(results, indent=1) + "\n")
        report.write(results, arguments.out)
    print((arguments.out / "peers.md").read_text())
    return 0 if any(result["device"] for result in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
