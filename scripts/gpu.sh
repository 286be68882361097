#!/usr/bin/env bash
# Tests and trains on a GPU machine that has no network and is available for minutes at a time.
#
#   scripts/gpu.sh prepare [DIR]
#       with a network: puts packages, and WikiText-2 from DIR or $LMBENCH_DATA_DIR/wikitext-2, into
#       build/gpu. Then copy the checkout with that folder. The machine must have torch and
#       lightning for $PYTHON (python3).
#   scripts/gpu.sh test [PYTEST_OPTIONS]
#       runs tests/gpu on that machine.
#   scripts/gpu.sh train RUN_DIR MINUTES [OVERRIDES]
#       starts a run, or resumes it exactly, and saves it after that many minutes. Exits with 75 if
#       the same command must be run again, and with 0 when the run is done. OVERRIDES, such as
#       experiment=awd_lstm_wikitext2 instead of awd_lstm_wikitext2_90, are read when it starts.
#
# Paths are relative to the checkout, but for DIR.
set -euo pipefail
here=$PWD
cd "$(dirname "$0")/.."
carried=build/gpu
packages=(hydra-core omegaconf antlr4-python3-runtime jaxtyping wadler-lindig rich markdown-it-py
  mdurl pygments pytest iniconfig pluggy beartype 'liger-kernel>=0.6.2')

prepare() {
  local data=${1:-${LMBENCH_DATA_DIR:+$LMBENCH_DATA_DIR/wikitext-2}} compiled
  make .venv/.ready-dev
  rm -rf "$carried"
  mkdir -p "$carried"
  # Of lmbench only the metadata is needed: its code is that in src. liger-kernel is not among the
  # packages tested here, since it needs a GPU.
  .venv/bin/python -m pip install --quiet --no-deps --no-compile --target "$carried/site" \
    --constraint <(.venv/bin/python -m pip freeze --exclude-editable) "${packages[@]}" .
  compiled=$(find "$carried/site" -name '*.so')
  if [[ -n $compiled ]]; then
    echo "Compiled for this machine, perhaps not for the other: $compiled" >&2
    exit 1
  fi
  if [[ -n $data ]]; then
    [[ $data == /* ]] || data=$here/$data
    mkdir "$carried/wikitext-2"
    cp "$data"/*.t* "$carried/wikitext-2/"
    .venv/bin/python -c 'import sys, lmbench.data.benchmarks as benchmarks
benchmarks.load_benchmark("wikitext2", sys.argv[1], cache_dir=sys.argv[2])' \
      "$carried/wikitext-2" "$carried/cache"
  fi
  du -sh "$carried"/*
}

train() {
  local run=$1 minutes=$2 quoted status=0 places=() arguments
  shift 2
  quoted="'${run//\'/\\\'}'" # as Hydra reads any path
  if [[ -e $run/results.json ]]; then
    cat "$run/results.json"
    exit
  fi
  # A resume does not remember the cache, without which it needs pyarrow.
  if [[ -e $carried/wikitext-2 && " $*" != *' data'[=.]* ]]; then
    places=("data.path=$carried/wikitext-2" "data.cache_dir=$carried/cache")
  fi
  if [[ -e $run/config.yaml ]]; then
    arguments=("resume=$quoted" "${places[@]}")
  else
    [[ " $*" == *' experiment='* ]] || set -- experiment=awd_lstm_wikitext2_90 "$@"
    arguments=(logger.tensorboard=null "hydra.run.dir=$quoted" "${places[@]}" "$@")
  fi
  # In a group of its own (set -m), so that Ctrl-C and a closed terminal reach it once, as SIGTERM
  # from here: of two signals, the second ends a run unsaved. A signal ends only the first wait.
  set -m
  timeout --foreground --preserve-status "${minutes}m" \
    "$python" -m lmbench.cli.train "${arguments[@]}" &
  trap 'kill -TERM $!' INT TERM HUP
  wait $! || status=$?
  while kill -0 $! 2>/dev/null; do wait $! && status=0 || status=$?; done
  [[ $status != 143 ]] || exit 75 # 128 + SIGTERM: stopped, and saved
  exit "$status"
}

python=${PYTHON:-python3}
command=${1-}
shift || true
if [[ $command == prepare ]]; then
  prepare "$@"
  exit
fi
export PYTHONPATH="$PWD/src:$PWD/$carried/site${PYTHONPATH:+:$PYTHONPATH}"
if [[ $command == test ]]; then
  exec "$python" -m pytest tests/gpu "$@"
elif [[ $command == train && $# -ge 2 && $2 =~ ^[0-9]+(\.[0-9]+)?$ ]]; then
  train "$@"
fi
sed -n 's/^# \{0,1\}//; 2,15p' "$0" >&2
exit 2
