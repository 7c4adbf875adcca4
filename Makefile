# The two commands of the README are `quickstart` and `test`; each does the whole set-up first.
# `make PYTHON=python3.12 ...` chooses the interpreter.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: help setup quickstart test lint format bench clean

help:  ## show this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 14

setup: $(READY)  ## create .venv and install the pinned dependencies, their hashes checked

# scripts/install.py refuses a file whose hash is not in constraints.txt.
# The stamp: made last, so that an interrupted install is begun again; older than what it was
# made from, so that a changed pin is installed.
$(READY): pyproject.toml constraints.txt constraints-cuda.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Overnight needs Python 3.11 or newer; '$(PYTHON)' is older or missing. Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -m venv .venv || { \
	  echo "python -m venv failed (on Debian and Ubuntu: apt install python3-venv)"; exit 1; }
	$(BIN)/python scripts/install.py
	@touch $@

quickstart: $(READY)  ## prepare, train, evaluate, sample and report a small GPT (CPU, a few minutes)
	$(BIN)/overnight prepare stdlib
	$(BIN)/overnight train quickstart
	$(BIN)/overnight eval runs/quickstart
	$(BIN)/overnight sample runs/quickstart --prompt "def main(" --samples 2 --length 120
	$(BIN)/overnight report runs/quickstart

test: lint  ## lint, types and all tests
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

lint: $(READY)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)  ## rewrite the code in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)  ## measure the README's CPU figures again (under 10 minutes, an otherwise idle machine)
	$(BIN)/python benchmarks/run.py

clean:  ## remove the virtual environment and caches (data/ and runs/ stay)
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache build dist src/*.egg-info
