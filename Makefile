# Every target works in a fresh clone with nothing but Python 3.11+ and make; the first one makes .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# On Linux MLX needs a backend: cpu (default) or cuda13. On a Mac the plain wheel holds Metal.
BACKEND ?= cpu

.PHONY: setup demo test test-fast test-external fuzz faults check format docs site screens transcript
.PHONY: wheel wheel-test formula clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 14) else "qlorad needs Python 3.11 to 3.13; this is %d.%d. Set PYTHON=python3.12, say." % sys.version_info[:2])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$(BACKEND)]' --group dev
	@touch $@

demo: $(STAMP)
	$(BIN)/qlora demo

# Files are dealt to this many processes, the long ones first; the tests of one file stay together. Twice as many as
# cores, for many tests wait for a daemon.
JOBS ?= 4

test: $(STAMP)
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder

test-fast: $(STAMP)
	$(BIN)/python -m pytest tests/unit

# The same daemon against a server of your own, which must have nothing else in it: a test wipes it.
#   make test-external REDIS_URL=redis://:password@127.0.0.1:6379/0
test-external: $(STAMP)
	@test -n "$(REDIS_URL)" || { echo 'Name the server: make test-external REDIS_URL=redis://:password@127.0.0.1:6379/0'; exit 64; }
	QLORAD_REDIS_URL='$(REDIS_URL)' $(BIN)/python -m pytest tests/integration tests/acceptance/test_first_light.py -m "not embedded"

# Job files that are nearly right, drawn anew each time; `make test` holds a fixed few hundred of them.
FILES ?= 5000

fuzz: $(STAMP)
	QLORA_TEST_FILES=$(FILES) $(BIN)/python -m pytest tests/unit/test_malformed.py

# Half an hour on two cores; a table at the end, and docs/faults.md. SEED=N repeats the order of an earlier run.
COUNT ?= 200

faults: $(STAMP)
	PYTHONPATH=tests $(BIN)/python -m faults --count $(COUNT) $(if $(SEED),--seed $(SEED)) --write

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The pages of docs/ that are made from the code.
docs: $(STAMP)
	PYTHONPATH=tools $(BIN)/python -m reference

# The documentation as a site, into build/site. A link that leads nowhere is an error; no network is needed.
site: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo 'Open build/site/index.html, or, to search in it: python3 -m http.server -d build/site'

# A newcomer's first ten minutes, typed in a terminal of its own, as they stand in docs/first-job.md: some minutes, and a
# network.
transcript: $(STAMP)
	PYTHONPATH=tests $(BIN)/python -m newcomer --write

# The pictures of the terminal, in docs/screens.
screens: $(STAMP)
	PYTHONPATH=tools $(BIN)/python -m screens

# The wheel and the source distribution, into dist/.
wheel: $(STAMP)
	rm -rf dist
	$(BIN)/python -m hatchling build --target wheel --target sdist

# Installs the wheel as users do, far from the source, and runs `qlora demo` there: some minutes, and a network, for each.
BY ?= pip uv pipx

wheel-test: wheel
	for by in $(BY); do $(BIN)/python packaging/try_install.py dist/*.whl --by $$by || exit 1; done

#   make formula URL=https://…/qlorad-0.1.0.tar.gz > qlorad.rb
formula: $(STAMP)
	@test -n "$(URL)" || { echo 'Say where the source distribution will lie: make formula URL=https://…'; exit 64; }
	@$(MAKE) --silent wheel >&2
	@$(BIN)/python packaging/formula.py dist/*.tar.gz '$(URL)'

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache dist build
