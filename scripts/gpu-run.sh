#!/usr/bin/env bash
# Runs on a GPU host what `make gpu-bundle` has collected, from the folder it lies in. Results go to the folder $1.
#   run.sh OUT [tests] [first] [warm] [bench] [quality] [priors] [sanitize]
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

# The first results of processes, one line for each name.
summary() {
    python3 - "$out" "$@" <<'PY'
import json, statistics, sys
decoder, out = json.JSONDecoder(), sys.argv[1]
def documents(name):
    text = open(f"{out}/{name}.json").read()
    while text.strip():
        document, end = decoder.raw_decode(text.lstrip())
        yield document
        text = text.lstrip()[end:]
for name in sys.argv[2:]:
    runs = list(documents(name))
    first = sorted(r["first_result_ms"] for r in runs)
    r = runs[-1]
    print(f"{name}: first result ms median {statistics.median(first):.3f} ({first[0]:.3f}..{first[-1]:.3f}), "
          f"open {r['open_ms']:.1f}, second {r['second_result_ms']:.3f}, from {r['origin']}, {r['variant']}, "
          f"of copy {r['of_copy']:.3f}, {r['stats']}")
PY
}

# First results of twenty fresh processes, each with an empty cache: without NVRTC, and with tuning in the background.
# Then what the kernels that are shipped reach in the steady state.
first() {
    for i in $(seq 20); do
        ROPEJIT_NVRTC=/none ROPEJIT_CACHE_DIR=$(mktemp -d) "$ropejit" run --model llama-3.1-8b --json 2>>"$out/bare.log"
    done >"$out/bare.json"
    for i in $(seq 20); do
        ROPEJIT_CACHE_DIR=$(mktemp -d) "$ropejit" run --model llama-3.1-8b --json 2>>"$out/empty.log"
    done >"$out/empty.json"
    for shape in "--head-dim 128 --num-heads 32 --num-kv-heads 8" "--head-dim 128 --num-heads 32 --num-kv-heads 32" \
        "--head-dim 256 --num-heads 16 --num-kv-heads 8" "--head-dim 64 --num-heads 14 --num-kv-heads 2" \
        "--head-dim 128 --num-heads 32 --num-kv-heads 8 --style interleaved" "--head-dim 80 --num-heads 32 --num-kv-heads 32 --rotary-dim 32"; do
        for more in "--dtype bf16" "--dtype f32" "--dtype bf16 --bhsd" "--dtype bf16 --angles f32"; do
            ROPEJIT_CACHE_DIR=$(mktemp -d) "$ropejit" run $shape $more --tokens 8192 --tuning never --json
        done
    done >"$out/shipped.json"
    ROPEJIT_LOG=ropejit=debug ROPEJIT_NVRTC=/none ROPEJIT_CACHE_DIR=$(mktemp -d) "$ropejit" run --model llama-3.1-8b 2>&1 | head -20
    summary bare empty
    python3 - "$out" <<'PY'
import json, sys
text, decoder = open(f"{sys.argv[1]}/shipped.json").read(), json.JSONDecoder()
while text.strip():
    r, end = decoder.raw_decode(text.lstrip())
    text = text.lstrip()[end:]
    print(f"{r['spec']:70} {r['origin']} {r['variant']:20} {r['device_us']:8.2f} us, of copy {r['of_copy']:.3f}")
PY
}

