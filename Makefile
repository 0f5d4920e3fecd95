# `make demo` and `make test` do all of their own set-up: a virtual environment in .venv, pinned by constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
INSTALL := $(PIP) --no-build-isolation --editable

.PHONY: demo serve test test-all mutation lint bench screenshots clean
.DELETE_ON_ERROR:

demo: $(VENV)/run.stamp  ## train a small ANDREA on text from this machine, under a moving mixture
	$(BIN)/mixer demo

serve: $(VENV)/serve.stamp  ## the same, its batches decided and delivered by a service with a page of its own
	$(BIN)/mixer demo --serve

test: lint  ## everything a change must pass
	$(BIN)/python -m pytest -m "not slow"

test-all: lint  ## the slow tests too
	$(BIN)/python -m pytest

mutation: $(VENV)/dev.stamp  ## mutations that no test notices, by folder (docs/testing.md); goes on where it was stopped
	MIXER_KERNELS=off $(BIN)/mutmut run --max-children 2
	$(BIN)/mutmut results

lint: $(VENV)/dev.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/bench.stamp  ## every benchmark, one after the other
	$(BIN)/python -m benchmarks.region
	$(BIN)/python -m benchmarks.decision
	$(BIN)/python -m benchmarks.regret
	$(BIN)/python -m benchmarks.delivery
	$(BIN)/python -m benchmarks.formats
	$(BIN)/python -m benchmarks.record
	$(BIN)/python -m benchmarks.streams
	$(BIN)/python -m benchmarks.sharing
	$(BIN)/python -m benchmarks.segments
	$(BIN)/python -m benchmarks.training
	$(BIN)/python -m benchmarks.gpu
	$(BIN)/python -m benchmarks.guard
	$(BIN)/python -m benchmarks.states
	$(BIN)/python -m benchmarks.service

docs: $(VENV)/dev.stamp  ## the documentation as a site, in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

pictures: $(VENV)/dev.stamp  ## the pictures of the documentation, docs/images (needs chromium)
	rm -rf runs/pictures
	$(BIN)/mixer simulate configs/demo.yaml --steps 600 --out runs/pictures
	$(BIN)/mixer plot runs/pictures/journal.jsonl -o docs/images/walk.png
	$(BIN)/python -m tests.support.screenshots runs/pictures
	cp runs/pictures/main-wide.png docs/images/page.png

screenshots: $(VENV)/dev.stamp  ## pictures of the page, wide, on a phone and dark, to be looked at (needs chromium)
	$(BIN)/python -m tests.support.screenshots screenshots

$(VENV)/created.stamp:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "curriculum-mixer needs Python 3.11 or later: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	touch $@

# torch first, on its own: with it in place nothing else asks for another build; then what compiles mixer/system/_kernels.pyx
$(VENV)/run.stamp: pyproject.toml constraints.txt hatch_build.py mixer/system/_kernels.pyx $(VENV)/created.stamp
	$(PIP) torch
	$(PIP) cython editables hatchling numpy setuptools
	$(INSTALL) '.[torch]'
	touch $@

$(VENV)/serve.stamp: $(VENV)/run.stamp
	$(INSTALL) '.[torch,service]'
	touch $@

$(VENV)/dev.stamp: $(VENV)/run.stamp
	$(INSTALL) '.[torch,dev,examples]'
	touch $@

$(VENV)/bench.stamp: $(VENV)/dev.stamp
	$(INSTALL) '.[torch,dev,examples,bench]'
	touch $@

clean:
	rm -rf $(VENV) build dist site .mypy_cache .pytest_cache .ruff_cache .hypothesis mutants
