#!/usr/bin/env bash
# Trains experiment=awd_lstm_wikitext2_90 on a machine that is available for minutes at a time.
#
#   scripts/gpu_reproduce.sh RUN_DIR MINUTES [OVERRIDES]
#
# starts the run, or resumes it, and saves it after that many minutes. Each piece resumes exactly
# where the last one stopped (tried on a CPU only). Exit status: 0 when the run is done, 75 when
# the same command must be run again. After `scripts/gpu_check.sh prepare DIR` it needs no network,
# and finds WikiText-2; $PYTHON (python3) must have torch and lightning. Paths are relative to the
# checkout. OVERRIDES are read when the run starts; a resume keeps them.
set -euo pipefail
[[ $# -ge 2 && $2 =~ ^[0-9]+(\.[0-9]+)?$ ]] || { sed -n 's/^# \{0,1\}//; 2,10p' "$0" >&2; exit 2; }
cd "$(dirname "$0")/.."
run=$1 minutes=$2
quoted="'${run//\'/\\\'}'" # as Hydra reads any path
carried=build/gpu_check
export PYTHONPATH="$PWD/src:$PWD/$carried/site${PYTHONPATH:+:$PYTHONPATH}"
if [[ -e $run/results.json ]]; then
  cat "$run/results.json"
  exit
fi
places=() # a resume does not remember the cache, without which it needs pyarrow
if [[ -e $carried/wikitext-2 && " ${*:3}" != *' data'[=.]* ]]; then
  places=("data.path=$carried/wikitext-2" "data.cache_dir=$carried/cache")
fi
if [[ -e $run/config.yaml ]]; then
  arguments=("resume=$quoted" "${places[@]}")
else
  arguments=(experiment=awd_lstm_wikitext2_90 logger.tensorboard=null "hydra.run.dir=$quoted")
  arguments+=("${places[@]}" "${@:3}")
fi
status=0
# In a group of its own (set -m), so that Ctrl-C and a closed terminal reach it once, as SIGTERM from
# here: of two signals, the second ends a run unsaved. A signal ends only the first wait.
set -m
timeout --foreground --preserve-status "${minutes}m" \
  "${PYTHON:-python3}" -m lmbench.cli.train "${arguments[@]}" &
trap 'kill -TERM $!' INT TERM HUP
wait $! || status=$?
while kill -0 $! 2>/dev/null; do wait $! && status=0 || status=$?; done
[[ $status != 143 ]] || exit 75 # 128 + SIGTERM: stopped, and saved
exit "$status"