# First results of ten fresh processes with a warm cache, then from a cache that was filled without a GPU.
warm() {
    local cache
    cache=$(mktemp -d)
    ROPEJIT_CACHE_DIR=$cache "$ropejit" run --model llama-3.1-8b --tuning blocking --json >"$out/cold.json"
    for i in $(seq 10); do
        ROPEJIT_CACHE_DIR=$cache "$ropejit" run --model llama-3.1-8b --json
    done >"$out/warm.json"
    ROPEJIT_LOG=ropejit=debug ROPEJIT_CACHE_DIR=$cache "$ropejit" run --model llama-3.1-8b --json 2>&1 >/dev/null | head -5
    ROPEJIT_CACHE_DIR=$here/prewarmed ROPEJIT_TUNING=frozen "$ropejit" run --model llama-3.1-8b --json >"$out/frozen.json"
    # As deployed: a lock file and a copy of the folder that cannot be written to, under another HOME.
    cp -r "$here/prewarmed" "$out/image" && chmod -R a-w "$out/image"
    HOME=/nonexistent ROPEJIT_CACHE_DIR=$out/image ROPEJIT_LOCK=$here/rope.lock ROPEJIT_NVRTC=/none ROPEJIT_TUNING=frozen \
        "$ropejit" run --model llama-3.1-8b --json >"$out/locked.json"
    chmod -R u+w "$out/image" && rm -r "$out/image"
    ROPEJIT_CACHE_DIR=$(mktemp -d) ROPEJIT_TUNING=frozen "$ropejit" run --model llama-3.1-8b 2>&1 | tee "$out/frozen-empty.txt"
    "$ropejit" demo | tee "$out/demo.txt"
    summary cold warm frozen locked
}

# The bench of all shapes; the tuning behind it starts from an empty cache. Tables of q's and k's dtype, then f32 for bf16,
# then tables made by the engine, where kernels that compute their angles compete.
bench() {
    export ROPEJIT_CACHE_DIR
    ROPEJIT_CACHE_DIR=$(mktemp -d)
    "$ropejit" bench --json --picture "$out/bench.svg" >"$out/bench.json"
    "$ropejit" bench --json --dtype bf16 --table f32 >"$out/bench-f32-tables.json"
    "$ropejit" bench --json --dtype bf16,f32 --table made >"$out/bench-made-tables.json"
    python3 - "$out" <<'PY'
import json, sys
for name in ("bench", "bench-f32-tables", "bench-made-tables"):
    report = json.load(open(f"{sys.argv[1]}/{name}.json"))
    for c in report["cases"]:
        tuned = sorted((l["of_copy"] for l in c["landscape"]), reverse=True)
        tableless = max((l["of_copy"] for l in c["landscape"] if "tableless" in l["variant"]), default=None)
        if tableless:
            print(f"best without a table {tableless:.3f}, with {max(l['of_copy'] for l in c['landscape'] if 'tableless' not in l['variant']):.3f}:", end=" ")
        print(f'{c["shape"]:18} {c["dtype"]:4} {c["layout"]} {"in " if c["in_place"] else "out"} {c["copy_us"]:8.2f} {c["device_us"]:8.2f} '
              f'{c["of_copy"]:.3f} {c["variant"]:26} of {len(tuned)}: {tuned[0]:.3f}..{tuned[-1]:.3f} tuned in {c["tuning_ms"]:.0f} ms, host {c["host_us"]:.2f} us')
    large = [c["of_copy"] for c in report["cases"] if c["bytes"] >= 100e6]
    print(f'{name}: {len(large)} cases of 100 MB and more: mean {sum(large)/len(large):.3f}, least {min(large):.3f}')
PY
}

# Two tunings from empty caches: what each chose, and how far that is from the best in the other's measurements.
quality() {
    for i in 1 2; do
        ROPEJIT_CACHE_DIR=$(mktemp -d) "$ropejit" bench --json --dtype bf16,f32 --samples 3 >"$out/quality-$i.json"
    done
    python3 - "$out" <<'PY'
import json, sys
runs = [json.load(open(f"{sys.argv[1]}/quality-{i}.json"))["cases"] for i in (1, 2)]
worst, same, total = 0.0, 0, 0
for a, b in zip(*runs):
    if a["in_place"]:
        continue
    losses = []
    for chosen, other in ((a, b), (b, a)):
        ratio = {l["variant"]: l["of_copy"] for l in other["landscape"]}
        losses.append(max(ratio.values()) / ratio[chosen["variant"]] - 1 if chosen["variant"] in ratio else float("nan"))
    same += a["variant"] == b["variant"]
    total += 1
    worst = max(worst, *losses)
    if a["variant"] != b["variant"]:
        print(f'{a["shape"]:18} {a["dtype"]} {a["layout"]}: {a["variant"]} / {b["variant"]}: {losses[0]:.2%} and {losses[1]:.2%} behind the best of the other run')
print(f"{same} of {total} choices are the same; a choice is at most {worst:.2%} behind the best of the other run")
PY
}

