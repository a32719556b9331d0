# Every target does its own set-up in .venv and needs only Python >= 3.11, a C compiler and make.
PYTHON ?= python3
# What tests install; `EXTRAS=dev,torch make test` adds the tests of the PyTorch exporter.
EXTRAS ?= dev
DEMO ?= build/demo
BIN := .venv/bin

# One stamp per set of extras, so that `make run` does not wait for what only tests need.
comma := ,
RUN_READY := .venv/.ready-cpu-export
TEST_READY := .venv/.ready-$(subst $(comma),-,$(EXTRAS))
# Editable installs link file by file: a new or removed file asks for another install, a changed .py does not.
BUILD_INPUTS := pyproject.toml setup.py build/files.txt \
	$(shell find proto kernels loadtest -name '*.proto' -o -name '*.pyx' -o -name '*.pxi' -o -name '*.h')

.DEFAULT_GOAL := help
.PHONY: help run demo test test-all lint format bench clean FORCE

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

run: $(RUN_READY) $(DEMO)/recserve.toml ## Serve the demo bundle on 127.0.0.1:50051 and show one answer
	@# The server says on standard output when it is ready; only then, and only if it is, there is an answer to show.
	@$(BIN)/recserve serve --config $(DEMO)/recserve.toml | { read -r ready && echo "$$ready" && $(BIN)/recserve call recommend --user user-00042 --count 10 --hint; cat; test -n "$$ready"; }

demo: $(RUN_READY) $(DEMO)/recserve.toml ## Build the demo bundle if it is missing

test: $(TEST_READY) ## All tests but the slow ones, and lint
	@$(MAKE) --no-print-directory lint
	$(BIN)/pytest -m "not slow"

test-all: $(TEST_READY) ## All tests, and lint
	@$(MAKE) --no-print-directory lint
	$(BIN)/pytest

lint: $(TEST_READY) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p recserve.kernels -p recserve.server -p recserve.exporters -p recserve.loadtest

format: $(TEST_READY) ## Format the sources
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(TEST_READY) $(DEMO)/recserve.toml ## Measure the kernels and the demo server; results under build/bench
	$(BIN)/recserve-loadtest kernels basics
	$(BIN)/recserve-loadtest kernels forest --quick
	$(BIN)/recserve-loadtest sweep --config $(DEMO)/recserve.toml --seconds 8 --out build/bench/demo.json

clean: ## Remove what a build makes, with .venv
	rm -rf .venv build dist *.egg-info
	find kernels server exporters loadtest tests -name '*.so' -delete -o -name __pycache__ -prune -exec rm -rf {} +

$(DEMO)/recserve.toml: | $(RUN_READY)
	$(BIN)/recserve-export demo --out $(DEMO)

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit("recserve needs Python >= 3.11; pass one as `make PYTHON=…`" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv

$(RUN_READY): $(BUILD_INPUTS) | .venv/bin/python
	$(BIN)/pip install --config-settings editable_mode=strict -e ".[cpu,export]"
	@touch $@

$(TEST_READY): $(BUILD_INPUTS) | .venv/bin/python
	$(BIN)/pip install --config-settings editable_mode=strict -e ".[$(EXTRAS)]"
	@touch $@

build/files.txt: FORCE
	@mkdir -p build
	@find kernels server exporters loadtest -name '*.py' -o -name '*.pyi' -o -name '*.typed' -o -name '*.html' -o -name '*.toml' | sort > $@.new
	@cmp -s $@.new $@ && rm $@.new || mv $@.new $@
