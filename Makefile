# make quickstart   AMFT on two CPU cores       make test   every test       make help   the rest
# All targets build .venv first if it is not there; once it is, nothing here needs a network.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := /bin/bash

PYTHON ?= python3
ARGS ?=
MINUTES ?= 10
SEED ?= 1

# The Python that decides which pins are taken: PYTHON where it is given, else that of a .venv that is there.
BUILT := $(if $(filter file,$(origin PYTHON)),$(if $(wildcard .venv/.building),,$(wildcard .venv/bin/python)))
INTERPRETER := $(shell $(or $(BUILT),$(PYTHON)) -c 'import sys; print("%d.%d" % sys.version_info[:2], sys._base_executable)' 2>/dev/null)
VERSION := $(firstword $(INTERPRETER))
BASE := $(wordlist 2,99,$(INTERPRETER))

PINS := $(if $(filter 3.11,$(VERSION)),requirements/cpu.txt,requirements/cpu-py312.txt)
REQUIREMENTS := $(PINS) requirements/dev.txt requirements/torch-cuda.txt
# Named by the content of what it was built from, not by file times: a fresh checkout or a switched branch does not rebuild it.
STAMP := .venv/.built-$(VERSION)-$(shell cat $(REQUIREMENTS) pyproject.toml | cksum | cut -d ' ' -f 1)
PIP := requirements/install.sh .venv/bin/python

.PHONY: help venv quickstart study slurm-demo test test-slurm test-fast test-export fuzz soak bench gpu-check lint clean

help:
	@echo 'make quickstart [ARGS="trainer.seed=2 ..."]   train a small model with AMFT on two CPU cores'
	@echo 'make study [ARGS="--only amft,grpo"]          the runs of docs/study.md, or some, resumably, on two cores (hours)'
	@echo 'make test                                     every test; those on a real Slurm where it is installed'
	@echo 'make test-slurm                               these alone (root; tests/slurm/local_slurm.sh install)'
	@echo 'make test-fast                                unit tests that are not slow'
	@echo 'make test-export                              an exported hf/ in transformers 4.51 and 4.57, from pip (not part of test)'
	@echo 'make fuzz [MINUTES=n SEED=s]                  files, command lines and answers that nobody expects (tests/fuzz/)'
	@echo 'make soak [MINUTES=n SEED=s]                  tiny runs killed, stopped and damaged at random, and continued (tests/soak/)'
	@echo 'make bench                                    benchmarks of speed and memory, on an idle machine (half an hour)'
	@echo 'make gpu-check [ARGS="--wheels .whl"]         checks a machine with one GPU; without one, at reduced size'
	@echo 'make lint                                     ruff and shellcheck'
	@echo 'make slurm-demo [ARGS="trainer.max_steps=20"]   the quickstart by sbatch, on a Slurm of two nodes started for it (root)'
	@echo 'make venv [PYTHON=python3.12]                 build .venv from requirements/'
	@echo 'make clean                                    remove caches and .venv; runs/ stays'

venv: $(STAMP)

# A .venv that an interrupted build left behind is started anew: pip may take a half-copied package for a whole one. So is one of
# another Python. A whole one, built here for other requirements or by you, only gets what differs.
$(STAMP):
	@case '$(VERSION)' in 3.11 | 3.12 | 3.13) ;; *) \
	    echo "error: $(PYTHON) is $$($(PYTHON) --version 2>/dev/null || echo 'not found'), expected Python 3.11, 3.12 or 3.13:" \
	         'make venv PYTHON=python3.12' >&2; exit 1 ;; esac
	@if [ -e .venv/.building ] || ! .venv/bin/python -m pip --version 2>/dev/null | grep -q '(python $(VERSION))'; then \
	    '$(BASE)' -m venv --clear .venv; fi
	@touch .venv/.building
	@echo 'installing $(PINS) and requirements/dev.txt into .venv (a few minutes)'
	@$(PIP) -r $(PINS) -r requirements/dev.txt
	@if grep -q "^cuda.* = '" .venv/lib/python*/site-packages/torch/version.py; then \
	    echo 'pip found no CPU build of torch, so the build for CUDA gets what it loads: 3 GB to download, 6 GB on disk, no GPU needed.'; \
	    echo 'A CPU build does with a tenth of that: "torch" in requirements/README.md.'; \
	    $(PIP) -r requirements/torch-cuda.txt; fi
	@.venv/bin/python -c 'import torch; torch.ones(2, 2) @ torch.ones(2, 2)' || { \
	    echo 'error: the torch that pip found does not run here: see "torch" in requirements/README.md' >&2; exit 1; }
	@$(PIP) --quiet --editable .
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

# In environments of their own, .venv-export-*, with .venv's torch.
test-export: venv
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -rs tests/export

# The same SEED draws the same inputs, for as long as it may: benchmarks/results/fuzz.json adds the sittings up.
fuzz: venv
	nice -n 19 .venv/bin/python -m tests.fuzz --minutes $(MINUTES) --seed $(SEED) $(ARGS)

# Its runs lie on a small tmpfs where one may be mounted (root), so that a disk can be filled.
soak: venv
	OMP_NUM_THREADS=1 nice -n 19 .venv/bin/python -m tests.soak --minutes $(MINUTES) --seed $(SEED) $(ARGS)

bench: venv
	for benchmark in meta_update training_flops cost_growth plan_memory; do .venv/bin/python benchmarks/$$benchmark.py || exit; done

# Needs no .venv: a machine with a GPU has a torch of its own (docs/gpu_check.md).
gpu-check:
	$(or $(wildcard .venv/bin/python),$(PYTHON)) benchmarks/gpu_check.py $(ARGS)

lint: venv
	.venv/bin/ruff check
	find . -name '.venv*' -prune -o -name '*.sh' -print0 | xargs -0 .venv/bin/shellcheck .ci/run

clean:
	rm -rf .venv .venv-export-* build dist .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
