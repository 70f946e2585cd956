# What a fresh clone needs: Python 3.11 or newer, git and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -q -c constraints.txt

.PHONY: help demo test slow lint bench clean

help:
	@echo "make demo    install, train the quickstart recipe for about two minutes, print a sample"
	@echo "make test    install, run the test suite"
	@echo "make slow    run the slow tests too"
	@echo "make lint    check style"
	@echo "make bench   CPU benchmark against transformers' Llama"

$(VENV)/python.stamp:
	$(PYTHON) -c 'import sys; sys.exit("mixlab needs Python 3.11 or newer; set PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/core.stamp: $(VENV)/python.stamp pyproject.toml constraints.txt
	@echo "Installing mixlab and what it needs into $(VENV) (PyTorch is large: this can take minutes)"
	$(PIP) -e .
	@touch $@

$(VENV)/dev.stamp: $(VENV)/core.stamp
	@echo "Installing what the tests need into $(VENV)"
	$(PIP) -e ".[dev]"
	@touch $@

demo: $(VENV)/core.stamp
	$(BIN)/mixlab train quickstart train.length="100 seconds"

test: $(VENV)/dev.stamp
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

slow: $(VENV)/dev.stamp
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "slow and not gpu"

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: $(VENV)/dev.stamp
	$(BIN)/python benchmarks/cpu_training.py

clean:
	rm -rf $(VENV) build dist *.egg-info
