PYTHON ?= python3
TORCH ?= 2.13.0
ARGS ?=

BIN := .venv/bin
SOURCES := $(shell find csrc -name '*.h' -o -name '*.cpp') setup.py pyproject.toml

.PHONY: demo test bench lint format clean help

help:           ## show this list
	@grep -hE '^[a-z]+: .*##' Makefile | sed 's/:.*##/\t/'

.venv/.dependencies: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q torch==$(TORCH)
	$(BIN)/pip install -q "setuptools>=77" wheel ninja "pybind11>=2.12" \
	    $$($(BIN)/python -c "import tomllib; e = tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']; print(*sum(e.values(), []))")
	touch $@

.venv/.built: .venv/.dependencies $(SOURCES)
	PATH="$(CURDIR)/$(BIN):$$PATH" WEIGHTED_BCE_REQUIRE_EXT=1 \
	    $(BIN)/pip install -q --no-build-isolation --no-deps -e .
	touch $@

demo: .venv/.built  ## train a classifier on sparse labels with several losses, and compare
	$(BIN)/python -m examples.sparse_labels $(ARGS)

test: .venv/.built  ## run all tests
	$(BIN)/python -m pytest -n 2 -m "not large" $(ARGS)
	$(BIN)/python -m pytest -m large $(ARGS)

bench: .venv/.built  ## compare the speed with the usual ways to write this loss
	$(BIN)/python -m bench --quick $(ARGS)

lint: .venv/.dependencies  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $$(find csrc tests -name '*.h' -o -name '*.cpp')

format: .venv/.dependencies  ## format all sources
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(find csrc tests -name '*.h' -o -name '*.cpp')

clean:          ## remove everything that was built
	rm -rf .venv build dist *.egg-info weighted_bce/*.so examples/out
