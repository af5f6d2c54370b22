#!/usr/bin/env bash
# Runs on a GPU host what `make peers-bundle` has collected, from the folder it lies in. Nothing is installed: the wheels are
# unpacked beside the interpreter's own PyTorch, Triton and transformers. Results go to the folder $1.
#   run.sh OUT [tests] [overhead] [first] [peers]
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=$(mkdir -p "$1" && cd "$1" && pwd)
shift
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python=${PYTHON:-python3}
for wheel in "$here"/ropejit-*.whl "$here"/wheels/*.whl; do
    "$python" -m zipfile -e "$wheel" "$work/site"
done
# Last, so that what the host has itself comes first, but for ropejit.
mkdir -p "$work/own" && mv "$work"/site/ropejit* "$work/own/"
export PYTHONPATH=$work/own:${PYTHONPATH:-} ROPEJIT_REQUIRE_GPU=1 PYTHONDONTWRITEBYTECODE=1 PEERS_DIR=$here/peers
"$python" -c 'import pytest' 2>/dev/null || PYTHONPATH=$PYTHONPATH:$work/site
export PYTHONPATH
nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem,temperature.gpu --format=csv,noheader | tee "$out/gpu.txt"
"$python" -c 'import torch, transformers, triton; print("torch", torch.__version__, "transformers", transformers.__version__, "triton", triton.__version__)'
ROPEJIT_CACHE_DIR=$work/doctor "$python" -m ropejit doctor

# All of tests/ on the GPU and on the processor.
tests() {
    ROPEJIT_CACHE_DIR=$work/tests timeout 400 "$python" -m pytest -q -p no:cacheprovider --tb=short --durations=5 "$here/tests" >"$out/python-tests.txt" 2>&1
    local status=$?
    tail -40 "$out/python-tests.txt"
    return $status
}

# Where the host time of a call goes.
overhead() {
    ROPEJIT_CACHE_DIR=$work/overhead timeout 120 "$python" "$here/overhead.py" cuda | tee "$out/python-overhead.txt"
}

# First calls of fresh processes: one with an empty cache, five with a warm one.
first() {
    mkdir -p "$work/first"
    for i in 1 2 3 4 5 6; do
        (cd "$here/bench" && ROPEJIT_CACHE_DIR=$work/first timeout 60 "$python" measure.py ropejit first)
    done | tee "$out/python-first.txt"
}

# The table of all peers: at most six minutes.
peers() {
    (cd "$here/bench" && "$python" run.py "$out" --budget "${BUDGET:-360}") 2>&1 | tee "$out/peers.log"
}

status=0
for what in "$@"; do
    echo "== $what"
    start=$(date +%s)
    "$what" || { status=1; echo "FAILED: $what"; }
    echo "== $what took $(($(date +%s) - start)) s"
done
exit $status
