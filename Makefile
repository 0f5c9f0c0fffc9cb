# Everything a person does with a checkout. `make help` lists it.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
PARALLEL ?= -n auto --dist loadfile
SEEDS ?= 2000

.DEFAULT_GOAL := help
.PHONY: help run test check chaos soak sim bench format clean distclean

help: ## Show this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo '  ARGS="..." is passed on, for example: make run ARGS=--once, make test ARGS="tests/unit -x"'

run: $(VENV)/.runtime ## Start everything, run the hello-world workflow, stay up until Ctrl-C
	@$(BIN)/python -m web.vendor || echo "the dashboard's pages need the command above; everything else works" >&2
	@exec $(BIN)/python -m cli up --demo $(ARGS)

test: $(VENV)/.dev ## Run all tests
	@$(BIN)/python -m web.vendor || echo "tests of the dashboard's pages will be skipped" >&2
	$(BIN)/python -m pytest $(PARALLEL) $(ARGS)

check: $(VENV)/.dev ## Lint, format check, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

chaos: $(VENV)/.dev ## Kill real processes at every named place, freeze them, cut wires (below 10 minutes)
	$(BIN)/python -m pytest -m chaos -n 2 --dist loadfile --show-capture=no tests/chaos $(ARGS)

soak: $(VENV)/.dev ## 10,000 instances while a process is killed every 1 to 3 seconds (about 20 minutes)
	$(BIN)/python -m tests.chaos.soak $(ARGS)

sim: $(VENV)/.dev ## Run the mesh on virtual time with seeded faults: make sim SEEDS=2000
	$(BIN)/python -m cli sim --seeds $(SEEDS) $(ARGS)

bench: $(VENV)/.dev ## Measure the router, the log, expressions, whole workflows, idle memory
	@for file in bench/[!_]*.py; do \
		name=$$(basename $$file .py); echo "== $$name"; $(BIN)/python -m bench.$$name $(ARGS) || exit 1; \
	done

format: $(VENV)/.dev ## Format the code and sort imports
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

clean: ## Remove caches and build results; keep .venv and data
	rm -rf .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .coverage .coverage.* htmlcov build dist *.egg-info
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -not -path './web/node_modules/*' -prune -exec rm -rf {} +

distclean: clean ## Also remove .venv and the dashboard's libraries
	rm -rf $(VENV) web/node_modules web/static/vendor

# The environment, made again when what it is made from changes.

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; give it as PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: requirements.txt pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

$(VENV)/.dev: requirements-dev.txt $(VENV)/.runtime | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@
