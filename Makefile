# make demo            set up, then the main job on real input: before, post-training, after, report
# make test            set up, then the quick tests
# make test-slow       set up, then the slow tests: several processes, browser, guides, commands of the pages, wheel
# make test-ray        set up, then the tests on a Ray cluster of two nodes
# make test-fuzz       set up, then thousands of malformed inputs for every reader
# make test-gpu        set up, then the tests that need a CUDA device
# make lint            set up, then ruff and mypy
# make docs            set up, then the documentation in build/site; a broken link fails
# make wheel           set up, then the wheels of the code and of the weights in dist

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-slow test-ray test-fuzz test-gpu lint docs wheel install clean

demo: install
	$(BIN)/flowportrait demo --output demo

test: install
	$(BIN)/python -m pytest

test-slow: install
	$(BIN)/python -m pytest -m "slow and not data and not fuzz and not ray" --durations=10

# A node of a cluster that is lost on this machine now and then takes the test itself with it.
test-ray: install
	$(BIN)/python -m pytest -m ray

test-fuzz: install
	$(BIN)/python -m pytest -m fuzz --durations=10

test-gpu: install
	$(BIN)/python -m pytest -m gpu

lint: install
	$(BIN)/ruff check src tests benchmarks tools examples integrations
	$(BIN)/ruff format --check src tests benchmarks tools examples integrations
	$(BIN)/mypy
	$(BIN)/mypy integrations/comfyui

docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

wheel: install
	$(BIN)/python -c "from setuptools import build_meta; build_meta.build_wheel('dist')"
	cd weights && ../$(BIN)/python -c "from setuptools import build_meta; build_meta.build_wheel('../dist')"

install: $(READY)

# The lock constrains what plain pip resolves. The index of torch's own builds comes in by PIP_EXTRA_INDEX_URL, which
# `make` leaves alone: https://download.pytorch.org/whl/cpu spares a machine without a GPU several gigabytes.
$(READY): requirements.lock pyproject.toml weights/pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -c requirements.lock torch
	$(BIN)/pip install --quiet -c requirements.lock -e ./weights -e '.[all,dev]'
	$(BIN)/pip check
	touch $@

clean:
	rm -rf $(VENV) demo build dist weights/build