# The choices to ship for this GPU's model: a lock file of what people run, all candidates measured, the most common first,
# for as long as ROPEJIT_PRIORS_SECONDS lets it start. What src/families/rope/prior.rs takes to be near enough (f16 for bf16, positions,
# rounding, direction, widths of tables, some more heads) is not measured for the file; some of it is measured after it, to see
# what the file's choice loses there.
priors() {
    local file deadline tokens=${ROPEJIT_PRIORS_TOKENS:-1,2,4,8,16,32,64,128,256,512,1024,2048,4096,8192,16384}
    local status=0 layout form d q k
    export ROPEJIT_CACHE_DIR
    ROPEJIT_CACHE_DIR=$(mktemp -d)
    file=$out/$(head -1 "$out/gpu.txt" | cut -d, -f1 | tr 'A-Z ' 'a-z-').lock
    deadline=$((SECONDS + ${ROPEJIT_PRIORS_SECONDS:-210}))
    measure() {
        if ((SECONDS >= deadline)); then
            echo "left out, no time: $*"
        else
            "$ropejit" prewarm --measure --tokens "$tokens" "$@" >>"$out/priors.txt" 2>&1 || { status=1; echo "FAILED: $*"; }
        fi
    }
    # head_dim, heads of q and k: 8B, 70B, their shards, 7B, 14B, 3B, …; the more common first.
    local shapes=(128,32,8 128,32,32 128,28,4 64,32,8 128,64,8 128,16,8 256,16,8 64,14,2 128,40,8 128,8,1 128,24,8 128,12,2
        128,40,40 96,32,32 256,8,4 128,16,2 128,16,16)
    local of shape
    # As a model of transformers calls it, and as a caller of the library would.
    local transformers=(--dtype bf16 --table same --table-width full --rounding per-op) same=(--dtype bf16 --table same)
    local f32=(--dtype bf16 --table f32)
    for form in transformers same f32; do
        local -n words=$form
        for shape in "${shapes[@]}"; do
            IFS=, read -r d q k <<<"$shape"
            measure --lock "$file" --head-dim "$d" --num-heads "$q" --num-kv-heads "$k" "${words[@]}"
        done
    done
    # Norms with RoPE, forward and gradient: Qwen 3's sizes, LFM 2's, Gemma 3's.
    local norm more
    for shape in 128,32,8,weight_after 128,16,8,weight_after 128,64,8,weight_after 128,40,8,weight_after 64,32,8,weight_after \
        256,16,8,one_plus_weight 256,8,4,one_plus_weight; do
        IFS=, read -r d q k norm <<<"$shape"
        for more in "" --backward; do
            measure --lock "$file" --fused qk-norm --norm "$norm" --head-dim "$d" --num-heads "$q" --num-kv-heads "$k" \
                "${transformers[@]}" $more
        done
    done
    of=(--head-dim 128 --num-heads 32 --num-kv-heads 8)
    for layout in "" --bhsd; do
        measure --lock "$file" "${of[@]}" --dtype f32 $layout
        measure --lock "$file" "${of[@]}" --dtype bf16 --angles f32 $layout
        measure --lock "$file" "${of[@]}" --dtype f32 --angles f32 $layout
        measure --lock "$file" --head-dim 96 --rotary-dim 24 --num-heads 64 --num-kv-heads 0 --dtype bf16 --table same $layout
    done
    for form in same f32 transformers; do
        local -n words=$form
        for shape in "${shapes[@]:0:7}"; do
            IFS=, read -r d q k <<<"$shape"
            measure --lock "$file" --head-dim "$d" --num-heads "$q" --num-kv-heads "$k" --bhsd "${words[@]}"
        done
    done
    measure --lock "$file" --head-dim 64 --num-heads 128 --num-kv-heads 1 --style interleaved --dtype bf16 --table f32
    measure --lock "$file" "${of[@]}" "${f32[@]}" --positions ids64
    measure --lock "$file" "${of[@]}" "${same[@]}" --positions ids32
    "$ropejit" prewarm --check "$file" || status=1

    deadline=$((SECONDS + 40)) tokens=${ROPEJIT_PRIORS_TOKENS:-1,64,512,2048,8192}
    # Calls that take another's choice.
    measure "${of[@]}" --table same --dtype f16
    measure "${of[@]}" "${same[@]}" --backward
    measure "${of[@]}" "${same[@]}" --table-width full
    measure --head-dim 128 --num-heads 20 --num-kv-heads 20 "${same[@]}"
    tokens=8192,16384
    measure --head-dim 128 --num-heads 32 --num-kv-heads 16 "${same[@]}"
    measure --head-dim 128 --num-heads 48 --num-kv-heads 8 "${same[@]}"
    python3 - "$ropejit" "$file" <<'PY'
import json, subprocess, sys
ropejit, file = sys.argv[1:]
def inspect(*words):
    return json.loads(subprocess.run([ropejit, "inspect", *words, "--json"], check=True, capture_output=True).stdout)
lines = [l.strip() for l in open(file) if " | " in l]
shipped = {tuple(l.split(" = ")[0].split(" | ")): l.split(" = ")[1] for l in lines}
print(f"{len(shipped)} choices, {sum(map(len, lines))} bytes, variants: {sorted(set(shipped.values()))}")
worst = 0.0
for entry in inspect("list", "--kind", "choice", "--tuned")["entries"]:
    base = "bf16 d128 h32/8 half_split once table=bf16/half pos=implicit", entry["layout"], str(entry["tokens"])
    if (entry["spec"], *base[1:]) in shipped or base not in shipped:
        continue
    found = {c["variant"]: c["median_ns"] for c in inspect("show", entry["key"])["candidates"] if c["median_ns"]}
    chosen = shipped[base]
    loss = found[chosen] / min(found.values()) - 1 if chosen in found else float("nan")
    worst = max(worst, loss)
    print(f'{entry["spec"]}, {entry["tokens"]} tokens: the shipped {chosen} is {loss:.2%} behind {entry["variant"]}')
print(f"at most {worst:.2%} behind the best measured")
PY
    return $status
}

