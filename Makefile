# The few commands of this project; `make` alone lists them.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup demo demo-models test test-fast test-slow lint format docs docs-build bench pilot constraints clean

BIN := .venv/bin
# Tests share few cores, and pyright need not look for a newer pyright.
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

help:
	@echo 'minillm-ray: on-policy distillation of language models on Ray (the MiniLLM method)'
	@echo
	@echo '  make demo          set up, then run the whole job on a small example (5 to 12 minutes; KEEP=1 leaves Ray up)'
	@echo '  make test          set up, then lint, types and the tests, with real engines (at most 15 minutes)'
	@echo '  make test-fast     only the tests without Ray and vLLM (under 2 minutes)'
	@echo '  make test-slow     what make test leaves out: jobs, faults, chains, all families, the documents (30 minutes)'
	@echo '  make setup         only set up: .venv with pinned packages (2 to 4 minutes, 4.5 GB)'
	@echo '  make lint          ruff and pyright'
	@echo '  make docs          the documents as a site, at http://127.0.0.1:8000'
	@echo '  make format        let ruff put imports and lines in order'
	@echo '  make demo-models   train the two small models that the demo begins with, from nothing'
	@echo '  make bench         ours against TRL and against bare loops, as ratios (long; ONLY=head for one part)'
	@echo '  make pilot         six methods, three seeds, two small pairs: the pilot of the study (under an hour, resumable)'
	@echo '  make constraints   write constraints-cpu.txt anew from .venv'
	@echo '  make clean         remove caches, build leftovers and runs/demo'

setup:
	@bash .ci/setup.sh

demo:
	@echo 'This is the whole job in small: a teacher and a student that answer short instructions, distilled on a local'
	@echo 'Ray cluster and compared with the same number of steps of plain fine-tuning.'
	@echo '  first time only: about 1 GB to download and 2 to 4 minutes to install, in this folder alone (.venv)'
	@echo '  then: 5 to 12 minutes on two cores, with a live line and the address of the dashboard'
	@echo '  at the end: a table, sample answers, and plots, metrics and models in runs/demo'
	@echo
	@bash .ci/setup.sh
	@$(BIN)/minillm demo

demo-models: setup
	$(BIN)/python -m minillm_ray.benchmarks.demo.models

test: lint
	$(BIN)/pytest -q -n auto -m 'not ray and not vllm and not slow'
	$(BIN)/pytest -m '(ray or vllm) and not slow' --durations=15

test-fast: setup
	$(BIN)/pytest -q -n auto -m 'not ray and not vllm and not slow'

test-slow: setup
	$(BIN)/pytest -m slow --durations=15

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

docs-build: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup
	$(BIN)/python -m minillm_ray.benchmarks $(ONLY)

pilot: setup
	$(BIN)/python -m minillm_ray.benchmarks.pilot

constraints: setup
	@{ sed -n '/^#/p' constraints-cpu.txt; \
	   $(BIN)/python -m pip freeze --all --exclude-editable --exclude pip --exclude wheel \
	     --exclude torchvision --exclude torchaudio --exclude torchcodec \
	   | LC_ALL=C sort -f; } > .venv/constraints.txt
	@mv .venv/constraints.txt constraints-cpu.txt

clean:
	rm -rf build dist site *.egg-info .pytest_cache .ruff_cache .hypothesis runs/demo
	find . -path ./.venv -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf
