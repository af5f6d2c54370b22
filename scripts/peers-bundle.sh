#!/usr/bin/env bash
# Collects in .gpu/python/ the Python package, its tests, the harness of benches/peers/ and the peers' files from PyPI, for a
# GPU host without a network. What is not to be had is left out, and said.
set -euo pipefail
cd "$(dirname "$0")/.."
out=$PWD/.gpu/python
rm -rf "$out"
mkdir -p "$out/peers"
cp dist/ropejit-*.whl "$out/"
cp -r python/tests "$out/tests"
# Where those tests look for the kernels of users: beside the package's folder.
rm -rf .gpu/tests && mkdir -p .gpu/tests/data && cp -r tests/data/templates .gpu/tests/data/
cp -r benches/peers "$out/bench"
cp scripts/gpu-python.sh "$out/run.sh"
cp benches/overhead.py benches/first_call.py benches/examples.py benches/tiny_models.py "$out/"
cp -r examples "$out/examples"
find "$out" -name __pycache__ -prune -exec rm -rf {} +
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# flash-attn's source asks for PyTorch before it says what it is: any environment that has it will do.
python=.venv-maturin/bin/python
for candidate in .venv-python .venv-transformers; do
    test -x "$candidate/bin/python" && python=$candidate/bin/python && break
done
get() { "$python" -m pip download --quiet --disable-pip-version-check --no-deps -d "$work" "$@" || echo "not to be had: $*"; }
get liger-kernel
get unsloth
get pytest pluggy iniconfig packaging pygments pytest-xdist execnet
"$python" -m pip install --quiet --disable-pip-version-check setuptools wheel packaging psutil ninja || true
FLASH_ATTENTION_SKIP_CUDA_BUILD=TRUE get --no-build-isolation --no-binary :all: flash-attn

cd "$work"
wheel() { find . -name "$1" | head -1; }
version() { basename "$1" | sed -E 's/^[a-z_]+-([0-9][^-]*)(-py3.*|\.tar\.gz)$/\1/'; }
file=$(wheel 'liger_kernel-*.whl')
[ -z "$file" ] || unzip -q "$file" -d "$out/peers"
file=$(wheel 'unsloth-*.whl')
if [ -n "$file" ]; then
    mkdir "$out/peers/unsloth"
    for part in rope_embedding indexing; do unzip -q -j "$file" "unsloth/kernels/$part.py" -d "$out/peers/unsloth"; done
    version "$file" >"$out/peers/unsloth/version"
fi
file=$(wheel 'flash_attn-*.tar.gz')
if [ -n "$file" ]; then
    tar xzf "$file" --wildcards '*/flash_attn/ops/triton/rotary.py'
    cp "$(find . -path '*/flash_attn/ops/triton/rotary.py' | head -1)" "$out/peers/flash_attn_rotary.py"
    version "$file" >"$out/peers/flash_attn_version"
fi
mkdir "$out/wheels"
find . -maxdepth 1 \( -name 'pytest-*.whl' -o -name 'pluggy-*.whl' -o -name 'iniconfig-*.whl' -o -name 'packaging-*.whl' \
    -o -name 'pygments-*.whl' -o -name 'pytest_xdist-*.whl' -o -name 'execnet-*.whl' \) -exec cp {} "$out/wheels/" \;
du -sh "$out"
