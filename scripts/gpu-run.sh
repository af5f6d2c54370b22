#!/usr/bin/env bash
# Runs on a GPU host what `make gpu-bundle` has collected, from the folder it lies in. Results go to the folder $1.
#   run.sh OUT [tests] [warm] [tune] [sanitize]
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=$1
shift
mkdir -p "$out"
export ROPEJIT_DEVICE=cuda ROPEJIT_REQUIRE_GPU=1
ropejit=$here/ropejit
nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem,temperature.gpu --format=csv,noheader | tee "$out/gpu.txt"
"$ropejit" doctor

tests() {
    "$here/it" gpu:: --nocapture >"$out/tests.txt" 2>&1
    local status=$?
    grep -E '^test |panicked|^  (left|right)|SKIPPED|result' "$out/tests.txt" | tail -60
    return $status
}

# First results of ten fresh processes with a warm cache, then from a cache that was filled without a GPU.
warm() {
    local cache
    cache=$(mktemp -d)
    ROPEJIT_CACHE_DIR=$cache "$ropejit" run --model llama-3.1-8b --tuning blocking --json >"$out/cold.json"
    for i in $(seq 10); do
        ROPEJIT_CACHE_DIR=$cache "$ropejit" run --model llama-3.1-8b --json
    done >"$out/warm.json"
    ROPEJIT_CACHE_DIR=$here/prewarmed ROPEJIT_TUNING=frozen "$ropejit" run --model llama-3.1-8b --json >"$out/frozen.json"
    ROPEJIT_CACHE_DIR=$(mktemp -d) ROPEJIT_TUNING=frozen "$ropejit" run --model llama-3.1-8b 2>&1 | tee "$out/frozen-empty.txt"
    "$ropejit" demo | tee "$out/demo.txt"
    python3 - "$out" <<'PY'
import json, statistics, sys
decoder, out = json.JSONDecoder(), sys.argv[1]
def documents(name):
    text = open(f"{out}/{name}.json").read()
    while text.strip():
        document, end = decoder.raw_decode(text.lstrip())
        yield document
        text = text.lstrip()[end:]
for name in ("cold", "warm", "frozen"):
    runs = list(documents(name))
    first = sorted(r["first_result_ms"] for r in runs)
    r = runs[-1]
    print(f"{name}: first result ms median {statistics.median(first):.3f} ({first[0]:.3f}..{first[-1]:.3f}), "
          f"open {r['open_ms']:.1f}, second {r['second_result_ms']:.3f}, from {r['origin']}, {r['variant']}, "
          f"ratio {r['ratio']:.3f}, {r['stats']}")
PY
}

# Tunes the shapes of the peers' table and keeps every candidate's samples.
tune() {
    export ROPEJIT_CACHE_DIR
    ROPEJIT_CACHE_DIR=$(mktemp -d)
    for layout in "" --bhsd; do
        shape() { "$ropejit" prewarm --head-dim "$1" --num-heads "$2" --num-kv-heads "$3" --tokens "$4" --dtype "$5" $layout 2>&1 | tail -1; }
        for dtype in bf16 f16 f32; do
            shape 128 32 32 8192 $dtype
            shape 128 32 8 1,128,512,8192,16384 $dtype
        done
        shape 64 32 8 16384 bf16
        shape 256 16 8 8192 bf16
    done
    for key in $("$ropejit" inspect list --json | python3 -c 'import json,sys; [print(r["key"]) for r in json.load(sys.stdin) if r["kind"]=="choice"]'); do
        "$ropejit" inspect show "$key" --json
    done >"$out/choices.json"
    python3 - "$out" <<'PY'
import json, sys
decoder, text = json.JSONDecoder(), open(f"{sys.argv[1]}/choices.json").read()
while text.strip():
    d, end = decoder.raw_decode(text.lstrip())
    text = text.lstrip()[end:]
    c = [x for x in d["candidates"] if x["median_ns"]]
    c.sort(key=lambda x: x["median_ns"])
    win = next(x for x in d["candidates"] if x["winner"])
    default = d["candidates"][0]
    copy = d["copy_ns"]
    print(f'{d["spec"][:14]} {d["layout"][:4]} {d["tokens"]:6} copy {copy/1e3:8.2f} win {win["median_ns"]/1e3:8.2f} {copy/win["median_ns"]:.3f} {win["variant"]:24} '
          f'default {copy/default["median_ns"]:.3f} worst {copy/c[-1]["median_ns"]:.3f} took {d["took_ms"]:.0f} | ' + "; ".join(f'{x["variant"]} {copy/x["median_ns"]:.3f}' for x in c[:4]))
PY
}

# Memory errors, races and reads of uninitialised memory in the GPU tests.
sanitize() {
    for tool in memcheck racecheck initcheck; do
        compute-sanitizer --tool $tool --error-exitcode 9 "$here/it" gpu::equals gpu::the_grid gpu::a_position >"$out/sanitizer-$tool.txt" 2>&1
        echo "compute-sanitizer $tool: exit $? $(grep -h 'ERROR SUMMARY' "$out/sanitizer-$tool.txt" | tail -1)"
    done
}

status=0
for what in "$@"; do
    echo "== $what"
    start=$(date +%s)
    "$what" || { status=1; echo "FAILED: $what"; }
    echo "== $what took $(($(date +%s) - start)) s"
done
exit $status
