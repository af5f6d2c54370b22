#!/bin/bash
# Runs these examples as far as a machine without Docker, Kubernetes, Slurm or a GPU can, and lints them where the linters are.
#   examples/deploy/check.sh target/release/ropejit        needs NVRTC for the kernels of the pack; as root it also plays a pod's user
set -euo pipefail
program=$(realpath "$1")
here=$(dirname "$(realpath "$0")")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
install -m 755 "$program" "$work/ropejit"
mkdir -p "$work/models/a" "$work/home" "$work/runner"
export HOME=$work/home PATH=$work:$PATH
unset ROPEJIT_CACHE_DIR ROPEJIT_CACHE_PATH
cp "$here/../../tests/data/configs/llama-3.1-8b.json" "$work/models/a/config.json" 2>/dev/null ||
    echo '{"model_type":"llama","hidden_size":4096,"num_attention_heads":32,"num_key_value_heads":8,"rope_theta":500000.0,"max_position_embeddings":8192}' > "$work/models/a/config.json"
say() { printf '%-14s %s\n' "$1" "$2"; }

ropejit pack keygen --key "$work/ropejit.key" > "$work/key.txt" 2>/dev/null
key=$(cat "$work/key.txt")
store=file://$work/store

# The job's last step as it stands, with what GitHub would fill in.
step=$(sed -n '/name: Pull, make/,$p' "$here/github-actions.yml" | sed '1,/run: |/d' | sed 's/^          //')
for arch in sm_80 sm_90; do
    # shellcheck disable=SC2016
    text=${step//'${{ matrix.arch }}'/$arch}
    # shellcheck disable=SC2016
    text=${text//'${{ vars.ROPEJIT_PUBKEY }}'/$key}
    (cd "$work" && PACKS=$store RUNNER_TEMP=$work/runner ROPEJIT_SIGNING_KEY=$(cat "$work/ropejit.key") bash -euo pipefail -c "$text" > "$work/ci.txt" 2>&1) ||
        { cat "$work/ci.txt"; exit 1; }
done
chmod -R a+rX "$work/store" # the step's umask keeps the key from others, and so this store
say "GitHub Actions" "the step ran for sm_80 and sm_90: $(find "$work/store" -name '*.pack' | wc -l) packs pushed"

# The image's pull, as root would run it, and what another user finds.
ropejit pull "$store" --arch sm_90 --pubkey "$key" --into "$work/share/packs" --required --timeout 60 2> /dev/null
chmod -R a+rX "$work/share"
listed() { ROPEJIT_CACHE_PATH=$1 HOME=/nonexistent "${@:2}" "$work/ropejit" inspect list --json | grep -c '"key"'; }
as_user=()
if [ "$(id -u)" = 0 ]; then as_user=(setpriv --reuid 10001 --regid 10001 --clear-groups); fi
say Dockerfile "the pull ran; ${as_user[*]:-this user} reads $(listed "$work/share/packs" "${as_user[@]}") entries"

# The init container, in a folder as an emptyDir is, and the server beside it.
if [ "$(id -u)" = 0 ]; then
    mkdir -m 777 "$work/packs" && chmod 777 "$work/packs"
    HOME=/nonexistent "${as_user[@]}" "$work/ropejit" pull "$store" --arch sm_90 --into "$work/packs" --timeout 30 --pubkey "$key" 2> /dev/null
    say pod.yaml "the init container's command ran as 10001 in an emptyDir; the server reads $(listed "$work/packs" "${as_user[@]}") entries"
else
    say pod.yaml "not run: this is not root"
fi

# The prolog, twice: with a store, and with one that is away.
tail -n 1 "$work/key.txt" > "$work/packs.pub"
export ROPEJIT_PUBKEY_FILE=$work/packs.pub ROPEJIT_PACKS_FOLDER=$work/node/packs ROPEJIT_PROGRAM=$work/ropejit ROPEJIT_ARCH=sm_90
ROPEJIT_PACKS=$store "$here/slurm-prolog.sh"
say slurm-prolog "exit 0, $(find "$work/node/packs" -maxdepth 1 -name 'pack-*' | wc -l) pack installed"
ROPEJIT_PACKS=file:///nonexistent "$here/slurm-prolog.sh"
say slurm-prolog "exit 0 where the store is away"

lint() {
    if ! command -v "$1" > /dev/null; then
        say "$1" "not there"
    elif "$@" > "$work/lint.txt" 2>&1; then
        say "$1" ok
    else
        cat "$work/lint.txt"
        exit 1
    fi
}
lint shellcheck "$here/slurm-prolog.sh" "$here/check.sh"
lint hadolint "$here/Dockerfile"
lint kubernetes-validate --strict "$here/pod.yaml"
lint check-jsonschema --builtin-schema vendor.github-workflows "$here/github-actions.yml"
lint yamllint -d '{extends: relaxed, rules: {line-length: {max: 160}}}' "$here/pod.yaml" "$here/github-actions.yml"
