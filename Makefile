# make demo   train, route, report: the whole library in a few minutes on two CPU cores
# make test   lint, types and tests
# make test-browser   the dashboard's tests in a headless Chromium
# make test-notebooks   run docs/notebooks
# make test-tiles   compile every tile of the GPU kernels, for compute capability 8.0 and 9.0, without a GPU
# make test-gpu   the tests that need an NVIDIA GPU
# All build .venv first (make install) and need only Python 3.11 or newer with pip.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# The first interpreter that is new enough; `make install PYTHON=/path/to/python3.12` overrides it.
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
CANDIDATES := python3 python3.14 python3.13 python3.12 python3.11 python
PYTHON ?= $(shell for p in $(CANDIDATES); do "$$p" -c '$(NEW_ENOUGH)' 2>/dev/null && echo "$$p" && break; done)

.PHONY: install demo test test-browser test-notebooks test-tiles test-gpu lint clean
.DEFAULT_GOAL := install

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" && "$(PYTHON)" -c '$(NEW_ENOUGH)' || { \
	  echo "turnout needs Python 3.11 or newer; found: $$($(or $(PYTHON),python3) --version 2>&1 | tail -n 1)." >&2; \
	  echo "Install one and run: make install PYTHON=/path/to/python3.11" >&2; exit 1; }
	"$(PYTHON)" -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -e '.[dev]' -c constraints.txt
	@touch $@

demo: install
	$(BIN)/turnout demo

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Tests run side by side, one thread each.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n auto --maxprocesses 8 --dist worksteal

# The dashboard in a headless Chromium: every view, live, exports, keyboard, accessibility.
# What drives the browser is no part of the development install, which the demo uses too.
test-browser: install
	$(BIN)/python -m pip install --disable-pip-version-check -q -e '.[browser]' -c constraints.txt
	$(BIN)/pytest -q -m browser

# The notebooks of docs/notebooks, from their first cell to their last.
test-notebooks: install
	$(BIN)/pytest -q -m notebook

# Every tile of the attention kernels with every option, compiled for GPUs that are not here: none may spill a register
# or need more shared memory than its device has. Minutes, in as many processes as there are cores.
test-tiles: install
	$(BIN)/pytest -q -m tiles

# On a machine with an NVIDIA GPU: the compiled kernels, their memory, graphs and determinism.
test-gpu: install
	$(BIN)/pytest -q -m gpu

# Runs are kept: they are the user's work.
clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
