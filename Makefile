# Developer commands. `make` without a target prints this list.

SHELL := /usr/bin/env bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup demo docs lint format test test-all dist clean

VENV := .venv
BIN := $(VENV)/bin
# The first Python 3.11 or newer on PATH that runs (a name may be a shim that does not). The pinned versions are tested
# with 3.11. To use another one: make setup PYTHON=/path/to/python
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
# Two workers of one thread each: on few cores, more threads slow each other down.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile

help: ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(VENV)/.installed ## create .venv and install (again only after changes of pyproject.toml or constraints.txt)

$(VENV)/.installed: pyproject.toml constraints.txt
	@[[ -n "$(PYTHON)" ]] || { echo "error: no Python 3.11 or newer (with venv) on PATH; choose one: make setup PYTHON=..." >&2; exit 2; }
	[[ -x $(BIN)/python ]] || $(PYTHON) -m venv $(VENV)
	@echo 'installing into $(VENV): about 2 GB, some minutes'
	$(BIN)/python -m pip install -qq -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup ## generate a toy shop, train on it and write its report to demo/
	$(BIN)/msm4sr demo --out demo

# Not --quiet: --strict does not see warnings then.
docs: setup ## build the documentation site in site/; a broken link, a missing snippet or docstring is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

lint: setup ## check style, types and import contracts
	$(BIN)/ruff check src tests benchmarks scripts
	$(BIN)/ruff format --check src tests benchmarks scripts
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: setup ## fix style with ruff
	$(BIN)/ruff check --fix src tests benchmarks scripts
	$(BIN)/ruff format src tests benchmarks scripts

test: lint ## lint, then the fast tests
	$(PYTEST) -m 'not slow'

test-all: lint ## lint, then all tests, property tests with more cases
	$(PYTEST) --hypothesis-profile=thorough

dist: setup ## build the source archive and the wheel in dist/
	rm -rf dist
	$(BIN)/python -m build

clean: ## remove caches, built packages and the demo (.venv stays)
	rm -rf demo dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find src tests benchmarks scripts -name __pycache__ -type d -prune -exec rm -rf {} +
