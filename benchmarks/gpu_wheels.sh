#!/usr/bin/env bash
# Downloads the wheels that a machine with torch, triton, transformers and lightning, but without a network, lacks for
# benchmarks/gpu_check.py: the versions that requirements/ pins for its Python.
#   benchmarks/gpu_wheels.sh [FOLDER [PYTHON_VERSION [NAME...]]]       default: .whl 3.12
# NAMEs are further packages of that pin set, for a machine that lacks more.
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
folder=${1:-.whl}
python=${2:-3.12}
shift $(($# < 2 ? $# : 2))
pins=$here/../requirements/cpu-py312.txt
if [ "$python" = 3.11 ]; then pins=$here/../requirements/cpu.txt; fi

# What rollout=megatron imports and such a machine does not have, by a trace of what a run on a CPU imported.
names=(megatron-core nemo-toolkit hydra-core omegaconf antlr4-python3-runtime nv-one-logger-core
    nv-one-logger-training-telemetry nv-one-logger-pytorch-lightning-integration pydantic pydantic_core annotated-types
    typing-inspection typing_extensions overrides StrEnum toml)

platforms=()
for glibc in 2_28 2_27 2_24 2_17; do platforms+=(--platform "manylinux_${glibc}_x86_64"); done
platforms+=(--platform manylinux2014_x86_64)

mkdir -p "$folder"
for name in "${names[@]}" "$@"; do
    pin=$(grep -i "^${name}==" "$pins") || {
        echo "error: $pins has no $name" >&2
        exit 1
    }
    if [ "$name" = antlr4-python3-runtime ]; then # comes as source only, and is pure Python
        python3 -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir "$folder" "$pin"
    else
        python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --implementation cp \
            --python-version "$python" "${platforms[@]}" --dest "$folder" "$pin"
    fi
done
du -sh "$folder"
