# Each target first makes the environments it needs (see scripts/setup.sh); that is skipped when nothing changed.
# `make PYTHON=/path/to/python3.12 ...` chooses the interpreter.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:
ifdef PYTHON
export PYTHON
endif
BIN := .venv/bin

.PHONY: help setup runtime demo serve lint check test fuzz soak clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-7s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup:  ## Make .venv, and the environments of the clients' tests, if anything changed
	@scripts/setup.sh --clients

runtime:
	@scripts/setup.sh

demo: runtime  ## Kill everything under a session and watch it resume exactly where it was
	@$(BIN)/agentmem demo

serve: runtime  ## Run gateway, node agent and one worker on this machine (data in .agentmem)
	@$(BIN)/agentmem serve

lint: runtime
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict --package agentmem
	$(BIN)/mypy --strict scripts
	$(BIN)/lint-imports

check: lint  ## Linters, types, import contract and the quick tests
	$(BIN)/pytest tests/unit -m "not sglang"

test: setup lint  ## All of that and every test, with clients and the real engine among them
	$(BIN)/pytest tests

fuzz: setup  ## 20,000 and more requests made from the OpenAPI document (FUZZ_CASES=, FUZZ_SEED=)
	@$(BIN)/python -m tests.fuzz.run

soak: setup  ## Faults in full counts: make soak PART=store (SEED=, MINUTES=)
	@$(BIN)/python -m tests.soak.$(or $(PART),store)

clean:  ## Remove environments and caches (sessions and models in .agentmem stay)
	rm -rf .venv .venv-clients .venv-openai1 build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find agentmem tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +
