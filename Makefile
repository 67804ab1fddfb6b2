# A fresh machine needs Python 3.11 or newer with pip, make and git; everything else is installed into .venv.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

.PHONY: help setup demo test results lint types unit format clean

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort

setup: $(VENV)/.installed  ## install everything into .venv

# uv resolves and installs in seconds where pip takes minutes; it comes from the same package index. It compiles to
# bytecode only when told to; without, where PYTHONDONTWRITEBYTECODE is set, every process compiles torch anew (4 s).
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: setup  ## the whole story on this machine, no network needed
	$(BIN)/hapi demo

test: lint types unit  ## what CI runs

results: setup  ## run every benchmark anew into benchmarks/results (hours, on a quiet machine)
	$(BIN)/hapi bench all --results benchmarks/results

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

unit: setup
	$(BIN)/pytest -q -n 2

format: setup  ## rewrite the sources in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove what was installed and cached
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
