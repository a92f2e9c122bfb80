# Everything starts from a fresh machine with Python (>= 3.11) and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Most of them wait for other programs: more than there are processors do no harm.
TEST_PROCESSES ?= 4
UV_VERSION := 0.13.8
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help run test torture check lint types imports format bench lock prices docs stack stack-down clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): requirements/dev.txt pyproject.toml
	@echo "setting up $(VENV) (once; under a minute)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet uv==$(UV_VERSION)
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements/dev.txt
	@touch $@

run: $(STAMP) ## serve on port 8080 with the embedded defaults
	@$(BIN)/python -m gateway serve

test: $(STAMP) ## all tests; the end-to-end ones need Go, to build the real Collector and Jaeger once
	@$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist worksteal

torture: $(STAMP) ## the fault tests at length: 10,000 kills at named points, 1,000 of the real server, the simulator
	@SPANBILL_TORTURE=1 $(BIN)/python -m pytest -s $(wildcard tests/faults tests/simulator)

check: $(STAMP) lint types imports ## lint, types and import rules

lint: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(STAMP)
	@$(BIN)/mypy

imports: $(STAMP)
	@PYTHONPATH=. $(BIN)/lint-imports

format: $(STAMP) ## put the code into the house's form
	@$(BIN)/ruff check --fix --quiet . ; $(BIN)/ruff format .

bench: $(STAMP) ## compare with a direct call and a bare reverse proxy; rebuild and ask a ledger
	@$(BIN)/python benchmarks/run.py
	@$(BIN)/python benchmarks/admission.py
	@$(BIN)/python benchmarks/ledger.py
	@$(BIN)/python benchmarks/cost_doors.py

stack: $(STAMP) ## build (once) and start the real Collector, Jaeger and Prometheus on loopback
	@$(BIN)/python deploy/stack.py up

stack-down: $(STAMP) ## stop them
	@$(BIN)/python deploy/stack.py down

lock: ## pin every dependency with its hashes
	@$(BIN)/uv pip compile pyproject.toml --group dev -c requirements/constraints.in --universal --generate-hashes --prerelease=if-necessary \
		--no-annotate --custom-compile-command "make lock" --quiet -o requirements/dev.txt
	@$(BIN)/uv pip compile pyproject.toml --universal --generate-hashes --prerelease=if-necessary -c requirements/dev.txt \
		--no-annotate --custom-compile-command "make lock" --quiet -o requirements/runtime.txt

prices: $(STAMP) ## compile the rate catalogue again
	@$(BIN)/python -m gateway.pricing.importer

docs: $(STAMP) ## write the generated tables again
	@$(BIN)/python -m gateway.cli.tables

clean: ## remove what can be made again
	@rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
