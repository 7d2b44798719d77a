# Every target makes the environment it needs; `make env` alone makes .venv and nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# One thread a process: tests and trials run side by side, and sums do not depend on the machine.
THREADS := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

.PHONY: help env demo test check lint format types bench clean

help:
	@echo "make env     the environment in $(VENV)"
	@echo "make demo    compare five methods on handwritten digits (1 to 2 minutes)"
	@echo "make test    the tests"
	@echo "make check   what a contributor runs before a commit: lint, format, types, tests"
	@echo "make bench   benchmarks, side by side with the peers"

env: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "gradwise needs Python 3.11 or newer: make PYTHON=/path/to/python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[lab]' --group dev
	@touch $(READY)

demo: env
	$(BIN)/gradwise compare --data digits --methods sgd,center,autoscale,znorm,clip --seeds 3 \
		--epochs 25 --out runs/demo

test: env
	$(THREADS) $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

check: lint types test

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: env
	$(BIN)/mypy

format: env
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: env
	$(BIN)/python benchmarks/step_cost.py
	$(BIN)/python benchmarks/trial_throughput.py

clean:
	rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
