# Everything needed on a fresh machine: Python 3.10 or newer with venv, and make.
#   make video PROMPT="a red ball rolls to the right on a white background"
#   make test

PYTHON ?= python3
# The version that the tests were last run with; any torch >= 2.6 works: make video TORCH=torch
TORCH  ?= torch==2.13.0
PROMPT ?= a large red star moves slowly to the right on a pale blue background
OUTPUT ?= video.mp4
BIN    := .venv/bin

.PHONY: video test lint types

video: .venv/ready
	$(BIN)/kinograph generate "$(PROMPT)" -o "$(OUTPUT)"

test: .venv/ready-test lint types
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2

lint: .venv/ready-test
	$(BIN)/ruff check .

types: .venv/ready-test
	$(BIN)/mypy

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/pip install --quiet --disable-pip-version-check -e .
	touch $@

.venv/ready-test: .venv/ready
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[test]'
	touch $@
