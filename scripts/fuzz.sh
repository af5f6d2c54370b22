#!/usr/bin/env bash
# Coverage-guided fuzzing with libFuzzer, on stable Rust: the counters come from LLVM's own pass, and no sanitizer is needed
# where nothing is unsafe. `scripts/fuzz.sh TARGET SECONDS`; what is found is kept in fuzz/artifacts, new inputs are not
# added to the corpus that is under version control.
set -euo pipefail
cd "$(dirname "$0")/../fuzz"
target=$1 seconds=$2
host=$(rustc -vV | sed -n 's/^host: //p')
built=${CARGO_TARGET_DIR:-$PWD/../target}/fuzz
export CARGO_ENCODED_RUSTFLAGS
CARGO_ENCODED_RUSTFLAGS=$(printf '%s\x1f' -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1)
CARGO_ENCODED_RUSTFLAGS=${CARGO_ENCODED_RUSTFLAGS%$'\x1f'}
# With --target the flags do not reach build scripts and macros.
CARGO_TARGET_DIR=$built "${CARGO:-cargo}" build --release --locked --quiet --target "$host" --bin "$target"
found=$built/corpus/$target
mkdir -p "$found" "artifacts/$target"
words=()
[[ -f $target.dict ]] && words=(-dict="$target.dict")
exec "$built/$host/release/$target" -max_total_time="$seconds" -rss_limit_mb=2048 -timeout=10 -max_len=4096 \
    -print_final_stats=1 -verbosity="${FUZZ_VERBOSITY:-0}" -artifact_prefix="artifacts/$target/" "${words[@]}" "$found" "corpus/$target"
