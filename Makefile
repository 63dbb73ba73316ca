# Every target does its own set-up: python3 with its venv module is all that must be there.
# A set-up is repeated only when pyproject.toml has changed since.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

.PHONY: run test lint bench venv clean
.DEFAULT_GOAL := run

run: $(VENV)/.run-stamp
	@$(BIN)/pellucid run $(ARGS)

test: $(VENV)/.dev-stamp
	@$(BIN)/python -m pytest -q --durations=10 $(ARGS) tests

lint: $(VENV)/.dev-stamp
	@$(BIN)/ruff check src tests
	@$(BIN)/mypy --strict src
	@$(BIN)/python -m pytest -q tests/test_layers.py

bench: $(VENV)/.run-stamp
	@$(BIN)/pellucid bench $(ARGS)

venv: $(VENV)/.run-stamp
	@:

clean:
	rm -rf $(VENV)

$(VENV)/.run-stamp: pyproject.toml
	@$(call set-up,.)
	@touch $@

$(VENV)/.dev-stamp: pyproject.toml
	@$(call set-up,.[dev])
	@touch $@ $(VENV)/.run-stamp

# $(call set-up,WHAT TO INSTALL)
define set-up
$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
  { echo "pellucid: $(PYTHON) is missing or older than 3.11: install one, or name another with make PYTHON=..." >&2; exit 1; }; \
$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
  { echo "pellucid: $(PYTHON) cannot make virtual environments: install its venv module (Debian: apt-get install python3-venv)" >&2; exit 1; }; \
echo "pellucid: setting up $(VENV) (once)"; \
$(PYTHON) -m venv $(VENV) && \
$(BIN)/python -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --editable '$(1)'
endef
