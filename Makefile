# Every target does its own set-up in .venv and needs only Python >= 3.11, a C compiler and make.
PYTHON ?= python3
# What tests and `make install` install; `EXTRAS=dev,torch make test` adds the tests of the PyTorch exporter.
EXTRAS ?= dev
# Where `run` and `serve-retail` listen if not where their configuration says, and how calls find them there.
PORT ?=
ifeq ($(PORT),0)
$(error PORT=0 would be a port that nobody knows beforehand: name one, such as PORT=50052)
endif
LISTEN := $(if $(PORT), --port $(PORT))
ELSEWHERE := $(if $(PORT), --address 127.0.0.1:$(PORT))
DEMO ?= build/demo
RETAIL ?= build/retail
REFERENCE := build/workloads/reference
# The index that PyTorch's installation page names for CPU builds, a tenth as large as those with CUDA; empty: pip's own.
TORCH_INDEX ?=
BIN := .venv/bin

# One stamp per set of extras, so that `make run` does not wait for what only tests need; the README's load test follows it.
comma := ,
RUN_READY := .venv/.ready-cpu-export-loadtest
RETAIL_READY := .venv/.ready-cpu-export-torch
EXTRAS_READY := .venv/.ready-$(subst $(comma),-,$(EXTRAS))
# Editable installs link file by file: a new or removed file asks for another install, a changed .py does not.
BUILD_INPUTS := pyproject.toml setup.py build/files.txt \
	$(shell find proto kernels loadtest -name '*.proto' -o -name '*.pyx' -o -name '*.pxi' -o -name '*.h')

.DEFAULT_GOAL := help
.PHONY: help install run demo retail serve-retail test test-all sanitize lint format bench bench-reference clean FORCE

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(EXTRAS_READY) ## Install the optional dependencies that EXTRAS names, and nothing else: make install EXTRAS=torch

run: $(RUN_READY) $(DEMO)/recserve.toml ## Serve the demo bundle on 127.0.0.1 and show one answer; port 50051, or PORT=…
	@# The server says on standard output when it is ready; only then, and only if it is, there is an answer to show.
	@# It takes the place of the shell, whom make would tell to end, so that it does not go on alone.
	@said=$$(mktemp -u) && mkfifo "$$said" || exit; \
	{ rm "$$said"; read -r ready && echo "$$ready" && $(BIN)/recserve call recommend --user user-00042 --count 10 --hint title,price,category$(ELSEWHERE); cat; } < "$$said" & \
	exec $(BIN)/recserve serve --config $(DEMO)/recserve.toml$(LISTEN) > "$$said"

demo: $(RUN_READY) $(DEMO)/recserve.toml ## Build the demo bundle if it is missing

# What is missing is told before the download of what needs it.
retail: $(if $(shell test -e "$(DATA)" && echo there),$(RETAIL_READY)) ## Train, export and evaluate on real transactions: make retail DATA=path/to/transactions.parquet
	@test -e "$(DATA)" || { echo "say where the transactions are: make retail DATA=path/to/transactions.parquet$(if $(DATA),; there is no $(DATA))"; exit 2; }
	$(BIN)/python -m examples.online_retail --data "$(DATA)" --out $(RETAIL) --replace

serve-retail: $(if $(wildcard $(RETAIL)/recserve.toml),$(RETAIL_READY)) ## Serve what `make retail` made, as of the beginning of its test weeks
	@test -e $(RETAIL)/recserve.toml || { echo "nothing to serve yet: make retail DATA=path/to/transactions.parquet"; exit 2; }
	@echo "In another terminal: $(BIN)/recserve call recommend --user 14911 --count 10 --fields description --reasons$(ELSEWHERE)"
	@echo "What 14911 has not bought yet: add --placement discover; more varied: --placement varied"
	$(BIN)/recserve serve --config $(RETAIL)/recserve.toml$(LISTEN)

test: $(EXTRAS_READY) ## All tests but the slow ones, and lint
	@$(MAKE) --no-print-directory lint
	$(BIN)/pytest -m "not slow"

test-all: $(EXTRAS_READY) ## All tests, and lint
	@$(MAKE) --no-print-directory lint
	$(BIN)/pytest

sanitize: $(EXTRAS_READY) ## The kernels' tests under AddressSanitizer and UndefinedBehaviorSanitizer; slow
	$(BIN)/python tests/sanitize.py

lint: $(EXTRAS_READY) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p recserve.kernels -p recserve.server -p recserve.exporters -p recserve.loadtest -p examples

format: $(EXTRAS_READY) ## Format the sources
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(EXTRAS_READY) ## Measure kernels, and the server beside a straightforward one; under 10 minutes, into build/bench
	$(BIN)/recserve-loadtest kernels basics
	$(BIN)/recserve-loadtest kernels forest --quick
	$(BIN)/recserve-loadtest kernels retrieval --quick --engines ivf-flat ivf-pq
	$(BIN)/recserve-loadtest versus --workload small

# The other engines for forests and retrieval take part where they are installed: EXTRAS=dev,bench.
bench-reference: $(EXTRAS_READY) ## Measure everything at full size: a million items, 1,000 trees; an hour and more
	$(BIN)/recserve-loadtest kernels basics --items 1000000
	$(BIN)/recserve-loadtest kernels forest
	$(BIN)/recserve-loadtest kernels retrieval
	$(BIN)/recserve-loadtest versus --workload reference --out build/bench/versus-reference.json
	$(BIN)/recserve-loadtest sweep --config $(REFERENCE)/recserve.toml --scenario $(REFERENCE)/scenario.toml \
		--server-cores 0 --generator-cores 1 --out build/bench/sweep-reference.json

clean: ## Remove what a build makes, with .venv
	rm -rf .venv build dist *.egg-info
	find kernels server exporters loadtest tests -name '*.so' -delete -o -name __pycache__ -prune -exec rm -rf {} +

$(DEMO)/recserve.toml: | $(RUN_READY)
	$(BIN)/recserve-export demo --out $(DEMO)

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit("recserve needs Python >= 3.11; pass one as `make PYTHON=…`" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv

# The stem is the extras, with - for commas.
.venv/.ready-%: $(BUILD_INPUTS) | .venv/bin/python
	$(if $(and $(TORCH_INDEX),$(findstring torch,$*)),$(BIN)/pip install --index-url $(TORCH_INDEX) 'torch>=2.6$(comma)<3')
	$(BIN)/pip install --config-settings editable_mode=strict -e ".[$(subst -,$(comma),$*)]"
	@touch $@

build/files.txt: FORCE
	@mkdir -p build
	@find kernels server exporters loadtest -name '*.py' -o -name '*.pyi' -o -name '*.typed' -o -name '*.html' -o -name '*.toml' | sort > $@.new
	@cmp -s $@.new $@ && rm $@.new || mv $@.new $@
