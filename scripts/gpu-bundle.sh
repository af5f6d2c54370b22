#!/usr/bin/env bash
# Collects in .gpu/ what a GPU host without a toolchain needs: the command, the tests, their data, a cache filled without
# a GPU, and the script that runs them.
set -euo pipefail
cd "$(dirname "$0")/.."
rm -rf .gpu
mkdir -p .gpu/data
tests=$(cargo test --release --test it --no-run --message-format=json 2>/dev/null |
    python3 -c 'import json,sys; print([m["executable"] for m in map(json.loads, sys.stdin) if m.get("executable") and m["target"]["name"] == "it"][-1])')
strip -o .gpu/it "$tests"
strip -o .gpu/ropejit target/release/ropejit
cp -r tests/data/eager_* tests/data/fused_* tests/data/templates .gpu/data/
cp scripts/gpu-run.sh .gpu/run.sh
ROPEJIT_CACHE_DIR=.gpu/prewarmed target/release/ropejit prewarm --model llama-3.1-8b --arch sm_90 --no-tune --lock .gpu/rope.lock >/dev/null
git rev-parse HEAD >.gpu/commit
du -sh .gpu
