# What a developer and a first-time user call. Everything is installed into .venv; nothing outside it is touched.

PYTHON ?= python3
MODEL ?= tiny
# More words for pip, for example: make demo PIP_ARGS="--extra-index-url URL" to take PyTorch from an index of CPU builds.
PIP_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
LOCK := build/lock
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
CONSTRAINTS := $(VENV)/constraints.txt
# With an NVIDIA GPU, pip may choose the build of torch that fits it; without one, the pinned version serves.
HAS_GPU := $(shell command -v nvidia-smi 2>/dev/null)

.PHONY: help demo deb test check lock vendor clean

help:
	@echo "make demo    install, drop the sample pair, wait for its video (MODEL=framepack-i2v for the real model)"
	@echo "make deb     a Debian package, in build/"
	@echo "make test    run every test"
	@echo "make check   lint, formatting and types"
	@echo "make lock    pin the newest versions in constraints.txt (torch stays: change its line by hand)"
	@echo "make vendor  fetch the page's files of others again from npm, and compare them with their sums"
	@echo "make clean   remove what make installed"

demo: $(VENV)/installed
	@$(BIN)/framepack-daemon demo --model $(MODEL)

deb: $(VENV)/installed
	@packaging/debian/build.sh $(BIN)/python build

# Two files of tests side by side: a test mostly waits for a daemon, a writer or a disk.
test: $(VENV)/installed-dev
	@$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder $(TESTS)

check: $(VENV)/installed-dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

$(CONSTRAINTS): constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "Python 3.11 or newer is needed: apt install python3 python3-venv, or make PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "Python cannot make virtual environments: apt install python3-venv"; exit 1; }
	@$(BIN)/python -c 'import pip' 2>/dev/null || $(PYTHON) -m venv --clear $(VENV)
	@grep -v $(if $(HAS_GPU),'^torch==','^$$') constraints.txt > $@

$(VENV)/installed: $(CONSTRAINTS) pyproject.toml
	@echo "installing into $(VENV) (a few minutes the first time)"
	@$(PIP) install $(PIP_ARGS) --constraint $(CONSTRAINTS) --editable .
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	@echo "installing the tools for tests"
	@$(PIP) install $(PIP_ARGS) --constraint $(CONSTRAINTS) --editable '.[dev]'
	@touch $@

# torch comes first and alone: pip keeps it, where it would otherwise look for the newest. Not pinned are the libraries
# of a CUDA build, which come with torch, and the label of the build.
lock:
	@echo "resolving the newest versions (a few minutes)"
	@$(PYTHON) -m venv --clear $(LOCK)
	@$(LOCK)/bin/python -m pip --quiet install $(PIP_ARGS) $$(grep '^torch==' constraints.txt)
	@$(LOCK)/bin/python -m pip --quiet install $(PIP_ARGS) --editable '.[dev]'
	@{ grep '^#' constraints.txt; \
		$(LOCK)/bin/python -m pip freeze --exclude-editable | sed -E '/^(nvidia|cuda|triton)/d; s/\+c(pu|u[0-9]+)$$//'; } > $(LOCK)/constraints.txt
	@mv $(LOCK)/constraints.txt constraints.txt
	@rm -rf $(LOCK)
	@git --no-pager diff --stat constraints.txt

vendor:
	@$(PYTHON) packaging/vendor.py

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache
