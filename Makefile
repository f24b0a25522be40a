# The whole interface of the repository. `make serve` and `make test` need python3 (3.11 or later) and make, nothing else.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN := $(VENV)/.run-installed
DEV := $(VENV)/.dev-installed
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --require-hashes
# Test files are spread over the cores, and one more for the waiting; ARGS="-n0" runs them in one process (for --pdb).
PARALLEL ?= -n $$(( $$(nproc 2>/dev/null || echo 2) + 1 )) --maxprocesses 4 --dist loadfile --no-loadscope-reorder
FUZZ_S ?= 300
ARGS ?=
# Some environments forbid bytecode: then each of the hundreds of processes would compile the whole package anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: serve test lint style types environment bench soak crash crowd fuzz autobahn check clean help

serve: $(RUN)  ## run the guided demo: a proxy with a development CA, an upstream, a client (ARGS="..." is passed on)
	$(BIN)/python -m meshguard demo $(ARGS)

test: $(DEV)  ## run the tests (ARGS="tests/wire -k chunk" narrows them)
	$(BIN)/python -m pytest $(PARALLEL) $(ARGS)

lint: style types  ## ruff and mypy --strict

style: $(DEV)
	$(BIN)/ruff check .

types: $(DEV)
	$(BIN)/mypy

environment: $(DEV)

bench: $(DEV)  ## measure against other proxies; the table goes to standard output
	$(BIN)/python -m benchmarks $(ARGS)

soak: $(DEV)  ## constant load while policies, certificates and endpoints change
	$(BIN)/python -m benchmarks.soak $(ARGS)

crowd: $(DEV)  ## 10 000 idle connections, slow, hostile and cut ones beside a good client (ARGS="idle"; needs ulimit -n 20000)
	$(BIN)/python -m benchmarks.crowd $(ARGS)

fuzz: $(DEV)  ## fuzz every parser of strangers' octets for FUZZ_S seconds (default 300), then the properties with new seeds
	$(BIN)/python -m fuzz --seconds $(FUZZ_S)
	$(BIN)/python -m pytest $(PARALLEL) -x --hypothesis-seed=$$(od -An -N4 -tu4 /dev/urandom | tr -d ' ') $$(grep -rl '^from hypothesis' tests)

autobahn: $(DEV)  ## compare WebSocket verdicts with and without the proxy (ARGS="--python2 PATH --quick")
	$(BIN)/python -m tests.autobahn $(ARGS)

crash: $(DEV)  ## kill a process that writes a ledger MESHGUARD_LEDGER_KILLS times (default 200), at random moments
	MESHGUARD_LEDGER_KILLS=$${MESHGUARD_LEDGER_KILLS:-200} $(BIN)/python -m pytest -x tests/e2e/test_ledger_crash.py

check: $(RUN)  ## check the example configurations and their policies
	$(BIN)/python -m meshguard check --no-files config/*.yaml

clean:  ## remove the environment and everything that is made
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .demo .fuzz dist build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

help:  ## show this
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-7s %s\n", $$1, $$2}'

# An environment is made whole or not at all; the stamps make the next run start at once.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "meshguard needs Python 3.11 or later; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "the venv module is missing: apt-get install python3-venv (or your system's package)" >&2; exit 1; }

$(RUN): requirements.lock | $(BIN)/python
	@echo "installing locked dependencies into $(VENV)"
	@$(PIP) -r requirements.lock
	@$(BIN)/python -m compileall -q meshguard
	@touch $@

$(DEV): requirements-dev.lock | $(BIN)/python
	@echo "installing locked dependencies and tools into $(VENV)"
	@$(PIP) -r requirements.lock
	@$(PIP) --no-compile -r requirements-dev.lock
	@$(BIN)/python -m compileall -q meshguard
	@touch $@ $(RUN)
