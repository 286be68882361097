#!/usr/bin/env bash
# Runs each launcher, sweeper and logger of the extras once for real, on the synthetic corpus, and
# checks that every job finished; then tests models in lm-evaluation-harness, and cores against
# published code. Called by `make extras`, which installs the extras first.
set -euo pipefail
bin=$(cd "${1:?usage: scripts/extras.sh FOLDER_OF_COMMANDS}" && pwd)
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export RAY_USAGE_STATS_ENABLED=0

tiny=(
  model=lstm model.embedding_size=8 model.core.hidden_size=8 data=synthetic data.num_words=40
  data.num_train_tokens=1000 data.num_valid_tokens=200 data.num_test_tokens=200
  batching.batch_size=4 batching.bptt=5 evaluation.columns=2 evaluation.burn_in=8
  trainer.accelerator=cpu trainer.max_epochs=1
)

sweep() { # NAME ARGUMENTS...: runs a sweep of two jobs
  local name=$1 start=$SECONDS jobs
  shift
  printf '\n=== %s: %s\n' "$name" "$*"
  "$bin/lmbench-train" -m "${tiny[@]}" "hydra.sweep.dir=$work/$name" "$@" >"$name.log" 2>&1 || {
    tail -n 40 "$name.log"
    exit 1
  }
  jobs=$(find "$name" -name results.json | wc -l)
  if ((jobs != 2)); then
    tail -n 40 "$name.log"
    echo "$jobs of 2 jobs have results" >&2
    exit 1
  fi
  "$bin/lmbench-compare" "$name" >/dev/null
  printf '=== passed in %d s: %s\n' $((SECONDS - start)) "$name"
}

again() { # NAME ARGUMENTS...: resumes the same sweep, which must not redo a job
  local name=$1 before after
  before=$(ls -li "$name"/*/results.json) # with inodes, since writing a file replaces it
  shift
  "$bin/lmbench-train" -m "${tiny[@]}" "hydra.sweep.dir=$work/$name" "$@" sweep_resume=true \
    >"$name.log" 2>&1 || {
    tail -n 40 "$name.log"
    exit 1
  }
  after=$(ls -li "$name"/*/results.json)
  if [[ $before != "$after" ]]; then
    echo "$name: a finished job was done again" >&2
    exit 1
  fi
  printf '=== passed: %s resumed\n' "$name"
}

recorded() { # NAME NUMBER: fails unless NUMBER, of runs recorded separately, is 2
  if (($2 != 2)); then
    echo "$1: $2 of 2 jobs are recorded" >&2
    exit 1
  fi
}

sweep wandb seed=1,2 logger=wandb logger.wandb.offline=true
recorded wandb "$(find wandb -name '*.wandb' | sed 's/.*run-//' | sort -u | wc -l)"
export MLFLOW_TRACKING_URI="sqlite:///$work/mlflow.db"
sweep mlflow seed=1,2 logger=mlflow
recorded mlflow "$(cat mlflow/*/mlflow_run_id | sort -u | wc -l)"

joblib=(seed=1,2 hydra/launcher=joblib hydra.launcher.n_jobs=2)
submitit=(seed=1,2 hydra/launcher=submitit_local hydra.launcher.cpus_per_task=1)
ray=(seed=1,2 hydra/launcher=ray +hydra.launcher.ray.init.num_cpus=2)
sweep joblib "${joblib[@]}"
again joblib "${joblib[@]}"
sweep optuna hparams_search=lstm hydra.sweeper.n_trials=2
sweep optuna_adam model=awd_lstm hparams_search=adam hydra.sweeper.n_trials=2
grep -q '_target_: torch.optim.Adam$' optuna_adam/*/config.yaml
sweep submitit_local "${submitit[@]}"
again submitit_local "${submitit[@]}"
sweep ray "${ray[@]}"
again ray "${ray[@]}"
(cd "$root" && "$bin/python" -m pytest \
  tests/test_hf_lm_eval.py tests/instantiate/test_loggers.py tests/model/core/test_references.py)
printf '\n=== all passed in %d s\n' "$SECONDS"
