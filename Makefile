# Every target sets the environment up first; `make setup` takes seconds when nothing changed.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
ROUTER := $(BIN)/mlx-router

.DEFAULT_GOAL := help
.PHONY: help setup train demo serve test test-page test-metal lint types fmt bench check clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup:  ## make .venv with the package, its extras and the MiniLM weights
	@$(PYTHON) scripts/setup_env.py $(VENV) $(if $(filter setup,$(MAKECMDGOALS)),--again)

train: setup  ## build the corpus splits, train, evaluate and activate a new router version
	$(ROUTER) router train

demo: setup  ## the whole system once, on the embedded default
	$(ROUTER) demo

serve: setup  ## gateway on :9300, specialists on :9360 and :9361, in the foreground
	$(BIN)/python scripts/prepare_serving.py
	$(ROUTER) serve

test: setup  ## every test that needs no network
	$(BIN)/python -m pytest --ignore=tests/page

test-page: setup  ## the page in headless Chromium (Debian: apt-get install chromium)
	$(BIN)/python -m pytest tests/page

lint: setup  ## ruff, rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup  ## mypy, strict
	$(BIN)/mypy

fmt: setup  ## format and fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup  ## side-by-side measurements; each ends in one JSON line
	$(BIN)/python -m benchmarks.encode
	$(BIN)/python -m benchmarks.adapters
	$(BIN)/python -m benchmarks.gateway

check: lint types test  ## what has to pass before a commit
	$(ROUTER) corpus check

clean:  ## remove .venv and caches
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
