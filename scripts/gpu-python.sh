#!/usr/bin/env bash
# Runs on a GPU host what `make peers-bundle` has collected, from the folder it lies in. Nothing is installed: the wheels are
# unpacked beside the interpreter's own PyTorch, Triton and transformers. Results go to the folder $1.
#   run.sh OUT [tests] [overhead] [first] [peers] [examples] [models]
# Of the times in seconds that a stage may take, TESTS_SECONDS (270) and PEERS_SECONDS (360) can be set; TESTS_WORKERS (6) says how
# many processes share the tests; TESTS chooses some, as pytest's -k does; PEERS_TABLE=1 leaves first calls of peers out.
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
# As pip does it: else every import would compile the package's sources again.
"$python" -m compileall -q "$work/own"
export PYTHONPATH=$work/own:${PYTHONPATH:-} ROPEJIT_REQUIRE_GPU=1 PYTHONDONTWRITEBYTECODE=1 PEERS_DIR=$here/peers
"$python" -c 'import pytest, xdist' 2>/dev/null || PYTHONPATH=$PYTHONPATH:$work/site
export PYTHONPATH
# What fails here is said, and fails again where it matters.
nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem,temperature.gpu --format=csv,noheader | tee "$out/gpu.txt"
"$python" -c 'import torch, transformers, triton; print("torch", torch.__version__, "transformers", transformers.__version__, "triton", triton.__version__)'
ROPEJIT_CACHE_DIR=$work/doctor timeout -k 5 60 "$python" -m ropejit doctor

# What is printed goes to a file in OUT as well. Every stage ends in its own time, and the next begins whatever came of it.
tests() {
    ROPEJIT_CACHE_DIR=$work/tests timeout -k 5 "${TESTS_SECONDS:-270}" "$python" -u -m pytest -q -p no:cacheprovider -W ignore \
        -n "${TESTS_WORKERS:-6}" --dist worksteal --tb=short --maxfail=25 --durations=8 "$here/tests" ${TESTS:+-k "$TESTS"} >"$out/python-tests.txt" 2>&1
    local status=$?
    tail -c 6000 "$out/python-tests.txt"
    return $status
}

# Where the host time of a call goes.
overhead() {
    ROPEJIT_CACHE_DIR=$work/overhead timeout -k 5 60 "$python" "$here/overhead.py" cuda 2>&1 | tee "$out/python-overhead.txt"
}

# First calls of fresh processes, with empty caches and with a warm one.
first() {
    timeout -k 5 150 "$python" "$here/first_call.py" "$out" 2>&1 | tee "$out/python-first.txt"
}

# The kernels of examples/ beside torch.compile, Liger and PyTorch's own.
examples() {
    ROPEJIT_CACHE_DIR=$work/examples ROPEJIT_TUNING=blocking PYTHONPATH=$PYTHONPATH:$here/peers timeout -k 5 150 \
        "$python" "$here/examples.py" "$here/examples" "$out/examples.json" 2>&1 | tee "$out/examples.txt"
}

# Tiny models of some families of transformers, patched and not: bits, and gradients of a step.
models() {
    ROPEJIT_CACHE_DIR=$work/models timeout -k 5 150 "$python" "$here/tiny_models.py" --device cuda --some --seconds 110 2>&1 \
        | tee "$out/tiny-models.txt"
}

# The table of all peers.
peers() {
    local seconds=${PEERS_SECONDS:-360}
    (cd "$here/bench" && timeout -k 5 $((seconds + 30)) "$python" run.py "$out" --budget "$seconds" ${PEERS_TABLE:+--table}) 2>&1 | tee "$out/peers.log"
}

status=0
for what in "$@"; do
    echo "== $what"
    start=$(date +%s)
    case $what in
        tests | overhead | first | peers | examples | models) "$what" || { code=$?; status=1; echo "FAILED: $what (status $code; 124: out of time)"; } ;;
        *) status=1 && echo "no such stage: $what" ;;
    esac
    echo "== $what took $(($(date +%s) - start)) s"
done
exit $status
