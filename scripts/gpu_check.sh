#!/usr/bin/env bash
# Checks lmbench on a machine with a CUDA device, torch and lightning, but without a network.
#
#   scripts/gpu_check.sh prepare [DIR]   with a network: puts what else that machine needs, and
#                                        WikiText-2 from DIR or $LMBENCH_DATA_DIR/wikitext-2, into
#                                        build/gpu_check, which is then copied with the checkout
#   scripts/gpu_check.sh [ARGUMENTS]     on that machine: runs gpu_check.py with $PYTHON (python3);
#                                        paths are relative to the checkout
set -euo pipefail
here=$PWD
cd "$(dirname "$0")/.."
carried=build/gpu_check
packages=(hydra-core omegaconf antlr4-python3-runtime jaxtyping wadler-lindig rich markdown-it-py
  mdurl pygments 'liger-kernel>=0.6.2')

fail() {
  echo "$*" >&2
  exit 1
}

prepare() {
  local data=${1:-${LMBENCH_DATA_DIR:+$LMBENCH_DATA_DIR/wikitext-2}} compiled
  make .venv/.ready-dev
  rm -rf "$carried"
  mkdir -p "$carried"
  # In the versions tested here, but for liger-kernel, which needs a GPU. Of lmbench only the metadata is needed; its code is that in src.
  .venv/bin/python -m pip install --quiet --no-deps --no-compile --target "$carried/site" \
    --constraint <(.venv/bin/python -m pip freeze --exclude-editable) "${packages[@]}" .
  compiled=$(find "$carried/site" -name '*.so')
  [[ -z $compiled ]] || fail "Compiled for this machine, perhaps not for the other: $compiled"
  if [[ -n $data ]]; then
    [[ $data == /* ]] || data=$here/$data
    mkdir "$carried/wikitext-2"
    cp "$data"/*.t* "$carried/wikitext-2/"
    .venv/bin/python -c 'import sys, lmbench.data.benchmarks as benchmarks
benchmarks.load_benchmark("wikitext2", sys.argv[1], cache_dir=sys.argv[2])' "$carried/wikitext-2" "$carried/cache"
  else
    echo "Without a corpus (prepare DIR) the check will not train on WikiText-2."
  fi
  du -sh "$carried"/*
}

if [[ ${1-} == prepare ]]; then
  prepare "${@:2}"
  exit
fi
export PYTHONPATH="$PWD/src:$PWD/$carried/site${PYTHONPATH:+:$PYTHONPATH}"
python=${PYTHON:-python3}
missing=$("$python" -c 'from importlib.util import find_spec
print(*(name for name in ("torch", "lightning", "hydra", "jaxtyping", "rich") if not find_spec(name)))')
[[ -z $missing ]] || fail "$python lacks $missing. Run '$0 prepare' where there is a network."
exec "$python" scripts/gpu_check.py "$@"
