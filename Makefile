# make demo   the whole line: train, export, tag real emoji, draw a contact sheet
# make test   the tests
# make check  lint, types, tests
# make bench  latency and throughput on this machine
# make slow   tests of real size (SD 1.5 configuration; 10 GB of memory, 4 GB of disk)
# Each makes the environment .venv first if it is not there.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A test process per processor, four at most; each computes with one thread.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder
# Pictures for the demo: an argument, else next to the project, else synthetic photographs.
FER2013 ?= $(firstword $(wildcard ../shared/data/fer2013.zip fer2013.zip))

.DEFAULT_GOAL := test
.PHONY: demo test check bench slow clean

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 10), "needs Python 3.10 or newer"'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e ".[dev]"
	@touch $@

demo: $(VENV)/.ready
	$(BIN)/python recipes/demo.py --out demo $(if $(FER2013),--fer2013 "$(FER2013)")

test: $(VENV)/.ready
	$(PYTEST)
	@echo "next: make demo   or   make slow"

check: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(PYTEST)

slow: $(VENV)/.ready
	$(BIN)/python -m pytest -m slow -s

bench: $(VENV)/.ready
	$(BIN)/python benchmarks/latency.py

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