# Memory errors, races and reads of uninitialised memory in the GPU tests.
sanitize() {
    local tool which form
    # One call of each kind of fused kernel, checked against f64 by the command itself.
    for tool in memcheck racecheck initcheck synccheck; do
        for form in "qk-norm --head-dim 128" "qk-norm --head-dim 80 --dtype f32" "qk-norm --head-dim 128 --backward" \
            "qk-norm --head-dim 96 --backward --dtype f16" "append --head-dim 128 --cache fp8 --q-fp8 --slots pages --norm weight_after" \
            "mla --head-dim 192 --rotary-dim 64 --v-head-dim 512"; do
            ROPEJIT_CACHE_DIR=$(mktemp -d) timeout 60 compute-sanitizer --tool $tool --error-exitcode 9 "$ropejit" run --fused $form \
                --num-heads 8 --tokens 70 --tuning never >"$out/sanitizer-fused.txt" 2>&1
            echo "compute-sanitizer $tool, $form: exit $? $(grep -hE 'ERROR SUMMARY|RACECHECK SUMMARY' "$out/sanitizer-fused.txt" | tail -1)"
        done
    done
    [ -n "${SANITIZE_FUSED_ONLY:-}" ] && return
    for tool in memcheck racecheck initcheck; do
        # The tensors of more than 2^31 elements are left out for time, and tuning under the slowest tool; so is what times calls.
        which=(gpu:: --skip two_to_the --skip steady)
        test $tool = racecheck && which+=(--skip every_candidate --skip sixty_four --skip captured_beside)
        timeout 170 compute-sanitizer --tool $tool --error-exitcode 9 "$here/it" "${which[@]}" >"$out/sanitizer-$tool.txt" 2>&1
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
