# Virga's one door for developers. `make help` lists the targets; everything is made inside .venv and build/.
# Each step leaves a stamp and runs again only when what it was made from has changed.

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	command -v $$p >/dev/null && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' && echo $$p && break; done)
BIN := .venv/bin
SOURCES := $(shell find vcpu node_agent -name '*.py[xd]' -o -name '*.pxi' -o -path 'vcpu/isa/*.py' 2>/dev/null)
PROTOS := $(shell find proto -name '*.proto')
GUESTS := $(wildcard node_agent/guest/*.S node_agent/guest/*.ld)
PYTEST_ARGS ?=
FUZZ_SECONDS ?= 3600

.PHONY: help build tools demo test bench fuzz lint clean

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /  make \1|/p' Makefile | awk -F'|' '{ printf "%-13s %s\n", $$1, $$2 }'

build: tools build/extensions.stamp build/guest/tiny.elf $(BIN)/virga  ## set everything up in .venv (the others do it too)

demo: build  ## a three-node cloud boots Linux and moves it live; nothing is left running
	@$(BIN)/python -m cli.demo

test: build  ## all tests (PYTEST_ARGS="-k decoder" for some)
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

bench: build  ## measure, and write bench/RESULTS.md
	@$(BIN)/python -m bench

fuzz: build  ## fuzz the decoder, the devices and the API for an hour (FUZZ_SECONDS=3600)
	@VIRGA_FUZZ_SECONDS=$(FUZZ_SECONDS) $(BIN)/python -m pytest tests/fuzz -p no:cacheprovider -s

lint: build  ## ruff and the rules of tests/static
	@$(BIN)/python -m pytest -q tests/static
	@if [ -x $(BIN)/ruff ]; then $(BIN)/ruff check .; else echo "virga: ruff is not installed; only tests/static ran"; fi

clean:  ## remove what was made, .venv included
	rm -rf .venv build virga *.egg-info
	find . -name '*.so' -not -path './.venv/*' -delete
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

# What the set-up needs from the system: one sentence with the package for whatever is missing.
tools:
	@[ -n "$(PYTHON)" ] || { echo "virga: Python 3.11 or later is missing: install the package python3." >&2; exit 1; }
	@[ "$$(uname -sm)" = "Linux x86_64" ] || { echo "virga: Virga runs on Linux on x86-64 only." >&2; exit 1; }
	@command -v gcc >/dev/null || { echo "virga: the C compiler is missing: install the package gcc (or build-essential)." >&2; exit 1; }
	@command -v as >/dev/null && command -v ld >/dev/null || { echo "virga: the assembler is missing: install the package binutils." >&2; exit 1; }
	@[ -x $(BIN)/python ] || $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "virga: Python's venv is missing: install the package python3-venv." >&2; exit 1; }
	@[ -f build/extensions.stamp ] || $(PYTHON) -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' || { echo "virga: Python's headers are missing: install the package python3-dev." >&2; exit 1; }
	@echo '#include <stdlib.h>' | gcc -E - >/dev/null 2>&1 || { echo "virga: the C library's headers are missing: install the package libc6-dev." >&2; exit 1; }

.venv/dependencies.stamp: pyproject.toml | tools
	@echo "virga: environment and dependencies in .venv (once)"
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv .venv
	@$(BIN)/python -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
		print("\n".join(p["dependencies"] + p["optional-dependencies"]["dev"]))' > .venv/requirements.txt
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --requirement .venv/requirements.txt || \
		{ echo "virga: the Python packages could not be installed: is the network or the package index reachable?" >&2; exit 1; }
	@touch $@

# The editable install is a plain .pth file (compat): an import hook would cost every start of `virga` 30 ms.
$(BIN)/virga: .venv/dependencies.stamp pyproject.toml
	@VIRGA_EXT= $(BIN)/python -m pip install -qq --disable-pip-version-check --no-build-isolation --no-deps \
		--config-settings editable_mode=compat --editable .
	@touch $@

build/extensions.stamp: setup.py $(SOURCES) $(PROTOS) .venv/dependencies.stamp
	@echo "virga: generated code and extensions (a few minutes, once)"
	@mkdir -p build
	@$(BIN)/python setup.py -q build_all
	@touch $@

build/guest/tiny.elf: $(GUESTS) node_agent/guest/build.py .venv/dependencies.stamp
	@$(BIN)/python -m node_agent guest build
