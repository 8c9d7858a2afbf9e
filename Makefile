# One virtual environment, made on first use and kept; delete .venv to start afresh.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

.PHONY: demo test check lint types bench clean
.DEFAULT_GOAL := demo

demo: $(VENV)/.ready            ## the main job: minima, paths, ensemble, scans and a report, on digits
	$(BIN)/lowloss experiment=quickstart

test: $(VENV)/.ready            ## all tests
	$(BIN)/pytest -n auto --dist worksteal --durations 15

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.ready
	$(BIN)/mypy

bench: $(VENV)/.ready           ## the engine against a plain loop, on this machine's device
	$(BIN)/python scripts/bench_engine.py

check: lint types test demo     ## everything that has to pass before a change lands

$(VENV)/.ready: pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if (3, 10) <= v[:2] <= (3, 13) else \
	  f"lowloss needs Python 3.10 to 3.13, and {sys.executable} is {v[0]}.{v[1]}: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	@# uv installs several times faster; without it pip does the same. Both compile what they install to bytecode.
	@command -v uv >/dev/null || $(BIN)/pip install --quiet uv || true
	@PATH="$(CURDIR)/$(BIN):$$PATH"; if command -v uv >/dev/null; \
	  then uv pip install --compile-bytecode --python $(BIN)/python -e '.[dev]'; \
	  else $(BIN)/pip install -e '.[dev]'; fi
	@touch $@

clean:                          ## remove the environment, caches and builds; outputs stay
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache src/*.egg-info
