# Needs make, git and Python 3.11 to 3.13 with venv; everything else comes from the locks.

PYTHON ?= $(firstword $(foreach name,python3 python3.13 python3.12 python3.11,$(if $(shell \
  $(name) -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null \
  && echo found),$(name))))
VENV := .venv
BIN := $(VENV)/bin
SOURCES := $(shell find src -type f -name '*.py') pyproject.toml README.md
RUN_DIR := build/run

.DEFAULT_GOAL := help
.PHONY: help run test check lives crashes matrix bench format lock wheel clean

help: ## show this
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(VENV)/run.installed ## run a sample job from config to final message, in profile local
	@rm -rf $(RUN_DIR)/state
	@$(BIN)/python examples/sample_runner/build.py $(RUN_DIR) >/dev/null
	$(BIN)/runs-fleet-agent run --profile local --job examples/job.json \
	  --runner-archive $(RUN_DIR) --state-dir $(RUN_DIR)/state

test: $(VENV)/dev.installed ## run the tests, through the installed wheel
	$(BIN)/pytest $(PYTEST_ARGS)

check: $(VENV)/dev.installed ## lint, types, layers
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

lives: $(VENV)/dev.installed ## hold the invariants over 10,000 random lives, and 10,000 plain ones
	LIVES=10000 $(BIN)/pytest tests/unit/test_invariants.py -k "every_life or plain_life"

crashes: $(VENV)/dev.installed ## kill agents and successors at 400 random moments
	CRASHES=200 $(BIN)/pytest -n auto tests/integration/test_crash.py -k killed

matrix: $(VENV)/dev.installed ## kill, hang and stop the agent in each phase, under a real systemd (root)
	REQUIRE_SYSTEMD=1 $(BIN)/pytest -n auto tests/system/test_matrix.py

bench: $(VENV)/dev.installed ## measure, and hold the figures against their limits
	@status=0; for program in provisioning delivery following life; do \
	  echo "== $$program"; $(BIN)/python benchmarks/$$program.py || status=1; echo; \
	done; exit $$status

format: $(VENV)/dev.installed ## format, and mend what lint can mend
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

lock: ## renew the locks (needs uv)
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --quiet --upgrade \
	  pyproject.toml --group build -o requirements/run.lock
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --quiet --upgrade \
	  pyproject.toml --group build --group dev -c requirements/run.lock -o requirements/dev.lock

wheel: $(VENV)/run.locked ## build the wheel into dist/
	$(BIN)/pip --quiet wheel --no-deps --no-build-isolation --wheel-dir dist .

clean: ## remove everything that make made
	rm -rf $(VENV) build dist

# The environment: from the lock with its hashes, then the project as the wheel that users install.

$(VENV)/made:
	@test -n "$(PYTHON)" || { echo "Python 3.11 to 3.13 with venv was not found (on Debian: apt install python3-venv); or: make PYTHON=/path/to/python" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/run.locked: $(VENV)/made requirements/run.lock
	$(BIN)/pip --quiet --disable-pip-version-check install --require-hashes -r requirements/run.lock
	@touch $@

$(VENV)/dev.locked: $(VENV)/made requirements/dev.lock
	$(BIN)/pip --quiet --disable-pip-version-check install --require-hashes -r requirements/dev.lock
	@touch $@ $(VENV)/run.locked

$(VENV)/run.installed: $(VENV)/run.locked $(SOURCES)
	$(BIN)/pip --quiet --disable-pip-version-check install --no-deps --no-build-isolation --force-reinstall .
	@touch $@

$(VENV)/dev.installed: $(VENV)/dev.locked $(SOURCES) tests/support/lean.py
	$(BIN)/pip --quiet --disable-pip-version-check install --no-deps --no-build-isolation --force-reinstall .
	$(BIN)/python tests/support/lean.py $(VENV)/lean # what the tests run: the wheel, with what it requires
	@touch $@ $(VENV)/run.installed
