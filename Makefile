# What a developer and a first-time user call. Everything is installed into .venv; nothing outside it is touched.

PYTHON ?= python3
MODEL ?= tiny
# More words for pip, for example: make demo PIP_ARGS="--extra-index-url URL" to take PyTorch from an index of CPU builds.
PIP_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
CONSTRAINTS := $(VENV)/constraints.txt
# With an NVIDIA GPU, pip may choose the build of torch that fits it; without one, the pinned version serves.
HAS_GPU := $(shell command -v nvidia-smi 2>/dev/null)

.PHONY: help demo test check lock clean

help:
	@echo "make demo    install, drop the sample pair, wait for its video (MODEL=framepack-i2v for the real model)"
	@echo "make test    run every test"
	@echo "make check   lint, formatting and types"
	@echo "make lock    pin the newest versions in constraints.txt"
	@echo "make clean   remove what make installed"

demo: $(VENV)/installed
	@$(BIN)/framepack-daemon demo --model $(MODEL)

test: $(VENV)/installed-dev
	@$(BIN)/python -m pytest $(TESTS)

check: $(VENV)/installed-dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

$(CONSTRAINTS): constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: apt install python3 python3-venv"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
		{ rm -rf $(VENV); echo "Python cannot make virtual environments: apt install python3-venv"; exit 1; }
	@grep -v $(if $(HAS_GPU),'^torch==','^$$') constraints.txt > $@

$(VENV)/installed: $(CONSTRAINTS) pyproject.toml
	@echo "installing into $(VENV) (a few minutes the first time)"
	@$(PIP) install $(PIP_ARGS) --constraint $(CONSTRAINTS) --editable .
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	@echo "installing the tools for tests"
	@$(PIP) install $(PIP_ARGS) --constraint $(CONSTRAINTS) --editable '.[dev]'
	@touch $@

lock:
	@rm -rf $(VENV)-lock && $(PYTHON) -m venv $(VENV)-lock
	@$(VENV)-lock/bin/python -m pip --quiet install $(PIP_ARGS) $$(grep '^torch==' constraints.txt)
	@$(VENV)-lock/bin/python -m pip --quiet install $(PIP_ARGS) '.[dev]'
	@{ sed -n '/^#/p' constraints.txt; \
		$(VENV)-lock/bin/python -m pip freeze --exclude framepack-daemon | sed 's/+cpu$$//'; } > $(VENV)-lock/constraints.txt
	@mv $(VENV)-lock/constraints.txt constraints.txt
	@rm -rf $(VENV)-lock

clean:
	rm -rf $(VENV) $(VENV)-lock .mypy_cache .pytest_cache .ruff_cache
