# A fresh clone needs Python 3.11 or later with pip, and make. Everything is installed into .venv, and again only
# after pyproject.toml or constraints.txt has changed.
#
#   make demo                   the whole pipeline on the embedded network, into build/demo
#   make test                   the tests, but the slow ones
#   make test-all               all of them, the blocks in README.md and docs/, tutorials and drills among them
#   make check                  what CI runs: lint, types, documentation, tests
#   make docs                   the documentation, into build/site
#   make screenshots            the demo's report at 360 and 1,600 px, light and dark, into build/screenshots (Chromium)
#   make wheel                  wheel and sdist, tried in an environment of their own outside the sources
#   make audit                  dependencies that contradict each other, or have known vulnerabilities
#   make coverage               branches of curvature, allocate and arith that their own tests reach
#   make mutants                mutants of them that their own tests miss (MUTANTS=300); goes on where it was stopped
#   make test PYTEST_ARGS=...   more options for pytest, for example "-m 'not slow and not data'"
#   make test WORKERS=8         in so many processes at once (2)
#   make ... PYTHON=python3.12  the Python that the environment is made from

PYTHON ?= python3
PYTEST_ARGS ?=
WORKERS ?= 2
MUTANTS ?= 40
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DELETE_ON_ERROR:
.PHONY: env demo test test-all check lint format types docs screenshots wheel audit coverage mutants clean distclean

env: $(STAMP)

# torch goes first and by itself, at the version that constraints.txt pins, so that nothing else decides which
# build of it is taken; pip's own settings say where it comes from.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "bitwright needs Python 3.11 or later: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@echo "installing into $(VENV) (some minutes the first time)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt torch
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev,docs,bench,graph,interop,robust]'
	@touch $@

demo: env
	$(BIN)/bitwright demo --out build/demo

# a thread each, and memory that is kept: threads that wait for each other, and pages that are given back and asked for
# again, take more time than the small networks of the tests do
PYTEST := OMP_NUM_THREADS=1 MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=8589934592 \
  $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup

test: env
	$(PYTEST) -m "not slow" $(PYTEST_ARGS)

test-all: env
	$(PYTEST) $(PYTEST_ARGS)

# the import direction is a test: tests/test_import_direction.py
check: lint types docs wheel audit test-all

lint: env
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

format: env
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: env
	$(BIN)/mypy

docs: env
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

screenshots: demo
	$(BIN)/python .ci/screenshots.py build/demo/report.html build/screenshots

# the wheel is built from the sdist; what runs lies outside the sources
wheel: env
	@rm -rf build/wheel && mkdir -p build/wheel/away
	$(BIN)/python -m build --outdir build/wheel . >build/wheel/build.log 2>&1 || { cat build/wheel/build.log; exit 1; }
	$(PYTHON) -m venv build/wheel/venv
	build/wheel/venv/bin/python -m pip install -qq --disable-pip-version-check -c constraints.txt torch
	build/wheel/venv/bin/python -m pip install -qq --disable-pip-version-check -c constraints.txt build/wheel/*.whl
	cd build/wheel/away && env -u PYTHONPATH ../venv/bin/bitwright --version
	cd build/wheel/away && env -u PYTHONPATH ../venv/bin/bitwright demo --quiet --out demo
	@test -s build/wheel/away/demo/report.html
	@rm -rf build/wheel/venv build/wheel/away

audit: env
	$(BIN)/python -m pip check
	$(BIN)/python .ci/audit.py

CORE := tests/curvature tests/allocate tests/arith tests/quantize/test_feedback.py tests/quantize/test_embedding.py
coverage: env
	@mkdir -p build/coverage
	OMP_NUM_THREADS=1 $(BIN)/python -m coverage run -m pytest $(CORE) -m "not slow" $(PYTEST_ARGS)
	$(BIN)/python -m coverage report --fail-under=93 \
	  --include='src/bitwright/curvature/*,src/bitwright/allocate/*,src/bitwright/arith/*'

mutants: env
	$(BIN)/python tests/mutation.py --mutants $(MUTANTS) --again --out build/mutants/rows.jsonl

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)
