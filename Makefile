# Everything runs in .venv, which `make setup` makes. Use `.venv/bin/pytest`, never `python -m pytest`: that puts
# the repository root on sys.path, where the folder `events` hides other people's packages of that name.
MAKEFLAGS += --no-print-directory --no-builtin-rules
.DELETE_ON_ERROR:
.PHONY: help setup setup-python demo test test-fast test-crash lint lock bench clean

PYTHON := .venv/bin/python -P
AREAS = $(filter-out _%,$(basename $(notdir $(wildcard benchmarks/*.py))))

help: ## this list
	@sed -n 's/^\([a-z%-]*\):.*## /\1 /p' Makefile | while read -r name text; do printf '  make %-10s %s\n' "$$name" "$$text"; done

setup: ## .venv, a Docker engine if none answers, and the base image
	@.dev/setup

setup-python:
	@.dev/setup --no-engine

demo: setup ## the whole path once, on real parts
	@$(PYTHON) .dev/demo.py

test: setup lint ## lint, types and the whole suite, with branch coverage
	@.dev/test

test-fast: setup-python ## the tests that need no Docker engine
	.venv/bin/pytest -q -m "not engine"

test-crash: setup-python ## the crash tests at length: kills, damage, full disks; and OpenCode, by npm
	SANDKEEP_CRASH=1 .venv/bin/pytest -q tests/crash tests/events/test_log_machine_crash.py tests/sandboxes/test_round_trip.py tests/e2e/test_opencode.py

lint: setup-python ## ruff and mypy over the whole tree
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy

# The header is dropped because it would name the paths of the machine that ran it.
lock: ## requirements.lock anew from pyproject.toml
	@d=$$(mktemp -d) && trap 'rm -rf "$$d"' EXIT && echo 'lock: resolving for Python 3.11 and later' && \
	python3 -m venv "$$d" && "$$d/bin/pip" install -qq uv && \
	"$$d/bin/uv" pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --upgrade \
	  --no-emit-index-url --no-emit-find-links --group dev pyproject.toml -o "$$d/lock" && \
	cp "$$d/lock" requirements.lock && grep -c '==' requirements.lock | sed 's/$$/ packages in requirements.lock/'

bench: $(addprefix bench-,$(AREAS)) ## every benchmark; `make bench-AREA` for one

bench-%: setup
	@$(PYTHON) benchmarks/$*.py

clean: ## .venv, caches and results; the engine, its images and the benchmarks' peers stay
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage .coverage.* benchmarks/results dist
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
