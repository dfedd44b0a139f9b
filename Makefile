# make demo   a newcomer's first look: the sample, a little training, an evaluation, the skills
# make demo-games   one of the sample's ALFWorld games, played by the embedded model with what it wrote about others
# make test   everything that is quick; make test-slow what takes minutes or needs the extras; make test-all both;
#             K=ppo only tests whose file or name contains ppo (an expression of pytest -k)
# make fuzz   property tests with random examples for four minutes, FUZZ_SECONDS=n for n seconds; prints its seeds
#             (guided by coverage instead, with the extra fuzz: python tests/fuzz/run.py)
# make mutants   mutation testing: are there tests for what the modules do? M=ppo for one module; docs/mutants.md
# make release   a wheel and an sdist in dist, with their contents checked
# Each sets up by itself what it needs, in .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt
MEMSKILL := $(BIN)/memskill

FUZZ_SECONDS ?= 240
K ?=
PYTEST := $(BIN)/pytest -n 2 --dist loadfile $(if $(K),-k "$(K)")

.PHONY: demo demo-games test test-slow test-all fuzz mutants lint bench release clean

# The embedded model's parts are installed packages: no network is asked for it. The demo has a data folder of its own.
demo: export HF_HUB_OFFLINE = 1
demo: export MEMSKILL_DATA_DIR = data/demo
demo: $(VENV)/.installed
	@rm -rf runs/demo
	$(MEMSKILL) prepare --dataset locomo --sample
	$(MEMSKILL) train --dataset locomo --preset demo --run demo
	$(MEMSKILL) eval --dataset locomo --run demo
	$(MEMSKILL) inspect-skills --run demo

demo-games: export HF_HUB_OFFLINE = 1
demo-games: export MEMSKILL_DATA_DIR = data/demo
demo-games: $(VENV)/.extras
	$(MEMSKILL) prepare --dataset alfworld --sample
	$(MEMSKILL) eval --dataset alfworld --preset demo --limit 1

test: $(VENV)/.installed
	$(PYTEST) -m "not slow and not extra"

test-slow: $(VENV)/.extras
	$(PYTEST) -m "slow or extra"

test-all: test test-slow

fuzz: $(VENV)/.installed
	$(BIN)/python tests/fuzz/properties.py --seconds $(FUZZ_SECONDS)

mutants: $(VENV)/.installed
	$(BIN)/python tests/mutants/run.py $(M)

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python tools/check_links.py

bench: $(VENV)/.extras
	$(BIN)/python benchmarks/run.py --all

release: $(VENV)/.installed
	@rm -rf dist
	$(BIN)/python -m build --outdir dist .
	$(BIN)/python tools/check_release.py dist

clean:
	rm -rf $(VENV) .mutants build dist runs/demo data/demo benchmarks/out .pytest_cache .mypy_cache .ruff_cache .hypothesis

# torch first and by its pin, so that no build with CUDA is pulled in by something that depends on it.
$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "setting up $(VENV): some minutes, about 4 GB (1.1 GB of it the embedded language model)"
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) -e ".[embedded,dev]"
	@touch $@

# What is optional for users: games (built from source: a compiler and cmake, some minutes), other systems, trackers;
# and a fuzzer for the tests.
$(VENV)/.extras: $(VENV)/.installed
	@echo "adding the extras to $(VENV): some minutes"
	PATH="$(CURDIR)/$(BIN):$$PATH" $(PIP) -e ".[embedded,dev,extras,fuzz]"
	@touch $@
