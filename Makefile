# What can be made: `make help`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

# Which build of torch: cpu, cu130, or any other that PyTorch's own index has for the pinned version.
# Empty: what pip's configured index gives (on PyPI for Linux a CUDA build of several GB).
TORCH ?=
TORCH_VERSION := $(shell sed -n 's/^torch==//p' constraints.txt)
INSTALLED := $(VENV)/installed$(TORCH:%=-%)
# Twice quiet: errors in full, nothing else.
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check

# The runs that `make compare` takes, by default those of the race.
RUNS ?= 'qlora-*' 'lora-*' 'full-*'

# How long `make benchmark-gpu` may take; the next call continues from there.
MINUTES ?= 60

.PHONY: help setup repro twice test test-slow lint audit lock compare sweep benchmark benchmark-gpu clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1@/p' $(MAKEFILE_LIST) | while IFS=@ read -r name text; do printf '  make %-13s %s\n' "$$name" "$$text"; done

setup: $(INSTALLED) ## install the pinned packages into .venv (TORCH=cpu or TORCH=cu130 chooses torch's build)

$(INSTALLED): pyproject.toml constraints.txt requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; name one: make PYTHON=python3.12")'
	@echo "Installing the pinned packages into $(VENV): a few minutes."
ifeq ($(TORCH),)
	@command -v nvidia-smi > /dev/null || echo "No NVIDIA GPU found: 'make setup TORCH=cpu' takes a torch without CUDA, a tenth of the download."
endif
	@$(PYTHON) -m venv $(VENV)
ifneq ($(TORCH),)
	@$(PIP) --no-deps --index-url https://download.pytorch.org/whl/$(TORCH) 'torch==$(TORCH_VERSION)+$(TORCH)'
endif
	@$(PIP) --no-deps --require-hashes --requirement requirements.lock
# torch's builds have hashes of their own, one a build and index, and bring CUDA's packages.
	@$(PIP) --constraint constraints.txt 'torch==$(TORCH_VERSION)'
	@$(PIP) --no-deps --editable .
	@$(BIN)/python -m pip check > /dev/null || $(BIN)/python -m pip check
	@touch $@

repro: setup ## set up, run the pipeline, show the results
	@dvc repro
	@echo
	@finetune compare
	@printf '\nNext, after `source $(BIN)/activate`:\n  finetune chat --prompt "Write a haiku about spring"\n  dvc exp run -n qlora && dvc exp run -n full -S method=full\n  finetune compare qlora full\n'

twice: setup ## train and evaluate again from scratch; fails unless every byte comes out the same
	sha256sum models/tuned/* data/predictions/tuned.jsonl metrics/eval.json > .first.sha256
	dvc repro --force --single-item train eval
	sha256sum --check .first.sha256

# Two processes of one thread each: most of the time goes to commands that the tests start.
test: setup ## set up and pass the tests
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive pytest --numprocesses 2 --dist loadfile

test-slow: setup ## the shipped model, data and params end to end: ten minutes more
	pytest -m slow

lint: setup ## style and types
	ruff check .
	ruff format --check .
	mypy

audit: setup ## known faults of the pinned packages (needs the network)
	@$(PIP) pip-audit
	pip-audit --no-deps --disable-pip --requirement constraints.txt

lock: setup ## renew requirements.lock, the hashes of the versions in constraints.txt (needs the network)
	@$(PIP) uv
	@sed '/^torch==/d' constraints.txt | uv pip compile --quiet --no-deps --universal --generate-hashes --no-header \
	    --custom-compile-command 'make lock' - --output-file requirements.lock > /dev/null

compare: setup ## the documents' tables and plots/comparison.html of finished experiments (RUNS='qlora-1 full-1')
	finetune compare $(RUNS) --publish

sweep: setup ## search learning rates and epochs by the validation loss: about two hours and a half on 2 cores
	finetune sweep

benchmark: setup ## ours compared with TRL, the whole pipeline timed, plans checked: about an hour and a half on 2 cores, after `make repro`
	python benchmarks/cost.py
	python benchmarks/decoding.py
	python benchmarks/serving.py
	python benchmarks/pipeline.py
	python benchmarks/scale.py
	python benchmarks/storage.py
	python benchmarks/plan.py
	python benchmarks/plan.py --time
	python benchmarks/targets.py

benchmark-gpu: setup ## what only a GPU can show, part by part (MINUTES=10): docs/distributed.md
	python -m benchmarks.gpu --minutes $(MINUTES)

clean: ## remove .venv
	rm -rf $(VENV) *.egg-info
