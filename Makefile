PYTHON ?= python3.11
BIN := .venv/bin
STAMP := .venv/.complete

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-unit chaos lint check clean

help:  ## show this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

venv: $(STAMP)  ## install everything into .venv (once)

# torch comes first, by plain pip, so that it brings what this machine's build needs; constraints.txt says why the rest
# is installed without resolving.
$(STAMP): constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null || { \
		echo "$(PYTHON) is not Python 3.11: install it (with its venv module) or name it: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -r constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

demo: $(STAMP)  ## make, train, evaluate and compare a reward model on this machine
	$(BIN)/prm-ray demo

test: $(STAMP)  ## all tests: unit, integration (Ray on CPU, a real small model), chaos (kills)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations 30 tests

test-unit: $(STAMP)  ## tests without Ray, a few minutes
	$(BIN)/python -m pytest tests/unit

chaos: $(STAMP)  ## the tests that kill processes, with all kills
	PRM_RAY_CHAOS_KILLS=32 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations 30 tests/chaos

lint: $(STAMP)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint test-unit  ## style, types and unit tests, among them the import rules

clean:  ## remove .venv and caches (never runs/)
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache build dist
	find prm_ray jobs tests examples benchmarks -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true
