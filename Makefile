# Each target sets up .venv by itself when it is missing or older than pyproject.toml.
#
#   make test ARGS="-k vocabulary"    ARGS goes to pytest; -n 0 for one process, -s or --pdb
#   make check PYTHON=python3.12      the interpreter that a new .venv is made with
#
# Which build of torch is installed (CPU or CUDA) follows from pip's own configuration.
# `make quickstart` installs what lmbench needs; the other targets also its tests and linters.

PYTHON ?= python3
ARGS ?=
BIN := .venv/bin
READY := .venv/.ready
DEV := .venv/.ready-dev
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
EXTRAS := .venv-extras

PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
CHECKS := "ruff check" "ruff format --check" pyright lint-imports

.PHONY: help quickstart test slow gpu check docs bench chaos extras clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-12s%s\n", $$1, $$2 }' Makefile

# Two jobs of one thread are faster than two threads for one job after the other.
quickstart: $(READY) ## compare an LSTM with an AWD-LSTM on the synthetic corpus; no download once installed
	$(BIN)/lmbench-train -m experiment=quickstart_lstm,quickstart_awd_lstm \
	  hydra/launcher=joblib hydra.launcher.n_jobs=2

test: $(DEV) ## run the fast tests
	$(PYTEST) -m "not slow and not gpu" -n logical --maxprocesses 8 $(ARGS)

# One at a time: slow tests start processes of their own, which would wait for each other.
slow: $(DEV) ## run the slow tests
	$(PYTEST) -m "slow and not gpu" -n 0 $(ARGS)

gpu: $(DEV) ## run the tests that need a CUDA device
	@$(PIP) -e '.[cuda]'
	$(PYTEST) -m gpu -n 0 $(ARGS)

check: $(DEV) ## run every linter and type checker, and fail if any of them does
	@failed=; \
	for command in $(CHECKS); do \
	  echo "--- $$command"; \
	  $(BIN)/$$command || failed="$$failed '$$command'"; \
	done; \
	test -z "$$failed" || { echo "Failed:$$failed" >&2; exit 1; }

docs: $(DEV) ## build the site of pages and API into build/docs; a broken link fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo 'To read and search: python3 -m http.server --directory build/docs'

bench: $(DEV) ## measure speed and memory of training and evaluation on this machine
	$(BIN)/python scripts/bench.py $(ARGS)

chaos: $(DEV) ## kill short runs again and again, and compare what comes of their resumes
	$(BIN)/python scripts/chaos.py $(ARGS)

extras: $(EXTRAS)/.ready ## start each launcher, sweeper, logger and tool of the extras once, with a network
	scripts/extras.sh $(EXTRAS)/bin

clean: ## remove builds and caches; environments, outputs/ and multirun/ stay
	rm -rf build dist .hypothesis .pytest_cache .ruff_cache .import_linter_cache
	find src tests scripts -name __pycache__ -prune -exec rm -rf {} +

# An editable install needs pip 21.3, and --group 25.1: newer than the one of many interpreters.
$(READY): pyproject.toml
	@test -x $(BIN)/pip || \
	  $(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' || { \
	  echo 'lmbench needs Python 3.10 to 3.13, and $(PYTHON) is not.' \
	    'Choose one by name: make PYTHON=python3.12 ...' >&2; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	@echo 'Installing lmbench and PyTorch into .venv, which takes minutes: 1.5 GB with the CPU' \
	  'build of PyTorch, several GB with CUDA.'
	@$(PIP) 'pip>=25.1'
	@$(PIP) -e . 'hydra-joblib-launcher>=1.2'
	@touch $@

$(DEV): $(READY)
	@echo 'Installing the tests and linters into .venv.'
	@$(PIP) -e . --group dev
	@touch $@

$(EXTRAS)/.ready: pyproject.toml
	test -x $(EXTRAS)/bin/pip || $(PYTHON) -m venv $(EXTRAS)
	$(EXTRAS)/bin/python -m pip install 'pip>=25.1'
	$(EXTRAS)/bin/python -m pip install -e '.[sweep,slurm,ray,wandb,mlflow,hf]' lm_eval --group test
	$(EXTRAS)/bin/python -m pip install --no-deps minGRU-pytorch==0.2.1 xlstm==2.0.6 fla-core==0.6.0 einops
	@touch $@
