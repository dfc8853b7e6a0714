# Every target works in a fresh clone with nothing but Python 3.11+ and make; the first one makes .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# On Linux MLX needs a backend: cpu (default) or cuda13. On a Mac the plain wheel holds Metal.
BACKEND ?= cpu

.PHONY: setup demo test test-fast check format docs clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 14) else "qlorad needs Python 3.11 to 3.13; this is %d.%d. Set PYTHON=python3.12, say." % sys.version_info[:2])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$(BACKEND)]' --group dev
	@touch $@

demo: $(STAMP)
	$(BIN)/qlora demo

# Files are dealt to this many processes, the long ones first; the tests of one file stay together.
JOBS ?= 2

test: $(STAMP)
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder

test-fast: $(STAMP)
	$(BIN)/python -m pytest tests/unit

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP)
	$(BIN)/python -c 'from qlora_engine.job.vocabulary import as_markdown; print(as_markdown(), end="")' > docs/events.md

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache dist build
