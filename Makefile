# make repro: set up and run the pipeline.  make test: set up and pass the tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: setup repro twice test test-slow lint compare sweep benchmark clean

setup: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; name one: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[test]'
	touch $@

repro: setup
	dvc repro
	python stages/compare.py

# Train and evaluate again from scratch; fails unless every byte comes out the same.
twice: setup
	sha256sum models/tuned/* data/predictions/tuned.jsonl metrics/eval.json > .first.sha256
	dvc repro --force --single-item train eval
	sha256sum --check .first.sha256

test: setup
	pytest

test-slow: setup
	pytest -m slow

lint: setup
	ruff check .
	ruff format --check .

# The README's table and plots/comparison.html of finished experiments, by default those of the race.
RUNS ?= 'qlora-*' 'lora-*' 'full-*'
compare: setup
	python stages/compare.py $(RUNS) --readme

# Learning rate and epochs of each method, by the validation loss: about two hours on 2 cores.
sweep: setup
	python stages/sweep.py

# Ours beside TRL: about 45 minutes on 2 cores, after a `make repro`.
benchmark: setup
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[benchmark]'
	python benchmarks/cost.py
	python benchmarks/scale.py

clean:
	rm -rf $(VENV) *.egg-info
