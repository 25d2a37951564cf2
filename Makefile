# Each target first makes .venv (see scripts/setup.sh); that is skipped when nothing changed.
# `make PYTHON=/path/to/python3.12 ...` chooses the interpreter.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:
ifdef PYTHON
export PYTHON
endif
BIN := .venv/bin

.PHONY: help setup demo serve lint check test clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-7s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup:  ## Make .venv with everything, if anything changed
	@scripts/setup.sh

demo: setup  ## Kill everything under a session and watch it resume exactly where it was
	@$(BIN)/agentmem demo

serve: setup  ## Run gateway, node agent and one worker on this machine (data in .agentmem)
	@$(BIN)/agentmem serve

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict --package agentmem
	$(BIN)/mypy --strict scripts/environment.py
	$(BIN)/lint-imports

check: lint  ## Linters, types, import contract and the quick tests
	$(BIN)/pytest tests/unit -m "not sglang"

test: lint  ## All of that and every test, with the real engine among them
	$(BIN)/pytest tests

clean:  ## Remove .venv and caches (sessions and models in .agentmem stay)
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find agentmem tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +
