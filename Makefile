# Everything a fresh machine needs: `make demo` and `make test` create the environment themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test docs faults cluster lint format clean

help:  ## Show this help
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "error: $(PYTHON) is older than 3.11; try make PYTHON=python3.11" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(STAMP)  ## Train a delta-rule language model on this Python's documentation (about 5 minutes)
	$(BIN)/python train.py experiment=demo run_dir=runs/demo resume=auto
	$(BIN)/python -m benchmarks.ngram beside=runs/demo

test: $(STAMP)  ## Run the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

docs: $(STAMP)  ## Run the tutorials and build the documentation in build/site (about a minute)
	OMP_NUM_THREADS=1 $(BIN)/python docs/make_site.py

faults: $(STAMP)  ## Inject every fault of docs/reliability.md and print a table (minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m fault --full -n 2 --dist worksteal

cluster: $(STAMP)  ## Start a SLURM of two nodes on this machine and run under it (minutes; root, slurm-wlm, munge)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/cluster --full -n 0 -rs

lint: $(STAMP)  ## Check format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

format: $(STAMP)  ## Format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## Remove the environment and caches (runs/ stays)
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .hypothesis
